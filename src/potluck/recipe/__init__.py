"""A recipe: everything that all peers of a run agree on, as frozen dataclasses and as TOML.

A recipe never runs code from the network: it names built-in tasks only.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from potluck.errors import RecipeError
from potluck.recipe.checks import check_section
from potluck.recipe.kinds import check_task
from potluck.recipe.presets import filled
from potluck.recipe.schedule import Schedule
from potluck.recipe.text import read_table, toml_lines

MAX_TOML_BYTES = 100_000
"""Upper bound of a recipe's text: it stands in the run's first ledger record."""


ALL_LINEAR = "all-linear"
"""Targets of adapters: every linear layer but the one that gives tokens out."""


@dataclass(frozen=True)
class Lora:
    """Adapters of this ``rank`` on a checkpoint's linear layers, which are all that is trained; 0: none.

    ``targets`` are names of layers with commas between them, or ``"all-linear"``. Their product counts
    ``alpha`` / ``rank`` times.
    """

    rank: int = 0
    alpha: int = 16
    targets: str = ALL_LINEAR


@dataclass(frozen=True)
class Task:
    """What is trained, for people who bring no loop: ``kind`` is ``"causal-lm"``, ``"masked-lm"`` or
    ``"image-classification"``; ``"module:function"`` for a task of your own, which runs only where it is
    allowed; or ``"custom"`` for a loop of your own.

    ``config`` is a Hugging Face config (with ``model_type``), ``checkpoint`` a directory or name instead.
    ``tokenizer`` is ``"bpe-N"`` (trained by the host on the text) or a directory or name.
    ``text`` is ``"demo"``, a glob of text files, or ``"datasets:NAME[:COLUMN]"``.
    ``images`` is ``"digits"``, a safetensors file, or ``"datasets:NAME[:IMAGE[:LABEL]]"``.
    """

    kind: str = "custom"
    config: dict[str, Any] = field(default_factory=dict)
    checkpoint: str = ""
    lora: Lora = field(default_factory=Lora)
    tokenizer: str = "bpe-1024"
    text: str = "demo"
    images: str = "digits"
    context: int = 128
    batch: int = 8
    seed: int = 0


@dataclass(frozen=True)
class Inner:
    """The inner optimizer of a task (with own code, yours): ``"adamw"``, or ``"muon"`` for the matrices
    within the model and AdamW for the rest.

    The learning rate goes by the run's own progress, as ``schedule``, ``warmup`` (tokens of the run),
    ``cooldown`` (the last share of it) and ``floor`` of a ``Schedule`` have it: constant by default.
    ``warmup_steps`` are a peer's own first ones. Gradients are clipped at the norm ``clip``.
    """

    kind: str = "adamw"
    lr: float = 2e-3
    weight_decay: float = 0.1
    schedule: str = "wsd"
    warmup: int = 0
    warmup_steps: int = 20
    cooldown: float = 0.0
    floor: float = 0.0
    clip: float = 1.0

    @property
    def rate(self) -> Schedule:
        """How the learning rate goes."""
        return Schedule(self.schedule, self.warmup, self.warmup_steps, self.cooldown, self.floor)


@dataclass(frozen=True)
class Outer:
    """The outer optimizer: ``"nesterov"`` SGD, ``"plain"`` SGD, or ``"average"`` (plain with lr 1)."""

    kind: str = "average"
    lr: float = 0.7
    momentum: float = 0.9


@dataclass(frozen=True)
class Rounds:
    """When a round opens (``tokens`` of the whole swarm), and what travels (``codec``).

    Not before its members have done ``least_steps`` inner steps each on the average, weighted by tokens.
    ``grace_s`` is the least time that a reducer waits for a live member. ``keeps``: what the codec takes from
    a contribution stays in its member's model, which trains on from there, and not beside it. Rounds exchange
    ``fragments`` in turn. ``overlap``: a model carries what it did since its cut over to the new shared state
    (``"carry"``), or becomes ``mix`` of itself and the rest of that (``"mix"``).
    """

    tokens: int = 65_536
    least_steps: int = 1
    codec: str = "int8"
    keeps: bool = False
    fragments: int = 1
    overlap: str = "carry"
    mix: float = 0.5
    grace_s: float = 4.0
    snapshot_every: int = 5
    parts: int = 16


@dataclass(frozen=True)
class Data:
    """Data of your own that ``run.batches`` shares out: so many ``samples``, in blocks of ``block``.

    0 samples: it is not shared out, each peer has its own. (A built-in task counts its data itself; its block
    is ``task.batch``.) ``seed`` shuffles it, differently in each epoch.
    """

    samples: int = 0
    block: int = 8
    seed: int = 0


@dataclass(frozen=True)
class End:
    """The run is over at so many ``tokens``, ``rounds`` or ``epochs``, which comes first; 0 is no limit."""

    tokens: int = 0
    rounds: int = 0
    epochs: int = 0

    @property
    def exists(self) -> bool:
        """Whether there is a limit at all."""
        return bool(self.tokens or self.rounds or self.epochs)

    def done(self, tokens: int, rounds: int) -> float:
        """The share of the run, 0 to 1, that so many tokens and rounds are; 0 if it has no such limit."""
        limits = ((tokens, self.tokens), (rounds, self.rounds))
        return max(min(1.0, so_far / limit) if limit else 0.0 for so_far, limit in limits)


@dataclass(frozen=True)
class Recipe:
    """A run's recipe; see the classes of its fields."""

    name: str = "run"
    task: Task = field(default_factory=Task)
    data: Data = field(default_factory=Data)
    inner: Inner = field(default_factory=Inner)
    outer: Outer = field(default_factory=Outer)
    rounds: Rounds = field(default_factory=Rounds)
    end: End = field(default_factory=End)

    @classmethod
    def from_toml(cls, text: str) -> Recipe:
        """The recipe that a TOML text describes; what it leaves out is as its ``preset`` has it, or has its
        default.

        Raises:
            RecipeError: not TOML, too long, an unknown key or preset, or a value that is not allowed.
        """
        if len(text) > MAX_TOML_BYTES:
            raise RecipeError(f"a recipe of {len(text)} characters is over the limit of {MAX_TOML_BYTES}")
        try:
            table = tomllib.loads(text)
        except (ValueError, RecursionError) as error:
            raise RecipeError(f"the recipe is not TOML: {error}") from error
        if "preset" in table:
            table = filled(table, table.pop("preset"))
        recipe = read_table(cls, table, "")
        recipe.validate()
        return recipe

    @classmethod
    def preset(cls, name: str, /, **settings: Any) -> Recipe:
        """A recipe with what suits ``"local"``, ``"lan"``, ``"wan"`` or ``"volunteer"`` peers where you say
        nothing. In TOML it is ``preset = "wan"``.

        Args:
            settings: fields of a recipe. A section as a dict says only what it names, as in TOML:
                ``Recipe.preset("wan", rounds={"tokens": 500_000}, end={"rounds": 100})``. As a dataclass it
                says all of its settings, and the preset none.

        Raises:
            RecipeError: there is no such preset, an unknown key, or a value that is not allowed.
        """
        recipe = read_table(cls, filled(settings, name), "")
        recipe.validate()
        return recipe

    @classmethod
    def load(cls, path: Path | str) -> Recipe:
        """The recipe in a TOML file.

        Raises:
            RecipeError: the file can't be read, or as ``from_toml``; the message names the file.
        """
        try:
            with Path(path).open("rb") as file:
                raw = file.read(4 * MAX_TOML_BYTES + 1)
            return cls.from_toml(raw.decode())
        except OSError as error:
            raise RecipeError(f"recipe {path} can't be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise RecipeError(f"recipe {path} is not UTF-8 text") from error
        except RecipeError as error:
            raise RecipeError(f"{path}: {error}") from error

    def to_toml(self) -> str:
        """The recipe as TOML with every value written out; reading and writing it again gives the same text.

        Raises:
            RecipeError: as ``validate``, or the text would be too long.
        """
        self.validate()
        text = "\n".join(toml_lines(self, "")) + "\n"
        if len(text) > MAX_TOML_BYTES:
            raise RecipeError(f"a recipe of {len(text)} characters is over the limit of {MAX_TOML_BYTES}")
        return text

    def validate(self) -> None:
        """Checks every value, and that they go together.

        Raises:
            RecipeError: naming the key, its value and what is allowed.
        """
        check_section(self, "")
        self.inner.rate.validate(self.end.exists)
        if self.rounds.keeps and self.rounds.overlap == "mix":
            raise RecipeError('rounds.keeps = true needs rounds.overlap = "carry": who mixes does not keep')
        check_task(self)


DEMO = Recipe(
    name="shakespeare",
    task=Task(
        kind="causal-lm",
        config={
            "model_type": "llama",
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 128,
            "initializer_range": 0.06,
            "tie_word_embeddings": False,
        },
        tokenizer="bpe-1024",
        text="demo",
    ),
    inner=Inner(lr=4e-3),
    rounds=Rounds(tokens=90_000),
    end=End(tokens=2_000_000),
)
"""A small language model of Shakespeare's plays: about two minutes for four peers on two cores.

Its constants come from ``bench/demo_recipe.py``: held-out loss 7.12 to 3.81 nats per token in 23 rounds;
Nesterov 0.7/0.5 gains 0.01 more, and 0.7/0.9 loses to averaging in so few outer steps.
"""

BUILT_IN = {recipe.name: recipe for recipe in (DEMO,)}
"""Recipes that come with Potluck, by name."""


def built_in(name: str) -> Recipe:
    """The recipe that comes with Potluck under this name.

    Raises:
        RecipeError: there is none.
    """
    if name not in BUILT_IN:
        near = get_close_matches(name, BUILT_IN, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(BUILT_IN)}"
        raise RecipeError(f"no recipe {name!r} comes with Potluck; {hint}")
    return BUILT_IN[name]
