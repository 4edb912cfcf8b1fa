"""The tower with dense branches and an affine encoder, and the affine base model M_0 of both towers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pathsum.nets.tower import (
    ACTIVATIONS,
    Activation,
    Init,
    Norm,
    OptionError,
    ResidualTower,
    SumOfPaths,
    check_counts,
    check_options,
    materialize,
    zero_last_scales,
)
from pathsum.scaling import Rule, parse_rule


class ResidualMLP(SumOfPaths):
    """`ResidualTower` with dense layers: `F_i = Linear(act(Linear(z)))`, encoder and decoder one Linear each.

    Shapes: `(B, in_features)`, or images that flatten to it, to `(B, num_classes)`. With `norm="batch"` a BN
    follows each layer of a branch. `bias` is for all layers. The other options are those of `ResidualTower`.

    >>> ResidualMLP(4, 16, seed=0)(torch.zeros(5, 1, 8, 8)).shape
    torch.Size([5, 10])

    Raises OptionError for an unknown option, RuleError for an unknown rule, LambdaError for a list of λ of
    another length.
    """

    lam: nn.Parameter | None

    def __init__(
        self,
        depth: int = 16,
        width: int = 64,
        *,
        in_features: int = 64,
        num_classes: int = 10,
        activation: Activation = "relu",
        norm: Norm = None,
        init: Init = "lecun",
        scale: str | float | Sequence[float] | Rule = "1/sqrt(n)",
        bias: bool = True,
        zero_init_last: bool = False,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        check_counts(depth=depth, width=width, num_classes=num_classes, in_features=in_features)
        check_options(norm=norm, init=init, activation=activation, zero_init_last=zero_init_last, seed=seed)
        self.config: dict[str, Any] = {
            "depth": depth,
            "width": width,
            "in_features": in_features,
            "num_classes": num_classes,
            "activation": activation,
            "norm": norm,
            "init": init,
            "scale": parse_rule(scale).text,
            "bias": bool(bias),
            "zero_init_last": bool(zero_init_last),
            "seed": seed,
        }
        act = ACTIVATIONS[activation]
        self._fixed = parse_rule(scale).values(depth)
        with torch.device("meta"):
            self.encoder = nn.Sequential(
                OrderedDict(flatten=nn.Flatten(), linear=nn.Linear(in_features, width, bias=bias))
            )
            self.blocks = nn.ModuleList(DenseBranch(width, norm=norm, act=act, bias=bias) for _ in range(depth))
            self.decoder = nn.Sequential(OrderedDict(linear=nn.Linear(width, num_classes, bias=bias)))
        materialize(self, init, seed)
        if zero_init_last:
            zero_last_scales(self.blocks)
        self.rescale(scale)


class DenseBranch(nn.Sequential):
    """F: dense layer, activation, dense layer, each dense layer followed by BN where `norm` is `"batch"`."""

    def __init__(self, width: int, *, norm: Norm, act: type[nn.Module], bias: bool) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["linear1"] = nn.Linear(width, width, bias=bias)
        if norm:
            layers["norm1"] = nn.BatchNorm1d(width)
        layers["act"] = act()
        layers["linear2"] = nn.Linear(width, width, bias=bias)
        if norm:
            layers["norm2"] = nn.BatchNorm1d(width)
        super().__init__(layers)


def affine_base(net: ResidualMLP | ResidualTower, *, size: tuple[int, int] = (32, 32)) -> tuple[Tensor, Tensor]:
    """Return the base model at λ = 0 as one affine map `M_0(x) = W_0 x + b_0` of the flattened input.

    `W_0 = W_η W_ξ` is (num_classes, inputs), `b_0 = W_η b_ξ + b_η` is (num_classes,), both detached (Dherin &
    Munn 2025, Eq. 12). A convolutional tower must have `encoder="affine"`; its W_0 depends on the image
    `size`, (height, width), and is read off one image by num_classes backward passes through D and E.

    Raises OptionError where the encoder is not known to be affine.
    """
    if isinstance(net, ResidualMLP):
        return _dense_base(net)
    if not isinstance(net, ResidualTower) or net.config["encoder"] != "affine":
        kind = f"encoder={net.config['encoder']!r}" if isinstance(net, ResidualTower) else type(net).__name__
        raise OptionError(
            f"the base model of {kind} is not known to be affine: use a ResidualMLP, or a ResidualTower "
            "with encoder='affine'"
        )
    weight = net.encoder.get_parameter("weight")
    origin = weight.new_zeros(1, weight.shape[1], *size)

    def base(x: Tensor) -> Tensor:
        return net.decoder(net.encoder(x))[0]

    with torch.no_grad():
        offset = base(origin)
    jacobian = torch.autograd.functional.jacobian(base, origin)  # exact, since the map is affine
    return jacobian.flatten(1), offset


@torch.no_grad()
def _dense_base(net: ResidualMLP) -> tuple[Tensor, Tensor]:
    """W_η W_ξ and W_η b_ξ + b_η; a missing bias is zero."""
    encoder = net.encoder.get_parameter("linear.weight")
    decoder = net.decoder.get_parameter("linear.weight")
    if not net.config["bias"]:
        return decoder @ encoder, decoder.new_zeros(len(decoder))
    offset = decoder @ net.encoder.get_parameter("linear.bias") + net.decoder.get_parameter("linear.bias")
    return decoder @ encoder, offset
