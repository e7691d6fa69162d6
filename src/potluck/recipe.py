"""A recipe: everything that all peers of a run agree on, as frozen dataclasses and as TOML.

A recipe never runs code from the network: it names built-in tasks only.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from potluck.errors import RecipeError

T = TypeVar("T")

MAX_TOML_BYTES = 100_000
"""Upper bound of a recipe's text: it stands in the run's first ledger record."""


@dataclass(frozen=True)
class Task:
    """What is trained, for people who bring no code: ``kind = "causal-lm"``, or ``"custom"`` for own code.

    ``config`` is a Hugging Face config (with ``model_type``), ``checkpoint`` a directory or name instead.
    ``tokenizer`` is ``"bpe-N"`` (trained by the host on the text) or a directory or name.
    ``text`` is ``"demo"``, a glob of text files, or ``"datasets:NAME[:COLUMN]"``.
    """

    kind: str = "custom"
    config: dict[str, Any] = field(default_factory=dict)
    checkpoint: str = ""
    tokenizer: str = "bpe-1024"
    text: str = "demo"
    context: int = 128
    batch: int = 8
    seed: int = 0


@dataclass(frozen=True)
class Inner:
    """The inner optimizer of a task (with own code, yours): ``"adamw"``, or ``"muon"`` for the matrices
    within the model and AdamW for the rest.

    The learning rate warms up linearly in a peer's first ``warmup_steps``. ``cooldown`` is the last share of
    the run, in which it falls linearly to 0: none by default, and 1 is all of it.
    """

    kind: str = "adamw"
    lr: float = 2e-3
    weight_decay: float = 0.1
    warmup_steps: int = 20
    cooldown: float = 0.0
    clip: float = 1.0


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
        """The recipe that a TOML text describes; what it leaves out has its default.

        Raises:
            RecipeError: not TOML, too long, an unknown key, or a value that is not allowed.
        """
        if len(text) > MAX_TOML_BYTES:
            raise RecipeError(f"a recipe of {len(text)} characters is over the limit of {MAX_TOML_BYTES}")
        try:
            table = tomllib.loads(text)
        except (ValueError, RecursionError) as error:
            raise RecipeError(f"the recipe is not TOML: {error}") from error
        recipe = _read(cls, table, "")
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
        text = "\n".join(_lines(self, "")) + "\n"
        if len(text) > MAX_TOML_BYTES:
            raise RecipeError(f"a recipe of {len(text)} characters is over the limit of {MAX_TOML_BYTES}")
        return text

    def validate(self) -> None:
        """Checks every value, and that they go together.

        Raises:
            RecipeError: naming the key, its value and what is allowed.
        """
        _check_section(self, "")
        if self.inner.cooldown and not (self.end.tokens or self.end.rounds):
            raise RecipeError(
                f"inner.cooldown = {self.inner.cooldown} needs end.tokens or end.rounds: nobody knows "
                "else when the learning rate should be 0"
            )
        if self.rounds.keeps and self.rounds.overlap == "mix":
            raise RecipeError('rounds.keeps = true needs rounds.overlap = "carry": who mixes does not keep')
        task = self.task
        if task.kind != "causal-lm":
            if self.end.epochs and not self.data.samples:
                raise RecipeError(
                    f"end.epochs = {self.end.epochs} needs data.samples: nobody knows else what an epoch is"
                )
            return
        if self.data.samples:
            raise RecipeError('data.samples is for data of your own: task.kind = "causal-lm" counts its own')
        if bool(task.config) == bool(task.checkpoint):
            raise RecipeError(
                'task.kind = "causal-lm" needs either task.config (a Hugging Face config, to start from '
                "random weights) or task.checkpoint (to start from trained ones), and not both"
            )
        if task.config and not isinstance(task.config.get("model_type"), str):
            raise RecipeError('task.config needs a model_type, such as "llama" or "gpt2"')
        if task.checkpoint and task.tokenizer.startswith("bpe-"):
            raise RecipeError(
                f'task.tokenizer = "{task.tokenizer}" does not fit task.checkpoint: trained weights need '
                "the tokenizer that they were trained with; name its directory or repository"
            )


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_MAX_STRING = 4096
_MAX_DEPTH = 8
_COUNT = (1 << 53) - 1
_VOCAB = (320, 262_144)

_LIMITS: dict[str, tuple[float, float]] = {
    "task.context": (2, 1 << 20),
    "task.batch": (1, 65_536),
    "task.seed": (0, _COUNT),
    "data.samples": (0, _COUNT),
    "data.block": (1, 1 << 20),
    "data.seed": (0, _COUNT),
    "inner.lr": (1e-9, 10),
    "inner.weight_decay": (0, 10),
    "inner.warmup_steps": (0, 1_000_000_000),
    "inner.cooldown": (0, 1),
    "inner.clip": (1e-6, 1e6),
    "outer.lr": (1e-6, 10),
    "outer.momentum": (0, 0.9999),
    "rounds.tokens": (1, _COUNT),
    "rounds.least_steps": (1, 1_000_000),
    "rounds.grace_s": (0.1, 3600),
    "rounds.snapshot_every": (1, 1_000_000),
    "rounds.parts": (1, 65_536),
    "rounds.fragments": (1, 64),
    "rounds.mix": (0, 1),
    "end.tokens": (0, _COUNT),
    "end.rounds": (0, _COUNT),
    "end.epochs": (0, 1_000_000),
}

_CHOICES: dict[str, tuple[str, ...]] = {
    "task.kind": ("custom", "causal-lm"),
    "inner.kind": ("adamw", "muon"),
    "outer.kind": ("average", "plain", "nesterov"),
    "rounds.overlap": ("carry", "mix"),
    "rounds.codec": ("fp32", "bf16", "int8", "int4", "topk"),
}

# Keys by which a config makes transformers fetch and run code, or load what is no plain tensor.
_UNSAFE = ("auto_map", "attn_implementation", "experts_implementation", "quantization_config", "use_kernels")


def check_config(config: object, where: str = "task.config") -> None:
    """Refuses a model's config that would make a library run code from the network.

    Raises:
        RecipeError: naming the key.
    """
    _check_keys(config, where, 0)


def _check_keys(value: object, path: str, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise RecipeError(f"{path} is nested more than {_MAX_DEPTH} deep")
    if isinstance(value, list):
        for index, item in enumerate(value):
            _check_keys(item, f"{path}[{index}]", depth + 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key in _UNSAFE or key.startswith("_"):
                raise RecipeError(
                    f"{path}.{key} is refused: it can make a library fetch and run code, and no recipe does"
                )
            _check_keys(item, f"{path}.{key}", depth + 1)


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _read(kind: type[T], table: object, where: str) -> T:
    """A dataclass from a table; the kind of each value is that of its default."""
    if not isinstance(table, dict):
        raise RecipeError(f"{where} = {_show(table)} should be a table: [{where}]")
    default = kind()
    known = [entry.name for entry in fields(default)]  # type: ignore[arg-type]  # T is a dataclass
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in known:
            near = get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise RecipeError(f"there is no {_join(where, key)!r} in a recipe; {hint}")
        usual = getattr(default, key)
        if is_dataclass(usual):
            values[key] = _read(type(usual), value, _join(where, key))
        else:
            whole = isinstance(usual, float) and type(value) is int and abs(value) <= _COUNT
            values[key] = float(value) if whole else value
    return kind(**values)


def _check_section(section: Any, where: str) -> None:
    default = type(section)()
    for entry in fields(section):
        path, value, usual = (
            _join(where, entry.name),
            getattr(section, entry.name),
            getattr(default, entry.name),
        )
        if is_dataclass(usual):
            if type(value) is not type(usual):
                raise RecipeError(f"{path} = {_show(value)} should be a {type(usual).__name__}")
            _check_section(value, path)
        else:
            _check_type(value, usual, path)
            _check_allowed(value, path)


def _check_type(value: object, usual: object, path: str) -> None:
    words = {
        str: "a string",
        int: "a whole number",
        float: "a number",
        dict: "a table",
        bool: "true or false",
    }
    allowed = (int, float) if isinstance(usual, float) else (type(usual),)
    if type(value) not in allowed:
        raise RecipeError(f"{path} = {_show(value)} should be {words[type(usual)]}")
    if not isinstance(value, dict):
        _check_value(value, path, 0)


def _check_allowed(value: Any, path: str) -> None:
    if path in _LIMITS:
        low, high = _LIMITS[path]
        if not low <= value <= high:
            raise RecipeError(f"{path} = {_show(value)} should be from {low:,} to {high:,}")
    elif path in _CHOICES and value not in _CHOICES[path]:
        near = get_close_matches(value, _CHOICES[path], 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise RecipeError(f"{path} = {_show(value)} should be one of {', '.join(_CHOICES[path])}{hint}")
    elif path == "name" and not _NAME.fullmatch(value):
        raise RecipeError(f"name = {_show(value)} should be up to 64 letters, digits, - and _")
    elif path == "task.tokenizer":
        bpe_vocab(value)
    elif path == "task.config":
        _check_value(value, path, 0)
        check_config(value)
    elif path == "task.text" and not value:
        raise RecipeError(
            'task.text = "" should be "demo", a glob of text files, or "datasets:NAME[:COLUMN]"'
        )


def bpe_vocab(tokenizer: str) -> int | None:
    """N of ``"bpe-N"``; None where the tokenizer is a directory or a name.

    Raises:
        RecipeError: it is neither.
    """
    if not tokenizer:
        raise RecipeError('task.tokenizer = "" should be "bpe-N", a directory or a name')
    if not tokenizer.startswith("bpe-"):
        return None
    digits = tokenizer.removeprefix("bpe-")
    low, high = _VOCAB
    if not re.fullmatch("[0-9]{1,7}", digits) or not low <= int(digits) <= high:
        raise RecipeError(
            f'task.tokenizer = {_show(tokenizer)} should be "bpe-N" with N from {low} to {high:,}'
        )
    return int(digits)


def _check_value(value: object, path: str, depth: int) -> None:
    """Plain, finite, bounded data only: what TOML can hold and every peer reads alike."""
    if depth > _MAX_DEPTH:
        raise RecipeError(f"{path} is nested more than {_MAX_DEPTH} deep")
    if isinstance(value, dict):
        _check_table(value, path, depth)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_value(item, f"{path}[{index}]", depth + 1)
    elif isinstance(value, str):
        if len(value) > _MAX_STRING or any("\ud800" <= letter <= "\udfff" for letter in value):
            raise RecipeError(
                f"{path} = {_show(value)} should be up to {_MAX_STRING} characters of Unicode text"
            )
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise RecipeError(f"{path} = {value} should be a finite number")
    elif isinstance(value, int):
        if not -(1 << 63) <= value < 1 << 63:
            raise RecipeError(f"{path} is a whole number of more than 64 bits")
    else:
        raise RecipeError(f"{path} = {_show(value)} should be a string, number, boolean, list or table")


def _check_table(table: dict[Any, Any], path: str, depth: int) -> None:
    for key, value in table.items():
        if not isinstance(key, str):
            raise RecipeError(f"{path} has the key {_show(key)}; keys are strings")
        _check_value(key, path, depth)
        _check_value(value, f"{path}.{key}", depth + 1)


def _lines(section: Any, where: str) -> Iterator[str]:
    """TOML lines of a dataclass: its plain values first, since they belong to the table header above them."""
    default = type(section)()
    tables = []
    for entry in fields(section):
        value, usual = getattr(section, entry.name), getattr(default, entry.name)
        if is_dataclass(usual) or isinstance(usual, dict):
            tables.append((_join(where, entry.name), value))
        else:
            yield f"{entry.name} = {_toml(float(value) if isinstance(usual, float) else value)}"
    for path, table in tables:
        if isinstance(table, dict):
            if table:
                yield f"\n[{path}]"
            yield from (f"{_key(key)} = {_toml(table[key])}" for key in sorted(table))
        else:
            yield f"\n[{path}]"
            yield from _lines(table, path)


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _toml(key)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON's escapes are TOML's, but for DEL, which TOML wants escaped too.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(key)} = {_toml(value[key])}" for key in sorted(value)) + "}"
    return repr(value)


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

PRESETS = {recipe.name: recipe for recipe in (DEMO,)}
"""Recipes that come with Potluck, by name."""


def preset(name: str) -> Recipe:
    """The recipe that comes with Potluck under this name.

    Raises:
        RecipeError: there is none.
    """
    if name not in PRESETS:
        near = get_close_matches(name, PRESETS, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(PRESETS)}"
        raise RecipeError(f"no recipe {name!r} comes with Potluck; {hint}")
    return PRESETS[name]
