"""An output split into terms by the length of paths: shares, means and accuracies, whatever the length counts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from .results import accuracy_of, relative_error

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


class ByLength:
    """What `Spectrum` and `UnitSpectrum` share: `terms` (lengths, batch, …) that sum to `output` (batch, …)."""

    terms: Tensor
    output: Tensor
    longer: bool
    counted: ClassVar[str]  # what a length counts

    @property
    def lengths(self) -> list[str]:
        """A label a slot: "0", "1", …, and ">K" for the last where it holds every longer path."""
        names = [str(k) for k in range(len(self.terms))]
        return [*names[:-1], f">{len(names) - 2}"] if self.longer else names

    @cached_property
    def conservation(self) -> float:
        """‖Σ_k v_k − f‖/‖f‖ over the whole batch: rounding."""
        return relative_error(self.terms.double().sum(0), self.output)

    def energy(self) -> Tensor:
        """‖v_k‖² per sample, (lengths, batch), float64."""
        return self.terms.double().flatten(2).square().sum(2) if self.terms.ndim > 2 else self.terms.double().square()

    def share(self) -> np.ndarray:
        """Share of each length in Σ_k ‖v_k‖², summed over samples."""
        total = self.energy().sum(1)
        return (total / total.sum()).cpu().numpy()

    def mean_length(self) -> float:
        """Mean length of a path, paths weighted by energy: Σ k‖v_k‖²/Σ‖v_k‖².

        The slot of longer paths counts as its least length, so the mean is then a lower bound.
        """
        return float(np.arange(len(self.terms)) @ self.share())

    def per_sample(self) -> pd.DataFrame:
        """A row a sample: its mean path length, and the share of each length in its energy."""
        import pandas as pd

        energy = self.energy()
        share = (energy / energy.sum(0).clamp_min(torch.finfo(torch.float64).tiny)).T.cpu().numpy()
        table = pd.DataFrame(share, columns=pd.Index([f"length {name}" for name in self.lengths]))
        table.insert(0, "mean_length", share @ np.arange(share.shape[1]))
        table.index.name = "sample"
        return table

    def accuracy(self, y: Tensor | Sequence[int]) -> np.ndarray:
        """Accuracy by longest path: of Σ_{j≤k} v_j for k = 0, 1, …, against labels y (batch,)."""
        return accuracy_of(self.terms.cumsum(0), y)

    def table(self, y: Tensor | Sequence[int] | None = None) -> pd.DataFrame:
        """A row a length: root-mean-square norm, share of energy, accuracy so far."""
        import pandas as pd

        table = pd.DataFrame(
            {
                "length": self.lengths,
                "norm": self.energy().mean(1).sqrt().cpu().numpy(),
                "share": self.share(),
            }
        )
        if y is not None:
            table["accuracy"] = self.accuracy(y)
        return table

    def plot(self, ax: Axes | None = None, *, y: Tensor | Sequence[int] | None = None) -> Axes:
        """Share of each path length; with labels, the accuracy of paths up to that length beside it."""
        from matplotlib import pyplot as plt
        from matplotlib.ticker import MaxNLocator

        ax = plt.subplots(figsize=(6, 4), layout="constrained")[1] if ax is None else ax
        k = np.arange(len(self.terms))
        ax.bar(k, self.share(), color="#9ecae1", label="share of energy")
        ax.axvline(self.mean_length(), color="#3182bd", ls="--", label=f"mean length {self.mean_length():.1f}")
        ax.set(xlabel=f"path length ({self.counted} passed)", ylabel="share of ‖v‖²")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        lines = ax.get_legend_handles_labels()
        if y is not None:
            right = ax.twinx()
            right.plot(k, 100 * self.accuracy(y), "o-", color="#b2182b", ms=3, label="accuracy of paths up to here")
            right.set(ylabel="accuracy (%)", ylim=(0, 100))
            more = right.get_legend_handles_labels()
            lines = (lines[0] + more[0], lines[1] + more[1])
        ax.legend(*lines, loc="center right")
        return ax

    def _repr_html_(self) -> str:
        return f"<p>{self!r}</p>" + self.table().to_html(index=False)
