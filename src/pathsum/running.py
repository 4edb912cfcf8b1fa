"""One run of a model under λ and α: its calls are matched with the anatomy, joins and units are rewritten."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .care import called_by_sharding, refuse_recomputing, tensors_in
from .coefficients import Space, add_coeffs, add_shifted
from .errors import ControlFlowError, MissingRuleError, ModeError, ProbeError
from .functions import counts, ignored
from .joining import IN_PLACE, bend, fitted, join
from .rules.products import scalar_product
from .series import RULES, CannotCarry, Series, apply, join_carrying, name_of
from .sites import Anatomy, Branch, Step, Unit


class Following(TorchFunctionMode):
    """Lets a plain tensor that takes a series in place be that series from then on."""

    def __init__(self) -> None:
        super().__init__()
        self.shadows: dict[int, tuple[Tensor, Tensor]] = {}
        self.written: set[int] = set()  # memory of those plain tensors

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        args, kwargs = self.reveal(args), {k: self.reveal(v) for k, v in (kwargs or {}).items()}
        return func(*args, **kwargs) if ignored(func) else self.follow(func, args, kwargs)

    def follow(self, func: Any, args: tuple, kwargs: dict) -> Any:
        """The call, by its rule where torch would lead there anyway."""
        self.check_memory(args)
        first = args[0] if args else None
        writes = func is torch.Tensor.__setitem__ and any(isinstance(a, Series) for a in args)
        rule = RULES.get(func) if isinstance(first, Series) or writes else None
        out = func(*args, **kwargs) if rule is None else apply(rule, func, args, kwargs)
        if isinstance(out, Series) and isinstance(first, Tensor) and not isinstance(first, Series):
            name = getattr(func, "__name__", "")
            if writes or (name.endswith("_") and not name.endswith("__")):
                self.shadow(first, out)
        return None if writes else out

    def shadow(self, target: Tensor, value: Tensor) -> None:
        """From now on `target` is this value, which it cannot hold: a series, or what torch.func transforms."""
        self.shadows[id(target)] = (target, value)
        memory = memory_of(target)
        if memory is not None:
            self.written.add(memory)

    def check_memory(self, values: Any) -> None:
        """Refuse a plain tensor that shares the memory of one that has become a series: its numbers are out of date."""
        if not self.written:
            return
        for value in values:
            if isinstance(value, list | tuple):
                self.check_memory(value)
            elif isinstance(value, Tensor) and memory_of(value) in self.written:
                raise MissingRuleError(
                    "a tensor that depends on λ was written into part of a plain tensor, which is then read "
                    "through another view: build the result out of place (torch.cat, torch.stack) instead"
                )

    def reveal(self, value: Any) -> Any:
        """`value` with series in the place of the plain tensors that became one."""
        if isinstance(value, Tensor):
            found = self.shadows.get(id(value))
            return found[1] if found is not None and found[0] is value else value
        if isinstance(value, list | tuple) and any(isinstance(v, Tensor) for v in value):
            made = [self.reveal(v) for v in value]
            return type(value)(*made) if hasattr(value, "_fields") else type(value)(made)
        return value

    def reveal_output(self, out: Any) -> Any:
        """What a model returned, likewise."""
        if not self.shadows:
            return out
        if isinstance(out, dict):  # ModelOutput among them
            out = copy.copy(out)
            for key, value in out.items():
                out[key] = self.reveal(value)
        out = self.reveal(out)
        self.check_memory(tensors_in(list(out.values()) if isinstance(out, dict) else out))
        return out


class Run(Following):
    """One run of the model: the calls are matched with the anatomy, joins and units are rewritten."""

    def __init__(
        self,
        anatomy: Anatomy,
        lam: Series | list[float | Tensor] | None,
        alpha: list[float | Tensor] | None,
        carried: Sequence[float] = (),
        *,
        probe: bool = False,
        sharded: bool = False,
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
        self.differentiates = torch.is_grad_enabled() and self.space is None
        self.sharded = sharded

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if self.shadows:
            args, kwargs = self.reveal(args), {k: self.reveal(v) for k, v in kwargs.items()}
            self.check_memory(args)
        if ignored(func) or counts(func, args):
            return func(*args, **kwargs)
        if self.sharded and called_by_sharding():
            return func(*args, **kwargs)
        at = self.at
        if at >= len(self.steps) or (self.steps[at].func is not func and self.steps[at].func != func):
            if next(tensors_in((args, kwargs)), None) is None:  # no part of the flow of data
                return func(*args, **kwargs)
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
        for position in step.last:
            if type(args[position]) is Series:
                args[position].free = True
        try:
            return self.follow(func, args, kwargs)
        except (MissingRuleError, ModeError) as error:
            raise type(error)(f"in {self.place(step)}: {error}") from None

    def join(self, site: Branch, func: Any, args: tuple, kwargs: dict) -> Any:
        """skip + λ·branch in place of the addition."""
        skip, branch = args[site.skip], args[site.branch]
        if self.used[site.index] is None:
            self.used[site.index] = kwargs.get("alpha", 1) if site.own == "alpha" else 1.0
        if self.lam is None:
            return func(*args, **kwargs)
        in_place, target = func.__name__ in IN_PLACE, args[0]
        if not isinstance(self.lam, Series):
            return self.plain_join(site, args, self.lam[site.index], in_place=in_place)
        out = self.series_join(site, skip, branch, self.lam)
        if not in_place:
            return out
        if isinstance(target, Series):
            return target.assign(out)
        self.shadow(target, out)
        return out

    def plain_join(self, site: Branch, args: tuple, lam: float | Tensor, *, in_place: bool) -> Tensor:
        self.used[site.index] = lam
        if self.differentiates:
            refuse_recomputing(site.name)
        expected = args[site.skip].clone() if self.probe else None
        aside = in_place and isinstance(lam, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(lam)
        out = join(args, site.skip, site.branch, site.signs, lam, in_place=in_place and not aside)
        if aside:
            self.shadow(args[0], out)
        if expected is not None and not same(out, expected if site.signs[0] == 1 else -expected):
            raise ProbeError(f"at λ = 0 the join {site.name} does not leave its shortcut")
        return out

    def series_join(self, site: Branch, skip: Tensor, branch: Tensor, lam: Series) -> Series:
        for operand in (skip, branch):
            if isinstance(operand, Series):
                operand.check_fresh()
        sign_skip, sign = site.signs
        space = lam.space
        weight, last = 1.0, False
        if self.weights is not None and space.order:
            weight = sign * self.weights[site.index if len(self.weights) > 1 else 0]
            last = site.skip in self.steps[site.step].last and isinstance(skip, Series)
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
        if not isinstance(a, Series):
            return bend(func, alpha, args, kwargs)
        before = Series(a.c, a.space)
        alpha = fitted(alpha, a)
        value = func(*args, **kwargs)
        out = alpha * before + (1 - alpha) * value
        return a.assign(out) if value is a else out

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


def memory_of(t: Tensor) -> int | None:
    """The address of a plain tensor's memory."""
    plain = t.layout is torch.strided and not isinstance(t, Series)
    if not plain or torch._C._functorch.is_functorch_wrapped_tensor(t):
        return None
    return t.untyped_storage().data_ptr()


def same(a: Tensor, b: Tensor) -> bool:
    """Bitwise equal, NaN included."""
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
