"""Tables of docs/benchmarks.md out of kept results, as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.results import FOLDER, Line, Results, latest, read

BASIS = "data_parallel"
"""The case that others are compared with."""

JOIN_BOUND_S = 8.0
"""What the link of ``bench.faults`` needs for a joiner's 100 MB."""

CODECS = ("fp32", "bf16", "int8", "int4", "topk")

ONE_SEED = "¹"
"""Marks a figure that no other seed confirms."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    ruler = ["---"] * len(head)
    return "\n".join(
        "".join(f"| {cell} " if cell else "| " for cell in cells) + "|" for cells in (head, ruler, *rows)
    )


def link_of(line: Line) -> str:
    """What the peers were connected by, in a word or two."""
    rates, delays = line["mbit"], line["one_way_ms"]
    if rates == [0.0]:
        return "loopback"
    rate = f"{rates[0]:g}" if len(rates) == 1 else f"{rates[0]:g} to {rates[-1]:g}"
    return f"{rate} Mbit/s, {delays[-1]:g} ms"


def of_links(results: Results) -> dict[tuple[int, str], dict[str, Line]]:
    """Lines of each preset by number of peers and link, and codec."""
    found: dict[tuple[int, str], dict[str, Line]] = {}
    for line in latest(results.of("preset"), lambda one: (one["preset"], one["codec"])).values():
        found.setdefault((line["peers"], link_of(line)), {})[line["codec"]] = line
    return dict(sorted(found.items(), key=lambda one: _order(next(iter(one[1].values())))))


def _order(line: Line) -> tuple[object, ...]:
    """The grid first, then unequal links, then none."""
    return (line["mbit"] == [0.0], len(line["mbit"]), line["peers"], line["mbit"], line["one_way_ms"])


def presets(results: Results) -> str:
    """Seconds until all have applied a round, and times the bound of fp32."""
    rows = []
    for (peers, link), lines in of_links(results).items():
        some = next(iter(lines.values()))
        bound = f"{some['applied_s'] / some['over_bound']:.2g} s" if "over_bound" in some else "–"
        cells = [_exchange(lines[codec]) if codec in lines else "" for codec in CODECS]
        rows.append([str(peers), link, bound, *cells, _range([line["load"] for line in lines.values()])])
    return table(["peers", "link", "bound", *(f"`{codec}`" for codec in CODECS), "load"], rows)


def _exchange(line: Line) -> str:
    over = f", {line['over_bound']:.2f}" if "over_bound" in line else ""
    return f"{line['applied_s']:.2f} s{over}"


def _range(values: Sequence[float]) -> str:
    return "–".join(dict.fromkeys(f"{value:.1f}" for value in (min(values), max(values))))


GOALS = {"fp32": "1.10", "int8": "0.29", "topk": "0.05"}
"""Of an exchange, over the bound."""


def exchange(results: Results) -> str:
    """Seconds of an exchange with each codec, times the bound, and a peer's processor time."""
    rows = []
    for codec, line in latest(results.of("applied_s"), lambda one: one["codec"]).items():
        name = f"`{codec}`" if codec in CODECS else f"{codec}, fp32"
        commit = f"{line['commit_s']:.2f} s" if "commit_s" in line else "–"
        each = ", ".join(f"{took:.1f}" for took in line["all_s"])
        figures = [
            commit,
            f"{line['applied_s']:.2f} s",
            each,
            f"{line['over_bound']:.3f}",
            f"{line['cpu_s']:.2f} s",
        ]
        rows.append([name, *figures, str(line["load"]), GOALS.get(codec, "")])
    head = ["what", "until the commit", "until all applied", "each round", "over the bound", "CPU of a peer"]
    return table([*head, "load", "goal"], rows)


def systems(results: Results) -> str:
    """Seconds of an exchange in each system, and times the bound."""
    bars = {line["system"]: line["value"] for line in results.of("bar")}
    rows = []
    for name, line in latest(results.of("applied_s"), lambda one: one["system"]).items():
        before = ""
        if "with_gathering_s" in line:
            before = f"{line['with_gathering_s'] - line['applied_s']:.1f} s"
        figures = [f"{line['applied_s']:.1f} s", f"{bars[name]:.2f}", before, str(line.get("load", ""))]
        rows.append([str(name), *figures])
    return table(["system", "exchange", "over the bound", "before it", "load"], rows)


def by_way(results: Results) -> dict[tuple[str, str], dict[int, Line]]:
    """Lines by start and case, and then by seed."""
    found: dict[tuple[str, str], dict[int, Line]] = {}
    for line in results.of("case"):
        found.setdefault((line["start"], line["case"]), {})[line["seed"]] = line
    return found


def ways(results: Results) -> str:
    """Held-out loss of each way to train together, from scratch and from a checkpoint."""
    found, starts = by_way(results), ("scratch", "checkpoint")
    rows = []
    for case in dict.fromkeys(case for _, case in found):
        mine = [found.get((start, case), {}) for start in starts]
        sent = statistics.fmean(line["bytes_up"] for seeds in mine for line in seeds.values())
        bases = [{} if case in (BASIS, "untrained") else found.get((start, BASIS), {}) for start in starts]
        cells = [_losses(seeds, basis) for seeds, basis in zip(mine, bases, strict=True)]
        rows.append([f"`{case}`", _bytes(sent), *cells])
    told = table(["case", "a peer sends", "from scratch", "from the checkpoint"], rows)
    alone = any(len(seeds) == 1 for seeds in found.values())
    return f"{told}\n\n{ONE_SEED} one seed." if alone else told


