"""The model card of an export, from the run's ledger: README.md as the Hugging Face Hub reads it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potluck import __version__
from potluck.app.output import count
from potluck.protocol.history import History, short
from potluck.protocol.leases import count as blocks
from potluck.recipe import Recipe
from potluck.wire.records import Evaluation

CARD = "README.md"
"""Its name in an export."""

MOST_PEERS = 50
MOST_EVALUATIONS = 200
"""Of more there are the first and last in the card's tables; ``potluck log`` has all of them."""

PIPELINES = {
    "causal-lm": "text-generation",
    "masked-lm": "fill-mask",
    "image-classification": "image-classification",
}
"""What the Hub calls a built-in task."""

AGAIN = """## Again

Training again would give another model: who is there when, and how fast, is in it. But every round is in
the run's ledger, and can be applied again. With a copy of the run that reaches back so far (a peer's
directory, or an archive) this replays it, compares every digest on the way, and writes the same
`model.safetensors` (SHA-256 `{sha256}…`):

```console
potluck export --round {round} COPY model
```

`potluck verify COPY` shows the digest of the state after each round (of this one it is `{state}`), and
`potluck log COPY` what happened. `potluck fork --round {round} COPY NEWDIR` begins a new run with it."""


@dataclass(frozen=True)
class Facts:
    """What a card is made of: the run's recipe and history, and the exported state with its digests."""

    recipe: Recipe
    history: History
    round: int
    state: str
    sha256: str

    @property
    def run(self) -> str:
        """The run's name."""
        genesis = self.history.view.genesis
        return genesis.run if genesis is not None else ""


def file_digest(files: Sequence[Path]) -> str:
    """SHA-256 of some files, one after the other."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()


def card(facts: Facts) -> str:
    """The card: metadata in YAML, then Markdown."""
    front = "\n".join(_yaml(_metadata(facts), 0))
    parts = [_head(facts), _evaluations(facts), _peers(facts), _recipe(facts), _again(facts)]
    return f"---\n{front}\n---\n\n" + "\n\n".join(part for part in parts if part) + "\n"


# -- metadata ----------------------------------------------------------------------------------------


def _metadata(facts: Facts) -> dict[str, Any]:
    task, found = facts.recipe.task, dict[str, Any](library_name="transformers")
    found["pipeline_tag"] = PIPELINES.get(task.kind, "other")
    found["tags"] = ["potluck"]
    if _is_name(task.checkpoint):
        found["base_model"] = task.checkpoint
    if task.text.startswith("datasets:"):
        found["datasets"] = [task.text.removeprefix("datasets:").partition(":")[0]]
    judged = _judged(facts)
    if judged is not None:
        metrics = [{"type": name, "value": value} for name, value in judged.metrics]
        data = {"name": "held-out data of the run", "type": "potluck-held-out"}
        result = {"task": {"type": found["pipeline_tag"]}, "dataset": data, "metrics": metrics}
        found["model-index"] = [{"name": facts.recipe.name, "results": [result]}]
    return found


def _is_name(checkpoint: str) -> bool:
    """Whether it is a repository's name on the Hub, and no directory."""
    pieces = checkpoint.split("/")
    return len(pieces) == 2 and all(pieces) and not checkpoint.startswith((".", "/", "~"))


def _yaml(value: Any, depth: int) -> Iterator[str]:
    """YAML of plain data; its strings and numbers as JSON, which YAML reads."""
    space = "  " * depth
    if isinstance(value, dict):
        for key, item in value.items():
            if isinstance(item, dict | list):
                yield f"{space}{key}:"
                yield from _yaml(item, depth + 1)
            else:
                yield f"{space}{key}: {json.dumps(item, ensure_ascii=False)}"
    else:
        for item in value:
            if isinstance(item, dict):
                first, *rest = _yaml(item, depth + 1)
                yield f"{space}- {first.lstrip()}"
                yield from rest
            else:
                yield f"{space}- {json.dumps(item, ensure_ascii=False)}"


# -- words -------------------------------------------------------------------------------------------


