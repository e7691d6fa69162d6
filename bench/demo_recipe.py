"""Which constants the demo recipe should have: four peers taken in turn in one process, at equal tokens.

The outer step is the real one in plain torch: each peer's Θ - θ weighed by its tokens, averaged, applied,
and carried over to what the peer has trained since its cut. Codec and network are left out.
One JSON object a line: the setting, held-out loss at the start and at the end, and speed.

Found for the demo's Llama, one seed, 2,072,576 tokens in 23 rounds: held-out loss 7.131 to 3.915 by
averaging, and to 3.991 when each result comes 4 steps late. ``docs/benchmarks.md`` has more.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import islice
from multiprocessing import get_context

import torch

from potluck.data.assets import build_assets
from potluck.recipe import DEMO, Outer, Recipe
from potluck.tasks.causal_lm import CausalLM
from potluck.tasks.training import Batch


@dataclass(frozen=True)
class Setting:
    name: str
    peers: int = 4
    batch: int = DEMO.task.batch
    lr: float = DEMO.inner.lr
    outer: Outer = DEMO.outer
    round_tokens: int = DEMO.rounds.tokens
    late_steps: int = 0  # inner steps between a peer's cut and the arrival of the round's result


NESTEROV = Setting("nesterov 0.7/0.9", outer=Outer("nesterov", 0.7, 0.9))
SETTINGS = [
    Setting("plain, one peer", peers=1),
    Setting("average"),
    NESTEROV,
    replace(NESTEROV, name="nesterov 0.7/0.5", outer=Outer("nesterov", 0.7, 0.5)),
    replace(NESTEROV, name="nesterov 0.9/0.3", outer=Outer("nesterov", 0.9, 0.3)),
    Setting("average, inner lr 2e-3", lr=2e-3),
    Setting("average, inner lr 3e-3", lr=3e-3),
    Setting("average, batch 4", batch=4),
    Setting("average, short rounds", round_tokens=45_000),
    Setting("average, shorter rounds", round_tokens=22_500),
    Setting("average, every step", round_tokens=4_096),
    Setting("average, result 4 steps late", late_steps=4),
]


class Peer:
    """One peer's model, optimizer and data; ``work`` counts its inner steps since its last cut."""

    def __init__(self, lm: CausalLM, seed: int) -> None:
        self.lm = lm
        self.model = lm.model()
        self.optimizer = lm.optimizer(self.model)
        self.batches: Iterator[Batch] = lm.random_batches(seed)
        self.work = 0

    @property
    def weights(self) -> list[torch.Tensor]:
        return [weight.detach() for weight in self.model.parameters()]

    def train(self, steps: int) -> None:
        self.lm.train(self.model, self.optimizer, islice(self.batches, steps))
        self.work += steps


class Swarm:
    """Peers that share Θ; ``round`` does what a round of a run does."""

    def __init__(self, lm: CausalLM, setting: Setting) -> None:
        self.lm, self.setting = lm, setting
        self.peers = [Peer(lm, seed) for seed in range(1, setting.peers + 1)]
        self.theta = [weight.clone() for weight in self.peers[0].weights]
        self.velocity = [torch.zeros_like(weight) for weight in self.theta]
        self.tokens = 0

    def round(self) -> None:
        steps = max(1, round(self.setting.round_tokens / self.lm.step_tokens / len(self.peers)))
        for peer in self.peers:
            peer.train(steps - peer.work)
        cuts = [[weight.clone() for weight in peer.weights] for peer in self.peers]
        weights = [peer.work * self.lm.step_tokens for peer in self.peers]
        self.tokens += sum(weights)
        for index, theta in enumerate(self.theta):
            deltas = (weight * (theta - cut[index]) for weight, cut in zip(weights, cuts, strict=True))
            self._outer_step(index, sum(deltas, torch.zeros_like(theta)) / sum(weights))
        for peer, cut in zip(self.peers, cuts, strict=True):
            peer.work = 0
            peer.train(self.setting.late_steps)
            for weight, start, theta in zip(peer.weights, cut, self.theta, strict=True):
                weight.add_(theta - start)

    def _outer_step(self, index: int, delta: torch.Tensor) -> None:
        outer = self.setting.outer
        if outer.kind == "average":
            self.theta[index] -= delta
        else:
            self.velocity[index].mul_(outer.momentum).add_(delta)
            self.theta[index] -= outer.lr * (delta + outer.momentum * self.velocity[index])


def recipe_of(setting: Setting) -> Recipe:
    return replace(
        DEMO,
        task=replace(DEMO.task, batch=setting.batch),
        inner=replace(DEMO.inner, lr=setting.lr),
        outer=setting.outer,
        rounds=replace(DEMO.rounds, tokens=setting.round_tokens),
    )


def measure(setting: Setting, tokens: int) -> str:
    lm = CausalLM(recipe_of(setting), _assets)
    swarm = Swarm(lm, setting)
    judge = lm.model()
    start, _ = lm.evaluate(judge)
    began = time.perf_counter()
    rounds = 0
    while swarm.tokens < tokens:
        swarm.round()
        rounds += 1
    seconds = time.perf_counter() - began
    for weight, theta in zip(judge.parameters(), swarm.theta, strict=True):
        weight.data.copy_(theta)
    loss, bits = lm.evaluate(judge)
    result = {
        "setting": asdict(setting),
        "tokens": swarm.tokens,
        "rounds": rounds,
        "loss_at_start": round(start, 3),
        "loss": round(loss, 3),
        "bits_per_byte": round(bits, 3),
        "drop_percent": round(100 * (1 - loss / start), 1),
        "tokens_per_s": round(swarm.tokens / seconds),
        "sample": lm.sample(judge, "HAMLET\n", 60, seed=1),
    }
    return json.dumps(result)


_assets: dict[str, bytes] = {}


def prepare() -> None:
    torch.set_num_threads(1)
    _assets.update(build_assets(DEMO))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two settings, few tokens")
    parser.add_argument("--tokens", type=int, default=1_200_000)
    parser.add_argument("--jobs", type=int, default=2, help="settings measured at a time, one thread each")
    parser.add_argument("--only", action="append", help="this setting, by name; may be repeated")
    args = parser.parse_args()
    settings = [setting for setting in SETTINGS if not args.only or setting.name in args.only]
    tokens = 100_000 if args.quick else args.tokens
    with ProcessPoolExecutor(args.jobs, get_context("spawn"), initializer=prepare) as pool:
        for line in pool.map(measure, settings[: 2 if args.quick else None], [tokens] * len(settings)):
            print(line, flush=True)


if __name__ == "__main__":
    main()
