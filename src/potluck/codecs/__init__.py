"""Codecs: how vectors of fp32 travel, by the name that a recipe gives."""

from __future__ import annotations

from potluck.codecs.base import Codec
from potluck.codecs.fp32 import Fp32
from potluck.codecs.int8 import Int8
from potluck.errors import RecipeError

__all__ = ["CODECS", "Codec", "codec"]

CODECS: dict[str, Codec] = {known.name: known for known in (Fp32(), Int8())}


def codec(name: str) -> Codec:
    """The codec of that name.

    Raises:
        RecipeError: there is none.
    """
    if name not in CODECS:
        raise RecipeError(f"codec {name!r} is not known; choose one of {', '.join(CODECS)}")
    return CODECS[name]
