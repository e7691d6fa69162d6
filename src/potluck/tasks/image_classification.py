"""Image classification with any model of transformers whose images are all of one size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import AutoModelForImageClassification

from potluck.data.blocks import blocks_of, samples_of
from potluck.data.images import Images
from potluck.errors import CorruptData, RecipeError
from potluck.recipe import Recipe
from potluck.tasks.exporting import write_export
from potluck.tasks.lora import merged as with_adapters
from potluck.tasks.models import make_model, read_config
from potluck.tasks.text import require
from potluck.tasks.training import Batch, Trained, evaluating, run_model

_FILES = ("config.json", "train.safetensors", "heldout.safetensors")


class ImageClassification(Trained):
    """A classifier, its images and its loss, as a recipe and the run's files define them. Pixels are scaled
    to -1…1. Its second measure is the share of held-out images that are classified rightly.

    Raises:
        RecipeError: transformers can't make such a model, or not for these images.
        CorruptData: a file is missing or is not what it should be.
    """

    measure = "accuracy"

    def __init__(self, recipe: Recipe, assets: Mapping[str, bytes]) -> None:
        require(assets, _FILES)
        self.recipe = recipe
        self.config = read_config(assets["config.json"])
        names = tuple(self.config.id2label[number] for number in sorted(self.config.id2label))
        self.images = _read(assets, "train.safetensors", names)
        self.heldout = _read(assets, "heldout.safetensors", names)
        if self.images.pixels.shape[1:] != self.heldout.pixels.shape[1:]:
            raise CorruptData("the run's images are not all of one size: its host made them wrongly")
        self._check_size()

    def _check_size(self) -> None:
        channels, *size = self.images.pixels.shape[1:]
        wanted, deep = (
            getattr(self.config, "image_size", size),
            getattr(self.config, "num_channels", channels),
        )
        if deep != channels or (list(wanted) if isinstance(wanted, list | tuple) else [wanted] * 2) != size:
            raise RecipeError(
                f"the images are of {size[0]}×{size[1]} pixels with {channels} channels, and the model takes "
                f"image_size {wanted} and num_channels {deep}: resize the images, or change task.config"
            )

    def model(self, *, base: Path | None = None) -> Any:
        """A new model, as ``models.make_model``; of a checkpoint with other classes all but its head.

        Raises:
            RecipeError: the model can't be made, or the checkpoint can't be had; or it keeps statistics of
                its batches, which are not exchanged.
        """
        model = make_model(
            AutoModelForImageClassification, self.config, self.recipe, base, ignore_mismatched_sizes=True
        )
        if any(isinstance(module, _BatchNorm) for module in model.modules()):
            raise RecipeError(
                f"{self.config.model_type} has batch normalization, whose statistics peers do not exchange: "
                "take a model with layer normalization, such as vit or convnext"
            )
        return model

    @property
    def blocks(self) -> int:
        """Batches in an epoch."""
        return blocks_of(len(self.images.labels), self.recipe.task.batch)

    def batches(self, positions: Iterable[int]) -> Iterator[Batch]:
        """The batches at these positions of the data: ``pixel_values`` ``[batch, channels, height, width]``
        and ``labels`` ``[batch]``. In an epoch every image comes once; its last batch may be smaller.
        """
        count, size = len(self.images.labels), self.recipe.task.batch
        for position in positions:
            numbers = samples_of(position, count, size, self.recipe.data.seed)
            yield _batch(self.images.some(np.array(numbers)))

    def evaluate(self, model: torch.nn.Module, max_batches: int | None = None) -> tuple[float, float]:
        """Loss on the held-out images, nats per image, and the share that is classified rightly."""
        nats, right, count = 0.0, 0, 0
        size, total = self.recipe.task.batch, len(self.heldout.labels)
        with evaluating(model):
            for start in islice(range(0, total, size), max_batches):
                batch = _batch(self.heldout.some(np.arange(start, min(start + size, total))))
                found = run_model(model, batch)
                nats += found.loss.item() * len(batch["labels"])
                right += int((found.logits.argmax(-1).cpu() == batch["labels"]).sum())
                count += len(batch["labels"])
        return nats / count, right / count

    def sample(self, model: torch.nn.Module, prompt: str, n: int, seed: int | None = None) -> str:
        """The ``n`` likeliest classes of a held-out image: of that number, or drawn by the seed."""
        total = len(self.heldout.labels)
        drawn = int(np.random.default_rng(seed).integers(total))
        number = int(prompt) % total if prompt.strip().isdecimal() else drawn
        with evaluating(model):
            logits = run_model(model, _batch(self.heldout.some(np.array([number])))).logits[0].float().cpu()
        chances, classes = torch.softmax(logits, 0).topk(min(n, len(self.heldout.names)))
        named = [
            f"{self.heldout.names[int(label)]} ({chance:.0%})"
            for chance, label in zip(chances, classes, strict=True)
        ]
        truth = self.heldout.names[self.heldout.labels[number]]
        return f"held-out image {number}: {', '.join(named)}; it is {truth}"

    def export(self, model: torch.nn.Module, directory: Path | str, *, merged: bool = False) -> None:
        """Writes the model so that ``from_pretrained(directory)`` reads it; as ``CausalLM.export``."""
        whole: Any = with_adapters(model) if merged else model
        write_export(self.recipe, directory, whole.save_pretrained)


def _read(assets: Mapping[str, bytes], name: str, names: tuple[str, ...]) -> Images:
    try:
        found = load(assets[name])
        pixels, labels = found["images"], found["labels"]
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise CorruptData(f"{name} holds no images: {error}") from error
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or not pixels.size:
        raise CorruptData(f"images in {name} are {pixels.dtype} {pixels.shape}, which are none")
    if labels.dtype != np.int64 or labels.shape != pixels.shape[:1]:
        raise CorruptData(f"labels in {name} are {labels.dtype} {labels.shape}, not one for each image")
    if labels.min() < 0 or labels.max() >= len(names):
        raise CorruptData(f"{name} holds a class that the model's {len(names)} lack")
    return Images(pixels, labels, names)


def _batch(images: Images) -> Batch:
    pixels = torch.from_numpy(images.pixels).float() / 127.5 - 1
    return {"pixel_values": pixels, "labels": torch.from_numpy(images.labels)}
