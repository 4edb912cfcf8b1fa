"""How to linearize, checked when it is given."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from ..errors import PathsumError
from .layout import By
from .proximal import threshold

TARGETS = ("units", "relus", "length")


@dataclass(frozen=True, kw_only=True)
class LinearizeOptions:
    """What `linearize` and `pathsum linearize` have in common."""

    by: By = "channel"
    """One slope α a channel (variable depth), a layer (fixed depth, shallower), or an element of the map."""
    omega: tuple[float, ...] = ()
    """Strength ω of the prior ω·Σ|1−α|^power: one number, or two for a straight line from start to end."""
    target_units: float | None = None
    """Choose ω as it goes, for so many nonlinear units left; a unit counts as its share of nonlinear channels."""
    target_relus: float | None = None
    """Likewise, for so many nonlinear scalars an inference."""
    target_length: float | None = None
    """Likewise, for this average path length, in nonlinear units (NAPL)."""
    power: float = 0.5
    """Exponent of the prior, above 0 and at most 1."""
    normalize: bool = False
    """Divide the prior of each unit by its number of slopes, so that one ω weighs as much by channel as by layer."""
    saliency: bool = False
    """Divide the prior of each slope by how much the logits feel it at the start, so that harmless ones go first."""
    alpha_lr: float = 0.01
    """Learning rate of α, by plain gradient steps, each followed by the prior's proximal step."""
    freeze: float = 0.01
    """A slope that is so near 1 becomes 1 and stays there."""
    ramp: float = 0.7
    """Share of the steps in which a target is reached; in the rest the weights adapt."""
    cotrain: bool = True
    """Train the weights too; else α alone."""
    distill: float = 0.0
    """Share of the loss that is the divergence from the logits of the network as it was; for few data."""
    batch_stats: Literal["train", "eval"] | None = None
    """Run the network in train mode (BatchNorm by the batch, dropout) or eval mode; by default train if co-trained."""
    units: tuple[str, ...] | None = None
    """Names, kinds or patterns (layer3.*) of the units to linearize; by default those of the ReLU family."""

    def __post_init__(self) -> None:
        if self.by not in get_args(By):
            raise PathsumError(f"by is {self.by!r}, expected 'channel', 'layer' or 'element'")
        given = [name for name in TARGETS if getattr(self, f"target_{name}") is not None]
        if len(given) + bool(self.omega) != 1:
            raise PathsumError(
                "give one of omega (a strength of the prior), target_units, target_relus and target_length; "
                f"got {' and '.join(['omega'] * bool(self.omega) + [f'target_{name}' for name in given]) or 'none'}"
            )
        if len(self.omega) > 2 or not all(0 <= value < math.inf for value in self.omega):
            raise PathsumError(f"omega is {self.omega}, expected one or two finite numbers, 0 or more")
        for name in given:
            value = getattr(self, f"target_{name}")
            if not 0 <= value < math.inf:
                raise PathsumError(f"target_{name} is {value}, expected a finite number, 0 or more")
        if not 0 < self.power <= 1:
            raise PathsumError(f"power is {self.power}, expected 0 < power <= 1: else nothing becomes exactly linear")
        if not 0 < self.alpha_lr < math.inf:
            raise PathsumError(f"alpha_lr is {self.alpha_lr}, expected a positive number")
        if not 0 <= self.freeze < 1 or not 0 < self.ramp <= 1:
            raise PathsumError(
                f"freeze is {self.freeze} and ramp {self.ramp}, expected 0 <= freeze < 1 and 0 < ramp <= 1"
            )
        if not 0 <= self.distill <= 1:
            raise PathsumError(f"distill is {self.distill}, expected a share of the loss, 0 to 1")
        if self.batch_stats not in (None, "train", "eval"):
            raise PathsumError(f"batch_stats is {self.batch_stats!r}, expected 'train' or 'eval'")
        reach = threshold(self.alpha_lr * max(self.omega, default=0.0), self.power)
        if reach > 0.5:
            raise PathsumError(
                f"alpha_lr × omega = {self.alpha_lr * max(self.omega):.3g} would make every slope within {reach:.2g} "
                "of 1 linear in one step, whatever the data say; lower one of them"
            )

    @property
    def target(self) -> tuple[str, float] | None:
        """What is to be reached: kind and value."""
        for name in TARGETS:
            value = getattr(self, f"target_{name}")
            if value is not None:
                return name, float(value)
        return None

    @property
    def train_mode(self) -> bool:
        """Whether the network runs in train mode while α is learned."""
        return self.cotrain if self.batch_stats is None else self.batch_stats == "train"
