"""What the logits feel of each slope: central differences, image by image and slope by slope."""

from collections.abc import Callable

import torch
from torch import Tensor


def felt(
    logits: Callable[[Tensor, Tensor], Tensor], slopes: Tensor, x: Tensor, directions: Tensor, step: float = 1e-5
) -> Tensor:
    """Σ over the directions v of Var over images of v·∂z/∂α, z the logits less their mean; `logits(image, flat α)`."""
    found = torch.zeros(len(slopes), dtype=torch.float64)
    for i in range(len(slopes)):
        nudge = torch.zeros_like(slopes)
        nudge[i] = step
        rows = []
        for image in x.split(1):
            change = (logits(image, slopes + nudge) - logits(image, slopes - nudge))[0] / (2 * step)
            rows.append(directions @ (change - change.mean()))
        found[i] = torch.stack(rows).var(0, unbiased=False).sum()
    return found
