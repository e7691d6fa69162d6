"""Codecs: how vectors of fp32 travel, by the name that a recipe gives."""

from __future__ import annotations

from potluck.codecs.base import Codec
from potluck.codecs.bf16 import Bf16
from potluck.codecs.fp32 import Fp32
from potluck.codecs.int4 import Int4
from potluck.codecs.int8 import Int8
from potluck.codecs.topk import TopK
from potluck.errors import RecipeError

__all__ = ["CODECS", "Codec", "codec"]

CODECS: dict[str, Codec] = {known.name: known for known in (Fp32(), Bf16(), Int8(), Int4(), TopK())}


def codec(name: str) -> Codec:
    """The codec of that name.

    Raises:
        RecipeError: there is none.
    """
    if name not in CODECS:
        raise RecipeError(f"codec {name!r} is not known; choose one of {', '.join(CODECS)}")
    return CODECS[name]
