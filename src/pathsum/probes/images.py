"""Images as a probe: resized to what the model was built for, scored by their labels where these fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathsum import tasks
from pathsum.data import Dataset, normalize
from pathsum.errors import DataError
from pathsum.tasks import Chunk, Probe

from .trial import trial


def image_probe(
    model: nn.Module,
    data: Dataset,
    *,
    dtype: str = "float32",
    shape: tuple[int, int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    output: str | int | None = None,
) -> Probe:
    """The test images of `data` for `model`, brought to `shape` (channels, height, width) where that is given.

    Class scores are judged by the labels where there are as many classes as the data has, else by agreement with the
    whole network's choice; any other output by its cosine similarity to the whole output. Raises DataError for images
    that the model cannot take.
    """
    if not len(data.test):
        raise DataError(f"{data.name} has no test images; inspect needs at least one")
    number = getattr(torch, dtype)
    fit = Fitting(data, shape or data.shape, mean or data.mean, std or data.std)

    def images(start: int, num: int) -> Tensor:
        return fit(data.test.images[start : start + num], number)

    def classes(start: int, num: int) -> Chunk:
        return Chunk((images(start, num),), labels=data.test.labels[start : start + num])

    def whole(start: int, num: int) -> Chunk:
        return Chunk((images(start, num),))

    def positions(start: int, num: int) -> Chunk:
        x = images(start, num)
        return Chunk((x,), where=torch.ones(len(x), out.shape[1], dtype=torch.bool))

    first = whole(0, 2)
    what = f"{data.name}'s images of shape {tuple(first.inputs[0].shape[1:])}"
    out, kind = trial(model, first, output, what, "give the --data it was trained on, or its --image-size")
    task, chunk = tasks.EMBEDDING, positions if out.ndim == 3 else whole
    if out.ndim == 2 and kind != "features":
        task, chunk = tasks.CLASSES, classes
        if out.shape[1] != data.num_classes:
            task, chunk = replace(tasks.CHOICES, note=unlabeled(out.shape[1], data)), whole
    return Probe(data.name, len(data.test), task, chunk, fit.notes)


def unlabeled(num_classes: int, data: Dataset) -> str:
    return (
        f"There is no accuracy: the network has {num_classes:,} classes, and they are not the {data.num_classes} of "
        f"{data.name}. Instead, the class that a part of it chooses is compared with the choice of the whole network."
    )


class Fitting:
    """Images brought to the size, channels and normalization of a model, and what that changed."""

    def __init__(self, data: Dataset, shape: tuple[int, int, int], mean: Sequence[float], std: Sequence[float]) -> None:
        self.size, self.resize = shape[1:], shape[1:] != data.shape[1:]
        gray = data.shape[0] == 1 < shape[0]
        self.channels = shape[0] if gray else data.shape[0]
        for name, values in (("mean", mean), ("std", std)):
            if len(values) not in (self.channels, data.shape[0]):
                raise DataError(
                    f"--{name} has {len(values)} values, but {data.name} has {self.channels} channels: "
                    "give one for each"
                )
        if not all(value > 0 for value in std):
            raise DataError(f"--std is {tuple(std)}, expected numbers above 0")
        self.mean, self.std = (list(v) * (self.channels // len(v)) for v in (mean, std))
        notes = []
        if self.resize:
            old, new = ("×".join(map(str, size)) for size in (data.shape[1:], self.size))
            notes.append(f"The images were resized from {old} to {new} pixels, the size that the model is built for.")
        if gray:
            notes.append(f"The images are gray; each of the model's {self.channels} channels got the same.")
        self.notes = tuple(notes)

    def __call__(self, images: Tensor, dtype: torch.dtype) -> Tensor:
        """uint8 (B, C, H, W) to what the model takes."""
        if self.resize:
            images = F.interpolate(images.float(), self.size, mode="bilinear", antialias=True)
            images = images.round_().clamp_(0, 255).to(torch.uint8)
        return normalize(images.expand(-1, self.channels, -1, -1), self.mean, self.std, dtype=dtype)
