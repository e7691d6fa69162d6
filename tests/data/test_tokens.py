import os
import subprocess
import sys
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from potluck.data.tokens import (
    END,
    bits_per_byte,
    heldout_batches,
    pack,
    read_tokenizer,
    token_kind,
    train_tokenizer,
    windows,
)
from potluck.errors import CorruptData, RecipeError

TEXTS = [("one", "the cat sat on the mat\n" * 50), ("two", "a naïve café – 東京 🙂\n" * 50)]
TOKENIZER = train_tokenizer(TEXTS, 400)
TRAIN = """
import sys
from potluck.data.tokens import train_tokenizer
texts = [(str(n), " ".join(f"w{n * i % 97} {i * i % 89}" for i in range(2000))) for n in range(20)]
sys.stdout.buffer.write(train_tokenizer(texts, 600))
"""


def decoded(tokens: np.ndarray) -> str:
    return str(read_tokenizer(TOKENIZER).decode(tokens.tolist()))


def test_training_gives_the_same_bytes_on_any_number_of_threads() -> None:
    made = [
        subprocess.run(
            [sys.executable, "-c", TRAIN],
            env={**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            check=True,
            timeout=60,
        ).stdout
        for threads in ("1", "2", "7")
    ]
    assert made[0] == made[1] == made[2]
    assert len(made[0]) > 1000


def test_the_vocabulary_has_the_end_first_and_every_byte() -> None:
    tokenizer = read_tokenizer(TOKENIZER)
    assert tokenizer.get_vocab_size() <= 400
    assert tokenizer.token_to_id(END) == 0
    raw = "".join(chr(code) for code in range(1, 0x800))
    assert tokenizer.decode(tokenizer.encode(raw).ids) == raw


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=100))
def test_any_text_comes_back_from_its_tokens(text: str) -> None:
    assert decoded(pack(TOKENIZER, [("any", text)])) == text


def test_documents_end_with_the_end() -> None:
    tokens = pack(TOKENIZER, [("a", "the cat"), ("b", "the mat")], end=0)
    assert tokens.dtype == np.uint16
    assert (tokens == 0).sum() == 2
    assert tokens[-1] == 0
    assert decoded(tokens) == "the catthe mat"
    assert len(pack(TOKENIZER, [])) == 0


def test_a_text_that_spells_the_end_does_not_end() -> None:
    tokens = pack(TOKENIZER, [("a", f"the cat{END} sat")])
    assert 0 not in tokens
    assert decoded(tokens) == f"the cat{END} sat"


def test_long_text_is_cut_at_lines_and_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("potluck.data.tokens._PIECE", 64)
    for text in (TEXTS[0][1], "x" * 1000, "\n" * 200, TEXTS[1][1] + "y" * 200 + TEXTS[0][1]):
        assert decoded(pack(TOKENIZER, [("long", text)])) == text


@pytest.mark.parametrize("raw", [b"", b"{}", b"\xff", TOKENIZER[:-1], b'{"model": 3}'])
def test_bytes_that_are_no_tokenizer(raw: bytes) -> None:
    with pytest.raises(CorruptData, match=r"tokenizer\.json"):
        read_tokenizer(raw)


def test_the_kind_of_tokens() -> None:
    assert token_kind(1024) is np.uint16
    assert token_kind(1 << 16) is np.uint16
    assert token_kind((1 << 16) + 1) is np.uint32


def test_windows_are_runs_of_the_text_from_anywhere() -> None:
    tokens = np.arange(50, dtype=np.uint16)
    starts = set()
    for batch in islice(windows(tokens, 8, 4, np.random.default_rng(1)), 200):
        assert batch.shape == (4, 8)
        assert batch.dtype == np.int64
        assert (np.diff(batch, axis=1) == 1).all()
        starts |= set(batch[:, 0].tolist())
    assert starts == set(range(43))


def test_windows_follow_their_seed() -> None:
    tokens = np.arange(1000, dtype=np.uint16)

    def first(seed: int) -> list[list[int]]:
        batch: list[list[int]] = next(windows(tokens, 8, 4, np.random.default_rng(seed))).tolist()
        return batch

    assert first(1) == first(1)
    assert first(1) != first(2)


def test_heldout_windows_cover_the_text_once() -> None:
    tokens = np.arange(103, dtype=np.uint32)
    batches = list(heldout_batches(tokens, 10, 4))
    assert [batch.shape for batch in batches] == [(4, 10), (4, 10), (2, 10)]
    assert np.concatenate(batches).ravel().tolist() == list(range(100))


def test_too_few_tokens_for_a_window() -> None:
    tokens = np.arange(7, dtype=np.uint16)
    with pytest.raises(RecipeError, match="fewer than a window of 8"):
        next(windows(tokens, 8, 1, np.random.default_rng(0)))
    with pytest.raises(RecipeError, match="fewer than a window of 8"):
        next(iter(heldout_batches(tokens, 8, 1)))


def test_bits_per_byte_of_an_even_guess_among_bytes() -> None:
    assert bits_per_byte(float(np.log(256)), tokens=10, size=10) == pytest.approx(8)
    assert bits_per_byte(float(np.log(256)), tokens=10, size=20) == pytest.approx(4)
