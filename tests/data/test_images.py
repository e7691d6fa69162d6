from __future__ import annotations

from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from safetensors.numpy import save

from potluck.data import images
from potluck.data.images import Images, hold_out_images, load_images
from potluck.errors import RecipeError

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 3, 4, 5), np.uint8)
LABELS = np.arange(20) % 3


def test_a_file_of_images_with_and_without_channels(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(save({"images": PIXELS, "labels": LABELS.astype(np.int32)}))
    found = load_images("a.safetensors", base=tmp_path)
    assert np.array_equal(found.pixels, PIXELS)
    assert np.array_equal(found.labels, LABELS)
    assert (found.labels.dtype, found.names) == (np.int64, ("0", "1", "2"))
    (tmp_path / "b.safetensors").write_bytes(save({"images": PIXELS[:, 0].copy(), "labels": LABELS}))
    assert load_images("b.safetensors", base=tmp_path).pixels.shape == (20, 1, 4, 5)


def test_scikit_learns_digits() -> None:
    pytest.importorskip("sklearn")
    found = load_images("digits")
    assert found.pixels.shape == (1797, 1, 8, 8)
    assert (found.pixels.min(), found.pixels.max()) == (0, 255)
    assert np.bincount(found.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_a_dataset_of_pictures(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    pictures = pytest.importorskip("PIL.Image")
    for number, label in enumerate(LABELS):
        folder = tmp_path / "pets" / "train" / ("cat", "cow", "dog")[label]
        folder.mkdir(parents=True, exist_ok=True)
        pictures.fromarray(np.moveaxis(PIXELS[number], 0, -1)).save(folder / f"{number:02}.png")
    found = load_images("datasets:pets", base=tmp_path)
    assert found.names == ("cat", "cow", "dog")
    pairs = {(image.tobytes(), int(label)) for image, label in zip(found.pixels, found.labels, strict=True)}
    assert pairs == {(image.tobytes(), int(label)) for image, label in zip(PIXELS, LABELS, strict=True)}
    with pytest.raises(RecipeError, match="has the columns image, label: name those"):
        load_images("datasets:pets:picture", base=tmp_path)
    pictures.new("RGB", (9, 9)).save(tmp_path / "pets" / "train" / "cat" / "99.png")
    with pytest.raises(RecipeError, match="all should be bytes of one size"):
        load_images("datasets:pets", base=tmp_path)


@pytest.mark.parametrize(
    "labels",
    [
        ["cat"] * 19 + ["dog"],
        [0.5] * 20,
        [None, *LABELS[1:].tolist()],
        [-1, *LABELS[1:].tolist()],
        [images.MAX_CLASSES, *LABELS[1:].tolist()],
        [1 << 70, *LABELS[1:].tolist()],
        [[0]] + [[0, 1]] * 19,
        [True] * 20,
    ],
)
def test_a_dataset_whose_classes_are_none(monkeypatch: pytest.MonkeyPatch, labels: list[object]) -> None:
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("PIL.Image")

    class Rows(dict[str, object]):
        column_names, features = ("image", "label"), MappingProxyType({"label": None})

    rows = Rows(image=[image[0] for image in PIXELS], label=labels)
    monkeypatch.setattr(datasets, "load_dataset", lambda _: {"train": rows})
    with pytest.raises(RecipeError, match="the column label of dataset 'pets' are"):
        load_images("datasets:pets")
    rows["label"] = LABELS.tolist()
    assert load_images("datasets:pets").names == ("0", "1", "2")


def test_a_sixth_is_held_out_always_the_same() -> None:
    every = Images(PIXELS, LABELS, ("a", "b", "c"))
    train, held = hold_out_images(every)
    assert (len(train.labels), len(held.labels)) == (17, 3)
    both = [image.tobytes() for image in (*train.pixels, *held.pixels)]
    assert sorted(both) == sorted(image.tobytes() for image in PIXELS)
    again = hold_out_images(every)[1]
    assert np.array_equal(again.pixels, held.pixels)
    with pytest.raises(RecipeError, match="5 images are too few"):
        hold_out_images(every.some(np.arange(5)))


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (None, "can't be read"),
        (b"nonsense", "no file of safetensors"),
        (save({"pictures": PIXELS}), "should hold the tensors images and labels, and holds pictures"),
        (save({"images": PIXELS / 255, "labels": LABELS}), "they should be uint8"),
        (save({"images": PIXELS[:, 0, 0].copy(), "labels": LABELS}), "they should be uint8"),
        (save({"images": PIXELS, "labels": LABELS[:5]}), "one for each of the 20 images"),
        (save({"images": PIXELS, "labels": LABELS - 1}), "whole numbers from 0"),
        (save({"images": PIXELS, "labels": LABELS / 2}), "whole numbers"),
        (save({"images": PIXELS, "labels": LABELS + (1 << 40)}), "whole numbers from 0 to 9,999"),
    ],
)
def test_files_that_hold_no_images(tmp_path: Path, raw: bytes | None, words: str) -> None:
    if raw is not None:
        (tmp_path / "a.safetensors").write_bytes(raw)
    with pytest.raises(RecipeError, match=words):
        load_images("a.safetensors", base=tmp_path)


def test_a_file_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_IMAGES_BYTES", 100)
    (tmp_path / "a.safetensors").write_bytes(save({"images": PIXELS, "labels": LABELS}))
    with pytest.raises(RecipeError, match="take fewer images"):
        load_images("a.safetensors", base=tmp_path)
