"""Scenarios: a world, a seed, and what goes wrong in it and when, as text that can be edited and replayed.

::

    seed 7
    peers 4
    duration 40
    at 12.5 crash peer3 for 5
    at 30 cut peer1 -> peer2 for 5

A line is a field of ``World``, the seed, or a fault; ``#`` begins a comment. Peers are named by birth,
joiners by the fault that brings them, so a fault means the same when others are taken out. Faults of peers
that do not live at the time do nothing. ``FORMS`` is the whole language.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

from potluck.codecs import CODECS
from potluck.errors import UsageError
from potluck.protocol.plan import FLAT

FORMS = {
    "crash {peer}": "SIGKILL for good; not of the last holder of what others need",
    "crash {peer} for {s}": "the same, and it comes back with its disk",
    "crash {peer} for {s} without disk": "the same, and it comes back with an empty disk",
    "leave {peer} for {s}": "it leaves in good order, and comes back with its disk",
    "kill {peer}": "SIGKILL, whatever it alone holds",
    "join {peer}": "a newcomer",
    "pause {peer} for {s}": "SIGSTOP, then SIGCONT",
    "cut {place} {place} for {s}": "no bytes either way; one place may be `hub`",
    "cut {place} -> {place} for {s}": "no bytes from the first to the second; the other way they get through",
    "mute {peer} -> {peer} for {s}": "the second does not hear the first's announcements, though others do",
    "hub away for {s}": "nobody reaches the hub",
    "slow {peer} {factor}x for {s}": "each step, reduction and write takes so many times as long",
    "full disk {peer} for {s}": "nothing can be written there",
    "torn file {peer}": "some content that others have too is gone from its disk",
    "stall {peer} for {s}": "its trainer stands still while its network goes on",
    "diverge {peer}": "its model becomes NaN",
    "miscount {peer}": "its next outer step comes out wrong, as from a faulty processor",
    "restart all from {peer}": "everybody is killed once its disk has all; all start again, the others empty",
    "clock {peer} {offset}": "its clock is off in the lives that begin from now on, as +1y, +3d or +20s",
    "loss {rate} for {s}": "so many messages of all are lost",
    "duplicate {rate} for {s}": "so many messages of all come twice",
    "late {rate} for {s}": "so many messages of all come seconds late, after later ones",
}
"""Every fault, and what it means."""

HUB = "hub"

_PEER = r"peer[1-9][0-9]{0,5}"
_NUMBER = r"[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?"
_KINDS = {
    "peer": _PEER,
    "place": rf"{_PEER}|{HUB}",
    "s": _NUMBER,
    "factor": _NUMBER,
    "rate": _NUMBER,
    "offset": rf"\+(?:{_NUMBER})[smhdy]",
}
_UNITS_S = {"y": 31_536_000, "d": 86_400, "h": 3_600, "m": 60, "s": 1}


def _pattern(form: str) -> re.Pattern[str]:
    pieces = re.split(r"\{(\w+)\}", form)
    words = [f"({_KINDS[p]})" if i % 2 else re.escape(p) for i, p in enumerate(pieces)]
    return re.compile("".join(words))


_PATTERNS = {form: _pattern(form) for form in FORMS}


@dataclass(frozen=True)
class Fault:
    """Something goes wrong at a time: a form of the language, and the words in it.

    ``values`` are names of peers, and numbers (seconds, rates, factors; an offset in seconds).
    """

    at: float
    form: str
    values: tuple[str | float, ...] = ()

    def __str__(self) -> str:
        kinds = re.findall(r"\{(\w+)\}", self.form)
        words = [_worded(kind, value) for kind, value in zip(kinds, self.values, strict=True)]
        return f"at {_figure(self.at)} " + re.sub(r"\{\w+\}", "{}", self.form).format(*words)

    @property
    def peers(self) -> tuple[str, ...]:
        """Names of the peers it speaks of."""
        return tuple(value for value in self.values if isinstance(value, str) and value != HUB)


@dataclass(frozen=True)
class World:
    """How unkind the world is: the swarm, its wires, and rates (per simulated minute) for making faults up.

    Delays are one way, in seconds. ``learning`` is how much a step changes a model; ``round_tokens`` 0 is
    200 for each peer; ``least_steps`` is ``Rounds.least_steps``, ``fragments`` its namesake, ``keeps`` 1 is
    ``Rounds.keeps``, and with a ``mix`` above 0 models mix with that share; rounds of more than ``flat``
    members have groups;
    ``thin`` is the share of peers that say that their link is ten times as thin (if 0, links are unknown);
    the data has ``blocks`` blocks, gone through ``epochs`` times (0: for ever);
    ``evaluate`` is how many rounds are between evaluations (0: there are none); without a commit for
    ``bound_s`` the swarm is taken for stuck.
    """

    peers: int = 4
    duration_s: float = 60.0
    calm_s: float = 60.0
    delay_s: tuple[float, float] = (0.01, 0.15)
    loss: float = 0.02
    duplicate: float = 0.02
    late: float = 0.0
    learning: float = 0.01
    round_tokens: int = 800
    least_steps: int = 1
    outer: str = "nesterov"
    codec: str = "int8"
    keeps: int = 0
    fragments: int = 1
    mix: float = 0.0
    bound_s: float = 45.0
    flat: int = FLAT
    thin: float = 0.0
    blocks: int = 500
    epochs: int = 0
    evaluate: int = 0
    crashes: float = 2.0
    joins: float = 2.0
    pauses: float = 1.0
    partitions: float = 1.0
    one_ways: float = 0.5
    hub_cuts: float = 0.5
    mutes: float = 0.3
    hub_outages: float = 0.5
    torn: float = 1.0
    full_disks: float = 0.5
    slows: float = 0.3
    divergences: float = 0.5
    miscounts: float = 0.0  # of a swarm that shrinks to two, one of them wrong, nobody could tell which
    stalls: float = 0.5
    bursts: float = 0.5
    restarts: float = 0.2
    leaves: float = 0.5

    @property
    def tokens(self) -> int:
        """Tokens of a round."""
        return self.round_tokens or 200 * self.peers

    def scaled(self, times: float) -> World:
        """The same with so many times as many faults, but for those that hit everybody."""
        return replace(self, **{name: times * getattr(self, name) for name in RATES if name not in COMMON})


RATES = (
    "crashes",
    "joins",
    "pauses",
    "partitions",
    "one_ways",
    "hub_cuts",
    "mutes",
    "hub_outages",
    "torn",
    "full_disks",
    "slows",
    "divergences",
    "miscounts",
    "stalls",
    "bursts",
    "restarts",
    "leaves",
)
"""Fields of ``World`` by which faults are made up; a scenario's text has the faults instead."""

