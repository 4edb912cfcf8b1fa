"""Calls that move numbers and make none: reshape, transpose, slice, …: followed by calling them on labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..care import tensors_in
from ..flow import Fixed, Ref, Template, Value
from .state import State, padded


def moved(
    func: Callable[..., Any],
    call: Template,
    states: dict[int, State],
    values: Sequence[Value],
    slot: int,
    target: tuple[int, ...],
) -> State:
    """The state of what a call makes of tensors by moving their numbers.

    Each feature of the tensors gets a number of its own, and the call is made on these: what it returns says which
    feature each element is. 0 stands for what no path reaches.
    """
    start, offsets, sizes = 1, {}, {}
    for number, state in states.items():
        sizes[number] = tuple(state.size(a) for a in range(len(state.shape)))
        offsets[number] = start
        start += math.prod(sizes[number])

    def labels(value: Any) -> Any:
        if isinstance(value, Ref) and value.number in states:
            number = value.number
            own = torch.arange(math.prod(sizes[number]), dtype=torch.float64) + offsets[number]
            return own.view(sizes[number]).expand(states[number].shape).contiguous()
        if isinstance(value, Ref | Fixed):
            shape = values[value.number].shape if isinstance(value, Ref) else value.shape
            index = isinstance(value, Ref) and not values[value.number].content  # positions are not told apart
            return torch.zeros(shape, dtype=torch.long if index else torch.float64)
        if isinstance(value, Tensor):
            return value.cpu()
        if isinstance(value, list | tuple) and not isinstance(value, torch.Size):
            return type(value)(map(labels, value))
        return {k: labels(v) for k, v in value.items()} if isinstance(value, dict) else value

    with torch.no_grad():
        args, kwargs = labels(call[0]), labels(call[1])
        out = func(*args, **kwargs)
        found = args[0] if func is torch.Tensor.__setitem__ else list(tensors_in(out))[slot]
    if tuple(found.shape) != target:
        raise ValueError(f"the result has shape {tuple(found.shape)}, not {target}")
    return read(found, list(states.values()), list(sizes.values()))


def read(found: Tensor, states: Sequence[State], sizes: Sequence[tuple[int, ...]]) -> State:
    """The state of a tensor of labels."""
    target = tuple(found.shape)
    polys = padded([s.poly for s in states])
    width = polys[0].shape[-1]
    tables = [
        np.broadcast_to(p, (*size, width)).reshape(-1, width) for p, size in zip(polys, sizes, strict=True)
    ]
    table = np.concatenate([np.zeros((1, width), polys[0].dtype), *tables])
    feature = []
    for axis in range(len(target)):
        first = found.narrow(axis, 0, 1)
        alike = bool((found == first).all()) if target[axis] else True
        feature.append(not alike and axis_holds_features(found, axis))
        found = first if alike else found
    index = found.long().numpy()
    return states[0].made(table[index], target, feature).without_positions()


def axis_holds_features(found: Tensor, axis: int) -> bool:
    """Whether labels differ along an axis other than by being nothing."""
    low = torch.where(found == 0, torch.inf, found).amin(axis)
    return bool((found.amax(axis) > low).any())
