"""What one hub knows of its run and keeps on disk, merged with what the others tell."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from potluck.errors import Refused
from potluck.hub.between import Enlist, Enlisted, Tidings
from potluck.hub.seats import SEATS, Seat, Seats, free_seat, merge, seat_of, sign
from potluck.hub.state import CLUSTER, SITE, HubState
from potluck.identity import Identity


class Book:
    """A hub's state, written down at each change; ``wait`` wakes whoever waits for one.

    Args:
        directory: where it is kept.
        hub: our own key (hex).
        authority: the run's key, which all its hubs have.
    """

    def __init__(self, directory: Path, state: HubState, hub: str, authority: Identity) -> None:
        self.state = state
        self.authority = authority
        self.pem = authority.authority()
        """The authority's certificate."""
        self.peers = 0
        """So many peers are attached here."""
        self.whole = False
        """Whether our copy of the ledger, as one of several, is whole."""
        self.told: dict[str, Tidings] = {}
        """What the other hubs that are there said last, by key."""
        self._directory, self._hub = directory, hub
        self._changed = asyncio.Event()

    @property
    def run(self) -> str:
        """The run's name."""
        return self.state.run

    @property
    def seats(self) -> Seats:
        """Who has the run's seats."""
        return self.state.seats

    @property
    def others(self) -> tuple[Seat, ...]:
        """The seats of other hubs."""
        return tuple(seat for seat in self.seats if seat.hub != self._hub)

    @property
    def replaced(self) -> bool:
        """Whether another hub has our seat."""
        return any(seat.number == self.state.seat and seat.hub != self._hub for seat in self.seats)

    def write(self, state: HubState) -> None:
        """Go on with this state, once it is on disk.

        Raises:
            StoreError: the disk refuses.
        """
        if state == self.state:
            return
        state.save(self._directory)
        self.state = state
        self.stir()

    def update(self, **fields: object) -> None:
        """As ``write``, with these fields changed."""
        self.write(msgspec.structs.replace(self.state, **fields))

    def stir(self) -> None:
        """Wake whoever waits for a change."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait(self, holds: Callable[[], bool]) -> None:
        """Return once ``holds`` does."""
        while not holds():
            await self._changed.wait()

    async def next_change(self) -> None:
        """Return at the next change."""
        await self._changed.wait()

    def sit(self, addresses: tuple[str, ...]) -> None:
        """Say in our own seat where we listen, if others do not know yet."""
        own = next((seat for seat in self.seats if seat.number == self.state.seat), None)
        if own is None:
            own = Seat(self.state.seat, 0, 0, self._hub, ())
        elif own.hub != self._hub or own.addresses == addresses:
            return
        self._sign(msgspec.structs.replace(own, version=own.version + 1, addresses=addresses))

    @property
    def lagging(self) -> frozenset[int]:
        """The seats that nobody has, or whose hubs are away or lack some of the ledger."""
        whole = {hub for hub, told in self.told.items() if told.whole} | (
            {self._hub} if self.whole else set()
        )
        seats = {seat.number for seat in self.seats if seat.hub in whole}
        return frozenset(number for number in range(1, SEATS + 1) if number not in seats)

    def tidings(self) -> Tidings:
        """What we tell another hub."""
        state = self.state
        return Tidings(state.seats, state.secrets, state.tokens, state.engine, self.peers, self.whole)

    def learn(self, hub: str, told: Tidings) -> None:
        """Take in what another hub told."""
        is_news = hub not in self.told or self.told[hub].whole != told.whole
        self.told[hub] = told
        state = self.state.with_others(told.secrets, told.tokens, time.time())
        seats = merge(state.seats, told.seats, self.run, self.authority.peer)
        engine = CLUSTER if CLUSTER in (state.engine, told.engine) else state.engine
        self.write(msgspec.structs.replace(state, seats=seats, engine=engine))
        if is_news:
            self.stir()

    def lose(self, hub: str) -> None:
        """Another hub is away."""
        if self.told.pop(hub, None) is not None:
            self.stir()

    def check(self, whole: bool) -> None:
        """Our own copy of the ledger was looked at."""
        if whole != self.whole:
            self.whole = whole
            self.stir()

    def heed(self, seats: Seats) -> None:
        """Take in what anybody says of the seats."""
        self.update(seats=merge(self.seats, seats, self.run, self.authority.peer))

    def enlist(self, request: Enlist, reached: frozenset[int]) -> Enlisted:
        """Give a newcomer, whose token is good, its seat and all that makes a hub.

        Args:
            reached: seats whose hubs are connected to us at the moment.

        Raises:
            Refused: there is no seat for it, and why.
        """
        mine = seat_of(self.seats, request.hub)
        number = mine.number if mine is not None else request.seat or free_seat(self.seats)
        if number is None:
            raise Refused(
                f"all {SEATS} seats are taken: name the one whose hub is lost, with --replace NUMBER"
            )
        old = next((seat for seat in self.seats if seat.number == number), None)
        if mine is None and old is not None:
            self._refuse_replacement(number, reached)
            self._sign(Seat(number, old.term + 1, 0, request.hub, ()))
        elif mine is None:
            self._sign(Seat(number, 0, 0, request.hub, ()))
        return Enlisted(
            self.authority.private_pem(),
            self.state.password,
            self.state.cluster_password,
            number,
            self.tidings(),
        )

    def _refuse_replacement(self, number: int, reached: frozenset[int]) -> None:
        if number == self.state.seat or number in reached:
            raise Refused(f"the hub on seat {number} is there: only a lost one can be replaced")
        if self.state.engine == SITE:
            return  # it is a door, and had nothing else to lose
        if self.state.engine != CLUSTER:
            raise Refused(f"seat {number} can be taken over once the run has moved to its {SEATS} hubs")
        # Two hubs without a whole copy could agree on a ledger that lacks records.
        if self.lagging - {number}:
            raise Refused(
                "when a hub is replaced both others must be there, with a whole copy of the ledger: if they "
                "are, try again in a few seconds"
            )

    def _sign(self, seat: Seat) -> None:
        signed = sign(seat, self.run, self.authority)
        self.update(seats=merge(self.seats, (signed,), self.run, self.authority.peer))


def newcomer(run: str, enlisted: Enlisted) -> HubState:
    """The state of a hub that was just let in."""
    told = enlisted.tidings
    return HubState(
        run,
        enlisted.password,
        secrets=told.secrets,
        tokens=told.tokens,
        cluster_password=enlisted.cluster_password,
        seat=enlisted.seat,
        seats=told.seats,
        engine=told.engine,
        made=told.engine == SITE,
    )
