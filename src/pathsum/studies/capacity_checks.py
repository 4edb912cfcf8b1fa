"""The claims of Section 4.2 as checks that can fail, pure functions of what the runs recorded.

A claim is "not testable" where runs are to come, where seeds are too few, and where the training was too short for what
the claim is about: the paper's reversal of the order of complexities, for one, comes when networks fit their data.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pathsum.scaling import parse_rule
from pathsum.studies.capacity import FAILED, Capacity
from pathsum.studies.capacity_results import Estimate, Point, curves, estimate, means, points
from pathsum.studies.intervals import student
from pathsum.studies.ranks import spearman
from pathsum.studies.study import Check, Choice, Evidence, Verdict

if TYPE_CHECKING:
    import pandas as pd

UNDERFIT = 1.0  # nats: the paper's λ = 0 stays above
FITTED = 0.1  # nats: below this a network counts as interpolating; the paper says "fully fit the data"
SETTLED = 0.05  # a loss that falls by less than this share of itself over the last quarter has reached its plateau


def checks(study: Capacity, evidence: Evidence) -> dict[str, list[Check]]:
    """The claims that each figure shows."""
    found, table = points(study, evidence), curves(study, evidence)
    stable = up_to_divergence(found)
    where = f"n = {study.depth}"
    one = [
        underfits(found, table, where),
        fits_better(stable, found, where),
        interpolates(stable, table, where),
        fails_above(study, found, where),
        reverses(stable, found, table, where),
    ]
    two = [
        check
        for choice in evidence.choices
        for check in (
            rises(stable, found, choice, f"{where}, by {choice}"),
            rises_and_falls(stable, found, choice, f"{where}, by {choice}"),
        )
    ]
    return {"figure1": one, "figure2": two}


def up_to_divergence(found: Sequence[Point]) -> list[Point]:
    """The λ below the first at which a run failed, ascending."""
    return list(itertools.takewhile(lambda each: not each.failed, found))


def to_come(found: Sequence[Point]) -> str:
    """Why nothing can be said yet; empty where something can."""
    left = sum(each.open for each in found)
    return f"{left} of {sum(each.n for each in found)} runs are to come" if left else ""


def underfits(found: Sequence[Point], table: pd.DataFrame, where: str) -> Check:
    """Claim 1: the base model's training loss stays above 1."""
    claim = "λ = 0 underfits: its training loss reaches a plateau above 1"
    base = next((each for each in found if each.lam == 0), None)
    if base is None:
        return Check(claim, where, "λ = 0 was not asked for", "not enough data")
    if not base.done:
        return Check(claim, where, to_come([base]) or f"no run reached its end: {base.state}", "not enough data")
    fall = last_fall(table[(table["lam"] == 0) & (table["status"] == "done")])
    numbers = f"training loss {base.loss.text('.3f')} at the end, {spoken(fall)} over the last quarter"
    verdict: Verdict = "fail"
    if base.loss.mean > UNDERFIT:
        verdict = "pass" if fall < SETTLED else "not enough data"
        numbers += "" if verdict == "pass" else ", so it is not at its plateau"
    return Check(claim, where, numbers, verdict)


