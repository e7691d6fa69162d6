"""Held-out loss at equal tokens: a plain AdamW loop, Potluck with one peer and with four, and other ways.

    python -m bench.convergence --bar [--seeds 3] [--only CASE ...] [--torchft PYTHON]
    python -m bench.convergence --from-checkpoint DIR      all go on from what a plain AdamW loop made

The peers are real but for the network: trainer, hand-over, cut, codec, error feedback on both legs, reducers,
commits, outer step and carry are the product's own. They take inner steps in turn in one process, in virtual
time: whoever asks for speed must ask real machines. One JSON object a line. ``bytes_up`` is what a peer
sends, without messages; what it gets is as much.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from bench import baselines
from bench.baselines import Trained
from bench.checkpoint import Begun, Checkpoints
from bench.heading import head
from bench.peers import torchft_diloco
from bench.peers.swarm import available

from potluck.data.assets import build_assets
from potluck.peer.handover import CutRequest, Handover
from potluck.peer.layout import Vector
from potluck.peer.state import PeerState, genesis_of
from potluck.peer.trainer import Trainer
from potluck.protocol.plan import assign
from potluck.recipe import DEMO, End, Inner, Outer, Recipe
from potluck.store.contents import MemoryStore
from potluck.tasks.causal_lm import CausalLM
from potluck.tasks.training import Batch
from potluck.wire.records import Commit, Genesis, Member, PartInfo

LATE_STEPS = 4
"""Inner steps that a peer takes between its cut and the arrival of the round's result."""

QUICK = replace(DEMO, rounds=replace(DEMO.rounds, tokens=16_384))
QUICK_TOKENS = 2 * 16_384

TUNED_TOKENS = 9_830_400
"""Of the tuned cases: 80 rounds of 30 inner steps of four peers, 4.8 epochs of the text."""

Assets = Mapping[str, bytes]


class Drifted(Exception):
    """Peers that applied the same commits are not in the same state, or one of them is NaN or infinite."""


@dataclass(frozen=True)
class Tuned:
    """Constants that are best for one case, in place of the demo's."""

    inner: Inner
    outer: Outer = DEMO.outer
    round_tokens: int = 122_880
    keeps: bool = False


@dataclass(frozen=True)
class Case:
    """``peers`` = 0 is the plain loop.

    Args:
        batches: its batch is so many times the recipe's.
        share: and it gets the tokens divided by this.
        tuned: it has constants of its own, and is trained for longer.
        fragments: that take turns, in rounds that are as many times shorter.
        mix: models mix with that share; None: they carry their progress over.
        late: inner steps that a peer takes between its cut and the round's result; 0: it waits.
        method: another way to train together; see ``bench.baselines``.
    """

    name: str
    peers: int = 0
    codec: str = "int8"
    batches: int = 1
    share: int = 1
    tuned: Tuned | None = None
    fragments: int = 1
    mix: float | None = None
    late: int = LATE_STEPS
    method: str = ""


MUON = Inner("muon", lr=12e-3, cooldown=1.0)
NESTEROV = Outer("nesterov", 0.7, 0.6)

CASES = [
    Case("plain"),
    Case("plain_batch_x4", batches=4),
    Case("plain_quarter", share=4),
    Case("1_peer_int8", peers=1),
    Case("1_peer_fp32", peers=1, codec="fp32"),
    Case("4_peers_int8", peers=4),
    Case("4_peers_blocking", peers=4, late=0),
    Case("4_peers_mixing", peers=4, mix=0.5),
    Case("4_peers_2_fragments", peers=4, fragments=2),
    Case("4_peers_4_fragments", peers=4, fragments=4),
    Case("4_peers_4_fragments_blocking", peers=4, fragments=4, late=0),
    Case("4_peers_4_fragments_mixing", peers=4, fragments=4, mix=0.5),
    Case("4_peers_fp32", peers=4, codec="fp32"),
    Case("4_peers_bf16", peers=4, codec="bf16"),
    Case("4_peers_int4", peers=4, codec="int4"),
    Case("4_peers_topk", peers=4, codec="topk"),
    Case("data_parallel", peers=4, method="data_parallel"),
    Case("averaging", peers=4, method="averaging"),
    Case("diloco", peers=4, method="diloco"),
    Case("torchft_diloco", peers=4, method="torchft"),
    Case("tuned_batch_x4", batches=4, tuned=Tuned(replace(MUON, weight_decay=0.3))),
    Case("tuned_4_peers_int8", peers=4, tuned=Tuned(MUON, NESTEROV)),
    Case(
        "tuned_4_peers_topk",
        peers=4,
        codec="topk",
        tuned=Tuned(replace(MUON, lr=8e-3), Outer("nesterov", 1.0, 0.5), keeps=True),
    ),
]

