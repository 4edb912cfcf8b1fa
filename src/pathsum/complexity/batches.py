"""A data set as a stream of chunks: tensors, splits, loaders; and the unit of its inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..care import tensors_in
from ..data import Dataset, Split, normalize
from ..errors import DataError
from ..results import batch_size, chunks

Inputs = Literal["normalized", "raw"]
Channels = Sequence[float] | Tensor | float


@dataclass(frozen=True)
class Source:
    """Batches to be cut into chunks: what they hold, how many samples, in which unit and times what to be raw."""

    data: Any
    unit: str  # "as given", "normalized" or "raw"
    scale: Tensor | None = None  # 1/std, broadcast over a sample, where gradients are by raw pixels
    mean: tuple[float, ...] = ()  # of the images of a split
    std: tuple[float, ...] = ()

    def __len__(self) -> int:
        """Samples there are; 0 where only the end will tell."""
        if isinstance(self.data, Tensor | Split):
            return len(self.data)
        if isinstance(self.data, Mapping):
            return batch_size((), dict(self.data))
        known = getattr(self.data, "dataset", self.data)
        if known is self.data and isinstance(known, Sequence):
            return sum(batch_size(*arguments(b)) for b in known)
        return len(known) if hasattr(known, "__len__") and known is not self.data else 0

    def chunks(self, size: int, like: torch.device | None, dtype: torch.dtype) -> Iterator[tuple[tuple, dict]]:
        """The inputs of at most `size` samples at a time, on the device of the model."""
        for inputs, kwargs in self._batches(size, dtype):
            for part, named in chunks(inputs, kwargs, size):
                yield moved(part, like), moved(named, like)

    def _batches(self, size: int, dtype: torch.dtype) -> Iterator[tuple[tuple, dict]]:
        if isinstance(self.data, Split):
            for start in range(0, len(self.data), size):
                images = self.data.images[start : start + size]
                yield (normalize(images, self.mean, self.std, dtype=dtype),), {}
        elif isinstance(self.data, Tensor | Mapping):
            yield arguments(self.data)
        else:
            yield from map(arguments, self.data)


def arguments(batch: Any) -> tuple[tuple, dict[str, Any]]:
    """A batch as a model's arguments: a tensor, the first of (inputs, labels, …), or a mapping of named ones."""
    if isinstance(batch, Mapping):
        return (), dict(batch)
    if isinstance(batch, list | tuple) and batch and isinstance(batch[0], Tensor):
        return (batch[0],), {}
    if isinstance(batch, Tensor):
        return (batch,), {}
    raise DataError(f"a batch is a {type(batch).__name__}: give tensors, (inputs, labels) or mappings of named inputs")


def source(x: Any, inputs: Inputs, mean: Channels | None, std: Channels | None) -> Source:
    """The data set behind `x`; raises `DataError` for what is none, or lacks mean and std."""
    if inputs not in ("normalized", "raw"):
        raise DataError(f"inputs={inputs!r} is unknown: choose 'normalized' (as the network takes them) or 'raw'")
    center, spread = channels("mean", mean), channels("std", std)
    if spread is not None and (bool((spread <= 0).any()) or not bool(spread.isfinite().all())):
        raise DataError(f"std={std}: give positive numbers")
    if isinstance(x, Dataset):
        center = channels("mean", x.mean) if center is None else center
        spread = channels("std", x.std) if spread is None else spread
        x = x.train
    if isinstance(x, Split):
        if center is None or spread is None:
            raise DataError("a Split holds raw images: give mean= and std= of the normalization, or the whole Dataset")
    elif isinstance(x, str) or not isinstance(x, Tensor | Mapping | Iterable):
        raise DataError(f"x is a {type(x).__name__}: give a tensor, a Dataset or Split, or an iterable of batches")
    if inputs == "raw" and spread is None:
        raise DataError("inputs='raw' needs std=, by which the pixels were divided: gradients by raw pixels are 1/std")
    scale = None if inputs == "normalized" or spread is None else (1 / spread).reshape(-1, 1, 1)
    known = isinstance(x, Split) or spread is not None
    unit = inputs if known else "as given"
    rows = (tuple(center.tolist()), tuple(spread.tolist())) if isinstance(x, Split) else ((), ())  # type: ignore[union-attr]
    return Source(x, unit, scale, *rows)


def channels(name: str, values: Channels | None) -> Tensor | None:
    if values is None:
        return None
    try:
        return torch.as_tensor(values, dtype=torch.float64).reshape(-1)
    except (TypeError, ValueError, RuntimeError):
        raise DataError(f"{name}={values!r}: give one number, or one a channel") from None


def moved(values: Any, device: torch.device | None) -> Any:
    """Tensors on a device; whatever else as it is."""
    if device is None or not any(t.device != device for t in tensors_in(values)):
        return values
    if isinstance(values, Tensor):
        return values.to(device)
    if isinstance(values, dict):
        return {k: moved(v, device) for k, v in values.items()}
    if isinstance(values, list | tuple):
        return type(values)(moved(v, device) for v in values)
    return values
