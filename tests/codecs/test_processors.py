"""Every codec gives the same bits whatever the processor can do."""

from __future__ import annotations

import pytest

from tests.processors import DISABLED, printed

SEVERAL_VECTORS = """
import hashlib
import numpy as np
from potluck.codecs import CODECS, packed
words = {"fp32": np.uint32, "bf16": np.uint16}
for name, coder in CODECS.items():
    seen = hashlib.sha256()
    for n in (1, 77, 4096, 70_001):
        state = np.arange(n, dtype=np.uint32) * np.uint32(2654435761)
        for _ in range(4):
            state = state * np.uint32(1664525) + np.uint32(1013904223)
            x = (state >> np.uint32(9)).astype(np.float32) / np.float32(1 << 22) - np.float32(1)
            x *= (state & np.uint32(31)) < np.uint32(8)  # many zeros
            x *= np.where(x > np.float32(0.9), np.float32(1 << 20), np.float32(1))
            raw = coder.encode(x)
            # How words are packed is up to zlib; they are the same.
            sent = packed.unpack(raw, n, words[name]).tobytes() if name in words else raw
            seen.update(sent + coder.decode(raw, n).astype("<f4").tobytes())
    print(name, seen.hexdigest()[:16])
"""
GOLDEN = {
    "fp32": "39d28e1be1c85842",
    "bf16": "728908a8f7766dda",
    "int8": "9b891418bf9351f8",
    "int4": "fc3f036caa27143e",
    "topk": "68e460ca8b273e75",
}


@pytest.mark.parametrize("disabled", DISABLED)
def test_the_processor_changes_no_bit(disabled: str) -> None:
    lines = printed(SEVERAL_VECTORS, disabled).splitlines()
    assert dict(line.split() for line in lines) == GOLDEN
