"""Kept results, and that the benchmarks' document says what they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bench import heading, plots
from bench.results import BadResults, latest, read
from bench.tables import TABLES, made

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
FIGURES = ROOT / "docs" / "figures"
HEAD = {"run": "python -m bench.x", "machine": "2 cores of it", "date": "2026-11-27"}


def keep(folder: Path, name: str, *lines: dict[str, Any]) -> None:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")


def test_a_benchmark_first_says_what_it_is(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    heading.head(["--only", "one case"])
    line = json.loads(capsys.readouterr().out)
    assert set(line) == {"run", "machine", "date"}
    assert line["run"].endswith(" --only 'one case'")
    assert "cores of" in line["machine"]
    told = tmp_path / "cpuinfo"
    told.write_text("processor\t: 0\nmodel name\t: Deep Thought: 2\n", "utf-8")
    assert heading.processor(told) == "Deep Thought: 2"
    assert heading.processor(tmp_path / "none")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"bar": "a"}\n', "x.jsonl:1: no line above says"),
        ('{"run": "a", "machine": "b"}\n', "x.jsonl:1: a line with run lacks"),
        (json.dumps(HEAD) + "\nsaid what it should not\n", "x.jsonl:2: not JSON"),
        (json.dumps(HEAD) + "\n7\n", "x.jsonl:2: not a JSON object"),
    ],
)
def test_results_that_say_too_little_are_refused(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "x.jsonl").write_text(text, "utf-8")
    with pytest.raises(BadResults, match=told):
        read("x", tmp_path)


def test_results_that_are_not_there_are_missed(tmp_path: Path) -> None:
    with pytest.raises(BadResults, match=r"x\.jsonl can't be read"):
        read("x", tmp_path)


def test_of_two_results_about_the_same_the_later_counts(tmp_path: Path) -> None:
    keep(
        tmp_path,
        "x",
        HEAD,
        {"a": 1, "b": 1},
        {"a": 2, "b": 2},
        HEAD | {"date": "2026-11-28"},
        {"a": 1, "b": 3},
    )
    found = read("x", tmp_path)
    assert latest(found.of("b"), lambda line: line["a"]) == {1: {"a": 1, "b": 3}, 2: {"a": 2, "b": 2}}
    assert found.source().endswith("2 cores of it; 2026-11-27, 2026-11-28.")


def test_a_table_of_links_has_a_row_for_each_and_gaps_for_what_was_not_measured(tmp_path: Path) -> None:
    def line(preset: str, codec: str, **changed: Any) -> dict[str, Any]:
        found = {"preset": preset, "codec": codec, "peers": 4, "mbit": [50.0], "one_way_ms": [20.0]}
        return found | {"applied_s": 3.0, "over_bound": 1.5, "load": 1.0} | changed

    nothing = {"mbit": [0.0], "one_way_ms": [0.0], "load": 2.0}
    loopback = line("loopback", "int8", **nothing)
    del loopback["over_bound"]
    keep(tmp_path, "presets", HEAD, loopback, line("a", "fp32"), line("a", "topk", load=1.2))
    found = made("presets", tmp_path).splitlines()
    assert found[2] == "| 4 | 50 Mbit/s, 20 ms | 2 s | 3.00 s, 1.50 | | | | 3.00 s, 1.50 | 1.0–1.2 |"
    assert found[3] == "| 4 | loopback | – | | | 3.00 s | | | 2.0 |"


def way(case: str, start: str, losses: list[float], sent: float = 2.5e6) -> list[dict[str, Any]]:
    """A line for each seed."""
    return [
        {"case": case, "seed": seed, "start": start, "loss": loss, "bytes_up": sent}
        for seed, loss in enumerate(losses)
    ]


def test_other_ways_are_compared_with_data_parallelism_from_the_same_start(tmp_path: Path) -> None:
    ours = way("ours", "checkpoint", [3.3])
    bases = *way("data_parallel", "scratch", [4.0]), *way("data_parallel", "checkpoint", [3.0])
    keep(tmp_path, "convergence", HEAD, *way("untrained", "scratch", [7.0], 0), *ours, *bases)
    assert made("ways", tmp_path).splitlines()[2:7] == [
        "| `untrained` | – | 7.000 ¹ | |",
        "| `ours` | 2.5 MB | | 3.300 ¹, +10.0 % |",
        "| `data_parallel` | 2.5 MB | 4.000 ¹ | 3.000 ¹ |",
        "",
        "¹ one seed.",
    ]


def test_ways_are_compared_seed_by_seed(tmp_path: Path) -> None:
    bases = way("data_parallel", "scratch", [4.0, 5.0, 4.0])
    ours = way("ours", "scratch", [4.4, 5.0, 4.2])
    keep(tmp_path, "convergence", HEAD, *bases, *ours)
    found = made("ways", tmp_path).splitlines()
    assert found[2:4] == [
        "| `data_parallel` | 2.5 MB | 4.333 | |",
        "| `ours` | 2.5 MB | 4.533, +5.0 % (+0.0 to +10.0) | |",
    ]
    assert "¹" not in "".join(found)


def test_a_way_measured_elsewhere_with_one_seed_is_marked_and_its_machine_named(tmp_path: Path) -> None:
    other = HEAD | {"machine": "4 cores of another", "note": "late is of the latter."}
    bases = way("data_parallel", "scratch", [4.0, 5.0])
    keep(tmp_path, "convergence", HEAD, *bases, other, *way("late", "scratch", [4.4]))
    found = made("ways", tmp_path).splitlines()
    assert found[3] == "| `late` | 2.5 MB | 4.400 ¹, +10.0 % | |"
    assert "¹ one seed." in found
    assert found[-1].endswith(": 2 cores of it and 4 cores of another; 2026-11-27. late is of the latter.")


def test_a_way_has_one_bar_at_the_mean_with_the_range_of_its_seeds(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from bench import figures

    ours, alone = way("ours", "scratch", [4.4, 5.0, 4.4]), way("alone", "scratch", [4.5])
    keep(tmp_path, "convergence", HEAD, *way("untrained", "scratch", [7.0]), *ours, *alone)
    (axes,) = figures.ways(read("convergence", tmp_path)).axes
    assert [told.get_text() for told in axes.get_yticklabels()] == ["alone", "ours"]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([4.5, 4.6])
    (ranges,) = axes.collections
    ((least, most),) = ranges.get_segments()
    assert (least[0], most[0]) == pytest.approx((4.4, 5.0))


def test_the_document_says_what_the_results_say() -> None:
    page = PAGE.read_text("utf-8")
    assert {found[1] for found in plots.MARKED.findall(page)} == set(TABLES)
    assert plots.filled(page) == page, "run make plots"


def test_a_mark_without_a_table_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "benchmarks.md").write_text("<!-- generated: nonsense -->\n<!-- end -->\n", "utf-8")
    assert plots.main(["--docs", str(tmp_path)]) == 1
    assert "no table is called nonsense" in capsys.readouterr().err


def test_figures_are_what_the_results_give(tmp_path: Path) -> None:
    """The same bytes, with the version of matplotlib that draws them."""
    matplotlib = pytest.importorskip("matplotlib")
    wanted = f"matplotlib=={matplotlib.__version__}"
    if wanted not in (ROOT / "constraints.txt").read_text("utf-8").splitlines():
        pytest.skip(f"{wanted} is not the one that drew the figures")
    from bench import figures

    assert {path.stem for path in FIGURES.iterdir()} == set(figures.FIGURES)
    page = PAGE.read_text("utf-8")
    for name in figures.FIGURES:
        figures.draw(name, tmp_path / name)
        assert (tmp_path / name).read_bytes() == (FIGURES / f"{name}.svg").read_bytes(), (
            f"{name}: run make plots"
        )
        assert f"(figures/{name}.svg)" in page