COMMON = ("hub_outages", "bursts", "restarts")
"""Rates of faults that hit everybody."""

SETTINGS = [field.name for field in fields(World) if field.name not in RATES]


def kind(world: World) -> World:
    """The world without made-up faults."""
    return replace(world, **dict.fromkeys(RATES, 0.0))  # type: ignore[arg-type]


CALM = kind(World(loss=0.0, duplicate=0.0))
"""Nothing goes wrong: delays are all there is."""

LIGHT = World(
    thin=0.2, crashes=1.0, joins=1.0, pauses=0.5, partitions=0.5, slows=0.1, restarts=0.0, leaves=1.0
)
"""Friends' machines on an ordinary day, in fast motion."""

HEAVY = World(
    thin=0.3,
    crashes=6,
    joins=4,
    pauses=3,
    partitions=3,
    one_ways=1.5,
    torn=3,
    divergences=1,
    stalls=2,
    leaves=2,
)
"""Something happens every few seconds."""

PRESETS = {"none": CALM, "light": LIGHT, "heavy": HEAVY}


@dataclass(frozen=True)
class Scenario:
    """All that a simulation follows from."""

    seed: int
    world: World
    faults: tuple[Fault, ...] = ()

    def __str__(self) -> str:
        """The text, which ``parse`` reads back."""
        lines = [f"seed {self.seed}"]
        for name in SETTINGS:
            value = getattr(self.world, name)
            if value != getattr(World(), name) or name in ("peers", "duration_s", "calm_s"):
                lines.append(f"{name} {_setting(value)}")
        return "\n".join([*lines, *(str(fault) for fault in self.faults)]) + "\n"


def parse(text: str) -> Scenario:
    """The scenario that a text describes; faults in order of time.

    Raises:
        UsageError: a line that is none of the language, with its number.
    """
    seed, settings, faults = 0, {}, []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            if words[0] == "at":
                faults.append(fault(" ".join(words)))
            elif words[0] == "seed":
                seed = int(words[1])
            else:
                settings[words[0]] = _read_setting(words[0], words[1:])
        except (ValueError, IndexError) as error:
            raise UsageError(f"line {number} of the scenario, {line.strip()!r}: {error}") from error
    world = replace(kind(World()), **settings)  # type: ignore[arg-type]
    return Scenario(seed, world, tuple(sorted(faults, key=lambda f: f.at)))


