"""The claims about path length and accuracy, each with its interval, and a verdict that can fall either way."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pathsum.studies.intervals import Interval, mean_interval
from pathsum.studies.path_length import ARMS, PathLength
from pathsum.studies.path_length_results import at_half, pairs, pooled
from pathsum.studies.study import Check, Verdict

if TYPE_CHECKING:
    import pandas as pd

WAITING = "points are to come"


def checks(study: PathLength, table: pd.DataFrame) -> list[Check]:
    """All claims, at each start."""
    found: list[Check] = []
    for spot in dict.fromkeys((spot.start, spot.share) for spot in study.spots()):
        ours = table[(table["start"] == spot[0]) & (table["start_at"] == spot[1])]
        where = f"{spot[0]}" if len(study.start_at) == 1 else f"{spot[0]} after {spot[1]:.0%} of its training"
        found += [loses_little(study, ours, where), is_better(study, ours, where), gap_grows(study, ours, where)]
    return found + list(late_is_better(study, table))


def sign(found: Interval) -> Verdict:
    """Whether a difference is above zero; an interval that holds zero says neither."""
    if math.isnan(found.half):
        return "not enough data"
    return "pass" if found.low > 0 else "fail" if found.high < 0 else "not enough data"


def loses_little(study: PathLength, table: pd.DataFrame, where: str) -> Check:
    """The issue's bound on the channel-wise loss at half of the path length."""
    claim = f"by channel at most {study.loss_limit:g} points of accuracy are lost at half the original path length"
    half = {arm: at_half(table, arm) for arm in ARMS}
    if len(half["channel"]) < len(study.seeds):
        return Check(claim, where, WAITING, "not enough data")
    said = []
    for arm in ("channel", "layer"):
        rows = half[arm]
        if len(rows):
            loss = mean_interval((100 * (rows["accuracy_start"] - rows["accuracy"])).tolist())
            napl, whole = rows["napl"].mean(), rows["napl_start"].mean()
            said.append(f"by {arm} {loss} at {napl:.2f} of {whole:.2f}")
    rows = half["channel"]
    mean = float((100 * (rows["accuracy_start"] - rows["accuracy"])).mean())
    return Check(claim, where, "points lost, " + "; ".join(said), "pass" if mean <= study.loss_limit else "fail")


def is_better(study: PathLength, table: pd.DataFrame, where: str) -> Check:
    """The paper's claim at matched path lengths, over all points."""
    claim = "by channel is more accurate than by layer at the same average path length"
    matched = pairs(table)
    values = pooled(matched)
    if len(values) < len(study.seeds):
        return Check(claim, where, WAITING, "not enough data")
    found = mean_interval(values)
    each = [mean_interval(group["difference"].tolist()) for _, group in matched.groupby("point")]
    lengths = [group["napl_layer"].mean() for _, group in matched.groupby("point")]
    said = "; ".join(f"{one} at {napl:.2f}" for one, napl in zip(each, lengths, strict=True))
    return Check(claim, where, f"channel − layer in points, paired by seed, pooled {found}: {said}", sign(found))


def gap_grows(study: PathLength, table: pd.DataFrame, where: str) -> Check:
    """The paper's: the shorter the paths, the larger the difference."""
    claim = "the difference grows as paths get shorter"
    matched = pairs(table)
    ends = [
        group.sort_values("napl_layer")["difference"].iloc[[0, -1]].tolist()
        for _, group in matched.groupby("seed")
        if len(group) > 1
    ]
    if len(ends) < len(study.seeds):
        return Check(claim, where, WAITING, "not enough data")
    found = mean_interval([short - long for short, long in ends])
    return Check(claim, where, f"at the shortest less that at the longest, in points: {found}", sign(found))


def late_is_better(study: PathLength, table: pd.DataFrame) -> Iterator[Check]:
    """The predecessor's: linearizing early in training costs more than late."""
    first, last = min(study.start_at), max(study.start_at)
    if first == last:
        return
    claim = "linearizing late in training leaves more accuracy than early"
    for arm in ARMS:
        ours = table[table["arm"] == arm]
        early, late = (
            ours[ours["start_at"] == at].groupby("seed")["accuracy"].agg(["mean", "size"]) for at in (first, last)
        )
        both = [seed for seed in study.seeds if seed in early.index and seed in late.index]
        whole = [s for s in both if early["size"][s] == late["size"][s] == len(study.shares)]
        where = f"by {arm}, {last:.0%} against {first:.0%} of the training"
        if len(whole) < len(study.seeds):
            yield Check(claim, where, WAITING, "not enough data")
            continue
        found = mean_interval([100 * float(late["mean"][s] - early["mean"][s]) for s in whole])
        yield Check(claim, where, f"late − early in points, mean over the points, paired by seed: {found}", sign(found))
