"""Learning rates that suit λ and depth, as parameter groups of a torch optimizer."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn.utils import parametrize

from .scaling import lr_factor

if TYPE_CHECKING:
    from .knobs import Knobs


def param_groups(net: Knobs, *, optimizer: str, lr: float) -> list[dict[str, Any]]:
    """See `Knobs.param_groups`."""
    rates: dict[int, float] = {}
    inside: set[str] = set()
    labels = net.stage_labels or (0,) * len(net.branches)
    counts = Counter(labels)
    for branch, label, lam in zip(net.branches, labels, net.lam.detach().tolist(), strict=True):
        rate = lr * lr_factor(lam, counts[label], optimizer)
        names = set(filter(None, branch.modules))  # the model's own parameters belong to no branch
        inside |= names
        for name in names:
            for p in own_parameters(net.model, name):
                rates[id(p)] = min(rate, rates.get(id(p), rate))
    for name in {step.module for step in net.anatomy.steps} - inside:  # a weight tied to one outside
        for p in own_parameters(net.model, name):
            if id(p) in rates:
                rates[id(p)] = min(lr, rates[id(p)])
    groups: dict[float, list[nn.Parameter]] = {}
    rest = []
    for p in net.model.parameters():
        if id(p) in rates:
            groups.setdefault(rates[id(p)], []).append(p)
        else:
            rest.append(p)
    found: list[dict[str, Any]] = [{"params": rest, "lr": lr, "name": "rest"}]
    found += [{"params": ps, "lr": rate, "name": f"branches at {rate:.4g}"} for rate, ps in groups.items()]
    if isinstance(net.lam_values, nn.Parameter):
        found.append({"params": [net.lam_values], "lr": lr / 10, "weight_decay": 0.0, "name": "lam"})
    return [g for g in found if g["params"]]


def own_parameters(model: nn.Module, name: str) -> list[nn.Parameter]:
    """The parameters that a call made by this module reads: its own, all of a leaf's, and those behind its weights."""
    module = model.get_submodule(name)
    found = list(module.parameters(recurse=not list(module.children()) or isinstance(module, nn.MultiheadAttention)))
    if parametrize.is_parametrized(module):
        found += module.parametrizations.parameters()  # type: ignore[union-attr]
    return found
