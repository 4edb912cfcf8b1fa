"""Geometric complexity, mean_x ‖∂f/∂x‖_F²: of any model, as a regularizer, by order in λ and by path length."""

from .estimate import geometric_complexity
from .result import GeometricComplexity

__all__ = ["GeometricComplexity", "geometric_complexity"]