BARS = [
    ("loss_4_peers_over_plain", "4_peers_int8", "plain"),
    ("loss_1_peer_over_plain", "1_peer_int8", "plain"),
    ("int8_over_fp32", "4_peers_int8", "4_peers_fp32"),
    ("int4_over_fp32", "4_peers_int4", "4_peers_fp32"),
    ("topk_over_fp32", "4_peers_topk", "4_peers_fp32"),
]

GAPS = [
    ("int8_loss_gap", "tuned_4_peers_int8", "tuned_batch_x4"),
    ("topk_loss_gap", "tuned_4_peers_topk", "tuned_batch_x4"),
]
"""Of each the ratio less 1."""

SHORT = {"1_peer_fp32", *(name for _, *pair in (*BARS, *GAPS) for name in pair)}
"""Cases of the short form: those that are watched, and one that should be as plain training is."""


@dataclass(frozen=True)
class Result:
    case: str
    seed: int
    tokens: int
    rounds: int
    loss: float
    bits_per_byte: float
    bytes_up: float = 0.0
    start: str = "scratch"


class Peer:
    """One peer's training and state, without node and network."""

    def __init__(
        self, lm: CausalLM, genesis: Genesis, index: int, seed: int, done: Callable[[], float]
    ) -> None:
        self.lm = lm
        self.index = index
        self.model = lm.model()
        self.optimizer = lm.optimizer(self.model, done)
        self.batches = lm.random_batches(seed)
        self.handover = Handover(self._taken, lm.recipe.rounds.fragments)
        self.trainer = Trainer(self.model, self.handover)
        self.trainer.attach(self.optimizer, lm.step_tokens)
        self.state = PeerState(MemoryStore(), lm.recipe, genesis)
        theta = self.trainer.read()
        self.state.begin(theta, np.zeros_like(theta), 0)
        self.weight = 0.0

    def step(self) -> None:
        """One inner step, and the boundary after it: new shared states are taken in, then the cut is made."""
        self.lm.train(self.model, self.optimizer, islice(self.batches, 1))

    @property
    def digest(self) -> str:
        assert self.state.plane is not None
        return self.state.plane.digest

    def apply(self, commit: Commit) -> None:
        self.handover.offer(self.state.apply(commit))
        self.state.store.keep_only(set())

    def _taken(self, request: CutRequest, local: Vector, weight: float, _: int) -> None:
        if not self.state.cut(request.round, request.attempt, request.index, local, weight):
            raise Drifted(f"round {request.round}: peer {self.index} has become NaN or infinite")
        self.weight = weight


