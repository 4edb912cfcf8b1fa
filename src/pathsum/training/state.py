"""Model, optimizer and random state as named tensors, and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pathsum.errors import CheckpointError, PathsumError
from pathsum.runs import load_state
from pathsum.storage import read_tensors, write_tensors


def pack(
    model: nn.Module, optimizer: torch.optim.Optimizer, generators: list[torch.Generator]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Everything a step depends on beside its batch: tensors, and what of the optimizer is no tensor."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    memory, numbers = pack_memory(optimizer)
    tensors |= memory
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
    unpack_memory(parts["optimizer"], optimizer, path)
    for index, state in parts["random"].items():
        if int(index) < len(generators):  # resumed without the GPU it had
            generators[int(index)].set_state(state)


def pack_memory(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What an optimizer remembers of each parameter: tensors, and what is no tensor."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for index, entry in optimizer.state_dict()["state"].items():
        for name, value in entry.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{name}"] = value
            else:
                numbers[f"{index}.{name}"] = value
    return tensors, numbers


def unpack_memory(entries_by_name: Mapping[str, Any], optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Give an optimizer what another remembered of the same parameters, in the same order."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    entries: dict[int, dict[str, Any]] = {}
    try:
        for name, value in entries_by_name.items():
            index, _, key = name.partition(".")
            like = parameters[int(index)]
            if isinstance(value, Tensor) and value.shape == like.shape:
                # In the parameter's memory layout too: another one may round differently.
                value = torch.empty_like(like).detach().copy_(value)
            entries.setdefault(int(index), {})[key] = value
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": entries, "param_groups": groups})
    except (ValueError, IndexError, RuntimeError) as error:
        why = " ".join(str(error).split())
        raise CheckpointError(f"{path} does not fit this optimizer ({why}); train again") from None


def save_memory(path: Path, optimizer: torch.optim.Optimizer) -> None:
    """Write an optimizer's memory to a file, with the name of its class."""
    tensors, numbers = pack_memory(optimizer)
    write_tensors(path, tensors, {"class": type(optimizer).__name__, "optimizer": numbers})


def load_memory(path: Path, optimizer: torch.optim.Optimizer) -> None:
    """Read it back into an optimizer of the same class on the same parameters; raises `CheckpointError`."""
    tensors, state = read_tensors(path)
    if state.get("class") != type(optimizer).__name__:
        raise CheckpointError(
            f"{path} holds the memory of {state.get('class', 'no optimizer')}, expected {type(optimizer).__name__}: "
            "train with the same optimizer, or remove the file to begin without memory"
        )
    named = {name.removeprefix("optimizer."): tensor for name, tensor in tensors.items()}
    unpack_memory({**state.get("optimizer", {}), **named}, optimizer, path)


def adopt(optimizer: torch.optim.Optimizer, other: torch.optim.Optimizer) -> None:
    """Let an optimizer remember what another does of the parameters both have."""
    if type(optimizer) is not type(other):
        raise PathsumError(
            f"the optimizer given is {type(other).__name__}, but the configuration asks for {type(optimizer).__name__}"
        )
    for group in optimizer.param_groups:
        for p in group["params"]:
            if other.state.get(p):
                optimizer.state[p] = {key: laid_out(value, p) for key, value in other.state[p].items()}


def laid_out(value: Any, like: Tensor) -> Any:
    """In the parameter's memory layout, so that it rounds alike; itself where it is so laid out."""
    if not isinstance(value, Tensor) or value.shape != like.shape or value.stride() == like.stride():
        return value
    return torch.empty_like(like).detach().copy_(value)
