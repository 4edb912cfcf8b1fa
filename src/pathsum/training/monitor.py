"""When is a training run over before its time? Divergence and freezing, judged from the losses alone.

A monitor is a pure function of the values it was given, in order, so a resumed run reaches the same verdict
at the same step as one that was never interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

CHECK = 10  # steps between two looks at the losses: each look waits for the device
RISE = 1.05  # a loss counts as above its start from here on, or from three standard errors


@dataclass
class Monitor:
    """Watches the training loss of every step and the loss of every evaluation.

    *Diverged*: a loss that is not finite; or `divergence_window` consecutive steps in which every mean over
    ten steps lies above the loss at the start (by 5 % and by three standard errors of the first batch), and
    the last ten are no lower than the mean of all. A high learning rate that overshoots and returns passes.

    *Frozen*: over `frozen_window` steps no weight receives a gradient, or none moves; or, over at least three
    evaluations that far apart, the evaluation loss moves by less than `frozen_tolerance` of itself while the
    training loss is above half its start (so a network that has learned all there is does not count).
    """

    divergence_window: int = 50
    frozen_window: int = 100
    frozen_tolerance: float = 1e-5
    steps: int = 0
    initial: float = math.nan  # loss of the first batch, before any update
    ceiling: float = math.inf  # above this the loss counts as risen
    recent: list[float] = field(default_factory=list)  # the last `divergence_window` losses
    total: float = 0.0  # of the losses since the last row
    count: int = 0
    dead_steps: int = 0
    still: list[tuple[int, float]] = field(default_factory=list)  # evaluations since the loss last moved
    verdict: tuple[str, str] | None = None  # status and the reason in words

    def start(self, per_sample: list[float]) -> None:
        """Take the losses of the first batch's samples, before any update."""
        num = len(per_sample)
        self.initial = sum(per_sample) / num
        variance = sum((loss - self.initial) ** 2 for loss in per_sample) / max(num - 1, 1)
        self.ceiling = max(RISE * self.initial, self.initial + 3 * math.sqrt(variance / num))

    def add(self, loss: float) -> None:
        """Take the mean loss of the next step's batch."""
        if self.verdict:
            return
        self.steps += 1
        self.total += loss
        self.count += 1
        self.recent = [*self.recent, loss][-self.divergence_window :]
        if not math.isfinite(loss):
            self.verdict = ("diverged", f"the loss was not finite at step {self.steps}")
        elif self.steps % CHECK == 0 and self._risen():
            self.verdict = (
                "diverged",
                f"the loss stayed above its start ({self.initial:.4g}) for {self.divergence_window} steps, "
                f"without falling, until step {self.steps}",
            )

    def _risen(self) -> bool:
        window, losses = self.divergence_window, self.recent
        if len(losses) < window:
            return False
        means = [_mean(losses[max(i - CHECK, 0) : i]) for i in range(window, 0, -CHECK)][::-1]
        return min(means) > self.ceiling and means[-1] >= _mean(losses)

    def add_update(self, *, dead: bool) -> None:
        """Take whether a step gave no weight a gradient or moved none, once every ten steps."""
        self.dead_steps = self.dead_steps + CHECK if dead else 0
        if self.dead_steps >= self.frozen_window and not self.verdict:
            reason = f"no weight moved for {self.dead_steps} steps, until step {self.steps}"
            self.verdict = ("frozen", reason)

    def add_evaluation(self, loss: float) -> None:
        """Take the loss on the held-out images, and start a new row."""
        learned = self.count > 0 and self.total / self.count < self.initial / 2
        self.total, self.count = 0.0, 0
        if not math.isfinite(loss):
            self.still = []
            return
        self.still = [(step, old) for step, old in self.still if abs(old - loss) <= self.frozen_tolerance * abs(loss)]
        self.still.append((self.steps, loss))
        span = self.steps - self.still[0][0]
        if len(self.still) >= 3 and span >= self.frozen_window and not learned and not self.verdict:
            reason = f"the loss did not move from {loss:.6g} for {span} steps, until step {self.steps}"
            self.verdict = ("frozen", reason)

    @property
    def row_loss(self) -> float | None:
        """Mean training loss since the last row."""
        return self.total / self.count if self.count else None

    @property
    def final(self) -> float:
        """Mean training loss of the last steps (`divergence_window` at most)."""
        return _mean(self.recent)

    def state(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        return asdict(self)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up what `state` gave."""
        for name, value in state.items():
            missing = value is None and name != "verdict"  # JSON has no infinities
            setattr(self, name, getattr(self, name) if missing else value)
        self.still = [(int(step), float(loss)) for step, loss in self.still]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan
