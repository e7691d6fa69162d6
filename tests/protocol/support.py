"""Short ways to say what the ledger holds and what peers announce."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from potluck.protocol.effects import Effect
from potluck.protocol.swarm import Swarm
from potluck.protocol.view import RunView
from potluck.wire.codec import WIRE, digest
from potluck.wire.messages import Progress
from potluck.wire.records import (
    Blob,
    Body,
    Chain,
    Commit,
    Entry,
    Genesis,
    Held,
    Member,
    Open,
    PartInfo,
    Reassign,
    Snapshot,
)
from potluck.wire.result import Tally

BASE = digest(b"state")


def peer_id(n: int) -> str:
    return f"{n:064x}"


def member(n: int, session: str = "s") -> Member:
    return Member(peer_id(n), session)


def says(n: int, **more: Any) -> Progress:
    """What peer n announces: in training after round 0, unless told otherwise."""
    settings: dict[str, Any] = {
        "peer": peer_id(n),
        "session": "s",
        "name": f"peer{n}",
        "since": n,
        "phase": "training",
        "round": 0,
        "state": BASE,
        "tokens": 100.0,
    }
    settings |= more
    settings["held"] = held(*settings.get("held", ()))
    return Progress(**settings)


def held(*results: PartInfo | Held) -> tuple[Held, ...]:
    """What is announced of some results."""
    return tuple(one.held if isinstance(one, PartInfo) else one for one in results)


def known(*infos: PartInfo) -> dict[str, PartInfo]:
    """Results that are here, by digest."""
    return {info.digest: info for info in infos}


def heard(*announcements: Progress, at: float = 0.0) -> Swarm:
    swarm = Swarm()
    for progress in announcements:
        assert swarm.hear(progress, at)
    return swarm


def present(*numbers: int, at: float = 0.0, **more: Any) -> Swarm:
    return heard(*(says(n, **more) for n in numbers), at=at)


def update(swarm: Swarm, at: float, *announcements: Progress) -> Swarm:
    """The same peers go on announcing, a beat later."""
    for progress in announcements:
        last = swarm.last(progress.peer)
        beat = last.beat + 1 if last is not None else 0
        assert swarm.hear(replace(progress, beat=beat), at)
    return swarm


def only(effects: list[Effect], kind: type[Effect]) -> list[Any]:
    return [effect for effect in effects if isinstance(effect, kind)]


def genesis(parts: int = 2, wire: int = WIRE, assets: tuple[Blob, ...] = ()) -> Genesis:
    return Genesis("run", wire, "", (), parts, BASE, assets)


def opened(
    round_: int = 1,
    members: Sequence[int] = (1, 2),
    reducers: Sequence[int] = (0, 1),
    *,
    attempt: int = 0,
    base: str = BASE,
    grace_s: float = 4.0,
    groups: int = 1,
) -> Open:
    everyone = tuple(member(n) for n in members)
    return Open(round_, attempt, everyone, tuple(reducers), base, grace_s, "tokens done", groups)


def moved(*moves: tuple[int, int], round_: int = 1, attempt: int = 0) -> Reassign:
    return Reassign(round_, attempt, moves, "somebody died")


def result(part: int, *contributors: tuple[int, float], label: str = "") -> PartInfo:
    """A part's result; ``label`` tells results of one part apart."""
    named = contributors or ((0, 60.0), (1, 40.0))
    return PartInfo(part, digest(f"{part}/{label}".encode()), 8, tuple(named))


def told(info: PartInfo, round_: int = 1, attempt: int = 0) -> tuple[Tally, PartInfo]:
    """What a result's content says: the tally in it, and so what a commit would say of it."""
    return Tally(round_, attempt, info.part, info.contributors, info.blocks), info


def committed(round_: int = 1, *parts: PartInfo, attempt: int = 0, tokens: int = 100) -> Commit:
    named = parts or (result(0, label=str(round_)), result(1, label=str(round_)))
    return Commit(round_, attempt, tuple(named), tokens, None, "all parts held")


def blob(name: str = "model", chunks: int = 2) -> Blob:
    """A file in chunks of 4 bytes, the last one of 3."""
    names = tuple(digest(f"{name}/{i}".encode()) for i in range(chunks))
    return Blob(name, 4 * chunks - 1, 4, names)


def snapshot(round_: int, *files: Blob, state: str = BASE) -> Snapshot:
    return Snapshot(round_, state, files or (blob(f"model{round_}"),), "two peers wrote it")


class Ledger:
    """Entries of a ledger, as a peer would follow them."""

    def __init__(self) -> None:
        self._chain = Chain()

    def add(self, body: Body, author: int = 1) -> Entry:
        raw = self._chain.next(peer_id(author), body)
        return self._chain.follow(self._chain.sequence + 1, raw)


def view_of(*bodies: Body) -> RunView:
    """The run after some records, all of which must stand."""
    ledger, view = Ledger(), RunView()
    for body in bodies:
        assert view.follow(ledger.add(body)) is None
    return view
