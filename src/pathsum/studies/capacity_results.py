"""What Figures 1 and 2 show, as pure functions of what the runs recorded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pathsum import report
from pathsum.runs import Run
from pathsum.studies.capacity import Capacity
from pathsum.studies.study import Choice, Evidence
from pathsum.studies.tables import Grid

if TYPE_CHECKING:
    import pandas as pd

SCORE: dict[Choice, str] = {"test": "test_accuracy", "validation": "val_accuracy"}
CURVES = ("train_loss", "test_accuracy", "complexity")  # the panels of Figure 1


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` seeds and its standard error (nan for one seed)."""

    mean: float
    error: float
    n: int

    def text(self, form: str = ".1f") -> str:
        """ "88.0 ± 0.1"; a dash where there is nothing."""
        if math.isnan(self.mean):
            return "–"
        return f"{self.mean:{form}}" if math.isnan(self.error) else f"{self.mean:{form}} ± {self.error:{form}}"


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and standard error of those that are numbers.

    >>> estimate([1.0, 3.0])
    Estimate(mean=2.0, error=1.0, n=2)
    """
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return Estimate(math.nan, math.nan, 0)
    mean, n = sum(known) / len(known), len(known)
    error = math.sqrt(sum((value - mean) ** 2 for value in known) / (n - 1) / n) if n > 1 else math.nan
    return Estimate(mean, error, n)


@dataclass(frozen=True)
class Point:
    """All seeds of one λ: how they ended, and means over those that reached their end.

    `loss` is of the last training steps; `accuracy` (percent), `complexity` and `step` are at the best evaluation of
    each run, by each way of choosing it.
    """

    scale: str
    lam: float
    n: int
    done: int
    diverged: int
    frozen: int
    open: int
    loss: Estimate
    accuracy: dict[Choice, Estimate]
    complexity: dict[Choice, Estimate]
    step: dict[Choice, Estimate]

    @property
    def name(self) -> str:
        """ "λ = 1/√n"."""
        return f"λ = {label(self.scale)}"

    @property
    def failed(self) -> int:
        """Runs that did not reach their end, and never will."""
        return self.diverged + self.frozen

    @property
    def state(self) -> str:
        """ "5 done", "4 done, 1 diverged"."""
        counts = {"done": self.done, "diverged": self.diverged, "frozen": self.frozen, "to come": self.open}
        return ", ".join(f"{count} {word}" for word, count in counts.items() if count)


def label(scale: str) -> str:
    """A rule for eyes."""
    return scale.replace("sqrt(n)", "√n").replace("-", "−")


def best_row(run: Run, choice: Choice) -> dict[str, Any] | None:
    """The first of the best evaluations of a run, with the complexity measured at that step."""
    score = SCORE[choice]
    scored = [row for row in run.rows if row.get(score) is not None and row.get("test_accuracy") is not None]
    if not scored:
        return None
    row = max(scored, key=lambda row: row[score])
    return {**row, "complexity": complexities(run).get(row["step"], math.nan)}


def complexities(run: Run) -> dict[int, float]:
    """Geometric complexity by step; nan where it was not finite."""
    found = {row["step"]: row.get("complexity") for row in run.observations}
    return {step: math.nan if value is None else value for step, value in found.items()}


def points(study: Capacity, evidence: Evidence) -> list[Point]:
    """A point for each λ, ascending."""
    return [point(scale, lam, evidence) for scale, lam in study.lams.items()]


def point(scale: str, lam: float, evidence: Evidence) -> Point:
    """All seeds of one λ."""
    runs = [run for config, run in zip(evidence.configs, evidence.runs, strict=True) if config.model["scale"] == scale]
    done = [run for run in runs if run.status == "done"]
    counts = {status: sum(run.status == status for run in runs) for status in report.STATUSES}
    best = {choice: [row for run in done if (row := best_row(run, choice))] for choice in evidence.choices}
    losses = [run.summary.get("final_loss") for run in done]
    return Point(
        scale,
        lam,
        n=len(runs),
        done=len(done),
        diverged=counts["diverged"],
        frozen=counts["frozen"],
        open=counts["interrupted"],
        loss=estimate([math.nan if loss is None else loss for loss in losses]),
        accuracy={choice: estimate([100 * row["test_accuracy"] for row in rows]) for choice, rows in best.items()},
        complexity={choice: estimate([row["complexity"] for row in rows]) for choice, rows in best.items()},
        step={choice: estimate([row["step"] for row in rows]) for choice, rows in best.items()},
    )


def curves(study: Capacity, evidence: Evidence) -> pd.DataFrame:
    """A line for each λ, seed and step: status of the run, training loss, test accuracy, geometric complexity."""
    import pandas as pd

    lines = []
    for config, run in zip(evidence.configs, evidence.runs, strict=True):
        scale, known = config.model["scale"], complexities(run)
        for row in run.rows:
            values = {name: row.get(name) for name in CURVES[:2]} | {"complexity": known.get(row["step"])}
            about = {"scale": scale, "lam": study.lams[scale], "seed": config.train.seed, "status": run.status}
            lines.append({**about, "step": row["step"], **values})
    columns = ["scale", "lam", "seed", "status", "step", *CURVES]
    return pd.DataFrame(lines, columns=columns).astype(dict.fromkeys(CURVES, float))


def means(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """Mean and standard error over the seeds at each step, of `curves` of one λ."""
    groups = table.dropna(subset=[name]).groupby("step")[name]
    return groups.agg(mean="mean", error="sem").reset_index()


def share(evidence: Evidence) -> float:
    """The share of the runs' time that observing took; those of a stack have their time in common."""
    finished = [run for run in evidence.runs if run.summary.get("seconds") and run.observations]
    total = sum(run.summary["seconds"] for run in finished)
    return sum(row["seconds"] for run in finished for row in run.observations) / total if total else math.nan


