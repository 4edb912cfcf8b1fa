"""Geometric complexity as a regularizer: differentiable by the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import ModeError
from ..results import batch_size, check_count
from ..values import Output
from . import probes as random_signs
from .batches import arguments
from .estimate import basis, pick_output
from .inputs import differentiable, flat_output, gradients


def penalty(
    f: Callable[..., Any],
    x: Any,
    *,
    probes: int | None = 1,
    generator: torch.Generator | None = None,
    output: Output = None,
    per_sample: bool = False,
) -> Tensor:
    """An unbiased estimate of mean_x ‖∂f/∂x‖_F² with a gradient to the weights, to be added to a loss.

    E‖Jᵀv‖² over `probes` vectors of random signs a sample; None takes every output in turn, exactly. x is one batch,
    as in `geometric_complexity`. Returns a scalar, or with `per_sample` the value of each (B,). Dropout may be on (one
    network drawn for each sample); BatchNorm must be in eval mode. generator: of the signs (default: torch's own).

    Cost: 1 forward, `probes` backward passes, and as much again when it is differentiated (double backward; attention
    takes torch's plain kernel, the only one that has it). Raises `ModeError` for BatchNorm in train mode.

    >>> import torch, pathsum as ps
    >>> w = torch.tensor([3.0], requires_grad=True)
    >>> ps.geometric_complexity.penalty(lambda x: x * w, torch.ones(4, 1)).backward()
    >>> w.grad  # of w²
    tensor([6.])
    """
    if probes is not None:
        check_count("probes", probes, least=1)
    refuse_train_mode_norm(f)
    inputs, kwargs = arguments(x)
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        out, leaves = differentiable(f, inputs, kwargs)
        y = flat_output(pick_output(f, out, output), batch_size(inputs, kwargs))
        if probes is None:
            vectors = [v.clone() for v in basis(y.detach())]
        else:
            vectors = list(random_signs.draw(len(y), y.shape[1], probes, generator=generator, like=y.detach()))
        squares = [gradients(y, leaves, v, keep=True, create=True).square().sum(1) for v in vectors]
        total = torch.stack(squares).sum(0) if probes is None else torch.stack(squares).mean(0)
    return total if per_sample else total.mean()


def refuse_train_mode_norm(f: Callable[..., Any]) -> None:
    for name, module in f.named_modules() if isinstance(f, nn.Module) else ():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            raise ModeError(
                f"BatchNorm '{name}' is in train mode: it mixes the samples of a batch, so there is no gradient of "
                "one input to penalize; put it in eval mode, or take it out (ps.knobs(net, x).without_norm('batch'))"
            )
