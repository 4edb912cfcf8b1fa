"""Networks to study: the paper's convolutional tower, and the same with dense branches."""

from pathsum.nets.checkpointing import checkpointed
from pathsum.nets.memory import Memory, saving
from pathsum.nets.mlp import ResidualMLP, affine_base
from pathsum.nets.plain import PlainNet, RepVGG
from pathsum.nets.reversible import reversible
from pathsum.nets.tower import OptionError, ResidualTower

__all__ = [
    "Memory",
    "OptionError",
    "PlainNet",
    "RepVGG",
    "ResidualMLP",
    "ResidualTower",
    "affine_base",
    "checkpointed",
    "reversible",
    "saving",
]
