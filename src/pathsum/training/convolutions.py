"""The convolutions of several networks at once, and the quicker forms of some on a CPU."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from threading import Lock
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


_compiling = Lock()


@cache
def unlocked(work: Callable[..., Any]) -> Callable[..., Any]:
    """`work` as a TorchScript function, where there is one to be had: many operations without Python's lock.

    Of two programs side by side each waits for that lock between its operations, and a processor that is left
    without work takes long to wake. The numbers are the same.
    """
    with _compiling, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript, while nothing replaces it here
        try:
            compiled: Callable[..., Any] = torch.jit.script(work)
        except (AttributeError, OSError, RuntimeError):  # gone, or without the source
            return work
        return compiled


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
        (x, weight), layer = ctx.saved_tensors, ctx.layer
        options = list(layer.stride), list(layer.padding), list(layer.dilation)
        return None, unlocked(one_by_one)(grad, x, weight, ctx.num, *options), None, None


def one_by_one(
    grad: Tensor, x: Tensor, weight: Tensor, num: int, stride: list[int], padding: list[int], dilation: list[int]
) -> Tensor:
    """The gradient to the weight of `num` groups."""
    grads, images, weights = grad.chunk(num, 1), x.chunk(num, 1), weight.chunk(num)
    found = torch.empty_like(weight)
    parts = found.chunk(num)
    mask = [False, True, False]
    for i in range(num):
        own = torch.ops.aten.convolution_backward(
            grads[i], images[i], weights[i], None, stride, padding, dilation, False, [0, 0], 1, mask
        )
        parts[i].copy_(own[1])
    return found


def turned(weights: Tensor, num: int) -> list[Tensor]:
    """Of each layer's kernels, `(layers, num·C, C, k, k)`, those by which a transposed convolution is the plain one."""
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
        padding, dilation = list(layer.padding), list(layer.dilation)
        z, maps = unlocked(up)(z.to_mkldnn(), turned(every, num), num, padding, dilation, keep)
        ctx.save_for_backward(*maps, lam, every, *weights[1::2])
        ctx.options = num, padding, dilation
        return z.to_dense()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        to_z, _, _, _, to_lam, *needed = ctx.needs_input_grad
        maps, (lam, every, *unscaled) = ctx.saved_tensors[: len(needed)], ctx.saved_tensors[len(needed) :]
        num = ctx.options[0]
        wanted = [need or (to_lam and i % 2 == 1) for i, need in enumerate(needed)]
        into, found = unlocked(down)(grad.to_mkldnn(), maps, every.unbind(), *ctx.options, wanted, to_z)
        lam_grad = _lam_gradient(found[1::2], unscaled, num) if to_lam else None
        columns = lam.repeat_interleave(len(every[0]) // num, 0).t().unflatten(1, (-1, 1, 1, 1)).unbind()
        scaled = [(own, by) for own, by in zip(found[1::2], columns, strict=True) if own is not None]
        if scaled:
            torch._foreach_mul_(*zip(*scaled, strict=True))
        found = [own if need else None for own, need in zip(found, needed, strict=True)]
        return (into.to_dense() if to_z else None), None, None, None, lam_grad, *found


def up(
    z: Tensor, kernels: list[Tensor], num: int, padding: list[int], dilation: list[int], keep: bool
) -> tuple[Tensor, list[Tensor]]:
    """All blocks by their turned kernels, and what the gradients need."""
    maps: list[Tensor] = []
    for i in range(0, len(kernels), 2):
        h = torch.conv_transpose2d(z, kernels[i], None, [1, 1], padding, [0, 0], num, dilation).relu_()
        if keep:
            maps += [z, h]
        z = torch.conv_transpose2d(h, kernels[i + 1], None, [1, 1], padding, [0, 0], num, dilation).add_(z)
    return z, maps


def down(
    into: Tensor,
    maps: list[Tensor],
    weights: list[Tensor],
    num: int,
    padding: list[int],
    dilation: list[int],
    wanted: list[bool],
    to_z: bool,
) -> tuple[Tensor, list[Tensor | None]]:
    """The gradients to the input, where it is asked for, and to the weights that are wanted."""
    found: list[Tensor | None] = [None for _ in wanted]
    last = 0 if to_z else len(wanted)  # what ends there needs nothing of what is below
    for i in range(len(wanted)):
        if wanted[i]:
            last = min(last, i)
    above, mask = into, [False, True, False]
    for k in range(len(wanted) - 1, last - 1, -1):
        x, weight = maps[k], weights[k]
        if wanted[k]:
            found[k] = torch.ops.aten.convolution_backward(
                into, x, weight, None, [1, 1], padding, dilation, False, [0, 0], num, mask
            )[1]
        if k > last or to_z:
            below = torch.conv_transpose2d(into, weight, None, [1, 1], padding, [0, 0], num, dilation)
            if k % 2 == 1:
                above = into
                into = torch.ops.aten.threshold_backward(below, x, 0)
            else:
                into = below.add_(above)
    return into, found


def _lam_gradient(grads: list[Tensor], weights: list[Tensor], num: int) -> Tensor:
    """The gradient to λ `(num, depth)`, given those to the weights that it multiplies."""
    rows = [(grad * weight).view(num, -1).sum(1) for grad, weight in zip(grads, weights, strict=True)]
    return torch.stack(rows, 1)
