from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("sklearn")

from transformers import AutoModelForImageClassification  # noqa: E402

from potluck.data.assets import build_assets  # noqa: E402
from potluck.errors import CorruptData, RecipeError  # noqa: E402
from potluck.recipe import Inner, Recipe, Task  # noqa: E402
from potluck.tasks import task  # noqa: E402
from potluck.tasks.image_classification import ImageClassification  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

VIT = {
    "model_type": "vit",
    "patch_size": 4,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
RECIPE = Recipe(task=Task(kind="image-classification", config=VIT, batch=32), inner=Inner(lr=5e-3))


@pytest.fixture(scope="module")
def assets() -> dict[str, bytes]:
    return build_assets(RECIPE)


@pytest.fixture
def work(assets: dict[str, bytes]) -> ImageClassification:
    made = task(RECIPE, assets)
    assert isinstance(made, ImageClassification)
    return made


def trained(work: ImageClassification, steps: int) -> Any:
    model = work.model()
    work.train(model, work.optimizer(model), work.batches(range(steps)))
    return model


def test_an_epoch_has_every_image_once(work: ImageClassification) -> None:
    batches = list(work.batches(range(work.blocks)))
    assert sum(len(batch["labels"]) for batch in batches) == 1498 == 1797 - 299
    assert batches[0]["pixel_values"].shape == (32, 1, 8, 8)
    pixels = torch.cat([batch["pixel_values"] for batch in batches])
    assert (pixels.min().item(), pixels.max().item()) == (-1, 1)
    assert {image.tobytes() for image in pixels.numpy()} == {
        (image / np.float32(127.5) - 1).tobytes() for image in work.images.pixels.astype(np.float32)
    }


def test_digits_are_learnt(work: ImageClassification) -> None:
    model = work.model()
    before, _ = work.evaluate(model)
    work.train(model, work.optimizer(model), work.batches(range(4 * work.blocks)))
    after, right = work.evaluate(model)
    assert before == pytest.approx(math.log(10), abs=0.3)
    assert after < 0.5 * before
    assert right > 0.8
    assert work.evaluate(model, 1) != (after, right)
    said = work.sample(model, "5", 2)
    assert said.startswith("held-out image 5: ")
    assert said == work.sample(model, "5", 2)
    assert f"it is {work.heldout.labels[5]}" in said


def test_an_export_loads_with_transformers(work: ImageClassification, tmp_path: Path) -> None:
    model = trained(work, 3)
    work.export(model, tmp_path / "out")
    read = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    assert work.evaluate(read) == work.evaluate(model)
    assert read.config.id2label[7] == "7"


def test_a_checkpoint_keeps_its_body_and_gets_a_head_for_these_classes(
    work: ImageClassification, tmp_path: Path
) -> None:
    model = trained(work, 3)
    work.export(model, tmp_path / "trained")
    some = work.images.labels < 4
    (tmp_path / "few.safetensors").write_bytes(
        save({"images": work.images.pixels[some][:, 0], "labels": work.images.labels[some]})
    )
    few = replace(
        RECIPE, task=replace(RECIPE.task, config={}, checkpoint="trained", images="few.safetensors")
    )
    tuned = task(few, build_assets(few, base=tmp_path))
    host, joiner = tuned.model(base=tmp_path), tuned.model()
    assert host.classifier.weight.shape == joiner.classifier.weight.shape == (4, 32)
    body = {name: p for name, p in model.named_parameters() if "classifier" not in name}
    assert all(torch.equal(p, body[name]) for name, p in host.named_parameters() if name in body)
    assert len(body) > 10


def test_models_that_keep_statistics_of_their_batches(assets: dict[str, bytes]) -> None:
    config = {**json.loads(assets["config.json"]), "model_type": "resnet", "depths": [1], "hidden_sizes": [8]}
    with pytest.raises(RecipeError, match="resnet has batch normalization"):
        task(RECIPE, {**assets, "config.json": json.dumps(config).encode()}).model()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"image_size": 16}, r"8×8 pixels with 1 channels, and the model takes image_size 16"),
        ({"num_channels": 3}, "num_channels 3"),
    ],
)
def test_images_of_another_size_than_the_models(config: dict[str, Any], words: str) -> None:
    other = replace(RECIPE, task=replace(RECIPE.task, config={**VIT, **config}))
    with pytest.raises(RecipeError, match=words):
        task(other, build_assets(other))


PIXELS, LABELS = np.zeros((6, 1, 8, 8), np.uint8), np.zeros(6, np.int64)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "holds no images"),
        (b"\xff" * 64, "holds no images"),
        (save({"images": PIXELS}), "holds no images"),
        (save({"images": PIXELS.astype(np.float32), "labels": LABELS}), "are float32"),
        (save({"images": PIXELS[:, 0], "labels": LABELS}), "which are none"),
        (save({"images": PIXELS, "labels": LABELS[:5]}), "not one for each image"),
        (save({"images": PIXELS, "labels": LABELS + 10}), "a class that the model's 10 lack"),
        (save({"images": PIXELS, "labels": LABELS - 1}), "a class that"),
        (save({"images": PIXELS[..., :4].copy(), "labels": LABELS}), "not all of one size"),
    ],
)
def test_files_from_a_bad_host(assets: dict[str, bytes], raw: bytes, words: str) -> None:
    with pytest.raises(CorruptData, match=words):
        task(RECIPE, {**assets, "heldout.safetensors": raw})
