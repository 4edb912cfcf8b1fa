"""Geometric complexity by path length: which paths carry the sensitivity, and which cancel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..knobs import Lam
from ..results import check_count
from ..series import Series
from .batches import Channels, Inputs
from .estimate import CHUNK
from .graded import gram

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class ComplexityByLength:
    """GC = Σ_{a,b} ⟨∂v_a, ∂v_b⟩: v_k is the sum over paths through k branches, its gates held at their values.

    `products` (N, m, m) are the inner products of each sample, `value` the network's own GC. The sum of the products,
    `total`, is the GC of the network with frozen gates: the network's own where it is piecewise linear, else (GELU,
    norms, attention) without the part that comes from gates moving with the input.
    """

    products: Tensor
    value: float
    inputs: str
    longer: bool = False  # the last length stands for every longer path

    @property
    def lengths(self) -> list[str]:
        """A label a length: "0", "1", …, and ">K" for the last where it holds every longer path."""
        names = [str(k) for k in range(self.products.shape[1])]
        return [*names[:-1], f">{len(names) - 2}"] if self.longer else names

    @property
    def matrix(self) -> np.ndarray:
        """mean_x ⟨∂v_a, ∂v_b⟩, (lengths, lengths): on the diagonal each length's own complexity."""
        return self.products.mean(0).numpy()

    @property
    def total(self) -> float:
        """The sum of the matrix: the GC of the network with frozen gates."""
        return float(self.matrix.sum())

    def share(self) -> np.ndarray:
        """⟨∂v_k, ∂f⟩ of the frozen network as a share of its GC: they add up to 1, and may be negative."""
        return self.matrix.sum(1) / (self.total or 1.0)

    def table(self) -> pd.DataFrame:
        """A row a length: its own complexity ‖∂v_k‖², its products with all others, its share of the total."""
        import pandas as pd

        own = np.diag(self.matrix)
        columns = {
            "length": self.lengths,
            "own": own,
            "with_others": self.matrix.sum(1) - own,
            "share": self.share(),
        }
        return pd.DataFrame(columns)

    def plot(self, ax: Axes | None = None) -> Axes:
        """The matrix of inner products: red adds to the complexity, blue cancels."""
        from matplotlib import pyplot as plt

        ax = plt.subplots(figsize=(5.5, 4.5), layout="constrained")[1] if ax is None else ax
        most = float(np.abs(self.matrix).max()) or 1.0
        image = ax.imshow(self.matrix, cmap="RdBu_r", vmin=-most, vmax=most)
        places = np.arange(len(self.lengths))
        ax.set(xticks=places, yticks=places, xlabel="path length", ylabel="path length")
        ax.set_xticklabels(self.lengths)
        ax.set_yticklabels(self.lengths)
        ax.figure.colorbar(image, ax=ax, label="⟨∂v, ∂v'⟩")
        return ax

    def __repr__(self) -> str:
        return (
            f"ComplexityByLength({len(self.lengths)} lengths, {len(self.products)} samples: {self.total:.4g} with "
            f"frozen gates, the network {self.value:.4g})"
        )

    def _repr_html_(self) -> str:
        return f"<p>{self!r}</p>" + self.table().to_html(index=False)


def complexity_by_length(
    net: nn.Module,
    x: Any,
    *,
    max_length: int | None = None,
    lam: Lam | None = None,
    chunk_size: int = CHUNK,
    inputs: Inputs = "normalized",
    mean: Channels | None = None,
    std: Channels | None = None,
    progress: bool | None = None,
) -> ComplexityByLength:
    """The inner products mean_x ⟨∂v_a/∂x, ∂v_b/∂x⟩_F of path lengths a and b, whose sum is GC.

    f = Σ_k v_k as in `spectrum`; each v_k is differentiated with the gates (ReLU masks, GELU's factor, norms' σ,
    attention patterns) held at their values, those before the first branch too. The sum equals GC for piecewise linear
    networks; elsewhere compare `.total` with `.value`.

    max_length: lengths 0..max_length, and one for all that are longer. The rest as in `geometric_complexity` and
    `spectrum`. Cost: one run of the series, C·(lengths) backward passes, and GC itself.

    >>> import torch, pathsum as ps
    >>> net = ps.ResidualMLP(depth=3, width=4, in_features=3, seed=0).double()
    >>> g = ps.geometric_complexity.by_length(net, torch.ones(2, 3, dtype=torch.float64))
    >>> g.matrix.shape, abs(g.total / g.value - 1) < 1e-12
    ((4, 4), True)
    """
    if max_length is not None:
        check_count("max_length", max_length)
    overflow = max_length is not None

    def slots(branches: int) -> int:
        return branches + 1 if max_length is None else max_length + 2

    def variable(lams: list[float]) -> Series:
        weights = torch.tensor(lams, dtype=torch.float64)
        return Series.variable(slots(len(lams)) - 1, weights=weights, gated=True, overflow=overflow, still=True)

    found = gram(
        net,
        x,
        variable,
        slots,
        lam=lam,
        chunk_size=chunk_size,
        inputs=inputs,
        mean=mean,
        std=std,
        progress=progress,
        label="complexity by length",
    )
    return ComplexityByLength(found.products, float(found.own.mean()), found.inputs, overflow)
