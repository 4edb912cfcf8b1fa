"""What came out of variable depth from scratch: accuracy against path length, differences paired by seed, a figure."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pathsum import figures
from pathsum.runs import read_run
from pathsum.studies.answers import Answer, Findings
from pathsum.studies.intervals import Interval, paired
from pathsum.studies.starts import recall
from pathsum.studies.study import Check
from pathsum.studies.variable_depth import CHANNEL, FREE, LAYER, MATCHED, ORDINARY, SHALLOW, VariableDepthStudy

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

NAMES = {
    ORDINARY: "ordinary",
    LAYER: "by layer",
    CHANNEL: "by channel",
    SHALLOW: "fewer blocks",
    FREE: "by channel, no target",
}
COLORS = dict(zip(NAMES, (figures.INK, *(figures.PALETTE[k] for k in (1, 0, 2, 3))), strict=True))
NUMBERS = ("accuracy", "napl", "spread", "relus", "units", "blocks")
APART = 0.1  # path lengths that count as the same


def findings(study: VariableDepthStudy, folder: Path) -> Findings | None:
    """All that is to be written; None where nothing was trained yet."""
    table = rows(study, folder)
    if not len(table):
        return None
    differences = compare(study, table)
    runs = [read_run(path.parent) for path in sorted(folder.glob("*/rows.jsonl"))]
    return Findings(
        name="variable-depth",
        title="Variable depth from scratch",
        about=about(study),
        caption=(
            "Left: test accuracy against average path length, a thin mark a run, means joined. Right: how much the "
            "lengths of paths differ within a network, the standard deviation on the random walk."
        ),
        plot=partial(draw, table),
        columns=2,
        tables={
            "runs": (table, ""),
            "arms": (means(table), "Mean over seeds; relus are nonlinear scalars an inference."),
            "differences": (differences, "By channel less the other, points of accuracy, paired by seed."),
        },
        checks=checks(study, table),
        answers=answers(differences),
        runs=runs,
    )


def rows(study: VariableDepthStudy, folder: Path) -> pd.DataFrame:
    """A line for each run."""
    import pandas as pd

    lines = []
    for arm, seed, value in study.nets():
        found = recall(study.place(folder, arm, seed, value), study.what(arm, seed, value))
        if found:
            lines.append({"arm": arm, "seed": seed, "value": value, **found})
    return pd.DataFrame(lines, columns=["arm", "seed", "value", *NUMBERS, "loss", "status"])


def means(table: pd.DataFrame) -> pd.DataFrame:
    """A line for each arm and length: accuracy in percent with its standard error, path length and what is left."""
    groups = table.assign(accuracy=100 * table["accuracy"]).groupby(["arm", "value"], sort=False)
    made = groups[list(NUMBERS)].mean()
    made.insert(1, "standard error", groups["accuracy"].sem())
    made = made.reset_index().rename(columns={"accuracy": "accuracy (%)", "napl": "NAPL", "value": "share or ω"})
    return made.assign(arm=made["arm"].map(NAMES), runs=groups.size().to_numpy())


def compare(study: VariableDepthStudy, table: pd.DataFrame) -> pd.DataFrame:
    """By channel less each other arm, by length, in points of accuracy."""
    import pandas as pd

    lines = []
    for share in study.lengths:
        mine = values(table, CHANNEL, share)
        for other in (ORDINARY, LAYER, SHALLOW):
            its = values(table, other, 1.0 if other == ORDINARY else share)
            both = mine.index.intersection(its.index)
            found = paired(list(mine[both]), list(its[both]))
            one = {"share": share, "against": NAMES[other], "seeds": len(both)}
            lines.append({**one, "difference": found.mean, "low": found.low, "high": found.high})
    return pd.DataFrame(lines)


def values(table: pd.DataFrame, arm: str, value: float) -> pd.Series:
    """Accuracy in percent by seed."""
    return 100 * table[(table["arm"] == arm) & (table["value"] == value)].set_index("seed")["accuracy"]


def answers(differences: pd.DataFrame) -> list[Answer]:
    """Each difference in words."""
    found = []
    for row in differences.to_dict("records"):
        interval = Interval(row["difference"], row["low"], row["high"])
        said = {1: "better", -1: "worse", 0: "undecided: the interval holds 0"}[interval.side]
        question = f"Is training with slopes by channel better than {phrase(row['against'])} at equal steps?"
        text = said if row["seeds"] > 1 else "not enough data"
        found.append(Answer(question, f"{row['share']:g} of the path length", interval.show(" points"), text))
    return found


def phrase(name: str) -> str:
    return {"ordinary": "ordinary training", "by layer": "with slopes by layer"}.get(name, f"a tower of {name}")


def checks(study: VariableDepthStudy, table: pd.DataFrame) -> list[Check]:
    """Whether the arms were matched, every run ended, and training worked at all."""
    total = len(list(study.nets()))
    where = f"{len(table)} of {total} runs"
    wide = table[table["arm"].isin(MATCHED)].pivot_table(index=["seed", "value"], columns="arm", values="napl")
    wide = wide.reindex(columns=list(MATCHED)).dropna()
    apart = float((wide[CHANNEL] - wide[LAYER]).abs().max()) if len(wide) else math.nan
    shallow = float((wide[SHALLOW] - wide[LAYER]).abs().max()) if len(wide) else math.nan
    matched: Any = "not enough data" if math.isnan(apart) else "pass" if apart <= APART else "fail"
    best = 100 * float(table[table["arm"] == ORDINARY]["accuracy"].mean())
    done = int((table["status"] == "done").sum())
    return [
        Check(
            "the arms by channel and by layer come to the same path length",
            where,
            f"{apart:.3g} apart at most (up to {APART:g}); the towers of fewer blocks {shallow:.3g}",
            matched,
        ),
        Check("every run ended by itself", where, f"{done} of {len(table)}", "pass" if done == len(table) else "fail"),
        Check(
            "ordinary training learns",
            where,
            f"mean accuracy {best:.1f} %",
            "not enough data" if math.isnan(best) else "pass" if best >= 50 else "fail",
        ),
    ]


def about(study: VariableDepthStudy) -> str:
    """What was done, in words."""
    return (
        f"Towers of {study.depth} blocks and width {study.width}, λ = {study.scale}, all trained from scratch for "
        f"{study.steps:,} steps with rate {study.lr:g}, {len(study.seeds)} seeds. Ordinary: nothing else. By channel "
        "and by layer: slopes α learned from the first step on under ω·Σ|1−α|^½, ω controlled so that a share of the "
        "path length is left after 70 % of the steps; the channels go to the length that the layers came to. Fewer "
        "blocks: an ordinary tower whose path length is nearest. No target: ω fixed, and what is left is what the "
        "data held back."
    )


def draw(table: pd.DataFrame, accuracy: Axes, spread: Axes) -> None:
    """Accuracy and spread against path length."""
    for arm in NAMES:
        part = table[table["arm"] == arm]
        if not len(part):
            continue
        for ax, column, factor in ((accuracy, "accuracy", 100.0), (spread, "spread", 1.0)):
            ax.plot(part["napl"], factor * part[column], "o", color=COLORS[arm], ms=3, alpha=0.4)
            mean = part.groupby("value")[["napl", column]].mean().sort_values("napl")
            ax.plot(mean["napl"], factor * mean[column], "o-", color=COLORS[arm], label=NAMES[arm])
    accuracy.set(xlabel="average path length (nonlinear units)", ylabel="test accuracy (%)")
    spread.set(xlabel="average path length (nonlinear units)", ylabel="standard deviation of path length")
    figures.shared_legend((accuracy, spread))
