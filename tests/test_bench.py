"""The convergence benchmark: its short form, and its peers against a swarm in plain torch."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from bench import allreduce, baselines, busy, convergence, demo_recipe  # noqa: E402
from bench.checkpoint import Checkpoints, vectors  # noqa: E402
from bench.convergence import LATE_STEPS, Case, Drifted, Swarm, measure  # noqa: E402
from bench.peers import allreduce as others  # noqa: E402

from potluck.codecs import CODECS  # noqa: E402
from potluck.data.assets import build_assets  # noqa: E402
from potluck.peer.trainer import Trainer  # noqa: E402
from potluck.recipe import Inner, Outer, Recipe  # noqa: E402
from potluck.tasks import task  # noqa: E402
from potluck.wire.records import Commit  # noqa: E402
from tests.tiny import RECIPE as TINY  # noqa: E402
from tests.tiny import write_text  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[1]
STEP_TOKENS = 4 * 32
ROUND_STEPS = 6
RECIPE = replace(TINY, rounds=replace(TINY.rounds, tokens=4 * ROUND_STEPS * STEP_TOKENS))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def assets(base: Path) -> dict[str, bytes]:
    return build_assets(RECIPE, base=base)


def with_codec(codec: str, **changes: Any) -> Recipe:
    return replace(RECIPE, rounds=replace(RECIPE.rounds, codec=codec), **changes)


def lines_of(text: str, key: str) -> dict[str, dict[str, Any]]:
    lines = [json.loads(line) for line in text.splitlines()]
    return {line[key]: line for line in lines if key in line}


def run_bench(*arguments: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
    """A benchmark as its users start it, which must end well."""
    done = subprocess.run(
        [sys.executable, *arguments, "--bar"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stdout}\n{done.stderr}"
    return done


def test_what_a_round_costs_grows_with_the_root_of_the_swarm() -> None:
    done = run_bench("-m", "bench.scale", "--peers", "40", "--rounds", "1", timeout_s=120)
    groups = lines_of(done.stdout, "bar")
    flat = lines_of(
        run_bench("-m", "bench.scale", "--peers", "40", "--rounds", "1", "--flat", timeout_s=120).stdout,
        "bar",
    )
    assert flat["most_connections"]["value"] == 39
    assert groups["most_connections"]["value"] < 20
    assert groups["messages_a_peer"]["value"] < 12


def test_what_each_codec_costs_and_loses() -> None:
    done = run_bench("-m", "bench.codec", "--quick", timeout_s=120)
    lines, found = lines_of(done.stdout, "codec"), lines_of(done.stdout, "bar")
    assert list(lines) == list(CODECS)
    figures = ("encode_s", "decode_s", "bits", "lost")
    assert set(found) == {f"{figure}_{name}" for name in CODECS for figure in figures}
    bits = [found[f"bits_{name}"]["value"] for name in ("fp32", "bf16", "int8", "int4", "topk")]
    assert bits == pytest.approx([26.68, 10.68, 8.031, 4.25, 0.156], abs=0.01)
    lost = [found[f"lost_{name}"]["value"] for name in ("fp32", "bf16", "int8", "int4", "topk")]
    assert lost == pytest.approx([0, 0.0017, 0.0079, 0.1076, 0.9387], abs=0.001)
    assert all(line["value"] >= 0 for line in found.values())


def test_one_link_of_an_exchange_can_be_thin_and_its_own_contribution_is_the_measure() -> None:
    thin = allreduce.Case(values=5_000_000).thinner()
    assert [link.up_mbit for link in thin.of_peers] == [100.0, 100.0, 100.0, 10.0]
    assert [link.down_mbit for link in thin.of_peers] == [100.0, 100.0, 100.0, 10.0]
    assert thin.own_s("fp32") == 16.0
    assert thin.own_s("int8") == pytest.approx(4.02, abs=0.01)
    with pytest.raises(SystemExit, match="needs emulated links"):
        allreduce.main(["--thin", "--loopback"])


@pytest.mark.integration
def test_an_exchange_of_two_real_peers_is_measured() -> None:
    done = run_bench("-m", "bench.allreduce", "--quick", "--codec", "int8", timeout_s=120)
    (line,) = lines_of(done.stdout, "codec").values()
    assert line["peers"] == 2
    assert 0 < line["commit_s"] < line["applied_s"] < 30
    assert set(lines_of(done.stdout, "bar")) == {"int8_loopback_s"}


def test_what_an_exchange_takes_from_a_loop_is_counted_by_whole_intervals() -> None:
    counts = [(float(at), turns) for at, turns in enumerate([0, 100, 200, 250, 300, 400, 500, 550, 600])]
    windows = [(2.0, 4.0), (6.0, 8.0)]
    assert busy.shares(counts, windows) == 0.5
    assert busy.shares([(at + 0.5, turns) for at, turns in counts], windows) == 0.5  # some lie across an edge


@pytest.mark.integration
def test_an_exchange_beside_a_loop_that_holds_the_interpreter_is_measured() -> None:
    done = run_bench("-m", "bench.busy", "--quick", "--only", "thread", timeout_s=120)
    (line,) = [json.loads(line) for line in done.stdout.splitlines()]
    assert line["case"] == "thread"
    assert 0 < line["commit_s"] < line["applied_s"] < 30
    assert 0 < line["training"] < 3


def test_bits_of_a_parameter_and_step_are_counted() -> None:
    """A peer sends its part of the contributions, and as a reducer as much again."""
    done = run_bench("-m", "bench.bits", "--quick", timeout_s=120)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    told = {line["peers"]: line for line in lines if "bits" in line}
    assert set(told) == {4, 20}
    for peers, line in told.items():
        least = (peers - 1) / peers * 0.156 / 30
        assert least < line["contribution"] < 1.2 * least
        assert least < line["result"] < 1.5 * least  # with tallies, which weigh more in small parts
        assert line["contribution"] + line["result"] < line["up"] == line["down"]
    bars = [(line["bar"], line["peers"], line["unit"]) for line in lines if "bar" in line]
    wanted = (("bits_up", "bit"), ("bits_down", "bit"), ("bytes_ratio", "ratio"))
    assert bars == [(name, peers, unit) for peers in (4, 20) for name, unit in wanted]


@pytest.mark.integration
def test_utilisation_of_two_real_peers_is_measured() -> None:
    done = run_bench("-m", "bench.utilisation", "--quick", timeout_s=170)
    bars = lines_of(done.stdout, "bar")
    shares = ("utilisation", "utilisation_worst", "utilisation_with_free_cores", "blocking")
    assert set(bars) == {*shares, "bits_up", "bits_down", "bytes_ratio"}
    assert all(0 < bars[name]["value"] < 1.02 for name in shares)
    peers = lines_of(done.stdout, "peer")
    assert {name: round(1000 * one["compute_s"] / one["steps"]) for name, one in peers.items()} == {
        "p1": 50,
        "p2": 200,
    }
    for one in peers.values():
        assert one["compute_s"] + one["boundary_s"] + one["late_s"] == pytest.approx(one["wall_s"], abs=0.01)
    (bits,) = lines_of(done.stdout, "bits").values()
    assert 0 < bits["contribution"] + bits["result"] < bits["up"]
    assert bits["up"] == pytest.approx(bits["down"], rel=0.5)


def test_rounds_of_another_system_count_if_all_were_in_them() -> None:
    def said(*rounds: tuple[float, float, int]) -> Any:
        told: list[dict[str, Any]] = []
        for start, end, members in rounds:
            told += [
                {"at": start, "exchanging": True},
                {"at": end, "committed": True, "members": members, "took_s": end - start + 5},
            ]
        return SimpleNamespace(said=told)

    one = said((1.0, 3.0, 2), (10.0, 12.0, 1), (20.0, 22.0, 2))
    other = said((1.5, 3.5, 2), (20.5, 21.0, 2))
    assert others.whole([one, other], 2) == [(2.5, 7.0), (2.0, 7.0)]
    assert others.whole([one, said((30.0, 31.0, 2))], 2) == []


@pytest.mark.integration
@pytest.mark.timeout(300)
def test_short_form() -> None:
    done = run_bench("-m", "bench.convergence", "--quick", timeout_s=280)
    cases, summaries = lines_of(done.stdout, "case"), lines_of(done.stdout, "summary")
    here = [case for case in convergence.CASES if case.name in convergence.SHORT]
    names = {case.name for case in here}
    assert set(cases) == set(summaries) == {"untrained"} | names
    start = cases.pop("untrained")["loss"]
    for case in here:
        line = cases[case.name]
        assert set(line) == {field.name for field in fields(convergence.Result)}
        assert line["start"] == "scratch"
        assert (line["bytes_up"] > 0) == (case.peers > 1)
        assert line["tokens"] == convergence.QUICK_TOKENS / case.share
        # In two rounds topk sends one value in 32.
        assert line["loss"] < (1.0 if case.codec == "topk" else 0.95) * start
    rounds = {n for n in names if "peer" in n}
    assert {name for name, line in cases.items() if line["rounds"] == 2} == rounds
    assert cases["1_peer_fp32"]["loss"] == pytest.approx(cases["plain"]["loss"], rel=1e-3)
    assert summaries["4_peers_int8"]["loss"] == cases["4_peers_int8"]["loss"]
    found = lines_of(done.stdout, "bar")
    ratios, gaps = ({name for name, _, _ in which} for which in (convergence.BARS, convergence.GAPS))
    assert set(found) == ratios | gaps
    for name, line in found.items():
        assert set(line) == {"bar", "value", "unit"}
        assert line["unit"] == "ratio"
        assert 0.5 < line["value"] + (name in gaps) < 2


def test_a_tuned_case_has_its_own_constants_and_cools_down(assets: dict[str, bytes]) -> None:
    """The learning rate falls with each commit."""
    tuned = convergence.Tuned(
        Inner("muon", lr=1e-2, warmup_steps=4, cooldown=1.0), Outer("nesterov", 0.7, 0.6), 2 * 3072
    )
    case = Case("tuned", peers=4, tuned=tuned)
    recipe = convergence.recipe_of(case, 0, 7 * 3072, RECIPE)
    assert (recipe.inner, recipe.outer, recipe.rounds.tokens) == (tuned.inner, tuned.outer, 2 * 3072)
    assert recipe.end.tokens == 6 * 3072
    swarm, rates = Swarm(task(recipe, assets), 4, seed=0), []
    for _ in range(3):
        swarm.round()
        (rate,) = {group["lr"] for peer in swarm.peers for group in peer.optimizer.param_groups}
        rates.append(rate)
    assert rates == pytest.approx([1e-2, 1e-2 * 2 / 3, 1e-2 / 3])
    assert swarm.done == 1


def test_data_parallelism_is_one_optimizer_and_the_mean_of_gradients(assets: dict[str, bytes]) -> None:
    """The same weights as when each peer's gradient is taken by itself and the mean is stepped on."""
    lm, seeds, steps = task(RECIPE, assets), [1, 2, 3], 4
    model = lm.model()
    optimizer, streams = lm.optimizer(model), [lm.random_batches(seed) for seed in seeds]
    for _ in range(steps):
        for stream in streams:
            (model(**next(stream)).loss / len(seeds)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), RECIPE.inner.clip)
        optimizer.step()
        optimizer.zero_grad()
    found = baselines.data_parallel(lm, seeds, steps)
    assert found.loss == pytest.approx(lm.evaluate(model)[0], rel=1e-5)
    assert found.tokens == steps * len(seeds) * STEP_TOKENS
    assert found.bytes_up == pytest.approx(steps * 2 * 2 / 3 * 4 * baselines.size(model))


