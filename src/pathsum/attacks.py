"""Attacks on a classifier within an L∞ ball of pixels: FGSM and PGD, untargeted, in the box [0, 1] of images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import PathsumError

Predict = Callable[[Tensor], Tensor]  # pixels (B, C, H, W) in [0, 1] to logits (B, classes)


def fgsm(predict: Predict, x: Tensor, y: Tensor, epsilon: float) -> Tensor:
    """The image one signed gradient step away, x + ε·sign ∇ₓCE, cut to the box; of shape x.

    x: pixels in [0, 1], before any normalization, which belongs into `predict`; y: labels (B,). The gradient is in the
    precision of x. Costs a forward and a backward pass. Source: Goodfellow et al. (2015), arXiv 1412.6572.

    >>> import torch
    >>> weight = torch.tensor([[1.0, -1.0], [0.0, 0.0]])
    >>> fgsm(lambda x: x @ weight.T, torch.tensor([[0.5, 0.5]]), torch.tensor([0]), 0.25)
    tensor([[0.2500, 0.7500]])
    """
    check_epsilon(epsilon)
    return (x + epsilon * gradient(predict, x, y).sign()).clamp(0, 1)


def pgd(
    predict: Predict,
    x: Tensor,
    y: Tensor,
    epsilon: float,
    *,
    steps: int = 20,
    step_size: float | None = None,
    restarts: int = 2,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The worst image found in {x' : |x' − x| ≤ ε, 0 ≤ x' ≤ 1}, that of the lowest margin; of shape x.

    Each restart draws a start uniformly and takes x' ← Π(x' + step_size·sign ∇CE), Π the projection onto ball and box;
    step_size is 2.5·ε/steps by default. The image itself and every iterate are looked at, so that the result is never
    better for the defender than x or than any start. `generator` (on the CPU) makes the starts repeatable. Costs
    restarts·(steps forward and backward passes, and one forward pass). Source: Madry et al. (2018), arXiv 1706.06083.
    """
    check_epsilon(epsilon)
    if steps < 1 or restarts < 1:
        raise PathsumError(f"pgd: steps={steps} and restarts={restarts}, expected 1 or more")
    size = 2.5 * epsilon / steps if step_size is None else step_size
    low, high = (x - epsilon).clamp_min(0), (x + epsilon).clamp_max(1)
    worst, least = x.clone(), margins(predict, x, y)
    for _ in range(restarts):
        draw = torch.rand(x.shape, generator=generator, dtype=x.dtype).to(x.device)
        at = torch.lerp(low, high, draw)
        for k in range(steps + 1):
            logits, slope = with_gradient(predict, at, y) if k < steps else (look(predict, at), None)
            now = margin(logits, y)
            better = ~(now >= least)  # a margin that is not a number is an error of the network
            worst, least = torch.where(spread(better, x), at, worst), torch.where(better, now, least)
            if slope is not None:
                at = torch.minimum(torch.maximum(at + size * slope.sign(), low), high)
    return worst


def robust_accuracy(
    predict: Predict,
    x: Tensor,
    y: Tensor,
    epsilons: Sequence[float],
    attack: Callable[[Tensor, Tensor, float], Tensor],
    *,
    batch_size: int = 256,
) -> list[float]:
    """The share of images that are classified rightly and that no attack up to each ε changed; falls with ε.

    `attack(x, y, epsilon)` returns images. What a smaller ε has fooled stays so, for the larger ball holds that image
    too, and is not attacked again.
    """
    if any(b <= a for a, b in pairwise(epsilons)):
        raise PathsumError(f"epsilons {tuple(epsilons)}: expected them in increasing order")
    left = torch.arange(len(x), device=x.device)
    shares = []
    for epsilon in (0.0, *epsilons):
        keep = []
        for rows in left.split(batch_size):
            images = attack(x[rows], y[rows], epsilon) if epsilon else x[rows]
            keep.append(rows[margins(predict, images, y[rows]) > 0])
        left = torch.cat(keep) if keep else left
        shares.append(len(left) / len(x))
    return shares[1:]


def gradient(predict: Predict, x: Tensor, y: Tensor) -> Tensor:
    """∇ₓ of the cross-entropy of each image, of shape x."""
    return with_gradient(predict, x, y)[1]


def with_gradient(predict: Predict, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (B, classes) and the gradient of each image's cross-entropy, both detached."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        logits = predict(x)
        (slope,) = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), x)
    return logits.detach(), slope


@torch.no_grad()
def look(predict: Predict, x: Tensor) -> Tensor:
    return predict(x)


def margins(predict: Predict, x: Tensor, y: Tensor) -> Tensor:
    """By how much the right logit is above the highest wrong one, (B,); not above 0 where the network errs."""
    return margin(look(predict, x), y)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """The same of logits (B, classes)."""
    right = logits.gather(1, y[:, None])[:, 0]
    return right - logits.scatter(1, y[:, None], -math.inf).amax(1)


def spread(mask: Tensor, x: Tensor) -> Tensor:
    """A mask (B,) in the shape that broadcasts over x."""
    return mask.view(-1, *(1,) * (x.ndim - 1))


def check_epsilon(epsilon: float) -> None:
    if not 0 <= epsilon < math.inf:
        raise PathsumError(f"epsilon is {epsilon}, expected a number of pixel units (1 is white), 0 or more")
