"""The training loop of one network."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathsum.data import Dataset, batches
from pathsum.progress import bar
from pathsum.training.contexts import autocast, generators
from pathsum.training.evaluation import evaluate_until, placement, to_device
from pathsum.training.monitor import CHECK
from pathsum.training.options import TrainConfig
from pathsum.training.record import Record, Scores
from pathsum.training.result import FitResult
from pathsum.training.watch import observe


class Training:
    """One network at work; its `record` holds what a checkpoint does."""

    books: type[Record] = Record
    label = "training"

    def __init__(
        self,
        model: nn.Module,
        data: Dataset,
        config: TrainConfig,
        device: torch.device,
        out: Path | None,
        signals: list[int],
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        self.model, self.data, self.config, self.device, self.signals = model, data, config, device, signals
        self.dtype = placement(model)[1]
        rest, held_out = data.train.split(config.val_size, config.seed) if config.val_size else (data.train, None)
        self.train, self.test = to_device(rest, device), to_device(data.test, device)
        self.val = None if held_out is None else to_device(held_out, device)
        self.record = self.books(model, data, config, generators(device), out, optimizer)
        self.pending: list[Tensor] = []  # losses still on the device
        self.probe: Tensor | None = None  # gradient norms, and whether a weight moved, likewise

    @property
    def step(self) -> int:
        """Steps taken."""
        return self.record.step

    def run(self, progress: bool | None) -> FitResult:
        """Train to the end, a verdict, or a signal."""
        config, record = self.config, self.record
        stream = batches(
            self.train,
            config.batch_size,
            mean=self.data.mean,
            std=self.data.std,
            seed=config.seed,
            start_step=self.step,
            augment=config.augment,
            crop_pad=config.padding(self.data.shape[1]),
            flip=self.data.flip,
            scale=config.crop_scale,
            dtype=self.dtype,
        )
        shown = self.step
        with bar(self.label, record.num_steps - self.step, show=progress) as update:
            while self._row_is_written() and self._is_observed() and not (record.ended or self.signals):
                _, x, y = next(stream)
                self._update(x, y)
                if self.step % CHECK == 0:
                    self._sync()
                    update(self.step - shown, **record.note())
                    shown = self.step
                if record.checkpoint_is_due:
                    self._sync()
                    record.checkpoint()
        self._sync()
        self._row_is_written()
        self._is_observed()
        record.optimizer.zero_grad(set_to_none=True)
        return record.finish(self.signals)

    def _update(self, x: Tensor, y: Tensor) -> None:
        """One optimizer step; the loss stays on the device."""
        record = self.record
        with autocast(self.config.precision, self.device):
            logits = self.model(x).to(self.dtype)
        loss = self._loss(x, logits, y)
        if record.step == 0:
            record.monitor.start(F.cross_entropy(logits.detach(), y, reduction="none").tolist())
        for parameter in record.parameters:  # zero_grad takes a hundred times as long
            parameter.grad = None
        loss.backward()
        record.step += 1
        if record.step % CHECK == 0:
            self._probed_step()
        else:
            record.optimizer.step()
        self.pending.append(loss.detach())

    def _loss(self, x: Tensor, logits: Tensor, y: Tensor) -> Tensor:
        """What is minimized: the mean cross-entropy."""
        return F.cross_entropy(logits, y)

    @torch.no_grad()
    def _probed_step(self) -> None:
        """One optimizer step that also measures every gradient, and whether any weight moved by it."""
        parameters, weights = self.record.parameters, self.record.weights
        none = parameters[0].new_zeros(())
        norms = [none if p.grad is None else torch.linalg.vector_norm(p.grad) for p in parameters]
        before = [p.clone() for p in weights]
        self.record.optimizer.step()
        moved = torch.stack([(p != old).any() for p, old in zip(weights, before, strict=True)])
        self.probe = torch.stack([*norms, moved.any().to(none.dtype)])

    def _sync(self) -> None:
        """Fetch the pending losses and let the monitor judge them."""
        if not self.pending:
            return
        losses, self.pending = torch.stack(self.pending).tolist(), []
        if self.probe is None:
            self.record.take(losses)
        else:
            *norms, moved = self.probe.tolist()
            self.probe = None
            self.record.take(losses, norms, moved=bool(moved))

    def _row_is_written(self) -> bool:
        """Evaluate and write a row where one is due; False where a signal came first."""
        if not self.record.row_is_due:
            return True
        self._sync()
        scores: Scores = {}
        for name, split in (("test", self.test), ("val", self.val)):
            if not self.record.healthy or split is None:
                continue
            with autocast(self.config.precision, self.device):
                size = self.config.eval_batch_size
                scores[name] = evaluate_until(self.model, split, self.data, size, lambda: self.signals)
            if scores[name] is None:
                return False
        self.record.write_row(scores)
        return True

    def _is_observed(self) -> bool:
        """Observe the network where that is due; always True."""
        record = self.record
        if record.observation_is_due:
            self._sync()
        if record.observation_is_due and record.watch is not None:  # no verdict came of the last losses
            observe([record.watch], self.step)
        return True

    def close(self) -> None:
        """Close what is open."""
        self.record.close()