def test_averaging_without_delay_is_where_all_peers_meet(assets: dict[str, bytes]) -> None:
    """One round of one step: the mean of what each made of the first weights."""
    one_step = replace(RECIPE, rounds=replace(RECIPE.rounds, tokens=2 * STEP_TOKENS))
    lm, ends = task(one_step, assets), []
    for seed in (1, 2):
        model = lm.model()
        convergence.train_plainly(lm, model, 1, seed)
        ends.append(vectors(model).read())
    judge = lm.model()
    vectors(judge).write((ends[0] + ends[1]) / 2)
    found = baselines.blocking(lm, [1, 2], 1, baselines.AVERAGING)
    assert found.loss == pytest.approx(lm.evaluate(judge)[0], rel=1e-6)
    stronger = baselines.blocking(lm, [1, 2], 1, baselines.DILOCO)
    assert abs(stronger.loss - found.loss) > 1e-4


def test_every_method_goes_on_from_a_checkpoint(assets: dict[str, bytes], tmp_path: Path) -> None:
    """It is made once. Who learns next to nothing stays where it is."""
    tokens = RECIPE.rounds.tokens
    still = replace(RECIPE, inner=replace(RECIPE.inner, lr=1e-9))
    kept = Checkpoints(tmp_path, tokens)
    first = kept.of(RECIPE, assets, 0)
    (file,) = tmp_path.iterdir()
    written = file.stat().st_mtime_ns
    assert np.array_equal(kept.of(RECIPE, assets, 0), first)
    assert file.stat().st_mtime_ns == written
    origin = convergence.Origin(first, quick=True)
    start = convergence.untrained(0, RECIPE, assets, origin)
    assert start.start == "checkpoint"
    assert start.loss < 0.9 * convergence.untrained(0, RECIPE, assets).loss
    for case in convergence.CASES:
        if case.method != "torchft":
            found = measure(replace(case, tuned=None), 0, tokens, still, assets, origin)
            assert found.loss == pytest.approx(start.loss, rel=1e-4), case.name
            assert found.start == "checkpoint"


