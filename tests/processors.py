"""numpy picks its loops by the processor's features; here it is told to do without some of them."""

from __future__ import annotations

import os
import subprocess
import sys

# Names that this numpy does not know, or that this processor lacks, do nothing.
NO_AVX512 = "AVX512F AVX512_SKX AVX512_ICL AVX512_SPR X86_V4"
NO_AVX2 = "AVX2 FMA3 X86_V3 " + NO_AVX512
DISABLED = ["", NO_AVX512, NO_AVX2]


def printed(script: str, disabled: str) -> str:
    """What a Python program prints when these features are disabled."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "NPY_DISABLE_CPU_FEATURES": disabled},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
