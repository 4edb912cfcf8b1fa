"""The graph of a recorded run as the anatomy keeps it: shapes and arguments of the calls, and no activations.

What walks along the graph (path lengths) needs what each tensor was made from, and with which arguments: a slice,
the axis of a concatenation, the groups of a convolution.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

KEPT = 1 << 16  # numbers in an index tensor that is kept as it is
PLAIN = (int, float, bool, str, type(None), slice, type(...), torch.dtype, torch.layout, torch.memory_format)
Template = Any  # arguments of a call, with `Ref` and `Fixed` in the place of tensors


@dataclass(frozen=True)
class Ref:
    """A tensor of the run, by number."""

    number: int


@dataclass(frozen=True)
class Fixed:
    """A tensor that no input leads to (a weight, a constant): its shape alone."""

    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of the run."""

    step: int  # the call that made it; -1: an input
    slot: int  # which of the tensors that the call made
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    content: bool  # depends on the numbers of an input; a mask or token ids alone are none


@dataclass(frozen=True, eq=False)
class Flow:
    """The tensors of one run in their order, the arguments of the calls, and the tensor that is the output."""

    values: tuple[Value, ...] = ()
    calls: dict[int, Template] = field(default_factory=dict)  # step -> (args, kwargs)
    end: int | None = None


def template(value: Any, node_of: Callable[[Tensor], int | None]) -> Template:
    """Arguments with tensors replaced: those of the run by `Ref`, others by `Fixed`; small indices stay."""
    if isinstance(value, Tensor):
        number = node_of(value)
        if number is not None:
            return Ref(number)
        index = not (value.is_floating_point() or value.is_complex() or value.is_meta) and value.numel() <= KEPT
        return value.detach().clone() if index else Fixed(tuple(value.shape))
    if isinstance(value, torch.Size) or isinstance(value, PLAIN):
        return value
    if isinstance(value, list | tuple):  # x[[0, 1]] is not x[0, 1]
        made = [template(v, node_of) for v in value]
        return made if isinstance(value, list) else tuple(made)
    if isinstance(value, dict):
        return {k: template(v, node_of) for k, v in value.items()}
    return None
