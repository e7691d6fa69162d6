"""``python -m potluck``."""

from potluck.app.cli import main

if __name__ == "__main__":
    main()
