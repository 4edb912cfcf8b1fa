"""Affine maps of a network, one class for linear layers and convolutions, and how they compose exactly.

    y[o, t] = b[o, t] + Σ_{i,a} w[o, i, a] · x[i, s·t + d·a − p]        (x is 0 outside its borders)

A linear layer is a convolution without positions (here one axis of length 1). Everything is computed in float64.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd, prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Ints = tuple[int, ...]
CONVS: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED: dict[int, Any] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_LAYERS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class NotExact(Exception):
    """Two maps whose composition is no map of this kind; the text says why."""


@dataclass(frozen=True, eq=False)
class Map:
    """An affine map on the channels of a tensor, at each position or over windows of positions.

    weight: (out, in/groups, *kernel). bias: (out,), or (out, *positions) where the borders make it depend on the
    position. size: positions of the input; a linear layer has the one axis (1,).
    """

    weight: Tensor
    bias: Tensor | None
    stride: Ints
    padding: Ints
    groups: int
    size: Ints
    linear: bool = False

    @property
    def kernel(self) -> Ints:
        return tuple(self.weight.shape[2:])

    @property
    def channels(self) -> tuple[int, int]:
        """In, out."""
        return self.weight.shape[1] * self.groups, self.weight.shape[0]

    @property
    def size_out(self) -> Ints:
        spans = zip(self.size, self.padding, self.kernel, self.stride, strict=True)
        return tuple((n + 2 * p - k) // s + 1 for n, p, k, s in spans)

    @property
    def plane(self) -> bool:
        """Whether the bias depends on the position."""
        return self.bias is not None and self.bias.ndim > 1

    def flops(self, rows: int) -> float:
        """Multiplications and additions for so many rows (samples, or samples × tokens)."""
        added = prod(self.size_out) * self.channels[1] if self.plane else 0
        return rows * (2.0 * prod(self.size_out) * self.weight.numel() + added)

    def numbers(self) -> int:
        return self.weight.numel() + (0 if self.bias is None else self.bias.numel())

    def module(self, dtype: torch.dtype, device: torch.device) -> nn.Module:
        """The plain torch layer of this map; a bias that depends on the position is to be added to its result."""
        fan_in, fan_out = self.channels
        bias = self.bias is not None and not self.plane
        made: Any
        if self.linear:
            made = nn.utils.skip_init(nn.Linear, fan_in, fan_out, bias=bias, dtype=dtype, device=device)
            made.weight.data.copy_(regroup(self, 1).weight.squeeze(-1))
        else:
            made = nn.utils.skip_init(
                _LAYERS[len(self.size)],
                fan_in,
                fan_out,
                self.kernel,
                stride=self.stride,
                padding=self.padding,
                groups=self.groups,
                bias=bias,
                dtype=dtype,
                device=device,
            )
            made.weight.data.copy_(self.weight)
        if bias:
            made.bias.data.copy_(self.bias)
        return made.eval()

    def __call__(self, x: Tensor) -> Tensor:
        """The map of x (batch, in, *size), in float64."""
        bias = None if self.plane else self.bias
        y = CONVS[len(self.size)](x, self.weight, bias, self.stride, self.padding, groups=self.groups)
        return y + self.bias if self.plane else y


def identity(channels: int, size: Ints, *, linear: bool) -> Map:
    """The identity as a map: a depthwise kernel of one 1."""
    ones = (1,) * len(size)
    return Map(
        torch.ones(channels, 1, *ones, dtype=torch.float64), None, ones, (0,) * len(size), channels, size, linear
    )


def per_channel(scale: Tensor, shift: Tensor, size: Ints, *, linear: bool) -> Map:
    """scale·x + shift for each channel, as an eval-mode BatchNorm does."""
    made = identity(len(scale), size, linear=linear)
    return replace(made, weight=scale.double().view_as(made.weight), bias=shift.double())


def dilated(weight: Tensor, dilation: Ints) -> Tensor:
    """The same kernel without dilation: zeros between its entries."""
    if all(d == 1 for d in dilation):
        return weight
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, weight.shape[2:], strict=True)]
    wide = weight.new_zeros(*weight.shape[:2], *spans)
    wide[(slice(None), slice(None), *(slice(None, None, d) for d in dilation))] = weight
    return wide


def regroup(a: Map, groups: int) -> Map:
    """The same map with fewer groups (a divisor of its own), zeros between those that were."""
    if groups == a.groups:
        return a
    few, per_in, per_out = a.groups // groups, a.weight.shape[1], a.weight.shape[0] // a.groups
    wide = a.weight.new_zeros(groups, few, per_out, few, per_in, *a.kernel)
    blocks = a.weight.view(groups, few, per_out, per_in, *a.kernel)
    for k in range(few):
        wide[:, k, :, k] = blocks[:, k]
    return replace(a, weight=wide.reshape(a.weight.shape[0], few * per_in, *a.kernel), groups=groups)


def compose(a: Map, b: Map) -> Map:
    """b∘a as one map: kernel k_a + (k_b − 1)·s_a, stride s_a·s_b, padding p_a + s_a·p_b.

        w[o, i, c] = Σ_m Σ_{s_a·β + α = c} w_b[o, m, β] · w_a[m, i, α]

    Exact without padding in b. With it, b reads 0 beyond the borders of a's result, while one map would read what a
    makes there of the last values inside: exact only where a reads nothing but its own padding there, as a 1×1 does.
    The bias of a then reaches fewer taps at the borders: the composed bias depends on the position.

    Raises `NotExact` where it is not.
    """
    if a.linear != b.linear or len(a.size) != len(b.size):
        raise NotExact("one is a linear layer, the other a convolution")
    if a.size_out != b.size or a.channels[1] != b.channels[0]:
        raise NotExact("the shapes between them do not fit")
    spans = zip(a.size, b.size, a.kernel, a.stride, a.padding, b.padding, strict=True)
    for n, n_mid, k, s, p, p_next in spans:
        beyond = k - 1 - p >= s or s * n_mid - p < n  # before the first place of a's result, or behind the last
        if p_next and beyond:
            window, then = _text(a.kernel), _text(b.padding)
            raise NotExact(
                f"padding {then} comes after a {window} window: at the borders one map would read what the first makes "
                "of values beyond them, and the two read zeros"
            )
    groups = gcd(a.groups, b.groups)
    a, b = regroup(a, groups), regroup(b, groups)
    num_dims, out, mid, fan_in = len(a.size), b.weight.shape[0] // groups, b.weight.shape[1], a.weight.shape[1]
    later = b.weight.view(groups, out, mid, *b.kernel).transpose(0, 1).reshape(out, groups * mid, *b.kernel)
    kernel = _TRANSPOSED[num_dims](later, a.weight, stride=a.stride, groups=groups)
    kernel = kernel.view(out, groups, fan_in, *kernel.shape[2:]).transpose(0, 1)
    return Map(
        kernel.reshape(groups * out, fan_in, *kernel.shape[3:]).contiguous(),
        _bias(a, b),
        tuple(s * t for s, t in zip(a.stride, b.stride, strict=True)),
        tuple(p + s * q for p, s, q in zip(a.padding, a.stride, b.padding, strict=True)),
        groups,
        a.size,
        a.linear,
    )


def _bias(a: Map, b: Map) -> Tensor | None:
    """What b makes of a's bias, and its own."""
    if a.bias is None:
        return b.bias
    if not a.plane and not any(b.padding) and not b.plane:
        per_out = torch.einsum("gom,gm->go", *_by_group(b, a.bias)).reshape(-1)
        return per_out if b.bias is None else per_out + b.bias
    constant = a.bias if a.plane else a.bias.view(-1, *(1,) * len(b.size)).expand(-1, *b.size)
    made = b(constant.unsqueeze(0))[0]
    first = made.flatten(1)[:, :1]
    return first[:, 0].contiguous() if bool((made.flatten(1) == first).all()) else made


