"""One part at one member of a large round that gathers for its group: what came, and what went on.

Who gathers combines what it has into *partials*, and sends each to the part's reducer. It may be
taken for dead by some and not by others, so two may gather for one group: the reducer says then whom it has
already, and the rest is combined again without those.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from potluck.protocol.errand import Errand
from potluck.wire.messages import Answer


@dataclass
class Partial:
    """What was combined here: of whom, and its way to the reducer."""

    contributors: frozenset[int]
    errand: Errand = field(default_factory=Errand)


class Gathering:
    """What became of a part's contributions of our group, as far as they came here."""

    def __init__(self) -> None:
        self._pending: frozenset[int] = frozenset()
        self.partials: dict[int, Partial] = {}
        """By lead, the first contributor."""
        self._on_the_way: set[int] = set()
        self._silent = Errand(done=True)
        self._told: frozenset[int] = frozenset()

    def fresh(self, members: Iterable[int]) -> set[int]:
        """Those of some members that the reducer has not got and that no partial has."""
        return set(members) - self._on_the_way

    @property
    def combining(self) -> bool:
        """Whether a partial is being made."""
        return bool(self._pending)

    def begin(self, members: Iterable[int]) -> None:
        """These are being combined."""
        self._pending = frozenset(members)
        self._on_the_way |= self._pending

    def combined(self, members: Iterable[int], refused: Iterable[int]) -> bool:
        """A partial of these members is here, without those whose can't be decoded; False if it is not
        the one that was begun last: it was for another reducer then.
        """
        contributors, without = frozenset(members), frozenset(refused)
        if contributors | without != self._pending:
            return False
        self._pending = frozenset()
        self._on_the_way -= without
        if contributors:
            self.partials[min(contributors)] = Partial(contributors)
        return True

    def sent(self, lead: int | None, answer: Answer, now: float) -> None:
        """A partial was taken, refused for good, or is to be sent again. Some may be counted already by
        another's doing: then it must be combined again without them.
        """
        done = answer.ok or not answer.retry
        if lead is None:
            self._silent.ended(done, now)
        elif (partial := self.partials.get(lead)) is not None:
            partial.errand.ended(done, now)
            if overlap := partial.contributors.intersection(answer.known):
                del self.partials[lead]
                self._on_the_way -= partial.contributors - overlap
                self._told = frozenset()

    def due(self, abstained: frozenset[int], now: float) -> list[int | None]:
        """Leads of the partials to be sent now (None: only word of who gives nothing); in flight from now."""
        leads: list[int | None] = [lead for lead, p in sorted(self.partials.items()) if p.errand.due(now)]
        for lead in leads:
            assert lead is not None
            self.partials[lead].errand.flying = True
        if not leads and abstained - self._told and not self._silent.flying:
            self._silent.done = False
        if not leads and self._silent.due(now):
            self._silent.flying = True
            leads.append(None)
        if leads:
            self._told |= abstained
        return leads
