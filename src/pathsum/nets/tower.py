"""The paper's network: encoder, n residual blocks z + λ·F(z) of constant shape, decoder.

The paper is Dherin & Munn 2025, "On residual network depth" (arXiv 2510.03470), Appendix A.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Literal, Self, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathsum.errors import PathsumError
from pathsum.nets.checkpointing import Step
from pathsum.nets.memory import Memory, Mode
from pathsum.scaling import Rule, parse_rule

Encoder = Literal["imagenet", "conv3x3", "affine"]
Norm = Literal["batch"] | None
Init = Literal["lecun", "he", "torch"]
Activation = Literal["relu", "tanh", "gelu", "silu", "identity"]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "identity": nn.Identity,
}
# Standard deviation of a unit normal cut at ±2, by which flax divides to keep the variance asked for.
TRUNCATED_STD = 0.87962566103423978


class OptionError(PathsumError, ValueError):
    """A network was asked for with an option that does not exist."""


class SumOfPaths(nn.Module):
    """Encoder, residual blocks z ← z + λᵢ·Fᵢ(z), decoder: what towers of any branch share (Eqs. 1 and 2)."""

    encoder: nn.Module
    blocks: nn.ModuleList  # the branches Fᵢ
    decoder: nn.Sequential
    lam: nn.Parameter | None  # where λ is learned
    config: dict[str, Any]  # builds this network again
    _fixed: tuple[float, ...]  # where it is not
    _memory = Memory()

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.memory.chain(self.steps(), self.encoder(x)))

    def block(self, i: int, z: Tensor) -> Tensor:
        """One block, z + λᵢ·Fᵢ(z)."""
        branch = self.blocks[i](z)
        return torch.add(z, branch, alpha=self._fixed[i]) if self.lam is None else z + self.lam[i] * branch

    def steps(self) -> list[Step]:
        """The blocks, each with the modules whose parameters it reads; λ is this module's own."""
        return [Step(partial(self.block, i), (self, *branch.modules())) for i, branch in enumerate(self.blocks)]

    @property
    def memory(self) -> Memory:
        """How much the blocks keep for the gradient; set it to "plain", "checkpoint", "reverse" or a `Memory`."""
        return self._memory

    @memory.setter
    def memory(self, memory: Mode | Memory) -> None:
        self._memory = memory if isinstance(memory, Memory) else Memory(memory)

    @property
    def scales(self) -> tuple[float, ...]:
        """λ_1..λ_n in force; where they are learned, their values now."""
        return self._fixed if self.lam is None else tuple(self.lam.tolist())

    def rescale(self, rule: str | float | Sequence[float] | Rule) -> Self:
        """Put another rule on λ, in place, and return self; a learned rule starts a new parameter `lam`."""
        parsed = parse_rule(rule)
        values = parsed.values(len(self.blocks))
        weight = self.decoder.get_parameter("linear.weight")
        lam = torch.tensor(values, dtype=weight.dtype, device=weight.device)
        self.register_parameter("lam", nn.Parameter(lam) if parsed.learned else None)
        self._fixed = values
        self.config["scale"] = parsed.text
        return self

    def extra_repr(self) -> str:
        return f"depth={len(self.blocks)}, scale={self.config['scale']}"


