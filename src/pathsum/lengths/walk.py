"""From the inputs to the output of a recorded run: the polynomial of path lengths of every tensor on the way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import LambdaError, PathsumError
from ..flow import Ref, Value
from ..functions import NORMS, RECURRENT, UNITS, WEIGHTED
from ..sites import Anatomy, Unit
from . import kinds
from .calls import Call, passed
from .state import State, as_exact

Gates = Literal["half", "value"]
PATTERN = 3  # strength of a softmax: always a weight


class Walk:
    """One pass over the graph, with the shares of the random walk or, `exact`, with numbers of paths."""

    def __init__(self, anatomy: Anatomy, alpha: Sequence[float | Tensor], *, gates: Gates, exact: bool) -> None:
        self.anatomy, self.alpha, self.gates, self.exact = anatomy, alpha, gates, exact
        self.flow = anatomy.flow
        self.values = anatomy.flow.values
        self.units = {u.step: u for u in anatomy.units}
        self.strength = [0] * len(self.values)  # as a gate: 1 of a·g(a), 2 of a squashing unit, 3 of a softmax
        self.statistic = [False] * len(self.values)  # a mean, a norm, … that no layer or unit has seen since
        for number, value in enumerate(self.values):
            self.grade(number, value)

    def grade(self, number: int, value: Value) -> None:
        """Strength as a gate, and whether it is a statistic."""
        if value.step < 0 or not value.content:
            return
        func = self.anatomy.steps[value.step].func
        content = [i for i in value.inputs if self.values[i].content]
        if func in UNITS:
            self.strength[number] = 2 if UNITS[func] in kinds.SQUASHING else 1
        elif func in kinds.SOFTMAX:
            self.strength[number] = PATTERN
        elif func not in WEIGHTED and func not in kinds.PRODUCTS and content:
            self.strength[number] = self.strength[content[0]] if len(content) == 1 else 0
            self.statistic[number] = func in kinds.REDUCTIONS or all(self.statistic[i] for i in content)
        elif func in kinds.MULTIPLICATIONS and content:
            self.strength[number] = self.strength[content[0]] if len(content) == 1 else 0
            self.statistic[number] = all(self.statistic[i] for i in content)

    def carriers(self, number: int) -> tuple[int, ...]:
        """The tensors that a walk may go on to from here."""
        value = self.values[number]
        if value.step < 0:
            return ()
        func = self.anatomy.steps[value.step].func
        args, kwargs = self.flow.calls[value.step]
        content = [i for i in value.inputs if self.values[i].content]
        if func in kinds.EMBEDDINGS or func in RECURRENT or func in kinds.REFUSED:
            return ()
        if func in kinds.ATTENTION or func in kinds.MULTI_HEAD:
            return self.content_of(args[2] if len(args) > 2 else kwargs["value"])
        if func in kinds.DIVISIONS:
            return self.content_of(args[0]) or tuple(content)
        if func in kinds.WHERE:
            cond = args[1] if func is torch.Tensor.where else args[0] if args else kwargs["condition"]
            rest = [i for a in (*args, *kwargs.values()) if a is not cond for i in self.content_of(a)]
            return tuple(dict.fromkeys(rest))
        if func in kinds.SUMS or func in kinds.PRODUCTS:
            return self.factors(content, value.shape, product=func in kinds.PRODUCTS)
        if func in kinds.CONCATENATIONS or func in kinds.STACKS or func is torch.Tensor.__setitem__:
            return tuple(content)
        one = args[0] if args else kwargs.get("input")
        if any(func in known for known in ONE_ARGUMENT):
            return self.content_of(one)
        if len(content) != 1 or self.values[content[0]].shape != value.shape:
            self.call(number, {}).refused(f"of {len(content)} tensors that depend on the input")
        return tuple(content)

    def content_of(self, argument: Any) -> tuple[int, ...]:
        return (argument.number,) if isinstance(argument, Ref) and self.values[argument.number].content else ()

    def factors(self, numbers: list[int], shape: tuple[int, ...], *, product: bool) -> tuple[int, ...]:
        """Of the operands of a sum or product, those that are no weights."""

        def without(weights: list[int]) -> list[int]:
            return [i for i in numbers if i not in weights] or numbers

        numbers = without([i for i in numbers if self.statistic[i] and self.values[i].shape != shape])
        if product:
            numbers = without([i for i in numbers if self.strength[i] == PATTERN])
            if self.gates == "value" and len(numbers) == 2:
                a, b = numbers
                numbers = [b] if self.strength[a] > self.strength[b] else [a]
        return tuple(numbers)

    def call(self, number: int, states: dict[int, State]) -> Call:
        value = self.values[number]
        step = self.anatomy.steps[value.step]
        args, kwargs = self.flow.calls[value.step]
        unit = self.units.get(value.step)
        share = None if unit is None else lambda x: share_of(unit, self.alpha[unit.index], x)
        return Call(step.func, step.module, args, kwargs, value, self.values, states, self.exact, share)

    def run(self) -> State:
        """The state of the output."""
        end = self.flow.end
        if end is None:
            raise PathsumError(
                "the model's output is no tensor of the recorded run: make the knobs with output='name' or an index"
            )
        need: dict[int, tuple[int, ...]] = {}
        wanted = {end}
        for number in range(end, -1, -1):
            if number in wanted:
                need[number] = self.carriers(number)
                wanted.update(need[number])
        states: dict[int, State] = {}
        uses: dict[int, int] = {}  # the last reader of each: states are freed once read
        for number, inputs in need.items():  # from the end: the first reader seen is the last
            for i in inputs:
                uses.setdefault(i, number)
        for number in sorted(need):
            value = self.values[number]
            if value.step < 0:
                make = State.source if value.content else State.nothing
                states[number] = make(value.shape, exact=self.exact)
                continue
            found = {i: states[i] for i in need[number]}
            if found or self.anatomy.steps[value.step].func in kinds.EMBEDDINGS:
                states[number] = passed(self.call(number, found))
            elif self.anatomy.steps[value.step].func in ALWAYS_REFUSED:
                self.call(number, {}).refused()
            else:
                states[number] = State.nothing(value.shape, exact=self.exact)
            for i in need[number]:
                if uses[i] == number:
                    del states[i]
        return states[end]


ONE_ARGUMENT = (
    UNITS, kinds.CONVOLUTIONS, kinds.LINEAR, NORMS, kinds.POOLS, kinds.PADS, kinds.HALVES, kinds.REDUCTIONS,
    kinds.FIRST, kinds.MOVES, kinds.SOFTMAX,
)  # fmt: skip
ALWAYS_REFUSED = RECURRENT | kinds.REFUSED


def share_of(unit: Unit, alpha: float | Tensor, x: State) -> Any:
    """Which part of a unit is nonlinear: where α is not 1. A number, or an array over the axes of features."""
    if not isinstance(alpha, Tensor) or alpha.numel() == 1:
        return float(alpha) != 1
    bent = (alpha.detach() != 1).cpu().numpy()
    n = len(x.shape)
    if bent.ndim == 1 and n in (4, 5):
        bent = bent.reshape(-1, *(1,) * (n - 2))
    try:
        fits = np.broadcast_shapes(bent.shape, x.shape) == x.shape
    except ValueError:
        fits = False
    if not fits:
        raise LambdaError(
            f"α of unit {unit.index} ({unit.name}) has shape {tuple(alpha.shape)}; the unit's is {x.shape}: "
            "give a number, a vector along its channels, or a value for each element"
        )
    bent = bent.reshape(*(1,) * (n - bent.ndim), *bent.shape)
    if alpha.ndim == 1:
        return bent.astype(object if x.exact else float) * 1
    axes = tuple(a for a in range(n) if not x.feature[a] and bent.shape[a] > 1)
    number = bent.sum(axis=axes, keepdims=True)
    size = int(np.prod([bent.shape[a] for a in axes])) if axes else 1
    return as_exact(number, size) if x.exact else number / size
