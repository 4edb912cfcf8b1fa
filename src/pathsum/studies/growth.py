"""Growing against depth from scratch at equal FLOPs (Appendix C of Dherin & Munn 2025 put to use): what is trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathsum.data import Dataset, load, normalize
from pathsum.errors import PathsumError
from pathsum.grow import Growth, grow
from pathsum.growing.weights import New
from pathsum.nets.tower import ResidualTower
from pathsum.runs import Run, read_run
from pathsum.studies.starts import ended, tower_for
from pathsum.train import TrainConfig, fit
from pathsum.training.record import make_optimizer

Preset = Literal["cifar10", "small", "smoke"]
ARMS = ("shallow", "deep", "grown")
AFTER = 10_000  # added to the seed after growth, so that the order of the data is not that of the beginning


@dataclass(frozen=True, kw_only=True)
class GrowthStudy:
    """Towers trained shallow, grown and trained on; deep ones from scratch; shallow ones; each at the same FLOPs."""

    data: str = "digits"
    """digits, cifar10:PATH (parquet folder, or the official archive), or a hub id."""
    train_limit: int | None = None
    """Train on a random subset of so many images, classes balanced."""
    test_limit: int | None = None
    """Test on a random subset of so many images."""
    shallow: int = 4
    """Blocks before growth, two convolutions each."""
    deep: int = 12
    """Blocks after it, and of the tower trained from scratch."""
    width: int = 16
    """Channels."""
    scale: str = "1/sqrt(n)"
    """Rule for λ."""
    norm: Literal["none", "batch"] = "none"
    """Batch norm in the branches, or none."""
    init: Literal["lecun", "he", "torch"] = "lecun"
    """Initialization of the weights."""
    where: Literal["end", "interleaved"] = "interleaved"
    """Where new blocks go."""
    new: Literal["fresh", "zero_last", "zero"] = "fresh"
    """How new blocks start: see pathsum grow."""
    steps: int = 240
    """Steps of the deep tower from scratch; the others take as many as cost the same."""
    share: float = 0.25
    """Share of the FLOPs that is spent before growth."""
    lr: float = 0.01
    """Learning rate of all."""
    batch_size: int = 64
    """Images in a batch."""
    augment: bool = False
    """Random crops, and mirrored images where the data allow it."""
    evaluations: int = 24
    """Evaluations of a run."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of initialization and order of the data."""
    spike: float = 5.0
    """Percent by which the loss may rise after growth."""
    margin: float = 1.0
    """Points of accuracy within which the grown tower counts as good as the deep one."""

    def validate(self) -> None:
        """Raise PathsumError for what is no study."""
        if not 1 <= self.shallow < self.deep:
            raise PathsumError(f"--shallow {self.shallow} --deep {self.deep}: expected 1 or more, and deeper")
        if not 0 < self.share < 1:
            raise PathsumError(f"--share {self.share:g}: expected a share of the FLOPs between 0 and 1")
        if self.steps < 10 or self.evaluations < 5:
            raise PathsumError("--steps must be 10 or more and --evaluations 5 or more")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise PathsumError("--seeds: expected one or more, all different")
        if self.spike < 0 or self.margin < 0:
            raise PathsumError("--spike and --margin: expected 0 or more")

    def tower(self, depth: int, data: Dataset, seed: int) -> ResidualTower:
        """A tower as initialized."""
        return tower_for(data, depth, self.width, norm=self.norm, init=self.init, scale=self.scale, seed=seed)

    def config(self, steps: int, seed: int) -> TrainConfig:
        """How all are trained."""
        every = max(1, round(steps / self.evaluations))
        options: dict[str, Any] = {"batch_size": self.batch_size, "augment": self.augment, "eval_every": every}
        return TrainConfig(lr=self.lr, steps=steps, seed=seed, **options)


@dataclass(frozen=True)
class Plan:
    """Cost and length of each part: FLOPs of a step, and steps."""

    shallow_step: int
    deep_step: int
    deep: int  # steps
    shallow: int
    before: int  # growth
    after: int

    @property
    def budget(self) -> int:
        """FLOPs of each arm, but for the rounding to steps."""
        return self.deep * self.deep_step

    @property
    def growth_at(self) -> int:
        """FLOPs spent when the tower grows."""
        return self.before * self.shallow_step