@pytest.mark.parametrize("outer", [Outer("average"), Outer("nesterov", 0.7, 0.9)], ids=lambda o: str(o.kind))
def test_four_peers_are_a_plain_swarm(assets: dict[str, bytes], outer: Outer) -> None:
    """Without loss in the codec, parts, reducers, commits and carries are the mean of plain torch."""
    lm = task(with_codec("fp32", outer=outer), assets)
    swarm = Swarm(lm, 4, seed=0)
    setting = demo_recipe.Setting(
        "plain", outer=outer, round_tokens=RECIPE.rounds.tokens, late_steps=LATE_STEPS
    )
    plain = demo_recipe.Swarm(lm, setting)
    for index, peer in enumerate(plain.peers):
        peer.batches = lm.random_batches(convergence.data_seed(0, index))
    before = swarm.theta.copy()
    for _ in range(3):
        swarm.round()
        plain.round()
    expected = torch.cat([weight.reshape(-1) for weight in plain.theta]).numpy()
    assert swarm.tokens == plain.tokens == 3 * RECIPE.rounds.tokens
    assert np.abs(expected - before).max() > 0.05
    assert np.abs(swarm.theta - expected).max() < 1e-4


def test_a_late_result_costs_no_progress(assets: dict[str, bytes]) -> None:
    """One peer alone, fp32: every carry puts it where it stood, so the run is the plain loop."""
    tokens = 3 * RECIPE.rounds.tokens
    plain = measure(Case("plain"), 1, tokens, RECIPE, assets)
    alone = measure(Case("alone", peers=1, codec="fp32"), 1, tokens, RECIPE, assets)
    assert (alone.tokens, alone.rounds) == (tokens, 3)
    assert alone.tokens == plain.tokens
    assert alone.loss == pytest.approx(plain.loss, rel=1e-3)


