"""The nonlinear units of a recorded run: one a call of a nonlinearity."""

from __future__ import annotations

from torch import nn

from .functions import ACTIVATION_MODULES
from .naming import numbered
from .recording import Recorder
from .sites import Unit


def units_of(recorder: Recorder, model: nn.Module) -> tuple[Unit, ...]:
    """The units in the order they are computed, named by their module if that does nothing else."""
    activations = {name for name, module in model.named_modules() if isinstance(module, ACTIVATION_MODULES)}
    names = []
    for call in recorder.units:
        path = call.module
        names.append(path if path in activations else f"{path}.{call.kind}" if path else call.kind)
    return tuple(
        Unit(index=k, name=name, kind=call.kind, shape=recorder.nodes[call.node].shape, step=call.step)
        for k, (call, name) in enumerate(zip(recorder.units, numbered(names), strict=True))
    )