def plan(study: GrowthStudy, data: Dataset) -> Plan:
    """Steps of equal cost: S·C_deep = S_shallow·C_shallow = S_before·C_shallow + S_after·C_deep, rounded to steps."""
    costs = [step_flops(study.tower(d, data, 0), data.shape, study.batch_size) for d in (study.shallow, study.deep)]
    budget = study.steps * costs[1]
    before = max(1, round(study.share * budget / costs[0]))
    after = max(1, round((budget - before * costs[0]) / costs[1]))
    return Plan(costs[0], costs[1], study.steps, round(budget / costs[0]), before, after)


def step_flops(model: nn.Module, shape: tuple[int, ...], batch_size: int) -> int:
    """FLOPs of the convolutions and matrix products of one training step, forward and backward, stem included.

    Counted by PyTorch on one batch of two images and scaled; two for each multiplication with an addition.
    """
    from torch.utils.flop_counter import FlopCounterMode

    from pathsum.care import untouched

    x = torch.zeros(2, *shape)
    with untouched(model), FlopCounterMode(display=False) as counter:
        grads = torch.autograd.grad(F.cross_entropy(model(x), torch.zeros(2, dtype=torch.int64)), list(params(model)))
    del grads
    return counter.get_total_flops() * batch_size // 2


def params(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def train_all(study: GrowthStudy, folder: Path) -> None:
    """Train every arm of every seed into run folders; what is finished is not done again, the rest resumed."""
    data = study_data(study)
    steps = plan(study, data)
    for seed in study.seeds:
        for arm, depth, count in (("deep", study.deep, steps.deep), ("shallow", study.shallow, steps.shallow)):
            ended(fit(study.tower(depth, data, seed), data, study.config(count, seed), out=folder / f"{arm}-{seed}"))
        train_grown(study, data, steps, seed, folder)


def train_grown(study: GrowthStudy, data: Dataset, steps: Plan, seed: int, folder: Path) -> None:
    """The tower that grows: two runs, the second with the first's weights and momentum."""
    config = study.config(steps.before, seed)
    net = study.tower(study.shallow, data, seed)
    optimizer = make_optimizer(params(net), config)
    ended(fit(net, data, config, out=folder / f"before-{seed}", optimizer=optimizer))
    grown = grown_from(study, net, optimizer, probe(data), seed)
    assert grown.optimizer is not None
    after = study.config(steps.after, seed + AFTER)
    ended(fit(grown.net, data, after, out=folder / f"after-{seed}", optimizer=grown.optimizer))


def grown_from(study: GrowthStudy, net: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, seed: int) -> Growth:
    """The growth itself; the same seed gives the same tower, so that a run can be resumed."""
    new: New = study.new
    return grow(net, x, depth=study.deep, where=study.where, new=new, seed=seed + AFTER, optimizer=optimizer)


def probe(data: Dataset) -> Tensor:
    """Some test images."""
    return normalize(data.test.images[:64], data.mean, data.std)


def study_data(study: GrowthStudy) -> Dataset:
    """The data, on the CPU."""
    return load(study.data, train_limit=study.train_limit, test_limit=study.test_limit)


def found_runs(study: GrowthStudy, folder: Path) -> dict[tuple[str, int], Run]:
    """The runs there are, by part ("deep", "shallow", "before", "after") and seed."""
    return {
        (part, seed): read_run(folder / f"{part}-{seed}")
        for part in ("deep", "shallow", "before", "after")
        for seed in study.seeds
        if (folder / f"{part}-{seed}" / "rows.jsonl").is_file()
    }


PRESETS: dict[Preset, GrowthStudy] = {
    # Two cores, under ten minutes.
    "small": GrowthStudy(),
    # Shows that all parts work: seconds, and no result worth quoting.
    "smoke": GrowthStudy(shallow=2, deep=6, width=8, steps=100, evaluations=20, seeds=(0, 1), test_limit=300),
    # A GPU's worth of work, or a night of two cores; data must be given.
    "cifar10": GrowthStudy(
        data="", train_limit=None, shallow=8, deep=32, width=64, steps=20_000, augment=True, evaluations=40
    ),
}