@pytest.mark.parametrize(
    "case",
    [
        Case("int8", peers=4),
        Case("fp32", peers=4, codec="fp32"),
        Case("mixing", peers=4, mix=0.5),
        Case("fragments", peers=4, fragments=2),
        Case("mixing fragments", peers=4, fragments=2, mix=0.5),
    ],
    ids=lambda case: case.name,
)
def test_peers_stay_identical_and_learn(assets: dict[str, bytes], case: Case) -> None:
    lm = task(convergence.recipe_of(case, 0, 10**9, RECIPE, quick=True), assets)
    swarm, judge = Swarm(lm, 4, seed=2, late=case.late), lm.model()
    start, _ = lm.evaluate(judge)
    for _ in range(4):
        swarm.round()
    # Of fragments the last round's is in one only, and each token in it counts half.
    assert swarm.trained == 4 * RECIPE.rounds.tokens
    assert swarm.tokens == (4 if case.fragments == 1 else 3.5) * RECIPE.rounds.tokens
    assert len({peer.digest for peer in swarm.peers}) == 1
    locals_ = {peer.trainer.read().tobytes() for peer in swarm.peers}
    assert len(locals_) == 4, "between rounds each peer has trained on its own text"
    Trainer(judge, swarm.peers[0].handover).write(swarm.theta)
    assert lm.evaluate(judge)[0] < 0.8 * start


