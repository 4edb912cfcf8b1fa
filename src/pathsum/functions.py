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


ADDITIONS = _functions("add sub subtract rsub") | {torch.Tensor.__rsub__: "rsub"}
UNITS = _functions(
    "relu relu6 leaky_relu prelu rrelu elu selu celu gelu silu mish softplus tanh sigmoid logsigmoid hardtanh "
    "hardswish hardsigmoid hardshrink softshrink tanhshrink softsign threshold"
)
RECURRENT = _functions("lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell")
WEIGHTED = RECURRENT | _functions(
    "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d linear bilinear embedding embedding_bag "
    "multi_head_attention_forward"
)
MATRIX_PRODUCTS = _functions("matmul mm bmm addmm baddbmm einsum tensordot mv addmv __matmul__")
PRODUCTS = MATRIX_PRODUCTS | _functions("mul multiply div true_divide addcmul addcdiv")
NONLINEAR = (
    UNITS
    | RECURRENT
    | _functions(
        "softmax log_softmax scaled_dot_product_attention multi_head_attention_forward exp log sqrt rsqrt pow abs "
        "square sin cos erf reciprocal maximum minimum max min amax amin clamp clip topk sort argmax"
    )
)
NORMS = _functions("batch_norm layer_norm group_norm instance_norm rms_norm local_response_norm")
# The values stay as they are, in their order.
STILL = _functions(
    "dropout dropout1d dropout2d dropout3d contiguous clone view reshape flatten unflatten squeeze unsqueeze "
    "to float double"
)
# Linear without a constant: a factor before is a factor behind.
PASSING = STILL | _functions("permute transpose")
RANDOM = _functions(
    "rand randn randint rand_like randn_like randint_like bernoulli poisson multinomial normal dropout uniform "
    "exponential geometric log_normal cauchy random"
)
FOLDABLE = NORMS | _functions(
    "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d linear addmm multi_head_attention_forward"
)
SCALINGS = _functions("mul multiply")
SHAPED_LIKE = _functions("expand_as view_as reshape_as type_as")  # of the second argument only shape or type count
# Calls whose result is new memory, no view of an argument and no argument itself.
FRESH = ADDITIONS | UNITS | NORMS | _functions("conv1d conv2d conv3d linear matmul mm bmm addmm pow mul multiply")
ACTIVATION_MODULES = tuple(getattr(nn, name) for name in nn.modules.activation.__all__)
# Questions about a tensor, and makers of new ones, say nothing about the flow of data and may differ between runs.
# torch lists these among the functions it ignores, and yet they carry data.
CARRIERS = frozenset(
    func
    for name in (
        "hardsigmoid hardswish sigmoid tanh upsample upsample_bilinear upsample_nearest unflatten as_strided vander"
    ).split()
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
DATA_GETTERS = {getattr(torch.Tensor, n).__get__ for n in ("T", "mT", "H", "mH", "data", "real", "imag")}


def ignored(func: Any) -> bool:
    """Whether a call is outside the flow of data: property getters, questions, factories."""
    return (getattr(func, "__name__", "") == "__get__" and func not in DATA_GETTERS) or func in IGNORED


def counts(func: Any, args: tuple) -> bool:
    """Whether a call moves a counter, as a train-mode BatchNorm does: outside the flow of data too."""
    return func in ADDITIONS and bool(args) and is_counter(args[0])


def is_counter(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim == 0 and value.dtype == torch.int64
