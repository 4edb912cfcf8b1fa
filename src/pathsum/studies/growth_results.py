"""What came out of the growth study: curves against FLOPs, a line for each arm, checks that can fail."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pathsum.runs import Run
from pathsum.studies.growth import ARMS, GrowthStudy, Plan
from pathsum.studies.study import Check, Verdict

if TYPE_CHECKING:
    import pandas as pd

Runs = Mapping[tuple[str, int], Run]
SAME = 1e-4  # of the loss before and after growth; float32 outputs differ by 1e-6
WINDOW = 0.1  # share of the evaluations after growth in which the loss may not rise


def curves(study: GrowthStudy, plan: Plan, found: Runs) -> pd.DataFrame:
    """A line for each evaluation: arm, seed, FLOPs so far, loss and accuracy."""
    import pandas as pd

    columns = ["arm", "seed", "part", "step", "flops", "train_loss", "test_loss", "test_accuracy"]
    return pd.DataFrame(list(lines(study, plan, found)), columns=columns)


def lines(study: GrowthStudy, plan: Plan, found: Runs) -> Iterator[dict[str, Any]]:
    parts = {
        "shallow": ("shallow", plan.shallow_step, 0),
        "deep": ("deep", plan.deep_step, 0),
        "before": ("grown", plan.shallow_step, 0),
        "after": ("grown", plan.deep_step, plan.growth_at),
    }
    for seed in study.seeds:
        for part, (arm, cost, begin) in parts.items():
            for row in found[part, seed].rows if (part, seed) in found else ():
                scores = {name: row[name] for name in ("train_loss", "test_loss", "test_accuracy")}
                flops = begin + row["step"] * cost
                yield {"arm": arm, "seed": seed, "part": part, "step": row["step"], "flops": flops, **scores}


def arms(study: GrowthStudy, table: pd.DataFrame) -> pd.DataFrame:
    """A line for each arm: blocks, FLOPs, final loss and accuracy, mean and standard error over the seeds."""
    import pandas as pd

    found = []
    for arm in ARMS:
        last = table[table["arm"] == arm].groupby("seed").last()
        blocks = {"shallow": study.shallow, "deep": study.deep}.get(arm, f"{study.shallow} → {study.deep}")
        found.append(
            {
                "arm": arm,
                "blocks": str(blocks),
                "runs": len(last),
                "TFLOP": last["flops"].mean() / 1e12,
                "final test loss": last["test_loss"].mean(),
                "final accuracy (%)": (100 * last["test_accuracy"].astype(float)).mean(),
                "standard error": (100 * last["test_accuracy"].astype(float)).sem(),
            }
        )
    return pd.DataFrame(found)


def checks(study: GrowthStudy, plan: Plan, found: Runs) -> list[Check]:
    """The claims, each on all seeds."""
    return [preserved(study, found), no_spike(study, found), as_good(study, found)]


def whole(study: GrowthStudy, found: Runs, *parts: str) -> bool:
    """Whether these parts of all seeds have ended."""
    return all((part, seed) in found and found[part, seed].summary for part in parts for seed in study.seeds)


def preserved(study: GrowthStudy, found: Runs) -> Check:
    """Appendix C: the embedded net has the same loss."""
    claim, where = "growing leaves the function as it is", f"{study.shallow} → {study.deep} blocks"
    changes = [abs(rows[1] / rows[0] - 1) for rows in at_growth(study, found) if len(rows) > 1]
    if len(changes) < len(study.seeds):
        return Check(claim, where, "runs are to come", "not enough data")
    verdict: Verdict = "pass" if max(changes) <= SAME else "fail"
    numbers = f"the test loss changes by {max(changes):.1e} at most (relative; up to {SAME:g})"
    return Check(claim, where, numbers, verdict)


def no_spike(study: GrowthStudy, found: Runs) -> Check:
    """The loss goes on as it was: no evaluation soon after growth is much above the one at it."""
    claim = f"no spike of the loss above {study.spike:g} % after growth"
    where = f"{study.shallow} → {study.deep} blocks"
    rises = []
    for rows in at_growth(study, found):
        count = max(2, math.ceil(WINDOW * study.evaluations))
        if len(rows) >= 2 + count:
            rises.append(100 * (max(rows[2 : 2 + count]) / rows[1] - 1))
    if len(rises) < len(study.seeds):
        return Check(claim, where, "runs are to come, or ended early", "not enough data")
    verdict: Verdict = "pass" if max(rises) <= study.spike else "fail"
    said = ", ".join(f"{rise:+.1f}" for rise in rises).replace("-", "−")
    numbers = f"highest test loss of the evaluations next after growth, percent by seed: {said}"
    return Check(claim, where, numbers, verdict)


def at_growth(study: GrowthStudy, found: Runs) -> Iterator[list[float]]:
    """Of each seed: the last test loss before growth, and those from growth on."""
    for seed in study.seeds:
        before, after = found.get(("before", seed)), found.get(("after", seed))
        if before is not None and after is not None and before.summary:
            losses = [row["test_loss"] for row in (before.rows[-1], *after.rows)]
            yield [loss for loss in losses if loss is not None]


def as_good(study: GrowthStudy, found: Runs) -> Check:
    """The grown tower ends within the margin of the deep one; within two standard errors of it is no evidence."""
    claim = f"at equal FLOPs the grown tower ends within {study.margin:g} points of the deep one"
    where = f"{study.deep} blocks"
    if not whole(study, found, "deep", "after"):
        return Check(claim, where, "runs are to come", "not enough data")
    grown, deep = ([final(found[part, seed]) for seed in study.seeds] for part in ("after", "deep"))
    differences = [a - b for a, b in zip(grown, deep, strict=True)]
    mean, error = moments(differences)
    numbers = f"{show(grown)} against {show(deep)}: {mean:+.1f}".replace("-", "−")
    if math.isnan(error):
        return Check(claim, where, f"{numbers}; a standard error needs two seeds or more", "not enough data")
    missed: Verdict = "not enough data" if mean + 2 * error > -study.margin else "fail"
    verdict: Verdict = "pass" if mean >= -study.margin else missed
    return Check(claim, where, f"{numbers} ± {error:.1f} points, paired by seed", verdict)


def final(run: Run) -> float:
    """The last accuracy in percent; 0 for a run that diverged."""
    last = run.rows[-1]["test_accuracy"] if run.status == "done" else None
    return 0.0 if last is None else 100 * float(last)


def moments(values: list[float]) -> tuple[float, float]:
    """Mean and its standard error."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))


def show(values: list[float]) -> str:
    mean, error = moments(values)
    return f"{mean:.1f}" if math.isnan(error) else f"{mean:.1f} ± {error:.1f}"