def _losses(seeds: dict[int, Line], basis: dict[int, Line]) -> str:
    """Mean over the seeds, and how much it is over ``basis``, seed by seed."""
    if not seeds:
        return ""
    note = f" {ONE_SEED}" if len(seeds) == 1 else ""
    told = f"{statistics.fmean(line['loss'] for line in seeds.values()):.3f}{note}"
    gaps = [100 * (line["loss"] / basis[seed]["loss"] - 1) for seed, line in seeds.items() if seed in basis]
    if not gaps:
        return told
    spread = f" ({min(gaps):+.1f} to {max(gaps):+.1f})" if len(gaps) > 1 else ""
    return f"{told}, {statistics.fmean(gaps):+.1f} %{spread}"


def _bytes(count: float) -> str:
    if not count:
        return "–"
    return f"{count / 1e6:.3g} MB" if count < 1e9 else f"{count / 1e9:.3g} GB"


def tuned(results: Results) -> str:
    """Loss after each number of tokens, and how far it is above tuned data parallelism."""
    found = {(line["tokens"], line["tuned"]): line for line in results.of("tuned")}
    lengths = sorted({tokens for tokens, _ in found})
    cases = list(dict.fromkeys(case for _, case in found))
    rows = []
    for tokens in lengths:
        some = next(line for line in found.values() if line["tokens"] == tokens)
        cells = [_gap(found.get((tokens, case))) for case in cases]
        rows.append([f"{tokens / 1e6:.1f} M", f"{some['epochs']}", f"{some['steps']:,}", *cells])
    return table(["tokens", "epochs", "steps in a row", *cases], rows)


def _gap(line: Line | None) -> str:
    if line is None:
        return ""
    told = f"{line['loss']:.3f}" if "loss" in line else ""
    note = f" {ONE_SEED}" if line["seeds"] == 1 else ""
    gap = ""
    if "gap" in line:
        spread = f" ({' to '.join(str(one) for one in line['gaps'])})" if "gaps" in line else ""
        gap = f", {line['gap']:+.1f} %{spread}"
    return f"{told}{note}{gap}" if told else line["words"] + note


def utilisation(results: Results) -> str:
    """Of each codec: rounds as they were, and how much of the time peers computed."""
    bars = {(line["codec"], line["bar"]): line["value"] for line in results.of("bar") if "codec" in line}
    rows = []
    for codec, line in latest(results.of("round_s"), lambda one: one["codec"]).items():
        shares = ("utilisation", "utilisation_worst", "utilisation_with_free_cores")
        figures = [f"{bars[codec, name]:.3f}" for name in shares]
        blocking = [f"{bars[codec, 'blocking']:.2f}", f"{line['blocking_exactly']:.2f}"]
        rounds = [f"{line['steps_a_round']:.0f}", f"{line['round_s']} s", f"{line['exchange_s']} s"]
        rows.append([f"`{codec}`, {line['rounds']} rounds", *rounds, *figures, *blocking, "0.95"])
    head = ["codec", "steps of a fast peer in a round", "round", "exchange", "utilisation", "worst peer"]
    return table([*head, "with free cores", "blocking", "blocking, 30 steps", "goal"], rows)


SYSTEMS = ("potluck", "hivemind", "torchft")


def recoveries(results: Results) -> dict[str, dict[str, float]]:
    """Of each fault the median in each system: seconds, and of a join times its bound."""
    found: dict[str, dict[str, float]] = {"kill": {}, "hub kill": {}, "join over its bound": {}}
    for line in results.of("what"):
        for key, fault in (("kill_s", "kill"), ("kill", "kill"), ("hub_kill_s", "hub kill")):
            if line.get(key):
                took_s = [one["survivors_s"] if isinstance(one, dict) else one for one in line[key]]
                found[fault][line["what"]] = statistics.median(took_s)
        joins = line.get("joins") or line.get("join")
        if joins:
            took_s = [one["committed_s"] for one in joins]
            found["join over its bound"][line["what"]] = statistics.median(took_s) / JOIN_BOUND_S
    return found


def faults(results: Results) -> str:
    """Recovery times beside other systems."""
    what = {
        "kill": "SIGKILL of one of four in an exchange, until the survivors' next common round",
        "hub kill": "SIGKILL of the hub in an exchange, until the next commit",
        "join over its bound": "a joiner with 100 MB of state: the first round that it is in, over the "
        f"{JOIN_BOUND_S:.1f} s that the link needs for the state",
    }
    rows = []
    for fault, by_system in recoveries(results).items():
        unit = "" if "over" in fault else " s"
        digits = 1 if unit else 2
        cells = [f"{by_system[one]:.{digits}f}{unit}" if one in by_system else "–" for one in SYSTEMS]
        rows.append([what[fault], *cells])
    return table(["what", "Potluck", "hivemind 1.1.12", "torchft 0.2.0"], rows)


TABLES: dict[str, tuple[str, Callable[[Results], str]]] = {
    "exchange": ("allreduce", exchange),
    "exchange-cores": ("allreduce-cores", exchange),
    "presets": ("presets", presets),
    "systems": ("peers", systems),
    "ways": ("convergence", ways),
    "tuned": ("tuned", tuned),
    "utilisation": ("utilisation", utilisation),
    "faults": ("faults", faults),
}
"""By the name that the document has between its marks: which results, and what is made of them."""


def made(name: str, folder: Path = FOLDER) -> str:
    """A table and where it comes from."""
    source, make = TABLES[name]
    results = read(source, folder)
    return f"{make(results)}\n\n{results.source()}"
