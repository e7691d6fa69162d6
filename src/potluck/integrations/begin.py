"""How a library's callback takes part in a run: by a recipe, an invite, or a run that is there already."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

from potluck.errors import EnvironmentProblem, UsageError
from potluck.recipe import Recipe
from potluck.run import Run
from potluck.start import host, join

if TYPE_CHECKING:
    import torch

Where = Recipe | Run | str
"""A recipe, to host a run of it; an invite, to join its run; or a run that was joined without a model."""


def begin(where: Where, model: torch.nn.Module, options: dict[str, Any]) -> Run:
    """Take part with this model. Whoever hosts prints the invite, on a line of its own.

    Args:
        options: more arguments of ``potluck.host`` or ``potluck.join``.

    Raises:
        UsageError: options for a run that is there already, or it has a model; no recipe, invite or run.
        PotluckError: as ``potluck.host`` and ``potluck.join``.
    """
    from potluck.peer.ranks import spread_over_ranks

    if spread_over_ranks():
        raise UsageError(
            "this process is one of several ranks, and a callback joins one process: start it with one "
            "device, or use a loop of your own, where all ranks are one peer (docs/gpus.md)"
        )
    if isinstance(where, Run):
        if options:
            raise UsageError(f"{', '.join(options)}: say this where the run is hosted or joined")
        where.adopt(model)
        return where
    if isinstance(where, str):
        return join(where, model, **options)
    if not isinstance(where, Recipe):
        raise UsageError(f"a callback takes a recipe, an invite or a run, not {type(where).__name__}")
    run = host(where, model, **options)
    print(run.invite, flush=True)
    return run


def figures(run: Run) -> dict[str, float]:
    """How the run stands, to be logged: the last round here, peers that train, tokens in the model. Nothing
    while the network can't say.
    """
    try:
        peers = sum(peer.phase == "training" for peer in run.peers)
    except EnvironmentProblem:
        return {}
    return {"potluck_round": run.round, "potluck_peers": peers, "potluck_tokens": run.view.tokens}


def own_seed(run: Run, seed: int) -> int:
    """A seed that no other peer has, and no other life of this one, 0 to 2³² − 1."""
    return zlib.crc32(f"{run.state.peer} {run.state.session} {seed}".encode())
