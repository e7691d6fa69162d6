"""torchft's DiLoCo as a case of ``bench.convergence``: real replicas on this machine's loopback.

As a program, in an environment with torchft, it is one replica:
``python -m bench.peers.torchft_diloco OPTIONS``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import IO, Any

import torch
from bench.baselines import DILOCO, Trained, ring, size
from bench.checkpoint import NAME, Begun, vectors
from bench.loopback import Loopback
from safetensors.numpy import load_file, save_file

from potluck.recipe import Recipe
from potluck.tasks.causal_lm import CausalLM

ROOT = Path(__file__).parents[2]
PORT = 29_520
LIMIT_S = 1800.0
"""How long all rounds may take."""

FIRST = "first.safetensors"
"""The weights that all begin with."""


def train(
    lm: CausalLM, assets: Mapping[str, bytes], seeds: Sequence[int], rounds: int, python: str
) -> Trained:
    """``torchft.local_sgd.DiLoCo`` with a replica for each seed, in fp32, nothing late.

    Raises:
        RuntimeError: a replica ended without a result, or they end with different models.
    """
    steps = round(lm.recipe.rounds.tokens / lm.step_tokens / len(seeds))
    with tempfile.TemporaryDirectory(prefix="potluck-torchft-") as scratch, Loopback() as here:
        folder = Path(scratch)
        for name, raw in assets.items():
            (folder / name).write_bytes(raw)
        save_file({NAME: vectors(lm.model()).read()}, folder / FIRST)
        (folder / "recipe.toml").write_text(lm.recipe.to_toml(), "utf-8")
        with (folder / "log").open("wb") as log:
            common = {"folder": str(folder), "steps": steps, "rounds": rounds, "peers": len(seeds)}
            said = _replicas(here, common, seeds, Path(python).absolute(), log)
    if len({json.dumps(line, sort_keys=True) for line in said}) != 1:
        raise RuntimeError(f"torchft's replicas end with different models: {said}")
    sent = rounds * ring(size(lm.model()), len(seeds))
    tokens = rounds * steps * len(seeds) * lm.step_tokens
    return Trained(tokens, rounds, sent, said[0]["loss"], said[0]["bits_per_byte"])


def _replicas(
    here: Loopback, common: dict[str, Any], seeds: Sequence[int], python: Path, log: IO[bytes]
) -> list[dict[str, Any]]:
    """The last word of each."""
    lighthouse = [str(python.with_name("torchft_lighthouse")), "--bind", f"[::]:{PORT}"]
    lighthouse += ["--min_replicas", str(len(seeds)), "--join_timeout_ms", "60000"]
    here.start("", lighthouse, stdout=log, stderr=log)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    environment |= {"GLOO_SOCKET_IFNAME": "lo"}
    workers = []
    for index, seed in enumerate(seeds):
        options = common | {"seed": seed, "name": f"r{index}"}
        command = [str(python), "-m", "bench.peers.torchft_diloco", json.dumps(options)]
        workers.append(here.start("", command, stdout=subprocess.PIPE, stderr=log, env=environment, cwd=ROOT))
    said = []
    for worker in workers:
        out, _ = worker.communicate(timeout=LIMIT_S)
        if worker.returncode:
            raise RuntimeError(f"torchft's replica ended with {worker.returncode}: {_tail(Path(log.name))}")
        said.append(json.loads(out.splitlines()[-1]))
    return said


def _tail(log: Path) -> str:
    return log.read_text("utf-8", "replace")[-2000:]


def work(options: dict[str, Any]) -> dict[str, float]:
    """One replica: inner steps on its own text, and torchft's outer steps; the loss at the end."""
    from torchft import Manager, ProcessGroupGloo
    from torchft.local_sgd import DiLoCo

    torch.set_num_threads(1)
    folder = Path(options["folder"])
    recipe = Recipe.from_toml((folder / "recipe.toml").read_text("utf-8"))
    assets = {path.name: path.read_bytes() for path in folder.iterdir()}
    lm = Begun(recipe, assets, load_file(folder / FIRST)[NAME])
    model = lm.model()
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    timeout = timedelta(seconds=60)
    manager = Manager(
        pg=ProcessGroupGloo(timeout=timeout),
        timeout=timeout,
        load_state_dict=None,
        state_dict=None,
        min_replica_size=options["peers"],
        use_async_quorum=False,
        rank=0,
        world_size=1,
        store_addr="127.0.0.1",
        store_port=store.port,
        lighthouse_addr=f"http://127.0.0.1:{PORT}",
        replica_id=options["name"],
        hostname="127.0.0.1",
        init_sync=False,
    )
    inner = lm.optimizer(model)
    outer = torch.optim.SGD(model.parameters(), lr=DILOCO.lr, momentum=DILOCO.momentum, nesterov=True)
    batches = lm.random_batches(options["seed"])
    try:
        with DiLoCo(manager, [model], inner, outer, options["steps"], pin_memory=False):
            lm.train(model, inner, islice(batches, options["steps"] * options["rounds"]))
        done = manager.current_step()
    finally:
        manager.shutdown(wait=False)
    if done != options["rounds"]:
        raise SystemExit(f"{done} of {options['rounds']} rounds were committed")
    loss, bits_per_byte = lm.evaluate(model)
    return {"loss": loss, "bits_per_byte": bits_per_byte}


if __name__ == "__main__":
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the library's chatter goes elsewhere
    print(json.dumps(work(json.loads(sys.argv[1]))), file=out, flush=True)
