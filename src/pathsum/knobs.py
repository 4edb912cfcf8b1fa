"""The idea: run a model the user has under λ on every residual branch and α on every nonlinear unit.

`net = knobs(model, x)`; then `net(x, lam=…, alpha=…)`. The model's own code runs, watched by a function mode that
rewrites the joins to skip + λᵢ·branch and the units to αa + (1 − α)φ(a). With λ a formal variable the same run
computes a power series: see `expand` and `spectrum`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .anatomy import record
from .care import full_precision, is_sharded, tensors_in, untouched
from .errors import LambdaError, NoJoinsError, ProbeError
from .groups import param_groups
from .modes import Modes
from .norms import Keep, Kind, norm_table, without_norm
from .running import Run, same
from .scaling import Per, Rule, with_per
from .series import Series
from .sites import Anatomy, Branch, Unit
from .stages import Stages, labels_of
from .tracing import Traced
from .values import Alpha, Lam, Output, check_alpha, check_lam, exact, is_number, pick

if TYPE_CHECKING:
    import pandas as pd

ROWS_SHOWN = 60  # of the branches, when printed; `net.anatomy.table()` has all


class Knobs(nn.Module):
    """A model with a knob on every residual branch and every nonlinear unit; made by `knobs`.

    `net.branches` and `net.units` list the sites, `print(net)` shows them, `net(*inputs)` returns what the model
    returns. The model is held as `net.model`, unchanged.
    """

    lam_values: Tensor | None

    def __init__(self, model: nn.Module, anatomy: Anatomy, output: Output = None) -> None:
        super().__init__()
        self.model = model
        self.anatomy = anatomy
        self.output = output
        self.rule: Rule | None = None
        self.stage_labels: tuple[Hashable, ...] | None = None  # of each branch, where λ was put on per stage
        self.register_buffer("lam_values", None)
        self.training = model.training
        self._modes = Modes(model, anatomy)
        self._numbers: tuple[Tensor, int, list[float]] | None = None  # a fixed λ read once: reading waits for a GPU

    @property
    def branches(self) -> tuple[Branch, ...]:
        return self.anatomy.branches

    @property
    def units(self) -> tuple[Unit, ...]:
        return self.anatomy.units

    @property
    def lam(self) -> Tensor:
        """λ of each branch, (n,): as set by `rescale`, else the model's own (1 where it has none)."""
        lam = self.lam_values
        if lam is not None:
            return lam.full_tensor() if hasattr(lam, "full_tensor") else lam  # sharded by fully_shard
        return torch.tensor([own_scale(self.model, b) for b in self.branches], dtype=torch.get_default_dtype())

    def forward(self, *inputs: Any, lam: Lam | None = None, alpha: Alpha | None = None, **kwargs: Any) -> Any:
        """Run the model with λ and α: numbers, one value a branch (a unit), or a `Series` for λ.

        Without either it is the model itself, at no cost. λᵢ replaces the number the model itself multiplies the
        branch by, if any. A vector among the α of a unit runs along its channels.
        """
        if lam is None and alpha is None and self.lam_values is None:
            return self.model(*inputs, **kwargs)
        if torch.compiler.is_compiling() and not isinstance(lam, Series):
            for _ in (0,):  # where torch.compile must break its graph in a loop, it leaves the whole frame to Python
                out = self.trace(inputs, kwargs, self.lam_values if lam is None else lam, alpha)
            return out
        eager = self.eager
        if "torch._dynamo" in sys.modules:  # a frame left to Python: its parts are not to be compiled one by one
            eager = torch.compiler.disable(eager)
        return eager(inputs, kwargs, lam, alpha)

    def eager(self, inputs: tuple, kwargs: dict[str, Any], lam: Lam | None, alpha: Alpha | None) -> Any:
        """The run that Python sees."""
        return self.run(inputs, kwargs, lam=self.in_force() if lam is None else lam, alpha=alpha)[0]

    def trace(self, inputs: tuple, kwargs: dict[str, Any], lam: Any, alpha: Alpha | None) -> Any:
        """The run that torch.compile sees."""
        n = len(self.branches)
        values = list(lam) if isinstance(lam, list | tuple) or (isinstance(lam, Tensor) and lam.ndim) else [lam] * n
        if len(values) != n:
            raise LambdaError(f"λ has {len(values)} values; the model has {n} residual branches")
        plan = self._modes.plan(self.model, units=alpha is not None)
        mode = Traced(plan, None if lam is None else values, self.check_alpha(alpha))
        with mode:
            out = self.model(*inputs, **kwargs)
        mode.finish()
        return out

    def calls(self, inputs: tuple, kwargs: dict[str, Any]) -> Anatomy:
        """The calls of a run in the mode the model is in, see `Modes`."""
        return self._modes.calls(self.model, inputs, kwargs, self.output)

    def in_force(self) -> Tensor | list[float] | None:
        """λ as set by `rescale`: numbers, or a tensor where it is learned or transformed."""
        lam = self.lam_values
        if lam is None or not is_number(lam):
            return lam
        version = -1 if lam.is_inference() else lam._version
        if self._numbers is None or self._numbers[0] is not lam or self._numbers[1] != version or version < 0:
            self._numbers = lam, version, lam.tolist()
        return self._numbers[2]

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
        sharded = is_sharded(self.model)
        mode = Run(
            self.calls(inputs, kwargs),
            self.check_lam(lam),
            self.check_alpha(alpha),
            carried,
            probe=probe,
            sharded=sharded,
        )
        with mode, full_precision() if isinstance(lam, Series) else nullcontext():
            out = self.model(*inputs, **kwargs)
        mode.finish()
        out = mode.reveal_output(out)
        return out, [b.lam if v is None else v for b, v in zip(self.branches, mode.used, strict=True)]

    def need_joins(self) -> None:
        """Raise `NoJoinsError` where there is no branch to put λ on."""
        if not self.branches:
            raise NoJoinsError(self.describe_no_joins())

    def describe_no_joins(self) -> str:
        return (
            f"{type(self.model).__name__} has no residual joins (additions of a skip and a branch with weights): "
            f"{len(self.units)} nonlinear units found; λ needs a residual network"
        )

    def check_lam(self, lam: Lam | None) -> Series | list[float | Tensor] | None:
        """λ as one value a branch; raises `LambdaError` for a wrong shape, `NoJoinsError` where there is none."""
        if lam is None:
            return None
        self.need_joins()
        return check_lam(lam, len(self.branches))

    def check_alpha(self, alpha: Alpha | None) -> list[float | Tensor] | None:
        return None if alpha is None else check_alpha(alpha, len(self.units))

    def pick(self, out: Any) -> Tensor:
        """The output tensor: by `output=`, else the result itself, `.logits`, `.last_hidden_state` or its first."""
        return pick(out, self.output)

    def rescale(
        self, rule: str | float | Sequence[float] | Rule, *, per: Per | None = None, stages: Stages | None = None
    ) -> Knobs:
        """Put λ on every branch by a rule of `scaling.parse_rule`: "1/sqrt(n)", "n^-0.8", 0.3, a list, "learned".

        The rule's value replaces the model's own scale. "learned" registers λ as a parameter of this module
        (`lam_values`), as SkipInit and ReZero do. n counts branches, so a transformer layer has two.

        per: what n counts, the branches of the whole "net" (default) or of a "stage"; then a list has a number per
        stage. A stage is the joins that add to one stream of one size: `layer1` … `layer4` of a ResNet, all of a
        ViT, encoder and decoder of T5. stages: others (and means per="stage"), as branch counts in order, a text for
        each branch, or a function of a `Branch`.

        >>> import torch, pathsum as ps
        >>> net = ps.knobs(ps.ResidualMLP(depth=4, width=3, in_features=2, seed=0), torch.zeros(1, 2))
        >>> net.rescale("1/n", stages=[1, 3]).lam.round(decimals=2).tolist()
        [1.0, 0.33, 0.33, 0.33]

        Raises `NoJoinsError` where there is no branch, `RuleError` for an unknown rule, `LambdaError` for a list of
        another length or stages that do not divide the branches.
        """
        self.need_joins()
        parsed = with_per(rule, "stage" if stages is not None else per)
        labels = labels_of(stages, self.branches) if parsed.per == "stage" else None
        example = next((p for p in self.model.parameters() if p.is_floating_point()), None)
        values = torch.tensor(
            parsed.values(len(self.branches), labels),
            dtype=torch.get_default_dtype() if example is None else example.dtype,
            device=None if example is None else example.device,
        )
        del self.lam_values
        if parsed.learned:
            self.lam_values = nn.Parameter(values)
        else:
            self.register_buffer("lam_values", exact(parsed.values(len(self.branches), labels), values.device))
        self.rule, self.stage_labels = parsed, labels
        return self

    def param_groups(self, *, optimizer: str = "sgd", lr: float = 0.1) -> list[dict[str, Any]]:
        """Parameter groups with depth-aware learning rates, to pass to a torch optimizer.

        A branch's parameters get lr/(nλ²) under "sgd", lr/(nλ) under "adamw" (`scaling.lr_factor`), the rest lr; n
        counts the branches of a stage where λ was put on per stage. Learned λ get lr/10, as in Fixup, and no weight
        decay. A parameter of several branches, or tied to one outside, gets the least. Each group has a "name".

        Only learning rates are set. Adam's eps is not: a branch's gradients shrink with λ, and CompleteP shrinks eps
        likewise; set `group["eps"]` where λ is tiny. AdamW multiplies its weight decay by the group's rate.
        """
        return param_groups(self, optimizer=optimizer, lr=lr)

    def fold(self, *inputs: Any, **kwargs: Any) -> nn.Module:
        """A plain copy of the model with λ written into the last linear maps of each branch.

        Same class, same state-dict keys, no cost left at inference. Where a branch is a sum (attention + MLP), all
        its parts are scaled; where the model has a scale of its own as a parameter (ReZero, LayerScale), that is.
        With example inputs the copy is checked against this net. α is not folded: it is given call by call.

        Raises `PathsumError` naming the branch that does not end in a linear map of its own.
        """
        from .folding import fold

        return fold(self, inputs, kwargs)

    def without_norm(
        self, kind: Kind, *inputs: Any, keep: Keep = "function", strict: bool = False, **kwargs: Any
    ) -> nn.Module:
        """A plain copy of the model, of the same class, without its normalization layers of a kind.

        keep="function": eval-mode BatchNorm becomes part of the convolution or linear layer before it, exactly; where
        there is none (pre-activation) it stays as a `ChannelAffine`, with strict=True as an error that names it.
        keep="drop": the norms inside branches are left out with their weights, to retrain under a rule for λ; those
        on the stream (stem, final norm, shortcuts) stay. kind: "batch", "layer", "group" or "all".

        λ set by `rescale` is not in the copy: fold it first, or put it on again. With example inputs a copy that
        keeps the function is checked against the model. See `norms.without_norm`.
        """
        return without_norm(self, kind, inputs, kwargs, keep=keep, strict=strict)

    def norm_table(self) -> pd.DataFrame:
        """The normalization layers: kind, the branch each is in, and what `without_norm` makes of it."""
        return norm_table(self)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Knobs:
        """Moves and casts reach the model and learned λ; fixed λ move only, and stay as exact as their rule."""
        fixed = self._buffers.get("lam_values")
        self._buffers.pop("lam_values", None)
        try:
            super()._apply(fn, recurse)
        finally:
            if "lam_values" not in self._parameters:
                self._buffers["lam_values"] = fixed
        if fixed is not None:
            self.lam_values = exact(fixed, fn(torch.zeros(1, device=fixed.device)).device)
        return self

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        key = prefix + "lam_values"
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if key in state_dict and self.lam_values is None:
            if key in unexpected_keys:
                unexpected_keys.remove(key)
            error_msgs.append(
                f"the saved λ of {len(state_dict[key])} branches ('{key}') have no place here: call "
                "net.rescale('learned'), or the rule they were saved under, and load again"
            )
        elif self.rule is not None and not self.rule.learned and self.lam_values is not None:
            values = self.lam_values.tolist()
            if values != list(self.rule.values(len(values), self.stage_labels)):
                self.rule, self.stage_labels = with_per(values, "net"), None

    def __repr__(self) -> str:
        if not self.branches:
            table = self.anatomy.unit_table()
            rows = "\n" + table.to_string(max_rows=ROWS_SHOWN) if len(table) else ""
            return f"Knobs({self.describe_no_joins()})" + rows
        head = (
            f"Knobs({type(self.model).__name__}: {len(self.branches)} residual branches, {len(self.units)} units"
            f"{'' if self.rule is None else f', λ = {self.rule.text}'})"
        )
        table = self.anatomy.table()
        table["lam"] = [f"{v:.4g}" for v in self.lam.tolist()]
        if self.stage_labels is not None:
            table["stage"] = [str(label) for label in self.stage_labels]
        return head + "\n" + table.to_string(max_rows=ROWS_SHOWN)


