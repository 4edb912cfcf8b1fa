"""λ at another depth: rules are applied anew, learned values and lists keep theirs and get some for new branches."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from math import isfinite

import torch
from torch import nn

from pathsum.errors import LambdaError
from pathsum.nets.tower import SumOfPaths
from pathsum.scaling import Rule, parse_rule


@dataclass(frozen=True)
class Source:
    """Where a branch of the new net comes from: the old branch it is, or, where it is new, the one it is made like."""

    index: int
    new: bool = False


@dataclass(frozen=True)
class Renewed:
    """A parameter of λ that was put together anew: for each entry the old one it holds, or None."""

    old: nn.Parameter
    new: nn.Parameter
    entries: tuple[int | None, ...]


def rule_at(
    rule: Rule,
    now: Sequence[float],
    sources: Sequence[Source],
    lam: float | None,
    labels: Sequence[Hashable] | None = None,
) -> tuple[Rule, list[float]]:
    """The rule for the new branches, and the values in force: `now` are the old ones.

    A rule in n gives its values at the new n. A list, and learned λ, keep the old entries; a new branch starts at
    `lam`, by default the list's mean, or a learned rule's own start. Where that start is 0 it is the mean size of the
    learned values, or 1/n: with λ = 0 before a zero map neither would get a gradient.
    """
    if lam is not None and not isfinite(lam):
        raise LambdaError(f"lam={lam!r}: give a finite number, the λ that new branches start at")
    n = len(sources)
    mean = sum(map(abs, now)) / max(len(now), 1)
    if rule.entries is not None:
        begin = mean if lam is None else float(lam)
        entries = [begin if s.new else now[s.index] for s in sources]
        return replace(rule, entries=tuple(entries), per="net") if n else replace(rule, entries=None), entries
    values = list(rule.values(n, labels))
    if not rule.learned:
        if lam is not None and any(s.new and lam != v for s, v in zip(sources, values, strict=True)):
            raise LambdaError(
                f"lam={lam:g}, but λ follows the rule {rule.text}: leave lam out, or make λ a list or learned first, "
                "net.rescale('learned:…')"
            )
        return rule, values
    begins = [float(lam) if lam is not None else (v or mean or 1 / n) for v in values]
    return rule, [b if s.new else now[s.index] for s, b in zip(sources, begins, strict=True)]


def settle(tower: SumOfPaths, sources: Sequence[Source], lam: float | None) -> Renewed | None:
    """Put λ on a tower whose blocks were rearranged, and its depth into its configuration."""
    old = tower.lam
    rule, values = rule_at(parse_rule(tower.config["scale"]), tower.scales, sources, lam)
    tower.config["depth"] = len(sources)
    tower.rescale(rule)
    if old is None or tower.lam is None:
        return None
    return renew(old, tower.lam, values, sources)


@torch.no_grad()
def renew(old: nn.Parameter, new: nn.Parameter, values: Sequence[float], sources: Sequence[Source]) -> Renewed:
    """Old entries bitwise, new ones as given."""
    new.requires_grad_(old.requires_grad)
    for i, (source, value) in enumerate(zip(sources, values, strict=True)):
        new[i] = value if source.new else old[source.index]
    return Renewed(old, new, tuple(None if s.new else s.index for s in sources))
