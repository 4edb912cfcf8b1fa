"""Which torch functions are additions, nonlinearities, weighted layers, … and which say nothing of the flow of data."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .rules import spellings


def _functions(names: str) -> dict[Any, str]:
    """Each torch function with one of these names, mapped to that name; in-place forms included."""
    found: dict[Any, str] = {}
    for name in names.split():
        for func in (*spellings(name), *spellings(name + "_"), *spellings(f"__i{name}__")):
            found[func] = name
    return found


ADDITIONS = _functions("add sub subtract") | {torch.Tensor.__rsub__: "rsub"}
UNITS = _functions(
    "relu relu6 leaky_relu prelu rrelu elu selu celu gelu silu mish softplus tanh sigmoid logsigmoid hardtanh "
    "hardswish hardsigmoid hardshrink softshrink tanhshrink softsign threshold"
)
WEIGHTED = _functions(
    "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d linear bilinear embedding embedding_bag "
    "multi_head_attention_forward"
)
PRODUCTS = _functions("matmul mm bmm addmm baddbmm einsum mul multiply div true_divide addcmul addcdiv __matmul__")
NONLINEAR = UNITS | _functions(
    "softmax log_softmax scaled_dot_product_attention multi_head_attention_forward exp log sqrt rsqrt pow abs square "
    "sin cos erf reciprocal maximum minimum max min amax amin clamp clip topk sort argmax"
)
NORMS = _functions("batch_norm layer_norm group_norm instance_norm rms_norm local_response_norm")
# Linear without a constant: a factor before is a factor behind.
PASSING = _functions(
    "dropout dropout1d dropout2d dropout3d contiguous clone view reshape flatten unflatten permute transpose squeeze "
    "unsqueeze to float double"
)
FOLDABLE = NORMS | _functions(
    "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d linear addmm multi_head_attention_forward"
)
SCALINGS = _functions("mul multiply")
# Calls whose result is new memory, no view of an argument and no argument itself.
FRESH = ADDITIONS | UNITS | NORMS | _functions("conv1d conv2d conv3d linear matmul mm bmm addmm pow mul multiply")
ACTIVATION_MODULES = tuple(getattr(nn, name) for name in nn.modules.activation.__all__)
# Questions about a tensor, and makers of new ones, say nothing about the flow of data and may differ between runs.
# torch lists these among the functions it ignores, and yet they carry data.
CARRIERS = frozenset(
    func
    for name in "hardsigmoid hardswish sigmoid tanh upsample upsample_bilinear upsample_nearest unflatten".split()
    for func in spellings(name)
)
QUESTIONS = frozenset(
    func
    for name in (
        "dim ndimension size numel nelement stride storage_offset is_contiguous element_size get_device "
        "is_tensor is_floating_point is_complex is_signed __len__ __repr__ __hash__ __bool__ __format__ item "
        "tolist empty zeros ones full arange linspace eye tensor as_tensor rand randn randint zeros_like "
        "ones_like empty_like full_like new_zeros new_ones new_empty new_full new_tensor equal allclose "
        "isclose is_inference is_conj is_neg numpy finfo result_type can_cast promote_types __deepcopy__ "
    ).split()
    for func in spellings(name)
)
IGNORED = frozenset(torch.overrides.get_ignored_functions()) - CARRIERS | QUESTIONS | {torch._C._set_grad_enabled}
DATA_GETTERS = {getattr(torch.Tensor, n).__get__ for n in ("T", "mT", "H", "mH", "data", "real")}


def ignored(func: Any) -> bool:
    """Whether a call is outside the flow of data: property getters, questions, factories."""
    return (getattr(func, "__name__", "") == "__get__" and func not in DATA_GETTERS) or func in IGNORED
