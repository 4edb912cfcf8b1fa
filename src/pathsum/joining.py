"""What the knobs put in place of a call on plain tensors: skip + λ·branch, and αa + (1 − α)φ(a)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import LambdaError

IN_PLACE = frozenset(
    name.format(op) for op in ("add", "sub", "subtract") for name in ("{}_", "__i{}__", "i{}")
)  # torch.compile calls x += y operator.iadd


def join(args: tuple, skip: int, branch: int, signs: tuple[int, int], lam: float | Tensor, *, in_place: bool) -> Tensor:
    """skip + λ·branch of an addition's arguments; an in-place one keeps the result in its first argument."""
    base = args[skip] if signs[0] == 1 else -args[skip]
    if isinstance(lam, Tensor):
        # the gradient in λ needs the branch as it was
        factor = args[branch].clone() if in_place and branch == 0 and lam.requires_grad else args[branch]
        out = base + (signs[1] * lam) * factor
    elif lam == 0:
        out = base.clone()
    else:
        out = torch.add(base, args[branch], alpha=signs[1] * lam)
    return args[0].copy_(out) if in_place else out


def bend(func: Callable[..., Any], alpha: float | Tensor, args: tuple, kwargs: dict[str, Any]) -> Tensor:
    """αa + (1 − α)φ(a). An in-place φ keeps the result in its argument.

    α is a number, a vector along the channels (axis 1 of maps, the last of others), or broadcasts against one sample.
    For φ = ReLU this is one kernel, PReLU's. Raises `LambdaError` where α does not fit.
    """
    a = args[0] if args else kwargs["input"]
    rest = args[1:] if args else ()
    kwargs = {k: v for k, v in kwargs.items() if k != "input"}
    weight = fitted(alpha, a)
    name = func.__name__
    writes = name.endswith("_") or kwargs.get("inplace") is True or any(v is True for v in rest)  # perhaps
    if name.strip("_") == "relu":
        if not writes:
            return leaky(a, weight)
        return a if not isinstance(weight, Tensor) and weight == 1 else a.copy_(leaky(a.clone(), weight))
    if not writes:
        return blend(func(a, *rest, **kwargs), a, weight)
    changed = a.clone()  # where φ works in place, its gradient needs its own result
    value = func(changed, *rest, **kwargs)
    if value is not changed:
        return blend(value, changed, weight)
    return a.copy_(blend(value, a.clone(), weight))


def fitted(alpha: float | Tensor, a: Tensor) -> float | Tensor:
    """α in the form that broadcasts against a."""
    if not isinstance(alpha, Tensor) or alpha.ndim == 0:
        return alpha
    weight = alpha
    if alpha.ndim == 1 and alpha.numel() > 1 and a.ndim in (4, 5):
        weight = alpha.view(-1, *(1,) * (a.ndim - 2))
    if weight.ndim > a.ndim or any(n not in (1, m) for n, m in zip(weight.shape[::-1], a.shape[::-1], strict=False)):
        raise LambdaError(
            f"α of shape {tuple(alpha.shape)} does not fit a unit of shape {tuple(a.shape)}: give a number, one value "
            "a channel (axis 1 of maps, the last of others), or a tensor that broadcasts against one sample"
        )
    return weight


def leaky(a: Tensor, alpha: float | Tensor) -> Tensor:
    """αa + (1 − α)relu(a) = a where a > 0, else αa; α broadcasts against a."""
    if not isinstance(alpha, Tensor):
        return F.leaky_relu(a, alpha)
    alpha = alpha.to(a.dtype)
    plain = not alpha.requires_grad or not torch.is_grad_enabled() or torch.compiler.is_compiling() or transformed(a)
    return sloped(a, alpha) if plain or transformed(alpha) else Learned.apply(a, alpha)


def transformed(t: Tensor) -> bool:
    """Whether torch.func, or forward-mode differentiation, is at work: it has rules for torch's functions only."""
    return torch._C._functorch.is_functorch_wrapped_tensor(t) or torch.autograd.forward_ad._current_level >= 0


def sloped(a: Tensor, alpha: Tensor) -> Tensor:
    """`leaky` for a tensor α, by one kernel where PReLU takes its shape."""
    flat = alpha.reshape(-1)
    if len(flat) == 1:
        return F.prelu(a, flat)
    if a.ndim > 1 and alpha.ndim >= a.ndim - 1 and alpha.shape[1 - a.ndim] == len(flat):  # along axis 1
        return F.prelu(a, flat)
    if alpha.shape[-1] == len(flat):  # along the last
        return F.prelu(a.reshape(-1, len(flat)), flat).view(a.shape)
    return torch.lerp(F.relu(a), a, alpha)


class Learned(torch.autograd.Function):
    """`sloped` with a gradient of whole-tensor operations: torch's own of PReLU goes number by number on the CPU."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, alpha: Tensor) -> Tensor:
        alpha = laid_out(alpha, a)
        ctx.save_for_backward(a, alpha)
        return torch.ops.aten._prelu_kernel(a, alpha)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, alpha = ctx.saved_tensors
        to_a = to_alpha = None
        if ctx.needs_input_grad[1]:
            to_alpha = a.clamp(max=0).mul_(grads[0]).sum_to_size(alpha.shape)
        if ctx.needs_input_grad[0]:
            to_a = torch.ops.aten.threshold_backward(grads[0], a, 0).lerp_(grads[0], alpha)  # where a ≤ 0: α times it
        return to_a, to_alpha


def laid_out(alpha: Tensor, a: Tensor) -> Tensor:
    """α of whole maps in a's order in memory, so that a kernel passes over both at once."""
    whole = a.ndim == 4 and alpha.ndim >= 3 and alpha.shape[-1] > 1
    if not whole or a.is_contiguous() or not a.is_contiguous(memory_format=torch.channels_last):
        return alpha
    batched = alpha.reshape(-1, *alpha.shape[-3:]).contiguous(memory_format=torch.channels_last)
    return batched if alpha.ndim == 4 else batched[0]


def blend(value: Tensor, a: Tensor, alpha: float | Tensor) -> Tensor:
    """value + α(a − value), exact at α = 0 and 1."""
    return torch.lerp(value, a, laid_out(alpha.to(a.dtype), a) if isinstance(alpha, Tensor) else alpha)
