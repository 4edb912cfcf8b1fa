"""The exact spectrum of path lengths: gates frozen at the real forward pass, the network is a polynomial."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from .by_length import ByLength
from .errors import LambdaError
from .knobs import Lam
from .paths import path_counts
from .results import check_count, run_series
from .rules.recompute import CHOICES
from .series import Series

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Spectrum(ByLength):
    """f(x) = Σ_k v_k(x): v_k is the sum over all paths through exactly k residual branches, λ included.

    `terms` (n+1, batch, …), or (max_length+2, batch, …) with the last slot every longer path; `output` (batch, …) is
    the network's own, and `conservation` how far the sum is from it.
    """

    terms: Tensor
    output: Tensor
    num_branches: int
    longer: bool = False  # the last slot sums every longer path

    counted: ClassVar[str] = "residual branches"

    def table(self, y: Tensor | Sequence[int] | None = None) -> pd.DataFrame:
        """A row a length: number of branch subsets, root-mean-square norm, share of energy, accuracy so far."""
        import pandas as pd

        counts = path_counts(self.num_branches)
        m = len(self.terms)
        paths = [counts[k] if k < len(counts) else 0 for k in range(m)]
        if self.longer:
            paths[-1] = sum(counts[m - 1 :])
        table = super().table(y)
        table.insert(1, "paths", pd.Series(paths, dtype=object))
        return table

    def __repr__(self) -> str:
        return (
            f"Spectrum({self.num_branches} branches, {self.output.shape[0]} samples: mean path length "
            f"{'≥ ' if self.longer else ''}{self.mean_length():.2f}, sum off by {self.conservation:.1e})"
        )


def recomputable(names: str | Collection[str]) -> frozenset[str]:
    """The option `recompute` as a set; raises `LambdaError` for anything unknown."""
    chosen = (names,) if isinstance(names, str) else names
    if not isinstance(chosen, Collection) or any(name not in CHOICES for name in chosen):
        raise LambdaError(f"recompute={names!r}: give 'norm', 'attention', both in a list, or () to freeze everything")
    return frozenset(chosen)


def spectrum(
    net: nn.Module,
    *inputs: Any,
    max_length: int | None = None,
    recompute: str | Collection[str] = (),
    lam: Lam | None = None,
    chunk_size: int | None = None,
    progress: bool | None = None,
    **kwargs: Any,
) -> Spectrum:
    """Split a residual network's output by path length, exactly.

    With every gate frozen at its value in the real forward pass each branch is affine, Fᵢ(z) = Aᵢz + cᵢ, and
    v_k ← v_k + λᵢ(Aᵢ v_{k−1} + [k=1] cᵢ) gives Σ_k v_k = f(x): 2ⁿ paths by length in at most n²/2 branch applications.
    ReLU, GELU and the like are a·g(a) with g frozen; LayerNorm freezes σ; attention its pattern; max-pool its winner.

    max_length: keep lengths 0..max_length, and one slot that sums every longer path exactly (cost max_length+2
    branches a block instead of up to n+1). recompute: "norm", "attention" or both are not frozen but taken at the sum
    of the paths up to each length, as if longer ones were deleted (docs/semantics.md). lam, chunk_size, inputs and
    errors: as in `expand`; autocast is off inside. The unravelled view of Veit et al. (2016, arXiv 1605.06431), made
    exact.

    >>> import torch, pathsum as ps
    >>> net = ps.ResidualMLP(depth=3, width=3, in_features=3, seed=0).double()
    >>> s = ps.spectrum(net, torch.ones(2, 3, dtype=torch.float64))
    >>> tuple(s.terms.shape), s.conservation < 1e-14
    ((4, 2, 10), True)
    """
    if max_length is not None:
        check_count("max_length", max_length)
    overflow = max_length is not None
    recomputed = recomputable(recompute)

    def variable(lams: list[float], carry: bool) -> Series:
        order = len(lams) if max_length is None else max_length + 1
        weights = torch.tensor(lams, dtype=torch.float64)
        return Series.variable(order, weights=weights, gated=True, overflow=overflow, recompute=recomputed)

    knobbed, _, output, terms = run_series(
        net,
        inputs,
        kwargs,
        variable=variable,
        carry=False,  # the sum of the lengths is checked against a run of its own
        lam=lam,
        chunk_size=chunk_size,
        progress=progress,
        label="spectrum",
    )
    return Spectrum(terms, output, len(knobbed.branches), overflow)
