"""Loss and accuracy of a model on a split."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathsum.data import Dataset, Split, normalize
from pathsum.errors import DataError
from pathsum.training.contexts import mode


def evaluate(model: nn.Module, split: Split, dataset: Dataset, batch_size: int = 250) -> tuple[float, float]:
    """Mean cross-entropy (nats) and accuracy (share of 1) of `model` on `split`, in eval mode.

    `dataset` gives mean and standard deviation of the pixels. The model's mode is as before afterwards.
    """
    result = evaluate_until(model, split, dataset, batch_size, lambda: False)
    return result if result is not None else (math.nan, math.nan)


@torch.no_grad()
def evaluate_until(
    model: nn.Module, split: Split, dataset: Dataset, batch_size: int, stopped: Callable[[], Any]
) -> tuple[float, float] | None:
    """`evaluate`, or None as soon as `stopped()`."""
    if not len(split):
        raise DataError(f"{dataset.name}: no images to evaluate on; raise the limit on test images")
    device, dtype = placement(model)
    split = to_device(split, device)
    loss = torch.zeros((), dtype=torch.float64, device=device)
    correct = torch.zeros((), dtype=torch.int64, device=device)
    with mode(model, training=False):
        for start in range(0, len(split), batch_size):
            if stopped():
                return None
            rows = slice(start, start + batch_size)
            logits = model(normalize(split.images[rows], dataset.mean, dataset.std, dtype=dtype))
            check_logits(logits, dataset)
            labels = split.labels[rows]
            loss += F.cross_entropy(logits.to(dtype), labels, reduction="sum")
            correct += (logits.argmax(1) == labels).sum()
    return loss.item() / len(split), correct.item() / len(split)


def placement(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """The device of a model, and the type of number it takes; the CPU and float32 where nothing says otherwise."""
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    return like.device, like.dtype


def check_logits(logits: Tensor, dataset: Dataset) -> None:
    if logits.ndim != 2 or logits.shape[1] < dataset.num_classes:
        raise DataError(
            f"{dataset.name} has {dataset.num_classes} classes, but the model gives outputs of shape "
            f"{tuple(logits.shape)}, expected (batch, {dataset.num_classes}); build it with as many classes"
        )


def to_device(split: Split, device: torch.device) -> Split:
    """The split on `device`; itself where it is there."""
    if split.images.device == device:
        return split
    return Split(split.images.to(device), split.labels.to(device))
