"""What stands for network, hub and disk on the ranks of a peer that don't have them."""

from __future__ import annotations

from typing import Any, NamedTuple

from potluck.errors import UsageError
from potluck.peer.speaker import Listener
from potluck.peer.told import Done
from potluck.recipe import Recipe


class _Genesis(NamedTuple):
    blocks: int


class _State(NamedTuple):
    size: int = 0
    plane: None = None


class _Actions(NamedTuple):
    state: _State = _State()


class Elsewhere:
    """In place of ``Node`` and ``Background``: what each rank knows, and what does nothing here. Whatever
    else is asked of it is rank 0's, and it says so.

    Raises:
        UsageError: for anything that only rank 0 knows.
    """

    alive = True
    telling = False
    actions = _Actions()
    directory = None
    """Nothing is kept here."""

    def __init__(self, listener: Listener, joined: Done) -> None:
        self.listener = listener
        self.recipe = Recipe.from_toml(joined.recipe)
        self.genesis = _Genesis(joined.blocks)

    @property
    def events(self) -> Elsewhere:
        """Nothing is heard here."""
        return self

    def tell(self) -> None:
        """There is nothing to tell."""

    def leave(self) -> None:
        """Rank 0 does."""

    def close(self) -> None:
        """There is nothing to close."""

    def call(self, work: object, timeout_s: object, meanwhile: object) -> None:
        """There is nothing to wait for."""

    def stop(self, last: object, timeout_s: object) -> None:
        """There is nothing to stop."""

    def __getattr__(self, name: str) -> Any:
        raise UsageError(
            "only rank 0 of this peer speaks with the others and knows this: ask for it there; this is rank "
            f"{self.listener.rank}"
        )
