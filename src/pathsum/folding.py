"""Write λ into the weights: a plain model, verified equal, with no cost left at inference."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from .care import tensors_in, untouched
from .errors import PathsumError, ProbeError
from .knobs import Knobs
from .sites import Branch

TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
}  # rounding of one multiplication more or less a branch


def fold(net: Knobs, inputs: tuple, kwargs: dict[str, Any]) -> nn.Module:
    """A copy of `net.model` whose last linear layer of branch i is multiplied by λᵢ over the model's own scale."""
    model = copy.deepcopy(net.model)
    factors: dict[str, float] = {}
    for branch, lam in zip(net.branches, net.lam.tolist(), strict=True):
        name = last_layer(net, branch)
        if branch.lam == 0:
            if lam != 0:
                raise PathsumError(
                    f"branch {branch.name} is multiplied by 0 in the model itself, so λ={lam:.3g} cannot be folded "
                    "into its weights: set the model's own scale instead"
                )
            factors[name] = 1.0
            continue
        factor = lam / branch.lam
        if factors.setdefault(name, factor) != factor:
            raise PathsumError(
                f"layer '{name}' ends several branches, {branch.name} among them, with different λ: "
                "one weight cannot hold both"
            )
    with torch.no_grad():
        for name, factor in factors.items():
            for parameter in model.get_submodule(name).parameters(recurse=False):
                parameter.mul_(factor)
    if inputs or kwargs:
        verify(net, model, inputs, kwargs)
    return model


def last_layer(net: Knobs, branch: Branch) -> str:
    """Qualified name of the linear layer whose output the join adds."""
    name = branch.last
    layer = net.model.get_submodule(name) if name else None
    if isinstance(layer, nn.MultiheadAttention):
        name, layer = f"{name}.out_proj", layer.out_proj
    own = dict(layer.named_parameters(recurse=False)) if layer is not None else {}
    shared = [
        other
        for other, module in net.model.named_modules()
        if module is not layer and any(p is q for p in module.parameters(recurse=False) for q in own.values())
    ]
    if own and own.keys() <= {"weight", "bias"} and not shared:
        return name
    ends = f"in '{name}' ({type(layer).__name__}), " if layer is not None else ""
    ties = f"; its weights are also those of '{shared[0]}'" if shared else ""
    raise PathsumError(
        f"branch {branch.name} ends {ends}not in a linear layer whose weights and result serve this branch alone"
        f"{ties}: λ cannot be folded there; keep the knobs"
    )


def verify(net: Knobs, folded: nn.Module, inputs: tuple, kwargs: dict[str, Any]) -> None:
    """The folded model must give what the knobs give."""
    with torch.no_grad(), untouched(net.model), untouched(folded):
        expected, got = net(*inputs, **kwargs), folded(*inputs, **kwargs)
    for a, b in zip(tensors_in(expected), tensors_in(got), strict=True):
        error = float((a - b).norm() / a.norm().clamp_min(torch.finfo(torch.float32).tiny))
        if not error <= TOLERANCE.get(a.dtype, 1e-2):
            raise ProbeError(f"the folded model differs from the knobs by {error:.2g} (relative): it was not folded")
