"""Networks to study: the paper's convolutional tower, and the same with dense branches."""

from pathsum.nets.mlp import ResidualMLP, affine_base
from pathsum.nets.tower import OptionError, ResidualTower

__all__ = ["OptionError", "ResidualMLP", "ResidualTower", "affine_base"]
