"""The idea: run a model the user has under λ on every residual branch and α on every nonlinear unit.

`net = knobs(model, x)`; then `net(x, lam=…, alpha=…)`. The model's own code runs, watched by a function mode that
rewrites the joins to skip + λᵢ·branch and the units to αa + (1 − α)φ(a). With λ a formal variable the same run
computes a power series: see `expand` and `spectrum`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .anatomy import record
from .care import tensors_in, untouched
from .errors import LambdaError, NoJoinsError, PathsumError, ProbeError
from .running import Run, same
from .scaling import Rule, lr_factor, parse_rule
from .series import Series
from .sites import Anatomy, Branch, Unit

Lam = float | Tensor | Series | Sequence[float]
Alpha = float | Tensor | Sequence[float | Tensor]
ROWS_SHOWN = 60  # of the branches, when printed; `net.anatomy.table()` has all


class Knobs(nn.Module):
    """A model with a knob on every residual branch and every nonlinear unit; made by `knobs`.

    `net.branches` and `net.units` list the sites, `print(net)` shows them, `net(*inputs)` returns what the model
    returns. The model is held as `net.model`, unchanged.
    """

    lam_values: Tensor | None

    def __init__(
        self, model: nn.Module, anatomy: Anatomy, output: str | int | Callable[[Any], Tensor] | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.anatomy = anatomy
        self.output = output
        self.rule: Rule | None = None
        self.register_buffer("lam_values", None)
        self.training = model.training

    @property
    def branches(self) -> tuple[Branch, ...]:
        return self.anatomy.branches

    @property
    def units(self) -> tuple[Unit, ...]:
        return self.anatomy.units

    @property
    def lam(self) -> Tensor:
        """λ of each branch, (n,): as set by `rescale`, else the model's own (1 where it has none)."""
        if self.lam_values is not None:
            return self.lam_values
        return torch.tensor([b.lam for b in self.branches], dtype=torch.get_default_dtype())

    def forward(self, *inputs: Any, lam: Lam | None = None, alpha: Alpha | None = None, **kwargs: Any) -> Any:
        """Run the model with λ and α: numbers, one value a branch (a unit), or a `Series` for λ.

        Without either it is the model itself, at no cost. λᵢ replaces the number the model itself multiplies the
        branch by, if any. A vector among the α of a unit runs along its channels.
        """
        if lam is None:
            lam = self.lam_values
        if lam is None and alpha is None:
            return self.model(*inputs, **kwargs)
        return self.run(inputs, kwargs, lam=lam, alpha=alpha)[0]

    def run(
        self,
        inputs: tuple,
        kwargs: dict[str, Any],
        *,
        lam: Lam | None = None,
        alpha: Alpha | None = None,
        carried: Sequence[float] = (),
        probe: bool = False,
    ) -> tuple[Any, list[float | Tensor]]:
        """Run under the mode: what the model returns, and the λ of each branch in force (for a series: its own).

        `carried` are the λ of the real value in a space that carries it.
        """
        mode = Run(self.anatomy, self.check_lam(lam), self.check_alpha(alpha), carried, probe=probe)
        with mode:
            out = self.model(*inputs, **kwargs)
        mode.finish()
        return out, [b.lam if v is None else v for b, v in zip(self.branches, mode.used, strict=True)]

    def check_lam(self, lam: Lam | None) -> Series | list[float | Tensor] | None:
        """λ as one value a branch; raises `LambdaError` for a wrong shape."""
        n = len(self.branches)
        if lam is None:
            return None
        if isinstance(lam, Series):
            if lam.c.ndim == 2 and lam.c.shape[1] != n:
                raise LambdaError(f"λ is a series of {lam.c.shape[1]} values; the model has {n} residual branches")
            if lam.c.ndim > 2:
                raise LambdaError(
                    f"λ is a series of shape {tuple(lam.c.shape[1:])}; give one value, or one a branch ({n},)"
                )
            return lam
        if not isinstance(lam, Tensor):
            try:
                lam = torch.tensor(lam, dtype=torch.float64)
            except (TypeError, ValueError, RuntimeError):
                raise LambdaError(
                    f"λ is {lam!r}: give a number, one a branch ({n}), a tensor or a Series; "
                    "for a rule such as '1/sqrt(n)' call net.rescale"
                ) from None
        if lam.ndim and tuple(lam.shape) != (n,):
            raise LambdaError(
                f"λ has shape {tuple(lam.shape)}; the model has {n} residual branches: give one number or shape ({n},)"
            )
        if lam.requires_grad:
            return list(lam) if lam.ndim else [lam] * n
        values = lam.tolist() if lam.ndim else [lam.item()] * n
        if not all(map(math.isfinite, values)):
            raise LambdaError(f"λ must be finite, got {values[0] if lam.ndim == 0 else values}")
        return values

    def check_alpha(self, alpha: Alpha | None) -> list[float | Tensor] | None:
        n = len(self.units)
        if alpha is None:
            return None
        if isinstance(alpha, int | float) or (isinstance(alpha, Tensor) and alpha.ndim == 0):
            return [alpha] * n
        if len(alpha) != n:
            raise LambdaError(f"α has {len(alpha)} values; the model has {n} nonlinear units: give one number or {n}")
        return list(alpha)

    def pick(self, out: Any) -> Tensor:
        """The output tensor: by `output=`, else the result itself, `.logits`, `.last_hidden_state` or its first."""
        picked: Any
        if callable(self.output):
            picked = self.output(out)
        elif self.output is not None:
            key: Any = self.output
            if isinstance(out, dict):
                picked = out.get(key)
            elif isinstance(key, int):
                picked = out[key] if isinstance(out, list | tuple) and key < len(out) else None
            else:
                picked = getattr(out, key, None)
        elif isinstance(out, Tensor):
            picked = out
        else:
            picked = next(
                (getattr(out, k) for k in ("logits", "last_hidden_state") if getattr(out, k, None) is not None),
                None,
            )
            if picked is None:
                picked = next(tensors_in(list(out.values()) if isinstance(out, dict) else out), None)
        if not isinstance(picked, Tensor):
            raise PathsumError(
                f"the model returned {type(out).__name__} and no output tensor was found in it: "
                "say which with knobs(model, x, output='name' or a function)"
            )
        if isinstance(picked, Series):
            picked.check_fresh()
        return picked

    def rescale(self, rule: str | float | Sequence[float] | Rule) -> Knobs:
        """Put λ on every branch by a rule of `scaling.parse_rule`: "1/sqrt(n)", "n^-0.8", 0.3, a list, "learned".

        The rule's value replaces the model's own scale. "learned" registers λ as a parameter of this module
        (`lam_values`), as SkipInit and ReZero do.
        """
        parsed = parse_rule(rule)
        example = next((p for p in self.model.parameters() if p.is_floating_point()), None)
        values = torch.tensor(
            parsed.values(len(self.branches)),
            dtype=torch.get_default_dtype() if example is None else example.dtype,
            device=None if example is None else example.device,
        )
        del self.lam_values
        if parsed.learned:
            self.lam_values = nn.Parameter(values)
        else:
            self.register_buffer("lam_values", values.double())
        self.rule = parsed
        return self

    def param_groups(self, *, optimizer: str = "sgd", lr: float = 0.1) -> list[dict[str, Any]]:
        """Parameter groups with depth-aware learning rates, to pass to a torch optimizer.

        A branch's parameters get lr/(nλ²) under "sgd", lr/(nλ) under "adamw" (`scaling.lr_factor`), the rest lr;
        learned λ get lr/10, as in Fixup. A parameter of several branches gets the least. Each group has a "name".
        """
        lams = self.lam.detach().tolist()
        rates: dict[int, float] = {}
        for branch, lam in zip(self.branches, lams, strict=True):
            rate = lr * lr_factor(lam, len(lams), optimizer)
            for name in filter(None, branch.modules):  # the model's own parameters belong to no branch
                module = self.model.get_submodule(name)
                deep = not list(module.children()) or isinstance(module, nn.MultiheadAttention)
                for p in module.parameters(recurse=deep):
                    rates[id(p)] = min(rate, rates.get(id(p), rate))
        groups: dict[float, list[nn.Parameter]] = {}
        rest = []
        for p in self.model.parameters():
            if id(p) in rates:
                groups.setdefault(rates[id(p)], []).append(p)
            else:
                rest.append(p)
        found = [{"params": rest, "lr": lr, "name": "rest"}]
        found += [{"params": ps, "lr": rate, "name": f"branches at {rate:.4g}"} for rate, ps in groups.items()]
        if isinstance(self.lam_values, nn.Parameter):
            found.append({"params": [self.lam_values], "lr": lr / 10, "name": "lam"})
        return [g for g in found if g["params"]]

    def fold(self, *inputs: Any, **kwargs: Any) -> nn.Module:
        """A plain copy of the model with λ written into the last linear map of each branch.

        Same class, same state-dict keys, no cost left at inference. With example inputs the copy is checked against
        this net. Raises `PathsumError` naming the branch where the layer before the join is not a linear map of its
        own, or serves several branches.
        """
        from .folding import fold

        return fold(self, inputs, kwargs)

    def __repr__(self) -> str:
        head = (
            f"Knobs({type(self.model).__name__}: {len(self.branches)} residual branches, {len(self.units)} units"
            f"{'' if self.rule is None else f', λ = {self.rule.text}'})"
        )
        if not self.branches:
            return head
        table = self.anatomy.table()
        table["lam"] = [f"{v:.4g}" for v in self.lam.tolist()]
        return head + "\n" + table.to_string(max_rows=ROWS_SHOWN)


