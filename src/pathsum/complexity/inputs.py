"""What a function is differentiated by: its input, or the output of the embedding that takes its input."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..allocation import freed_memory
from ..care import tensors_in, untouched
from ..errors import DataError, ModeError
from ..results import check_eval, full_precision

LOOKUPS = {F.embedding: ("input", 0), torch.Tensor.__getitem__: ("idx", 1)}  # where the indices are


class Watch(TorchFunctionMode):
    """Sees the calls of a function: refuses those that mix samples, and catches where token ids become vectors.

    An embedding is a lookup (`F.embedding`, `weight[ids]`) whose indices are the input `ids`: the tensor itself, or
    one made of it by calls that keep its values (`view`, `to`, `contiguous`, …). Positions with equal values are not.
    """

    def __init__(self, ids: Tensor | None = None, wrap: Callable[[Tensor], Tensor] = torch.clone) -> None:
        super().__init__()
        self.wrap = wrap
        self.made_of_ids = [] if ids is None else [ids]
        self.found: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        refuse_mixing(func, args, kwargs)
        out = func(*args, **kwargs)
        if not self.made_of_ids or not isinstance(out, Tensor):
            return out
        if func in LOOKUPS and out.is_floating_point():
            name, place = LOOKUPS[func]
            if self._is_input(args[place] if len(args) > place else kwargs.get(name)):
                self.found.append(variable(out))
                return self.wrap(self.found[-1])
        elif any(self._is_input(a) for a in args) and self._same_values(out):
            self.made_of_ids.append(out)
        return out

    def _is_input(self, value: Any) -> bool:
        return any(value is known for known in self.made_of_ids)

    def _same_values(self, out: Tensor) -> bool:
        ids = self.made_of_ids[0]
        whole = not out.is_floating_point() and out.dtype != torch.bool
        return whole and out.numel() == ids.numel() and torch.equal(out.flatten(), ids.flatten())


def refuse_mixing(func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> None:
    """Raise `ModeError` for a BatchNorm or dropout in train mode."""
    place = {F.batch_norm: 5, F.dropout: 2}.get(func)
    if place is not None and (args[place] if len(args) > place else kwargs.get("training", False)):
        what = "BatchNorm" if func is F.batch_norm else "dropout"
        if what == "BatchNorm" or (args[1] if len(args) > 1 else kwargs.get("p", 0.5)) > 0:
            raise ModeError(f"the function calls {what} in train mode: call .eval() on the model it runs first")


def variable(x: Tensor) -> Tensor:
    """The tensor to differentiate by: itself where gradients already run through it, else a leaf."""
    x = x.clone() if x.is_inference() else x
    return x if x.requires_grad else x.detach().requires_grad_()


@contextmanager
def prepared(f: Callable[..., Any], *, restore: bool = True) -> Iterator[None]:
    """Gradients on, autocast off, a module checked and (with `restore`) its buffers and the random state given back."""
    module = f if isinstance(f, nn.Module) else nn.Identity()
    check_eval(module)
    with torch.inference_mode(False), torch.enable_grad(), full_precision(), freed_memory("kept"):
        if not restore:
            yield
            return
        with untouched(module):
            yield


def differentiable(
    f: Callable[..., Any],
    inputs: tuple,
    kwargs: dict[str, Any],
    *,
    watch: bool = False,
    wrap: Callable[[Tensor], Tensor] = torch.clone,
) -> tuple[Any, list[Tensor]]:
    """f(*inputs, **kwargs) and the tensors it is to be differentiated by.

    Those are the first tensor among the inputs or, where that holds integers, the outputs of the embeddings it goes
    through. f gets what `wrap` makes of each: a copy, since it may be changed in place. With `watch`, calls that mix
    samples are refused. Raises `DataError` where no embedding is found.
    """
    x = next(tensors_in((inputs, kwargs)))
    if x.is_floating_point():
        leaf = variable(x)
        given = swap((inputs, kwargs), x, wrap(leaf))
        if not watch:
            return f(*given[0], **given[1]), [leaf]
        with Watch():
            return f(*given[0], **given[1]), [leaf]
    if x.is_complex() or x.dtype == torch.bool:
        raise DataError(f"the inputs are {x.dtype}: give real numbers, or token ids of a model with an embedding")
    with Watch(x, wrap) as seen:
        out = f(*inputs, **kwargs)
    if not seen.found:
        raise DataError(
            f"the inputs are {x.dtype} and no embedding takes them: give floating point inputs (images: normalized), "
            "or token ids as the model's first tensor"
        )
    return out, seen.found


def swap(value: Any, old: Tensor, new: Tensor) -> Any:
    """Nested inputs with one tensor in place of another."""
    if value is old:
        return new
    if isinstance(value, dict):
        return {k: swap(v, old, new) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(swap(v, old, new) for v in value)
    return value


def flat_output(out: Tensor, batch: int) -> Tensor:
    """An output as (B, C); raises `DataError` where it is not one a sample, or carries no gradient."""
    if out.ndim == 0 or len(out) != batch:
        raise DataError(
            f"the output has shape {tuple(out.shape)} for {batch} samples: geometric complexity needs one output a "
            "sample, (batch, …); pass a function that returns the logits"
        )
    if not out.is_floating_point():
        raise DataError(f"the output is {out.dtype}: pass a function that returns real numbers, such as logits")
    if not out.requires_grad:
        raise DataError(
            "the output carries no gradient: the function is constant, or detaches (torch.no_grad, .detach()) what "
            "it computes; pass one that does not"
        )
    return out.flatten(1) if out.ndim > 1 else out.unsqueeze(1)


def gradients(
    y: Tensor, leaves: list[Tensor], v: Tensor, *, keep: bool, create: bool = False, scale: Tensor | None = None
) -> Tensor:
    """∂⟨y, v⟩/∂x a sample, (B, D): samples are independent, so one backward pass serves them all."""
    found = torch.autograd.grad(
        y, leaves, v, retain_graph=keep, create_graph=create, allow_unused=True, materialize_grads=True
    )
    if scale is not None:
        found = tuple(g * scale for g in found)
    parts = [g.reshape(len(y), -1) for g in found]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)
