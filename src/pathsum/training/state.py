"""Model, optimizer and random state as named tensors, and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pathsum.errors import CheckpointError
from pathsum.runs import load_state


def pack(
    model: nn.Module, optimizer: torch.optim.Optimizer, generators: list[torch.Generator]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Everything a step depends on beside its batch: tensors, and what of the optimizer is no tensor."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    numbers: dict[str, Any] = {}
    for index, entry in optimizer.state_dict()["state"].items():
        for name, value in entry.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{name}"] = value
            else:
                numbers[f"{index}.{name}"] = value
    for index, generator in enumerate(generators):
        tensors[f"random.{index}"] = generator.get_state()
    return tensors, numbers


def unpack(
    tensors: Mapping[str, Tensor],
    numbers: Mapping[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    generators: list[torch.Generator],
    path: Path,
) -> None:
    """Put what `pack` gave back in place; `path` is named where it does not fit."""
    parts: dict[str, dict[str, Any]] = {"model": {}, "optimizer": dict(numbers), "random": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = tensor
    load_state(model, parts["model"], path)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    entries: dict[int, dict[str, Any]] = {}
    try:
        for name, value in parts["optimizer"].items():
            index, _, key = name.partition(".")
            like = parameters[int(index)]
            if isinstance(value, Tensor) and value.shape == like.shape:
                # In the parameter's memory layout too: another one may round differently.
                value = torch.empty_like(like).detach().copy_(value)
            entries.setdefault(int(index), {})[key] = value
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": entries, "param_groups": groups})
        for index, state in parts["random"].items():
            if int(index) < len(generators):  # resumed without the GPU it had
                generators[int(index)].set_state(state)
    except (ValueError, IndexError, RuntimeError) as error:
        why = " ".join(str(error).split())
        raise CheckpointError(f"{path} does not fit this optimizer ({why}); train again") from None
