"""Batch norms taken anew: means and variances of a network as it is now."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..training.contexts import mode
from .result import At


@torch.no_grad()
def renewed(net: At, batches: Iterable[Tensor]) -> None:
    """Replace running means and variances by their means over some batches (B, …), as in train mode.

    Running statistics lag a network whose units were just made linear. They are of images augmented as in training,
    if the batches are: a network trained on those does worse with the statistics of others.
    """
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    before = [norm.momentum for norm in norms]
    try:
        with mode(net, training=True):
            for number, x in enumerate(batches if norms else (), 1):
                for norm in norms:
                    norm.momentum = 1 / number  # running values are then the means of all
                net(x)
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum
