"""What came out of the robustness study: robust accuracy of the arms, at matched length and at matched accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pathsum import figures
from pathsum.runs import read_run
from pathsum.studies.answers import Answer, Findings
from pathsum.studies.intervals import Interval, mean_interval, paired
from pathsum.studies.robustness import ARMS, START, RobustnessStudy
from pathsum.studies.starts import recall
from pathsum.studies.study import Check

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

ATTACKS = ("fgsm", "pgd")
COLORS = {START: figures.INK, "layer": figures.PALETTE[1], "channel": figures.PALETTE[0]}
NAMES = {START: "before", "layer": "by layer", "channel": "by channel"}
SIDES = {1: "by channel is more robust", -1: "by layer is more robust", 0: "undecided: the interval holds 0"}
POINTS = 33  # accuracies at which two curves are compared


def findings(study: RobustnessStudy, folder: Path) -> Findings | None:
    """All that is to be written; None where nothing was attacked yet."""
    table = rows(study, folder)
    if not len(table):
        return None
    by_length, by_accuracy = at_length(study, table), at_accuracy(study, table)
    runs = [read_run(path.parent) for path in sorted(folder.glob("*/rows.jsonl"))]
    return Findings(
        name="robustness",
        title="Variable against fixed depth under attack",
        about=about(study),
        caption=(
            "Left: accuracy under PGD against its radius, at the shortest paths; bars are 95 % intervals over seeds. "
            "Middle: the same at the middle radius against path length. Right: at that radius against accuracy "
            "without attack, a mark a network."
        ),
        plot=partial(draw, study, table),
        columns=3,
        tables={
            "attacked": (table, ""),
            "arms": (means(table), "Mean over seeds, percent."),
            "matched_length": (by_length, "By channel less by layer at matched path length, points, paired by seed."),
            "matched_accuracy": (by_accuracy, "The same at matched accuracy without attack, where the curves overlap."),
        },
        checks=checks(study, table),
        answers=[
            *answers(by_length, "At matched path length, which arm is more robust under PGD?"),
            *answers(by_accuracy, "At matched accuracy, which arm is more robust under PGD?"),
        ],
        runs=runs,
    )


def rows(study: RobustnessStudy, folder: Path) -> pd.DataFrame:
    """A line for each network, attack and radius."""
    import pandas as pd

    lines = []
    for arm, seed, share in study.nets():
        found = recall(study.place(folder, arm, seed, share), study.what(arm, seed, share))
        if not found:
            continue
        for attack in ATTACKS:
            for epsilon, accuracy in zip(study.radii, found[attack], strict=True):
                one = {"arm": arm, "seed": seed, "share": share, "napl": found["napl"], "relus": found["relus"]}
                lines.append({**one, "attack": attack, "epsilon": epsilon, "accuracy": accuracy})
    columns = ["arm", "seed", "share", "napl", "relus", "attack", "epsilon", "accuracy"]
    return pd.DataFrame(lines, columns=columns)


def means(table: pd.DataFrame) -> pd.DataFrame:
    """A line for each arm and length: path length, and PGD's accuracy at each radius in percent."""
    part = table[table["attack"] == "pgd"].assign(percent=100 * table["accuracy"])
    wide = part.pivot_table(index=["share", "arm"], columns="epsilon", values="percent").sort_index(ascending=False)
    wide.columns = [f"ε = {epsilon:.3g}" for epsilon in wide.columns]
    napl = part.groupby(["share", "arm"])["napl"].mean()
    return wide.assign(NAPL=napl).reset_index()


def values(table: pd.DataFrame, arm: str, attack: str, epsilon: float, share: float) -> pd.Series:
    """Accuracy in percent by seed."""
    part = table[(table["arm"] == arm) & (table["attack"] == attack) & (table["epsilon"] == epsilon)]
    return 100 * part[part["share"] == share].set_index("seed")["accuracy"]


def at_length(study: RobustnessStudy, table: pd.DataFrame) -> pd.DataFrame:
    """By channel less by layer at the same path length, for each attack, radius and length."""
    lines = []
    for attack in ATTACKS:
        for epsilon in study.radii:
            for share in study.lengths:
                layer, channel = (values(table, arm, attack, epsilon, share) for arm in ARMS)
                both = channel.index.intersection(layer.index)
                found = paired(list(channel[both]), list(layer[both]))
                lines.append({"attack": attack, "epsilon": epsilon, "share": share, **line(found, len(both))})
    return frame(lines, "share")


def at_accuracy(study: RobustnessStudy, table: pd.DataFrame) -> pd.DataFrame:
    """By channel less by layer at the same accuracy without attack, for each attack and radius."""
    lines = []
    for attack in ATTACKS:
        for epsilon in study.radii[1:]:
            gaps = [gap(table[(table["seed"] == seed) & (table["attack"] == attack)], epsilon) for seed in study.seeds]
            known = sum(map(math.isfinite, gaps))
            lines.append({"attack": attack, "epsilon": epsilon, **line(mean_interval(gaps), known)})
    return frame(lines)


def gap(table: pd.DataFrame, epsilon: float) -> float:
    """Mean difference of two curves of robust against clean accuracy, where both are; NaN where they do not overlap."""
    curves = []
    for arm in ARMS:
        part = table[table["arm"] == arm].pivot_table(index="share", columns="epsilon", values="accuracy")
        if epsilon not in part or not len(part):
            return math.nan
        curve = (100 * part).groupby(0.0)[epsilon].mean()  # sorted by accuracy, equal ones averaged
        curves.append((curve.index.to_numpy(), curve.to_numpy()))
    low, high = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    if low > high:
        return math.nan
    at = np.linspace(low, high, POINTS)
    layer, channel = (np.interp(at, *curve) for curve in curves)
    return float(np.mean(channel - layer))


