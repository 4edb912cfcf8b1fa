"""A budget for what stays nonlinear, and the control of ω that reaches it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import PathsumError
from .layout import Site

SLACK = 1e-9  # of rounding, when a value is compared with its target
KEPT = 64  # masks whose value is remembered
GAIN = 8.0  # of the integral control: ln ω moves by it over a ramp on which everything lags


@dataclass(frozen=True)
class Budget:
    """`value(linear)`: what is left where the slopes in the mask (N,) are 1; falls as the mask grows."""

    kind: str
    target: float
    value: Callable[[Tensor], float]

    def met(self, linear: Tensor) -> bool:
        """Whether no more than the target is left."""
        return self.value(linear) <= self.target * (1 + SLACK) + SLACK

    def enough(self, linear: Tensor, candidates: Tensor) -> int:
        """How many of the candidates (indices, in this order) to make linear: the first number that meets the target.

        All of them where even they do not. Costs log₂ of their number of evaluations.
        """

        def with_first(num: int) -> Tensor:
            mask = linear.clone()
            mask[candidates[:num]] = True
            return mask

        low, high = 0, len(candidates)
        if not high or not self.met(with_first(high)):
            return high
        while low < high:  # the first that meets it
            middle = (low + high) // 2
            low, high = (low, middle) if self.met(with_first(middle)) else (middle + 1, high)
        return low

    def prices(self, sizes: Sequence[int], device: torch.device) -> Tensor:
        """What each slope counts, (N,) float64, as the mean of its unit's; `sizes` are the units' numbers of slopes."""
        none = torch.zeros(sum(sizes), dtype=torch.bool, device=device)
        whole, found = self.value(none), []
        for number, size in enumerate(sizes):
            linear = none.clone()
            linear.split(list(sizes))[number].fill_(True)
            found.append(torch.full((size,), (whole - self.value(linear)) / size, dtype=torch.float64, device=device))
        return torch.cat(found)

    def check(self, linear: Tensor) -> None:
        """Raise `PathsumError` for a target below what is left where every slope is 1."""
        least = self.value(torch.ones_like(linear))
        if self.target < least * (1 - SLACK) - SLACK:
            raise PathsumError(
                f"target_{self.kind} is {self.target:g}, below the reachable: with every chosen unit linear "
                f"{least:.6g} are left; ask for {least:.6g} or more, or choose more units"
            )


def costs(sites: Sequence[Site], kind: str, device: torch.device) -> tuple[Tensor, float]:
    """What each slope counts while it is not 1, (N,) float64, and what the other units do; kind: units or relus."""
    parts, fixed = [], 0.0
    for site in sites:
        whole = 1.0 if kind == "units" else float(site.scalars)
        if site.slopes is None:
            fixed += whole
        else:
            parts.append(torch.full((site.num,), whole / site.num, dtype=torch.float64))
    return torch.cat(parts).to(device), fixed


def counted(sites: Sequence[Site], kind: str, device: torch.device) -> Callable[[Tensor], float]:
    """The value of a budget in units or scalars."""
    cost, fixed = costs(sites, kind, device)
    return lambda linear: fixed + float(cost.masked_fill(linear, 0.0).sum())


def remembered(value: Callable[[Tensor], float]) -> Callable[[Tensor], float]:
    """A value that is dear, kept for the last masks: step after step most are the same."""
    known: dict[bytes, float] = {}

    def of(linear: Tensor) -> float:
        key = linear.cpu().numpy().tobytes()
        if key not in known:
            if len(known) >= KEPT:
                known.clear()
            known[key] = value(linear)
        return known[key]

    return of


def first_omega(steps: int, alpha_lr: float, power: float) -> float:
    """The ω that, against no resistance, takes α from 0 to 1 in half of the steps.

    From du/dn = −(lr·ω)·p·u^(p−1): u^(2−p) = 1 − (2−p)·p·(lr·ω)·n.
    """
    return 2 / (max(steps, 2) * alpha_lr * power * (2 - power))


def controlled(omega: float, lag: float, steps: int) -> float:
    """The next ω: ln ω integrates by how much of the whole, −1 … 1, the count lags behind a straight line."""
    return omega * float(torch.exp(torch.tensor(GAIN / steps * lag, dtype=torch.float64)))
