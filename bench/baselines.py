"""Other ways to train together, in plain PyTorch and one process, for ``bench.convergence``.

data_parallel  each peer's gradient of its own batch, the mean of all, one optimizer: in each step
averaging      the peers meet once a round, wait for each other, and go on from the mean of their models
diloco         the same, with Nesterov's 0.7 and 0.9 as the outer step (arXiv 2311.08105)

All have fp32 on the wire. What a peer sends is reckoned: an all-reduce is 2 (n - 1) / n of the values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from bench.demo_recipe import Setting, Swarm

from potluck.recipe import Outer
from potluck.tasks.causal_lm import CausalLM
from potluck.tasks.training import Batch

AVERAGING = Outer("average")
DILOCO = Outer("nesterov", 0.7, 0.9)


@dataclass(frozen=True)
class Trained:
    """What became of a model: tokens of all peers, rounds, bytes that a peer sent, held-out loss."""

    tokens: int
    rounds: int
    bytes_up: float
    loss: float
    bits_per_byte: float


def ring(values: int, peers: int, value_bytes: int = 4) -> float:
    """Bytes that one of ``peers`` sends in an all-reduce."""
    return 2 * (peers - 1) / peers * value_bytes * values


def data_parallel(lm: CausalLM, seeds: Sequence[int], steps: int) -> Trained:
    """The mean of the peers' gradients is that of their batches together, since these are of one size."""
    model, taken = lm.model(), 0
    streams = zip(*(lm.random_batches(seed) for seed in seeds), strict=True)

    def batches() -> Iterator[Batch]:
        nonlocal taken
        for each in islice(streams, steps):
            yield {key: torch.cat([batch[key] for batch in each]) for key in each[0]}
            taken += 1

    lm.train(model, lm.optimizer(model, lambda: taken / steps), batches())
    sent = steps * ring(size(model), len(seeds))
    return Trained(steps * len(seeds) * lm.step_tokens, 0, sent, *lm.evaluate(model))


def blocking(lm: CausalLM, seeds: Sequence[int], rounds: int, outer: Outer) -> Trained:
    """Peers that wait for the result of each round."""
    tokens = lm.recipe.rounds.tokens
    swarm = Swarm(lm, Setting("", peers=len(seeds), outer=outer, round_tokens=tokens))
    for peer, seed in zip(swarm.peers, seeds, strict=True):
        peer.batches = lm.random_batches(seed)
    for _ in range(rounds):
        swarm.round()
    judge = swarm.peers[0].model  # no step is late, so it stands where all meet
    sent = rounds * ring(size(judge), len(seeds))
    return Trained(swarm.tokens, rounds, sent, *lm.evaluate(judge))


def size(model: torch.nn.Module) -> int:
    """How many values it has."""
    return sum(weight.numel() for weight in model.parameters())
