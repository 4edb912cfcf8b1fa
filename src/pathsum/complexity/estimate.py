"""Geometric complexity over a data set: exactly, or by random probes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, get_args

import torch
from torch import Tensor, nn

from ..errors import DataError, PathsumError
from ..knobs import Knobs
from ..progress import bar
from ..results import batch_size, check_count
from ..values import Output, pick
from . import probes as random_signs
from .batches import Channels, Inputs, source
from .inputs import differentiable, flat_output, gradients, prepared
from .result import GeometricComplexity, Method

CHUNK = 64  # samples at a time


def geometric_complexity(
    f: Callable[..., Any],
    x: Any,
    *,
    method: Method = "exact",
    probes: int = 4,
    chunk_size: int = CHUNK,
    output: Output = None,
    inputs: Inputs = "normalized",
    mean: Channels | None = None,
    std: Channels | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> GeometricComplexity:
    """The mean over a data set of the squared input-output Jacobian, GC(f, D) = mean_x ‖∂f/∂x‖_F² (Appendix B).

    `"exact"` runs a chunk of B samples forward once and backward once for each of the C outputs, Σ_c ‖∂f_c/∂x‖²;
    `"hutchinson"` backward `probes` times, E‖Jᵀv‖² = ‖J‖_F² for v of random signs (`probes.draw`), without bias.

    f: a module in eval mode (`Knobs` runs with its λ), or any function of a batch with one output a sample, (B, …);
        its output tensor is found as in `knobs(…, output=)`. Samples must not see each other.
    x: a tensor (N, …); a `Dataset` (its training split) or `Split` of `pathsum.data`; or an iterable of batches, each
        a tensor, (inputs, labels) or a mapping of named inputs. Token ids are differentiated through the output of
        the embedding that takes them.
    chunk_size: samples at a time, which bounds memory. seed: of the probes (with the chunks it fixes them).
    inputs, mean, std: gradients are by the inputs as the network takes them; `inputs="raw"` divides them by `std`,
        of which GC is then a multiple of 1/std². A `Split` is normalized by mean and std, a `Dataset` by its own.

    Cost: 1 forward and C (or `probes`) backward passes, none of them to the weights. Autocast is off inside.
    Raises `ModeError` in train mode (BatchNorm, dropout), `DataError` for unfit data. Reference: Dherin et al.,
    "Why neural networks find simple solutions", 2022.

    >>> import torch, pathsum as ps
    >>> w = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    >>> ps.geometric_complexity(lambda x: x @ w, torch.ones(5, 2)).value  # ‖w‖_F²
    25.0
    """
    if method not in get_args(Method):
        raise PathsumError(f"method={method!r} is unknown: choose one of {', '.join(map(repr, get_args(Method)))}")
    check_count("probes", probes, least=1)
    check_count("chunk_size", chunk_size, least=1)
    data = source(x, inputs, mean, std)
    device, dtype = place_of(f)
    generator = torch.Generator().manual_seed(seed) if method == "hutchinson" else None
    values, errors = [], []
    outputs, unit = 0, data.unit
    total = len(data)
    with prepared(f), bar("geometric complexity", total or None, show=progress) as update:
        for part, named in data.chunks(chunk_size, device, dtype):
            batch = batch_size(part, named)
            out, leaves = differentiable(f, part, named, watch=not isinstance(f, nn.Module))
            y = flat_output(pick_output(f, out, output), batch)
            outputs = y.shape[1]
            del out
            if leaves[0] is not None and not first_is_float(part, named):
                unit = "embeddings"
            scale = None if data.scale is None else data.scale.to(leaves[0].device)
            vectors = basis(y) if generator is None else draws(y, probes, generator)
            count = outputs if generator is None else probes
            squares = []
            for i, v in enumerate(vectors):
                g = gradients(y, leaves, v, keep=i < count - 1, scale=scale)
                squares.append(torch.linalg.vector_norm(g, dim=1).double().square())
                update(batch / count)
            each = torch.stack(squares).cpu()
            if generator is None:
                values.append(each.sum(0))
            else:
                values.append(each.mean(0))
                errors.append(random_signs.variance(each, outputs))
    if not values:
        raise DataError("x holds no samples: pass a batch of at least one")
    return summed(torch.cat(values), torch.cat(errors) if errors else None, outputs, method, probes, unit)


def summed(
    each: Tensor, variances: Tensor | None, outputs: int, method: Method, probes: int, unit: str
) -> GeometricComplexity:
    """The mean of the samples' values, and its errors.

    With probes, each sample's value is an unbiased estimate independent of the others, so that their spread holds
    both chances, that of the data and that of the probes.
    """
    n = len(each)
    return GeometricComplexity(
        value=float(each.mean()),
        stderr=float(each.std() / math.sqrt(n)) if n > 1 else math.nan,
        per_sample=each,
        num_samples=n,
        num_outputs=outputs,
        method=method,
        probes=None if variances is None else probes,
        probe_stderr=0.0 if variances is None else float(variances.sum().sqrt() / n),
        inputs=unit,
    )


def basis(y: Tensor) -> Iterator[Tensor]:
    """The unit vector of each output for all samples, (B, C), one after the other in one block of memory."""
    v = torch.zeros_like(y)
    for c in range(y.shape[1]):
        v[:, c] = 1
        yield v
        v[:, c] = 0


def draws(y: Tensor, probes: int, generator: torch.Generator) -> Iterator[Tensor]:
    yield from random_signs.draw(len(y), y.shape[1], probes, generator=generator, like=y)


def pick_output(f: Callable[..., Any], out: Any, output: Output) -> Tensor:
    """The output tensor, by `output` or else as the knobs say."""
    return f.pick(out) if output is None and isinstance(f, Knobs) else pick(out, output)


def first_is_float(inputs: tuple, kwargs: dict[str, Any]) -> bool:
    from ..care import tensors_in

    return next(tensors_in((inputs, kwargs))).is_floating_point()


def place_of(f: Callable[..., Any]) -> tuple[torch.device | None, torch.dtype]:
    """Device and dtype of a module's weights; of a function nothing is known."""
    weight = next((p for p in f.parameters() if p.is_floating_point()), None) if isinstance(f, nn.Module) else None
    return (None, torch.get_default_dtype()) if weight is None else (weight.device, weight.dtype)
