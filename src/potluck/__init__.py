"""Train one large neural network together, on computers that nobody has to own all of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from potluck.errors import PotluckError, RunOver
    from potluck.hub.site import Nats
    from potluck.peer.events import Event
    from potluck.recipe import Data, End, Inner, Lora, Outer, Recipe, Rounds, Task
    from potluck.recipe.schedule import Schedule
    from potluck.run import Run
    from potluck.start import host, join, resume
    from potluck.store.keep import Keep

__version__ = "0.1.0"

_HOMES = {
    "Data": "potluck.recipe",
    "End": "potluck.recipe",
    "Event": "potluck.peer.events",
    "Inner": "potluck.recipe",
    "Keep": "potluck.store.keep",
    "Lora": "potluck.recipe",
    "Nats": "potluck.hub.site",
    "Outer": "potluck.recipe",
    "PotluckError": "potluck.errors",
    "Recipe": "potluck.recipe",
    "Rounds": "potluck.recipe",
    "Run": "potluck.run",
    "RunOver": "potluck.errors",
    "Schedule": "potluck.recipe.schedule",
    "Task": "potluck.recipe",
    "host": "potluck.start",
    "join": "potluck.start",
    "resume": "potluck.start",
}

__all__ = [
    "Data",
    "End",
    "Event",
    "Inner",
    "Keep",
    "Lora",
    "Nats",
    "Outer",
    "PotluckError",
    "Recipe",
    "Rounds",
    "Run",
    "RunOver",
    "Schedule",
    "Task",
    "host",
    "join",
    "resume",
]


def __getattr__(name: str) -> Any:
    """Public names are imported when they are first used, so that ``import potluck`` costs nothing."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'potluck' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
