"""An open question of arXiv 2506.14386: variable depth encouraged from scratch, against ordinary training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import nn

from pathsum.data import Dataset, normalize
from pathsum.errors import PathsumError
from pathsum.knobs import Knobs, knobs
from pathsum.lengths import average_path_length, path_lengths
from pathsum.linearize import linearize
from pathsum.linearizing.result import At
from pathsum.linearizing.result import shares as nonlinear
from pathsum.studies.starts import StartOptions, ended, increasing, kept, recall
from pathsum.train import evaluate, fit

Preset = Literal["cifar10", "small", "smoke"]
ORDINARY, LAYER, CHANNEL, SHALLOW, FREE = "ordinary", "layer", "channel", "shallow", "omega"
MATCHED = (LAYER, CHANNEL, SHALLOW)  # in this order: the channels take the length that the layers came to


@dataclass(frozen=True, kw_only=True)
class VariableDepthStudy(StartOptions):
    """Towers trained from scratch for the same steps: ordinary, with learned slopes, and of the matched depth."""

    lr: float = 0.05
    """Learning rate of the weights, of all arms."""
    shares: tuple[float, ...] = (0.7, 0.5, 0.3)
    """Path lengths to come to while training, as shares of the ordinary tower's."""
    omegas: tuple[float, ...] = (1.0, 2.0)
    """Strengths ω of the prior without a target, by channel; a slope needs 4/(3·alpha_lr·ω) steps to 1 if unopposed."""
    alpha_lr: float = 0.01
    """Learning rate of the slopes."""

    def validate(self) -> None:
        super().validate()
        if not self.shares or not all(0 <= share < 1 for share in self.shares):
            raise PathsumError(f"--shares {self.shares}: expected shares of the whole path length, 0 or more, below 1")
        if not all(omega > 0 for omega in self.omegas):
            raise PathsumError(f"--omegas {self.omegas}: expected strengths above 0; the ordinary tower has none")

    @property
    def lengths(self) -> tuple[float, ...]:
        """The shares, longest paths first."""
        return increasing(self.shares)[::-1]

    def nets(self) -> Iterator[tuple[str, int, float]]:
        """Arm, seed, and share of the path length (or ω) of every run."""
        for seed in self.seeds:
            yield ORDINARY, seed, 1.0
            for share in self.lengths:
                for arm in MATCHED:
                    yield arm, seed, share
            for omega in increasing(self.omegas):
                yield FREE, seed, omega

    def name(self, arm: str, seed: int, value: float) -> str:
        """Of a run's folder."""
        return f"{arm}-{seed}" if arm == ORDINARY else f"{arm}-{value:g}-{seed}"

    def place(self, folder: Path, arm: str, seed: int, value: float) -> Path:
        """Where the result of a run is kept."""
        return folder / f"result-{self.name(arm, seed, value)}.json"

    def what(self, arm: str, seed: int, value: float) -> dict[str, Any]:
        """What a kept result depends on."""
        return {**self.key("shares", "omegas"), "arm": arm, "seed": seed, "value": value}


def train_all(study: VariableDepthStudy, folder: Path, say: Callable[[str], None]) -> None:
    """Train every arm; what is finished is not done again, the rest resumed."""
    data = study.images()
    every = list(study.nets())
    for number, (arm, seed, value) in enumerate(every, 1):
        about = {ORDINARY: "ordinary", FREE: f"slopes learned, ω = {value:g}"}.get(
            arm, f"{arm}, {value:g} of the length"
        )
        say(f"{number} of {len(every)}: seed {seed}, {about}")
        make = partial(trained, study, data, folder, arm, seed, value)
        kept(study.place(folder, arm, seed, value), study.what(arm, seed, value), make)


def trained(
    study: VariableDepthStudy, data: Dataset, folder: Path, arm: str, seed: int, value: float
) -> dict[str, Any]:
    """Train one arm from scratch: accuracy, path length and its spread, nonlinear scalars, blocks."""
    config, out = study.config(study.steps, study.lr, seed), folder / study.name(arm, seed, value)
    if arm in (ORDINARY, SHALLOW):
        depth = study.depth if arm == ORDINARY else nearest_depth(study, data, value)
        net = study.tower(data, seed, depth)
        result = fit(net, data, config, out=out)
        ended(result)
        return measured(tower_knobs(net, data), 0.0, data, result.status, depth)
    goal: dict[str, Any] = (
        {"omega": value} if arm == FREE else {"target_length": target(study, data, folder, arm, seed, value)}
    )
    by: Any = "layer" if arm == LAYER else "channel"
    made = linearize(study.tower(data, seed), data, by=by, alpha_lr=study.alpha_lr, train=config, out=out, **goal)
    ended(made)
    return measured(made.net, made.alpha, data, made.status, study.depth)


def target(study: VariableDepthStudy, data: Dataset, folder: Path, arm: str, seed: int, share: float) -> float:
    """The path length of an arm: the share of the whole, and by channel what the layers came to with it."""
    layer = recall(study.place(folder, LAYER, seed, share), study.what(LAYER, seed, share)) if arm == CHANNEL else None
    return share * length_of(study, data, study.depth) if layer is None else float(layer["napl"])


def nearest_depth(study: VariableDepthStudy, data: Dataset, share: float) -> int:
    """The number of blocks whose path length is nearest to a share of the whole one; the smaller of two."""
    goal = share * length_of(study, data, study.depth)
    return min(range(study.depth + 1), key=lambda depth: (abs(length_of(study, data, depth) - goal), depth))


def length_of(study: VariableDepthStudy, data: Dataset, depth: int) -> float:
    """The average path length of a tower of so many blocks: of its structure, whatever its weights."""
    return average_path_length(tower_knobs(study.tower(data, 0, depth), data))


def tower_knobs(net: nn.Module, data: Dataset) -> Knobs:
    """A tower with its knobs, in eval mode."""
    return knobs(net.eval(), normalize(data.test.images[:1], data.mean, data.std))


def measured(net: Knobs, alpha: Any, data: Dataset, status: str, depth: int) -> dict[str, Any]:
    """What is compared; a run that diverged has the accuracy it ended with."""
    lengths = path_lengths(net, alpha=alpha)
    loss, accuracy = evaluate(At(net, alpha), data.test, data)
    left = nonlinear(alpha if isinstance(alpha, list) else [alpha] * len(net.units))
    scalars = [share * math.prod(unit.shape[1:]) for share, unit in zip(left, net.units, strict=True)]
    return {
        "accuracy": accuracy,
        "loss": loss,
        "napl": lengths.mean,
        "spread": lengths.std,
        "relus": round(sum(scalars)),
        "units": sum(left),
        "blocks": depth,
        "status": status,
    }


PRESETS: dict[Preset, VariableDepthStudy] = {
    # Two cores, under ten minutes.
    "small": VariableDepthStudy(),
    # Shows that all parts work: seconds, and no result worth quoting.
    "smoke": VariableDepthStudy(
        depth=4, width=8, steps=60, alpha_lr=0.03, shares=(0.6,), omegas=(1.5,), seeds=(0, 1), test_limit=300
    ),
    # A GPU's worth of work; data must be given.
    "cifar10": VariableDepthStudy(
        data="", depth=16, width=64, steps=16_000, augment=True, shares=(0.7, 0.5, 0.3, 0.2), omegas=(0.02, 0.1)
    ),
}
