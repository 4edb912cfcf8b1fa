"""A knobbed net under torch.compile: the joins are found among the additions that the compiler sees, in their order.

The compiler calls functions by other names than Python does, so that calls cannot be matched one by one as in a `Run`.
Only those that may be sites are counted; where the count is off, torch.compile leaves the net to Python.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from .errors import ControlFlowError
from .functions import is_counter
from .joining import IN_PLACE, bend, join
from .sites import Anatomy

SPELLINGS = ("{}", "{}_", "__{}__", "__i{}__", "i{}", "__r{}__", "r{}")


@dataclass(frozen=True)
class Plan:
    """The sites of a run among the calls with the names of sites, by number."""

    names: dict[str, str]  # spelling -> name
    joins: dict[int, tuple[int, int, int, tuple[int, int]]]  # call -> index, skip, branch, signs
    scalings: dict[int, int]
    units: dict[int, int]
    total: int


def plan_of(anatomy: Anatomy, *, units: bool) -> Plan:
    """Where the joins are, and the `units` if α is to be put on them."""
    bent = {u.step: u.index for u in anatomy.units} if units else {}
    joined = {b.step: (b.index, b.skip, b.branch, b.signs) for b in anatomy.branches}
    names: dict[str, str] = {}
    for step in (*joined, *anatomy.scalings, *bent):
        name = _plain(anatomy.steps[step].func)
        names |= {spelling.format(name): name for spelling in SPELLINGS}
    watched = [i for i, step in enumerate(anatomy.steps) if _plain(step.func) in names]
    number = {step: k for k, step in enumerate(watched)}
    return Plan(
        names,
        {number[s]: site for s, site in joined.items()},
        {number[s]: index for s, index in anatomy.scalings.items()},
        {number[s]: index for s, index in bent.items()},
        len(watched),
    )


def _plain(func: Any) -> str:
    name = getattr(func, "__name__", "")
    inner = name.strip("_")
    return inner[1:] if name.startswith(("__i", "__r")) else inner


class Traced(TorchFunctionMode):
    """One run of the model as torch.compile traces it."""

    def __init__(
        self, plan: Plan, lam: Sequence[float | Tensor] | None, alpha: Sequence[float | Tensor] | None
    ) -> None:
        super().__init__()
        self.plan = plan
        self.lam = lam
        self.alpha = alpha
        self.seen = 0

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        name = func.__name__
        if name not in self.plan.names or (args and is_counter(args[0])):
            return func(*args, **kwargs)
        at = self.seen
        self.seen = at + 1
        if self.lam is not None and at in self.plan.joins:
            index, skip, branch, signs = self.plan.joins[at]
            return join(args, skip, branch, signs, self.lam[index], in_place=name in IN_PLACE)
        if self.lam is not None and at in self.plan.scalings:
            return args[0] if isinstance(args[0], Tensor) and args[0].numel() > 1 else args[1]
        if self.alpha is not None and at in self.plan.units:
            alpha = self.alpha[self.plan.units[at]]
            return (
                func(*args, **kwargs)
                if isinstance(alpha, int | float) and alpha == 0
                else bend(func, alpha, args, kwargs)
            )
        return func(*args, **kwargs)

    def finish(self) -> None:
        if self.seen != self.plan.total:
            raise ControlFlowError(
                f"torch.compile sees {self.seen} calls that may be joins, expected {self.plan.total}"
            )
