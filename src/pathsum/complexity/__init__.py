"""Geometric complexity, mean_x ‖∂f/∂x‖_F²: of any model, as a regularizer, by order in λ and by path length."""

from __future__ import annotations

from functools import update_wrapper

from .estimate import geometric_complexity as _of
from .lengths import ComplexityByLength, complexity_by_length
from .orders import ComplexityByOrder, complexity_by_order
from .penalty import penalty
from .result import GeometricComplexity


class _Callable:
    """The function, with its relatives on it."""

    __call__ = staticmethod(_of)
    by_order = staticmethod(complexity_by_order)
    by_length = staticmethod(complexity_by_length)
    penalty = staticmethod(penalty)

    def __repr__(self) -> str:
        return "<function geometric_complexity, with .by_order, .by_length and .penalty>"


geometric_complexity = _Callable()
update_wrapper(geometric_complexity, _of)

__all__ = ["ComplexityByLength", "ComplexityByOrder", "GeometricComplexity", "geometric_complexity", "penalty"]
