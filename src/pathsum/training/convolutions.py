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


class Block(torch.autograd.Function):
    """`z + Conv(relu(Conv(z)))` without biases, in oneDNN's layout: what is cut or added is so in place."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, first: Tensor, second: Tensor, layer: nn.Conv2d, num: int) -> Tensor:
        h = turned(z, first, layer, num).relu_()
        ctx.save_for_backward(z, h, first, second)
        ctx.layer, ctx.num = layer, num
        return turned(h, second, layer, num).add_(z)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, h, first, second = ctx.saved_tensors
        to_z, to_first, to_second, *_ = ctx.needs_input_grad
        grad_h, grad_second = gradients(grad, h, second, ctx.layer, ctx.num, (to_z or to_first, to_second))
        if grad_h is None:
            return None, None, grad_second, None, None
        grad_h = torch.ops.aten.threshold_backward(grad_h, h, 0)
        grad_z, grad_first = gradients(grad_h, z, first, ctx.layer, ctx.num, (to_z, to_first))
        return grad_z.add_(grad) if to_z else None, grad_first, grad_second, None, None
