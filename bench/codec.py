"""What each codec costs and loses: time to encode and decode, bits a value, how much does not arrive.

    python -m bench.codec --bar [--values 25000000] [--repeats 5] [--quick]

Gaussian values, in parts of up to 4 Mi as peers have them, on one core. Seconds are the processor's, not the
clock's: what other programs do meanwhile shows little. The best of the repeats counts. One JSON object a
line, for each codec: ``encode_result_s`` is of what a reducer encodes, the mean of what four members sent;
``lost`` is ‖x − C(x)‖ / ‖x‖ of a single sending, without error feedback.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from bench.heading import head
from numpy.typing import NDArray

from potluck.codecs import CODECS, Codec
from potluck.peer.layout import part_bounds
from potluck.peer.state import PART_VALUES
from potluck.reduce.mean import weighted_mean

MEMBERS = 4

Vector = NDArray[np.float32]


def gaussian(n: int, seed: int) -> Vector:
    return np.random.default_rng(seed).standard_normal(n, np.float32)


def cut(values: Vector) -> list[Vector]:
    """Its parts."""
    return [values[bounds] for bounds in part_bounds(values.size, -(-values.size // PART_VALUES))]


def took_s(work: Callable[[], object], repeats: int) -> float:
    best = float("inf")
    for _ in range(repeats):
        started = time.process_time()
        work()
        best = min(best, time.process_time() - started)
    return best


def measure(coder: Codec, n: int, repeats: int) -> dict[str, object]:
    parts = cut(gaussian(n, 0))
    raws = [coder.encode(part) for part in parts]
    decoded = [coder.decode(raw, part.size) for raw, part in zip(raws, parts, strict=True)]
    lost = sum(float(np.square(p - d, dtype=np.float64).sum()) for p, d in zip(parts, decoded, strict=True))
    means = [mean_of(coder, part.size) for part in parts]

    def encode(some: Sequence[Vector]) -> None:
        for part in some:
            coder.encode(part)

    def decode() -> None:
        for raw, part in zip(raws, parts, strict=True):
            coder.decode(raw, part.size)

    return {
        "codec": coder.name,
        "values": n,
        "encode_s": took_s(lambda: encode(parts), repeats),
        "encode_result_s": took_s(lambda: encode(means), repeats),
        "decode_s": took_s(decode, repeats),
        "bits": 8 * sum(map(len, raws)) / n,
        "lost": (lost / sum(float(np.square(part, dtype=np.float64).sum()) for part in parts)) ** 0.5,
    }


def mean_of(coder: Codec, n: int) -> Vector:
    """What a reducer has of a part before it encodes it."""
    given = [coder.decode(coder.encode(gaussian(n, 1 + member)), n) for member in range(MEMBERS)]
    return weighted_mean(given, [1.0] * MEMBERS)


def bars(line: dict[str, object]) -> Iterator[dict[str, object]]:
    for figure, unit in (("encode_s", "s"), ("decode_s", "s"), ("bits", "bits a value"), ("lost", "ratio")):
        yield {"bar": f"{figure}_{line['codec']}", "value": line[figure], "unit": unit}


def show(line: dict[str, object]) -> None:
    rounded = {key: round(value, 5) if isinstance(value, float) else value for key, value in line.items()}
    print(json.dumps(rounded), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--values", type=int, default=25_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a million values, once: a check only")
    parser.add_argument("--bar", action="store_true", help="end with the figures that are watched")
    args = parser.parse_args(argv)
    head(argv)
    n, repeats = (1_000_000, 1) if args.quick else (args.values, args.repeats)
    lines = []
    for coder in CODECS.values():
        lines.append(measure(coder, n, repeats))
        show(lines[-1])
    for line in lines if args.bar else []:
        for bar in bars(line):
            show(bar)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
