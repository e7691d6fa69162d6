"""Images to classify: where they come from, and which of them are held out."""

from __future__ import annotations

import logging
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from potluck.errors import RecipeError

log = logging.getLogger(__name__)

MAX_IMAGES_BYTES = 1 << 30
MAX_CLASSES = 10_000
_HELD_OUT = (6, 5000)


class Images(NamedTuple):
    """Pixels ``[images, channels, height, width]`` from 0 to 255, the class of each image ``[images]``, and
    what the classes are called.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    names: tuple[str, ...]

    def some(self, numbers: NDArray[np.int64]) -> Images:
        """Those of these numbers."""
        return Images(self.pixels[numbers], self.labels[numbers], self.names)


def load_images(source: str, *, base: Path | None = None) -> Images:
    """The images of a source, in its own order.

    Args:
        source: ``"digits"``, a safetensors file, or ``"datasets:NAME[:IMAGE[:LABEL]]"``.
        base: the directory that files are relative to; the working directory by default.

    Raises:
        RecipeError: there are none, they are not all alike, a package is missing, or it is over 1 GiB.
    """
    base = base or Path()
    if source == "digits":
        return _digits()
    if source.startswith("datasets:"):
        return _from_datasets(source, base)
    return _from_file(source, base)


def hold_out_images(images: Images) -> tuple[Images, Images]:
    """Splits images into those to train on and those held out to measure with: a sixth of them, 5,000 at
    most, drawn at random but always the same.

    Raises:
        RecipeError: there are too few to split.
    """
    count = len(images.labels)
    held = min(count // _HELD_OUT[0], _HELD_OUT[1])
    if not held:
        raise RecipeError(f"{count} images are too few to train on; bring at least {_HELD_OUT[0]}")
    order = np.random.default_rng(0).permutation(count)
    return images.some(order[held:]), images.some(order[:held])


def _digits() -> Images:
    """Scikit-learn's 1,797 handwritten digits, 8×8, with 16 shades each."""
    if find_spec("sklearn") is None:
        raise RecipeError(
            "task.images = 'digits' needs the package scikit-learn: pip install 'potluck[images]'"
        )
    from sklearn.datasets import load_digits

    found = load_digits()
    pixels = np.round(found.images[:, None] * (255 / 16)).astype(np.uint8)
    return Images(pixels, found.target.astype(np.int64), tuple(map(str, range(10))))


def _from_file(name: str, base: Path) -> Images:
    """A file of safetensors with ``images`` of unsigned bytes, ``[n, height, width]`` or
    ``[n, channels, height, width]``, and ``labels`` ``[n]`` of any integers from 0 to 9,999.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = base / name
    try:
        if path.stat().st_size > MAX_IMAGES_BYTES:
            raise RecipeError(f"task.images = {name!r} is over {MAX_IMAGES_BYTES:,} bytes: take fewer images")
        found = load_file(path)
    except OSError as error:
        raise RecipeError(f"task.images = {name!r} can't be read: {error.strerror or error}") from error
    except (SafetensorError, ValueError, TypeError) as error:
        raise RecipeError(f"{path} is no file of safetensors: {error}") from error
    if not {"images", "labels"} <= found.keys():
        raise RecipeError(f"{path} should hold the tensors images and labels, and holds {', '.join(found)}")
    pixels = found["images"]
    if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4):
        raise RecipeError(
            f"images in {path} are {pixels.dtype} {pixels.shape}: they should be uint8, [n, height, width] "
            "or [n, channels, height, width]"
        )
    labels = _checked(f"labels in {path}", found["labels"], len(pixels))
    return Images(pixels[:, None] if pixels.ndim == 3 else pixels, labels, _numbers(labels))


def _checked(what: str, found: Any, count: int) -> NDArray[np.int64]:
    """Classes of so many images, whatever was found in their place.

    Raises:
        RecipeError: they are none; it begins with ``what``.
    """
    try:
        labels = np.asarray(found)
    except (ValueError, OverflowError) as error:
        raise RecipeError(f"{what} are no numbers: {error}") from error
    whole = labels.shape == (count,) and labels.dtype.kind in "iu"
    if not whole or (count and not 0 <= labels.min() <= labels.max() < MAX_CLASSES):
        said = f", from {labels.min()} to {labels.max()}" if whole else ""
        raise RecipeError(
            f"{what} are {labels.dtype} {labels.shape}{said}: they should be whole numbers from 0 to "
            f"{MAX_CLASSES - 1:,}, one for each of the {count} images"
        )
    return labels.astype(np.int64)


def _numbers(labels: NDArray[np.int64]) -> tuple[str, ...]:
    """What classes without names are called."""
    return tuple(map(str, range(int(labels.max()) + 1 if labels.size else 0)))


def _from_datasets(source: str, base: Path) -> Images:
    name, _, columns = source.removeprefix("datasets:").partition(":")
    image, _, label = columns.partition(":")
    image, label = image or "image", label or "label"
    if find_spec("datasets") is None or find_spec("PIL") is None:
        raise RecipeError(
            f"task.images = {source!r} needs datasets and pillow: pip install 'potluck[datasets,images]'"
        )
    import datasets

    local = base / name
    try:
        splits = datasets.load_dataset(str(local) if local.is_dir() else name)
    except (OSError, ValueError) as error:
        raise RecipeError(f"datasets {datasets.__version__} can't load {name!r}: {error}") from error
    if "train" not in splits:
        raise RecipeError(f"dataset {name!r} has no split train, only {', '.join(splits)}")
    rows = splits["train"]
    if not {image, label} <= set(rows.column_names):
        raise RecipeError(
            f"dataset {name!r} has the columns {', '.join(rows.column_names)}: name those of image and "
            f"class, task.images = {f'datasets:{name}:IMAGE:LABEL'!r}"
        )
    pixels = _stacked(source, rows[image])
    labels = _checked(f"the column {label} of dataset {name!r}", list(rows[label]), len(pixels))
    named = getattr(rows.features[label], "names", None)
    return Images(pixels, labels, tuple(named or _numbers(labels)))


def _stacked(source: str, pictures: Any) -> NDArray[np.uint8]:
    """Pictures of PIL as pixels ``[n, channels, height, width]``."""
    found: list[NDArray[np.uint8]] = []
    room = MAX_IMAGES_BYTES
    for index, picture in enumerate(pictures):
        array = np.asarray(picture)
        array = array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)
        if array.dtype != np.uint8 or (found and array.shape != found[0].shape):
            first = f", and the first is {found[0].shape}" if found else ""
            raise RecipeError(
                f"image {index} of {source!r} is {array.dtype} {array.shape}{first}: all should be bytes of "
                "one size and as many channels"
            )
        room -= math.prod(array.shape)
        if room < 0:
            raise RecipeError(f"{source!r} is over {MAX_IMAGES_BYTES:,} bytes of pixels: take fewer images")
        found.append(array)
    if not found:
        raise RecipeError(f"{source!r} has no images")
    return np.stack(found)
