"""The containers: a split is images with labels, a data set is a training and a test split."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pathsum.errors import DataError


def balanced_rows(labels: Tensor, num: int, seed: int) -> Tensor:
    """Rows of a random subset with near-equal class counts, ascending.

    Classes are dealt in turn from a seeded shuffle, so any two class counts differ by at most one
    unless a class runs out. Shapes: labels `(N,)`, result `(num,)` int64 on the CPU.
    """
    labels = labels.cpu()
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    by_class = order[torch.argsort(labels[order], stable=True)]  # shuffled within each class
    _, counts = torch.unique_consecutive(labels[by_class], return_counts=True)
    starts = torch.repeat_interleave(torch.cumsum(counts, 0) - counts, counts)
    turn = torch.arange(len(labels)) - starts
    # Which classes get the odd ones out is chance too: ties in `turn` fall by a second shuffle.
    shuffle = torch.randperm(len(labels), generator=generator)
    dealt = by_class[shuffle][torch.argsort(turn[shuffle], stable=True)]
    return dealt[:num].sort().values


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """Images `(N, C, H, W)` uint8 with labels `(N,)` int64, on one device."""

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise DataError(
                f"images of a split: expected uint8 of shape (N, C, H, W), got {images.dtype} of shape "
                f"{tuple(images.shape)}; convert to uint8 0..255, channels first"
            )
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise DataError(
                f"labels of a split: expected int64 of shape ({len(images)},), got {labels.dtype} of "
                f"shape {tuple(labels.shape)}; give one class index for each image"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        shape = "×".join(map(str, self.images.shape[1:]))
        return f"Split({len(self):,} images {shape}, {self.images.device})"

    def take(self, rows: Tensor) -> Split:
        """The split of the given rows, in that order."""
        rows = rows.to(self.images.device)
        return Split(self.images[rows], self.labels[rows])

    def subset(self, num: int, seed: int = 0) -> Split:
        """A seeded random subset of `num` images, classes balanced as far as they reach, order kept."""
        if not 0 <= num <= len(self):
            raise DataError(f"subset of {num} images: expected 0..{len(self)}, the size of the split")
        return self.take(balanced_rows(self.labels, num, seed))

    def split(self, num_held_out: int, seed: int = 0) -> tuple[Split, Split]:
        """`(rest, held_out)`: hold out a balanced random `num_held_out`, for example for validation."""
        if not 0 <= num_held_out <= len(self):
            raise DataError(
                f"holding out {num_held_out} of {len(self)} images: expected 0..{len(self)}; lower the number"
            )
        held_out = balanced_rows(self.labels, num_held_out, seed)
        rest = torch.ones(len(self), dtype=torch.bool)
        rest[held_out] = False
        return self.take(rest.nonzero().squeeze(1)), self.take(held_out)


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """A training and a test split, with what a model and a loader must know about them.

    `mean` and `std` are per channel, of pixels/255 of the whole training split (also where a limit was set);
    `flip` says whether a mirrored image is still of its class.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool

    def __post_init__(self) -> None:
        if self.train.images.shape[1:] != self.test.images.shape[1:]:
            raise DataError(
                f"{self.name}: training images are {tuple(self.train.images.shape[1:])}, test images "
                f"{tuple(self.test.images.shape[1:])}; both splits need the same shape"
            )
        if not len(self.mean) == len(self.std) == self.shape[0]:
            raise DataError(
                f"{self.name}: expected {self.shape[0]} values in mean and std, one for each channel, "
                f"got {len(self.mean)} and {len(self.std)}"
            )
        for part, split in (("train", self.train), ("test", self.test)):
            if len(split) and not 0 <= int(split.labels.min()) <= int(split.labels.max()) < self.num_classes:
                seen = f"{int(split.labels.min())}..{int(split.labels.max())}"
                raise DataError(
                    f"{self.name}: labels of {part} run {seen}, expected 0..{self.num_classes - 1}; "
                    "name every class in classes"
                )

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(C, H, W)` of one image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @property
    def num_classes(self) -> int:
        """How many classes there are, seen in these splits or not."""
        return len(self.classes)

    @cached_property
    def fingerprint(self) -> str:
        """A hash (16 hex digits) of the name, images and labels of both splits, the same on any device."""
        digest = hashlib.sha256(self.name.encode())
        for split in (self.train, self.test):
            digest.update(repr(tuple(split.images.shape)).encode())
            digest.update(split.images.cpu().contiguous().numpy().data)
            digest.update(split.labels.cpu().contiguous().numpy().data)
        return digest.hexdigest()[:16]

    def __repr__(self) -> str:
        shape = "×".join(map(str, self.shape))
        return (
            f"Dataset({self.name}: {len(self.train):,} train, {len(self.test):,} test, "
            f"{shape}, {self.num_classes} classes)"
        )