class Swarm:
    """Peers of one speed: all take an inner step, then all take the next one. Results come ``late`` steps
    late.
    """

    def __init__(self, lm: CausalLM, peers: int, seed: int, late: int = LATE_STEPS) -> None:
        first = Trainer(lm.model(), Handover(lambda *_: None))
        genesis = genesis_of("bench", lm.recipe, first.tensors, first.read(), wire=1)
        self.peers = [
            Peer(lm, genesis, index, data_seed(seed, index), lambda: self.done) for index in range(peers)
        ]
        self._members = [Member(f"{index:064x}", "") for index in range(peers)]
        self._parts = genesis.parts
        self._end = lm.recipe.end
        self._plan: tuple[int, ...] = ()
        self._late, self._round_steps = late, steps_of_a_round(lm, peers, late)
        self._steps_since_cut = 0
        self.rounds = 0
        self.tokens = 0
        self.bytes_up = 0.0

    def round(self) -> None:
        """Train until the swarm has the recipe's tokens, cut, go on training, apply."""
        self.rounds += 1
        self._steps(self._round_steps - 1 - self._steps_since_cut)
        for peer in self.peers:
            peer.handover.request(CutRequest(self.rounds, 0, peer.index))
        self._steps(1)
        commit = self._exchange()
        # A boundary comes after its step: what is offered before step n is carried after step n.
        self._steps_since_cut = max(0, self._late - 1)
        self._steps(self._steps_since_cut)
        for peer in self.peers:
            peer.apply(commit)
            if not self._late:
                peer.trainer.meet()
        self.tokens += commit.tokens
        digests = [peer.digest for peer in self.peers]
        if len(set(digests)) > 1:
            raise Drifted(f"after round {self.rounds} the peers' states differ: {', '.join(digests)}")

    @property
    def done(self) -> float:
        """The share of the run that is committed."""
        return self._end.done(self.tokens, self.rounds)

    @property
    def trained(self) -> int:
        """Tokens that were trained on until the last cut; of fragments not all have them yet."""
        return self.rounds * self._round_steps * sum(peer.lm.step_tokens for peer in self.peers)

    @property
    def theta(self) -> Vector:
        """The shared state [n] after the last round, the same at all peers."""
        plane = self.peers[0].state.plane
        assert plane is not None
        return plane.theta

    def _steps(self, count: int) -> None:
        for _ in range(count):
            for peer in self.peers:
                peer.step()

    def _exchange(self) -> Commit:
        last = {part: self._members[index] for part, index in enumerate(self._plan)}
        self._plan = assign(self._parts, self._members, last)
        infos = tuple(self._reduced(part, reducer) for part, reducer in enumerate(self._plan))
        tokens = round(sum(peer.weight for peer in self.peers))
        return Commit(self.rounds, 0, infos, tokens, None, "all contributed")

    def _reduced(self, part: int, reducer: int) -> PartInfo:
        """All contribute a part to its reducer, which sends the result to all."""
        where = (self.rounds, 0, part)
        home = self.peers[reducer].state
        for peer in self.peers:
            found = peer.state.contribution(*where)
            assert found is not None, "everybody has made a cut"
            if peer.index != reducer:
                home.take(*where, peer.index, found)
                self.bytes_up += len(found.raw) / len(self.peers)
        info, refused = home.reduce(*where, range(len(self.peers)))
        assert info is not None, f"everybody contributed part {part}"
        assert not refused, f"members {refused} were refused in part {part}"
        raw = home.store.get(info.digest)
        assert raw is not None, "a reducer keeps its result"
        self.bytes_up += len(raw) * (len(self.peers) - 1) / len(self.peers)
        for peer in self.peers:
            peer.state.store.put(raw)
        return info


def data_seed(seed: int, peer: int) -> int:
    """Peers see other windows of the text; the plain loop sees what peer 0 sees."""
    return 1000 * (seed + 1) + peer


