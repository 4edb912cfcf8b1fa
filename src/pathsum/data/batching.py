"""From uint8 images to normalized batches: augmentation on the device, and a resumable stream."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pathsum.data.splits import Split
from pathsum.errors import DataError


def normalize(
    images: Tensor, mean: Sequence[float], std: Sequence[float], *, dtype: torch.dtype = torch.float32
) -> Tensor:
    """`(images/255 − mean)/std` per channel; `(B, C, H, W)` uint8 to `dtype`.

    The arithmetic is in float32, or float64 where `dtype` is that.

    >>> normalize(torch.full((1, 1, 1, 1), 255, dtype=torch.uint8), [0.5], [0.25]).item()
    2.0
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or not len(mean) == len(std) == images.shape[1]:
        raise DataError(
            f"normalize: expected uint8 (B, C, H, W) and C values in mean and std, got {images.dtype} "
            f"{tuple(images.shape)}, {len(mean)} and {len(std)}; pass the raw images of a split"
        )
    exact = torch.promote_types(dtype, torch.float32)
    shift, divisor = (
        send(torch.tensor(tuple(values), dtype=exact), images.device).view(-1, 1, 1) for values in (mean, std)
    )
    return images.to(exact).div_(255).sub_(shift).div_(divisor).to(dtype)


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`; a copy to a GPU is queued behind its work instead of waiting for it."""
    if device.type != "cuda" or tensor.is_cuda or not tensor.numel():
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


@dataclass(frozen=True)
class Draw:
    """The chance in an augmentation, for each image: where to crop, whether to mirror, which box."""

    top: Tensor  # (B,) int64, row of the padded image at which the crop starts
    left: Tensor  # (B,) int64, the column
    mirror: Tensor  # (B,) bool
    side: Tensor  # (B,) share of height and width that the box keeps, 1 without scaling
    corner: Tensor  # (B, 2) in [0, 1], place of the box: 0 touches the top (left) edge, 1 the bottom (right)


def draw(num: int, *, generator: torch.Generator, crop_pad: int, flip: bool, scale: tuple[float, float] | None) -> Draw:
    """Draw one augmentation for each of `num` images, on the generator's device."""
    device = generator.device
    top, left = torch.randint(0, 2 * crop_pad + 1, (2, num), generator=generator, device=device)
    coin = torch.rand(num, generator=generator, device=device)
    low, high = scale or (1.0, 1.0)
    area = low + (high - low) * torch.rand(num, generator=generator, device=device)
    corner = torch.rand(num, 2, generator=generator, device=device)
    return Draw(top, left, (coin < 0.5) & flip, area.sqrt(), corner)


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
    images = crop(images, chance, crop_pad)
    return images if scale is None else enlarge(images, chance)


def check_augmentation(crop_pad: int, scale: tuple[float, float] | None) -> None:
    """Refuse a negative padding or a scale that is not an interval within (0, 1]."""
    if crop_pad < 0:
        raise DataError(f"crop_pad is {crop_pad}: expected 0 (no random crop) or more pixels")
    if scale is not None and not (len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1):
        raise DataError(f"scale is {scale}: expected (low, high) shares of the area with 0 < low <= high <= 1")


def crop(images: Tensor, chance: Draw, pad: int) -> Tensor:
    """Crop every image at its own place and mirror some: whole windows of the padded batch, not pixels."""
    num, _, height, width = images.shape
    device = images.device
    windows = F.pad(images, (pad, pad, pad, pad)).unfold(2, height, 1).unfold(3, width, 1)  # nothing copied
    crops = windows[torch.arange(num, device=device), :, send(chance.top, device), send(chance.left, device)]
    mirrored = send(chance.mirror.nonzero().squeeze(1), device)
    crops[mirrored] = crops[mirrored].flip(3)
    return crops


def enlarge(images: Tensor, chance: Draw) -> Tensor:
    """Enlarge each image's box to full size, bilinear between pixel centers."""
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
        while True:
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                shuffle = torch.randperm(len(split), generator=seeded(seed, "order", epoch))
                order = send(shuffle, split.images.device)
            start = step % per_epoch * batch_size
            rows = order[start : start + batch_size]
            images = split.images[rows]
            if augment:
                chance = seeded(seed, "augment", step)
                images = _augment(images, generator=chance, crop_pad=crop_pad, flip=flip, scale=scale)
            yield step, normalize(images, mean, std, dtype=dtype), split.labels[rows]
            step += 1

    return stream()


_augment = augment  # `batches` has an option of that name
