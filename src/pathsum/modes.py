"""What calls a model makes in each of its modes: a module may compute otherwise when it trains (stochastic depth)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .anatomy import record
from .errors import ControlFlowError
from .sites import Anatomy
from .tracing import Plan, plan_of
from .values import Output


class Modes:
    """The calls of a model in the modes it was seen in; `first` are those in the one its knobs were made in."""

    def __init__(self, model: nn.Module, first: Anatomy) -> None:
        self.first = first
        self.known: dict[tuple[bool, ...], tuple[Anatomy, tuple[Plan, Plan]]] = {}
        self.learn(modes_of(model), first)

    def learn(self, mode: tuple[bool, ...], anatomy: Anatomy) -> None:
        """Keep a mode; its plans too, which cannot be made while torch.compile traces."""
        self.known[mode] = anatomy, (plan_of(anatomy, units=False), plan_of(anatomy, units=True))

    def plan(self, model: nn.Module, *, units: bool) -> Plan:
        """Where the sites are in the mode the model is in, for torch.compile; where it is new, in the first one."""
        mode = modes_of(model)
        for known, (_, plans) in self.known.items():
            if known == mode:
                return plans[units]
        return next(iter(self.known.values()))[1][units]

    def calls(self, model: nn.Module, inputs: tuple, kwargs: dict[str, Any], output: Output) -> Anatomy:
        """The calls in the mode the model is in: where it is new, seen by a run on copies of the inputs.

        Raises `ControlFlowError` where the model has other joins or units than in the first mode.
        """
        mode = modes_of(model)
        if mode not in self.known:
            found = record(model, copied(inputs), copied(kwargs), output)[0]
            different = self.first.compare(found)
            if different:
                raise ControlFlowError(
                    f"{type(model).__name__} makes other calls in its present mode than in the one the knobs were "
                    f"made in ({different}); make the knobs in the mode they are used in"
                )
            self.learn(mode, found)
        return self.known[mode][0]


def modes_of(model: nn.Module) -> tuple[bool, ...]:
    """Which of its modules are in train mode."""
    return tuple(module.training for module in model.modules())


def copied(value: Any) -> Any:
    """Inputs with tensors of their own, for a run that may change them in place."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, list | tuple):
        made = [copied(v) for v in value]
        return type(value)(*made) if hasattr(value, "_fields") else type(value)(made)
    return {k: copied(v) for k, v in value.items()} if isinstance(value, dict) else value
