"""Text to tokens, and tokens to batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from potluck.data.text import Texts
from potluck.errors import CorruptData, RecipeError

END = "<|end|>"
"""Ends every document, for tokenizers that are trained here."""

MASK = "<|mask|>"
"""Stands for a token that is to be told, in those for masked language models."""

Tokens = npt.NDArray[np.unsignedinteger[Any]]
Batch = npt.NDArray[np.int64]

_PIECE = 1 << 20


def train_tokenizer(texts: Texts, vocab: int, special: tuple[str, ...] = (END,)) -> bytes:
    """A byte-level BPE with at most ``vocab`` tokens, ``special`` ones first, as bytes of a tokenizer.json.

    The same texts in the same order give the same bytes, on any number of threads.
    Source: Sennrich et al., arXiv 1508.07909; on bytes as in GPT-2.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=list(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((piece for _, text in texts for piece in _pieces(text)), trainer)
    return str(tokenizer.to_str()).encode()


def read_tokenizer(tokenizer_json: bytes) -> Any:
    """The ``tokenizers.Tokenizer`` of these bytes.

    Raises:
        CorruptData: they are none.
    """
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(tokenizer_json.decode())
    except Exception as error:
        if type(error) not in (Exception, UnicodeDecodeError):
            raise  # the library's own errors are of no narrower class than Exception
        raise CorruptData(f"tokenizer.json is not a tokenizer: {error}") from error


def pack(tokenizer_json: bytes, texts: Texts, end: int | None = None) -> Tokens:
    """All documents as one row of tokens, each followed by the token ``end`` if there is one.

    Text is tokenized in pieces of about a million characters, so that memory stays bounded.
    """
    tokenizer = read_tokenizer(tokenizer_json)
    tokenizer.encode_special_tokens = True  # a text that spells a special token is still text
    kind = token_kind(tokenizer.get_vocab_size())
    rows: list[Tokens] = []
    for _, text in texts:
        rows += (
            np.array(tokenizer.encode(piece, add_special_tokens=False).ids, kind) for piece in _pieces(text)
        )
        if end is not None:
            rows.append(np.array([end], kind))
    return np.concatenate(rows) if rows else np.zeros(0, kind)


def token_kind(vocab: int) -> type[np.unsignedinteger[Any]]:
    """The unsigned type that holds every token of a vocabulary."""
    return np.uint16 if vocab <= 1 << 16 else np.uint32


def rows(tokens: Tokens, context: int) -> Tokens:
    """The text as windows one after another, ``[windows, context]``, a view; without a rest under a window.

    Raises:
        RecipeError: there are fewer tokens than one window takes.
    """
    _check_length(tokens, context, "train on")
    return tokens[: len(tokens) // context * context].reshape(-1, context)


def windows(tokens: Tokens, context: int, batch: int, rng: np.random.Generator) -> Iterator[Batch]:
    """Endless batches ``[batch, context]`` of windows that start anywhere, drawn evenly.

    Raises:
        RecipeError: there are fewer tokens than one window takes.
    """
    _check_length(tokens, context, "train on")
    while True:
        starts = rng.integers(0, len(tokens) - context + 1, batch)
        yield np.stack([tokens[start : start + context] for start in starts]).astype(np.int64)


def heldout_batches(tokens: Tokens, context: int, batch: int) -> Iterator[Batch]:
    """Windows one after another, ``[batch, context]``, the last batch smaller; a rest under a window is left.

    Raises:
        RecipeError: there are fewer tokens than one window takes.
    """
    _check_length(tokens, context, "measure with")
    whole = tokens[: len(tokens) // context * context].reshape(-1, context)
    for start in range(0, len(whole), batch):
        yield whole[start : start + batch].astype(np.int64)


def bits_per_byte(nats_per_token: float, tokens: int, size: int) -> float:
    """Loss per byte of text, which tokenizers compare by, where ``tokens`` spell ``size`` bytes."""
    return nats_per_token / float(np.log(2)) * tokens / size


def _check_length(tokens: Tokens, context: int, use: str) -> None:
    if len(tokens) < context:
        raise RecipeError(
            f"{len(tokens)} tokens to {use} are fewer than a window of {context}: bring more text, or lower "
            "task.context"
        )


def _pieces(text: str) -> Iterable[str]:
    """The text in order, cut at line ends where lines are shorter than a piece."""
    start = 0
    while start < len(text):
        cut = text.rfind("\n", start, start + _PIECE) + 1 if len(text) - start > _PIECE else 0
        cut = cut if cut > start else start + _PIECE
        yield text[start:cut]
        start = cut