def last_fall(table: pd.DataFrame) -> float:
    """By what share of itself the mean training loss falls over the last quarter of the steps; nan without rows.

    Compared are the first and the last third of that quarter, since single rows are noisy.
    """
    line = means(table, "train_loss")
    part = line[line["step"] > 0.75 * line["step"].max()]["mean"].tolist() if len(line) else []
    third = max(1, len(part) // 3)
    if len(part) < 2:
        return math.nan
    before, after = sum(part[:third]) / third, sum(part[-third:]) / third
    return (before - after) / before


def spoken(fall: float) -> str:
    """ "falling by 3 %"."""
    if math.isnan(fall):
        return "with too few evaluations to tell a trend"
    return f"{'falling' if fall >= 0 else 'rising'} by {100 * abs(fall):.0f} %"


def fits_better(stable: Sequence[Point], found: Sequence[Point], where: str) -> Check:
    """Claim 2: the larger λ, the lower the training loss, up to divergence."""
    claim = "the training loss falls as λ rises, up to divergence"
    if reason := too_few(stable, found):
        return Check(claim, where, reason, "not enough data")
    return trend(claim, where, stable, [each.loss for each in stable], "training loss", ".3f", sign=-1)


def interpolates(stable: Sequence[Point], table: pd.DataFrame, where: str) -> Check:
    """Claim 3: large λ fit the training data fully."""
    claim = f"the largest λ before divergence fits its training data (training loss below {FITTED:g})"
    if not stable or not stable[-1].done or stable[-1].open:
        return Check(claim, where, to_come(stable) or "no λ trains at every seed", "not enough data")
    last = stable[-1]
    fall = last_fall(table[(table["scale"] == last.scale) & (table["status"] == "done")])
    numbers = f"{last.name}: training loss {last.loss.text('.3f')}, {spoken(fall)} over the last quarter"
    if last.loss.mean < FITTED:
        return Check(claim, where, numbers, "pass")
    return Check(claim, where, numbers, "fail" if abs(fall) < SETTLED else "not enough data")


def fails_above(study: Capacity, found: Sequence[Point], where: str) -> Check:
    """Claim 4: every λ above 1/√n fails, and none up to it does."""
    claim = "every λ above 1/√n fails to train, and none up to it"
    limit = parse_rule("1/sqrt(n)").values(study.depth)[0]
    high = [each for each in found if each.lam > limit]
    low = [each for each in found if each.lam <= limit]
    if not high or not low:
        return Check(claim, where, f"needs λ on both sides of 1/√n, such as {', '.join(FAILED)}", "not enough data")
    trained = [each for each in high if each.done]
    broken = [each for each in low if each.failed]
    named = [f"{each.name}: {each.state}" for each in (*broken, *high)]
    numbers = f"{sum(each.done for each in low)} of {sum(each.n for each in low)} runs up to 1/√n reach their end; "
    verdict: Verdict = "fail" if trained or broken else "not enough data" if to_come(found) else "pass"
    return Check(claim, where, numbers + "; ".join(named), verdict)


def rises(stable: Sequence[Point], found: Sequence[Point], choice: Choice, where: str) -> Check:
    """Claim 5: the maximum test accuracy rises with λ, up to divergence."""
    claim = "the maximum test accuracy rises with λ, up to divergence"
    if reason := too_few(stable, found):
        return Check(claim, where, reason, "not enough data")
    values = [each.accuracy[choice] for each in stable]
    return trend(claim, where, stable, values, "test accuracy (%)", ".1f", sign=1)


def too_few(stable: Sequence[Point], found: Sequence[Point]) -> str:
    """Why a trend over λ cannot be judged; empty where it can."""
    if reason := to_come(found):
        return reason
    if len(stable) < 3:
        return f"{len(stable)} values of λ train at every seed, and a trend needs three"
    return "a standard error needs two seeds or more" if any(math.isnan(each.loss.error) for each in stable) else ""


def trend(
    claim: str, where: str, stable: Sequence[Point], values: Sequence[Estimate], what: str, form: str, *, sign: int
) -> Check:
    """Whether values change in one direction: from end to end, and nowhere back, at 95 % confidence."""
    numbers = f"{what} " + ", ".join(f"{v.text(form)} at {e.name}" for e, v in zip(stable, values, strict=True))
    whole, error = difference(values[0], values[-1])
    back = [
        (a, b)
        for (a, x), (b, y) in itertools.pairwise(zip(stable, values, strict=True))
        if sign * difference(x, y)[0] < -difference(x, y)[1]
    ]
    for a, b in back:
        numbers += f"; it goes back from {a.name} to {b.name}"
    verdict: Verdict = "fail" if back else "pass" if sign * whole > error else "not enough data"
    if sign * whole < -error:
        verdict = "fail"
    if verdict == "not enough data":
        numbers += f"; from end to end {signed(whole, error, form)} at 95 % confidence, which is noise"
    return Check(claim, where, numbers, verdict)


def difference(a: Estimate, b: Estimate) -> tuple[float, float]:
    """b − a, and half the width of its 95 % confidence interval; seeds taken as independent."""
    freedom = a.n + b.n - 2
    return b.mean - a.mean, student(freedom) * math.hypot(a.error, b.error) if freedom else math.inf


def reverses(stable: Sequence[Point], found: Sequence[Point], table: pd.DataFrame, where: str) -> Check:
    """Claim 6: early, geometric complexity rises with λ; late, it falls with λ."""
    claim = "the order of complexities reverses: it rises with λ early in training, and falls with λ at its end"
    branches = [each for each in stable if each.lam > 0]
    if reason := too_few(branches, found):
        return Check(claim, where, reason, "not enough data")
    ranks = rank_correlations(table[table["scale"].isin([each.scale for each in branches])])
    if len(ranks) < 3:
        return Check(claim, where, "too few measurements of geometric complexity", "not enough data")
    steps = list(ranks)
    early = max(steps[1 : max(2, len(steps) // 3)], key=lambda step: ranks[step].mean)
    first, last = ranks[early], ranks[steps[-1]]
    turn = next((step for step in steps if step > early and ranks[step].mean < 0), None)
    numbers = (
        f"rank correlation of complexity with the {len(branches)} values λ > 0: "
        f"{signed(first.mean, first.error)} at step {early:,}, {signed(last.mean, last.error)} at step {steps[-1]:,}"
        + (f"; first below zero at step {turn:,}" if turn is not None else "; never below zero after that")
    )
    enough = min(first.n, last.n) > 1
    rose = enough and first.mean > student(first.n - 1) * first.error
    fell = enough and last.mean < -student(last.n - 1) * last.error
    if rose and fell:
        return Check(claim, where, numbers, "pass")
    loss = min(each.loss.mean for each in branches)
    if loss > FITTED:
        numbers += f"; no λ has fitted its data, the lowest training loss is {loss:.2f}"
        return Check(claim, where, numbers, "not enough data")
    return Check(claim, where, numbers, "fail")


def signed(mean: float, error: float, form: str = ".2f") -> str:
    """ "+0.93 ± 0.02"."""
    return f"{mean:+{form}} ± {error:{form}}".replace("-", "−")


def rank_correlations(table: pd.DataFrame) -> dict[int, Estimate]:
    """Spearman's ρ of complexity with λ at each step that all runs were measured at; mean over seeds and its error."""
    done = table[table["status"] == "done"].dropna(subset=["complexity"])
    num = done[["scale", "seed"]].drop_duplicates().shape[0]
    found = {}
    for _, part in done.groupby("step"):
        if len(part) < num:
            continue
        each = [spearman(seed["lam"].tolist(), seed["complexity"].tolist()) for _, seed in part.groupby("seed")]
        found[int(part["step"].iloc[0])] = estimate(each)
    return found


def rises_and_falls(stable: Sequence[Point], found: Sequence[Point], choice: Choice, where: str) -> Check:
    """Claim 7: complexity at the maximum accuracy rises with λ at first, then falls."""
    claim = "complexity at the maximum test accuracy rises with λ, then falls"
    if reason := too_few(stable, found):
        return Check(claim, where, reason, "not enough data")
    values = [each.complexity[choice] for each in stable]
    if any(math.isnan(value.mean) for value in values):
        return Check(claim, where, "complexity was not measured at every best evaluation", "not enough data")
    numbers = "complexity " + ", ".join(f"{v.text('.3g')} at {e.name}" for e, v in zip(stable, values, strict=True))
    peak = max(range(len(values)), key=lambda k: values[k].mean)
    above = [difference(value, values[peak]) for value in values]
    rose, fell = (mean > error for mean, error in (above[0], above[-1]))
    numbers += f"; the peak is at {stable[peak].name}"
    if rose and fell:
        return Check(claim, where, numbers, "pass")
    loss = min(each.loss.mean for each in stable)
    if fell and peak == 0:
        return Check(claim, where, numbers + ", the smallest λ", "fail")
    if rose and peak == len(values) - 1:
        numbers += ", the largest λ that trains"
        if loss <= FITTED:
            return Check(claim, where, numbers, "fail")
        numbers += f"; no λ has fitted its data, the lowest training loss is {loss:.2f}"
    else:
        sides = [side for side, clear in (("rise", rose), ("fall", fell)) if not clear]
        numbers += f"; the {' and the '.join(sides)} from there {'is' if len(sides) == 1 else 'are'} within noise"
    return Check(claim, where, numbers, "not enough data")
