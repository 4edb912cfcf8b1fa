"""A residual network is a sum over paths: see the sum, and turn the knobs on it.

Every residual branch carries λ, every nonlinear unit carries α; everything here is something done with those two.
"""

from .anatomy import anatomy
from .coefficients import Space
from .errors import PathsumError
from .expansion import Expansion, Verdict, expand
from .jets import jet
from .knobs import Knobs, knobs
from .merging import Merged, merge
from .nets import ResidualMLP, ResidualTower, affine_base
from .paths import path_counts, path_energy
from .rules import register_rule
from .scaling import Rule, parse_rule, rescale
from .series import Series
from .sites import Anatomy, Branch, Unit
from .spectrum import Spectrum, spectrum
from .train import FitResult, TrainConfig, fit

__version__ = "0.1.0"

__all__ = [  # noqa: RUF022  (grouped by what one does with the knobs)
    # the knobs on any model
    "knobs",
    "Knobs",
    "anatomy",
    "Anatomy",
    "Branch",
    "Unit",
    # λ as a rule
    "rescale",
    "parse_rule",
    "Rule",
    # λ as a formal variable
    "expand",
    "Expansion",
    "Verdict",
    "jet",
    "spectrum",
    "Spectrum",
    "Series",
    "Space",
    "register_rule",
    # α = 1: fewer layers
    "merge",
    "Merged",
    # counting paths
    "path_counts",
    "path_energy",
    # networks, and training them
    "ResidualTower",
    "ResidualMLP",
    "affine_base",
    "fit",
    "FitResult",
    "TrainConfig",
    "PathsumError",
]