def own_scale(model: nn.Module, branch: Branch) -> float:
    """The number the model itself multiplies a branch by: a parameter's value now, else as when the knobs were made."""
    if branch.scale is None:
        return branch.lam
    return float(model.get_parameter(branch.scale.parameter).detach().reshape(-1)[branch.scale.entry or 0])


def knobs(
    model: nn.Module,
    *inputs: Any,
    output: Output = None,
    **kwargs: Any,
) -> Knobs:
    """Put the knobs λ and α on a model: run it once on `inputs`, find its joins and units, and check the result.

    The model is held, not copied, and stays as it was. Accepted only if at default knobs the output is bitwise the
    model's, and at λ = 0 every join leaves its shortcut. `output` picks the tensor that `expand` and `spectrum` look
    at: a name, an index or a function (default: the result itself, `.logits`, `.last_hidden_state`, or its first).

    A model without joins (DenseNet, a plain net) gets no branches, and its print says so: α works, and λ raises
    `NoJoinsError`. Costs three forward passes. Raises `ModeError` for a compiled model, `ProbeError` if the check
    fails.

    >>> import torch, pathsum as ps
    >>> net = ps.knobs(ps.ResidualMLP(depth=3, width=4, in_features=2, seed=0), torch.zeros(1, 2))
    >>> [b.name for b in net.branches]
    ['blocks.0.add', 'blocks.1.add', 'blocks.2.add']
    """
    found, out = record(model, inputs, kwargs, output)
    net = Knobs(model, found, output)
    with untouched(model), torch.no_grad():
        again = net.run(inputs, kwargs)[0]
        for a, b in zip(tensors_in(_plain(out)), tensors_in(_plain(again)), strict=True):
            if not same(a, b):
                raise ProbeError(
                    f"{type(model).__name__} at default knobs differs from the model itself by up to "
                    f"{float((a - b).abs().max()):.3g}: it is not deterministic, or keeps state between calls"
                )
        if net.branches:
            net.run(inputs, kwargs, lam=0.0, probe=True)
    return net


def _plain(out: Any) -> Any:
    return list(out.values()) if isinstance(out, dict) else out


def as_knobs(net: nn.Module, inputs: tuple, kwargs: dict[str, Any]) -> Knobs:
    """`net` itself if it has knobs, else knobs on it."""
    return net if isinstance(net, Knobs) else knobs(net, *inputs, **kwargs)
