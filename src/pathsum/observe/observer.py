"""An observer for a training loop of one's own."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import nn

from pathsum.errors import OutputError, PathsumError
from pathsum.observe.measures import Instruments, Loss, Measure
from pathsum.observe.period import BUDGET, round_number
from pathsum.observe.probe import Probe
from pathsum.runs import read_rows
from pathsum.storage import finite, write_atomic, writing
from pathsum.training.evaluation import placement

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


class Observer:
    """Records geometric complexity, path lengths, orders, λ and gradients of a model every few steps.

    `watch.step()` after each optimizer step counts it, and every `every` steps measures; the start is measured when the
    observer is made. Rows are in `watch.rows`, `watch.table()`, and with `out` in that file, a line of JSON each.
    Training stays what it was, bitwise: mode, buffers, gradients and random state are left alone.

    every: steps between observations; None settles on the smallest of 1, 2, 5, 10, … with which observing takes at
    most `budget` of the time, by the clock, once; `watch.every` says which, and so does each row.
    measures: names (`pathsum.observe.MEASURES`) or functions; by default all that apply. loss: of output and labels,
    for the gradient. start: steps taken before, when training is resumed: rows of `out` beyond it are dropped.

    >>> import torch, pathsum as ps
    >>> net = ps.ResidualMLP(depth=3, width=4, in_features=2, scale="learned:1/n", seed=0)
    >>> watch = ps.Observer(net, torch.ones(5, 2), every=10, measures=["lam"])
    >>> for _ in range(20):
    ...     _ = watch.step()
    >>> [row["step"] for row in watch.rows]
    [0, 10, 20]

    Raises `PathsumError` for an unknown measure, `DataError` for a probe it cannot be taken on, `OutputError`.
    """

    def __init__(
        self,
        model: nn.Module,
        probe: Any,
        *,
        every: int | None = None,
        measures: Sequence[str | Measure] | None = None,
        budget: float = BUDGET,
        loss: Loss = F.cross_entropy,
        out: str | Path | None = None,
        start: int = 0,
    ) -> None:
        for name, value, least in (("every", every, 1), ("start", start, 0)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise PathsumError(f"{name} is {value!r}, expected a whole number, {least} or more")
        if not 0 < budget < 1:
            raise PathsumError(f"budget is {budget!r}, expected a share of the time, such as 0.1")
        self.instruments = Instruments(model, Probe.of(probe).to(placement(model)[0]), measures, loss)
        self.every, self.budget, self.start, self.taken = every, budget, start, start
        self.out = None if out is None else Path(out)
        self.rows: list[dict[str, Any]] = [] if self.out is None else kept_rows(self.out, start)
        if self.every is None and self.rows:
            self.every = self.rows[-1].get("every")
        self.began = time.monotonic()
        self.observing = 0.0
        if not self.rows or (self.rows[-1]["step"] < start and self.every and start % self.every == 0):
            self._observe(start)
        self.free_since = time.monotonic()

    def step(self) -> dict[str, Any] | None:
        """Count an optimizer step; the row, where it was one to observe at."""
        return self.at(self.taken + 1)

    def at(self, step: int) -> dict[str, Any] | None:
        """The same where the loop counts by itself: `step` optimizer steps are taken."""
        self.taken = step
        if self.every is None:
            self.every = self._settle(step)
        if self.every is None or step % self.every or step <= self.rows[-1]["step"]:
            return None
        return self._observe(step)

    def finish(self) -> dict[str, Any] | None:
        """Observe the last step too, unless that is done."""
        return self._observe(self.taken) if self.taken > self.rows[-1]["step"] else None

    def _settle(self, step: int) -> int | None:
        """The period, once as much time went by as one observation may cost; None before."""
        cost = self.rows[-1]["seconds"]
        if cost > self.budget * (cost + time.monotonic() - self.free_since):
            return None
        return round_number(step - self.start)

    def _observe(self, step: int) -> dict[str, Any]:
        row = finite(self.instruments.read(step))
        self.observing += row["seconds"]
        row = {**row, "every": self.every}
        if self.out is not None:
            append(self.out, row)
        self.rows.append(row)
        return row

    @property
    def share(self) -> float:
        """The share of the time since the observer was made that observing took."""
        return self.observing / max(time.monotonic() - self.began, self.observing)

    def table(self) -> pd.DataFrame:
        """The rows as a pandas DataFrame; energies and the like are lists."""
        import pandas as pd

        return pd.DataFrame(self.rows)

    def plot(self, ax: Axes | None = None, *, name: str = "") -> Axes:
        """One number of the rows against steps: `name`, by default the first of complexity, mean_length and others."""
        from matplotlib import pyplot as plt

        numbers = [key for key, value in self.rows[-1].items() if isinstance(value, float) and key != "seconds"]
        name = name or next(iter(numbers), "")
        if name not in numbers:
            raise PathsumError(f"no number {name!r} in the rows, which have {', '.join(numbers) or 'none'}")
        ax = plt.subplots(figsize=(6, 4), layout="constrained")[1] if ax is None else ax
        ax.plot([row["step"] for row in self.rows], [row[name] for row in self.rows], "o-")
        ax.set(xlabel="step", ylabel=name.replace("_", " "))
        return ax

    def __repr__(self) -> str:
        every = "a period to be settled" if self.every is None else f"every {self.every} steps"
        return f"Observer({len(self.rows)} rows, {every}, {self.share:.1%} of the time)"

    def _repr_html_(self) -> str:
        return f"<p>{self!r}</p>" + self.table().to_html(index=False)


def kept_rows(out: Path, start: int) -> list[dict[str, Any]]:
    """The rows of an earlier sitting up to the step that training resumes from; the file then holds no others."""
    if not out.is_file():
        with writing(out):
            out.parent.mkdir(parents=True, exist_ok=True)
        return []
    rows = read_rows(out)
    if rows and not start and rows[-1].get("step"):
        raise OutputError(
            f"{out} holds observations up to step {rows[-1]['step']}; give start=STEP to go on from there, or another "
            "file"
        )
    kept = [row for row in rows if row["step"] <= start]
    write_atomic(out, "".join(map(line, kept)))
    return kept


def append(out: Path, row: Mapping[str, Any]) -> None:
    """One more line; it is in the file when this returns."""
    with writing(out), open(out, "a", encoding="utf-8") as file:
        file.write(line(row))


def line(row: Mapping[str, Any]) -> str:
    """A row as text."""
    return json.dumps(finite(row), allow_nan=False) + "\n"
