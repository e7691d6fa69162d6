"""What the inner optimizer of a joiner should begin with: nothing, a warm-up, or a neighbour's state.

    python -m bench.joiner --bar [--seeds 0 1 2] [--quick]

Four peers with AdamW train a small Llama on the demo's text, average every 20 steps, and wait for each
result. After some rounds one leaves and a newcomer comes for it, with the shared parameters and data of its
own: once, or in each round from then on (``churn``). Its AdamW begins from zero (``zero``), from zero with a
warm-up of its own (``warm_N`` steps), or with the moments of a peer that is there (``neighbour``). In
``stays`` nobody leaves.

One JSON object a line for each case and seed, with the losses after each round since; the bars are held-out
loss over that of ``stays``, seed by seed: of the first three rounds (``_soon``), and at the end.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

import torch
from bench.demo_recipe import Peer, Setting, Swarm
from bench.heading import head

from potluck.data.assets import build_assets
from potluck.recipe import DEMO, Recipe
from potluck.tasks.causal_lm import CausalLM

STEPS = 20
"""Inner steps in a round."""

SOON = 3

NEIGHBOUR = -1
STATES: dict[str, int] = {"zero": 0, "warm_5": 5, "warm_20": 20, "warm_60": 60, "neighbour": NEIGHBOUR}
"""Steps of warm-up of a newcomer's own."""

EVALUATED = 40
"""Batches of held-out text."""

SMALL = {"hidden_size": 64, "intermediate_size": 192, "max_position_embeddings": 64}


@dataclass(frozen=True)
class Case:
    """Who comes how often, and with what."""

    state: str = ""
    churn: bool = False

    @property
    def name(self) -> str:
        return "stays" if not self.state else f"{self.state}{'_churn' if self.churn else ''}"


CASES = [Case(), *(Case(state, churn) for churn in (False, True) for state in STATES)]


def recipe(seed: int) -> Recipe:
    config = {**DEMO.task.config, **SMALL}
    return replace(DEMO, task=replace(DEMO.task, config=config, context=64, seed=seed))


class World:
    """A swarm after some rounds, from which all cases of a seed go on."""

    def __init__(self, assets: Mapping[str, bytes], seed: int, before: int) -> None:
        self.recipe, self.assets, self.seed = recipe(seed), assets, seed
        self.lm = self._task(self.recipe.inner.warmup_steps)
        self.swarm = self._swarm(self.lm, [])
        for _ in range(before):
            self.swarm.round()

    def _task(self, warmup_steps: int) -> CausalLM:
        """For peers that warm up for so many of their own steps."""
        inner = replace(self.recipe.inner, warmup_steps=warmup_steps)
        return CausalLM(replace(self.recipe, inner=inner), self.assets)

    def _swarm(self, lm: CausalLM, likes: list[Peer]) -> Swarm:
        swarm = Swarm(lm, Setting("", round_tokens=4 * STEPS * self.lm.step_tokens))
        for index, (peer, like) in enumerate(zip_longest(swarm.peers, likes)):
            peer.batches = self.lm.random_batches(1_000 * self.seed + index + 10 * len(likes))
            if like is not None:
                give(peer, like.weights, like)
        return swarm

    def losses(self, case: Case, rounds: int) -> list[float]:
        """Held-out losses after each of the next rounds."""
        swarm, found = self._swarm(self._task(0), self.swarm.peers), []
        swarm.theta = [weight.clone() for weight in self.swarm.theta]
        for number in range(rounds):
            if case.state and (number == 0 or case.churn):
                newcomer = self._newcomer(case, number, swarm)
                swarm.peers[number % 4] = newcomer
            swarm.round()
            found.append(self.lm.evaluate(swarm.peers[0].model, EVALUATED)[0])
        return found

    def _newcomer(self, case: Case, number: int, swarm: Swarm) -> Peer:
        warmup = STATES[case.state]
        peer = Peer(self._task(max(0, warmup)), 1_000 * self.seed + 100 + number)
        give(peer, swarm.theta, swarm.peers[(number + 1) % 4] if warmup == NEIGHBOUR else None)
        return peer


def give(peer: Peer, weights: Sequence[torch.Tensor], like: Peer | None) -> None:
    """Parameters, and the inner state of another peer."""
    for weight, theirs in zip(peer.weights, weights, strict=True):
        weight.copy_(theirs)
    if like is not None:
        peer.optimizer.load_state_dict(copy.deepcopy(like.optimizer.state_dict()))


def show_bar(name: str, ratios: list[float]) -> None:
    spread = {"least": round(min(ratios), 5), "most": round(max(ratios), 5), "seeds": len(ratios)}
    print(
        json.dumps({"bar": name, "value": round(statistics.mean(ratios), 5), "unit": ""} | spread), flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--bar", action="store_true", help="bars are printed anyway")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--before", type=int, default=6, help="rounds before the first newcomer")
    parser.add_argument("--rounds", type=int, default=10, help="rounds from then on")
    parser.add_argument("--only", action="append", help="cases, besides stays")
    parser.add_argument("--quick", action="store_true", help="a check that it works: one seed, two cases")
    wanted = parser.parse_args()
    if wanted.quick:
        wanted.seeds, wanted.before, wanted.rounds, wanted.only = [0], 1, SOON, ["zero"]
    head()
    torch.set_num_threads(1)
    ratios: dict[str, list[float]] = {}
    assets = build_assets(recipe(0), base=Path())
    for seed in wanted.seeds:
        world, stays = World(assets, seed, wanted.before), list[float]()
        for case in CASES:
            if case.state and wanted.only and case.name not in wanted.only:
                continue
            losses = world.losses(case, wanted.rounds)
            stays = stays or losses
            told = [round(loss, 4) for loss in losses]
            print(json.dumps({"case": case.name, "seed": seed, "losses": told}), flush=True)
            if case.state:
                soon = sum(losses[:SOON]) / sum(stays[:SOON])
                ratios.setdefault(f"{case.name}_soon", []).append(soon)
                ratios.setdefault(case.name, []).append(losses[-1] / stays[-1])
    for name, found in ratios.items():
        show_bar(name, found)


if __name__ == "__main__":
    main()
