"""What a recipe may say: the limits of its numbers, its choices, and what no config may bring."""

from __future__ import annotations

import math
import re
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from typing import Any

from potluck.errors import RecipeError
from potluck.recipe.kinds import CUSTOM, KINDS, is_own_code

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_TARGETS = re.compile(r"all-linear|[A-Za-z0-9_.]+(, *[A-Za-z0-9_.]+)*")
_MAX_STRING = 4096
_MAX_DEPTH = 8
COUNT = (1 << 53) - 1
_VOCAB = (320, 262_144)

LIMITS: dict[str, tuple[float, float]] = {
    "task.context": (2, 1 << 20),
    "task.batch": (1, 65_536),
    "task.seed": (0, COUNT),
    "task.lora.rank": (0, 4096),
    "task.lora.alpha": (1, 1 << 20),
    "data.samples": (0, COUNT),
    "data.block": (1, 1 << 20),
    "data.seed": (0, COUNT),
    "inner.lr": (1e-9, 10),
    "inner.weight_decay": (0, 10),
    **{f"{where}.warmup": (0, COUNT) for where in ("inner", "schedule")},
    **{f"{where}.warmup_steps": (0, 1_000_000_000) for where in ("inner", "schedule")},
    **{f"{where}.cooldown": (0, 1) for where in ("inner", "schedule")},
    **{f"{where}.floor": (0, 1) for where in ("inner", "schedule")},
    "inner.clip": (1e-6, 1e6),
    "outer.lr": (1e-6, 10),
    "outer.momentum": (0, 0.9999),
    "rounds.tokens": (1, COUNT),
    "rounds.least_steps": (1, 1_000_000),
    "rounds.grace_s": (0.1, 3600),
    "rounds.snapshot_every": (1, 1_000_000),
    "rounds.parts": (1, 65_536),
    "rounds.fragments": (1, 64),
    "rounds.mix": (0, 1),
    "end.tokens": (0, COUNT),
    "end.rounds": (0, COUNT),
    "end.epochs": (0, 1_000_000),
}

SCHEDULES = ("constant", "linear", "cosine", "wsd")

CHOICES: dict[str, tuple[str, ...]] = {
    "task.kind": (CUSTOM, *KINDS),
    "inner.kind": ("adamw", "muon"),
    "inner.schedule": SCHEDULES,
    "schedule.kind": SCHEDULES,
    "outer.kind": ("average", "plain", "nesterov"),
    "rounds.overlap": ("carry", "mix"),
    "rounds.codec": ("fp32", "bf16", "int8", "int4", "topk"),
}

# Keys by which a config makes transformers fetch and run code, or load what is no plain tensor.
_UNSAFE = ("auto_map", "attn_implementation", "experts_implementation", "quantization_config", "use_kernels")

# By these transformers asks timm, or the Hub, for a model by its name; timm loads files of any format.
_TIMM = ("architecture", "backbone", "model_args", "use_pretrained_backbone", "use_timm_backbone")


def check_config(config: object, where: str = "task.config") -> None:
    """Refuses a model's config that would make a library run code from the network, or bring in timm.

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
            if key in _TIMM or (key == "model_type" and isinstance(item, str) and item.startswith("timm")):
                raise RecipeError(
                    f"{path}.{key} = {show(item)} is refused: it leads to timm, which can fetch weights and "
                    "load files that hold code; take a model that transformers has itself"
                )
            _check_keys(item, f"{path}.{key}", depth + 1)


def join(where: str, key: str) -> str:
    """A key's path in a recipe."""
    return f"{where}.{key}" if where else key


def show(value: object) -> str:
    """A value in an error, cut short."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def check_section(section: Any, where: str) -> None:
    """Checks each value of a recipe's dataclass, and of those in it.

    Raises:
        RecipeError: naming the key, its value and what is allowed.
    """
    default = type(section)()
    for entry in fields(section):
        path, value, usual = (
            join(where, entry.name),
            getattr(section, entry.name),
            getattr(default, entry.name),
        )
        if is_dataclass(usual):
            if type(value) is not type(usual):
                raise RecipeError(f"{path} = {show(value)} should be a {type(usual).__name__}")
            check_section(value, path)
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
        raise RecipeError(f"{path} = {show(value)} should be {words[type(usual)]}")
    if not isinstance(value, dict):
        _check_value(value, path, 0)


def _check_allowed(value: Any, path: str) -> None:
    if path in LIMITS:
        low, high = LIMITS[path]
        if not low <= value <= high:
            raise RecipeError(f"{path} = {show(value)} should be from {low:,} to {high:,}")
    elif path == "task.kind" and is_own_code(value):
        return
    elif path in CHOICES and value not in CHOICES[path]:
        near = get_close_matches(value, CHOICES[path], 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise RecipeError(f"{path} = {show(value)} should be one of {', '.join(CHOICES[path])}{hint}")
    elif path == "name" and not _NAME.fullmatch(value):
        raise RecipeError(f"name = {show(value)} should be up to 64 letters, digits, - and _")
    elif path == "task.tokenizer":
        bpe_vocab(value)
    elif path == "task.config":
        _check_value(value, path, 0)
        check_config(value)
    elif path == "task.lora.targets" and not _TARGETS.fullmatch(value):
        raise RecipeError(
            f'{path} = {show(value)} should be "all-linear", or names of layers such as "q_proj, v_proj"'
        )
    elif path == "task.images" and not value:
        raise RecipeError(
            'task.images = "" should be "digits", a safetensors file, or "datasets:NAME[:IMAGE[:LABEL]]"'
        )
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
            f'task.tokenizer = {show(tokenizer)} should be "bpe-N" with N from {low} to {high:,}'
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
                f"{path} = {show(value)} should be up to {_MAX_STRING} characters of Unicode text"
            )
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise RecipeError(f"{path} = {value} should be a finite number")
    elif isinstance(value, int):
        if not -(1 << 63) <= value < 1 << 63:
            raise RecipeError(f"{path} is a whole number of more than 64 bits")
    else:
        raise RecipeError(f"{path} = {show(value)} should be a string, number, boolean, list or table")


def _check_table(table: dict[Any, Any], path: str, depth: int) -> None:
    for key, value in table.items():
        if not isinstance(key, str):
            raise RecipeError(f"{path} has the key {show(key)}; keys are strings")
        _check_value(key, path, depth)
        _check_value(value, f"{path}.{key}", depth + 1)
