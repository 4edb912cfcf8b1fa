"""BatchNorm over the batch of all processes, on CPUs as on GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

BatchNorm = nn.modules.batchnorm._BatchNorm


@contextmanager
def synchronized(model: nn.Module) -> Iterator[None]:
    """Let every BatchNorm of `model` take its batch statistics over all processes of the process group, for a while.

    With N values of a channel in all, on whichever process: mean = Σx/N, variance = Σ(x − mean)²/N, and the running
    variance takes N/(N − 1) of it, as one process with the whole batch does. Weights, buffers and names stay.
    """
    changed = [(m, type(m)) for m in model.modules() if isinstance(m, BatchNorm)]
    kinds = {kind: type(f"Synchronized{kind.__name__}", (_Synchronized, kind), {}) for _, kind in changed}
    try:
        for module, kind in changed:
            module.__class__ = kinds[kind]
        yield
    finally:
        for module, kind in changed:
            module.__class__ = kind


class _Total(torch.autograd.Function):
    """The sum over processes; each one's loss depends on it, so the gradient is a sum over processes too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _summed(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _summed(grad)


def _summed(x: Tensor) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


class _Synchronized(BatchNorm):
    """Comes before the kind of BatchNorm it changes."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training and self.running_mean is not None:
            return super().forward(input)
        self._check_input_dim(input)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        over, shape = [0, *range(2, x.ndim)], (1, -1, *(1,) * (x.ndim - 2))
        number = x.new_full((1,), x.numel() // x.shape[1])
        *_, count = totals = _Total.apply(torch.cat([x.sum(over), number]))
        mean = totals[:-1] / count.detach()
        centered = x - mean.view(shape)
        variance = _Total.apply(centered.square().sum(over)) / count.detach()
        if self.training and self.running_mean is not None and self.running_var is not None:
            self._track(mean, variance * (count / (count - 1)))
        out = centered * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics towards those of this batch."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        part = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), part)
        self.running_var.lerp_(variance.to(self.running_var.dtype), part)