def fault(text: str) -> Fault:
    """A fault from its line, ``at SECONDS …``.

    Raises:
        ValueError: it is not of the language.
    """
    found = re.fullmatch(rf"at ({_NUMBER}) (.+)", text)
    for form, pattern in _PATTERNS.items():
        match = pattern.fullmatch(found[2]) if found else None
        if found and match:
            kinds = re.findall(r"\{(\w+)\}", form)
            values = tuple(_read(k, word) for k, word in zip(kinds, match.groups(), strict=True))
            if values.count(HUB) > 1:
                raise ValueError("the hub is one place")
            return Fault(float(found[1]), form, values)
    known = "; ".join(re.sub(r"[{}]", "", form) for form in FORMS)
    raise ValueError(f"no such fault; it is `at SECONDS` and one of: {known}")


def _read(kind_: str, word: str) -> str | float:
    if kind_ in ("peer", "place"):
        return word
    if kind_ == "offset":
        return float(word[:-1]) * _UNITS_S[word[-1]]
    return float(word)


def _worded(kind_: str, value: str | float) -> str:
    if isinstance(value, str):
        return value
    if kind_ == "offset":
        unit = next(u for u, seconds in _UNITS_S.items() if value % seconds == 0 or u == "s")
        return f"+{_figure(value / _UNITS_S[unit])}{unit}"
    return _figure(value)


def _figure(value: float) -> str:
    return repr(int(value)) if value == int(value) else repr(float(value))


