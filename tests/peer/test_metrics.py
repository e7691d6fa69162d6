"""A peer's own metrics: on its disk whatever happens, and where its user wants them."""

from __future__ import annotations

import json
import logging
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from potluck.errors import UsageError
from potluck.peer.metrics import NAME, Metrics


def lines(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / NAME).read_text("utf-8").splitlines()]


class Kept:
    """A tracker as accelerate's are."""

    def __init__(self) -> None:
        self.said: list[tuple[dict[str, Any], int | None]] = []

    def log(self, values: dict[str, Any], step: int | None = None, **more: Any) -> None:
        self.said.append((values, step))


def test_each_line_says_when_where_and_what(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path)
    assert not (tmp_path / NAME).exists(), "who logs nothing has no file"
    metrics.step = 7
    metrics.log({"loss": 1.5, "note": "warm", "fine": True}, 3, 900, None)
    metrics.log({"loss": np.float32(0.5), "seen": np.int64(4)}, 4, 1000, 40)
    first, second = lines(tmp_path)  # at once, before it is closed
    assert first.pop("time") > 1.7e9
    assert first == {
        "round": 3,
        "step": 7,
        "tokens": 900,
        "values": {"loss": 1.5, "note": "warm", "fine": True},
    }
    assert (second["step"], second["values"]) == (40, {"loss": 0.5, "seen": 4})
    metrics.close()
    metrics.close()


def test_values_of_torch_and_what_is_no_number(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    metrics, kept = Metrics(tmp_path), Kept()
    metrics.track(kept, "run")
    metrics.log({"loss": torch.tensor(math.nan), "norm": torch.tensor([2.0]), "far": -math.inf}, 0, 0, 1)
    assert lines(tmp_path)[0]["values"] == {"loss": "nan", "norm": 2.0, "far": "-inf"}
    ((values, step),) = kept.said
    assert math.isnan(values["loss"])
    assert (values["norm"], values["far"], step) == (2.0, -math.inf, 1)
    for wrong, words in (
        ([1], "'x' to log is a list"),
        (torch.ones(2), "more than one value"),
        ({}, "a dict"),
    ):
        with pytest.raises(UsageError, match=words):
            metrics.log({"x": wrong}, 0, 0, None)
    assert len(lines(tmp_path)) == 1
    metrics.close()


def test_steps_go_on_counting_in_the_next_life(tmp_path: Path) -> None:
    assert Metrics(tmp_path).step == 0
    metrics = Metrics(tmp_path)
    metrics.log({}, 1, 1, 12)
    metrics.close()
    assert Metrics(tmp_path).step == 12
    with (tmp_path / NAME).open("a", encoding="utf-8") as file:
        file.write('{"time": 1, "ste')  # power went
    again = Metrics(tmp_path)
    assert again.step == 12
    again.log({"loss": 2.0}, 2, 2, 13)
    again.close()
    assert Metrics(tmp_path).step == 13
    last = (tmp_path / NAME).read_text("utf-8").splitlines()[-1]
    assert json.loads(last)["step"] == 13, "and the torn line spoils no other"


def test_what_fails_is_told_once_and_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def log(self, values: dict[str, Any], step: int | None = None) -> None:
            raise ConnectionError("no route to the tracker")

    (tmp_path / NAME).mkdir()
    metrics, kept = Metrics(tmp_path), Kept()
    metrics.track(Broken(), "run")
    metrics.track(kept, "run")
    with caplog.at_level(logging.WARNING, "potluck"):
        for step in (1, 2):
            metrics.log({"loss": 1.0}, 0, 0, step)
    assert [step for _, step in kept.said] == [1, 2]
    disk, tracker = (record.getMessage() for record in caplog.records)
    assert disk.startswith("metrics can't be written to")
    assert tracker == "Broken does not take metrics: ConnectionError: no route to the tracker"


def test_a_tracker_by_name_is_accelerates(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    metrics = Metrics(tmp_path)
    metrics.track("tensorboard", "shakespeare")
    for step in (1, 2):
        metrics.log({"loss": 3.0 / step}, 0, 0, step)
    metrics.close()
    written = EventAccumulator(str(tmp_path / "tensorboard" / "shakespeare"))
    written.Reload()
    assert [(e.step, e.value) for e in written.Scalars("loss")] == [(1, 3.0), (2, 1.5)]
    assert len(lines(tmp_path)) == 2


def test_a_tracker_may_speak_through_accelerates_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accelerate = pytest.importorskip("accelerate")

    class Speaks(accelerate.tracking.GeneralTracker):  # type: ignore[misc, name-defined]
        """As those of W&B and trackio do."""

        name, requires_logging_directory, tracker = "speaks", False, None
        main_process_only = False

        def __init__(self, run_name: str) -> None:
            super().__init__()
            self.said: list[object] = [run_name]

        def start(self) -> None:
            accelerate.logging.get_logger("speaks").debug("here")

        def log(self, values: dict[str, Any], step: int | None = None, **more: Any) -> None:
            self.said.append((values, step))

        def finish(self) -> None:
            self.said.append("finished")

    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "speaks", Speaks)
    accelerate.PartialState._reset_state()
    metrics = Metrics(tmp_path)
    metrics.track("speaks", "shakespeare")
    [made] = metrics._made
    metrics.log({"loss": 1.0}, 0, 0, 3)
    metrics.close()
    assert made.said == ["shakespeare", ({"loss": 1.0}, 3), "finished"]


def test_a_tracker_that_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = Metrics(tmp_path)
    with pytest.raises(UsageError, match="int is no tracker"):
        metrics.track(3, "run")  # type: ignore[arg-type]
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "accelerate", None)
        with pytest.raises(UsageError, match="pip install accelerate wandb"):
            metrics.track("wandb", "run")
    pytest.importorskip("accelerate")
    with pytest.raises(UsageError, match="no tracker 'nonsense'; it has"):
        metrics.track("nonsense", "run")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "wandb", None)
        with pytest.raises(UsageError, match="wandb is not installed: pip install wandb"):
            metrics.track("wandb", "run")
