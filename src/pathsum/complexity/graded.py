"""Inner products of the input gradients of a network's parts: of orders in λ, or of path lengths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DataError
from ..knobs import Knobs, Lam, as_knobs
from ..progress import bar
from ..results import batch_size, check_count
from ..series import Series
from .batches import Channels, Inputs, source
from .estimate import basis, first_is_float, place_of
from .inputs import differentiable, flat_output, gradients, prepared


@dataclass(frozen=True)
class Gram:
    """⟨∂c_a/∂x, ∂c_b/∂x⟩_F of each sample, (N, m, m), and ‖∂f/∂x‖_F² of the network itself, (N,)."""

    products: Tensor
    own: Tensor
    lams: list[float]
    inputs: str


def gram(
    net: nn.Module,
    x: Any,
    variable: Callable[[list[float]], Series],
    slots: Callable[[int], int],
    *,
    lam: Lam | None,
    chunk_size: int,
    inputs: Inputs,
    mean: Channels | None,
    std: Channels | None,
    progress: bool | None,
    label: str,
) -> Gram:
    """Run chunk by chunk at λ and at a formal λ, and backward from each output of each coefficient.

    `variable` makes the formal λ from the real ones; `slots` says how many coefficients n branches give.
    """
    check_count("chunk_size", chunk_size, least=1)
    data = source(x, inputs, mean, std)
    device, dtype = place_of(net)
    knobbed: Knobs | None = None
    products, own = [], []
    lams: list[float] = []
    unit = data.unit
    with prepared(net), bar(label, len(data) or None, show=progress) as update:
        for part, named in data.chunks(chunk_size, device, dtype):
            if knobbed is None:
                with torch.no_grad():
                    knobbed = as_knobs(net, part, named)
                knobbed.need_joins()
            unit = data.unit if first_is_float(part, named) else "embeddings"
            batch, m = batch_size(part, named), slots(len(knobbed.branches))
            in_force = lam if lam is not None else knobbed.lam_values
            (out, used), leaves = differentiable(at(knobbed, in_force), part, named)
            lams = [float(v.detach() if isinstance(v, Tensor) else v) for v in used]
            scale = data.scale_for(leaves[0])
            y = flat_output(knobbed.pick(out), batch)
            own.append(between([y], leaves, scale, 1, partial(update, batch / y.shape[1] / (m + 1)))[:, 0, 0])
            del out, y, leaves  # one graph at a time
            formal = variable(lams)
            (out, _), leaves = differentiable(at(knobbed, formal), part, named, wrap=entering(formal))
            result = knobbed.pick(out)
            terms = [flat(c, batch) for c in (result.c if isinstance(result, Series) else result.unsqueeze(0))]
            advance = partial(update, batch * m / terms[0].shape[1] / (m + 1))
            products.append(between(terms, leaves, scale, m, advance))
    if knobbed is None:
        raise DataError("x holds no samples: pass a batch of at least one")
    return Gram(torch.cat(products), torch.cat(own), lams, unit)


def at(knobbed: Knobs, lam: Any) -> Callable[..., Any]:
    """The model at λ, a formal one or real, as a function of its inputs: its result, and the λ in force."""
    return lambda *inputs, **kwargs: knobbed.run(inputs, kwargs, lam=lam)


def entering(formal: Series) -> Callable[[Tensor], Tensor]:
    """How the input enters: as it is or, where gates are to stand still, as a series, so that all of them do."""
    if not formal.space.still:
        return torch.clone
    return lambda x: Series(x.clone().unsqueeze(0), formal.space)


def flat(c: Tensor, batch: int) -> Tensor:
    """A coefficient as (B, C); it may be a constant."""
    return flat_output(c, batch) if c.requires_grad else c.reshape(batch, -1)


def between(
    terms: list[Tensor], leaves: list[Tensor], scale: Tensor | None, m: int, advance: Callable[[], None]
) -> Tensor:
    """⟨∂c_a/∂x, ∂c_b/∂x⟩_F of each sample, (B, m, m) float64: zero for terms that are constant or missing."""
    pairs = torch.zeros(len(terms[0]), m, m, dtype=torch.float64)
    live = [k for k, c in enumerate(terms) if c.requires_grad]
    rows = torch.tensor(live, dtype=torch.int64)
    for v in basis(terms[0]):
        if live:
            each = torch.stack([gradients(terms[k], leaves, v, keep=True, scale=scale).double() for k in live], 1)
            pairs[:, rows[:, None], rows] += (each @ each.mT).cpu()
        advance()
    return pairs
