"""A plain network, without skips, that trains well: RepVGG, whose parallel branches fold into one convolution each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathsum.nets.tower import OptionError, check_counts


class PlainNet(nn.Module):
    """A chain of conv3×3–BN–ReLU without skips, then the mean over the map and a linear layer.

    widths: channels of each layer; a layer with more channels than the one before halves the map, but for the first.
    Shapes: `(B, in_channels, H, W)` to `(B, num_classes)`. Its average path length is its depth, `len(widths)`.

    >>> PlainNet((4, 4, 8), in_channels=1, seed=0)(torch.zeros(5, 1, 8, 8)).shape
    torch.Size([5, 10])

    Raises OptionError for widths that are none.
    """

    def __init__(
        self,
        widths: Sequence[int] = (16, 16, 16, 32, 32, 32, 64, 64),
        *,
        in_channels: int = 3,
        num_classes: int = 10,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        check_widths(widths, in_channels, num_classes)
        self.config: dict[str, Any] = {
            "widths": list(widths), "in_channels": in_channels, "num_classes": num_classes, "seed": seed,
        }  # fmt: skip
        with drawn(seed):
            self.layers = nn.Sequential(*(self.layer(*each) for each in shapes_of(widths, in_channels)))
            self.linear = nn.Linear(widths[-1], num_classes)

    def layer(self, inside: int, outside: int, stride: int) -> nn.Module:
        """One layer, with what comes after it."""
        return nn.Sequential(
            nn.Conv2d(inside, outside, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(outside), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.layers(x).mean((2, 3)))


class RepVGG(PlainNet):
    """`PlainNet` as it is trained: each layer is ReLU(BN(conv3×3) + BN(conv1×1) + BN(identity)), and `fold` merges it.

    The identity is there where the shape stays. The branches make training as easy as skips do, and are gone after:
    conv1×1 and identity are 3×3 kernels that are zero but in the middle, and a batch norm in eval mode is affine.

    Source: Ding et al. 2021, "RepVGG: Making VGG-style ConvNets Great Again".

    >>> net = RepVGG((4, 4), in_channels=1, seed=0).eval()
    >>> x = torch.linspace(-1, 1, 6 * 64).view(6, 1, 8, 8)
    >>> torch.allclose(net.fold(x)(x), net(x), atol=1e-6)
    True
    """

    def layer(self, inside: int, outside: int, stride: int) -> nn.Module:
        return RepLayer(inside, outside, stride)

    @torch.no_grad()
    def fold(self, x: Tensor) -> PlainNet:
        """The plain network with the same outputs in eval mode, itself in eval mode.

        Its batch norms have the means and variances of its convolutions on `x` (B, C, H, W), and scales and biases
        that undo them, so that it computes nearly the same in train mode too, on images like these.
        """
        plain = PlainNet(**{**self.config, "seed": 0}).to(x).eval()
        for layer, made in zip(self.layers, plain.layers, strict=True):
            assert isinstance(layer, RepLayer)
            assert isinstance(made, nn.Sequential)
            conv, norm = made[0], made[1]
            assert isinstance(conv, nn.Conv2d)
            assert isinstance(norm, nn.BatchNorm2d)
            weight, bias = layer.folded()
            conv.weight.copy_(weight)
            before = conv(x)
            variance, mean = torch.var_mean(before, (0, 2, 3))
            norm.load_state_dict({**norm.state_dict(), "running_mean": mean, "running_var": variance})
            norm.weight.copy_((variance + norm.eps).sqrt())
            norm.bias.copy_(mean + bias)
            x = made(x)
        plain.linear.load_state_dict(self.linear.state_dict())
        return plain


class RepLayer(nn.Module):
    """ReLU(BN(conv3×3(x)) + BN(conv1×1(x)) + BN(x)), the last where the shape stays."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv3 = nn.Conv2d(inside, outside, 3, stride=stride, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(outside)
        self.conv1 = nn.Conv2d(inside, outside, 1, stride=stride, bias=False)
        self.norm1 = nn.BatchNorm2d(outside)
        self.norm0 = nn.BatchNorm2d(outside) if inside == outside and stride == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm3(self.conv3(x)) + self.norm1(self.conv1(x))
        return F.relu(out if self.norm0 is None else out + self.norm0(x))

    def folded(self) -> tuple[Tensor, Tensor]:
        """Kernel (outside, inside, 3, 3) and bias (outside,) of the one convolution that it is in eval mode."""
        scale, bias = affine(self.norm3)
        weight = self.conv3.weight * scale.view(-1, 1, 1, 1)
        scale1, bias1 = affine(self.norm1)
        weight[:, :, 1, 1] += self.conv1.weight[:, :, 0, 0] * scale1.view(-1, 1)
        bias = bias + bias1
        if self.norm0 is not None:
            scale0, bias0 = affine(self.norm0)
            weight[:, :, 1, 1] += torch.diag(scale0)
            bias = bias + bias0
        return weight, bias


def affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Scale and bias that a batch norm is in eval mode."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return scale, norm.bias - norm.running_mean * scale


def shapes_of(widths: Sequence[int], in_channels: int) -> list[tuple[int, int, int]]:
    """Channels in, channels out, and stride of each layer."""
    before = [in_channels, *widths[:-1]]
    return [(a, b, 2 if k and b > a else 1) for k, (a, b) in enumerate(zip(before, widths, strict=True))]


def check_widths(widths: Sequence[int], in_channels: int, num_classes: int) -> None:
    """Refuse what is no chain of layers."""
    if not len(widths):
        raise OptionError("widths is empty: give the channels of one layer or more")
    for k, width in enumerate(widths):
        check_counts(depth=0, **{f"widths[{k}]": width})
    check_counts(depth=0, in_channels=in_channels, num_classes=num_classes)


@contextmanager
def drawn(seed: int | None) -> Iterator[None]:
    """Draw weights from a seed, and leave the global generator alone; from it, where there is no seed."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
