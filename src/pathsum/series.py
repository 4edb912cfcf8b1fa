"""Truncated power series as tensors: run any code on one, and every function computes its coefficients.

A `Series` stands for c₀ + c₁t + c₂t² + …, kept up to the order of its `Space`. Two semantics share it:

* **Taylor**: t is a small parameter; a nonlinear function is expanded at order 0 (its recurrences in `rules/`).
  Where order 0 sits on a kink the sign of the first nonzero coefficient decides: the expansion for t → 0⁺.
* **gated**: t only counts, at t = 1; a nonlinear function is frozen to its gate at the sum of the coefficients,
  so that the coefficients always add up to the real value.

Coefficients are plain tensors in `.c`, order first: (m, *shape), with m the number of orders reached so far.
First-order autograd runs through them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

from .coefficients import Space, add_shifted, empty_for, needs_grad
from .errors import LambdaError, MissingRuleError, PathsumError

TELESCOPED = 3  # gate of a factor that is recomputed on the paths so far, see rules/recompute.py
Handler = Callable[[Callable[..., Any], tuple, dict], Any]
RULES: dict[Any, Handler] = {}  # torch function -> what it does to a series; filled by pathsum.rules
ABOUT: set[Handler] = set()  # rules for questions whose answer is the same after a change in place: shape, dtype


class Series(torch.Tensor):
    """A truncated power series c₀ + c₁t + … whose coefficients are tensors of one shape.

    `Series.variable(order)` is t itself. To torch it has the shape, dtype and device of a coefficient; functions of
    it go by `pathsum.rules`, and one without a rule raises `MissingRuleError`: nothing is dropped silently.

    >>> t = Series.variable(3)
    >>> ((1 + t) * (1 + t)).c.tolist()
    [1.0, 2.0, 1.0]
    """

    m: int  # number of orders reached
    space: Space
    free: bool  # nobody reads this series after the call at hand: a rule may overwrite its coefficients
    # 0 a value; 1 the output of a·g(a); 2 of a squashing function: in gated products the higher freezes; 3 TELESCOPED
    gate: int
    squared: Series | None = None  # the same tensor, telescoped: of x², for the statistics of a norm
    joint: Tensor | None  # the actual value and the coefficients as one block of memory, in this order
    _c: Tensor | None
    _actual: Tensor | None
    _epoch: list[int]  # shared by views of one series; counts their in-place changes
    _seen: int

    @staticmethod
    def __new__(cls, c: Tensor, space: Space, *, gate: int = 0, epoch: list[int] | None = None) -> Series:
        shape = c.shape
        self = torch.Tensor._make_wrapper_subclass(cls, shape[1:], dtype=c.dtype, device=c.device, requires_grad=False)
        self._c = c
        self.m = shape[0]
        self.space = space
        self.free = False
        self.gate = gate
        self._actual = self.joint = None
        self._epoch = [0] if epoch is None else epoch
        self._seen = self._epoch[0]
        return self

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    @classmethod
    def joined(cls, block: Tensor, space: Space, *, gate: int = 0) -> Series:
        """The series of a block of memory that holds the actual value and then the coefficients."""
        self = cls(block, space, gate=gate)
        self.joint, self._c = block, None
        self.m -= 1
        return self

    @property
    def c(self) -> Tensor:
        """The coefficients, (m, *shape)."""
        if self._c is None:
            assert self.joint is not None
            self._c = self.joint[1:]
        return self._c

    @property
    def actual(self) -> Tensor | None:
        """The value at the λ in force, in a space that carries it."""
        if self._actual is None and self.joint is not None:
            self._actual = self.joint[0]
        return self._actual

    @classmethod
    def variable(
        cls,
        order: int,
        *,
        weights: Tensor | float = 1.0,
        gated: bool = False,
        overflow: bool = False,
        carry: bool = False,
        recompute: frozenset[str] = frozenset(),
        still: bool = False,
    ) -> Series:
        """The formal variable t, or the vector w·t for a tensor of per-branch weights w; the rest describes `Space`."""
        if order < 0:
            raise LambdaError(f"a series of order {order}: give an order of 0 or more")
        w = torch.as_tensor(weights, dtype=None if isinstance(weights, Tensor) else torch.get_default_dtype())
        c = torch.stack([torch.zeros_like(w), w]) if order else torch.zeros_like(w).unsqueeze(0)
        return cls(c, Space(order, gated, overflow, carry, recompute, still))

    def at(self, lam: float) -> Tensor:
        """The partial sum Σ_k c_k λ^k."""
        powers = torch.tensor([lam**k for k in range(len(self.c))], dtype=self.c.dtype, device=self.c.device)
        return torch.tensordot(powers, self.c, dims=1)

    def base(self) -> Tensor:
        """Where nonlinear functions are taken: order 0 (Taylor), or the sum of all slots (gated)."""
        if self.space.gated:
            value = self.c.sum(0) if self.m > 1 else self.c[0]
            return value.detach() if self.space.still else value
        return self.c[0] if self.joint is None else self.joint[1]

    def like(self, c: Tensor, *, gate: int = 0) -> Series:
        """A new series in the same space."""
        return Series(c, self.space, gate=gate)

    def view_of(self, c: Tensor) -> Series:
        """A series that shares memory with this one: an in-place change of either makes the other stale."""
        view = Series(c, self.space, gate=self.gate, epoch=self._epoch)
        view._seen = self._seen
        return view

    def cut(self, m: int) -> Series:
        """The first m orders, in a space of no more: whatever is made of them stops there too."""
        if self.joint is None:
            view = self.view_of(self.c[:m])
            view._actual = self._actual
        else:
            view = Series.joined(self.joint[: m + 1], self.space, gate=self.gate)
            view._epoch, view._seen = self._epoch, self._seen
        view.space = self.space.upto(m)
        return view

    def assign(self, new: Series) -> Series:
        """Become `new` in place; views taken before are stale from now on."""
        self._c, self.m, self.gate, self._actual, self.joint = new._c, new.m, new.gate, new._actual, new.joint
        self.space = new.space  # a branch cut short may become the stream
        self._epoch[0] += 1
        self._seen = self._epoch[0]
        return self

    def times(self, factor: Tensor | float) -> Tensor:
        """Coefficients times a tensor of at most their shape; in their own memory where they are free."""
        if not isinstance(factor, Tensor) or factor.dtype == self.c.dtype:
            own = self.own_memory(factor)
            if own is not None:
                return own.mul_(factor)
        return self.c * factor

    def own_memory(self, *others: Any) -> Tensor | None:
        """The coefficients, to be overwritten with a function of them, where that is allowed."""
        if not self.free or (torch.is_grad_enabled() and needs_grad(self.c, *others)):
            return None
        self._epoch[0] += 1  # whoever reads this series all the same is told so
        return self.c

    def check_fresh(self) -> None:
        if self._seen != self._epoch[0]:
            raise MissingRuleError(
                "a tensor was changed in place and then read through another view of it, which a series does not "
                "follow: write the operation out of place (y = y + x instead of a view's y += x)"
            )

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        handler = RULES.get(func)
        if handler is None:
            handler = RULES.get(getattr(func, "overloadpacket", None)) or missing(func)
        for a in args:
            if type(a) is Series:
                a.free = False  # inside a rule, or outside a run: others may still read it
        return apply(handler, func, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        missing(func)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        kind = "gated" if self.space.gated else "Taylor"
        return f"Series({kind}, orders 0..{len(self.c) - 1} of {self.space.order}, shape {tuple(self.c.shape[1:])})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("a Series is not pickled: save its coefficients, series.c")


class CannotCarry(Exception):
    """A function's result says nothing of the real value (a comparison): run the network once more instead."""


