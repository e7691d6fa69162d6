"""Figures of docs/benchmarks.md out of kept results; the same results give the same bytes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from bench.results import FOLDER, Results, latest, read
from bench.tables import CODECS, SYSTEMS, by_way, of_links, recoveries
from matplotlib.figure import Figure

SETTINGS: Any = {
    "svg.hashsalt": "potluck",  # ids of elements are random without
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
}

COLOURS = dict(zip(CODECS, ("#444444", "#7f7f7f", "#1f77b4", "#2ca02c", "#d62728"), strict=True))
OURS, THEIRS = "#1f77b4", "#b0b0b0"


def bars(
    axes: Any,
    names: Sequence[str],
    values: Sequence[float],
    ours: Sequence[bool],
    digits: int = 2,
    spans: Sequence[tuple[float, float]] = (),
) -> None:
    """One below the other, each with its figure and, if there are ``spans``, its least and greatest value."""
    places = range(len(names))
    spans = spans or [(value, value) for value in values]
    around = [(value - least, most - value) for value, (least, most) in zip(values, spans, strict=True)]
    axes.barh(places, values, color=[OURS if mine else THEIRS for mine in ours])
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    for place, value, (below, above) in zip(places, values, around, strict=True):
        if below or above:
            axes.errorbar(value, place, xerr=[[below], [above]], color="black", linewidth=0.8, capsize=2)
        axes.text(value + above, place, f" {value:.{digits}f}", va="center")


def presets(results: Results) -> Figure:
    """Groups of bars, one for each link; the bound of fp32 is a line."""
    links = {key: lines for key, lines in of_links(results).items() if "loopback" not in key[1]}
    figure = Figure((8, 0.8 + 0.62 * len(links)), layout="constrained")
    axes = figure.subplots()
    for index, codec in enumerate(CODECS):
        found = [(n, lines[codec]["over_bound"]) for n, lines in enumerate(links.values()) if codec in lines]
        places = [n + 0.16 * (index - 2) for n, _ in found]
        axes.barh(places, [over for _, over in found], 0.15, color=COLOURS[codec], label=codec)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(links)), [f"{peers} peers, {link}" for peers, link in links])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xticks([0.05, 0.1, 0.2, 0.5, 1, 2, 5], ["0.05", "0.1", "0.2", "0.5", "1", "2", "5"])
    axes.minorticks_off()
    axes.set_xlabel("time until all have applied a round, over the bound of fp32 on this link")
    axes.grid(axis="x", linewidth=0.3)
    axes.legend(ncols=len(CODECS), loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    return figure


def systems(results: Results) -> Figure:
    """The same case in each system, over the bound of fp32."""
    found = latest(results.of("applied_s"), lambda one: one["system"])
    over = {line["system"]: line["value"] for line in results.of("bar")}
    names = sorted((str(name) for name in found), key=lambda name: over[name])
    figure = Figure((7, 0.9 + 0.3 * len(names)), layout="constrained")
    axes = figure.subplots()
    bars(axes, names, [over[name] for name in names], [name.startswith("potluck") for name in names])
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xlabel("exchange of 25 million values, four peers, 100 Mbit/s, 20 ms, over the bound of fp32")
    return figure


def loss_bytes(results: Results) -> Figure:
    """Loss against what a peer sends, a line for each way and a point for each length of run."""
    figure = Figure((7, 3.6), layout="constrained")
    axes = figure.subplots()
    lines = [line for line in results.of("tuned") if "loss" in line and "bytes_up" in line]
    for case, marker in zip(dict.fromkeys(line["tuned"] for line in lines), "so^Dvx*", strict=False):
        mine = [line for line in lines if line["tuned"] == case]
        axes.plot(
            [line["bytes_up"] / 1e6 for line in mine],
            [line["loss"] for line in mine],
            marker=marker,
            linewidth=0.8,
            label=case,
        )
    axes.set_xscale("log")
    axes.set_xlabel("MB that a peer sends in the whole run")
    axes.set_ylabel("held-out loss, nats per token")
    axes.grid(linewidth=0.3)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def ways(results: Results) -> Figure:
    """Loss of each way to train together, from scratch and from a checkpoint: mean and range of the seeds."""
    panels: dict[str, dict[str, list[float]]] = {}
    for (start, case), seeds in by_way(results).items():
        if case != "untrained":
            panels.setdefault(start, {})[case] = [line["loss"] for line in seeds.values()]
    rows = max(len(cases) for cases in panels.values())
    figure = Figure((8, 0.9 + 0.3 * rows), layout="constrained")
    for axes, (start, cases) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        means = {case: statistics.fmean(losses) for case, losses in cases.items()}
        names = sorted(means, key=lambda case: means[case])
        spans = [(min(cases[name]), max(cases[name])) for name in names]
        ours = [name[0].isdigit() for name in names]
        bars(axes, names, [means[name] for name in names], ours, digits=3, spans=spans)
        axes.set_xlabel(f"held-out loss, from {'a ' if start == 'checkpoint' else ''}{start}")
    return figure


SHARES = {
    "utilisation": "all peers",
    "utilisation_worst": "worst peer",
    "utilisation_with_free_cores": "with free cores",
    "blocking": "if peers waited",
}


def utilisation(results: Results) -> Figure:
    """Compute over wall, of each codec."""
    shares = {(line["codec"], line["bar"]): line["value"] for line in results.of("bar") if "codec" in line}
    names, values, ours = [], [], []
    for codec in dict.fromkeys(codec for codec, _ in shares):
        for key, told in SHARES.items():
            names.append(f"{codec}: {told}")
            values.append(shares[codec, key])
            ours.append(key != "blocking")
    figure = Figure((7, 0.9 + 0.28 * len(names)), layout="constrained")
    axes = figure.subplots()
    bars(axes, names, values, ours, digits=3)
    axes.axvline(0.95, color="black", linewidth=0.8, linestyle="--")
    axes.set_xlabel("time that peers compute (dashed: the goal)")
    return figure


def faults(results: Results) -> Figure:
    """Recovery times, a panel for each fault."""
    found = {fault: by for fault, by in recoveries(results).items() if by}
    figure = Figure((8, 1.8), layout="constrained")
    for axes, (fault, by_system) in zip(
        figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True
    ):
        names = [one for one in SYSTEMS if one in by_system]
        bars(axes, names, [by_system[one] for one in names], [one == "potluck" for one in names])
        axes.set_title(fault, fontsize=9)
        axes.set_xlabel("times the bound" if "over" in fault else "s")
    return figure


FIGURES: dict[str, tuple[str, Callable[[Results], Figure]]] = {
    "exchange-links": ("presets", presets),
    "exchange-systems": ("peers", systems),
    "loss-bytes": ("tuned", loss_bytes),
    "loss-ways": ("convergence", ways),
    "utilisation": ("utilisation", utilisation),
    "recovery": ("faults", faults),
}
"""By the name of the file: which results, and what is drawn of them."""


def draw(name: str, target: Path, folder: Path = FOLDER) -> None:
    """Write one figure as SVG."""
    source, make = FIGURES[name]
    with mpl.rc_context(SETTINGS):
        figure = make(read(source, folder))
        figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None})