def test_peers_that_wait_for_the_result_go_on_from_the_same_state(assets: dict[str, bytes]) -> None:
    swarm = Swarm(task(RECIPE, assets), 4, seed=2, late=0)
    for _ in range(2):
        swarm.round()
        assert {peer.trainer.read().tobytes() for peer in swarm.peers} == {swarm.theta.tobytes()}
    assert swarm.tokens == swarm.trained == 2 * RECIPE.rounds.tokens


@pytest.mark.parametrize(("fragments", "steps"), [(1, 22), (2, 11), (4, 6)])
def test_rounds_of_fragments_are_as_many_times_shorter_in_whole_steps(fragments: int, steps: int) -> None:
    case = Case("some", peers=4, fragments=fragments, mix=0.25)
    recipe = convergence.recipe_of(case, 0, 10**6, convergence.DEMO)
    assert -(-recipe.rounds.tokens // (4 * 8 * 128)) == steps
    assert (recipe.rounds.fragments, recipe.rounds.overlap, recipe.rounds.mix) == (fragments, "mix", 0.25)


def test_a_drifted_peer_ends_the_benchmark(
    base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    honest = convergence.Peer.apply

    def apply(peer: convergence.Peer, commit: Commit) -> None:
        honest(peer, commit)
        assert peer.state.plane is not None
        if commit.round == 2 and peer.index == 3:
            theta = peer.state.plane.theta
            theta[-1:] = np.nextafter(theta[-1:], np.float32(np.inf))

    monkeypatch.setattr(convergence.Peer, "apply", apply)
    monkeypatch.setattr(convergence, "QUICK", RECIPE)
    monkeypatch.chdir(base)
    tokens = str(3 * RECIPE.rounds.tokens)
    assert convergence.main(["--quick", "--tokens", tokens, "--only", "4_peers_int8"]) == 1
    assert "after round 2 the peers' states differ" in capsys.readouterr().err


def test_a_peer_gone_nan_ends_the_benchmark(assets: dict[str, bytes]) -> None:
    swarm = Swarm(task(RECIPE, assets), 4, seed=0)
    with torch.no_grad():
        next(swarm.peers[1].model.parameters()).fill_(float("nan"))
    with pytest.raises(Drifted, match="peer 1"):
        swarm.round()


def test_rounds_shorter_than_an_exchange_are_refused(assets: dict[str, bytes]) -> None:
    short = replace(RECIPE, rounds=replace(RECIPE.rounds, tokens=4 * (LATE_STEPS - 1) * STEP_TOKENS))
    with pytest.raises(ValueError, match="3 inner steps"):
        Swarm(task(short, assets), 4, seed=0)


def test_ratios_are_taken_seed_by_seed() -> None:
    rows = [("a", 0, 2.0), ("b", 0, 4.0), ("a", 1, 3.0), ("b", 1, 3.0), ("a", 2, 9.0)]
    results = [convergence.Result(case, seed, 1, 1, loss, 1.0) for case, seed, loss in rows]
    assert convergence.ratios(results, "b", "a") == [2.0, 1.0]