class _NoActual(Exception):
    """A series that lacks its actual value."""


def apply(handler: Handler, func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """What a rule makes of a call, none of whose series may be out of date."""
    space = None
    for a in (*args, *kwargs.values()) if kwargs else args:
        kind = type(a)
        if kind is not Series and kind is not list and kind is not tuple:
            continue
        for x in (a,) if kind is Series else a:
            if type(x) is Series:
                if x._seen != x._epoch[0] and handler not in ABOUT:
                    x.check_fresh()
                space = x.space
    if kwargs and kwargs.get("out") is not None:
        raise MissingRuleError(f"{name_of(func)} with out= on a series: use the tensor that it returns instead")
    try:
        if space is not None and space.recompute:
            from .rules.recompute import recompute

            out = recompute(handler, func, args, kwargs)
        else:
            out = handler(func, args, kwargs)
    except PathsumError:
        raise
    except (KeyError, IndexError, AttributeError, TypeError, ValueError) as error:
        raise MissingRuleError(
            f"the series rule for {name_of(func)} does not cover this call ({type(error).__name__}: {error}): "
            f"register another, {line_to_write(func)}"
        ) from error
    except RuntimeError as error:
        if not any(type(a) is Series and a.dtype.is_complex for a in (*args, *kwargs.values())):
            raise
        raise MissingRuleError(
            f"{name_of(func)} of complex numbers on a series is not covered ({error}): write it with x.real and x.imag"
        ) from error
    return carry_on(out, func, args, kwargs)


def carry_on(out: Any, func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """Give a result the real value, where its arguments have theirs and the rule has not done so."""
    if type(out) is Series and (out.joint is not None or not out.space.carry):
        return out
    results = out if isinstance(out, list | tuple) else (out,)
    if not any(type(o) is Series and o.space.carry and o.actual is None for o in results):
        return out
    try:
        real = func(*map(real_of, args), **{k: real_of(v) for k, v in kwargs.items()})
    except _NoActual:  # an intermediate result of a rule: the rule's own result will get it
        return out
    for o, r in zip(results, real if isinstance(out, list | tuple) else (real,), strict=True):
        if type(o) is Series:
            o._actual = r
    return out


def real_of(value: Any) -> Any:
    """The real value of a series, also inside lists."""
    if type(value) is Series:
        if value.actual is None:
            raise _NoActual
        return value.actual
    if isinstance(value, list | tuple) and any(type(v) is Series for v in value):
        return type(value)(map(real_of, value))
    return value


def name_of(func: Any) -> str:
    """`torch.nn.functional.relu` and the like, as a person would write it."""
    owner = getattr(func, "__self__", None)
    if getattr(func, "__name__", "") in ("__get__", "__set__") and owner is not None:
        attribute = getattr(owner, "__name__", None) or owner.fget.__name__
        return f"torch.Tensor.{attribute}.{func.__name__}"
    if isinstance(func, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        return f"torch.ops.{func}"
    name = torch.overrides.resolve_name(func)
    if name is None or name.startswith("torch.functional."):
        own = getattr(func, "__name__", "")
        for place in (torch, torch.nn.functional, torch._C._nn):
            if getattr(place, own, None) is func:
                return f"{place.__name__}.{own}"
    return name or f"{getattr(func, '__module__', None)}.{getattr(func, '__qualname__', repr(func))}"


def line_to_write(func: Any) -> str:
    """The line that gives a function a rule."""
    name = name_of(func)
    return (
        f"ps.register_rule({name}, handler) with handler(func, args, kwargs), or ps.register_rule({name}, linear=True)"
    )


def missing(func: Any) -> NoReturn:
    raise MissingRuleError(
        f"no series rule for {name_of(func)}: add one, {line_to_write(func)} if it is linear in its tensor arguments"
    )


def join_carrying(
    skip: Tensor, branch: Tensor, weight: float, lam: float, space: Space, *, overwrite: bool = False
) -> Series:
    """`add_shifted` for series (or plain tensors) that carry the real value: it becomes skip + lam·branch."""
    if any(type(x) is Series and x.actual is None for x in (skip, branch)):
        raise CannotCarry
    c_skip, c_branch = (x.c if type(x) is Series else x.unsqueeze(0) for x in (skip, branch))
    real_skip, real_branch = real_of(skip), real_of(branch)
    m = min(max(c_skip.shape[0], c_branch.shape[0] + 1), space.slots)
    if overwrite and type(skip) is Series and skip.joint is not None and skip.m == m:
        add_shifted(c_skip, c_branch, weight, space, overwrite=True)
        real_skip.add_(real_branch, alpha=lam)
        return Series.joined(skip.joint, space)
    block = empty_for(m + 1, c_skip, c_branch)
    add_shifted(c_skip, c_branch, weight, space, out=block[1:])
    torch.add(real_skip, real_branch, alpha=lam, out=block[0])
    return Series.joined(block, space)
