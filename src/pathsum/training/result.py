"""What a training run gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

WALL_CLOCK = ("seconds",)  # the fields of a row that no seed determines
Status = Literal["done", "diverged", "frozen", "interrupted"]


@dataclass(frozen=True, repr=False)
class FitResult:
    """How a training run went; accuracies are shares of 1, `rows` one dict an evaluation.

    `best_test` is the best test accuracy seen, which flatters; `test_at_best_val` the one at the (first) best
    validation accuracy. `initial_loss` is of the first batch, `final_loss` a mean over the last steps.
    `observations` are what `TrainConfig(observe=…)` asked for, one dict each.
    """

    rows: list[dict[str, Any]]
    status: Status
    reason: str
    steps: int
    best_test: float | None
    best_val: float | None
    test_at_best_val: float | None
    initial_loss: float
    final_loss: float
    seconds: float
    observations: list[dict[str, Any]] = field(default_factory=list)

    def __repr__(self) -> str:
        best = "none" if self.best_test is None else f"{self.best_test:.2%}"
        return (
            f"FitResult({self.status} after {self.steps} steps, loss {self.initial_loss:.4g} → "
            f"{self.final_loss:.4g}, best test accuracy {best}, {self.seconds:.1f} s)"
        )

    def _repr_html_(self) -> str:
        return f"<p>{self!r}</p>{self.table().to_html(index=False)}"

    @property
    def observing_share(self) -> float:
        """The share of the time that observing took; for one of a stack, of the stack's time."""
        return sum(row["seconds"] for row in self.observations) / self.seconds if self.observations else 0.0

    def table(self) -> Any:
        """The rows as a pandas DataFrame."""
        import pandas as pd

        table = pd.DataFrame(self.rows)
        return table.astype({name: float for name in table.columns if name != "step"})

    def plot(self, ax: Any = None) -> Any:
        """Training loss (left axis) and test accuracy (right axis) against steps; returns the left axes."""
        import matplotlib.pyplot as plt

        if ax is None:
            _, ax = plt.subplots()
        table = self.table()
        ax.plot(table["step"], table["train_loss"], color="C0", label="training loss")
        ax.set(xlabel="step", ylabel="training loss", title=self.status)
        right = ax.twinx()
        right.plot(table["step"], table["test_accuracy"], color="C1", label="test accuracy")
        right.set(ylabel="test accuracy", ylim=(0, 1))
        return ax


def best(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    """The best accuracies over the rows, as `FitResult` names them."""
    scored = [row for row in rows if row["test_accuracy"] is not None]
    validated = [row for row in scored if row["val_accuracy"] is not None]
    chosen: dict[str, Any] = max(validated, key=lambda row: row["val_accuracy"], default={})  # first of equals
    return {
        "best_test": max((row["test_accuracy"] for row in scored), default=None),
        "best_val": chosen.get("val_accuracy"),
        "test_at_best_val": chosen.get("test_accuracy"),
    }
