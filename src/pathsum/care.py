"""Care for the user's model: what is in its way, what it is given, and leaving no trace on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from .errors import ModeError


def tensors_in(values: Any) -> Iterator[Tensor]:
    """All tensors in nested lists, tuples, mappings and dataclass-like outputs."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, dict):
        for v in values.values():
            yield from tensors_in(v)
    elif isinstance(values, list | tuple):
        for v in values:
            yield from tensors_in(v)
    elif is_dataclass(values) or isinstance(values, SimpleNamespace):
        yield from tensors_in(vars(values))


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Give buffers and random state back as they were."""
    buffers = [(b, b.detach().clone()) for b in model.buffers()]
    cpu = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        with torch.no_grad():
            for buffer, saved in buffers:
                if not torch.equal(buffer, saved):
                    buffer.copy_(saved)


def refuse_compiled(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if type(module).__name__ == "OptimizedModule" or isinstance(module, torch.jit.ScriptModule):
            where = f"its part '{name}'" if name else "the model"
            raise ModeError(
                f"{where} is already compiled ({type(module).__name__}), so its calls cannot be seen: "
                "make the knobs first, net = pathsum.knobs(model, x), then compile net"
            )
