"""Every codec gives the same bits whatever the processor can do."""

from __future__ import annotations

import subprocess
import sys

import pytest

SEVERAL_VECTORS = """
import hashlib
import numpy as np
from potluck.codecs import CODECS
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
            seen.update(raw + coder.decode(raw, n).astype("<f4").tobytes())
    print(name, seen.hexdigest()[:16])
"""
GOLDEN = {
    "fp32": "39d28e1be1c85842",
    "bf16": "728908a8f7766dda",
    "int8": "9b891418bf9351f8",
    "int4": "fc3f036caa27143e",
    "topk": "68e460ca8b273e75",
}
NO_AVX512 = "AVX512F AVX512_SKX AVX512_ICL AVX512_SPR X86_V4"
NO_AVX2 = "AVX2 FMA3 X86_V3 " + NO_AVX512


@pytest.mark.parametrize("disabled", ["", NO_AVX512, NO_AVX2])
def test_the_processor_changes_no_bit(disabled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # As in tests/paper/test_diloco.py: names that this numpy does not know do nothing.
    monkeypatch.setenv("NPY_DISABLE_CPU_FEATURES", disabled)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SEVERAL_VECTORS], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert dict(line.split() for line in done.stdout.splitlines()) == GOLDEN
