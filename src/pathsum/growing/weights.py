"""What is written into the weights: new blocks at zero, old last layers by a factor."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from pathsum.errors import PathsumError
from pathsum.folding import check_uses
from pathsum.nets.tower import SumOfPaths, draw
from pathsum.sites import Branch, End

New = Literal["zero_last", "fresh", "zero"]
NEW = ("zero_last", "fresh", "zero")


@torch.no_grad()
def begin(model: nn.Module, names: Sequence[str], new: New, seed: int | None) -> None:
    """Bring new blocks, which are copies so far, to where they start; the ends of their branches come later."""
    if new == "zero_last":
        return
    init = model.config["init"] if isinstance(model, SumOfPaths) else None
    generator = None if seed is None else torch.Generator("cpu").manual_seed(seed)
    for i, name in enumerate(names):
        block = model.get_submodule(name)
        if new == "zero":
            zero(block)
        elif init is None:
            redraw(block, None if seed is None else seed + i)
        else:
            for layer in block.modules():
                if isinstance(layer, nn.Conv2d | nn.Linear):
                    draw_anywhere(layer, init, generator)
                elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                    layer.reset_parameters()


def zero(block: nn.Module) -> None:
    """Every parameter 0; running statistics as of a new layer."""
    for p in block.parameters():
        p.zero_()
    for module in block.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.reset_running_stats()


def redraw(block: nn.Module, seed: int | None) -> None:
    """Parameters as PyTorch's layers draw them; those of layers without `reset_parameters` stay copies."""
    with torch.random.fork_rng(enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        for module in block.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()


def draw_anywhere(layer: nn.Conv2d | nn.Linear, init: str, generator: torch.Generator | None) -> None:
    """A tower's own initialization, drawn on the CPU in float32 so that a seed means the same everywhere."""
    twin = type(layer).__new__(type(layer))
    nn.Module.__init__(twin)
    twin.weight = nn.Parameter(torch.empty(layer.weight.shape))
    twin.bias = None if layer.bias is None else nn.Parameter(torch.empty(layer.bias.shape))
    draw(twin, init, generator)  # type: ignore[arg-type]
    for name, p in twin.named_parameters():
        layer.get_parameter(name).copy_(p)


@torch.no_grad()
def zero_ends(model: nn.Module, branches: Sequence[tuple[Branch, str]]) -> None:
    """Zero the last linear maps of branches, given with the block each is in."""
    for branch, block in branches:
        for end in branch.ends:
            if not end.parameter.startswith(f"{block}."):
                raise PathsumError(
                    f"branch {branch.name} of the new block '{block}' ends in {end.parameter!r}, a weight outside of "
                    "it: setting that to zero would change other branches"
                )
            place(model, end).zero_()


def factors_of(branches: Sequence[Branch], old: Sequence[float], new: Sequence[float]) -> dict[End, float]:
    """By how much to multiply the parameters that end each branch, so that λ·F stays: λ_old/λ_new."""
    wanted: dict[End, list[tuple[str, float, Branch]]] = defaultdict(list)
    for branch, before, after in zip(branches, old, new, strict=True):
        if before == after:
            continue
        if before == 0 or after == 0:
            raise PathsumError(
                f"λ of branch {branch.name} goes from {before:.3g} to {after:.3g} at the new depth, which no factor on "
                "its last layer can make up for: rescale the net first"
            )
        if not branch.ends:
            raise PathsumError(
                f"λ of branch {branch.name} goes from {before:.3g} to {after:.3g} at the new depth, and the branch has "
                f"no last linear map to make up for it: {branch.stuck}; give λ as a number or list, which do not "
                "depend on depth"
            )
        for end in branch.ends:
            wanted[end].append(("mul", before / after, branch))
    for end, uses in wanted.items():
        check_uses(end, uses)
    return {end: uses[0][1] for end, uses in wanted.items()}


@torch.no_grad()
def multiply(model: nn.Module, factors: Mapping[End, float]) -> None:
    """Multiply in float64, and round once."""
    for end, factor in factors.items():
        weight = place(model, end)
        weight.copy_(weight.double() * factor)


def place(model: nn.Module, end: End) -> Tensor:
    """The parameter, or the entry of it, as a tensor to write to."""
    parameter = model.get_parameter(end.parameter).detach()
    return parameter if end.entry is None else parameter.view(-1)[end.entry]
