"""What came out of length against complexity: rank correlations with intervals, the figure."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pathsum import figures
from pathsum.progress import track
from pathsum.runs import read_run
from pathsum.studies.answers import Answer, Findings
from pathsum.studies.image_complexity import DIFFICULTY, IMAGE, bootstrap
from pathsum.studies.intervals import Interval, mean_interval
from pathsum.studies.length_complexity import LENGTHS, LengthComplexityStudy, found_images
from pathsum.studies.ranks import spearman
from pathsum.studies.study import Check

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

MEASURES = IMAGE | DIFFICULTY
SHOWN = ("bytes", "high", "entropy")  # in the figure
BINS = 10
EXACT = 1e-3  # how far the parts of an output may be from it


def findings(study: LengthComplexityStudy, folder: Path) -> Findings | None:
    """All that is to be written; None where nothing was measured yet."""
    found = found_images(study, folder)
    if not found:
        return None
    images = frame(found)
    each = correlations(study, images)
    table = summary(each)
    return Findings(
        name="length-vs-complexity",
        title="Path length against the complexity of the input",
        about=about(study, found),
        caption=(
            "Functional path length of each test image of the first network against three measures, as ranks in "
            f"percent; large marks are means of {BINS} bins of equal size."
        ),
        plot=partial(draw, images[images["seed"] == images["seed"].iloc[0]]),
        columns=len(SHOWN),
        tables={
            "images": (images, ""),
            "correlations": (table, "Spearman's rank correlation with path length: mean over networks, 95 % interval."),
            "networks": (each, "The same for each network, with a bootstrap interval over images."),
        },
        checks=checks(study, found),
        answers=answers(table),
        runs=[read_run(path.parent) for path in sorted(folder.glob("*/rows.jsonl"))],
    )


def frame(found: dict[int, dict[str, Any]]) -> pd.DataFrame:
    """A line for each image and network."""
    import pandas as pd

    parts = [pd.DataFrame(result["columns"]).assign(seed=seed) for seed, result in found.items()]
    return pd.concat(parts, ignore_index=True)


def correlations(study: LengthComplexityStudy, images: pd.DataFrame) -> pd.DataFrame:
    """A line for each length, measure and network: correlation, and its interval over images."""
    import pandas as pd

    jobs = [
        (length, measure, seed, part)
        for length in LENGTHS
        if length in images
        for measure in MEASURES
        for seed, part in images.groupby("seed")
    ]
    lines = []
    for length, measure, seed, part in track(jobs, "bootstrap"):
        a, b = part[length].to_numpy(float), part[measure].to_numpy(float)
        known = np.isfinite(a) & np.isfinite(b)
        low, high = bootstrap(a[known], b[known], resamples=study.resamples)
        one = {"length": length, "measure": measure, "seed": seed, "correlation": spearman(a[known], b[known])}
        lines.append({**one, "low": low, "high": high})
    return pd.DataFrame(lines)


def summary(each: pd.DataFrame) -> pd.DataFrame:
    """A line for each length and measure: over networks by Student's t, or, of one network, over its images."""
    import pandas as pd

    lines = []
    for (length, measure), part in each.groupby(["length", "measure"], sort=False):
        found = mean_interval(list(part["correlation"]))
        if len(part) == 1:
            found = Interval(*(float(part[name].iloc[0]) for name in ("correlation", "low", "high")))
        one = {"length": length, "measure": measure, "what": MEASURES[str(measure)], "networks": len(part)}
        lines.append({**one, "correlation": found.mean, "low": found.low, "high": found.high})
    return pd.DataFrame(lines)


def answers(table: pd.DataFrame) -> list[Answer]:
    """Each correlation in words."""
    found = []
    for row in table.to_dict("records"):
        interval = Interval(row["correlation"], row["low"], row["high"])
        said = {1: "yes", -1: "no, with the opposite sign", 0: "undecided: the interval holds 0"}[interval.side]
        question = f"Do images of higher {row['what']} take longer paths?"
        said = said if math.isfinite(interval.mean) else "not enough data"
        found.append(Answer(question, LENGTHS[row["length"]], f"rank correlation {interval.show()}", said))
    return found


def checks(study: LengthComplexityStudy, found: dict[int, dict[str, Any]]) -> list[Check]:
    """Whether the lengths are what they claim, and the networks are trained."""
    where = f"{len(found)} of {len(study.seeds)} networks"
    off = max(float(result["conservation"]) for result in found.values())
    least = 100 * min(result["accuracy"] for result in found.values())
    apart = min(float(np.ptp(result["columns"]["units"])) for result in found.values())
    return [
        Check(
            "the parts by length add up to the output",
            where,
            f"off by {off:.1e} at most (relative, up to {EXACT:g})",
            "pass" if off <= EXACT else "fail",
        ),
        Check("the networks are trained", where, f"accuracy {least:.1f} % or more", "pass" if least >= 50 else "fail"),
        Check(
            "the functional length differs between images",
            where,
            f"longest less shortest {apart:.3g} units or more, where the structural length is the same for all",
            "pass" if apart > 1e-3 else "fail",
        ),
    ]


def about(study: LengthComplexityStudy, found: dict[int, dict[str, Any]]) -> str:
    """What was done, in words."""
    start = study.model or f"towers of {study.depth} blocks and width {study.width}, trained for {study.steps:,} steps"
    napl = ", ".join(f"{value:.3g}" for value in sorted({round(r["napl"], 6) for r in found.values()}))
    return (
        f"Of {start}: the structural average path length is {napl} for every image. The functional one splits each "
        "output exactly by the units passed and weighs lengths by energy; the order of the spectrum does the same by "
        "residual branches. Against them: bytes of the image as PNG compresses it, total variation, share of the power "
        "spectrum above a quarter of a cycle per pixel, contrast, and what the network makes of it: loss, margin, "
        "entropy. A correlation says nothing of causes, and the measures go together; of twenty intervals, one misses "
        "at 95 % by chance."
    )


def draw(images: pd.DataFrame, *axes: Axes) -> None:
    """Ranks of length against ranks of a measure, and means of bins."""
    y = 100 * images["units"].rank(pct=True)
    for ax, name in zip(axes, SHOWN, strict=True):
        x = 100 * images[name].rank(pct=True)
        ax.plot(x, y, ".", color=figures.PALETTE[5], ms=3, alpha=0.5)
        bins = np.array_split(np.argsort(x.to_numpy(), kind="stable"), BINS)
        centers = [(x.iloc[rows].mean(), y.iloc[rows].mean()) for rows in bins if len(rows)]
        ax.plot(*zip(*centers, strict=True), "o-", color=figures.PALETTE[0], ms=7)
        known = spearman(images[name].to_numpy(), images["units"].to_numpy())
        ax.set(xlabel=f"{MEASURES[name]} (rank, %)", title=f"correlation {known:+.2f}".replace("-", "−"))
    axes[0].set_ylabel("functional path length (rank, %)")
