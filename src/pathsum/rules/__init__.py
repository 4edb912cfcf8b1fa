"""What each torch function does to a series, one handler a function: `handler(func, args, kwargs)`.

Functions are found by name in torch, Tensor, torch.nn.functional, torch.linalg, torch.fft and private twins; in-place
forms follow from the functional one. `register_rule` adds a user's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F

from ..errors import MissingRuleError
from ..series import RULES, Handler, Series, carry_on, name_of

PLACES = (torch, torch.Tensor, F, torch._C._nn, torch.special, torch.linalg, torch.fft)


def spellings(name: str) -> Iterator[Callable[..., Any]]:
    """Every public and private torch function called `name`."""
    seen = set()
    for place in PLACES if not name.startswith("__") else (torch.Tensor,):
        func = getattr(place, name, None)
        if func is not None and callable(func) and id(func) not in seen:
            seen.add(id(func))
            yield func


def rule(*names: str) -> Callable[[Handler], Handler]:
    """Register the decorated handler for all spellings of `names`, and for their in-place forms."""

    def register(handler: Handler) -> Handler:
        for name in names:
            functional = next(spellings(name), None)
            for func in spellings(name):
                RULES[func] = handler
            if functional is None:
                continue
            for changing in (f"{name}_", f"__i{name}__"):
                for func in spellings(changing):
                    RULES[func] = in_place(handler, functional)
        return handler

    return register


def in_place(handler: Handler, functional: Callable[..., Any]) -> Handler:
    """The handler of an in-place form: compute out of place, then become the result."""

    def handle(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        return overwrite(args[0], carry_on(handler(functional, args, kwargs), functional, args, kwargs))

    handle.handler, handle.functional = handler, functional  # type: ignore[attr-defined]
    return handle


def overwrite(target: Any, result: Any) -> Any:
    """Give `target` the value `result`. A plain target keeps its old value: the caller uses what is returned."""
    if not isinstance(target, Series):
        return result
    if not isinstance(result, Series):
        result = target.like(result.unsqueeze(0).to(target.c.dtype))
    return target.assign(result)


def argument(args: tuple, kwargs: dict, position: int, name: str, default: Any = None) -> Any:
    return args[position] if len(args) > position else kwargs.get(name, default)


def pair(args: tuple, kwargs: dict) -> tuple[Any, Any]:
    """The operands of a function of two, by position or by name."""
    if len(args) > 1:
        return args[0], args[1]
    first = args[0] if args else kwargs["input"]
    return first, kwargs["other"] if "other" in kwargs else kwargs["mat2"]


def bound(names: str, func: Callable[..., Any], args: tuple, kwargs: dict, **defaults: Any) -> list[Any]:
    """The values of `names`, given by position or by name; an option that is not among them is refused."""
    known = names.split()
    values = defaults | dict(zip(known, args, strict=False)) | kwargs
    extra = [k for k, v in values.items() if k not in known and v is not None and not k.startswith("_")]
    if extra or len(args) > len(known):
        what = ", ".join(f"{k}=" for k in extra) or f"{len(args)} arguments"
        raise MissingRuleError(f"{name_of(func)} with {what} on a series: not covered; write it out without")
    return [values.get(name) for name in known]


def register_rule(
    func: Callable[..., Any],
    handler: Handler | None = None,
    *,
    linear: bool = False,  # what the map is; the module of that name is another thing
) -> Callable[..., Any]:
    """Say what `func` does to a series: a handler, or `linear=True` for a linear map of its tensor arguments.

    A handler gets `(func, args, kwargs)`, with `pathsum.Series` objects among the arguments, and returns a Series:
    their coefficients are `.c`, order first; `.space.gated` tells the semantics; `.like(c)` makes the result.

    >>> import torch, pathsum as ps
    >>> ps.register_rule(torch.fliplr, linear=True) is torch.fliplr
    True
    """
    if (handler is None) != linear:
        raise TypeError("register_rule needs either a handler or linear=True")
    from . import linear as linear_rules

    RULES[func] = linear_rules.linear if handler is None else handler
    return func


HOMES = (
    "analytic attention composed contractions elementwise jointly linear losses meta norm piecewise pooling products "
    "recurrent refused selection statistics steps"
).split()
for _home in HOMES:
    import_module(f"{__name__}.{_home}")
