"""What is given to the knobs and what a model gives back: λ, α, and the output tensor among its results."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .care import tensors_in
from .errors import LambdaError, PathsumError
from .series import Series

Lam = float | Tensor | Series | Sequence[float]
Alpha = float | Tensor | Sequence[float | Tensor]
Output = str | int | Callable[[Any], Tensor] | None


def check_lam(lam: Lam, n: int) -> Series | list[float | Tensor]:
    """λ as one value for each of n branches; raises `LambdaError` for a wrong shape or type."""
    if isinstance(lam, Series):
        if lam.c.ndim == 2 and lam.c.shape[1] != n:
            raise LambdaError(f"λ is a series of {lam.c.shape[1]} values; the model has {n} residual branches")
        if lam.c.ndim > 2:
            raise LambdaError(
                f"λ is a series of shape {tuple(lam.c.shape[1:])}; give one value, or one a branch ({n},)"
            )
        return lam
    if not isinstance(lam, Tensor):
        try:
            lam = torch.tensor(lam, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError):
            raise LambdaError(
                f"λ is {lam!r}: give a number, one a branch ({n}), a tensor or a Series; "
                "for a rule such as '1/sqrt(n)' call net.rescale"
            ) from None
    if lam.ndim and tuple(lam.shape) != (n,):
        raise LambdaError(
            f"λ has shape {tuple(lam.shape)}; the model has {n} residual branches: give one number or shape ({n},)"
        )
    if not is_number(lam):
        return list(lam) if lam.ndim else [lam] * n
    values = lam.tolist() if lam.ndim else [lam.item()] * n
    if not all(map(math.isfinite, values)):
        raise LambdaError(f"λ must be finite, got {values[0] if lam.ndim == 0 else values}")
    return values


def check_alpha(alpha: Alpha, n: int) -> list[float | Tensor]:
    """α as one value for each of n units."""
    if isinstance(alpha, int | float) or (isinstance(alpha, Tensor) and alpha.ndim == 0):
        return [alpha] * n
    if len(alpha) != n:
        raise LambdaError(f"α has {len(alpha)} values; the model has {n} nonlinear units: give one number or {n}")
    return list(alpha)


def is_number(lam: Tensor) -> bool:
    """Whether these are plain values that can be read: no gradient wanted, not transformed by torch.func."""
    return not (lam.requires_grad or lam.is_meta or torch._C._functorch.is_functorch_wrapped_tensor(lam))


def exact(values: Tensor | Sequence[float], device: torch.device) -> Tensor:
    """Fixed λ on a device, in float64 where it has that."""
    return torch.as_tensor(values, device=device, dtype=torch.float32 if device.type == "mps" else torch.float64)


def pick(out: Any, output: Output) -> Tensor:
    """The output tensor: by name, index or function, else the result itself, a usual name, or the first in it."""
    picked: Any
    if callable(output):
        picked = output(out)
    elif output is not None:
        key: Any = output
        if isinstance(out, dict):
            picked = out.get(key)
        elif isinstance(key, int):
            picked = out[key] if isinstance(out, list | tuple) and key < len(out) else None
        else:
            picked = getattr(out, key, None)
    elif isinstance(out, Tensor):
        picked = out
    else:
        names = ("logits", "last_hidden_state")
        picked = next((getattr(out, k) for k in names if getattr(out, k, None) is not None), None)
        if picked is None:
            picked = next(tensors_in(list(out.values()) if isinstance(out, dict) else out), None)
    if not isinstance(picked, Tensor):
        raise PathsumError(
            f"the model returned {type(out).__name__} and no output tensor was found in it: "
            "say which with knobs(model, x, output='name' or a function)"
        )
    if isinstance(picked, Series):
        picked.check_fresh()
    return picked
