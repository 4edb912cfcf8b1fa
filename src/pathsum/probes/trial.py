"""A trial run of a model on its first samples."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from pathsum.data.checks import reason
from pathsum.errors import DataError
from pathsum.tasks import Chunk
from pathsum.values import pick

Kind = Literal["logits", "features", "tensor"]


def trial(model: nn.Module, chunk: Chunk, output: str | int | None, what: str, hint: str) -> tuple[Tensor, Kind]:
    """The output tensor on a chunk, and what it is by its name, if it has one.

    `what` and `hint` say in a DataError what the model cannot take, and what to do.
    """
    name = type(model).__name__
    with torch.no_grad():
        try:
            raw = model(*chunk.inputs, **chunk.kwargs)
        except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
            raise DataError(f"{name} cannot take {what}: {reason(error)}; {hint}") from error
    out = pick(raw, output)
    if out.ndim < 2 or len(out) != len(chunk) or not out.is_floating_point():
        raise DataError(
            f"{name} returns {out.dtype} of shape {tuple(out.shape)} for {len(chunk)} samples, expected an output for "
            f"each, ({len(chunk)}, …); say which with --output"
        )
    return out, kind_of(raw, output)


def kind_of(raw: Any, output: str | int | None) -> Kind:
    """Whether what a model returned holds class scores or features; a plain tensor may be either."""
    if output is not None:
        return "logits" if output == "logits" else "features"
    if getattr(raw, "logits", None) is not None:
        return "logits"
    return "features" if getattr(raw, "last_hidden_state", None) is not None else "tensor"