def line(found: Interval, seeds: int) -> dict[str, Any]:
    return {"difference": found.mean, "low": found.low, "high": found.high, "seeds": seeds}


def frame(lines: list[dict[str, Any]], *more: str) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(lines, columns=["attack", "epsilon", *more, "difference", "low", "high", "seeds"])


def answers(table: pd.DataFrame, question: str) -> list[Answer]:
    """PGD's lines as answers, the widest radius first."""
    found = []
    attacked = table[(table["attack"] == "pgd") & (table["epsilon"] > 0)]
    for row in attacked.sort_values("epsilon", ascending=False, kind="stable").to_dict("records"):
        interval = Interval(row["difference"], row["low"], row["high"])
        where = f"ε = {row['epsilon']:.3g}" + (f", {row['share']:g} of the path length" if "share" in row else "")
        text = SIDES[interval.side] if row["seeds"] > 1 else "not enough data"
        found.append(Answer(question, where, interval.show(" points"), text))
    return found


def checks(study: RobustnessStudy, table: pd.DataFrame) -> list[Check]:
    """Whether the arms were matched, and the attacks did what attacks do."""
    total, there = len(list(study.nets())), table.groupby(["arm", "seed", "share"]).ngroups
    where = f"{there} of {total} networks"
    napl = table.pivot_table(index=["seed", "share"], columns="arm", values="napl").reindex(columns=list(ARMS)).dropna()
    apart = float((napl["channel"] - napl["layer"]).abs().max()) if len(napl) else math.nan
    wide = table.pivot_table(index=["arm", "seed", "share", "epsilon"], columns="attack", values="accuracy")
    stronger = float((wide["pgd"] - wide["fgsm"]).groupby("epsilon").mean().max())
    least = float(table[table["attack"] == "pgd"].groupby("epsilon")["accuracy"].mean().min())
    most = float(table[table["epsilon"] == 0]["accuracy"].mean())
    matched: Any = "not enough data" if math.isnan(apart) else "pass" if apart <= 0.1 else "fail"
    return [
        Check("both arms come to the same path length", where, f"{apart:.3g} units apart at most (up to 0.1)", matched),
        Check(
            "PGD is no weaker than FGSM on average",
            where,
            f"accuracy under PGD less that under FGSM, mean at the worst radius: {100 * stronger:+.1f} points",
            "pass" if stronger <= 0.01 else "fail",
        ),
        Check(
            "the radii are neither too small nor too large to compare anything",
            where,
            f"mean accuracy {100 * most:.1f} % without attack, {100 * least:.1f} % at the widest radius",
            "pass" if 0.01 <= least <= most - 0.05 else "fail",
        ),
    ]


def about(study: RobustnessStudy) -> str:
    """What was done, in words."""
    start = study.model or f"towers of {study.depth} blocks and width {study.width}, trained for {study.steps:,} steps"
    return (
        f"From {start}: linearized by layer to {', '.join(f'{s:g}' for s in study.lengths)} of the path length, and by "
        "channel to the length that the layers came to, from the same weights. FGSM, and PGD with "
        f"{study.pgd_steps} steps and {study.restarts} starts, on {study.attacked} test images, in float64 on pixels "
        "in [0, 1]; an image counts as fooled at every radius above the first that fooled it. Many intervals are "
        "shown: of twenty, one misses at 95 % by chance."
    )


def draw(study: RobustnessStudy, table: pd.DataFrame, radius: Axes, length: Axes, accuracy: Axes) -> None:
    """PGD's accuracy against radius, path length, and accuracy without attack."""
    strong = table[table["attack"] == "pgd"].assign(percent=100 * table["accuracy"])
    middle = study.radii[1 + (len(study.radii) - 1) // 2] if len(study.radii) > 2 else study.radii[-1]
    for arm in (START, *ARMS):
        part = strong[(strong["arm"] == arm) & strong["share"].isin([1.0, study.lengths[-1]])]
        bars(radius, part, "epsilon", arm)
        own = strong[(strong["arm"] == arm) & (strong["epsilon"] == middle)]
        if arm == START:
            if len(own):
                length.axhline(own["percent"].mean(), color=COLORS[arm], ls="--", lw=1, label=NAMES[arm])
        else:
            bars(length, own.assign(napl=own.groupby("share")["napl"].transform("mean")), "napl", arm)
        clean = strong[(strong["arm"] == arm) & (strong["epsilon"] == 0)].set_index(["seed", "share"])["percent"]
        points = own.set_index(["seed", "share"])["percent"]
        both = points.index.intersection(clean.index)
        accuracy.plot(clean[both], points[both], "o", color=COLORS[arm], label=NAMES[arm])
    for ax in (radius, length, accuracy):
        ax.set_ylabel("accuracy under PGD (%)")
    radius.set(xlabel="radius ε (1 is white)", ylim=(-2, 102))
    radius.set_title(f"{study.lengths[-1]:g} of the path length")
    length.set(xlabel="average path length", ylim=(-2, 102), title=f"ε = {middle:.3g}")
    accuracy.set(xlabel="accuracy without attack (%)", title=f"ε = {middle:.3g}")
    figures.shared_legend((radius, length, accuracy))


def bars(ax: Axes, part: pd.DataFrame, x: str, arm: str) -> None:
    """Means over seeds with 95 % intervals."""
    at: Sequence[float] = sorted(part[x].unique())
    found = [mean_interval(list(part[part[x] == value]["percent"])) for value in at]
    half = [one.high - one.mean if math.isfinite(one.high) else 0.0 for one in found]
    ax.errorbar(at, [one.mean for one in found], yerr=half, fmt="o-", capsize=3, color=COLORS[arm], label=NAMES[arm])
