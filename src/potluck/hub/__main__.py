"""A hub as a process of its own: ``python -m potluck.hub '{"directory": …}'`` (see ``launch``).

One line of JSON on standard output when it is up, or one that says why it can't be. A site's NATS is named in
the directory (``site.SETTINGS_FILE``), never here: everybody on the machine may see a process's arguments.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
from pathlib import Path
from typing import Any

from potluck.errors import PotluckError
from potluck.hub.between import parse_token
from potluck.hub.service import Enlistment, Hub, serve


def _say(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


async def _run(options: dict[str, Any]) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)

    def ready(hub: Hub) -> None:
        _say(invite=hub.invite().text(), run=hub.run, addresses=list(hub.addresses), seat=hub.seat)

    hub = Hub(
        Path(options["directory"]),
        host=options["host"],
        port=options["port"],
        run=options.get("run", ""),
        enlistment=_enlistment(options),
    )
    await serve(hub, ready=ready, until_idle_s=options["until_idle_s"], stop=stop)


def _enlistment(options: dict[str, Any]) -> Enlistment | None:
    if not options.get("token"):
        return None
    return Enlistment(parse_token(options["token"]), options.get("seat", 0))


def main() -> int:
    """Run the hub that the one argument describes."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        asyncio.run(_run(json.loads(sys.argv[1])))
    except PotluckError as error:
        _say(error=str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
