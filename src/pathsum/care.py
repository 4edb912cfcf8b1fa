"""Care for the user's model: what is in its way, what it is given, and leaving no trace on it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import is_dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from .errors import ModeError, ProbeError


def tensors_in(values: Any) -> Iterator[Tensor]:
    """All tensors in nested lists, tuples, mappings and dataclass-like outputs."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Mapping):
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
    buffers = [
        (module._buffers, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    cpu = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        with torch.no_grad():
            for place, name, buffer, saved in buffers:
                place[name] = buffer  # a forward may put another tensor there
                if not torch.equal(buffer, saved):
                    buffer.copy_(saved)


@contextmanager
def full_precision() -> Iterator[None]:
    """Autocast off on every device: coefficients are not to be rounded to 16 bits between two functions."""
    with ExitStack() as stack:
        for device in ("cpu", "cuda", "mps", "xpu"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


def check_same(
    model: nn.Module, made: nn.Module, inputs: tuple, kwargs: dict[str, Any], tolerance: dict, what: str
) -> None:
    """Raise `ProbeError` where the second model's outputs differ from the first's by more than rounding."""
    outputs = []
    for m in (model, made):
        with torch.no_grad(), untouched(m):  # the same random numbers for both
            out = m(*inputs, **kwargs)
        outputs.append(tensors_in(out))
    for a, b in zip(*outputs, strict=True):
        if not a.is_floating_point():
            continue
        error = float((a.double() - b.double()).norm() / a.double().norm().clamp_min(torch.finfo(torch.float32).tiny))
        if not error <= tolerance.get(a.dtype, 3e-2):
            raise ProbeError(f"{what} differs by {error:.2g} (relative) on these inputs: it was not made")


def refuse_compiled(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if type(module).__name__ == "OptimizedModule" or isinstance(module, torch.jit.ScriptModule):
            where = f"its part '{name}'" if name else "the model"
            raise ModeError(
                f"{where} is already compiled ({type(module).__name__}), so its calls cannot be seen: "
                "make the knobs first, net = pathsum.knobs(model, x), then compile net"
            )


def refuse_recomputing(join: str) -> None:
    """Refuse a join whose forward runs again in the backward pass, where the knobs would not see it."""
    recomputed = False
    if torch.is_grad_enabled():
        hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
        recomputed = hooks is not None and "checkpoint" in getattr(hooks[0], "__qualname__", "")
    else:  # switched off within the run: by autograd.Function, or by a model that means no gradient here
        frame = sys._getframe(1).f_back
        while frame is not None and not recomputed:
            recomputed = isinstance(frame.f_locals.get("ctx"), torch.autograd.function.FunctionCtx)
            frame = frame.f_back
    if recomputed:
        raise ModeError(
            f"join {join} runs under activation checkpointing: its forward is computed again in the backward pass, "
            "without the knobs, and the gradient would be wrong; switch checkpointing off "
            "(model.gradient_checkpointing_disable()), or train net.fold()"
        )


def is_sharded(model: nn.Module) -> bool:
    """Whether parts of the model were given to torch's fully_shard, whose hooks call torch functions of their own."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and any(isinstance(m, fsdp.FSDPModule) for m in model.modules())


def called_by_sharding() -> bool:
    """Whether the call at hand comes from torch.distributed rather than from a module's forward."""
    frame = sys._getframe(2)
    while frame is not None and frame.f_code is not nn.Module._call_impl.__code__:
        if frame.f_globals.get("__name__", "").startswith("torch.distributed"):
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False
