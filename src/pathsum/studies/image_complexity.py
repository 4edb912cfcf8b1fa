"""How complex an image is, and how hard to a network; rank correlation with an interval."""

from __future__ import annotations

import zlib

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pathsum.attacks import margin
from pathsum.studies.ranks import spearman

IMAGE = {  # measures of the image alone
    "bytes": "compressed size",
    "variation": "total variation",
    "high": "high-frequency share",
    "contrast": "contrast",
}
DIFFICULTY = {
    "loss": "loss",
    "margin": "margin",
    "entropy": "entropy of the prediction",
}  # what the network makes of it


def image_measures(images: Tensor) -> dict[str, np.ndarray]:
    """Of uint8 images (N, C, H, W), each (N,): bytes, variation, high and contrast, by the functions below."""
    pixels = images.cpu().double() / 255
    return {
        "bytes": compressed(images),
        "variation": variation(pixels).numpy(),
        "high": high_share(pixels).numpy(),
        "contrast": pixels.flatten(1).std(1, correction=0).numpy(),
    }


def compressed(images: Tensor) -> np.ndarray:
    """Bytes of each image as PNG would have them: each row less its left neighbors (filter Sub), then deflate.

    >>> import torch
    >>> flat, noise = torch.zeros(1, 1, 8, 8).byte(), torch.arange(64).mul(37).remainder(251).view(1, 1, 8, 8).byte()
    >>> (compressed(flat) < compressed(noise)).item()
    True
    """
    array = images.cpu().permute(0, 2, 3, 1).numpy()
    left = np.pad(array, ((0, 0), (0, 0), (1, 0), (0, 0)))[:, :, :-1]
    return np.array([len(zlib.compress((one - other).tobytes(), 9)) for one, other in zip(array, left, strict=True)])


def variation(pixels: Tensor) -> Tensor:
    """Anisotropic total variation per pixel, Σ|x_{i+1,j} − x_{ij}| + |x_{i,j+1} − x_{ij}| over CHW; (N,)."""
    down, right = pixels.diff(dim=2).abs(), pixels.diff(dim=3).abs()
    return (down.flatten(1).sum(1) + right.flatten(1).sum(1)) / pixels[0].numel()


def high_share(pixels: Tensor) -> Tensor:
    """Share of the power spectrum, without the mean, above ¼ of a cycle per pixel; (N,), 0 for a flat image.

    The frequency of (u, v) is √(u² + v²), half of the highest along an axis being ¼.
    """
    power = torch.fft.fft2(pixels).abs().square().sum(1)
    rows, columns = (torch.fft.fftfreq(n, dtype=pixels.dtype) for n in pixels.shape[-2:])
    frequency = (rows[:, None].square() + columns.square()).sqrt()
    power = power * (frequency > 0)
    flat = pixels.flatten(2).amax((1, 2)) == pixels.flatten(2).amin((1, 2))
    share = (power * (frequency > 0.25)).sum((1, 2)) / power.sum((1, 2)).clamp_min(torch.finfo(pixels.dtype).tiny)
    return share.masked_fill(flat, 0.0)


def difficulty(logits: Tensor, labels: Tensor) -> dict[str, np.ndarray]:
    """Of logits (N, classes), each (N,): cross-entropy, margin of the right class, entropy of the prediction (nats)."""
    logits, labels = logits.detach().double().cpu(), labels.cpu()
    log_p = logits.log_softmax(1)
    return {
        "loss": F.cross_entropy(logits, labels, reduction="none").numpy(),
        "margin": margin(logits, labels).numpy(),
        "entropy": -(log_p.exp() * log_p).sum(1).numpy(),
    }


def bootstrap(a: np.ndarray, b: np.ndarray, *, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile interval of Spearman's correlation over images drawn again with replacement."""
    generator = np.random.default_rng(seed)
    draws = generator.integers(len(a), size=(resamples, len(a)))
    found = [spearman(a[rows], b[rows]) for rows in draws]
    low, high = np.nanquantile(found, [0.025, 0.975]) if not np.isnan(found).all() else (np.nan, np.nan)
    return float(low), float(high)
