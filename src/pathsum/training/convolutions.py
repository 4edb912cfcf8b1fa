"""The convolutions of several networks at once, and the quicker forms of some on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Convolution = Callable[[Tensor, Tensor, nn.Conv2d, int], Tensor]


def grouped(x: Tensor, weight: Tensor, layer: nn.Conv2d, num: int) -> Tensor:
    """The convolutions of `num` networks as one with so many groups."""
    return F.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation, num)


def each(x: Tensor, weight: Tensor, layer: nn.Conv2d, num: int) -> Tensor:
    """The same one by one."""
    parts = zip(x.chunk(num, 1), weight.chunk(num), strict=True)
    return torch.cat([grouped(part, w, layer, 1) for part, w in parts], 1)


def transposed(x: Tensor, weight: Tensor, layer: nn.Conv2d, num: int) -> Tensor:
    """The gradient of `grouped` to its input, where that has the size of its output, given the one to its output."""
    return F.conv_transpose2d(x, weight, None, layer.stride, layer.padding, 0, num, layer.dilation)


def weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, layer: nn.Conv2d, num: int) -> Tensor:
    """The gradient of `grouped` to its weight."""
    options = (layer.stride, layer.padding, layer.dilation, False, (0, 0), num)
    gradients = torch.ops.aten.convolution_backward.default(grad, x, weight, None, *options, (False, True, False))
    found: Tensor = gradients[1]
    return found


class Stem(torch.autograd.Function):
    """`grouped` for images, which need no gradient; that of the weight is taken network by network.

    With three input channels a group, oneDNN takes twice as long or more for all groups at once.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, layer: nn.Conv2d, num: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.layer, ctx.num = layer, num
        return grouped(x, weight, layer, num)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        found = torch.empty_like(weight)
        parts = (grad.chunk(ctx.num, 1), x.chunk(ctx.num, 1), weight.chunk(ctx.num), found.chunk(ctx.num))
        for own_grad, own_x, own_weight, into in zip(*parts, strict=True):
            into.copy_(weight_gradient(own_grad, own_x, own_weight, ctx.layer, 1))
        return None, found, None, None


def turned(weights: Tensor, num: int) -> list[Tensor]:
    """The kernels `(layers, num·C, C, k, k)` of each layer that make `transposed` what `grouped` is."""
    several = weights.split(max(1, 2**18 // weights[0].numel()))  # an index for all would be larger than the weights
    parts = [part.flatten().index_select(0, _turn(part.shape, num)).view_as(part) for part in several]
    return [kernel for part in parts for kernel in part.unbind()]


@cache
def _turn(shape: torch.Size, num: int) -> Tensor:
    """Where each weight of the turned kernels comes from: one gather takes half the time of turning them."""
    places = torch.arange(shape.numel(), device="cpu").view(shape)
    return places.unflatten(1, (num, -1)).transpose(2, 3).flip(4, 5).flatten()


class Blocks(torch.autograd.Function):
    """Blocks `z + λ Conv(relu(Conv(z)))` without biases, one after the other, in oneDNN's layout from first to last.

    What is cut or added is so in place, and one function for all spares the graph's bookkeeping at every block. In
    blocks of 8 channels oneDNN has a quicker kernel for the gradient to the input than for the convolution, which at
    stride 1 is that gradient for turned kernels: at width 16, 122 GFLOP/s against 86 on two AVX2 cores. So that form
    is taken both ways. λ is `(num, depth)`; `weights` are those of the first block, then those of the second and so
    on; where `keep` is False nothing is kept for gradients.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, layer: nn.Conv2d, num: int, keep: bool, lam: Tensor, *weights: Tensor) -> Tensor:
        every = torch.stack(weights)
        every.view(-1, 2, num, weights[0].numel() // num)[:, 1].mul_(lam.t().unsqueeze(2))
        kernels, maps = turned(every, num), []
        z = z.to_mkldnn()
        for first, second in zip(kernels[::2], kernels[1::2], strict=True):
            h = transposed(z, first, layer, num).relu_()
            maps += [z, h] if keep else []
            z = transposed(h, second, layer, num).add_(z)
        ctx.save_for_backward(*maps, lam, every, *weights[1::2])
        ctx.layer, ctx.num = layer, num
        return z.to_dense()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        to_z, _, _, _, to_lam, *needed = ctx.needs_input_grad
        maps, (lam, every, *unscaled) = ctx.saved_tensors[: len(needed)], ctx.saved_tensors[len(needed) :]
        weights, options = every.unbind(), (ctx.layer, ctx.num)
        found: list[Any] = [None] * len(needed)
        into = grad.to_mkldnn()
        for i in range(len(needed) - 2, -1, -2):
            (z, h), (first, second) = maps[i : i + 2], weights[i : i + 2]
            below = to_z or to_lam or any(needed[:i])  # what ends here needs nothing of what is below
            if needed[i + 1] or to_lam:
                found[i + 1] = weight_gradient(into, h, second, *options)
            if not (below or needed[i]):
                break
            into_h = torch.ops.aten.threshold_backward.default(transposed(into, second, *options), h, 0)
            if needed[i]:
                found[i] = weight_gradient(into_h, z, first, *options)
            if not below:
                break
            into = transposed(into_h, first, *options).add_(into)
        lam_grad = _lam_gradient(found[1::2], unscaled, ctx.num) if to_lam else None
        columns = lam.repeat_interleave(len(every[0]) // ctx.num, 0).t().unflatten(1, (-1, 1, 1, 1)).unbind()
        scaled = [(own, by) for own, by in zip(found[1::2], columns, strict=True) if own is not None]
        if scaled:
            torch._foreach_mul_(*zip(*scaled, strict=True))
        found = [own if need else None for own, need in zip(found, needed, strict=True)]
        return (into.to_dense() if to_z else None), None, None, None, lam_grad, *found


def _lam_gradient(grads: list[Tensor], weights: list[Tensor], num: int) -> Tensor:
    """The gradient to λ `(num, depth)`, given those to the weights that it multiplies."""
    rows = [(grad * weight).view(num, -1).sum(1) for grad, weight in zip(grads, weights, strict=True)]
    return torch.stack(rows, 1)
