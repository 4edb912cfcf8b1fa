"""The case matrix: every model a test may run on, with what is known about it, and its literal twin."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pathsum.nets import ResidualMLP, ResidualTower
from tests import architectures as arch
from tests.reference import models
from tests.reference.pieces import Pieces


@dataclass(frozen=True)
class Case:
    """A model in float64 eval mode with inputs.

    pieces: the model taken apart by hand.
    joins: how many there are.
    smooth: analytic in λ on a whole neighborhood of 0, not only for λ → 0+.
    polynomial: of degree `joins` in λ for small λ > 0, since its branches are piecewise linear.
    radius: of a circle around λ = 0 well within the nearest singularity, in units of the model's own λ.
    """

    name: str
    build: Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]
    pieces: Callable[[nn.Module], Pieces]
    joins: int
    smooth: bool
    polynomial: bool = False
    radius: float = 0.5

    def __str__(self) -> str:
        return self.name


@torch.no_grad()
def randomize(net: nn.Module, generator: torch.Generator) -> nn.Module:
    """Give biases, norms and running statistics values that are not their neutral ones."""

    def normal(a: Tensor, mean: float, std: float) -> None:
        a.copy_(mean + std * torch.randn(a.shape, generator=generator, dtype=a.dtype))

    def uniform(a: Tensor, low: float, high: float) -> None:
        a.copy_(low + (high - low) * torch.rand(a.shape, generator=generator, dtype=a.dtype))

    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            normal(module.running_mean, 0, 0.3)
            uniform(module.running_var, 0.5, 2)
        if (
            isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm | nn.RMSNorm)
            and module.weight is not None
        ):
            uniform(module.weight, 0.5, 1.5)
        if isinstance(getattr(module, "bias", None), nn.Parameter):
            normal(module.bias, 0, 0.2)
    return net


def built(make: Callable[[], nn.Module], *shape: int, tokens: int = 0, seed: int = 1) -> Callable:
    """Make, randomize and cast a model, and draw its input: normal numbers, or token ids below `tokens`."""

    def build() -> tuple[nn.Module, tuple[Tensor, ...]]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = make()
        generator = torch.Generator().manual_seed(seed)
        net = randomize(net.double().eval(), generator)
        if tokens:
            return net, (torch.randint(tokens, shape, generator=generator),)
        return net, (torch.randn(shape, generator=generator, dtype=torch.float64),)

    return build


def conv_tower(name: str, *, depth: int = 5, width: int = 6, encoder: str = "affine", **options: object) -> Case:
    def make() -> nn.Module:
        return ResidualTower(depth, width, num_classes=4, encoder=encoder, seed=2, **options)

    return tower_case(name, built(make, 3, 3, 6, 6), depth, **options)


def mlp_tower(name: str, *, depth: int = 6, width: int = 8, **options: object) -> Case:
    def make() -> nn.Module:
        return ResidualMLP(depth, width, in_features=6, num_classes=4, seed=3, **options)

    return tower_case(name, built(make, 3, 6), depth, **options)


def tower_case(name: str, build: Callable, depth: int, *, activation: str = "relu", **options: object) -> Case:
    polynomial = activation in ("relu", "identity")
    radius = 1.0 if polynomial else 0.5
    return Case(name, build, models.tower, depth, activation != "relu", polynomial, radius)


def dense_net(name: str, block: type[nn.Module], *, smooth: bool = True, radius: float = 0.5) -> Case:
    build = built(lambda: arch.DenseNet(block), 3, 6)
    return Case(name, build, models.dense, 5, smooth, radius=radius)


def relu_net(name: str, build: Callable, pieces: Callable[[nn.Module], Pieces], *, joins: int) -> Case:
    return Case(name, build, pieces, joins, smooth=False, polynomial=True, radius=1.0)


def small_resnet() -> nn.Module:
    return arch.CifarResNet(2, width=4)


PER_BRANCH = [0.5, 0.1, -0.3, 0.8, 0.25]

TOWERS = (
    conv_tower("conv-relu"),
    conv_tower("conv-relu-bn", norm="batch", encoder="imagenet"),
    conv_tower("conv-relu-stem", encoder="conv3x3", scale=1),
    conv_tower("conv-tanh", activation="tanh"),
    conv_tower("conv-gelu", activation="gelu"),
    conv_tower("conv-silu-bn", activation="silu", norm="batch"),
    conv_tower("conv-linear", activation="identity", scale="1/n"),
    conv_tower("conv-tanh-per-branch", activation="tanh", scale=PER_BRANCH),
    conv_tower("conv-relu-per-branch", scale=PER_BRANCH),
    mlp_tower("mlp-relu"),
    mlp_tower("mlp-relu-bn", norm="batch"),
    mlp_tower("mlp-tanh", activation="tanh"),
    mlp_tower("mlp-gelu", activation="gelu", scale=0.3),
    mlp_tower("mlp-silu", activation="silu", scale="n^-0.8"),
    mlp_tower("mlp-linear", activation="identity"),
    mlp_tower("mlp-tanh-learned", activation="tanh", scale="learned:1/sqrt(n)"),
    mlp_tower("mlp-relu-n8", depth=8, scale=1),
)

ARCHITECTURES = (
    relu_net("resnet-v1", built(small_resnet, 2, 3, 8, 8), models.cifar_resnet, joins=6),
    relu_net("bottleneck-v1", built(arch.BottleneckNet, 2, 3, 12, 12), models.bottleneck, joins=4),
    relu_net("preact-v2", built(arch.PreactNet, 2, 3, 8, 8), models.preact, joins=4),
    relu_net("pooled-v1", built(arch.PooledNet, 2, 3, 8, 8), models.pooled, joins=4),
    Case("pre-ln", built(arch.PreLNTransformer, 2, 5, tokens=11), models.pre_ln, 4, True),
    Case("post-ln", built(arch.PostLNTransformer, 2, 4, 6), models.post_ln, 4, True, radius=0.25),
    dense_net("subtracted", arch.Subtracted),
    dense_net("alpha-added", arch.AlphaAdded, radius=1.0),
    dense_net("added-in-place", arch.AddedInPlace),
    dense_net("rezero", arch.ReZero, radius=1.0),
    dense_net("layer-scale", arch.LayerScale, radius=1.0),
    dense_net("stochastic-depth", arch.StochasticDepth, radius=1.0),
    dense_net("gated-mlp", arch.GatedMLP, radius=1.0),
    dense_net("layer-norm", arch.LayerNormed, radius=0.12),
    dense_net("layer-norm-relu", arch.LayerNormedRelu, smooth=False, radius=0.12),
    dense_net("rms-norm", arch.RMSNormed, radius=0.25),
    Case("mobilenet", built(arch.MobileNet, 2, 3, 6, 6), models.mobilenet, 4, False, radius=1.0),
    Case("squeeze-excite", built(arch.SqueezeNet, 2, 3, 6, 6), models.squeeze, 4, True, radius=1.0),
)

CASES = TOWERS + ARCHITECTURES


def case(name: str) -> Case:
    return next(c for c in CASES if c.name == name)


def cifar_test(shared: Path, count: int) -> tuple[Tensor, Tensor]:
    """The first `count` CIFAR-10 test images, normalized for the trained models, and their labels."""
    import io

    import numpy as np
    import pyarrow.parquet as pq
    from PIL import Image

    table = pq.read_table(shared / "data" / "cifar10" / "test-00000-of-00001.parquet").slice(0, count)
    raw = [cell["bytes"] for cell in table["img"].to_pylist()]
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(png)).convert("RGB")) for png in raw])
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = torch.from_numpy(pixels).float().div(255)
    return ((x - mean) / std).permute(0, 3, 1, 2).contiguous(), torch.tensor(table["label"].to_pylist())


def relative(value: torch.Tensor, expected: torch.Tensor) -> float:
    """‖value − expected‖/‖expected‖."""
    return float((value - expected).detach().norm() / expected.detach().norm())
