"""One run of a model under λ and α: its calls are matched with the anatomy, joins and units are rewritten."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .coefficients import Space, add_coeffs, add_shifted
from .errors import ControlFlowError, MissingRuleError, ModeError, ProbeError
from .functions import ignored
from .rules.products import scalar_product
from .series import RULES, CannotCarry, Series, apply, join_carrying, name_of
from .sites import Anatomy, Branch, Step, Unit


class Run(TorchFunctionMode):
    """One run of the model: the calls are matched with the anatomy, joins and units are rewritten."""

    def __init__(
        self,
        anatomy: Anatomy,
        lam: Series | list[float | Tensor] | None,
        alpha: list[float | Tensor] | None,
        carried: Sequence[float] = (),
        *,
        probe: bool = False,
    ) -> None:
        super().__init__()
        self.carried = carried
        self.anatomy = anatomy
        self.steps = anatomy.steps
        self.joins = {b.step: b for b in anatomy.branches}
        self.units = {u.step: u for u in anatomy.units} if alpha is not None else {}
        self.scalings = anatomy.scalings
        self.lam = lam
        self.alpha = alpha
        self.probe = probe
        self.space: Space | None = lam.space if isinstance(lam, Series) else None
        self.weights: list[float] | None = None  # of t, where λ is nothing but a multiple of it
        if isinstance(lam, Series) and not lam.c.requires_grad and len(lam.c) <= 2 and not bool(lam.c[0].any()):
            self.weights = lam.c[-1].reshape(-1).tolist()
        self.used: list[float | Tensor | None] = [None] * len(anatomy.branches)
        self.at = 0
        self.shadows: dict[int, tuple[Tensor, Series]] = {}

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if self.shadows:
            args, kwargs = self.reveal(args), {k: self.reveal(v) for k, v in kwargs.items()}
        if ignored(func):
            return func(*args, **kwargs)
        at = self.at
        if at >= len(self.steps) or (self.steps[at].func is not func and self.steps[at].func != func):
            self.diverted(func)
        self.at = at + 1
        if at in self.joins:
            return self.join(self.joins[at], func, args, kwargs)
        if at in self.scalings:
            return self.scaling(self.scalings[at], func, args, kwargs)
        if at in self.units:
            return self.unit(self.units[at], func, args, kwargs)
        if self.space is None:
            return func(*args, **kwargs)
        step = self.steps[at]
        if step.depth and not self.space.gated:
            args = self.shorten(args, step.depth)
        if step.last and isinstance(args[0], Series):
            args[0].free = True
        try:  # straight to the rule where torch would lead there anyway
            rule = RULES.get(func) if args and isinstance(args[0], Series) else None
            out = func(*args, **kwargs) if rule is None else apply(rule, func, args, kwargs)
        except (MissingRuleError, ModeError) as error:
            raise type(error)(f"in {self.place(step)}: {error}") from None
        if isinstance(args[0] if args else None, Tensor) and not isinstance(args[0], Series):
            self.cast_shadow(func, args[0], out)
            if func is torch.Tensor.__setitem__:
                return None
        return out

    def join(self, site: Branch, func: Any, args: tuple, kwargs: dict) -> Any:
        """skip + λ·branch in place of the addition."""
        skip, branch = args[site.skip], args[site.branch]
        if self.used[site.index] is None:
            self.used[site.index] = kwargs.get("alpha", 1) if site.own == "alpha" else 1.0
        if self.lam is None:
            return func(*args, **kwargs)
        out: Tensor
        if isinstance(self.lam, Series):
            out = self.series_join(site, skip, branch, self.lam)
        else:
            self.used[site.index] = self.lam[site.index]
            out = self.plain_join(site, skip, branch, self.lam[site.index])
        changes = func.__name__.endswith("_") and not func.__name__.endswith("__")
        if self.probe:
            expected = skip if site.signs[0] == 1 else -skip
            if not same(out, expected):
                raise ProbeError(f"at λ = 0 the join {site.name} does not leave its shortcut")
        if not changes:
            return out
        target = args[0]
        if not isinstance(out, Series):
            return target.copy_(out)
        if isinstance(target, Series):
            return target.assign(out)
        self.shadows[id(target)] = (target, out)
        return out

    def plain_join(self, site: Branch, skip: Tensor, branch: Tensor, lam: float | Tensor) -> Tensor:
        sign_skip, sign = site.signs
        skip = skip if sign_skip == 1 else -skip
        if isinstance(lam, Tensor):
            return skip + (sign * lam) * branch
        if lam == 0:
            return skip.clone()
        return torch.add(skip, branch, alpha=sign * lam)

    def series_join(self, site: Branch, skip: Tensor, branch: Tensor, lam: Series) -> Series:
        for operand in (skip, branch):
            if isinstance(operand, Series):
                operand.check_fresh()
        sign_skip, sign = site.signs
        space = lam.space
        weight, last = 1.0, False
        if self.weights is not None and space.order:
            weight = sign * self.weights[site.index if len(self.weights) > 1 else 0]
            last = self.steps[site.step].last and isinstance(skip, Series)
            if last:
                skip._epoch[0] += 1  # type: ignore[attr-defined]
            if space.carry:
                if sign_skip == -1:
                    raise CannotCarry
                lam_here = sign * self.carried[site.index]
                return join_carrying(skip, branch, weight, lam_here, space, overwrite=last)
        c_skip = skip.c if isinstance(skip, Series) else skip.unsqueeze(0)
        c_branch = branch.c if isinstance(branch, Series) else branch.unsqueeze(0)
        c_skip = c_skip if sign_skip == 1 else -c_skip
        if self.weights is not None:
            if space.order == 0:
                return Series(c_skip.clone(), space)
            return Series(add_shifted(c_skip, c_branch, weight, space, overwrite=last), space)
        c = lam.c if lam.c.ndim == 1 else lam.c[:, site.index]
        scaled = scalar_product(Series(c, space), Series(c_branch, space))
        return Series(add_coeffs(c_skip, scaled.c, sign), space)

    def scaling(self, index: int, func: Any, args: tuple, kwargs: dict) -> Any:
        """The model's own multiplication of a branch by a number: λ takes its place."""
        x, number = (args[0], args[1]) if self.is_data(args[0], args[1]) else (args[1], args[0])
        self.used[index] = float(number) if isinstance(number, int | float) else number.reshape(())
        return func(*args, **kwargs) if self.lam is None else x

    def is_data(self, a: Any, b: Any) -> bool:
        """Whether `a`, of the two factors, is the branch rather than its scale."""
        if not isinstance(a, Tensor) or not isinstance(b, Tensor):
            return isinstance(a, Tensor)
        return a.numel() > 1 or b.numel() == 1

    def unit(self, site: Unit, func: Any, args: tuple, kwargs: dict) -> Any:
        """αa + (1 − α)φ(a) in place of φ(a)."""
        assert self.alpha is not None
        alpha = self.alpha[site.index]
        if not isinstance(alpha, Tensor) and alpha == 0:
            return func(*args, **kwargs)
        a = args[0] if args else kwargs["input"]
        before = Series(a.c, a.space) if isinstance(a, Series) else a.clone()
        if isinstance(alpha, Tensor) and alpha.ndim == 1 and alpha.numel() > 1:
            alpha = alpha.view(-1, *(1,) * (a.ndim - 2)) if a.ndim in (4, 5) else alpha
        value = func(*args, **kwargs)
        out = alpha * before + (1 - alpha) * value
        if value is a:  # in place
            return a.assign(out) if isinstance(a, Series) else a.copy_(out)
        return out

    def shorten(self, args: tuple, depth: int) -> tuple:
        """Drop orders that the branches still ahead will shift out of the series."""
        assert self.space is not None
        keep = max(self.space.slots - depth, 1)
        for a in args:
            if type(a) is Series and a.m > keep:
                break
        else:
            return args
        if self.steps[self.at - 1].func.__name__.endswith("_"):
            return args
        return tuple(a.cut(keep) if type(a) is Series and a.m > keep else a for a in args)

    def cast_shadow(self, func: Any, target: Tensor, out: Any) -> None:
        """A plain tensor that took a series in place is that series from now on."""
        name = getattr(func, "__name__", "")
        if isinstance(out, Series) and (name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))):
            self.shadows[id(target)] = (target, out)

    def reveal(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            found = self.shadows.get(id(value))
            return found[1] if found is not None and found[0] is value else value
        if isinstance(value, list | tuple) and any(isinstance(v, Tensor) for v in value):
            return type(value)(self.reveal(v) for v in value)
        return value

    def place(self, step: Step) -> str:
        """Where a call is: its module, and the branch it belongs to."""
        branch = next((b for b in self.anatomy.branches if b.step >= self.at), None)
        inside = f" (branch {branch.name})" if branch is not None else ""
        return f"module '{step.module}'{inside}" if step.module else f"the model's forward{inside}"

    def diverted(self, func: Any) -> None:
        at = self.at
        expected = f"{name_of(self.steps[at].func)} in '{self.steps[at].module}'" if at < len(self.steps) else "the end"
        raise ControlFlowError(
            f"call {at + 1} of the model is {name_of(func)}; when the knobs were made it was {expected}: "
            "the model's control flow depends on its input or state; make the knobs again with inputs like these"
        )

    def finish(self) -> None:
        if self.at != len(self.steps):
            raise ControlFlowError(
                f"the model made {self.at} calls; when the knobs were made it made {len(self.steps)}: "
                "its control flow depends on its input or state; make the knobs again with inputs like these"
            )


def same(a: Tensor, b: Tensor) -> bool:
    """Bitwise equal, NaN included."""
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
