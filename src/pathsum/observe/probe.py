"""The fixed samples that a network is observed on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pathsum.care import tensors_in
from pathsum.errors import DataError


@dataclass(frozen=True, eq=False, repr=False)
class Probe:
    """Inputs as the model takes them, and labels where there are some; `loss` needs these.

    >>> Probe.of((torch.zeros(4, 3), torch.tensor([0, 1, 0, 1])))
    Probe(4 samples with labels)
    """

    inputs: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    labels: Tensor | None = None

    def __post_init__(self) -> None:
        first = next(tensors_in((self.inputs, self.kwargs)), None)
        if first is None or not first.ndim or not len(first):
            raise DataError("the probe holds no samples; give a tensor with the batch first, (x, y), or a mapping")

    @classmethod
    def of(cls, value: Any) -> Probe:
        """A probe from a tensor x, a pair (x, labels), or a mapping of keyword inputs (`labels` is taken out)."""
        if isinstance(value, Probe):
            return value
        if isinstance(value, Tensor):
            return cls((value,))
        if isinstance(value, Mapping):
            named = dict(value)
            return cls((), named, named.pop("labels", None))
        if isinstance(value, tuple | list) and len(value) == 2:
            return cls((value[0],), {}, value[1])
        raise DataError(
            f"a probe is a tensor x, a pair (x, labels), or a mapping of keyword inputs, not a {type(value).__name__}; "
            "make others with pathsum.observe.Probe(inputs, kwargs, labels)"
        )

    @property
    def x(self) -> Tensor:
        """The first tensor, with the batch first."""
        return next(tensors_in((self.inputs, self.kwargs)))

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        return f"Probe({len(self)} samples{'' if self.labels is None else ' with labels'})"

    def batches(self) -> list[Any]:
        """The probe as the one batch of a data set. Raises `DataError` where it has several positional inputs."""
        if len(self.inputs) > 1 or (self.inputs and self.kwargs):
            raise DataError("geometric complexity is in one input; give the probe as a tensor, or by keywords alone")
        return [self.inputs[0] if self.inputs else self.kwargs]

    def to(self, device: torch.device) -> Probe:
        """The same on another device."""

        def move(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.to(device)
            if isinstance(value, Mapping):
                return {name: move(item) for name, item in value.items()}
            return type(value)(map(move, value)) if isinstance(value, tuple | list) else value

        return Probe(move(self.inputs), move(self.kwargs), move(self.labels))
