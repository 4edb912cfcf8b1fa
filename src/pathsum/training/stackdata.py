"""Batches and evaluations of several networks at once, each with its own order of the images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pathsum.data import Dataset, Split
from pathsum.data.batching import Draw, Normalization, changed, check_augmentation, draw, joined, seeded, send
from pathsum.data.splits import balanced_rows
from pathsum.training.evaluation import to_device
from pathsum.training.options import TrainConfig
from pathsum.training.stacking import StackedTower

CHUNK = 64  # images of a network at a time in evaluations: the maps of all networks are to stay in a CPU's cache


class StackedData:
    """One data set on the device for all networks; each holds out, orders and augments by its own seed."""

    def __init__(self, data: Dataset, configs: Sequence[TrainConfig], device: torch.device, dtype: torch.dtype) -> None:
        self.data, self.configs, self.common, self.dtype = data, list(configs), configs[0], dtype
        self.train, self.test = to_device(data.train, device), to_device(data.test, device)
        self.pad = self.common.padding(data.shape[1])
        check_augmentation(self.pad, self.common.crop_scale)
        parts = [_parts(data.train, config) for config in configs]
        self.rest, self.held_out = [rest for rest, _ in parts], [held for _, held in parts]
        self.normalized = {
            num: Normalization(data.mean * num, data.std * num, dtype, device) for num in {1, len(self.configs)}
        }
        self.per_epoch = len(self.rest[0]) // self.common.batch_size
        self.epoch, self.order_NG = -1, torch.empty(0, len(parts), dtype=torch.int64)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Images `(B, G·C, H, W)`, channels-last, and labels `(G, B)`: what `pathsum.data.batches` gives each alone."""
        if step // self.per_epoch != self.epoch:
            self.epoch = step // self.per_epoch
            orders = [
                rest[torch.randperm(len(rest), generator=seeded(config.seed, "order", self.epoch))]
                for rest, config in zip(self.rest, self.configs, strict=True)
            ]
            self.order_NG = send(torch.stack(orders, 1), self.train.images.device)
        start = step % self.per_epoch * self.common.batch_size
        rows = self.order_NG[start : start + self.common.batch_size]
        return self._images(self.train, rows, step if self.common.augment else None)

    def _images(self, split: Split, rows_BG: Tensor, step: int | None = None) -> tuple[Tensor, Tensor]:
        """The images in these rows, augmented for a step, and their labels."""
        size, num = rows_BG.shape
        rows = rows_BG.flatten()
        images = split.images.index_select(0, rows)  # whole images; [rows] goes pixel by pixel
        if step is not None:
            images = changed(images, self._draw(step, size), self.pad)
        stacked = images.view(size, -1, *images.shape[2:]).contiguous(memory_format=torch.channels_last)
        return self.normalized[num](stacked), split.labels.index_select(0, rows).view(size, num).t().contiguous()

    def _draw(self, step: int, num: int) -> Draw:
        """Every network's own augmentation, in the order of the images."""
        options: dict[str, Any] = {"crop_pad": self.pad, "flip": self.data.flip, "scale": self.common.crop_scale}
        draws = [draw(num, generator=seeded(c.seed, "augment", step), **options) for c in self.configs]
        return joined(draws, lambda parts: torch.stack(parts, 1).flatten(0, 1))

    @torch.no_grad()
    def evaluate(self, tower: StackedTower, split: str, stopped: Callable[[], Any]) -> list[tuple[float, float]] | None:
        """Each network's mean loss and accuracy on `"test"` or `"val"`; None as soon as `stopped()`."""
        num = len(self.configs)
        images = self.test if split == "test" else self.train
        every = torch.arange(len(self.test)).unsqueeze(1) if split == "test" else torch.stack(self.held_out, 1)
        every = send(every, images.images.device)
        loss = torch.zeros(num, dtype=torch.float64, device=images.images.device)
        correct = torch.zeros(num, dtype=torch.int64, device=images.images.device)
        chunk = self.common.eval_batch_size if loss.is_cuda else min(self.common.eval_batch_size, CHUNK)
        for rows in every.split(chunk):
            if stopped():
                return None
            x, labels = self._images(images, rows)
            labels = labels.expand(num, -1)  # all see the same test images
            logits = tower(x, training=False).to(self.dtype)
            losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
            loss += losses.view_as(labels).sum(1)
            correct += (logits.argmax(2) == labels).sum(1)
        size = len(every)
        return [(a / size, b / size) for a, b in zip(loss.tolist(), correct.tolist(), strict=True)]


def _parts(split: Split, config: TrainConfig) -> tuple[Tensor, Tensor]:
    """The rows to train on and those held out, as `Split.split` chooses them."""
    if not config.val_size:
        return torch.arange(len(split)), torch.empty(0, dtype=torch.int64)
    held_out = balanced_rows(split.labels, config.val_size, config.seed)
    rest = torch.ones(len(split), dtype=torch.bool)
    rest[held_out] = False
    return rest.nonzero().squeeze(1), held_out