class ResidualTower(SumOfPaths):
    """The paper's residual network: `f = D ∘ (1+λF_n) ∘ … ∘ (1+λF_1) ∘ E`, images to logits.

    `F_i = Conv3×3(act(Conv3×3(z)))` without biases, or `BN(Conv(act(BN(Conv(z)))))` with `norm="batch"`;
    width and resolution are constant and no activation follows the addition. Shapes: `(B, in_channels, H, W)`
    to `(B, num_classes)`; a 32×32 image is an 8×8 map in an `"imagenet"` tower, 32×32 in the others.

    depth: the number of blocks n (two convolutions each); 0 is the base model D ∘ E.
    encoder: `"imagenet"`, flax's ImageNet stem (7×7/2 convolution, BN, ReLU, 3×3/2 SAME max-pool);
        `"conv3x3"` (convolution, BN, activation); `"affine"` (one convolution with bias: M_0 is affine).
    norm: in the branches, None or `"batch"`; stem_norm: whether the stem keeps its BN. BN has eps 1e-5 and
        momentum 0.1 (flax counts the other way: 0.9). zero_init_last: their last BN scale starts at 0.
    init: `"lecun"` (flax's default: truncated normal, variance 1/fan_in, zero biases), `"he"` (normal,
        2/fan_in), `"torch"` (PyTorch's defaults). The paper does not say, and it decides the branch gain,
        E‖F(z)‖² over ‖z‖²: about ½, 2 and 1/18, before zero padding takes its share.
    scale: the rule for λ, see `pathsum.scaling.parse_rule`; a learned one makes `lam` a parameter.
    seed: None draws from PyTorch's global generator; a number has its own, and leaves the global one alone.

    >>> ResidualTower(2, 8, encoder="affine", seed=0)(torch.zeros(5, 3, 8, 8)).shape
    torch.Size([5, 10])

    Raises OptionError for an unknown option, RuleError for an unknown rule, LambdaError for a list of λ of
    another length.
    """

    lam: nn.Parameter | None

    def __init__(
        self,
        depth: int = 16,
        width: int = 256,
        *,
        num_classes: int = 10,
        in_channels: int = 3,
        encoder: Encoder = "imagenet",
        norm: Norm = None,
        stem_norm: bool = True,
        init: Init = "lecun",
        scale: str | float | Sequence[float] | Rule = "1/sqrt(n)",
        activation: Activation = "relu",
        zero_init_last: bool = False,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        check_counts(depth=depth, width=width, num_classes=num_classes, in_channels=in_channels)
        check_choice("encoder", encoder, get_args(Encoder))
        check_options(norm=norm, init=init, activation=activation, zero_init_last=zero_init_last, seed=seed)
        self.config: dict[str, Any] = {
            "depth": depth,
            "width": width,
            "num_classes": num_classes,
            "in_channels": in_channels,
            "encoder": encoder,
            "norm": norm,
            "stem_norm": bool(stem_norm),
            "init": init,
            "scale": parse_rule(scale).text,
            "activation": activation,
            "zero_init_last": bool(zero_init_last),
            "seed": seed,
        }
        act = ACTIVATIONS[activation]
        self._fixed = parse_rule(scale).values(depth)  # checked before anything large is built
        with torch.device("meta"):  # shapes only: `materialize` draws every weight once
            self.encoder = build_encoder(encoder, in_channels, width, norm=stem_norm, act=act)
            self.blocks = nn.ModuleList(Branch(width, norm=norm, act=act) for _ in range(depth))
            self.decoder = nn.Sequential(
                OrderedDict(pool=MeanPool(), linear=nn.Linear(width, num_classes)),
            )
        materialize(self, init, seed)
        if zero_init_last:
            zero_last_scales(self.blocks)
        self.rescale(scale)


class Branch(nn.Sequential):
    """F: convolution, activation, convolution, each convolution followed by BN where `norm` is `"batch"`."""

    def __init__(self, width: int, *, norm: Norm, act: type[nn.Module]) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["conv1"] = nn.Conv2d(width, width, 3, padding=1, bias=False)
        if norm:
            layers["norm1"] = nn.BatchNorm2d(width)
        layers["act"] = act()
        layers["conv2"] = nn.Conv2d(width, width, 3, padding=1, bias=False)
        if norm:
            layers["norm2"] = nn.BatchNorm2d(width)
        super().__init__(layers)


class SamePool(nn.Module):
    """3×3 max-pool with stride 2 and TensorFlow's SAME padding: the extra row and column come last."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        x = F.pad(x, (width % 2, 1, height % 2, 1), value=-math.inf)
        return F.max_pool2d(x, 3, stride=2)


class MeanPool(nn.Module):
    """Global average pool, `(B, C, H, W)` to `(B, C)`."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3))


def build_encoder(kind: Encoder, in_channels: int, width: int, *, norm: bool, act: type[nn.Module]) -> nn.Module:
    """The encoder E of one of the three kinds."""
    if kind == "affine":
        return nn.Conv2d(in_channels, width, 3, padding=1)
    if kind == "imagenet":
        convolution = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
        rest = OrderedDict(act=nn.ReLU(), pool=SamePool())  # flax's stem has a ReLU whatever the branches have
    else:
        convolution = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        rest = OrderedDict(act=act())
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv=convolution)
    if norm:
        layers["norm"] = nn.BatchNorm2d(width)
    return nn.Sequential(OrderedDict(layers | rest))


