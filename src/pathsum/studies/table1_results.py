"""The cells of Table 1, a pure function of what the runs recorded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pathsum import report
from pathsum.studies.study import CHOSEN_BY, Choice, Evidence
from pathsum.studies.table1 import PAPER, SETTINGS
from pathsum.studies.tables import Grid

if TYPE_CHECKING:
    import pandas as pd

COUNTS = {"n": "n", "done": "done", "diverged": "diverged", "frozen": "frozen", "open": "interrupted"}


@dataclass(frozen=True)
class Cell:
    """One setting at one depth, at its best learning rate; accuracies in percent.

    `mean` and `error` (the standard error, nan for one run) are over the `done` of `n` runs at that rate, of which
    others `diverged`, `froze` or are `open`. The `all_` counts are over all rates.
    """

    name: str
    depth: int
    choice: Choice
    lr: float
    is_largest: bool  # of the rates tried
    mean: float
    error: float
    n: int
    done: int
    diverged: int
    frozen: int
    open: int
    all_n: int
    all_done: int
    all_diverged: int
    all_frozen: int
    all_open: int
    chance: float

    @property
    def trains(self) -> bool:
        """Whether runs reach their end, and there more than chance."""
        return self.done > 0 and not self.at_chance

    @property
    def at_chance(self) -> bool:
        """Whether the mean is no better than guessing."""
        return self.mean < self.chance

    @property
    def text(self) -> str:
        """ "88.0 ± 0.1", or "–" with the reason, as the paper has it."""
        if self.done:
            notes = [
                f"{k} of {self.n} {word}" for k, word in ((self.diverged, "diverged"), (self.frozen, "frozen")) if k
            ]
            notes += ["at chance"] * self.at_chance
            text = number(self.mean, self.error) + (f" ({', '.join(notes)})" if notes else "")
            return text + (" …" if self.all_open else "")
        failed = [f"{k} {word}" for k, word in ((self.all_diverged, "diverged"), (self.all_frozen, "frozen")) if k]
        if self.all_open:
            return f"… ({', '.join([*failed, f'{self.all_open} to come'])})"
        return f"– ({', '.join(failed)})"


def number(mean: float, error: float) -> str:
    """ "88.0 ± 0.1"; without the error where there is none."""
    return f"{mean:.1f}" if math.isnan(error) else f"{mean:.1f} ± {error:.1f}"


Cells = dict[tuple[str, str, Choice, int], Cell]  # by norm, λ, way of choosing, depth


def cells(evidence: Evidence) -> Cells:
    """All cells of the table."""
    found: Cells = {}
    for choice in evidence.choices:
        for _, row in evidence.best(choice).iterrows():
            same = (evidence.summary[report.SETTING] == row[report.SETTING]).all(axis=1)
            key = (row["norm"], row["scale"], choice, int(row["depth"]))
            found[key] = cell(row, evidence.summary[same], choice, evidence.chance)
    return found


def cell(row: pd.Series, every: pd.DataFrame, choice: Choice, chance: float) -> Cell:
    """A cell, from the line of the best rate and the lines of all rates."""
    score = CHOSEN_BY[choice][1]
    return Cell(
        name=report.setting(row),
        depth=int(row["depth"]),
        choice=choice,
        lr=float(row["lr"]),
        is_largest=bool(len(every) > 1 and row["lr"] == every["lr"].max()),
        mean=100 * float(row[score]),
        error=100 * float(row[f"{score}_se"]),
        chance=100 * chance,
        **{name: int(row[column]) for name, column in COUNTS.items()},
        **{f"all_{name}": int(every[column].sum()) for name, column in COUNTS.items()},
    )


def depths(evidence: Evidence) -> list[int]:
    """The depths asked for, ascending."""
    return sorted({int(config.model["depth"]) for config in evidence.configs})


def grid(evidence: Evidence) -> Grid:
    """The table: for each setting what was found, by either choice, and what the paper has."""
    found, columns = cells(evidence), depths(evidence)
    groups = []
    for norm, scale in SETTINGS:
        kind = (norm or "none", scale)
        rows = [
            (f"by {choice}", *(found[*kind, choice, depth].text for depth in columns)) for choice in evidence.choices
        ]
        if set(columns) & PAPER[kind].keys():
            rows.append(("the paper", *(PAPER[kind].get(depth, "") for depth in columns)))
        name = found[*kind, "test", columns[0]].name
        groups.append(tuple((name if k == 0 else "", *row) for k, row in enumerate(rows)))
    return Grid(
        ("setting", "chosen", *(f"n = {depth}" for depth in columns)),
        tuple(groups),
        f"Test accuracy in percent, mean ± standard error over seeds ({evidence.progress}).",
        notes(evidence, found),
        num_labels=2,
    )


def notes(evidence: Evidence, found: Cells) -> tuple[str, ...]:
    """What the table's words mean; of those that occur."""
    text = " ".join(cell.text for cell in found.values())
    by = "By test: learning rate and evaluation chosen by test accuracy, as in the paper, which flatters."
    if "validation" in evidence.choices:
        by += " By validation: both chosen on held-out images."
    meanings = {
        "–": "–: no run at any learning rate reached its end. Diverged: the loss rose or was not finite; frozen: "
        "nothing moved.",
        "at chance": f"At chance: below {100 * evidence.chance:.1f} %.",
        "…": "…: not all runs are finished.",
    }
    return (by, *(meaning for word, meaning in meanings.items() if word in text))


def cell_lines(evidence: Evidence) -> pd.DataFrame:
    """A line a cell, with all its numbers and the paper's."""
    import pandas as pd

    lines = []
    for (norm, scale, _, depth), each in cells(evidence).items():
        mean, _, error = PAPER[norm, scale].get(depth, "").partition(" ± ")
        paper = {"paper_mean": float(mean) if error else None, "paper_error": float(error) if error else None}
        lines.append({"norm": norm, "scale": scale, **vars(each), "text": each.text, "paper": mean, **paper})
    return pd.DataFrame(lines).drop(columns="paper")
