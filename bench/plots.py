"""Write the tables and figures of docs/benchmarks.md anew, out of ``bench/results``.

    python -m bench.plots

A table stands in the document between ``<!-- generated: NAME -->`` and ``<!-- end -->``; figures go to
docs/figures. Nothing is measured here: benchmarks print their results, and those who run them keep them
(``python -m bench.allreduce --presets | tee -a bench/results/presets.jsonl``).
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from bench.results import FOLDER, BadResults
from bench.tables import TABLES, made

DOCS = Path(__file__).parents[1] / "docs"
MARKED = re.compile(r"(<!-- generated: (\S+) -->\n).*?(\n?<!-- end -->)", re.S)


def filled(document: str, folder: Path = FOLDER) -> str:
    """The document with each table between its marks made anew.

    Raises:
        BadResults: there is no such table, or its results are missing.
    """

    def fill(found: re.Match[str]) -> str:
        if found[2] not in TABLES:
            raise BadResults(f"no table is called {found[2]}: there are {', '.join(TABLES)}")
        return f"{found[1]}\n{made(found[2], folder)}\n\n<!-- end -->"

    return MARKED.sub(fill, document)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=FOLDER)
    parser.add_argument("--docs", type=Path, default=DOCS, help="the folder that has benchmarks.md")
    args = parser.parse_args(argv)
    from bench.figures import FIGURES, draw

    page, figures = args.docs / "benchmarks.md", args.docs / "figures"
    try:
        page.write_text(filled(page.read_text("utf-8"), args.results), "utf-8")
        figures.mkdir(exist_ok=True)
        for name in FIGURES:
            draw(name, figures / f"{name}.svg", args.results)
    except BadResults as bad:
        print(bad, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
