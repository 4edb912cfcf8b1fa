"""What a tensor of the run carries on the walk: a polynomial in t for each of its features, t for a nonlinear unit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class State:
    """Polynomials of paths from an input to a tensor, (*axes, L): coefficient k is of the paths through k units.

    An axis is as long as the tensor's where it holds features, and 1 where all along it are alike. Positions (the
    batch, pixels, tokens) are not told apart. Without a path the polynomial is 0; else its coefficients sum to 1, or
    with `exact` count paths in integers.
    """

    poly: np.ndarray
    shape: tuple[int, ...]  # of the tensor
    feature: tuple[bool, ...]  # of each axis: whether it holds features
    exact: bool = False

    @classmethod
    def source(cls, shape: tuple[int, ...], *, exact: bool, feature: tuple[bool, ...] | None = None) -> State:
        """An input: the one path of length 0 to each element."""
        ones = np.ones((1,) * (len(shape) + 1), dtype=object if exact else np.float64)
        return cls(ones, shape, feature or (False,) * len(shape), exact)

    @classmethod
    def nothing(cls, shape: tuple[int, ...], *, exact: bool) -> State:
        """A constant: no path leads here from an input."""
        start = cls.source(shape, exact=exact)
        return replace(start, poly=start.poly * 0)

    def made(self, poly: np.ndarray, shape: Sequence[int], feature: Sequence[bool]) -> State:
        """The state of another tensor, axes along which all are alike made short."""
        for axis in range(poly.ndim - 1):
            if poly.shape[axis] > 1:
                first = poly[(slice(None),) * axis + (slice(0, 1),)]
                poly = first if bool((poly == first).all()) else poly
        return State(poly, tuple(shape), tuple(feature), self.exact)

    def aligned(self, ndim: int) -> State:
        """With singleton axes in front, as tensors broadcast."""
        gap = ndim - len(self.shape)
        if gap <= 0:
            return self
        poly = self.poly.reshape(*(1,) * gap, *self.poly.shape)
        return replace(self, poly=poly, shape=(1,) * gap + self.shape, feature=(False,) * gap + self.feature)

    def times_t(self, share: Any) -> State:
        """A unit whose `share` is nonlinear, the rest linear: (1 − share + share·t)·P."""
        zero = np.zeros_like(self.poly[..., :1])
        stay, go = np.concatenate([self.poly, zero], -1), np.concatenate([zero, self.poly], -1)
        if not isinstance(share, np.ndarray):
            return self.made(go, self.shape, self.feature) if share else self
        if self.exact:
            share = as_exact(share)
        feature = [f or share.shape[a] > 1 for a, f in enumerate(self.feature)]
        share = share[..., None]
        return self.made(stay * (1 - share) + go * share, self.shape, feature)

    def gathered(self, inputs: Mapping[int, int]) -> np.ndarray:
        """A layer that reads all along some axes: the mean (the sum) over as many inputs, axes kept as 1."""
        axes = tuple(inputs)
        if not axes:
            return self.poly
        total = self.poly.sum(axis=axes, keepdims=True)
        if self.exact:
            alike = math.prod(n for axis, n in inputs.items() if self.poly.shape[axis] == 1)
            return total * alike
        return total / np.maximum(alive(self.poly).sum(axis=axes, keepdims=True), 1)[..., None]

    def without_positions(self) -> State:
        """Axes that hold no features averaged over what is reached by a path at all."""
        axes = tuple(a for a, kept in enumerate(self.feature) if not kept and self.poly.shape[a] > 1)
        return self if not axes else replace(self, poly=mean_of_alive(self.poly, axes, exact=self.exact))

    def size(self, axis: int) -> int:
        """Features along an axis: 1 for positions."""
        return self.shape[axis] if self.feature[axis] else 1

    def expanded(self) -> np.ndarray:
        """The polynomials with every axis of features at full length."""
        return np.broadcast_to(self.poly, (*(self.size(a) for a in range(len(self.shape))), self.poly.shape[-1]))


def alive(poly: np.ndarray) -> np.ndarray:
    """Where there is a path at all."""
    return (poly != 0).any(-1)


def mean_of_alive(poly: np.ndarray, axes: tuple[int, ...], *, exact: bool) -> np.ndarray:
    total, number = poly.sum(axis=axes, keepdims=True), alive(poly).sum(axis=axes, keepdims=True)
    number = np.maximum(number, 1)[..., None]
    return total / number if not exact else as_exact(total, number)


def as_exact(numbers: np.ndarray, divisor: Any = 1) -> np.ndarray:
    """numbers/divisor as Python integers, or fractions where they are none."""

    def divide(a: Any, b: Any) -> Any:
        value = Fraction(a) / Fraction(int(b))
        return value.numerator if value.denominator == 1 else value

    return np.asarray(np.frompyfunc(divide, 2, 1)(numbers, divisor), dtype=object)


def padded(polys: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Polynomials brought to one number of coefficients."""
    most = max(p.shape[-1] for p in polys)
    return [np.concatenate([p, np.zeros((*p.shape[:-1], most - p.shape[-1]), p.dtype)], -1) for p in polys]


def joined(states: Sequence[State], shape: tuple[int, ...]) -> State:
    """A sum of tensors: each with equal chance among those that a path reaches; or all paths of all of them."""
    states = [s.aligned(len(shape)) for s in states]
    polys = padded([s.poly for s in states])
    feature = tuple(any(s.feature[a] for s in states) for a in range(len(shape)))
    total = sum(polys[1:], polys[0])
    if not states[0].exact:
        total = total / np.maximum(sum(alive(p).astype(int) for p in polys), 1)[..., None]
    return states[0].made(total, shape, feature).without_positions()
