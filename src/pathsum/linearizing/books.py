"""The books of a linearization: slopes among the parameters, their step after each optimizer step, two more columns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..training.loop import Training
from ..training.monitor import Monitor
from ..training.record import Record, make_optimizer
from ..training.result import FitResult
from .budget import counted
from .result import Linearized
from .slopes import Slopes

SOFT = 4.0  # temperature of distillation


class Finite(Monitor):
    """Only a loss that is not finite is a failure: here it may rise, as the network is made linear."""

    def _risen(self) -> bool:
        return False

    def add_evaluation(self, loss: float) -> None:
        self.total, self.count = 0.0, 0


class SlopeRecord(Record):
    """What one linearization has done so far."""

    model: Slopes

    def new_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer of the weights; it carries the slopes, and leaves their step to `Slopes.advance`."""
        weights = [p for p in self.parameters if p is not self.model.slopes]
        if weights:
            optimizer = make_optimizer(weights, self.config)
            optimizer.add_param_group({"params": [self.model.slopes], "lr": 0.0, "weight_decay": 0.0, "momentum": 0.0})
        else:
            optimizer = make_optimizer(
                [self.model.slopes], replace(self.config, lr=0.0, weight_decay=0.0, momentum=0.0)
            )
        optimizer.register_step_post_hook(lambda *_: self.model.advance())
        return optimizer

    def new_monitor(self) -> Monitor:
        """Judges finiteness."""
        config = self.config
        return Finite(config.divergence_window, config.frozen_window, config.frozen_tolerance)

    def extra(self) -> dict[str, Any]:
        """ω, the units and the scalars that are nonlinear, the slopes that are 1."""
        linear = self.model.slopes.detach() == 1
        sites, device = self.model.sites, linear.device
        left = {kind: counted(sites, kind, device)(linear) for kind in ("units", "relus")}
        return {"omega": self.model.omega, **left, "linear": int(linear.sum())}

    def note(self) -> dict[str, str]:
        """What stands behind the progress bar."""
        linear = float((self.model.slopes.detach() == 1).double().mean())
        return {**super().note(), "linear": f"{linear:.0%}"}

    def save(self, out: Path, result: FitResult, summary: dict[str, Any]) -> None:
        """Write α, weights, history and table."""
        Linearized.of(self.model, result).save(out)


class SlopeTraining(Training):
    """A network at work that learns α."""

    model: Slopes
    books = SlopeRecord
    label = "linearizing"

    def _loss(self, x: Tensor, logits: Tensor, y: Tensor) -> Tensor:
        """(1 − d)·cross-entropy + d·T²·KL(teacher ‖ network), both softened by T (Hinton et al., arXiv 1503.02531)."""
        loss, share, teach = super()._loss(x, logits, y), self.model.options.distill, self.model.teach
        if teach is None:
            return loss
        with torch.no_grad():
            target = F.log_softmax(teach(x).to(logits.dtype) / SOFT, 1)
        divergence = F.kl_div(F.log_softmax(logits / SOFT, 1), target, reduction="batchmean", log_target=True)
        return (1 - share) * loss + share * SOFT**2 * divergence
