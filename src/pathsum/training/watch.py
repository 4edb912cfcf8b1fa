"""What a training run records of its network beside the rows: an observer for `fit` and `fit_stack`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from pathsum import runs
from pathsum.data import Dataset, normalize
from pathsum.errors import DataError
from pathsum.nets.tower import SumOfPaths
from pathsum.storage import finite
from pathsum.training.evaluation import placement
from pathsum.training.options import TrainConfig

if TYPE_CHECKING:
    from pathsum.observe.measures import Instruments
    from pathsum.observe.probe import Probe


class Watch:
    """The observations of one run: when they are due, and their file, which goes with the run's checkpoints.

    The probe is a balanced subset of the training images, the same for every seed, without augmentation.
    """

    def __init__(self, model: nn.Module, data: Dataset, config: TrainConfig, num_steps: int) -> None:
        from pathsum.observe.measures import Instruments

        self.num_steps = num_steps
        self.instruments: Instruments = Instruments(model, probe(model, data, config.observe_size), config.observe)
        self.every = config.observe_every or self._period(data, config)
        self.rows: list[dict[str, Any]] = []
        self.log: runs.RowLog | None = None

    def _period(self, data: Dataset, config: TrainConfig) -> int:
        from pathsum.observe.measures import ORDER
        from pathsum.observe.period import passes, period

        model = self.instruments.model
        depth = len(model.blocks) if isinstance(model, SumOfPaths) else self.instruments.num_branches()
        worth = passes(config.observe, depth=depth, classes=data.num_classes, order=ORDER)
        return period(self.num_steps, samples=worth * config.observe_size, batch_size=config.batch_size)

    def open(self, out: Path, keep: int) -> None:
        """Take up the first `keep` observations of the folder, those that its checkpoint knows."""
        self.log = runs.RowLog(out / runs.OBSERVATIONS, keep=keep)
        self.rows = self.log.rows

    def is_due(self, step: int) -> bool:
        """Whether to observe at this step: every so often, and at the end."""
        due = step % self.every == 0 or step >= self.num_steps
        return due and not (self.rows and self.rows[-1]["step"] >= step)

    def read(self, step: int) -> dict[str, Any]:
        """One observation, not yet written."""
        return self.instruments.read(step)

    def write(self, row: dict[str, Any]) -> None:
        """Append an observation."""
        if self.log is None:
            self.rows.append(finite(row))
        else:
            self.log.write(row)


def probe(model: nn.Module, data: Dataset, size: int) -> Probe:
    """So many training images as the model takes them, on its device. Raises `DataError` where there are fewer."""
    from pathsum.observe.probe import Probe

    if size > len(data.train):
        raise DataError(f"observe_size is {size}, but {data.name} has {len(data.train)} training images; observe fewer")
    device, dtype = placement(model)
    part = data.train.subset(size)
    x = normalize(part.images.to(device), data.mean, data.std, dtype=dtype)
    return Probe((x,), {}, part.labels.to(device))


def observe(watches: Sequence[Watch], step: int) -> None:
    """Observe networks that are trained as one program; `seconds` in each row is then the time of all."""
    rows = [watch.read(step) for watch in watches]
    seconds = sum(row["seconds"] for row in rows)
    for watch, row in zip(watches, rows, strict=True):
        watch.write({**row, "seconds": seconds})