def steps_of_a_round(lm: CausalLM, peers: int, late: int = LATE_STEPS) -> int:
    """Inner steps of each peer, in which the swarm does at least the recipe's tokens."""
    steps = -(-lm.recipe.rounds.tokens // (lm.step_tokens * peers))
    if steps < late:
        raise ValueError(f"rounds of {steps} inner steps are over before a result comes {late} late")
    return steps


def recipe_of(case: Case, seed: int, tokens: int, recipe: Recipe, quick: bool = False) -> Recipe:
    """The recipe of one case. ``quick``: rounds are as long as the recipe's, of tuned cases too."""
    tuned = case.tuned or Tuned(recipe.inner, recipe.outer, recipe.rounds.tokens)
    round_tokens = recipe.rounds.tokens if quick else tuned.round_tokens
    if case.fragments > 1 and not quick:  # whole steps, so that all cases train on as many tokens
        of_a_step = case.peers * recipe.task.batch * recipe.task.context
        round_tokens = -(-round_tokens // (case.fragments * of_a_step)) * of_a_step
    return replace(
        recipe,
        task=replace(recipe.task, seed=seed, batch=recipe.task.batch * case.batches),
        inner=tuned.inner,
        outer=tuned.outer,
        rounds=replace(
            recipe.rounds,
            codec=case.codec,
            tokens=round_tokens,
            keeps=tuned.keeps,
            fragments=case.fragments,
            overlap="carry" if case.mix is None else "mix",
            mix=0.5 if case.mix is None else case.mix,
        ),
        end=End(tokens=max(1, tokens // round_tokens) * round_tokens),
    )


@dataclass(frozen=True)
class Origin:
    """What all cases begin with: ``first`` [n], if that is not the seed's first weights.

    Args:
        quick: rounds are as long as the recipe's, of tuned cases too.
        torchft: Python of an environment that has it.
    """

    first: Vector | None = None
    quick: bool = False
    torchft: str = ""

    @property
    def name(self) -> str:
        """As results have it."""
        return "scratch" if self.first is None else "checkpoint"


SCRATCH = Origin()


def measure(
    case: Case, seed: int, tokens: int, recipe: Recipe, assets: Assets, origin: Origin = SCRATCH
) -> Result:
    """Train one case from this seed, in as many whole rounds of the recipe as ``tokens`` hold."""
    recipe = recipe_of(case, seed, tokens, recipe, origin.quick)
    lm = Begun(recipe, assets, origin.first)
    rounds = max(1, tokens // recipe.rounds.tokens)
    seeds = [data_seed(seed, index) for index in range(case.peers)]
    if case.method == "torchft":
        found = torchft_diloco.train(lm, assets, seeds, rounds, origin.torchft)
    elif case.method == "data_parallel":
        found = baselines.data_parallel(lm, seeds, rounds * steps_of_a_round(lm, case.peers))
    elif case.method:
        outer = {"averaging": baselines.AVERAGING, "diloco": baselines.DILOCO}[case.method]
        found = baselines.blocking(lm, seeds, rounds, outer)
    elif case.peers:
        found = train_swarm(lm, case, seed, rounds)
    else:
        steps = -(-recipe.rounds.tokens // lm.step_tokens) * rounds // case.share
        model = lm.model()
        train_plainly(lm, model, steps, data_seed(seed, 0))
        found = Trained(steps * lm.step_tokens, 0, 0.0, *lm.evaluate(model))
    figures = (found.tokens, found.rounds, found.loss, found.bits_per_byte, found.bytes_up)
    return Result(case.name, seed, *figures, origin.name)


def train_swarm(lm: CausalLM, case: Case, seed: int, rounds: int) -> Trained:
    """So many rounds of Potluck."""
    swarm, judge = Swarm(lm, case.peers, seed, case.late), lm.model()
    for _ in range(rounds):
        swarm.round()
    Trainer(judge, swarm.peers[0].handover).write(swarm.theta)
    return Trained(swarm.trained, swarm.rounds, swarm.bytes_up, *lm.evaluate(judge))


def train_plainly(lm: CausalLM, model: torch.nn.Module, steps: int, seed: int) -> None:
    """So many inner steps in one process; a learning rate that cools down does so step by step."""
    taken = 0

    def batches() -> Iterator[Batch]:
        nonlocal taken
        for batch in islice(lm.random_batches(seed), steps):
            yield batch
            taken += 1

    lm.train(model, lm.optimizer(model, lambda: taken / steps), batches())


def untrained(seed: int, recipe: Recipe, assets: Assets, origin: Origin = SCRATCH) -> Result:
    """What all begin with."""
    lm = Begun(seeded(recipe, seed), assets, origin.first)
    return Result("untrained", seed, 0, 0, *lm.evaluate(lm.model()), start=origin.name)


def seeded(recipe: Recipe, seed: int) -> Recipe:
    return replace(recipe, task=replace(recipe.task, seed=seed))


def ratios(results: Sequence[Result], over: str, under: str) -> list[float]:
    """Loss of one case over another's, seed by seed: both have the same first weights."""
    losses = {(result.case, result.seed): result.loss for result in results}
    seeds = sorted({result.seed for result in results})
    pairs = [(losses.get((over, seed)), losses.get((under, seed))) for seed in seeds]
    return [a / b for a, b in pairs if a is not None and b is not None]


def summaries(results: Sequence[Result]) -> Iterator[dict[str, object]]:
    """Mean and spread (standard deviation of the sample, 0 for one seed) of each case over the seeds."""
    for name in dict.fromkeys(result.case for result in results):
        mine = [result for result in results if result.case == name]
        line: dict[str, object] = {"summary": name, "start": mine[0].start, "seeds": len(mine)}
        line |= {"tokens": mine[0].tokens, "bytes_up": mine[0].bytes_up}
        columns = {
            "loss": [result.loss for result in mine],
            "bits_per_byte": [result.bits_per_byte for result in mine],
            "loss_over_plain": ratios(results, name, "plain"),
        }
        for column, values in columns.items():
            if values:
                line[column] = statistics.fmean(values)
                line[f"{column}_spread"] = statistics.stdev(values) if len(values) > 1 else 0.0
        yield line


def bars(results: Sequence[Result]) -> Iterator[dict[str, object]]:
    for name, over, under in BARS:
        values = ratios(results, over, under)
        if values:
            yield {"bar": name, "value": statistics.fmean(values), "unit": "ratio"}
    for name, over, under in GAPS:
        values = ratios(results, over, under)
        if values:
            yield {"bar": name, "value": statistics.fmean(values) - 1, "unit": "ratio"}


def show(line: Mapping[str, object]) -> None:
    rounded = {key: round(value, 5) if isinstance(value, float) else value for key, value in line.items()}
    print(json.dumps(rounded), flush=True)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1, help="measure with seeds 0, 1, …")
    parser.add_argument("--tokens", type=int, help="per case; whole rounds that fit are trained")
    parser.add_argument("--tuned-tokens", type=int, help="the same for the tuned cases")
    parser.add_argument("--quick", action="store_true", help="short rounds, few tokens: a check only")
    parser.add_argument("--bar", action="store_true", help="end with the ratios that are watched")
    parser.add_argument("--only", action="append", choices=[case.name for case in CASES])
    parser.add_argument(
        "--from-checkpoint",
        type=Path,
        metavar="DIR",
        help="all go on from a checkpoint there, which is trained first with --tokens if there is none",
    )
    parser.add_argument("--torchft", default="", help="Python of an environment with torchft")
    parser.add_argument(
        "--lr", type=float, default=DEMO.inner.lr, help="of AdamW, to tune a case of the demo"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    head(argv)
    torch.set_num_threads(1)
    recipe = QUICK if args.quick else DEMO
    recipe = replace(recipe, inner=replace(recipe.inner, lr=args.lr))
    tokens = args.tokens or (QUICK_TOKENS if args.quick else 1_200_000)
    tuned_tokens = args.tuned_tokens or (QUICK_TOKENS if args.quick else TUNED_TOKENS)
    assets = build_assets(recipe)
    results: list[Result] = []
    for seed in range(args.seeds):
        origin = Origin(quick=args.quick, torchft=args.torchft)
        if args.from_checkpoint:
            kept = Checkpoints(args.from_checkpoint, tokens)
            origin = replace(origin, first=kept.of(seeded(recipe, seed), assets, seed))
        results.append(untrained(seed, recipe, assets, origin))
        show(asdict(results[-1]))
        for case in chosen(args):
            try:
                length = tuned_tokens if case.tuned else tokens
                results.append(measure(case, seed, length, recipe, assets, origin))
            except Drifted as drift:
                print(f"{case.name}, seed {seed}: {drift}", file=sys.stderr)
                return 1
            show(asdict(results[-1]))
    for line in summaries(results):
        show(line)
    if args.bar:
        for line in bars(results):
            show(line)
    return 0


def chosen(args: argparse.Namespace) -> list[Case]:
    """The cases that are wanted, and can be had."""
    names = args.only or (SHORT if args.quick else {case.name for case in CASES})
    wanted = [case for case in CASES if case.name in names]
    lacking = any(case.method == "torchft" for case in wanted) and not available("torchft", args.torchft)
    return [case for case in wanted if case.method != "torchft" or not lacking]


if __name__ == "__main__":
    sys.exit(main())
