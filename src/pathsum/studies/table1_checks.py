"""The claims of Table 1 as checks that can fail, pure functions of what the runs recorded."""

from __future__ import annotations

import math

from pathsum.studies.study import Check, Choice, Evidence, Verdict
from pathsum.studies.table1_results import Cells, cells, depths, number

DEEP = 100  # from this depth on λ = 1 without norm should not train
CONFOUND = (
    "The comparison of 1/√n with 1/n is confounded with the learning rate: SGD's first update of a branch moves the "
    "output by λ²·lr, so 1/n wants rates n times as large, and the grid ends at the same rate for both."
)


def checks(evidence: Evidence, margin: float) -> list[Check]:
    """The paper's claims, one check for each depth. `margin` is in points of accuracy."""
    found = cells(evidence)
    deep = [depth for depth in depths(evidence) if depth >= DEEP]
    return [
        *(untrainable(evidence, depth) for depth in deep or [DEEP]),
        *(at_least(found, depth) for depth in depths(evidence)),
        *(within(found, depth, margin) for depth in depths(evidence)),
    ]


def untrainable(evidence: Evidence, depth: int) -> Check:
    """Claim 1: without norm, λ = 1 does not train at any learning rate."""
    table = evidence.table
    runs = table[(table["norm"] == "none") & (table["scale"] == "1") & (table["depth"] == depth)]
    claim, where = "λ = 1 without norm is untrainable at every learning rate", f"n = {depth}"
    if not len(runs):
        return Check(claim, f"n ≥ {DEEP}", "no such depth was asked for", "not enough data")
    done = runs[runs["status"] == "done"]
    trained = done[done["best_test"] >= evidence.chance]
    counts = {name: int((runs["status"] == name).sum()) for name in ("diverged", "frozen")}
    counts |= {"at chance": len(done) - len(trained), "trained": len(trained)}
    left = len(runs) - sum(counts.values())
    counts |= {"to come": left} if left else {}
    numbers = f"{len(runs)} runs: " + ", ".join(f"{count} {name}" for name, count in counts.items())
    if len(trained):
        best = trained.sort_values("best_test").iloc[-1]
        numbers += f"; the best {100 * best['best_test']:.1f} % at lr {best['lr']:.3g}"
        numbers += f", where chance ends at {100 * evidence.chance:.1f} %"
    verdict: Verdict = "fail" if len(trained) else "not enough data" if left else "pass"
    return Check(claim, where, numbers, verdict)


def at_least(found: Cells, depth: int) -> Check:
    """Claim 2: λ = 1/√n does at least as well as 1/n."""
    pair = Pair(found, ("none", "1/sqrt(n)"), ("none", "1/n"), depth)
    text = pair.numbers
    if pair.other["test"].is_largest and pair.decided is None:
        text += "; the best rate of 1/n is the largest one tried, so a larger one may do better"
    return Check("λ = 1/√n is at least as good as 1/n", f"n = {depth}", text, pair.verdict(0.0))


def within(found: Cells, depth: int, margin: float) -> Check:
    """Claim 3: λ = 1/√n comes within `margin` points of batch norm."""
    pair = Pair(found, ("none", "1/sqrt(n)"), ("batch", "1"), depth)
    claim = f"λ = 1/√n comes within {margin:g} points of batch norm"
    return Check(claim, f"n = {depth}", pair.numbers, pair.verdict(margin))


class Pair:
    """One setting against another at one depth; decided by the best rates by test, as in the paper."""

    def __init__(self, found: Cells, one: tuple[str, str], other: tuple[str, str], depth: int) -> None:
        choices = list(dict.fromkeys(key[2] for key in found))
        self.one = {choice: found[*one, choice, depth] for choice in choices}
        self.other = {choice: found[*other, choice, depth] for choice in choices}

    @property
    def decided(self) -> tuple[Verdict, str] | None:
        """The verdict and its reason where no difference can be taken."""
        one, other = self.one["test"], self.other["test"]
        left = one.all_open + other.all_open
        if left:
            return "not enough data", f"{left} runs are to come"
        if not one.trains:
            return ("fail", f"{one.name} does not train") if other.trains else ("not enough data", "neither trains")
        if not other.trains:
            return "pass", f"{other.name} does not train"
        if math.isnan(one.error + other.error):
            return "not enough data", "a standard error needs two runs or more of each"
        return None

    def verdict(self, margin: float) -> Verdict:
        """Whether the one loses at most `margin` points; less than two standard errors beyond it is no evidence."""
        if self.decided:
            return self.decided[0]
        mean, error = self.difference("test")
        if mean >= -margin:
            return "pass"
        return "not enough data" if mean + 2 * error > -margin else "fail"

    def difference(self, choice: Choice) -> tuple[float, float]:
        """The difference of the means and its standard error, the runs taken as independent."""
        one, other = self.one[choice], self.other[choice]
        return one.mean - other.mean, math.hypot(one.error, other.error)

    @property
    def numbers(self) -> str:
        """Both means and their difference, by each way of choosing."""
        if self.decided:
            return self.decided[1]
        found = {choice: self.compare(choice) for choice in self.one}
        if len(found) > 1 and len(set(found.values())) == 1:
            return f"{found['test']}, by test and by validation"
        return "; ".join(f"{text}, by {choice}" for choice, text in found.items())

    def compare(self, choice: Choice) -> str:
        """ "88.0 ± 0.1 against 87.9 ± 0.1: +0.1 ± 0.1"."""
        one, other = self.one[choice], self.other[choice]
        mean, error = self.difference(choice)
        difference = f"{mean:+.1f} ± {error:.1f}".replace("-", "−")
        return f"{number(one.mean, one.error)} against {number(other.mean, other.error)}: {difference}"
