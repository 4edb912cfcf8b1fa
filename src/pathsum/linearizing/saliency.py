"""How much the logits feel each slope: a curvature that needs no labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..progress import track
from ..recording import Recorder
from .layout import Site

DIRECTIONS = 10  # backward passes at most, for each piece of the images
PIECE = 32  # images at a time


def felt(
    logits: Callable[[Tensor, list[Tensor]], Tensor],
    slopes: Sequence[Tensor],
    x: Tensor,
    *,
    by_sample: bool,
    progress: bool | None = None,
) -> Tensor:
    """Σₖ Var(∂zₖ/∂α) over images x (N, C, H, W), for all slopes in one row, float64, ≥ 0.

    z are the logits less their mean, (N, K). The sum is the Gauss–Newton curvature of a squared change of the logits,
    less what all images share, which biases and batch norms make up for. The cross-entropy's own gradient (Fisher
    information) is near 0 on images that a trained network fits, and left to the few that it does not. Exact up to 10
    classes; beyond that an unbiased estimate by 10 random signs of the classes.

    `logits(x, α)` with α of shape (N, …), one for each image, if `by_sample`; else images go one at a time.
    """
    first = second = torch.zeros((), dtype=torch.float64, device=x.device)
    pieces = x.split(PIECE if by_sample else 1)
    for images in track(pieces, "what the logits feel of each slope", total=len(pieces), show=progress):
        copies = [slope.detach().repeat(len(images), *(1,) * slope.ndim).requires_grad_() for slope in slopes]
        z = logits(images, copies)
        rows = directions(z.shape[1]).to(z) @ (z - z.mean(1, keepdim=True)).T
        found = []
        for k, row in enumerate(rows):
            grads = torch.autograd.grad(row.sum(), copies, retain_graph=k + 1 < len(rows), materialize_grads=True)
            found.append(torch.cat([g.reshape(len(images), -1) for g in grads], 1).double())
        each = torch.stack(found)  # (directions, images, slopes)
        first, second = first + each.sum(1), second + each.square().sum(1)
    return (second / len(x) - (first / len(x)).square()).clamp_min(0).sum(0)


def directions(classes: int) -> Tensor:
    """(D, classes) with E[VᵀV] = 1: the classes themselves, or random signs where they are many; the same each time."""
    if classes <= DIRECTIONS:
        return torch.eye(classes)
    signs = torch.randint(2, (DIRECTIONS, classes), generator=torch.Generator().manual_seed(0))
    return (2.0 * signs - 1) / DIRECTIONS**0.5


def samples_first(sites: Sequence[Site], recorder: Recorder) -> bool:
    """Whether the first axis of all these units is that of the samples, seen in a run on one."""
    return all(recorder.nodes[recorder.units[site.index].node].shape[0] == 1 for site in sites)