def knobs(
    model: nn.Module,
    *inputs: Any,
    output: str | int | Callable[[Any], Tensor] | None = None,
    **kwargs: Any,
) -> Knobs:
    """Put the knobs λ and α on a model: run it once on `inputs`, find its joins and units, and check the result.

    The model is held, not copied, and stays as it was. Accepted only if at default knobs the output is bitwise the
    model's, and at λ = 0 every join leaves its shortcut. `output` picks the tensor that `expand` and `spectrum` look
    at: a name, an index or a function (default: the result itself, `.logits`, `.last_hidden_state`, or its first).

    Costs three forward passes. Raises `NoJoinsError` for a model without residual joins, `ModeError` for a compiled
    one, `ProbeError` if the check fails.

    >>> import torch, pathsum as ps
    >>> net = ps.knobs(ps.ResidualMLP(depth=3, width=4, in_features=2, seed=0), torch.zeros(1, 2))
    >>> [b.name for b in net.branches]
    ['blocks.0.add', 'blocks.1.add', 'blocks.2.add']
    """
    found, out = record(model, inputs, kwargs)
    if not found.branches:
        raise NoJoinsError(
            f"{type(model).__name__} has no residual joins (additions of a skip and a branch with weights): "
            f"{len(found.units)} nonlinear units were found; λ needs a residual network"
        )
    net = Knobs(model, found, output)
    with untouched(model), torch.no_grad():
        again = net.run(inputs, kwargs)[0]
        for a, b in zip(tensors_in(_plain(out)), tensors_in(_plain(again)), strict=True):
            if not same(a, b):
                raise ProbeError(
                    f"{type(model).__name__} at default knobs differs from the model itself by up to "
                    f"{float((a - b).abs().max()):.3g}: it is not deterministic, or keeps state between calls"
                )
        net.run(inputs, kwargs, lam=0.0, probe=True)
    return net


def _plain(out: Any) -> Any:
    return list(out.values()) if isinstance(out, dict) else out


def as_knobs(net: nn.Module, inputs: tuple, kwargs: dict[str, Any]) -> Knobs:
    """`net` itself if it has knobs, else knobs on it."""
    return net if isinstance(net, Knobs) else knobs(net, *inputs, **kwargs)
