"""Geometric complexity as a polynomial in λ (Corollary B.0.1, to any order)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import LambdaError
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
class ComplexityByOrder:
    """GC(f) = Σ_k g_k λ^k with g_k = mean_x Σ_{a+b=k} ⟨∂M_a/∂x, ∂M_b/∂x⟩_F.

    `coefficients` holds g_0..g_{2·order}. Those with k ≤ order are GC's own. Those above are of the network cut after
    `order`, Σ_{a≤order} λ^a M_a, whose GC is this polynomial exactly; GC's own would need M_a up to a = k.
    `products` (N, order+1, order+1) are the inner products a sample, `lam` the λ in force, `value` the network's GC
    there. With per-branch λ (`weights` set) the coefficients carry their products and `lam` is 1.
    """

    products: Tensor
    lam: float
    value: float
    inputs: str
    weights: Tensor | None = None

    @property
    def order(self) -> int:
        return self.products.shape[1] - 1

    def per_sample(self) -> Tensor:
        """Σ_{a+b=k} ⟨∂M_a, ∂M_b⟩ of each sample, (2·order+1, N), float64."""
        m = self.order + 1
        sums = self.products.new_zeros(2 * m - 1, len(self.products))
        for a in range(m):
            sums[a : a + m] += self.products[:, a].T
        return sums

    @property
    def coefficients(self) -> np.ndarray:
        """g_k, k = 0..2·order."""
        return self.per_sample().mean(1).numpy()

    @property
    def exact(self) -> np.ndarray:
        """Which of them are coefficients of the network's own GC: k ≤ order."""
        return np.arange(2 * self.order + 1) <= self.order

    def at(self, lam: float, *, order: int | None = None) -> float:
        """Σ_{k≤order} g_k λ^k; without `order` all of them, the GC of the network cut after `self.order`."""
        last = 2 * self.order if order is None else order
        if not 0 <= last <= 2 * self.order:
            raise LambdaError(f"order {order} was not computed: there are coefficients 0..{2 * self.order}")
        return float(np.polynomial.polynomial.polyval(lam, self.coefficients[: last + 1]))

    @property
    def errors(self) -> np.ndarray:
        """|Σ_{j≤k} g_j λ^j − GC| / GC at the λ in force, k = 0..2·order."""
        sums = np.array([self.at(self.lam, order=k) for k in range(2 * self.order + 1)])
        return np.abs(sums - self.value) / (self.value or 1.0)

    def table(self) -> pd.DataFrame:
        """A row a power of λ: g_k with its standard error, g_k λ^k, whether g_k is GC's own, the error so far."""
        import pandas as pd

        each, k = self.per_sample(), np.arange(2 * self.order + 1)
        n = each.shape[1]
        return pd.DataFrame(
            {
                "power": k,
                "coefficient": self.coefficients,
                "stderr": each.std(1).numpy() / math.sqrt(n) if n > 1 else np.full(len(k), np.nan),
                "contribution": self.coefficients * self.lam**k,
                "exact": self.exact,
                "error": self.errors,
            }
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """What each power of λ adds to the complexity; paler where it is of the cut network only."""
        from matplotlib import pyplot as plt
        from matplotlib.ticker import MaxNLocator

        ax = plt.subplots(figsize=(6, 4), layout="constrained")[1] if ax is None else ax
        k = np.arange(2 * self.order + 1)
        colors = ["#3182bd" if own else "#c6dbef" for own in self.exact]
        ax.bar(k, self.coefficients * self.lam**k, color=colors, label="gₖλᵏ (pale: of the cut network)")
        ax.axhline(self.value, color="#b2182b", ls="--", label=f"the network, {self.value:.4g}")
        ax.axhline(0, color="#59636e", lw=0.8)
        ax.set(xlabel="power of λ", ylabel="geometric complexity", title=f"at λ = {self.lam:.4g}")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.legend()
        return ax

    def __repr__(self) -> str:
        return (
            f"ComplexityByOrder({self.value:.4g} at λ={self.lam:.4g}, {len(self.products)} samples: powers 0.."
            f"{self.order} give {self.at(self.lam, order=self.order):.4g}, the cut network {self.at(self.lam):.4g})"
        )

    def _repr_html_(self) -> str:
        return f"<p>{self!r}</p>" + self.table().to_html(index=False)


def complexity_by_order(
    net: nn.Module,
    x: Any,
    order: int = 2,
    *,
    lam: Lam | None = None,
    chunk_size: int = CHUNK,
    inputs: Inputs = "normalized",
    mean: Channels | None = None,
    std: Channels | None = None,
    progress: bool | None = None,
) -> ComplexityByOrder:
    """Coefficients of geometric complexity in λ: GC(f) = Σ_k λ^k mean_x Σ_{a+b=k} ⟨∂M_a, ∂M_b⟩.

    Of f = Σ_k λ^k M_k (Eq. 4, as in `expand`), so that order 1 is Corollary B.0.1,
    `GC(M_0) + 2λ mean Tr((W_η E')ᵀ Σᵢ W_η Fᵢ'(E) E')`. Exact for k ≤ order; the powers up to 2·order that come with
    them are those of the network cut after `order`. At kinks (ReLU) coefficients are for λ → 0⁺.

    net, lam: as in `expand`; the other options as in `geometric_complexity`. Cost: one run of the series and
    C·(order+1) backward passes through it, and GC itself. Raises `ModeError`, `MissingRuleError`, `NoJoinsError`.

    >>> import torch, pathsum as ps
    >>> net = ps.ResidualMLP(depth=2, width=3, in_features=3, activation="tanh", scale=0.1, seed=0).double()
    >>> g = ps.geometric_complexity.by_order(net, torch.ones(4, 3, dtype=torch.float64), order=2)
    >>> len(g.coefficients), g.exact.tolist(), bool(g.errors[2] < g.errors[1] < g.errors[0])
    (5, [True, True, True, False, False], True)
    """
    check_count("order", order)

    def variable(lams: list[float]) -> Series:
        uniform = len(set(lams)) == 1
        # λ < 0 expands for λ → 0⁻: the signs go into the weights, so that kinks take the right side.
        weights = [math.copysign(1.0, lams[0])] * len(lams) if uniform else lams
        return Series.variable(order, weights=torch.tensor(weights, dtype=torch.float64))

    found = gram(
        net,
        x,
        variable,
        lambda branches: order + 1,
        lam=lam,
        chunk_size=chunk_size,
        inputs=inputs,
        mean=mean,
        std=std,
        progress=progress,
        label="complexity by order",
    )
    products, lams = found.products, found.lams
    value = float(found.own.mean())
    if len(set(lams)) > 1:
        return ComplexityByOrder(products, 1.0, value, found.inputs, torch.tensor(lams, dtype=torch.float64))
    if math.copysign(1.0, lams[0]) < 0:
        signs = (-1.0) ** torch.arange(order + 1, dtype=torch.float64)
        products = products * signs[:, None] * signs
    return ComplexityByOrder(products, lams[0], value, found.inputs)
