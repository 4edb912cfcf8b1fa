"""Questions about a tensor: answered by a coefficient, which has the same shape, dtype and device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..series import ABOUT, RULES
from . import rule

QUESTIONS = (
    "dim ndimension size numel nelement element_size get_device is_floating_point is_complex is_signed is_tensor "
    "__len__ zeros_like ones_like empty_like full_like rand_like randn_like new_zeros new_ones new_empty new_full "
    "new_tensor is_inference is_conj is_neg "
).split()
GETTERS = (
    "shape dtype device ndim layout requires_grad is_leaf grad is_cuda is_cpu is_sparse is_quantized is_meta "
    "itemsize nbytes is_mps is_xpu is_nested is_mkldnn names "
).split()


@rule(*QUESTIONS)
def ask(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    if not args:
        kwargs = {k: v.c[0] if k == "input" else v for k, v in kwargs.items()}
        return func(**kwargs)
    return func(args[0].c[0], *args[1:], **kwargs)


@rule("stride", "storage_offset")
def layout(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """A series is laid out as suits its rules; to the model it is contiguous."""
    return func(torch.empty(args[0].c.shape[1:], device="meta"), *args[1:], **kwargs)


for _name in GETTERS:
    if hasattr(torch.Tensor, _name):
        RULES[getattr(torch.Tensor, _name).__get__] = ask
RULES[torch.is_tensor] = lambda func, args, kwargs: True


@rule("is_contiguous")
def is_contiguous(func: Callable[..., Any], args: tuple, kwargs: dict) -> bool:
    return True


ABOUT.update((ask, layout, is_contiguous))
