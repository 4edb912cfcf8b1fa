"""The net to be changed: its model, anatomy, blocks and λ; and whether another computes what it does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pathsum.anatomy import anatomy
from pathsum.care import refuse_compiled, tensors_in, untouched
from pathsum.errors import DataError, PathsumError, ProbeError
from pathsum.growing.blocks import Block, blocks_of
from pathsum.knobs import Knobs
from pathsum.nets.tower import SumOfPaths
from pathsum.sites import Anatomy
from pathsum.training.contexts import mode
from pathsum.values import Output, pick

# Factors on weights are rounded once, and a deep network carries its roundings on.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 5e-6}


class Subject:
    """The net to be changed, taken apart: the model, its anatomy, its blocks, λ in force."""

    def __init__(
        self,
        net: nn.Module,
        inputs: tuple,
        kwargs: dict[str, Any],
        container: str | Sequence[str] | None,
        output: Output,
    ) -> None:
        if not isinstance(net, nn.Module):
            raise PathsumError(f"a torch.nn.Module is expected, got {type(net).__name__}")
        if next(tensors_in((inputs, kwargs)), None) is None:
            raise DataError(
                "give example inputs of the model after it: its blocks are found, and the result checked, on them"
            )
        refuse_compiled(net)
        self.net, self.inputs, self.kwargs = net, inputs, kwargs
        self.knobs = net if isinstance(net, Knobs) else None
        self.model: nn.Module = net.model if isinstance(net, Knobs) else net
        self.output = self.knobs.output if self.knobs is not None and output is None else output
        self.anatomy = self.look(self.model)
        only = [container] if isinstance(container, str) else container
        self.blocks: list[Block] = blocks_of(self.model, self.anatomy, only)
        if not self.blocks:
            raise PathsumError(
                f"{type(self.model).__name__} has no blocks: none of its {len(self.anatomy.branches)} residual "
                "branches lies in a child of a ModuleList or Sequential"
            )
        if self.set_by_knobs:
            for b in self.anatomy.branches:
                if b.own == "mul" and b.scale is not None:
                    raise PathsumError(
                        f"the knobs' λ replaces {b.scale.parameter!r}, the model's own scale of branch {b.name}: grow "
                        "the model itself, and put knobs on the result"
                    )

    @property
    def dtype(self) -> torch.dtype:
        """Of the model's weights."""
        return next((p.dtype for p in self.model.parameters() if p.is_floating_point()), torch.get_default_dtype())

    @property
    def set_by_knobs(self) -> bool:
        return self.knobs is not None and self.knobs.lam_values is not None

    def look(self, model: nn.Module) -> Anatomy:
        """The anatomy in eval mode; a tower's learned λ is taken as numbers, so that branches end in their layers."""
        with mode(model, training=False), numbers_for_lam(model):
            return anatomy(model, *self.inputs, **self.kwargs)

    def run(self, net: nn.Module) -> Tensor:
        """The output, in eval mode and without a trace."""
        with torch.no_grad(), untouched(net), mode(net, training=False):
            return pick(net(*self.inputs, **self.kwargs), self.output)

    def difference(self, net: nn.Module) -> float:
        """‖new − old‖/‖old‖ of the outputs on the inputs."""
        old, new = self.run(self.net), self.run(net)
        if old.shape != new.shape:
            raise ProbeError(f"the output has shape {tuple(new.shape)} in place of {tuple(old.shape)}: it was not made")
        error = (new.double() - old.double()).norm()
        return float(error / old.double().norm().clamp_min(torch.finfo(torch.float32).tiny))


@contextmanager
def numbers_for_lam(model: nn.Module) -> Iterator[None]:
    """A tower's learned λ out of the way."""
    lam = model.lam if isinstance(model, SumOfPaths) else None
    if lam is not None:
        model._parameters["lam"] = None
    try:
        yield
    finally:
        if lam is not None:
            model._parameters["lam"] = lam
