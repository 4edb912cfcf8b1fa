"""What came out of the comparison by path length: points, matched pairs, paired differences with their intervals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pathsum.storage import read_json
from pathsum.studies.intervals import mean_interval
from pathsum.studies.path_length import ARMS, PathLength
from pathsum.studies.path_length_runs import ROW, folder_of

if TYPE_CHECKING:
    import pandas as pd

MATCHED = 0.02  # of the original path length: further apart, two points are no pair
COLUMNS = (
    "start start_at seed arm point share target napl napl_std functional units relus rounds accuracy slopes "
    "slopes_share forced reached steps accuracy_start napl_start relus_start rounds_start weights"
).split()
PAIRED = ["start", "start_at", "seed", "point"]


def gather(study: PathLength, root: Path) -> pd.DataFrame:
    """A line for each point that is finished."""
    import pandas as pd

    files = [folder_of(root, point) / ROW for point in study.points()]
    rows = [read_json(file) for file in files if file.is_file()]
    return pd.DataFrame([{name: row[name] for name in COLUMNS} for row in rows], columns=COLUMNS)


def histograms(study: PathLength, root: Path) -> pd.DataFrame:
    """The share of each path length at each point, a line a length."""
    import pandas as pd

    lines: list[dict[str, Any]] = []
    for point in study.points():
        file = folder_of(root, point) / ROW
        if file.is_file():
            row = read_json(file)
            about = {name: row[name] for name in (*PAIRED, "arm", "share")}
            lines += [{**about, "length": k, "share_of_paths": v} for k, v in enumerate(row["histogram"])]
    return pd.DataFrame(lines)


def pairs(table: pd.DataFrame) -> pd.DataFrame:
    """A line for each pair of one seed at one point: both accuracies in percent, channel − layer, both losses.

    Pairs whose path lengths differ by more than 2 % of the original are left out, as are points with one arm.
    """
    import pandas as pd

    found = []
    for key, group in table.groupby(PAIRED, sort=False):
        arms = {row["arm"]: row for row in group.to_dict("records")}
        if set(arms) != set(ARMS):
            continue
        layer, channel = arms["layer"], arms["channel"]
        if abs(layer["napl"] - channel["napl"]) > MATCHED * layer["napl_start"]:
            continue
        found.append(
            {
                **dict(zip(PAIRED, key, strict=True)),
                "share": layer["share"],
                "napl_start": layer["napl_start"],
                "napl_layer": layer["napl"],
                "napl_channel": channel["napl"],
                "accuracy_start": 100 * layer["accuracy_start"],
                "accuracy_layer": 100 * layer["accuracy"],
                "accuracy_channel": 100 * channel["accuracy"],
                "difference": 100 * (channel["accuracy"] - layer["accuracy"]),
                "loss_layer": 100 * (layer["accuracy_start"] - layer["accuracy"]),
                "loss_channel": 100 * (channel["accuracy_start"] - channel["accuracy"]),
            }
        )
    names = (
        *PAIRED, "share", "napl_start", "napl_layer", "napl_channel", "accuracy_start", "accuracy_layer",
        "accuracy_channel", "difference", "loss_layer", "loss_channel",
    )  # fmt: skip
    return pd.DataFrame(found, columns=list(names))


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """A line for each start, point and arm: means over the seeds, accuracy and loss with their intervals."""
    import pandas as pd

    lines = []
    for (start, at, point, arm), group in table.groupby(["start", "start_at", "point", "arm"], sort=False):
        accuracy = mean_interval((100 * group["accuracy"]).tolist())
        loss = mean_interval((100 * (group["accuracy_start"] - group["accuracy"])).tolist())
        lines.append(
            {
                "start": start, "start_at": at, "point": point, "arm": arm, "seeds": len(group),
                "napl": group["napl"].mean(), "napl_std": group["napl_std"].mean(),
                "functional": group["functional"].astype(float).mean(),
                "relus": group["relus"].mean(), "rounds": group["rounds"].mean(), "units": group["units"].mean(),
                "accuracy": accuracy.mean, "accuracy_half": accuracy.half, "loss": loss.mean, "loss_half": loss.half,
                "slopes": group["slopes"].mean(), "slopes_percent": 100 * group["slopes_share"].mean(),
                "forced": group["forced"].mean(),
            }
        )  # fmt: skip
    columns = (
        "start start_at point arm seeds napl napl_std functional relus rounds units accuracy accuracy_half loss "
        "loss_half slopes slopes_percent forced"
    ).split()
    return pd.DataFrame(lines, columns=columns)


def differences(matched: pd.DataFrame) -> pd.DataFrame:
    """Channel − layer in points of accuracy, paired by seed, with its 95 % interval: at each point, and pooled.

    Pooled is the mean over a seed's points first, then over seeds, so that a seed counts once.
    """
    import pandas as pd

    lines = []
    for (start, at), ours in matched.groupby(["start", "start_at"], sort=False):
        for point, group in ours.groupby("point"):
            found = mean_interval(group["difference"].tolist())
            napl = group["napl_layer"].mean()
            accuracies = group["accuracy_layer"].mean(), group["accuracy_channel"].mean()
            lines.append((start, at, f"{point}", napl, *accuracies, found, len(group)))
        whole = pooled(ours)
        means = ours[["napl_layer", "accuracy_layer", "accuracy_channel"]].mean()
        lines.append((start, at, "pooled", *means.tolist(), mean_interval(whole), len(whole)))
    return pd.DataFrame(
        [
            {
                "start": start, "start_at": at, "point": point, "napl": napl, "accuracy_layer": layer,
                "accuracy_channel": channel, "difference": found.mean, "low": known(found.low),
                "high": known(found.high), "seeds": seeds,
            }
            for start, at, point, napl, layer, channel, found, seeds in lines
        ],
        columns="start start_at point napl accuracy_layer accuracy_channel difference low high seeds".split(),
    )  # fmt: skip


def known(end: float) -> float:
    """The end of an interval; not a number where it is infinite."""
    return end if math.isfinite(end) else math.nan


def pooled(matched: pd.DataFrame) -> list[float]:
    """The mean difference of each seed that has all the points that any has."""
    most = matched["point"].nunique()
    groups = [group["difference"] for _, group in matched.groupby("seed")]
    return [float(each.mean()) for each in groups if len(each) == most]


def at_half(table: pd.DataFrame, arm: str) -> pd.DataFrame:
    """Of each seed, the longest point of an arm with at most half of the original path length."""
    short = table[(table["arm"] == arm) & (table["napl"] <= 0.5 * table["napl_start"] * (1 + 1e-9))]
    return short.sort_values("napl").groupby(["start", "start_at", "seed"], as_index=False).last()
