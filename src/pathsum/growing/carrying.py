"""The optimizer's memory, carried to a net of another depth.

For a weight that was multiplied, w' = c·w and ∂L/∂w' = (∂L/∂w)/c: running means of gradients are divided by c, those
of their squares by c². So the buffers are what they would be, had the gradients been taken at the new net.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from pathsum.errors import PathsumError
from pathsum.growing.remake import Made
from pathsum.growing.scales import Renewed

# The power of c that a buffer of a weight is multiplied by, for the optimizers of torch.
POWERS: dict[str, dict[str, int]] = {
    "SGD": {"momentum_buffer": -1},
    "Adam": {"exp_avg": -1, "exp_avg_sq": -2, "max_exp_avg_sq": -2},
    "AdamW": {"exp_avg": -1, "exp_avg_sq": -2, "max_exp_avg_sq": -2},
    "NAdam": {"exp_avg": -1, "exp_avg_sq": -2},
    "RAdam": {"exp_avg": -1, "exp_avg_sq": -2},
    "Adamax": {"exp_avg": -1, "exp_inf": -1},
    "Adagrad": {"sum": -2},
    "Adadelta": {"square_avg": -2, "acc_delta": 2},  # the second is of updates, which are as large as weights
    "RMSprop": {"square_avg": -2, "grad_avg": -1, "momentum_buffer": 0},  # its momentum is of g/√v, which has no scale
}
SIZES = ("exp_inf",)  # of these the size counts, not the sign


def carry(optimizer: torch.optim.Optimizer, made: Made) -> torch.optim.Optimizer:
    """A new optimizer of the same class on the new net: groups and memory as they were, new weights beside their like.

    Weights that are no part of the net stay as they are. New weights have no memory yet. A learned λ's new entries
    start with momentum 0, and with the mean of the others' second moments, which their common step count asks for.
    Raises `PathsumError` for a memory that is not known to follow a weight that was multiplied.
    """
    kind = type(optimizer)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise PathsumError(f"optimizer is a {kind.__name__}, expected a torch.optim.Optimizer")
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    gone = set(made.old_parameters) - set(made.parameters)
    beside: dict[int, list[nn.Parameter]] = {}
    for p, like in made.likenesses:
        beside.setdefault(id(like), []).append(p)
    if not known & set(made.old_parameters):
        raise PathsumError("the optimizer holds none of the net's parameters: give the one that trains this very net")
    groups = []
    for group in optimizer.param_groups:
        kept = [made.parameters.get(id(p), p) for p in group["params"] if id(p) not in gone]
        new = [p for old in group["params"] for p in beside.get(id(old), ()) if p.requires_grad]
        options = {k: copy.deepcopy(v) for k, v in group.items() if k not in ("params", "param_names")}
        groups.append({"params": kept + new, **options})
    accepted = inspect.signature(kind).parameters
    try:
        moved = kind(groups, **{k: v for k, v in optimizer.defaults.items() if k in accepted})
    except Exception as error:
        raise PathsumError(f"cannot make another {kind.__name__} ({error}): make it on result.net yourself") from error
    factors = {id(p): factor_on(p, made) for p, _, _ in made.factors}
    renewed = {id(part.old): part for part in made.renewed}
    for group in optimizer.param_groups:
        for p in group["params"]:
            if id(p) in gone or p not in optimizer.state:
                continue
            target = made.parameters.get(id(p), p)
            moved.state[target] = {
                key: follow(kind, key, value, p, factors.get(id(target)), renewed.get(id(p)))
                for key, value in optimizer.state[p].items()
            }
    return moved


def factor_on(p: nn.Parameter, made: Made) -> Tensor:
    """c for each entry of a parameter."""
    factor = torch.ones(p.shape, dtype=torch.float64, device=p.device)
    for other, entry, c in made.factors:
        if other is p:
            (factor if entry is None else factor.view(-1)[entry]).mul_(c)
    return factor


def follow(kind: type, key: str, value: Any, old: nn.Parameter, factor: Tensor | None, part: Renewed | None) -> Any:
    """One entry of an optimizer's memory of one parameter."""
    if not isinstance(value, Tensor):
        return copy.deepcopy(value)
    value = value.detach().clone()
    if value.shape != old.shape or (value.ndim == 0 and key == "step"):
        if value.ndim and (factor is not None or part is not None):
            raise PathsumError(unknown(kind, key))
        return value
    if factor is None and part is None:
        return value
    powers = next((POWERS[c.__name__] for c in kind.__mro__ if c.__name__ in POWERS), {})
    if key not in powers:
        raise PathsumError(unknown(kind, key))
    if factor is not None:
        factor = factor.abs() if key in SIZES else factor
        value = (value.double() * factor ** powers[key]).to(value.dtype)
    if part is not None:
        begin = value.mean() if powers[key] == -2 or key in SIZES else value.new_zeros(())
        value = torch.stack([begin if i is None else value[i] for i in part.entries])
    return value


def unknown(kind: type, key: str) -> str:
    return (
        f"how {kind.__name__}'s memory {key!r} follows a weight that is multiplied is not known: grow without "
        "optimizer=, and make a new one on result.net"
    )
