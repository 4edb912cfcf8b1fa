"""What expansions and spectra share: running a net over chunks of a batch, partial sums, accuracies, errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .care import full_precision, tensors_in, untouched
from .coefficients import pad
from .errors import DataError, LambdaError, ModeError
from .knobs import Knobs, Lam, as_knobs
from .progress import track
from .series import CannotCarry, Series


def check_eval(model: nn.Module) -> None:
    """Refuse layers whose output is no fixed function of one input."""
    for name, module in model.named_modules():
        if not module.training:
            continue
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ModeError(
                f"BatchNorm '{name}' is in train mode: it mixes the samples of a batch, so there is no function of "
                "one input to expand; call model.eval() first"
            )
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
            raise ModeError(f"dropout '{name}' (p={module.p}) is in train mode: call model.eval() first")


def check_count(name: str, value: Any, *, least: int = 0) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise LambdaError(f"{name}={value!r}: give a whole number, {least} or more")


def batch_size(inputs: tuple, kwargs: dict[str, Any]) -> int:
    first = next(tensors_in((inputs, kwargs)), None)
    if first is None or first.ndim == 0:
        raise DataError("no tensor with a batch dimension among the inputs: pass the model's inputs as tensors")
    if not len(first):
        raise DataError("the inputs hold no samples: pass a batch of at least one")
    return len(first)


def chunks(inputs: tuple, kwargs: dict[str, Any], size: int) -> Iterator[tuple[tuple, dict[str, Any]]]:
    """Inputs cut along the batch: every tensor as long as the first one is cut with it."""
    total = batch_size(inputs, kwargs)

    def cut(value: Any, at: slice) -> Any:
        if isinstance(value, Tensor):
            return value[at] if value.ndim and len(value) == total else value
        if isinstance(value, Mapping):
            return type(value)({k: cut(v, at) for k, v in value.items()})  # type: ignore[call-arg]
        if isinstance(value, list | tuple):
            return type(value)(cut(v, at) for v in value)
        return value

    for start in range(0, total, size):
        at = slice(start, start + size)
        yield tuple(cut(v, at) for v in inputs), {k: cut(v, at) for k, v in kwargs.items()}


Variable = Callable[[list[float], bool], Series]  # the formal λ, from the real ones and whether to carry the output


def run_series(
    net: nn.Module,
    inputs: tuple,
    kwargs: dict[str, Any],
    *,
    variable: Variable,
    carry: bool,
    lam: Lam | None,
    chunk_size: int | None,
    progress: bool | None,
    label: str,
) -> tuple[Knobs, list[float], Tensor, Tensor]:
    """Run chunk by chunk at the formal λ and at the real one: net, λ's, output (B, …), terms (m, B, …).

    With `carry` the same run gives both wherever it can, else the output comes from a run of its own. Results are
    detached. Autocast is off inside: both are in the precision of the model's own weights and inputs.
    """
    total = batch_size(inputs, kwargs)
    if chunk_size is not None:
        check_count("chunk_size", chunk_size, least=1)
    size = chunk_size or total
    check_eval(net)
    outputs, terms = [], []
    lams: list[float] = []
    knobbed: Knobs | None = None
    with torch.no_grad(), full_precision(), untouched(net):
        for part, named in track(chunks(inputs, kwargs, size), label, total=-(-total // size), show=progress):
            if knobbed is None:
                knobbed = as_knobs(net, part, named)
                knobbed.need_joins()
            in_force = lam if lam is not None else knobbed.lam_values
            output = None
            if carry:
                lams, output, result = _carried(knobbed, part, named, variable, in_force)
                carry = output is not None
            if output is None:
                out, used = knobbed.run(part, named, lam=in_force)
                lams, output = [float(v) for v in used], knobbed.pick(out)
                result = knobbed.pick(knobbed.run(part, named, lam=variable(lams, False))[0])
            outputs.append(output)
            # a plain tensor: no branch reaches this output
            terms.append(pad(result.c, result.space.slots) if isinstance(result, Series) else result.unsqueeze(0))
    assert knobbed is not None
    most = max(len(t) for t in terms)
    return knobbed, lams, torch.cat(outputs), torch.cat([pad(t, most) for t in terms], dim=1)


def _carried(
    net: Knobs, inputs: tuple, kwargs: dict[str, Any], variable: Variable, in_force: Lam | None
) -> tuple[list[float], Tensor | None, Tensor]:
    """One run for both: λ's, output (None where it takes a run of its own), series."""
    checked = net.check_lam(in_force)
    assert not isinstance(checked, Series)
    lams = [b.lam for b in net.branches] if checked is None else [float(v) for v in checked]
    try:
        out, own = net.run(inputs, kwargs, lam=variable(lams, True), carried=lams)
    except CannotCarry:
        return lams, None, torch.empty(0)
    result = net.pick(out)
    stale = in_force is None and [float(v) for v in own] != lams  # the model's own scales have moved since
    if stale or not isinstance(result, Series):
        return lams, None, result
    return lams, result.actual, result


def relative_error(approximation: Tensor, target: Tensor) -> float:
    """‖a − f‖/‖f‖ over everything, in float64."""
    f = target.double()
    scale = float(f.norm())
    error = float((approximation.double() - f).norm())
    return error / scale if scale else error


def accuracy_of(scores: Tensor, y: Tensor | Sequence[int]) -> np.ndarray:
    """Accuracy of each row of scores (k, batch, classes) against labels y (batch,)."""
    y = torch.as_tensor(y, device=scores.device)
    if scores.ndim != 3:
        raise DataError(
            f"accuracy needs an output of shape (batch, classes); this net's has shape {tuple(scores.shape[1:])}"
        )
    if y.shape != scores.shape[1:2]:
        raise DataError(f"{tuple(y.shape)} labels for {scores.shape[1]} samples: give one label a sample")
    if len(y) and (int(y.min()) < 0 or int(y.max()) >= scores.shape[2]):
        raise DataError(
            f"labels run from {int(y.min())} to {int(y.max())}; the net has {scores.shape[2]} classes, "
            f"0..{scores.shape[2] - 1}: give labels of the classes it was trained on"
        )
    return (scores.argmax(-1) == y).double().mean(1).cpu().numpy()