def _judged(facts: Facts) -> Evaluation | None:
    """The evaluation of the exported state, if there is one."""
    found = (e for e in facts.history.evaluations if (e.round, e.state) == (facts.round, facts.state))
    return next(found, None)


def _head(facts: Facts) -> str:
    view, shares = facts.history.view, facts.history.shares
    best = view.evaluations.best
    which = "the last one" if facts.round == view.round else f"of {count(view.round, 'round')}"
    if best is not None and (best.round, best.state) == (facts.round, facts.state):
        which += ", and the best one that was evaluated"
    rows = [
        ("run", f"`{facts.run}`"),
        ("state", f"after round {facts.round}, {which}"),
        ("tokens of the run", f"{view.tokens:,}"),
        ("rounds of the run", f"{view.round:,}" + (f"; {view.finished.reason}" if view.finished else "")),
        ("data", _data(facts)),
        ("peers that contributed", f"{len(shares):,}"),
        ("state digest (BLAKE3)", f"`{facts.state}`"),
        ("`model.safetensors` (SHA-256)", f"`{facts.sha256}`"),
        ("written by", f"Potluck {__version__}"),
    ]
    return (
        f"# {facts.recipe.name}\n\nTrained with Potluck, by {count(len(shares), 'peer')}. All figures are "
        "out of the run's ledger.\n\n| | |\n|---|---|\n"
        + "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows)
    )


def _data(facts: Facts) -> str:
    task, view = facts.recipe.task, facts.history.view
    said = f"`{task.text}`, in rows of {task.context} tokens"
    if view.leases is not None and view.genesis is not None:
        done = blocks(view.leases.included)
        said += f"; {done:,} batches of {task.batch}, {done / view.genesis.blocks:.2f} epochs"
    return said


def _cell(text: str) -> str:
    """Text from elsewhere, as it may stand in a table."""
    return "".join(c if c.isprintable() else " " for c in text).replace("|", "\\|").replace("<", "&lt;")


def _evaluations(facts: Facts) -> str:
    found = sorted(facts.history.evaluations, key=lambda e: e.round)
    if not found:
        return ""
    names = list(dict.fromkeys(name for body in found for name, _ in body.metrics))
    best = facts.history.view.evaluations.best
    lines = [f"| round | {' | '.join(names)} | |", "|---|" + "---|" * (len(names) + 1)]
    for body in _ends(found, MOST_EVALUATIONS):
        figures = dict(body.metrics)
        cells = [f"{figures[name]:.5g}" if name in figures else "–" for name in names]
        marks = ["best"] if body == best else []
        marks += ["this model"] if (body.round, body.state) == (facts.round, facts.state) else []
        lines.append(f"| {body.round} | {' | '.join(cells)} | {', '.join(marks)} |")
    first = names[0] if names else ""
    sense = "higher" if best is not None and best.rises else "lower"
    return (
        f"## Evaluations\n\nOf the shared state after a round, by peers of the run in turn; {sense} {first} "
        "is better.\n\n" + "\n".join(lines)
    )


def _peers(facts: Facts) -> str:
    shares = sorted(facts.history.shares.items(), key=lambda item: -item[1].tokens)
    lines = ["| peer | rounds | first | last | tokens |", "|---|---|---|---|---|"]
    for peer, share in shares[:MOST_PEERS]:
        lines.append(
            f"| `{short(peer)}` | {share.rounds} | {share.first} | {share.last} | {share.tokens:,.0f} |"
        )
    more = len(shares) - MOST_PEERS
    if more > 0:
        lines.append(f"| and {more} more | | | | |")
    return "## Peers\n\nBy the first digits of their keys.\n\n" + "\n".join(lines)


def _recipe(facts: Facts) -> str:
    return f"## Recipe\n\nAll that the peers agreed on.\n\n```toml\n{facts.recipe.to_toml().strip()}\n```"


def _again(facts: Facts) -> str:
    return AGAIN.format(round=facts.round, sha256=facts.sha256[:16], state=facts.state[:12])


def _ends(found: list[Evaluation], most: int) -> list[Evaluation]:
    """The first and the last of many."""
    return found if len(found) <= most else [*found[: most // 2], *found[-most // 2 :]]