def materialize(net: nn.Module, init: Init, seed: int | None) -> None:
    """Replace the shapes on the meta device by weights drawn once, in the order the layers were defined.

    Drawn on the CPU, so that a seed means the same weights on every device; left empty where the default
    device is meta.
    """
    device = torch.get_default_device()
    if device.type == "meta":
        return
    net.to_empty(device="cpu")
    generator = None if seed is None else torch.Generator("cpu").manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            draw(module, init, generator)
        elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.reset_parameters()
    net.to(device)


def draw(layer: nn.Conv2d | nn.Linear, init: Init, generator: torch.Generator | None) -> None:
    """Initialize one layer; fan_in counts the inputs of one output, kernel positions included."""
    fan_in = layer.weight[0].numel()
    std = math.sqrt((2 if init == "he" else 1) / fan_in)
    if init == "lecun":
        truncated_normal_(layer.weight, std / TRUNCATED_STD, generator)
    elif init == "he":
        nn.init.normal_(layer.weight, std=std, generator=generator)
    else:  # kaiming_uniform with a = √5, as PyTorch's layers do it
        nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
    if layer.bias is not None:
        if init == "torch":
            nn.init.uniform_(layer.bias, -1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in), generator=generator)
        else:
            nn.init.zeros_(layer.bias)


def truncated_normal_(weight: Tensor, std: float, generator: torch.Generator | None) -> None:
    """Fill with std · (a unit normal cut at ±2), by the inverse CDF as in jax.

    `nn.init.trunc_normal_` draws by rejection since PyTorch 2.13, 80 times slower: minutes at depth 1000.
    """
    bound = math.erf(2 / math.sqrt(2))
    with torch.no_grad():
        weight.uniform_(-bound, bound, generator=generator).erfinv_().mul_(math.sqrt(2)).clamp_(-2, 2).mul_(std)


def zero_last_scales(blocks: Iterable[nn.Module]) -> None:
    """Start every branch at zero through the scale of its last BN, as flax's ImageNet ResNet does."""
    for branch in blocks:
        nn.init.zeros_(branch.get_parameter("norm2.weight"))


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    if value not in choices:
        raise OptionError(f"{name}={value!r} is unknown: choose one of {', '.join(map(repr, choices))}")


def check_counts(*, depth: int, **counts: int) -> None:
    for name, value in {"depth": depth, **counts}.items():
        least = 0 if name == "depth" else 1
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise OptionError(f"{name}={value!r} is not possible: give an integer ≥ {least}")


def check_options(*, norm: object, init: object, activation: object, zero_init_last: bool, seed: object) -> None:
    """Refuse what no branch can be built from."""
    check_choice("norm", norm, (None, "batch"))
    check_choice("init", init, get_args(Init))
    check_choice("activation", activation, tuple(ACTIVATIONS))
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**64):
        raise OptionError(f"seed={seed!r} is not possible: give None or an integer ≥ 0 and below 2^64")
    if zero_init_last and norm is None:
        raise OptionError("zero_init_last=True needs a BN in the branch: add norm='batch', or leave it out")