def grid(study: Capacity, evidence: Evidence) -> Grid:
    """The numbers behind both figures."""
    choices = evidence.choices
    rows = []
    for each in points(study, evidence):
        cells = [label(each.scale), f"{each.lam:.3g}", each.state, each.loss.text(".3f")]
        cells += [each.accuracy[choice].text() for choice in choices]
        cells += [each.complexity[choice].text(".3g") for choice in choices]
        rows.append(tuple(cells))
    header: tuple[str, ...] = ("λ", "value", "runs", "training loss")
    header += tuple(f"accuracy by {choice}" for choice in choices)
    header += tuple(f"GC by {choice}" for choice in choices)
    return Grid(
        header,
        (tuple(rows),),
        f"n = {study.depth} blocks, learning rate {study.lr:g}: mean ± standard error over seeds of the runs that "
        f"reached their end ({evidence.progress}). Accuracy is the maximum test accuracy in percent, GC the geometric "
        "complexity at that step.",
        ("By test: the evaluation with the highest test accuracy, as in the paper, which flatters.",)
        + (("By validation: the one with the highest accuracy on held-out images.",) if len(choices) > 1 else ()),
        num_labels=3,
    )


def point_lines(study: Capacity, evidence: Evidence) -> pd.DataFrame:
    """A line for each λ with all its numbers."""
    import pandas as pd

    lines = []
    for each in points(study, evidence):
        line: dict[str, Any] = {
            name: getattr(each, name) for name in ("scale", "lam", "n", "done", "diverged", "frozen", "open")
        }
        line |= {"train_loss": each.loss.mean, "train_loss_se": each.loss.error}
        for choice in evidence.choices:
            for name in ("accuracy", "complexity", "step"):
                found: Estimate = getattr(each, name)[choice]
                line |= {f"{name}_by_{choice}": found.mean, f"{name}_by_{choice}_se": found.error}
        lines.append(line)
    return pd.DataFrame(lines)
