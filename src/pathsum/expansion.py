"""The Residual Expansion Theorem (Theorem 3.1), to any order: run the network with λ a formal variable."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from .errors import LambdaError
from .knobs import Lam
from .results import accuracy_of, check_count, relative_error, run_series
from .series import Series

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


class Verdict(str):
    """What the partial sums do: "converged", "plateaued" or "diverging", with `.reason` and `.errors` behind it."""

    reason: str
    errors: tuple[float, ...]

    def __new__(cls, label: str, reason: str, errors: Sequence[float]) -> Verdict:
        self = super().__new__(cls, label)
        self.reason = reason
        self.errors = tuple(errors)
        return self


def judge(errors: Sequence[float], floor: float) -> Verdict:
    """A verdict from the relative errors of the partial sums, order by order.

    diverging: the last error is over 1.5 times the least. converged: it is at rounding (`floor`), or the least so far
    and still halving every order or two. plateaued: anything else; for a piecewise-linear network that is a sum which
    converged to another function, since gates flip between λ = 0 and λ.
    """
    e = list(errors)
    last, least = e[-1], min(e)
    if not math.isfinite(last):
        return Verdict("diverging", f"the partial sums overflow at order {len(e) - 1}", e)
    if last <= floor:
        return Verdict("converged", f"error {last:.2g} at order {len(e) - 1} is rounding (below {floor:.1g})", e)
    if len(e) == 1:
        return Verdict("plateaued", f"error {last:.2g} at order 0; one order shows no trend: ask for more", e)
    if last > 1.5 * least:
        best = e.index(least)
        return Verdict("diverging", f"error {last:.2g} at order {len(e) - 1}, after {least:.2g} at order {best}", e)
    ratio = last / e[-2]
    if last == least and (ratio <= 0.5 or (len(e) > 2 and last <= 0.5 * e[-3])):
        return Verdict("converged", f"error {last:.2g} at order {len(e) - 1}, falling ×{ratio:.2g} at the last", e)
    return Verdict(
        "plateaued",
        f"error {last:.2g} at order {len(e) - 1}, ×{ratio:.2g} at the last order: more do not bring the network",
        e,
    )


@dataclass(frozen=True, eq=False)
class Expansion:
    """f(x) = Σ_{k≤K} λ^k M_k(x) + remainder (Eq. 4, to order K).

    `terms` (order+1, batch, …) are the unscaled M_k, `lam` the λ in force, `output` (batch, …) the network's, computed
    in the same run (so equal to `net(x)` to rounding).
    With per-branch λ (`weights` set) the formal variable scales them all: `terms` carry their products and `lam` is 1.
    """

    terms: Tensor
    lam: float
    output: Tensor
    weights: Tensor | None = field(default=None)

    @property
    def order(self) -> int:
        return len(self.terms) - 1

    def contributions(self) -> Tensor:
        """λ^k M_k, (order+1, batch, …)."""
        powers = torch.tensor([self.lam**k for k in range(self.order + 1)], dtype=self.terms.dtype)
        return self.terms * powers.to(self.terms.device).view(-1, *(1,) * (self.terms.ndim - 1))

    def partial(self, k: int) -> Tensor:
        """Σ_{j≤k} λ^j M_j, (batch, …)."""
        if not 0 <= k <= self.order:
            raise LambdaError(f"order {k} was not computed: this expansion has orders 0..{self.order}")
        return self.contributions()[: k + 1].sum(0)

    def remainder(self, k: int) -> Tensor:
        """f(x) − Σ_{j≤k} λ^j M_j, (batch, …)."""
        return self.output - self.partial(k)

    @cached_property
    def errors(self) -> np.ndarray:
        """‖remainder(k)‖/‖f‖ for k = 0..order, over the whole batch."""
        sums = self.contributions().double().cumsum(0)
        return np.array([relative_error(s, self.output) for s in sums])

    @cached_property
    def verdict(self) -> Verdict:
        """Whether the orders add up to the network: converged, plateaued or diverging."""
        size = float(self.contributions().double().flatten(1).norm(dim=1).max())
        scale = float(self.output.double().norm()) or 1.0
        floor = 1e3 * torch.finfo(self.terms.dtype).eps * max(1.0, size / scale)
        return judge(self.errors.tolist(), floor)

    def accuracy(self, y: Tensor | Sequence[int]) -> np.ndarray:
        """Accuracy of the partial sums of order 0..K against labels y (batch,)."""
        return accuracy_of(self.contributions().cumsum(0), y)

    def table(self, y: Tensor | Sequence[int] | None = None) -> pd.DataFrame:
        """A row an order: ‖M_k‖, ‖λ^k M_k‖, its share of the sum of those, and the error of the partial sum."""
        import pandas as pd

        raw = self.terms.double().flatten(1).norm(dim=1).cpu().numpy()
        scaled = self.contributions().double().flatten(1).norm(dim=1).cpu().numpy()
        table = pd.DataFrame(
            {
                "order": range(self.order + 1),
                "norm": raw,
                "scaled_norm": scaled,
                "share": scaled / (scaled.sum() or 1.0),
                "error": self.errors,
            }
        )
        if y is not None:
            table["accuracy"] = self.accuracy(y)
        return table

    def plot(self, ax: Axes | None = None) -> Axes:
        """Size of each order and error of the partial sums, against the order."""
        from matplotlib import pyplot as plt
        from matplotlib.ticker import MaxNLocator

        ax = plt.subplots(figsize=(6, 4), layout="constrained")[1] if ax is None else ax
        k = np.arange(self.order + 1)
        scaled = self.contributions().double().flatten(1).norm(dim=1).cpu().numpy()
        scale = float(self.output.double().norm()) or 1.0
        ax.bar(k, scaled / scale, color="#9ecae1", label="size of the order, ‖λᵏMₖ‖ / ‖f‖")
        ax.plot(k, np.maximum(self.errors, 1e-17), "o-", color="#b2182b", label="what is left out, ‖f − Σ‖ / ‖f‖")
        ax.set(xlabel="order k", ylabel="relative to ‖f‖", yscale="log", title=f"Orders in λ: {self.verdict}")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.legend()
        return ax

    def __repr__(self) -> str:
        return (
            f"Expansion(orders 0..{self.order} at λ={self.lam:.4g}, {self.output.shape[0]} samples: "
            f"{self.verdict}, {self.verdict.reason})"
        )

    def _repr_html_(self) -> str:
        return f"<p>{self!r}</p>" + self.table().to_html(index=False)


def expand(
    net: nn.Module,
    *inputs: Any,
    order: int = 4,
    lam: Lam | None = None,
    chunk_size: int | None = None,
    progress: bool | None = None,
    **kwargs: Any,
) -> Expansion:
    """Expand a residual network in the scale λ of its branches (Theorem 3.1), exactly, to `order`.

    f(x) = M_0(x) + λ M_1(x) + λ² M_2(x) + …, with M_1 = Σᵢ W_η Fᵢ(E(x)) and M_2 = Σ_{i<j} W_η F_j'(E(x)) Fᵢ(E(x))
    (Eq. 4). The network runs once with λ a truncated power series, c_k ← c_k + [Fᵢ(c)]_{k−1}: about `order` forward
    passes instead of C(n, k) paths. At a kink (ReLU at exactly 0) the one-sided expansion λ → 0⁺ is taken.

    net: a model with knobs, or any residual model (it gets knobs on the first chunk). inputs, kwargs: as the model
    takes them. lam: λ to expand for (default: that in force); one value, or one a branch. chunk_size: samples at a
    time, which bounds memory. Results are detached; for gradients run `net(x, lam=Series.variable(order))`. Autocast
    is off inside: everything is computed in the precision of the weights and inputs.
    Raises `ModeError` in train mode (BatchNorm, dropout), `MissingRuleError` for a function without a series rule,
    `LambdaError` for a wrong λ. Reference: Dherin and Munn, "On residual network depth", arXiv 2510.03470.

    >>> import torch, pathsum as ps
    >>> net = ps.ResidualMLP(depth=2, width=3, in_features=3, activation="tanh", scale=0.5, seed=0).double()
    >>> e = ps.expand(net, torch.zeros(1, 3, dtype=torch.float64), order=2)
    >>> e.lam, tuple(e.terms.shape)
    (0.5, (3, 1, 10))
    """
    check_count("order", order)
    uniform: float | None = None

    def variable(lams: list[float], carry: bool) -> Series:
        nonlocal uniform
        uniform = lams[0] if all(v == lams[0] for v in lams) else None
        # λ < 0 expands for λ → 0⁻: the signs go into the weights, so that kinks take the right side.
        weights = [math.copysign(1.0, uniform)] * len(lams) if uniform is not None else lams
        return Series.variable(order, weights=torch.tensor(weights, dtype=torch.float64), carry=carry)

    _, lams, output, terms = run_series(
        net,
        inputs,
        kwargs,
        variable=variable,
        carry=True,
        lam=lam,
        chunk_size=chunk_size,
        progress=progress,
        label="expand",
    )
    if uniform is None:
        return Expansion(terms, 1.0, output, torch.tensor(lams, dtype=torch.float64))
    if uniform < 0:
        signs = torch.tensor([(-1.0) ** k for k in range(len(terms))], dtype=terms.dtype, device=terms.device)
        terms = terms * signs.view(-1, *(1,) * (terms.ndim - 1))
    return Expansion(terms, uniform, output)
