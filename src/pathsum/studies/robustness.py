"""An open question of arXiv 2506.14386: is a network of variable depth more robust? What is trained and attacked."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pathsum.attacks import Predict, fgsm, pgd, robust_accuracy
from pathsum.data import Dataset
from pathsum.errors import PathsumError
from pathsum.knobs import Knobs, as_knobs
from pathsum.lengths import average_path_length
from pathsum.linearize import linearize
from pathsum.studies.starts import ModelOptions, ended, increasing, kept, recall
from pathsum.training.evaluation import placement

Preset = Literal["cifar10", "small", "smoke"]
ARMS = ("layer", "channel")  # the layer-wise one first: the other takes the length that it came to
START = "start"


@dataclass(frozen=True, kw_only=True)
class RobustnessStudy(ModelOptions):
    """One trained network linearized by channel and by layer to the same path lengths, and both attacked."""

    shares: tuple[float, ...] = (0.8, 0.6, 0.4)
    """Path lengths to go to, as shares of the start's."""
    linear_steps: int = 150
    """Steps of each linearization."""
    linear_lr: float = 0.02
    """Learning rate of the weights in it."""
    alpha_lr: float = 0.01
    """Learning rate of the slopes."""
    epsilons: tuple[float, ...] = (0.02, 0.05, 0.1)
    """Radii of the attacks, largest change of a pixel; 1 is white."""
    attacked: int = 300
    """Test images that are attacked, classes balanced."""
    pgd_steps: int = 10
    """Steps of PGD."""
    restarts: int = 2
    """Its random starts."""

    def validate(self) -> None:
        super().validate()
        if not self.shares or not all(0 <= share < 1 for share in self.shares):
            raise PathsumError(
                f"--shares {self.shares}: expected shares of the start's path length, 0 or more, below 1"
            )
        if not self.epsilons or not all(0 < epsilon <= 1 for epsilon in self.epsilons):
            raise PathsumError(f"--epsilons {self.epsilons}: expected pixel units above 0, up to 1, which is white")
        if min(self.attacked, self.pgd_steps, self.restarts, self.linear_steps) < 1:
            raise PathsumError("--attacked, --pgd-steps, --restarts and --linear-steps: expected 1 or more")

    @property
    def radii(self) -> tuple[float, ...]:
        """No attack, then the radii in order."""
        return (0.0, *increasing(self.epsilons))

    @property
    def lengths(self) -> tuple[float, ...]:
        """The shares, longest paths first."""
        return increasing(self.shares)[::-1]

    def nets(self) -> Iterator[tuple[str, int, float]]:
        """Arm, seed and share of every network that is attacked."""
        for seed in self.seeds:
            yield START, seed, 1.0
            for share in self.lengths:
                for arm in ARMS:
                    yield arm, seed, share

    def place(self, folder: Path, arm: str, seed: int, share: float) -> Path:
        """Where the result of a network is kept."""
        return folder / (f"attack-{START}-{seed}.json" if arm == START else f"attack-{arm}-{share:g}-{seed}.json")

    def what(self, arm: str, seed: int, share: float) -> dict[str, Any]:
        """What a kept result depends on."""
        return {**self.key("shares"), "arm": arm, "seed": seed, "share": share}


def train_all(study: RobustnessStudy, folder: Path, say: Callable[[str], None]) -> None:
    """Train, linearize and attack; what is finished is not done again, the rest resumed."""
    data, start = study.starts(folder)
    every = list(study.nets())
    for number, (arm, seed, share) in enumerate(every, 1):
        about = "the network itself" if arm == START else f"by {arm} to {share:g} of the path length"
        say(f"{number} of {len(every)}: seed {seed}, {about}")
        make = partial(attacked, study, data, start, folder, arm, seed, share)
        kept(study.place(folder, arm, seed, share), study.what(arm, seed, share), make)


def attacked(
    study: RobustnessStudy,
    data: Dataset,
    start: Callable[[int], nn.Module],
    folder: Path,
    arm: str,
    seed: int,
    share: float,
) -> dict[str, Any]:
    """Make one network and attack it: its path length, nonlinear scalars, and accuracies under attack."""
    net = start(seed)
    images, labels, scaled = targets(study, data)
    knobbed = as_knobs(net, (scaled(images[:1]).to(placement(net)[1]),), {})
    full = average_path_length(knobbed)
    if arm == START:
        relus = sum(math.prod(unit.shape[1:]) for unit in knobbed.units)
        return {"napl": full, "relus": relus, **scores(study, knobbed, 0.0, images, labels, scaled)}
    target = share * full
    if arm == "channel":
        layer = recall(study.place(folder, "layer", seed, share), study.what("layer", seed, share))
        target = target if layer is None else layer["napl"]
    made = linearize(
        net,
        data,
        by="channel" if arm == "channel" else "layer",
        target_length=target,
        alpha_lr=study.alpha_lr,
        train=study.config(study.linear_steps, study.linear_lr, seed),
        out=folder / f"{arm}-{share:g}-{seed}",
    )
    ended(made)
    length = average_path_length(made.net, alpha=made.alpha)
    return {"napl": length, "relus": made.relus, **scores(study, made.net, made.alpha, images, labels, scaled)}


def targets(study: RobustnessStudy, data: Dataset) -> tuple[Tensor, Tensor, Predict]:
    """Images (N, C, H, W) in [0, 1], float64, their labels, and the way from pixels to what the network takes."""
    chosen = data.test.subset(min(study.attacked, len(data.test)))
    images = chosen.images.double() / 255
    shift, divisor = (images.new_tensor(values).view(-1, 1, 1) for values in (data.mean, data.std))
    return images, chosen.labels, lambda x: (x - shift) / divisor


def scores(
    study: RobustnessStudy, net: Knobs, alpha: Any, images: Tensor, labels: Tensor, scaled: Predict
) -> dict[str, Any]:
    """Accuracy at each radius, under each attack; in float64, in which no gradient underflows."""
    exact = copy.deepcopy(net).double().eval()
    slopes = [a.double() if isinstance(a, Tensor) else a for a in alpha] if isinstance(alpha, list) else alpha

    def predict(x: Tensor) -> Tensor:
        return exact.pick(exact(scaled(x), alpha=slopes))

    generator = torch.Generator().manual_seed(0)
    strong = partial(pgd, predict, steps=study.pgd_steps, restarts=study.restarts, generator=generator)
    return {
        "fgsm": robust_accuracy(predict, images, labels, study.radii, partial(fgsm, predict)),
        "pgd": robust_accuracy(predict, images, labels, study.radii, strong),
    }


PRESETS: dict[Preset, RobustnessStudy] = {
    # Two cores, under ten minutes.
    "small": RobustnessStudy(),
    # Shows that all parts work: seconds, and no result worth quoting.
    "smoke": RobustnessStudy(
        depth=4, width=8, steps=60, linear_steps=40, alpha_lr=0.03, shares=(0.6, 0.4), seeds=(0, 1), attacked=60,
        epsilons=(0.05, 0.1), pgd_steps=4, restarts=1,
    ),
    # A GPU's worth of work; data must be given.
    "cifar10": RobustnessStudy(
        data="", depth=16, width=64, steps=8_000, augment=True, linear_steps=4_000, alpha_lr=0.01,
        shares=(0.8, 0.6, 0.4, 0.25), epsilons=(1 / 255, 2 / 255, 4 / 255, 8 / 255), attacked=1_000, pgd_steps=20,
    ),
}  # fmt: skip
