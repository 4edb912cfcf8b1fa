"""Path length against accuracy (arXiv 2506.14386): what is compared, from which networks, at which points."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from pathsum.data import Dataset, load
from pathsum.errors import PathsumError
from pathsum.linearizing.options import LinearizeOptions
from pathsum.train import TrainConfig

Preset = Literal["paper", "small", "smoke"]
Arm = Literal["layer", "channel"]
ARMS: tuple[Arm, ...] = ("layer", "channel")  # the order in which they are linearized
LATER = 500_000  # added to the seed for the last steps of a point, twice for its batch norms
PLAIN = "plain"  # the start that is trained here


class Spot(NamedTuple):
    """A network to start from: its name, the share of its training that it had, and the seed."""

    start: str
    share: float
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.start}-{self.share:g}-{self.seed}"


class Point(NamedTuple):
    """One linearization: from where, by what, and how far, as the place in `shares`."""

    spot: Spot
    arm: Arm
    place: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.spot.name}-{self.arm}-{self.place}"


@dataclass(frozen=True, kw_only=True)
class PathLength:
    """From one trained network, by layer and by channel, to the same average path lengths: which is more accurate?"""

    data: str = "digits"
    """digits, cifar10:PATH or cifar100:PATH (parquet folder, or the official archive), or a hub id."""
    model: str | None = None
    """Your trained network: FILE.py:FUNCTION, torchvision:NAME, timm:NAME or FOLDER; by default a plain one, trained
    here."""
    weights: Path | None = None
    """A .safetensors file for a MODEL that takes one."""
    mean: tuple[float, ...] | None = None
    """Subtracted from pixels/255, a number per channel; by default as the model was trained, else the data's."""
    std: tuple[float, ...] | None = None
    """What that is divided by, likewise."""
    train_limit: int | None = None
    """Linearize on a random subset of so many training images, classes balanced, another for each seed."""
    test_limit: int | None = None
    """Test on a random subset of so many images; by default on all."""
    shares: tuple[float, ...] = (0.65, 0.55, 0.5, 0.4)
    """The points: shares of the original average path length, falling."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds: of the start where it is trained here, of the images, and of their order."""
    successive: bool = True
    """Start each point from the one before; else from the trained network, which costs more for the same result."""
    steps: int = 60
    """Steps of a point, the same in both arms."""
    lr: float = 0.015
    """Learning rate of the weights; the last steps of a point take a tenth of it."""
    settle: float = 0.3
    """Share of the steps of a point that are those."""
    alpha_lr: float = 0.1
    """Learning rate of the slopes."""
    saliency: bool = True
    """Divide each slope's prior by how much the logits feel it, so that harmless ones go first."""
    distill: float = 0.9
    """Share of the loss that is the divergence from the starting network's logits; for few images."""
    batch_size: int = 256
    """Images in a batch."""
    weight_decay: float = 0.0
    """Weight decay while linearizing."""
    augment: bool = True
    """Random crops, and mirrored images where the data allow it."""
    widths: tuple[int, ...] = (16, 16, 16, 32, 32, 32, 64, 64)
    """Channels of the layers of the plain network."""
    start_at: tuple[float, ...] = (1.0,)
    """When to linearize: shares of the training of the plain network, such as 0.25 1."""
    start_epochs: float = 10.0
    """Epochs in which the plain network is trained, the last fifth at a tenth of the rate."""
    start_limit: int | None = None
    """Train the plain network on so many images; by default on all."""
    start_lr: float = 0.1
    """Learning rate of that training."""
    functional: int = 16
    """Test images on which to measure the functional path length; 0 leaves it out."""
    loss_limit: float = 3.0
    """Points of accuracy that the channel-wise arm may lose at half the original path length."""

    def validate(self) -> None:
        """Raise PathsumError for what is no study."""
        if not self.shares or not all(0 < share < 1 for share in self.shares):
            raise PathsumError(f"--shares {words(self.shares)}: expected shares of the path length between 0 and 1")
        if any(b >= a for a, b in zip(self.shares, self.shares[1:], strict=False)):
            raise PathsumError(f"--shares {words(self.shares)}: expected falling shares, all different")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise PathsumError("--seeds: expected one or more, 0 or above, all different")
        if not self.start_at or len(set(self.start_at)) < len(self.start_at):
            raise PathsumError("--start-at: expected one share of the training or more, all different")
        if not all(0 < share <= 1 for share in self.start_at):
            raise PathsumError(f"--start-at {words(self.start_at)}: expected shares of the training above 0, up to 1")
        if self.model is not None and self.start_at != (1.0,):
            raise PathsumError("--start-at is for the plain network that is trained here; it does not go with --model")
        if self.model is None and (self.weights is not None or self.mean is not None or self.std is not None):
            raise PathsumError("--weights, --mean and --std go with --model; give the function that builds the network")
        if not 0 < self.settle < 1 or self.steps < 2:
            raise PathsumError(
                f"--settle {self.settle:g} --steps {self.steps}: expected a share between 0 and 1, of 2 steps or more"
            )
        for name in ("start_epochs", "start_lr"):
            if not 0 < getattr(self, name) < float("inf"):
                raise PathsumError(f"--{name.replace('_', '-')} is {getattr(self, name):g}, expected a positive number")
        for name in ("functional", "loss_limit"):
            if getattr(self, name) < 0:
                raise PathsumError(f"--{name.replace('_', '-')} is {getattr(self, name):g}, expected 0 or more")
        self.config(0), self.options("layer", 1.0)  # check what they are given

    def spots(self) -> list[Spot]:
        """The networks to start from."""
        name = PLAIN if self.model is None else start_name(self.model)
        return [Spot(name, share, seed) for seed in self.seeds for share in self.start_at]

    def points(self) -> Iterator[Point]:
        """All linearizations, in an order in which each comes after those that it needs."""
        for spot in self.spots():
            for place in range(len(self.shares)):
                for arm in ARMS:
                    yield Point(spot, arm, place)

    def needs(self, point: Point) -> list[Point]:
        """What must be there before: the point before, to start from, and the layer-wise one, to match."""
        before = [point._replace(place=point.place - 1)] if self.successive and point.place else []
        return before + ([point._replace(arm="layer")] if point.arm == "channel" else [])

    def config(self, seed: int) -> TrainConfig:
        """How the weights are trained while a point is linearized: the same in both arms."""
        return TrainConfig(
            lr=self.lr,
            steps=self.steps,
            seed=seed,
            batch_size=self.batch_size,
            weight_decay=self.weight_decay,
            augment=self.augment,
            eval_every=max(1, self.steps // 3),
        )

    def parts(self, config: TrainConfig) -> tuple[TrainConfig, TrainConfig]:
        """The steps of a point: those in which it gets to its length, and the last ones, at a tenth of the rate."""
        last = max(1, round(self.settle * config.num_steps(1)))
        first = replace(config, steps=max(1, config.num_steps(1) - last))
        seed = config.seed + LATER  # another order of the images
        return first, replace(config, steps=last, lr=config.lr / 10, seed=seed, eval_every=max(1, last // 2))

    def options(self, arm: Arm, target: float) -> LinearizeOptions:
        """How the slopes are."""
        return LinearizeOptions(
            by=arm, target_length=target, alpha_lr=self.alpha_lr, saliency=self.saliency, distill=self.distill
        )

    def dataset(self, seed: int, device: str = "cpu") -> Dataset:
        """The images of a seed: its own for training, the same for testing."""
        tested = load(self.data, device=device, train_limit=0, test_limit=self.test_limit)
        trained = load(self.data, device=device, train_limit=self.train_limit, test_limit=0, seed=seed)
        return replace(tested, train=trained.train)

    def start_dataset(self, device: str = "cpu") -> Dataset:
        """The images on which the plain network is trained."""
        return load(self.data, device=device, train_limit=self.start_limit, test_limit=self.test_limit)


def start_name(model: str) -> str:
    """A MODEL in a word that tells nothing of this machine: the function, or the last folder."""
    return Path(model.rpartition(":")[2]).name.removesuffix(".safetensors") or "model"


def words(values: tuple[float, ...]) -> str:
    """Numbers as they are typed."""
    return " ".join(f"{value:g}" for value in values)


PRESETS: dict[Preset, PathLength] = {
    # Two cores, about half an hour (33 minutes measured) from a given CIFAR ResNet-20; data must be given.
    "small": PathLength(data="", train_limit=5000, start_limit=20_000, start_epochs=4),
    # Shows that all parts work: seconds, and no result worth quoting.
    "smoke": PathLength(
        widths=(8, 8, 8, 8, 8, 8), shares=(0.7, 0.5, 0.35, 0.2), seeds=(0, 1), start_epochs=6, steps=40, batch_size=64,
        start_lr=0.05, lr=0.05, alpha_lr=0.3, augment=False, functional=8,
    ),
    # A GPU's worth of work; 60 epochs a point of 50,000 images, each from the trained network, as in the paper.
    "paper": PathLength(
        data="", successive=False, steps=60 * 390, seeds=(0, 1, 2, 3, 4), weight_decay=5e-4, lr=0.01,
        batch_size=128, distill=0.0, saliency=False, start_epochs=100, start_at=(0.25, 1.0),
        widths=(64,) * 3 + (128,) * 4 + (256,) * 10 + (512,), shares=(0.85, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1),
    ),
}  # fmt: skip
