"""Lengths of the paths through a network, counted in nonlinear units: of its structure, whatever the input."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from torch import nn

from ..errors import LambdaError, PathsumError
from ..knobs import Knobs, as_knobs
from ..values import Alpha
from .walk import Gates, Walk

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class PathLengths:
    """Histogram of path lengths: of a random walk from the output back to an input, and of all paths counted alike.

    `histogram[k]` is the chance that the walk passes k nonlinear units; `counts[k]` the number of paths that do, over
    all features of the output. The conventions: docs/lengths.md.
    """

    histogram: np.ndarray
    counts: tuple[int | Fraction, ...]
    num_units: int

    @property
    def mean(self) -> float:
        """NAPL, the normalized average path length."""
        return float(np.arange(len(self.histogram)) @ self.histogram)

    @property
    def std(self) -> float:
        """Standard deviation of the length on the walk."""
        k = np.arange(len(self.histogram))
        return math.sqrt(max(0.0, float((k - self.mean) ** 2 @ self.histogram)))

    @property
    def log_counts(self) -> np.ndarray:
        """Natural logarithms of the numbers of paths; −inf where there is none."""
        return np.array([log_of(c) for c in self.counts])

    @property
    def count_shares(self) -> np.ndarray:
        """Share of each length when every path counts alike, unnormalized."""
        total = sum(self.counts)
        return np.array([float(Fraction(c) / Fraction(total)) for c in self.counts])

    @property
    def mean_by_count(self) -> float:
        """Mean length when every path counts alike."""
        return float(np.arange(len(self.counts)) @ self.count_shares)

    def table(self) -> pd.DataFrame:
        """A row a length: chance on the walk, decimal logarithm of the number of paths, share of all paths."""
        import pandas as pd

        return pd.DataFrame(
            {
                "length": np.arange(len(self.histogram)),
                "share": self.histogram,
                "log10_paths": self.log_counts / math.log(10),
                "share_of_paths": self.count_shares,
            }
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """The chance of each length, and the share of each among all paths."""
        from matplotlib import pyplot as plt
        from matplotlib.ticker import MaxNLocator

        ax = plt.subplots(figsize=(6, 4), layout="constrained")[1] if ax is None else ax
        k = np.arange(len(self.histogram))
        ax.bar(k, self.histogram, color="#9ecae1", label="random walk")
        ax.step(k, self.count_shares, where="mid", color="#b2182b", lw=1, label="every path alike")
        ax.axvline(self.mean, color="#3182bd", ls="--", label=f"mean of the walk {self.mean:.2f}")
        ax.set(xlabel="path length (nonlinear units passed)", ylabel="share of paths")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.legend()
        return ax

    def __repr__(self) -> str:
        lengths = np.flatnonzero(self.histogram)
        return (
            f"PathLengths({self.num_units} units: normalized average path length {self.mean:.4g}, standard deviation "
            f"{self.std:.3g}, lengths {lengths[0]} to {lengths[-1]})"
        )

    def _repr_html_(self) -> str:
        return f"<p>{self!r}</p>" + self.table().to_html(index=False)


def log_of(count: int | Fraction) -> float:
    """log of a number that may be too large for a float."""
    if count == 0:
        return -math.inf
    exact = Fraction(count)
    return math.log(exact.numerator) - math.log(exact.denominator)


def path_lengths(
    net: nn.Module, *inputs: Any, alpha: Alpha | None = None, gates: Gates = "half", **kwargs: Any
) -> PathLengths:
    """The histogram of path lengths, by generating functions over the graph of the calls.

    A walk starts at a random feature of the output and goes back to an input: ½ at each join, uniform over the inputs
    of a layer's unit, over the channels of a concatenation. It counts the nonlinear units it passes, those whose α is
    not exactly 1. Every tensor carries Σ_k P(length k) t^k for each of its features: a layer averages over its inputs,
    a join over its operands, a unit multiplies by t; so does the number of paths, with sums for averages. A post-add
    unit on a skip keeps the channel. The same for every input; for the lengths of one input see `unit_spectrum`.

    alpha: as in `net(x, alpha=…)`, one for each of `net.units` (a number, a vector along channels, a value for each
    element); default 0, every unit nonlinear. gates: at a product of two tensors of the input "half" goes through
    either with chance ½, "value" through what is gated alone (docs/lengths.md). A model without knobs needs `inputs`.

    Raises `LambdaError` for a wrong α, `MissingRuleError` for a function without a convention, `PathsumError` where
    there are no units. Post-training linearization's NAPL; costs no pass of the model.

    >>> import torch, pathsum as ps
    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 4), torch.nn.ReLU())
    >>> lengths = ps.path_lengths(net, torch.zeros(1, 3), alpha=[0.0, torch.tensor([1.0, 1.0, 1.0, 0.0])])
    >>> lengths.histogram.tolist(), lengths.mean, lengths.counts
    ([0.0, 0.75, 0.25], 1.25, (0, 36, 12))
    """
    knobbed = with_units(net, inputs, kwargs, gates)
    values = knobbed.check_alpha(0.0 if alpha is None else alpha)
    assert values is not None
    return PathLengths(
        shares(knobbed, Walk(knobbed.anatomy, values, gates=gates, exact=False)),
        numbers(Walk(knobbed.anatomy, values, gates=gates, exact=True)),
        len(knobbed.units),
    )


def average_path_length(
    net: nn.Module, *inputs: Any, alpha: Alpha | None = None, gates: Gates = "half", **kwargs: Any
) -> float:
    """NAPL, the mean number of nonlinear units on a random path: the mean of `path_lengths`, whose options it takes.

    On a plain chain it is Σ_l p_l, p_l the share of nonlinear channels of layer l.

    >>> import torch, pathsum as ps
    >>> net = ps.knobs(ps.ResidualMLP(depth=4, width=3, in_features=2, seed=0), torch.zeros(1, 2))
    >>> ps.average_path_length(net), ps.average_path_length(net, alpha=[0, 0, 1, 1])
    (2.0, 1.0)
    """
    knobbed = with_units(net, inputs, kwargs, gates)
    values = knobbed.check_alpha(0.0 if alpha is None else alpha)
    assert values is not None
    histogram = shares(knobbed, Walk(knobbed.anatomy, values, gates=gates, exact=False))
    return float(np.arange(len(histogram)) @ histogram)


def with_units(net: nn.Module, inputs: tuple, kwargs: dict[str, Any], gates: str) -> Knobs:
    """The net with its knobs; refuses one without units, and options that are none."""
    if gates not in get_args(Gates):
        raise LambdaError(f"gates={gates!r}: give 'half' or 'value'")
    if not isinstance(net, Knobs) and not inputs and not kwargs:
        raise PathsumError(
            f"{type(net).__name__} has no knobs: give example inputs too, or ps.knobs(model, x) in its place"
        )
    knobbed = as_knobs(net, inputs, kwargs)
    if not knobbed.units:
        raise PathsumError(
            f"{type(knobbed.model).__name__} has no nonlinear units (calls of ReLU, GELU, …): all its paths have length 0"
        )
    return knobbed


def shares(net: Knobs, walk: Walk) -> np.ndarray:
    """The histogram of the walk, from a random feature of the output."""
    end = walk.run()
    poly = end.gathered(dict.fromkeys(range(len(end.shape)), 1)).reshape(-1)
    if not poly.any():
        raise PathsumError(f"no path leads from an input of {type(net.model).__name__} to its output")
    return trimmed(poly / poly.sum())


def numbers(walk: Walk) -> tuple[int | Fraction, ...]:
    """The numbers of paths to all features of the output."""
    end = walk.run()
    poly = end.gathered({axis: end.size(axis) for axis in range(len(end.shape))}).reshape(-1)
    return tuple(int(c) if isinstance(c, int) else c for c in trimmed(poly))


def trimmed(poly: np.ndarray) -> np.ndarray:
    """Without the zeros of lengths that no path has."""
    return poly[: int(np.flatnonzero(poly)[-1]) + 1]
