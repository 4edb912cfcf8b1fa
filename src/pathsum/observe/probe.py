"""The fixed samples that a network is observed on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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
        """The first tensor: what a derivative in the input is taken in."""
        return next(tensors_in((self.inputs, self.kwargs)))

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        return f"Probe({len(self)} samples{'' if self.labels is None else ' with labels'})"

    def with_x(self, x: Tensor) -> Probe:
        """The same with another first input. Raises `DataError` where that is not the first positional one."""
        if not self.inputs or not isinstance(self.inputs[0], Tensor):
            raise DataError("the probe's inputs are keywords; give the one to be varied as first positional input")
        return replace(self, inputs=(x, *self.inputs[1:]))

    def to(self, device: torch.device) -> Probe:
        """The same on another device."""

        def move(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.to(device)
            if isinstance(value, Mapping):
                return {name: move(item) for name, item in value.items()}
            return type(value)(map(move, value)) if isinstance(value, tuple | list) else value

        return Probe(move(self.inputs), move(self.kwargs), move(self.labels))