def _setting(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(_figure(v) for v in value)
    return _figure(value) if isinstance(value, int | float) else str(value)


_CHOICES = {"outer": ("nesterov", "average"), "codec": tuple(CODECS)}
_INTEGERS = (
    "peers",
    "round_tokens",
    "least_steps",
    "blocks",
    "epochs",
    "flat",
    "keeps",
    "fragments",
    "evaluate",
)


def _read_setting(name: str, words: list[str]) -> object:
    if name not in SETTINGS:
        raise ValueError(f"no such setting; there are seed, {', '.join(SETTINGS)}")
    if len(words) != (2 if name == "delay_s" else 1):
        raise ValueError("it takes two numbers" if name == "delay_s" else "it takes one value")
    if name in _CHOICES:
        if words[0] not in _CHOICES[name]:
            *others, last = _CHOICES[name]
            raise ValueError(f"it is {', '.join(others)} or {last}")
        return words[0]
    values = [int(word) if name in _INTEGERS else float(word) for word in words]
    least = 1 if name in ("peers", "least_steps", "fragments") else 0
    if not all(least <= value < float("inf") for value in values):
        raise ValueError("it can't be so")
    return (float(values[0]), float(values[1])) if name == "delay_s" else values[0]


# -- made up from a seed -----------------------------------------------------------------------------


def scenario(seed: int, world: World) -> Scenario:
    """What goes wrong in the world of a seed: faults at the world's rates, and at random times."""
    return _Author(seed, world).write()


class _Author:
    """Makes faults up."""

    def __init__(self, seed: int, world: World) -> None:
        self.seed, self.world = seed, world
        self.random = random.Random(f"faults/{seed}")
        self.names = [f"peer{number + 1}" for number in range(world.peers)]

    def write(self) -> Scenario:
        kinds: dict[str, Callable[[], tuple[str, tuple[str | float, ...]]]] = {
            "crashes": self._crash,
            "joins": lambda: ("join {peer}", ()),
            "pauses": lambda: ("pause {peer} for {s}", (self._peer(), self._s(0.5, 20))),
            "partitions": lambda: ("cut {place} {place} for {s}", (*self._two(), self._s(1, 25))),
            "one_ways": lambda: ("cut {place} -> {place} for {s}", (*self._two(), self._s(1, 25))),
            "hub_cuts": self._hub_cut,
            "mutes": lambda: ("mute {peer} -> {peer} for {s}", (*self._two(), self._s(1, 15))),
            "hub_outages": lambda: ("hub away for {s}", (self._s(0.5, 12),)),
            "torn": lambda: ("torn file {peer}", (self._peer(),)),
            "full_disks": lambda: ("full disk {peer} for {s}", (self._peer(), self._s(1, 12))),
            "slows": lambda: ("slow {peer} {factor}x for {s}", (self._peer(), 20.0, self._s(5, 40))),
            "divergences": lambda: ("diverge {peer}", (self._peer(),)),
            "miscounts": lambda: ("miscount {peer}", (self._peer(),)),
            "stalls": lambda: ("stall {peer} for {s}", (self._peer(), self._s(1, 10))),
            "bursts": self._burst,
            "restarts": lambda: ("restart all from {peer}", (self._peer(),)),
        }
        minutes = self.world.duration_s / 60
        planned: list[tuple[float, str]] = []
        for name in [name for name in RATES if name != "leaves"]:
            for _ in range(self._poisson(getattr(self.world, name) * minutes)):
                planned.append((self._s(2, self.world.duration_s), name))
        faults = []
        for at, name in sorted(planned):
            if name == "joins":
                if len(self.names) >= 2 * self.world.peers:
                    continue
                self.names.append(f"peer{len(self.names) + 1}")
                faults.append(Fault(at, "join {peer}", (self.names[-1],)))
            elif len(self.names) > 1 or name not in ("partitions", "one_ways", "mutes"):
                faults.append(Fault(at, *kinds[name]()))
        faults += self._leaves(minutes)
        return Scenario(self.seed, kind(self.world), tuple(sorted(faults, key=lambda fault: fault.at)))

    def _leaves(self, minutes: float) -> list[Fault]:
        """By chance of their own, so that all else is as it is without them."""
        self.random = random.Random(f"leaves/{self.seed}")
        times = [self._s(2, self.world.duration_s) for _ in range(self._poisson(self.world.leaves * minutes))]
        return [Fault(at, "leave {peer} for {s}", (self._peer(), self._s(0.5, 15))) for at in times]

    def _crash(self) -> tuple[str, tuple[str | float, ...]]:
        peer, fate = self._peer(), self.random.random()
        if fate < 0.5:
            return "crash {peer}", (peer,)
        disk = "" if fate < 0.85 else " without disk"
        return "crash {peer} for {s}" + disk, (peer, self._s(0.5, 15))

    def _hub_cut(self) -> tuple[str, tuple[str | float, ...]]:
        peer, s = self._peer(), self._s(1, 15)
        form, places = self.random.choice(
            [
                ("cut {place} {place} for {s}", (peer, HUB)),
                ("cut {place} -> {place} for {s}", (peer, HUB)),
                ("cut {place} -> {place} for {s}", (HUB, peer)),
            ]
        )
        return form, (*places, s)

    def _burst(self) -> tuple[str, tuple[str | float, ...]]:
        what = self.random.choice(["loss", "duplicate", "late"])
        return what + " {rate} for {s}", (round(self.random.uniform(0.05, 0.4), 2), self._s(2, 15))

    def _peer(self) -> str:
        return self.random.choice(self.names)

    def _two(self) -> tuple[str, str]:
        one, other = self.random.sample(self.names, 2)
        return one, other

    def _s(self, low: float, high: float) -> float:
        return round(self.random.uniform(low, high), 2)

    def _poisson(self, mean: float) -> int:
        count, t = 0, self.random.expovariate(1.0)
        while t < mean:
            count, t = count + 1, t + self.random.expovariate(1.0)
        return count


def small(seed: int) -> World:
    """The small world of a seed, for running thousands: they differ in all that can differ.

    One to six peers, either outer optimizer, any codec, models that keep what it takes and others, half in
    fragments and a quarter of these mixing, three in four with evaluations, one in three calm to the eye and
    the others rough; most last under a minute, one in twenty-five five times as long.
    """
    rough = (LIGHT, HEAVY, HEAVY)[seed // 2 % 3]
    keeps, fragments = seed // 12 % 2, (1, 2, 1, 3)[seed // 24 % 4]
    longer = 5 if seed % 25 == 24 else 1
    return replace(
        rough,
        peers=1 + seed % 6,
        outer="nesterov" if seed % 2 else "average",
        codec=_CHOICES["codec"][(seed + seed // 25) % 5],
        keeps=keeps,
        fragments=fragments,
        mix=0.5 if fragments > 1 and not keeps and seed // 96 % 2 else 0.0,
        least_steps=8 if seed // 5 % 4 == 3 else 1,
        blocks=200,
        epochs=2 if seed % 7 < 2 else 0,
        evaluate=(0, 1, 2, 3)[seed // 6 % 4],
        flat=3 if seed % 4 == 3 else FLAT,
        thin=rough.thin if seed // 3 % 2 else 0.0,
        duration_s=20.0 * longer,
        calm_s=22.0,
    )


def large(seed: int, peers: int) -> World:
    """The large world of a seed, for running a few: every second one rough, all for less than a minute.

    Each peer suffers as much as one of twenty does in the usual worlds. The data is not leased.
    """
    return replace(
        (LIGHT, HEAVY)[seed % 2].scaled(max(1.0, peers / 20)),
        peers=peers,
        outer="nesterov" if seed % 4 < 2 else "average",
        codec=_CHOICES["codec"][seed % 5],
        keeps=seed // 5 % 2,
        fragments=1 + seed // 2 % 2,
        round_tokens=0,
        blocks=0,
        duration_s=20.0,
        calm_s=30.0,
    )
