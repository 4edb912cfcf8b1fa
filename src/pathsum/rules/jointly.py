"""Functions linear in one or several arguments at once, applied order by order; plain data enters order 0 only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import MissingRuleError
from ..series import RULES, Handler, Series, name_of
from . import overwrite, rule

# name: its arguments in order, with a star those that it is linear in together; * alone: all its tensors
JOINT = {
    "index_add": "input* dim index source* alpha",
    "index_copy": "input* dim index source*",
    "index_fill": "input* dim index value*",
    "index_put": "input* indices values* accumulate",
    "scatter_add": "input* dim index src*",
    "masked_scatter": "input* mask source*",
    "put": "input* index source* accumulate",
    "select_scatter": "input* src* dim index",
    "slice_scatter": "input* src* dim start end step",
    "diagonal_scatter": "input* src* offset dim1 dim2",
    "diff": "input* n dim prepend* append*",
    "_grouped_mm": "mat_a* mat_b offs bias* out_dtype",
    "grouped_mm": "mat_a* mat_b offs bias* out_dtype",
    "trapezoid": "y* x dim dx",
    "trapz": "y* x dim dx",
    "cumulative_trapezoid": "y* x dim dx",
    "complex": "real* imag*",
    "fill": "input* value*",
    "meshgrid": "*",
    "broadcast_tensors": "*",
    "cartesian_prod": "*",
    "combinations": "*",
    "block_diag": "*",
    "atleast_1d": "*",
    "atleast_2d": "*",
    "atleast_3d": "*",
    "column_stack": "*",
    "row_stack": "*",
}
# linear in the first argument alone
ALONE = (
    "take masked_select max_unpool1d max_unpool2d max_unpool3d affine_grid affine_grid_generator stft istft gradient "
    "native_channel_shuffle deg2rad rad2deg diag diagflat sum_to_size conj_physical "
    "fft ifft rfft irfft hfft ihfft fft2 ifft2 rfft2 irfft2 fftn ifftn rfftn irfftn fftshift ifftshift "
    "unsafe_chunk unsafe_split unsafe_split_with_sizes narrow_copy select_copy slice_copy view_copy t_copy "
    "transpose_copy permute_copy squeeze_copy unsqueeze_copy expand_copy diagonal_copy alias_copy detach_copy "
    "unfold_copy split_copy split_with_sizes_copy unbind_copy"
).split()


def order(value: Any, k: int) -> Any:
    """Order k of a value: of a plain one, itself at order 0 and zeros above; of a list, of each in it."""
    if isinstance(value, Series):
        return value.c[k] if k < value.m else torch.zeros_like(value.c[0])
    if isinstance(value, list | tuple):
        return type(value)(order(v, k) for v in value)
    if k == 0 or value is None:
        return value
    return torch.zeros_like(value) if isinstance(value, Tensor) else 0


def longest(values: Iterator[Any]) -> Series:
    """The series, also inside lists, that has reached most orders."""
    found: list[Series] = []
    for v in values:
        found += [x for x in (v if isinstance(v, list | tuple) else (v,)) if isinstance(x, Series)]
    return max(found, key=lambda x: x.m)


def gather_orders(outs: list[Any], like: Series) -> Any:
    """One result per order to a series, or to a list of them."""
    if isinstance(outs[0], Tensor):
        return like.like(torch.stack(outs))
    return type(outs[0])(gather_orders(list(part), like) for part in zip(*outs, strict=True))


def jointly(pattern: str) -> Handler:
    """The handler of a function whose data arguments the pattern stars."""
    names = [n.rstrip("*") for n in pattern.split()]
    data = {n.rstrip("*") for n in pattern.split() if n.endswith("*")} | {"self"}

    def at(k: int, func: Callable[..., Any], name: str, value: Any) -> Any:
        if name in data or (pattern == "*" and isinstance(value, Tensor | list | tuple)):
            return order(value, k)
        if isinstance(value, Series):
            raise MissingRuleError(f"{name_of(func)} whose {name} depends on λ: it is not linear in that argument")
        return value

    def handle(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        places = [*names, *("further arguments",) * len(args)]
        like = longest(iter((*args, *kwargs.values())))
        outs = []
        for k in range(like.m):
            positional = (at(k, func, n, a) for n, a in zip(places, args, strict=False))
            outs.append(func(*positional, **{n: at(k, func, n, v) for n, v in kwargs.items()}))
        return gather_orders(outs, like)

    return handle


for _name, _pattern in JOINT.items():
    rule(_name)(jointly(_pattern))
for _name in ALONE:
    rule(_name)(jointly("input*"))


@rule("view_as_complex", "view_as_real", "view_as_complex_copy", "view_as_real_copy", "imag")
def complex_view(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    """Two numbers as a complex one, and back: on all coefficients at once, since only the last axis is looked at."""
    x = args[0] if args else kwargs["input"]
    return x.view_of(func(x.c.contiguous() if "as_complex" in func.__name__ else x.c))


for _name in ("real", "imag"):
    RULES[getattr(torch.Tensor, _name).__get__] = complex_view


@rule("scatter")
def scatter(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """Values put, or added, at places; a number put there is a constant."""
    reduce = kwargs.get("reduce", args[4] if len(args) > 4 else None)
    if reduce not in (None, "add"):
        raise MissingRuleError(f"scatter with reduce='{reduce}' on a series: only 'add' is linear")
    return jointly("input* dim index src* reduce" if "value" not in kwargs else "input* dim index value* reduce")(
        func, args, kwargs
    )


@rule("scatter_reduce", "index_reduce")
def scatter_reduce(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    reduce = kwargs.get("reduce", args[4] if len(args) > 4 else None)
    if reduce not in ("sum", "mean"):
        raise MissingRuleError(f"{name_of(func)} with reduce='{reduce}' on a series: only 'sum' and 'mean' are linear")
    return jointly("input* dim index src* reduce include_self")(func, args, kwargs)


@rule("grid_sample", "grid_sampler", "grid_sampler_2d", "grid_sampler_3d")
def grid_sample(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    grid = args[1] if len(args) > 1 else kwargs["grid"]
    if isinstance(grid, Series):
        raise MissingRuleError(
            f"{name_of(func)} with a grid that depends on λ: only its input may; detach the grid, or register a rule"
        )
    return jointly("input* grid")(func, args, kwargs)


# torch.embedding and torch.embedding_bag take other arguments, and are called by these.
RULES[F.embedding] = jointly("input weight* padding_idx max_norm norm_type scale_grad_by_freq sparse")


def embedding_bag(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """Linear in the weights of its samples, or in its table: not in both."""
    weights = kwargs.get("per_sample_weights", args[8] if len(args) > 8 else None)
    table = args[1] if len(args) > 1 else kwargs["weight"]
    mode = kwargs.get("mode", args[6] if len(args) > 6 else "mean")
    if mode == "max" or (isinstance(weights, Series) and isinstance(table, Series)):
        raise MissingRuleError(
            "embedding_bag with mode='max', or whose table and per_sample_weights both depend on λ, is not covered: "
            "write it as an embedding and a sum"
        )
    names = "input weight offsets max_norm norm_type scale_grad_by_freq mode sparse per_sample_weights"
    starred = "per_sample_weights" if isinstance(weights, Series) else "weight"
    return jointly(" ".join(n + "*" * (n == starred) for n in names.split()))(func, args, kwargs)


RULES[F.embedding_bag] = embedding_bag


@rule("as_strided", "as_strided_copy")
def as_strided(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    """Of the contiguous tensor that a series is to the model."""

    def strided(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return func(x.contiguous().view(-1).clone(), *args, **kwargs)

    return jointly("input* size stride storage_offset")(strided, args, kwargs)


def zero_(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    x = args[0]
    return x.assign(x.like(torch.zeros_like(x.c[:1])))


def fill_diagonal_(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    def filled(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return func(x.clone(), *args, **kwargs)

    return overwrite(args[0], jointly("input* fill_value* wrap")(filled, args, kwargs))


RULES[torch.Tensor.zero_] = zero_
RULES[torch.Tensor.fill_diagonal_] = fill_diagonal_
