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


def gradients(
    grad: Tensor, x: Tensor, weight: Tensor, layer: nn.Conv2d, num: int, needed: tuple[bool, bool]
) -> tuple[Any, Any]:
    """The gradients of `grouped` to its input and to its weight, where needed."""
    options = (list(layer.stride), list(layer.padding), list(layer.dilation), False, [0, 0], num)
    input_grad, weight_grad, _ = torch.ops.aten.convolution_backward(grad, x, weight, None, *options, [*needed, False])
    return input_grad, weight_grad


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
            into.copy_(gradients(own_grad, own_x, own_weight, ctx.layer, 1, (False, True))[1])
        return None, found, None, None


def turned(x: Tensor, weight: Tensor, layer: nn.Conv2d, num: int) -> Tensor:
    """`grouped` at stride 1, its maps as large as before, as the gradient to the input of the turned kernel.

    In blocks of 8 channels oneDNN has a quicker kernel for that: at width 16, 122 GFLOP/s against 86 on two AVX2 cores.
    """
    kernel = weight.flatten().index_select(0, _turn(weight.shape, num)).view_as(weight)
    return gradients(x, x, kernel, layer, num, (True, False))[0]


@cache
def _turn(shape: torch.Size, num: int) -> Tensor:
    """Where each weight of the turned kernels comes from: one gather takes half the time of turning them."""
    places = torch.arange(shape.numel(), device="cpu").view(shape)
    return places.unflatten(0, (num, -1)).transpose(1, 2).flip(3, 4).flatten()


class Blocks(torch.autograd.Function):
    """Blocks `z + Conv(relu(Conv(z)))` without biases, one after the other, in oneDNN's layout from first to last.

    What is cut or added is so in place, and one function for all spares the graph's bookkeeping at every block.
    `weights` are those of the first block, then those of the second and so on, their λ multiplied in; where `keep`
    is False nothing is kept for gradients.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, layer: nn.Conv2d, num: int, keep: bool, *weights: Tensor) -> Tensor:
        z, maps = z.to_mkldnn(), []
        for first, second in zip(weights[::2], weights[1::2], strict=True):
            h = turned(z, first, layer, num).relu_()
            maps += [z, h] if keep else []
            z = turned(h, second, layer, num).add_(z)
        ctx.save_for_backward(*maps, *weights)
        ctx.layer, ctx.num = layer, num
        return z.to_dense().contiguous(memory_format=torch.channels_last)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        to_z, _, _, _, *needed = ctx.needs_input_grad
        maps, weights = ctx.saved_tensors[: len(needed)], ctx.saved_tensors[len(needed) :]
        found: list[Tensor | None] = [None] * len(needed)
        into, options = grad.to_mkldnn(), (ctx.layer, ctx.num)
        for i in range(len(needed) - 1, 0, -2):
            (z, h), (first, second) = maps[i - 1 : i + 1], weights[i - 1 : i + 1]
            below = to_z or any(needed[: i - 1])
            into_h, found[i] = gradients(into, h, second, *options, (below or needed[i - 1], needed[i]))
            if into_h is None:
                break
            into_h = torch.ops.aten.threshold_backward(into_h, h, 0)
            into_z, found[i - 1] = gradients(into_h, z, first, *options, (below, needed[i - 1]))
            if into_z is None:
                break
            into = into_z.add_(into)
        return (into.to_dense() if to_z else None), None, None, None, *found
