"""A model without its normalization layers: BatchNorm made part of the layer before it, or branch norms left out."""

from __future__ import annotations

import copy
import logging
import re
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from .care import check_same, untouched
from .errors import ModeError, PathsumError

if TYPE_CHECKING:
    import pandas as pd

    from .knobs import Knobs

Kind = Literal["batch", "layer", "group", "all"]
Keep = Literal["function", "drop"]
# One more rounding a weight, and another order of operations in every channel.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-4}
_NAMED = re.compile(r".*?(batch|layer|rms|group|instance)_?norm(?:alization)?(?:\dd)?", re.IGNORECASE)
_FAMILY = {"rms": "layer", "instance": "group"}
log = logging.getLogger("pathsum")


class ChannelAffine(nn.Module):
    """An eval-mode BatchNorm on its own: weight·x + bias for each channel, with no statistics."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        shape = (-1, *(1,) * (x.ndim - 2))
        return x * self.weight.view(shape) + self.bias.view(shape)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}"


def without_norm(
    net: Knobs, kind: Kind, inputs: tuple, kwargs: dict[str, Any], *, keep: Keep, strict: bool
) -> nn.Module:
    """A copy of `net.model`, of its class, without normalization layers of a kind; the original stays as it is.

    kind: "batch", "layer" (LayerNorm and RMSNorm), "group" (GroupNorm and InstanceNorm), "all"; a class of the model's
    own counts by its name (`LlamaRMSNorm`, `T5LayerNorm`).

    keep="function" (BatchNorm in eval mode): BN(Wx + b) = W'x + b' with W' = γW/σ and b' = γ(b − μ)/σ + β, exact. The
    layer gets a bias, BN becomes `nn.Identity`; state-dict keys are the old ones without BN's and with the new biases.
    BN that follows no layer of its own (pre-activation; a result read twice; a shared module) stays as a
    `ChannelAffine` with the keys `weight` and `bias`; with `strict` it is an error. BN is not moved into the layer
    after it: at zero padding that would not be exact.

    keep="drop": norms inside branches become `nn.Identity`, their weights are gone and so is the function; retrain
    under λ: `ps.knobs(model, x).rescale("1/sqrt(n)")`. Norms on the stream stay. `net.norm_table()` lists which.

    Raises `ModeError` for BatchNorm in train mode, `PathsumError` where nothing can be done.
    """
    if kind not in get_args(Kind) or keep not in get_args(Keep):
        raise PathsumError(
            f"without_norm({kind!r}, keep={keep!r}) is not possible: kinds are {', '.join(get_args(Kind))}; "
            "keep='function' or keep='drop'"
        )
    if keep == "drop":
        model = dropped(net, kind)
        if inputs or kwargs:
            with torch.no_grad(), untouched(model):
                model(*inputs, **kwargs)  # it runs
        return model
    if kind != "batch":
        raise PathsumError(
            f"the function cannot be kept without {kind!r} norms: only eval-mode BatchNorm is a fixed map, the others "
            "depend on each input; give 'batch', or keep='drop' to retrain without"
        )
    model = fused(net, strict=strict)
    if inputs or kwargs:
        check_same(net.model, model, inputs, kwargs, TOLERANCE, "the model without BatchNorm")
    return model


def fused(net: Knobs, *, strict: bool) -> nn.Module:
    """BatchNorm made part of the layers before it, or of an affine map of its own."""
    check_norms(net.model)
    layers = {f.norm: f.layer for f in net.anatomy.fusions if f.layer and _is_layer(net.model, f.layer)}
    alone = [name for name, m in net.model.named_modules() if isinstance(m, _BatchNorm) and name not in layers]
    if not layers and not alone:
        raise PathsumError(f"{type(net.model).__name__} has no BatchNorm modules: there is nothing to fold")
    if strict and alone:
        reasons = {f.norm: f.why for f in net.anatomy.fusions}
        listed = "; ".join(f"'{name}': {reasons.get(name) or 'it was not called'}" for name in alone)
        raise PathsumError(
            f"{len(alone)} BatchNorms follow no layer that they can be part of ({listed}): with strict=False they stay "
            "as an exact affine map"
        )
    model = copy.deepcopy(net.model)
    with torch.no_grad():
        for name, layer in layers.items():
            norm = model.get_submodule(name)
            fuse(model.get_submodule(layer), norm)
            replace(model, norm, nn.Identity())
        for name in alone:
            norm = model.get_submodule(name)
            replace(model, norm, as_affine(norm))
    log.info("BatchNorm folded into %s; left as an affine map: %s", [*layers.values()], alone)
    return model


def check_norms(model: nn.Module) -> None:
    """Refuse BatchNorms that are no fixed affine map, or more than one."""
    for name, m in model.named_modules():
        if not isinstance(m, _BatchNorm):
            continue
        if m.training or m.running_mean is None:
            raise ModeError(
                f"BatchNorm '{name}' "
                + ("is in train mode" if m.training else "keeps no running statistics")
                + ": only a norm with fixed statistics can be folded; "
                + ("call model.eval() first" if m.running_mean is not None else "use keep='drop'")
            )
        if type(m).forward not in (_BatchNorm.forward, nn.SyncBatchNorm.forward):
            raise PathsumError(
                f"'{name}' is a {type(m).__name__}, a BatchNorm with a forward of its own (an activation in it?), "
                "which cannot be replaced: write it as a plain BatchNorm and what follows"
            )


def _is_layer(model: nn.Module, name: str) -> bool:
    return isinstance(model.get_submodule(name), _ConvNd | nn.Linear)


def fuse(layer: Any, norm: Any) -> None:
    """Write BN into the weight and bias of the layer before it, in place; computed in float64."""
    groups = layer.groups if isinstance(layer, _ConvTransposeNd) else 1  # there output channels lie within a group
    weights = layer.weight.double().chunk(groups)
    parts = [t.chunk(groups) if t is not None else (None,) * groups for t in (layer.bias, *_numbers(norm))]
    made = []
    for weight, bias, mean, var, scale, shift in zip(weights, *parts, strict=True):
        if isinstance(layer, nn.Linear):
            made.append(fuse_linear_bn_weights(weight, bias, mean, var, norm.eps, scale, shift))
        else:
            transpose = isinstance(layer, _ConvTransposeNd)
            made.append(fuse_conv_bn_weights(weight, bias, mean, var, norm.eps, scale, shift, transpose))
    wanted, dtype = layer.weight.requires_grad, layer.weight.dtype
    layer.weight = nn.Parameter(torch.cat([w for w, _ in made]).to(dtype), wanted)
    layer.bias = nn.Parameter(torch.cat([b for _, b in made]).to(dtype), wanted)


def as_affine(norm: Any) -> ChannelAffine:
    mean, var, scale, shift = _numbers(norm)
    weight = scale / torch.sqrt(var + norm.eps)
    dtype = norm.running_mean.dtype if norm.weight is None else norm.weight.dtype
    affine = ChannelAffine(weight.to(dtype), (shift - mean * weight).to(dtype))
    return affine.requires_grad_(norm.weight is None or norm.weight.requires_grad)


def _numbers(norm: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """μ, σ², γ, β in float64."""
    mean, var = norm.running_mean.double(), norm.running_var.double()
    scale = torch.ones_like(mean) if norm.weight is None else norm.weight.double()
    return mean, var, scale, torch.zeros_like(mean) if norm.bias is None else norm.bias.double()


def dropped(net: Knobs, kind: Kind) -> nn.Module:
    """The norms inside branches replaced by the identity."""
    net.need_joins()
    inside = {name for b in net.branches for name in b.modules}
    found = [name for name, family in norms_of(net.model).items() if kind in ("all", family)]
    out = [name for name in found if name in inside]
    if not out:
        stay = f"; on the stream, where they stay: {', '.join(found)}" if found else ""
        raise PathsumError(
            f"no {'' if kind == 'all' else kind + ' '}normalization inside a branch of {type(net.model).__name__}{stay}"
        )
    model = copy.deepcopy(net.model)
    for name in out:
        replace(model, model.get_submodule(name), nn.Identity())
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0  # its fused kernel has the norms built in
    log.info("norms dropped: %s; kept on the stream: %s", out, [name for name in found if name not in inside])
    return model


def norms_of(model: nn.Module) -> dict[str, str]:
    """Normalization modules and the family of each, "batch", "layer" or "group"."""
    found = {}
    for name, m in model.named_modules():
        named = None if next(m.children(), None) is not None else _NAMED.fullmatch(type(m).__name__)
        if named:
            family = named[1].lower()
            found[name] = _FAMILY.get(family, family)
        elif isinstance(m, _BatchNorm):
            found[name] = "batch"
        elif isinstance(m, nn.LayerNorm | nn.RMSNorm):
            found[name] = "layer"
        elif isinstance(m, nn.GroupNorm | nn.modules.instancenorm._InstanceNorm):
            found[name] = "group"
    return found


def norm_table(net: Knobs) -> pd.DataFrame:
    """The norms as a table: the branch each is in, and what `without_norm` makes of it."""
    import pandas as pd

    where = {name: b.name for b in net.branches for name in b.modules}
    fusions = {f.norm: f for f in net.anatomy.fusions}
    rows = []
    for name, family in norms_of(net.model).items():
        function = "–"
        if family == "batch" and name in fusions:
            found = fusions[name]
            function = f"into {found.layer}" if found.layer else f"stays affine: {found.why}"
        drop = "dropped" if name in where else "kept"
        rows.append({"norm": name, "kind": family, "branch": where.get(name, "–"), "function": function, "drop": drop})
    return pd.DataFrame(rows, columns=["norm", "kind", "branch", "function", "drop"])


def replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put a module in the place of another, under each name it has."""
    new.train(old.training)
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new