def _by_group(b: Map, bias: Tensor) -> tuple[Tensor, Tensor]:
    taps = b.weight.flatten(2).sum(2)
    return taps.view(b.groups, -1, taps.shape[1]), bias.view(b.groups, -1)


def total(a: Map, b: Map) -> Map:
    """a + b of one input as one map: the smaller kernel is set into the larger one, where both read the same place.

    Raises `NotExact` where strides differ or neither kernel covers the other.
    """
    if a.linear != b.linear or a.size != b.size or a.stride != b.stride or a.size_out != b.size_out:
        raise NotExact("the two sides of the addition have different strides or sizes")
    if a.channels != b.channels:
        raise NotExact("the two sides of the addition have different channels")
    groups = gcd(a.groups, b.groups)
    a, b = regroup(a, groups), regroup(b, groups)
    left = [max(p, q) for p, q in zip(a.padding, b.padding, strict=True)]
    right = [
        max(k - p, m - q) for k, p, m, q in zip(a.kernel, a.padding, b.kernel, b.padding, strict=True)
    ]  # taps from the output's own place on
    weight = sum(_set_in(m, left, right) for m in (a, b))
    assert isinstance(weight, Tensor)
    made = Map(weight, _add_bias(a, b), a.stride, tuple(left), groups, a.size, a.linear)
    if made.size_out != a.size_out:
        raise NotExact("neither window of the addition covers the other")
    return made


def _set_in(m: Map, left: list[int], right: list[int]) -> Tensor:
    pads: list[int] = []
    for k, p, before, after in zip(m.kernel, m.padding, left, right, strict=True):
        pads = [before - p, after - (k - p), *pads]  # F.pad counts from the last axis
    return F.pad(m.weight, pads)


def _add_bias(a: Map, b: Map) -> Tensor | None:
    if a.bias is None or b.bias is None:
        return b.bias if a.bias is None else a.bias
    x, y = a.bias, b.bias
    if a.plane != b.plane:
        wide = (-1, *(1,) * len(a.size))
        x, y = (x, y.view(wide)) if a.plane else (x.view(wide), y)
    return x + y


def rows_of(a: Map, keep: Tensor) -> Map:
    """The map to some of its output channels."""
    a = regroup(a, 1)
    return replace(a, weight=a.weight[keep], bias=None if a.bias is None else a.bias[keep])


def columns_of(a: Map, keep: Tensor, *, bias: bool) -> Map:
    """The map of some of its input channels; with or without the bias."""
    a = regroup(a, 1)
    return replace(a, weight=a.weight[:, keep], bias=a.bias if bias else None)


def _text(values: Ints) -> str:
    return (
        "×".join(map(str, values))
        if len(set(values)) > 1 or len(values) == 1
        else "×".join([str(values[0])] * len(values))
    )
