"""How long runs of towers take here: a line through the times of a step of two shallow ones."""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F
from torch import Tensor

from pathsum.nets.tower import ResidualTower
from pathsum.sweeping.config import RunConfig
from pathsum.training.contexts import autocast, channels_last, tensor_cores, threads
from pathsum.training.stacking import StackedTower

SHALLOW, DEEPER = 1, 5  # blocks of the towers that are timed
REPEATS = 3


class Clock:
    """Estimates in seconds, with one thread on `device` and `stack` networks a program; times each kind of tower once.

    On a GPU the step is timed without its CUDA graph, so the estimate is too long where launches take the time.
    """

    def __init__(self, device: str, stack: int = 1) -> None:
        self.device, self.stack = torch.device(device), stack
        self.known: dict[str, tuple[float, float]] = {}

    def run(self, config: RunConfig) -> float:
        """One run to its end: steps and evaluations; an image in an evaluation costs a third of one in a step."""
        train = config.train
        at_zero, per_block = self._line(config)
        step = at_zero + config.model["depth"] * per_block
        steps = train.num_steps(per_epoch=1)
        evaluations = 1 + steps // (train.eval_every or -(-steps // 10))
        images = (test_size(config) + train.val_size) / train.batch_size
        return step * (steps + evaluations * images / 3)

    def _line(self, config: RunConfig) -> tuple[float, float]:
        """Seconds of a step of a tower without blocks, and of each block."""
        kind = repr([config.model[name] for name in ("width", "norm", "encoder")] + [config.train.batch_size])
        if kind not in self.known:
            with threads(1 if self.device.type == "cpu" else None), tensor_cores(config.train.precision):
                shallow, deeper = (self._step(config, depth) for depth in (SHALLOW, DEEPER))
            per_block = max(deeper - shallow, 0.0) / (DEEPER - SHALLOW)
            self.known[kind] = (max(shallow - SHALLOW * per_block, 0.0), per_block)
        return self.known[kind]

    def _step(self, config: RunConfig, depth: int) -> float:
        """A step of one tower, the quickest of a few; of a stack its share."""
        channels, size = shape(config)
        options = {**config.model, "depth": depth, "in_channels": channels, "num_classes": 10, "seed": 0}
        towers = [ResidualTower(**options).to(self.device) for _ in range(self.stack)]
        stacked = StackedTower(towers) if self.stack > 1 else None
        leaves = list(towers[0].parameters() if stacked is None else stacked.leaves().values())
        optimizer = torch.optim.SGD(leaves, lr=0.0, momentum=config.train.momentum, foreach=True)
        batch = config.train.batch_size
        x = torch.zeros(batch, self.stack * channels, size, size, device=self.device)
        y = torch.zeros(batch * self.stack, dtype=torch.int64, device=self.device)

        def forward() -> Tensor:
            return towers[0](x) if stacked is None else stacked(x, training=True).flatten(0, 1)

        def update() -> float:
            began = self._now()
            optimizer.zero_grad()
            with autocast(config.train.precision, self.device):
                logits = forward()
            F.cross_entropy(logits.float(), y).backward()
            optimizer.step()
            return self._now() - began

        with channels_last(towers[0], self.device, config.train.precision):
            return min(update() for _ in range(REPEATS)) / self.stack

    def _now(self) -> float:
        """A time in seconds; on the CPU that of this process alone, whatever else the machine does."""
        if self.device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize(self.device)
        return time.perf_counter()


def shape(config: RunConfig) -> tuple[int, int]:
    """Channels and pixels a side of the images: the digits' or CIFAR-10's."""
    return (1, 8) if config.data == "digits" else (3, 32)


def test_size(config: RunConfig) -> int:
    """Test images."""
    return min(config.test_limit or 10**9, 899 if config.data == "digits" else 10_000)


def words(seconds: float) -> str:
    """A time to be read.

    >>> words(40), words(2000), words(9000), words(4e5), words(1e8)
    ('40 s', '33 min', '2.5 h', '4.6 days', '3.2 years')
    """
    for unit, size, least in (("years", 365.25 * 86400, 1.0), ("days", 86400.0, 2.0), ("h", 3600.0, 1.5)):
        if seconds >= least * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
