"""Matrix products on a walk: it goes through the factor that is no weight, uniform over what is contracted."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..flow import Ref
from .state import State


def contracted(x: State, other: Any, other_shape: tuple[int, ...], side: int, shape: tuple[int, ...]) -> State:
    """x @ other (side 0) or other @ x (side 1).

    A factor that comes from no input is a layer's weight: all it contracts are inputs of a unit, and what it makes are
    features. Another is a pattern, which mixes positions.
    """
    weight = not isinstance(other, Ref)
    last = len(x.shape) - 1
    axis = last if side == 0 or last == 0 else last - 1
    poly = x.gathered({axis: x.shape[axis] if weight else x.size(axis)})
    feature = [f or (weight and a == axis) for a, f in enumerate(x.feature)]
    feature[axis] = weight
    if len(other_shape) == 1 or last == 0:  # the contracted axis is gone
        keep = [a for a in range(len(x.shape)) if a != axis]
        poly, feature = poly.squeeze(axis), [feature[a] for a in keep]
        if len(other_shape) > 1:  # a vector times a matrix makes a vector
            poly, feature = np.expand_dims(poly, -2), [*feature, weight]
    made = x.made(poly, (1,) * len(feature), feature).aligned(len(shape))
    return x.made(made.poly, shape, made.feature)


def einsum_axes(x: State, equation: str, side: int, shape: tuple[int, ...], *, weighted: bool) -> State:
    """The operand number `side` of an einsum, written with an arrow or without."""
    terms, arrow, out = equation.replace(" ", "").partition("->")
    letters = terms.split(",")
    if not arrow:
        every = "".join(letters)
        out = "".join(sorted(c for c in set(every) if every.count(c) == 1))
    own = letters[side]
    gone = [a for a, c in enumerate(own) if c not in out]
    poly = x.gathered({a: x.shape[a] if weighted else x.size(a) for a in gone})
    kept = [a for a, c in enumerate(own) if c in out]
    poly = poly.squeeze(tuple(gone))
    order = sorted(range(len(kept)), key=lambda i: out.index(own[kept[i]]))
    poly = poly.transpose(*order, len(kept))
    feature = []
    for position, c in enumerate(out):
        if c in own:
            feature.append(x.feature[own.index(c)])
        else:
            poly = np.expand_dims(poly, position)
            feature.append(weighted)
    return x.made(poly, shape, feature)


def attended(value: State, shape: tuple[int, ...]) -> State:
    """softmax(…) @ value: the pattern is a weight over tokens; heads of values may serve several of queries."""
    tokens = len(value.shape) - 2
    poly = value.gathered({tokens: value.size(tokens)})
    feature = list(value.feature)
    feature[tokens] = False
    heads = len(shape) - 3
    if heads >= 0 and poly.shape[heads] not in (1, shape[heads]):
        poly = np.repeat(poly, shape[heads] // poly.shape[heads], heads)
    return value.made(poly, shape, feature)


def multi_head(value: State, shape: tuple[int, ...]) -> State:
    """`nn.MultiheadAttention`: the value projection, the pattern over tokens, the output projection."""
    last, width = len(value.shape) - 1, value.shape[-1]
    mixed = value.made(value.gathered({last: width}), value.shape, value.feature)
    poly = mixed.gathered({last: shape[-1]})
    return value.made(poly, shape, (*(False,) * last, True))
