"""What a walk does at each torch function: which arguments carry it on, and what becomes of their polynomials."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np
import torch.nn.functional as F

from ..errors import MissingRuleError
from ..flow import Fixed, Ref, Value
from ..functions import NORMS, RECURRENT, UNITS
from ..series import name_of
from . import kinds
from .moves import moved
from .products import attended, contracted, einsum_axes, multi_head
from .state import State, joined, mean_of_alive, padded


@dataclass(frozen=True)
class Call:
    """A call of the run, as the walk meets it."""

    func: Any
    module: str
    args: tuple
    kwargs: dict[str, Any]
    value: Value  # the tensor asked for, of those it made
    values: Sequence[Value]
    states: dict[int, State]
    exact: bool
    share: Callable[[State], Any] | None = None  # of a unit: what share of it is nonlinear

    def at(self, position: int, name: str, default: Any = None) -> Any:
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    def state(self, argument: Any) -> State:
        """Of an argument; nothing where no path leads to it."""
        found = self.states.get(argument.number) if isinstance(argument, Ref) else None
        return State.nothing(self.shape_of(argument), exact=self.exact) if found is None else found

    def shape_of(self, argument: Any) -> tuple[int, ...]:
        if isinstance(argument, Ref):
            return self.values[argument.number].shape
        return tuple(argument.shape) if hasattr(argument, "shape") else ()

    def refused(self, why: str = "") -> NoReturn:
        where = f"module '{self.module}'" if self.module else "the model's forward"
        raise MissingRuleError(
            f"in {where}: path lengths have no rule for {name_of(self.func)}{why and f' ({why})'}: "
            "write it with functions listed in docs/lengths.md"
        )


def passed(c: Call) -> State:
    """The state of a tensor from those of the arguments that carry the walk."""
    for functions, handler in HANDLERS:
        if c.func in functions:
            return handler(c)
    (number,) = c.states  # `carriers` has seen to it
    return alike(c, c.states[number])


def alike(c: Call, x: State) -> State:
    """A map of each element on its own, or a norm."""
    return x.made(x.poly, c.value.shape, x.feature)


def first(c: Call) -> State:
    return alike(c, c.state(c.at(0, "input")))


def unit(c: Call) -> State:
    x = c.state(c.at(0, "input"))
    return x if c.share is None else x.times_t(c.share(x))


def total(c: Call) -> State:
    """Two tensors added, or one chosen of two: each with chance ½."""
    found = [c.states[i] for i in c.value.inputs if i in c.states]
    return joined(found, c.value.shape) if found else State.nothing(c.value.shape, exact=c.exact)


def source(c: Call) -> State:
    """Embedded token ids: a walk ends here."""
    n = len(c.value.shape)
    return State.source(c.value.shape, exact=c.exact, feature=(False,) * (n - 1) + (True,))


def flat(x: State, axes: Sequence[int]) -> State:
    """Features along some axes not told apart any more."""
    axes = tuple(axes)
    poly = mean_of_alive(x.poly, axes, exact=x.exact) if any(x.poly.shape[a] > 1 for a in axes) else x.poly
    return replace(x, poly=poly, feature=tuple(f and a not in axes for a, f in enumerate(x.feature)))


def convolution(c: Call) -> State:
    """Uniform over the input channels of the group; pixels of the window are not told apart."""
    x, groups = c.state(c.at(0, "input")), c.at(6, "groups", 1)
    n, dims = len(x.shape), int(re.findall(r"\d", c.func.__name__)[-1])
    axis = n - dims - 1
    x = flat(x, range(axis + 1, n))
    inside, out = x.shape[axis] // groups, c.value.shape[axis] // groups
    if x.poly.shape[axis] == 1 or groups == 1:
        poly = x.gathered({axis: inside})
    else:
        p = x.poly
        split = p.reshape(*p.shape[:axis], groups, inside, *p.shape[axis + 1 :])
        by_group = replace(x, poly=split).gathered({axis + 1: inside})
        poly = np.repeat(by_group.squeeze(axis + 1), out, axis)
    return x.made(poly, c.value.shape, (*x.feature[:axis], True, *(False,) * dims))


def linear(c: Call) -> State:
    x = c.state(c.at(0, "input"))
    last = len(x.shape) - 1
    return x.made(x.gathered({last: x.shape[last]}), c.value.shape, (*x.feature[:last], True))


def pool(c: Call) -> State:
    """Pixels are not told apart: channels stay."""
    x = c.state(c.at(0, "input"))
    digit, n = re.findall(r"\d", c.func.__name__), len(x.shape)
    x = flat(x, range(n - int(digit[0]) if digit else 2, n))
    return x.made(x.poly, c.value.shape, x.feature)


def reduction(c: Call) -> State:
    """Uniform over what is reduced."""
    name = c.func.__name__
    x = c.state(c.at(0, "input"))
    n = len(x.shape)
    dims = c.at(2 if name.endswith("norm") else 1, "dim", c.kwargs.get("axis"))
    if isinstance(dims, Ref | Fixed):
        return total(c)
    if dims is None or isinstance(dims, bool):
        dims = range(n)
    axes = sorted(d % n for d in ((dims,) if isinstance(dims, int) else dims) or range(n))
    poly = x.gathered({a: x.size(a) for a in axes})
    if len(c.value.shape) == n:
        return x.made(poly, c.value.shape, [f and a not in axes for a, f in enumerate(x.feature)])
    return x.made(poly.squeeze(tuple(axes)), c.value.shape, [f for a, f in enumerate(x.feature) if a not in axes])


def concatenation(c: Call) -> State:
    """Channels side by side; tensors side by side along positions are averaged."""
    parts = [c.state(t) for t in c.at(0, "tensors") if c.shape_of(t) != (0,)]
    n = len(c.value.shape)
    axis = c.at(1, "dim", c.kwargs.get("axis", 0)) % n
    polys = padded([s.poly for s in parts])
    feature = [any(s.feature[a] for s in parts) for a in range(n)]
    spread = tuple(max(p.shape[a] for p in polys) for a in range(n))

    def along(p: np.ndarray, length: int) -> np.ndarray:
        return np.broadcast_to(p, (*spread[:axis], length, *spread[axis + 1 :], p.shape[-1]))

    lengths = [s.shape[axis] for s in parts]
    poly = np.concatenate([along(p, k) for p, k in zip(polys, lengths, strict=True)], axis)
    return parts[0].made(poly, c.value.shape, feature).without_positions()


def stack(c: Call) -> State:
    """As a concatenation along a new axis of features."""
    n = len(c.value.shape)
    axis = c.at(1, "dim", 0) % n
    tensors = c.at(0, "tensors")
    parts = []
    for s in map(c.state, tensors):
        f = (*s.feature[:axis], True, *s.feature[axis:])
        parts.append(State(np.expand_dims(s.poly, axis), (*s.shape[:axis], 1, *s.shape[axis:]), f, c.exact))
    feature = [any(s.feature[a] for s in parts) for a in range(n)]
    polys = padded([s.poly for s in parts])
    spread = np.broadcast_shapes(*(p.shape for p in polys))
    poly = np.concatenate([np.broadcast_to(p, spread) for p in polys], axis)
    return parts[0].made(poly, c.value.shape, feature)


def halves(c: Call) -> State:
    """a·σ(b) of the halves a, b: as a product."""
    x = c.state(c.at(0, "input"))
    n = len(x.shape)
    axis = c.at(1, "dim", -1) % n
    size = x.shape[axis] // 2
    whole = np.broadcast_to(x.poly, (*x.poly.shape[:axis], 2 * size, *x.poly.shape[axis + 1 :]))
    a, b = (x.made(np.take(whole, range(k, k + size), axis), c.value.shape, x.feature) for k in (0, size))
    return joined([a, b], c.value.shape)


def move(c: Call) -> State:
    func, args, kwargs = c.func, c.args, c.kwargs
    if func in kinds.PADS:  # with zeros, whatever the number: no path leads to them
        pad, mode = c.at(1, "pad"), c.at(2, "mode", "constant")
        func, args, kwargs = F.pad, (c.at(0, "input"), list(pad), mode), {}
    try:
        return moved(func, (args, kwargs), c.states, c.values, c.value.slot, c.value.shape)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        c.refused(f"with these arguments: {error}")


def product(c: Call) -> State:
    """Elementwise: each factor that is no weight with equal chance."""
    return total(c)


def matrix_product(c: Call) -> State:
    """Uniform over what is contracted, in each factor that is no weight."""
    ops = c.args[1:3] if c.func in kinds.ADDED_MATMUL else c.args[:2]
    if len(ops) < 2:
        ops = (*ops, c.kwargs.get("mat2", c.kwargs.get("other")))
    if c.func.__name__ == "__rmatmul__":
        ops = ops[::-1]
    found = []
    for side, op in enumerate(ops):
        if isinstance(op, Ref) and op.number in c.states:
            found.append(contracted(c.states[op.number], ops[1 - side], c.shape_of(ops[1 - side]), side, c.value.shape))
    return joined(found, c.value.shape)


def einsum(c: Call) -> State:
    operands = c.args[1] if isinstance(c.args[1], list | tuple) else c.args[1:]
    equation = c.args[0]
    if not isinstance(equation, str) or "." in equation:
        c.refused("with an ellipsis")
    found = []
    for side, op in enumerate(operands):
        if isinstance(op, Ref) and op.number in c.states:
            weights = [o for o in operands if not isinstance(o, Ref)]
            found.append(einsum_axes(c.states[op.number], equation, side, c.value.shape, weighted=bool(weights)))
    return joined(found, c.value.shape)


def attention(c: Call) -> State:
    return attended(c.state(c.at(2, "value")), c.value.shape)


def multi_head_attention(c: Call) -> State:
    return multi_head(c.state(c.at(2, "value")), c.value.shape)


def never(c: Call) -> State:
    c.refused()


HANDLERS: tuple[tuple[Any, Callable[[Call], State]], ...] = (
    (RECURRENT, never),
    (kinds.REFUSED, never),
    (UNITS, unit),
    (kinds.CONVOLUTIONS, convolution),
    (kinds.LINEAR, linear),
    (NORMS, first),
    (kinds.FIRST, first),
    (kinds.SUMS, total),
    (kinds.MOVES, move),
    (kinds.PADS, move),
    (kinds.POOLS, pool),
    (kinds.MULTIPLICATIONS, product),
    (kinds.DIVISIONS, product),
    (kinds.MATMUL, matrix_product),
    (kinds.ADDED_MATMUL, matrix_product),
    (kinds.EINSUM, einsum),
    (kinds.ATTENTION, attention),
    (kinds.MULTI_HEAD, multi_head_attention),
    (kinds.REDUCTIONS, reduction),
    (kinds.CONCATENATIONS, concatenation),
    (kinds.STACKS, stack),
    (kinds.HALVES, halves),
    (kinds.EMBEDDINGS, source),
)
