"""The functional path length: the output of each input split by the number of nonlinear units its paths pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .by_length import ByLength
from .care import full_precision, is_sharded, untouched
from .coefficients import Space, add_coeffs, pad, shift
from .errors import PathsumError
from .joining import IN_PLACE
from .knobs import Knobs, Lam, as_knobs
from .progress import track
from .results import batch_size, check_count, check_eval, chunks
from .running import Run
from .series import Series
from .sites import Branch, Unit
from .values import Alpha


@dataclass(frozen=True, eq=False)
class UnitSpectrum(ByLength):
    """f(x) = Σ_k u_k(x): u_k is the sum over all paths through exactly k nonlinear units, at the α in force.

    `terms` (units+1, batch, …), or (max_length+2, batch, …) with the last slot every longer path; `output` (batch, …)
    is the network's own, and `conservation` how far the sum is from it.
    """

    terms: Tensor
    output: Tensor
    num_units: int
    longer: bool = False  # the last slot sums every longer path

    counted: ClassVar[str] = "nonlinear units"

    def __repr__(self) -> str:
        return (
            f"UnitSpectrum({self.num_units} units, {self.output.shape[0]} samples: mean path length "
            f"{'≥ ' if self.longer else ''}{self.mean_length():.2f}, sum off by {self.conservation:.1e})"
        )


class UnitRun(Run):
    """A run in which each unit is αa + (1 − α)·t·φ(a), t the formal variable, and λ the real one."""

    def __init__(self, net: Knobs, inputs: tuple, kwargs: dict, lam: Lam | None, alpha: Alpha, space: Space) -> None:
        checked = net.check_lam(lam)
        if isinstance(checked, Series):
            raise PathsumError("unit_spectrum counts units: λ is a number for each branch there, not a series")
        super().__init__(
            net.calls(inputs, kwargs), checked, net.check_alpha(alpha), sharded=is_sharded(net.model)
        )
        self.space = space

    def unit(self, site: Unit, func: Any, args: tuple, kwargs: dict) -> Any:
        """αa + (1 − α)·t·φ(a), φ frozen to its gate: a constant φ(0) is a path that starts in this unit."""
        assert self.alpha is not None
        assert self.space is not None
        a = args[0] if args else kwargs["input"]
        if isinstance(a, Series):
            a.check_fresh()
        before = a.c if isinstance(a, Series) else a.detach().clone().unsqueeze(0)  # φ may work in place
        own = Series(before, self.space)
        value = func(own, *args[1:], **{k: v for k, v in kwargs.items() if k != "input"})
        c = shift(value.c, self.space)
        alpha = self.alpha[site.index]
        if isinstance(alpha, Tensor):
            alpha = alpha.to(a.device, a.dtype)
            if alpha.ndim == 1 and alpha.numel() > 1 and a.ndim in (4, 5):
                alpha = alpha.view(-1, *(1,) * (a.ndim - 2))
        if isinstance(alpha, Tensor) or alpha != 0:
            c = add_coeffs(alpha * before, (1 - alpha) * c)
        out = Series(c, self.space, gate=value.gate)
        if value is not own:
            return out
        if isinstance(a, Series):
            return a.assign(out)
        self.shadow(a, out)
        return out

    def join(self, site: Branch, func: Any, args: tuple, kwargs: dict) -> Any:
        """skip + λ·branch, of series too."""
        if self.lam is None or not any(isinstance(args[i], Series) for i in (site.skip, site.branch)):
            self.used[site.index] = 1.0
            return self.follow(func, args, kwargs) if self.lam is None else super().join(site, func, args, kwargs)
        assert not isinstance(self.lam, Series)
        lam = self.used[site.index] = self.lam[site.index]
        sign_skip, sign = site.signs
        out = sign_skip * args[site.skip] + (sign * lam) * args[site.branch]
        target = args[0]
        if func.__name__ not in IN_PLACE:
            return out
        if isinstance(target, Series):
            return target.assign(out)
        self.shadow(target, out)
        return out


def unit_spectrum(
    net: nn.Module,
    *inputs: Any,
    alpha: Alpha | None = None,
    max_length: int | None = None,
    lam: Lam | None = None,
    chunk_size: int | None = None,
    progress: bool | None = None,
    **kwargs: Any,
) -> UnitSpectrum:
    """Split a network's output by the number of nonlinear units a path passes, exactly, for each input.

    As `spectrum`, with the formal variable t on units instead of joins: every gate is frozen at its value in the real
    forward pass, φ(a) = g·a + φ(0), and a unit becomes αa + (1 − α)·t·φ(a). The network is then a polynomial in t whose
    coefficients u_k sum to f(x) at t = 1. Norms, attention patterns, max-pools and the gates of products are frozen
    (docs/semantics.md). Biases start paths where they are added; φ(0) of a sigmoid starts one of length 1. A network
    without joins has one too: at α = 0 a chain of n units has paths of n units from its input, of fewer from biases.

    alpha: as in `net(x, alpha=…)`. max_length: keep lengths 0..max_length and one slot that sums every longer path.
    lam, chunk_size, inputs: as in `spectrum`. `path_lengths` is the same count of the structure alone, which knows no
    input and no weights. Raises `PathsumError` where there are no units. Cost: units+1 forward passes, less early on.

    >>> import torch, pathsum as ps
    >>> net = ps.ResidualMLP(depth=3, width=3, in_features=3, seed=0).double()
    >>> s = ps.unit_spectrum(net, torch.ones(2, 3, dtype=torch.float64))
    >>> tuple(s.terms.shape), s.conservation < 1e-14
    ((4, 2, 10), True)
    """
    if max_length is not None:
        check_count("max_length", max_length)
    if chunk_size is not None:
        check_count("chunk_size", chunk_size, least=1)
    total = batch_size(inputs, kwargs)
    size = chunk_size or total
    check_eval(net)
    in_alpha = 0.0 if alpha is None else alpha
    outputs, terms = [], []
    knobbed: Knobs | None = None
    with torch.no_grad(), full_precision(), untouched(net):
        for part, named in track(chunks(inputs, kwargs, size), "unit spectrum", total=-(-total // size), show=progress):
            if knobbed is None:
                knobbed = as_knobs(net, part, named)
                if not knobbed.units:
                    raise PathsumError(
                        f"{type(knobbed.model).__name__} has no nonlinear units (calls of ReLU, GELU, …): "
                        "all its paths have length 0"
                    )
                most = len(knobbed.units) if max_length is None else max_length + 1
                space = Space(most, gated=True, overflow=max_length is not None)
            in_force = knobbed.lam_values if lam is None else lam
            outputs.append(knobbed.pick(knobbed.run(part, named, lam=in_force, alpha=in_alpha)[0]))
            mode = UnitRun(knobbed, part, named, in_force, in_alpha, space)
            with mode:
                out = knobbed.model(*part, **named)
            mode.finish()
            result = knobbed.pick(mode.reveal_output(out))
            terms.append(pad(result.c if isinstance(result, Series) else result.unsqueeze(0), space.slots))
    assert knobbed is not None
    return UnitSpectrum(torch.cat(terms, dim=1), torch.cat(outputs), len(knobbed.units), max_length is not None)
