"""From uint8 images to normalized batches: augmentation on the device, and a resumable stream."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pathsum.data.splits import Split
from pathsum.errors import DataError

AHEAD = 2**18  # pixels of the batches made at once: of small ones several, as each operation has its price


def normalize(
    images: Tensor, mean: Sequence[float], std: Sequence[float], *, dtype: torch.dtype = torch.float32
) -> Tensor:
    """`(images/255 − mean)/std` per channel; `(B, C, H, W)` uint8 to `dtype`.

    The arithmetic is in float32, or float64 where `dtype` is that.

    >>> normalize(torch.full((1, 1, 1, 1), 255, dtype=torch.uint8), [0.5], [0.25]).item()
    2.0
    """
    return Normalization(mean, std, dtype, images.device)(images)


class Normalization:
    """`normalize` for many batches of one kind: its constants are made once."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.exact = dtype, torch.promote_types(dtype, torch.float32)
        self.shift, self.divisor = (
            send(torch.tensor(tuple(values), dtype=self.exact), device).view(-1, 1, 1) for values in (mean, std)
        )

    def __call__(self, images: Tensor) -> Tensor:
        """`(B, C, H, W)` uint8, on the device, to the dtype asked for."""
        num, other = len(self.shift), len(self.divisor)
        if images.dtype != torch.uint8 or images.ndim != 4 or not num == other == images.shape[1]:
            raise DataError(
                f"normalize: expected uint8 (B, C, H, W) and C values in mean and std, got {images.dtype} "
                f"{tuple(images.shape)}, {num} and {other}; pass the raw images of a split"
            )
        return images.to(self.exact).div_(255).sub_(self.shift).div_(self.divisor).to(self.dtype)


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`; a copy to a GPU is queued behind its work instead of waiting for it."""
    if device.type != "cuda" or tensor.is_cuda or not tensor.numel():
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


@dataclass(frozen=True)
class Draw:
    """The chance in an augmentation, for each image: where to crop, whether to mirror, which box where it scales."""

    top: Tensor  # (B,) int64, row of the padded image at which the crop starts
    left: Tensor  # (B,) int64, the column
    mirror: Tensor  # (B,) bool
    side: Tensor | None = None  # (B,) share of height and width that the box keeps
    corner: Tensor | None = None  # (B, 2) in [0, 1], place of the box: 0 touches the top (left) edge, 1 the other


def draw(num: int, *, generator: torch.Generator, crop_pad: int, flip: bool, scale: tuple[float, float] | None) -> Draw:
    """Draw one augmentation for each of `num` images, on the generator's device."""
    device = generator.device
    top, left = torch.randint(0, 2 * crop_pad + 1, (2, num), generator=generator, device=device)
    mirror = (torch.rand(num, generator=generator, device=device) < 0.5) & flip
    if scale is None:
        return Draw(top, left, mirror)
    low, high = scale
    area = low + (high - low) * torch.rand(num, generator=generator, device=device)
    corner = torch.rand(num, 2, generator=generator, device=device)
    return Draw(top, left, mirror, area.sqrt(), corner)


def joined(draws: Sequence[Draw], join: Callable[[tuple[Tensor, ...]], Tensor]) -> Draw:
    """Several draws as one, each kind of chance joined by `join`."""
    each = zip(*(vars(d).values() for d in draws), strict=True)
    return Draw(*(join(parts) for parts in each if parts[0] is not None))


def augment(
    images: Tensor,
    *,
    generator: torch.Generator,
    crop_pad: int = 4,
    flip: bool = True,
    scale: tuple[float, float] | None = None,
) -> Tensor:
    """Pad with black and crop at random, mirror half of the images, then scale (if asked).

    `scale = (low, high)` keeps a random box with that share of the area, the aspect ratio kept, and enlarges
    it to full size bilinearly (a random resized crop; with `crop_pad=0`, that alone). Shapes: `(B, C, H, W)`
    uint8 in and out, on the images' device, no loop over images. The draws come from `generator` on its own
    device, so a CPU generator gives the same crops and mirrors on every device (enlarged pixels to ±1).
    """
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise DataError(
            f"augment: expected uint8 (B, C, H, W), got {images.dtype} {tuple(images.shape)}; augment before normalize"
        )
    check_augmentation(crop_pad, scale)
    chance = draw(len(images), generator=generator, crop_pad=crop_pad, flip=flip, scale=scale)
    return changed(images, chance, crop_pad)


def check_augmentation(crop_pad: int, scale: tuple[float, float] | None) -> None:
    """Refuse a negative padding or a scale that is not an interval within (0, 1]."""
    if crop_pad < 0:
        raise DataError(f"crop_pad is {crop_pad}: expected 0 (no random crop) or more pixels")
    if scale is not None and not (len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1):
        raise DataError(f"scale is {scale}: expected (low, high) shares of the area with 0 < low <= high <= 1")


def changed(images: Tensor, chance: Draw, pad: int) -> Tensor:
    """What `augment` does, given the chance."""
    return enlarge(crop(images, chance, pad), chance)


def crop(images: Tensor, chance: Draw, pad: int) -> Tensor:
    """Crop every image at its own place and mirror some.

    A crop is copied as one piece of memory, from its first pixel to its last: much faster than pixel by pixel.
    """
    num, channels, height, width = images.shape
    if not images.numel():
        return images
    device = images.device
    top, left, mirror = (send(part, device) for part in (chance.top, chance.left, chance.mirror))
    either = torch.arange(num, device=device) + num * mirror
    chosen = torch.cat((images, images.flip(3))).index_select(0, either)
    padded = F.pad(chosen, (pad, pad, pad, pad)).contiguous()  # its memory is read as it lies
    rows, columns = padded.shape[2:]
    length = (channels - 1) * rows * columns + (height - 1) * columns + width
    pieces = padded.as_strided((padded.numel() - length + 1, length), (1, 1))  # one from every pixel on
    first = torch.arange(0, padded.numel(), padded[0].numel(), device=device) + top * columns
    first += torch.where(mirror, 2 * pad - left, left)
    crops = pieces.index_select(0, first)
    return crops.as_strided(images.shape, (length, rows * columns, columns, 1)).contiguous()


def enlarge(images: Tensor, chance: Draw) -> Tensor:
    """Enlarge each image's box, if boxes were drawn, to full size, bilinear between pixel centers."""
    if chance.side is None or chance.corner is None:
        return images
    height, width = images.shape[2:]
    side, corner = send(chance.side, images.device), send(chance.corner, images.device)

    def centers(size: int, place: Tensor) -> Tensor:
        """Centers of the new pixels as grid_sample has them: −1 and 1 are the outer edges."""
        unit = (torch.arange(size, device=images.device) + 0.5) / size
        return 2 * (place[:, None] * (1 - side[:, None]) + unit * side[:, None]) - 1

    y_BHW = centers(height, corner[:, 0])[:, :, None].expand(-1, -1, width)
    x_BHW = centers(width, corner[:, 1])[:, None, :].expand(-1, height, -1)
    grid = torch.stack((x_BHW, y_BHW), dim=-1)
    out = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return out.round_().clamp_(0, 255).to(torch.uint8)


def steps_per_epoch(split: Split, batch_size: int) -> int:
    """How many whole batches an epoch has; the rest, smaller than a batch, is left out of that epoch."""
    if batch_size < 1:
        raise DataError(f"batch size is {batch_size}: expected 1 or more")
    if len(split) < batch_size:
        raise DataError(
            f"the split has {len(split)} images, fewer than one batch of {batch_size}: "
            "use a smaller batch size or more data"
        )
    return len(split) // batch_size


def seeded(seed: int, *tags: str | int) -> torch.Generator:
    """A CPU generator that depends on the seed and on what it is for, and on nothing else."""
    digest = hashlib.sha256(repr((int(seed), *tags)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def batches(
    split: Split,
    batch_size: int,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    seed: int,
    start_step: int = 0,
    augment: bool = False,
    crop_pad: int = 4,
    flip: bool = True,
    scale: tuple[float, float] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Endless `(step, x, y)`: x `(batch_size, C, H, W)` normalized, y `(batch_size,)`, on the split's device.

    Each batch is a pure function of `(seed, step)`: epoch `e = step // steps_per_epoch` has the order
    `shuffle(seed, e)`, and the augmentation is drawn from `(seed, step)`. A stream started at step k is
    therefore bitwise the one that got there. Errors: DataError where the split is smaller than a batch, at
    once and not at the first `next`.
    """
    per_epoch = steps_per_epoch(split, batch_size)
    check_augmentation(crop_pad, scale)
    if start_step < 0:
        raise DataError(f"start_step is {start_step}: expected 0 or more")

    def stream() -> Iterator[tuple[int, Tensor, Tensor]]:
        step, epoch = start_step, -1
        order = torch.empty(0, dtype=torch.int64)
        normalized = Normalization(mean, std, dtype, split.images.device)
        several = max(1, AHEAD // (batch_size * split.images[0].numel()))
        options: dict[str, Any] = {"crop_pad": crop_pad, "flip": flip, "scale": scale}
        while True:
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                shuffle = torch.randperm(len(split), generator=seeded(seed, "order", epoch))
                order = send(shuffle, split.images.device)
            place = step % per_epoch
            num = min(several, per_epoch - place)
            rows = order[place * batch_size : (place + num) * batch_size]
            images = split.images.index_select(0, rows)  # whole images; [rows] goes pixel by pixel
            if augment:
                own = (seeded(seed, "augment", s) for s in range(step, step + num))
                chance = joined([draw(batch_size, generator=g, **options) for g in own], torch.cat)
                images = changed(images, chance, crop_pad)
            parts = (normalized(images), split.labels.index_select(0, rows))
            for x, y in zip(*(part.split(batch_size) for part in parts), strict=True):
                yield step, x, y
                step += 1

    return stream()
