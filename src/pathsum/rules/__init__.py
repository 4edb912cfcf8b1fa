"""What each torch function does to a series, one handler a function: `handler(func, args, kwargs)`.

Functions are found by name in torch, Tensor, torch.nn.functional and their private twins; in-place forms follow from
the functional one. `register_rule` adds a user's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F

from ..series import RULES, Handler, Series, carry_on

PLACES = (torch, torch.Tensor, F, torch._C._nn, torch.special)


def spellings(name: str) -> Iterator[Callable[..., Any]]:
    """Every public and private torch function called `name`."""
    seen = set()
    for place in PLACES:
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

    handle.handler = handler  # type: ignore[attr-defined]  # for the page that lists the rules
    return handle


def overwrite(target: Any, result: Series) -> Series:
    """Give `target` the value `result`. A plain target keeps its old value: the caller uses what is returned."""
    return target.assign(result) if isinstance(target, Series) else result


def argument(args: tuple, kwargs: dict, position: int, name: str, default: Any = None) -> Any:
    return args[position] if len(args) > position else kwargs.get(name, default)


def register_rule(
    func: Callable[..., Any],
    handler: Handler | None = None,
    *,
    linear: bool = False,  # noqa: F811  (says what the map is; the module of that name is another thing)
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


from . import attention, composed, elementwise, linear, meta, norm, piecewise, pooling, products  # noqa: E402, F401
