"""A residual network is a sum over paths: see the sum, and turn the knobs on it.

Every residual branch carries λ, every nonlinear unit carries α; everything here is something done with those two.
"""

from .anatomy import anatomy
from .coefficients import Space
from .complexity import GeometricComplexity, geometric_complexity
from .errors import PathsumError
from .expansion import Expansion, Verdict, expand
from .grow import Growth, grow
from .jets import jet
from .knobs import Knobs, knobs
from .lengths import PathLengths, average_path_length, path_lengths
from .linearize import Linearized, linearize
from .merging import Merged, merge
from .nets import ResidualMLP, ResidualTower, affine_base
from .observe import LightningObserver, Observer, TrainerObserver
from .paths import path_counts, path_energy
from .rules import register_rule
from .scaling import Rule, parse_rule, rescale
from .series import Series
from .shrink import Shrinkage, shrink
from .sites import Anatomy, Branch, Unit
from .spectrum import Spectrum, spectrum
from .train import FitResult, TrainConfig, fit
from .unit_spectrum import UnitSpectrum, unit_spectrum

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
    # λ at zero: other depths
    "grow",
    "Growth",
    "shrink",
    "Shrinkage",
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
    # how much the output changes with the input
    "geometric_complexity",
    "GeometricComplexity",
    # α learned: linear units
    "linearize",
    "Linearized",
    # α = 1: fewer layers
    "merge",
    "Merged",
    # counting paths
    "path_counts",
    "path_energy",
    "path_lengths",
    "average_path_length",
    "PathLengths",
    "unit_spectrum",
    "UnitSpectrum",
    # networks, and training them
    "ResidualTower",
    "ResidualMLP",
    "affine_base",
    "fit",
    "FitResult",
    "TrainConfig",
    "Observer",
    "LightningObserver",
    "TrainerObserver",
    "PathsumError",
]
