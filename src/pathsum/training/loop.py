"""The training loop, and what a checkpoint of it holds."""

from __future__ import annotations

import math
import signal
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathsum import runs
from pathsum.data import Dataset, batches, steps_per_epoch
from pathsum.errors import CheckpointError, PathsumError
from pathsum.progress import bar
from pathsum.storage import finite, read_tensors, write_json, write_tensors
from pathsum.training.contexts import generators
from pathsum.training.evaluation import evaluate_until, to_device
from pathsum.training.monitor import CHECK, Monitor
from pathsum.training.options import TrainConfig
from pathsum.training.result import FitResult, best
from pathsum.training.state import pack, unpack

CHECKPOINT_SECONDS = 30.0  # between checkpoints, where no number of steps is asked for


def describe(model: nn.Module, data: Dataset, config: TrainConfig) -> dict[str, Any]:
    """The complete configuration of a run: training, model, data."""
    facts = {
        "name": data.name,
        "fingerprint": data.fingerprint,
        "train_size": len(data.train),
        "test_size": len(data.test),
        "shape": list(data.shape),
        "classes": list(data.classes),
        "mean": list(data.mean),
        "std": list(data.std),
        "flip": data.flip,
    }
    return {"train": asdict(config), "model": runs.model_record(model), "data": facts}


class Training:
    """One run's state: model, optimizer, monitor, rows; what a checkpoint holds is exactly this."""

    def __init__(
        self,
        model: nn.Module,
        data: Dataset,
        config: TrainConfig,
        device: torch.device,
        out: Path | None,
        signals: list[int],
    ) -> None:
        self.model, self.data, self.config, self.out, self.signals = model, data, config, out, signals
        rest, held_out = data.train.split(config.val_size, config.seed) if config.val_size else (data.train, None)
        self.train, self.test = to_device(rest, device), to_device(data.test, device)
        self.val = None if held_out is None else to_device(held_out, device)
        self.num_steps = config.num_steps(self.train)
        self.per_epoch = steps_per_epoch(self.train, config.batch_size)
        self.eval_every = config.eval_every or math.ceil(self.num_steps / 10)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        # Biases alone can chase the batches' class counts while the network is dead.
        self.weights = [p for p in self.parameters if p.ndim > 1] or self.parameters
        self.optimizer = _optimizer(self.parameters, config)
        self.monitor = Monitor(config.divergence_window, config.frozen_window, config.frozen_tolerance)
        self.generators = generators(device)
        self.pending: list[Tensor] = []  # losses still on the device
        self.probe: Tensor | None = None  # gradient norms, and whether a weight moved, likewise
        self.grad_norm: float | None = None
        self.step, self.spent, self.began = 0, 0.0, time.monotonic()
        self.log: runs.RowLog | None = None
        self.rows: list[dict[str, Any]] = []
        self.board: Any = None
        if out is not None:
            keep = self._restore(out / runs.CHECKPOINT) if (out / runs.CHECKPOINT).is_file() else 0
            self.log = runs.RowLog(out / runs.ROWS, keep=keep)
            self.rows = self.log.rows
            self.board = _tensorboard(out, self.step) if config.tensorboard else None
            if not keep and not self.step:
                self._checkpoint()  # resuming needs the weights it started from
        self.saved_at = time.monotonic()

    def run(self, progress: bool | None) -> FitResult:
        """Train to the end, a verdict, or a signal."""
        config = self.config
        pad = self.data.shape[1] // 8 if config.crop_pad is None else config.crop_pad
        stream = batches(
            self.train,
            config.batch_size,
            mean=self.data.mean,
            std=self.data.std,
            seed=config.seed,
            start_step=self.step,
            augment=config.augment,
            crop_pad=pad,
            flip=self.data.flip,
            scale=config.crop_scale,
        )
        shown = self.step
        with bar("training", self.num_steps - self.step, show=progress) as update:
            while self._row_is_written() and not self._over():
                _, x, y = next(stream)
                self._update(x, y)
                if self.step % CHECK == 0:
                    self._sync()
                    update(self.step - shown, **self._note())
                    shown = self.step
                if self._checkpoint_is_due():
                    self._checkpoint()
        return self._finish()

    def _over(self) -> bool:
        return bool(self.step >= self.num_steps or self.monitor.verdict or self.signals)

    def _update(self, x: Tensor, y: Tensor) -> None:
        """One optimizer step; the loss stays on the device."""
        logits = self.model(x)
        loss = F.cross_entropy(logits, y)
        if self.step == 0:
            self.monitor.start(F.cross_entropy(logits.detach(), y, reduction="none").tolist())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.step += 1
        if self.step % CHECK == 0:
            self._probed_step()
        else:
            self.optimizer.step()
        self.pending.append(loss.detach())

    @torch.no_grad()
    def _probed_step(self) -> None:
        """One optimizer step that also measures every gradient, and whether any weight moved by it."""
        none = self.parameters[0].new_zeros(())
        norms = [none if p.grad is None else torch.linalg.vector_norm(p.grad) for p in self.parameters]
        before = [p.clone() for p in self.weights]
        self.optimizer.step()
        moved = torch.stack([(p != old).any() for p, old in zip(self.weights, before, strict=True)])
        self.probe = torch.stack([*norms, moved.any().to(none.dtype)])

    def _sync(self) -> None:
        """Fetch the pending losses and let the monitor judge them, each as if it had come alone."""
        if not self.pending:
            return
        losses, self.pending = torch.stack(self.pending).tolist(), []
        for loss in losses:
            self.monitor.add(loss)
        if self.probe is not None:
            *norms, moved = self.probe.tolist()
            self.probe = None
            self.grad_norm = math.hypot(*norms)
            judged = {id(p) for p in self.weights}
            reached = any(norm for norm, p in zip(norms, self.parameters, strict=True) if id(p) in judged)
            self.monitor.add_update(dead=not (reached and moved))
        if self.monitor.verdict:
            self.step = self.monitor.steps

    def _row_is_written(self) -> bool:
        """Evaluate and write a row where one is due; False where a signal came first."""
        due = self.step % self.eval_every == 0 or self.step == self.num_steps or self.monitor.verdict
        if not due or (self.rows and self.rows[-1]["step"] >= self.step):
            return True
        self._sync()
        scores: dict[str, tuple[float, float] | None] = {}
        healthy = math.isfinite(self.monitor.final) or not self.monitor.recent
        for name, split in (("test", self.test), ("val", self.val)):
            if not healthy or split is None:
                continue
            size = self.config.eval_batch_size
            scores[name] = evaluate_until(self.model, split, self.data, size, lambda: self.signals)
            if scores[name] is None:
                return False
        self._write_row(scores)
        return True

    def _write_row(self, scores: dict[str, tuple[float, float] | None]) -> None:
        row: dict[str, Any] = {
            "step": self.step,
            "epoch": self.step / self.per_epoch,
            "lr": self.config.lr,
            "train_loss": self.monitor.row_loss,
            "grad_norm": self.grad_norm,
        }
        for name in ("test", "val"):
            row[f"{name}_loss"], row[f"{name}_accuracy"] = scores.get(name) or (None, None)
        row["seconds"] = self._seconds()
        judged = row["val_loss"] if self.val else row["test_loss"]
        self.monitor.add_evaluation(math.nan if judged is None else judged)
        row = finite(row)
        if self.log is None:
            self.rows.append(row)
        else:
            self.log.write(row)
        if self.board is not None:
            for name, value in row.items():
                if isinstance(value, float):
                    self.board.add_scalar(name, value, self.step)

    def _checkpoint_is_due(self) -> bool:
        if self.out is None or self.monitor.verdict:
            return False
        every = self.config.checkpoint_every
        if every is not None:
            return self.step % every == 0
        return self.step % CHECK == 0 and time.monotonic() - self.saved_at > CHECKPOINT_SECONDS

    def _checkpoint(self) -> None:
        """Write everything needed to continue, in one file, after the rows are safely on the disk."""
        if self.out is None or self.log is None:
            return
        self._sync()
        if self.monitor.verdict:  # weights that are not finite are no place to resume from
            return
        tensors, numbers = pack(self.model, self.optimizer, self.generators)
        state = {
            "step": self.step,
            "rows": len(self.rows),
            "seconds": self._seconds(),
            "grad_norm": self.grad_norm,
            "monitor": self.monitor.state(),
            "optimizer": numbers,
        }
        self.log.sync()
        write_tensors(self.out / runs.CHECKPOINT, tensors, state)
        self.saved_at = time.monotonic()

    def _restore(self, path: Path) -> int:
        """Take up a checkpoint; returns how many rows belong to it."""
        tensors, state = read_tensors(path)
        if not {"step", "rows", "monitor", "optimizer"} <= state.keys():
            raise CheckpointError(f"{path} is no checkpoint of a training run; remove it to start over")
        unpack(tensors, state["optimizer"], self.model, self.optimizer, self.generators, path)
        self.monitor.restore(state["monitor"])
        self.step, self.spent, self.grad_norm = state["step"], state["seconds"], state["grad_norm"]
        return int(state["rows"])

    def _finish(self) -> FitResult:
        """Record how it ended."""
        self._sync()
        self.optimizer.zero_grad(set_to_none=True)
        status, reason = self.monitor.verdict or ("done", "")
        if (status == "done" and self.step < self.num_steps) or not self._row_is_written():
            status, reason = "interrupted", signal.Signals(self.signals[0]).name
        result = FitResult(
            rows=list(self.rows),
            status=status,  # type: ignore[arg-type]
            reason=reason,
            steps=self.step,
            **best(self.rows),
            initial_loss=self.monitor.initial,
            final_loss=self.monitor.final,
            seconds=self._seconds(),
        )
        if self.out is None:
            return result
        if status == "interrupted":
            self._checkpoint()
            return result
        summary = {key: value for key, value in vars(result).items() if key != "rows"}
        if math.isfinite(result.final_loss):
            described = describe(self.model, self.data, self.config)
            extra = {"data": described["data"], "train": described["train"], "summary": summary}
            runs.save_model(self.out, self.model, extra)
        if self.log is not None:
            self.log.sync()
        write_json(self.out / runs.DONE, summary)
        (self.out / runs.CHECKPOINT).unlink(missing_ok=True)
        return result

    def _seconds(self) -> float:
        """Time in training, over all sittings."""
        return self.spent + time.monotonic() - self.began

    def _note(self) -> dict[str, str]:
        """What stands behind the progress bar."""
        accuracy = self.rows[-1]["test_accuracy"] if self.rows else None
        note = {"loss": f"{self.monitor.recent[-1]:.4g}"}
        return note if accuracy is None else {**note, "test": f"{accuracy:.1%}"}

    def close(self) -> None:
        """Close what is open."""
        if self.log is not None:
            self.log.close()
        if self.board is not None:
            self.board.close()


def _optimizer(parameters: list[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer asked for; `foreach` updates many small tensors at once."""
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay, foreach=True)
    return torch.optim.SGD(
        parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay, foreach=True
    )


def _tensorboard(out: Path, step: int) -> Any:
    """A TensorBoard writer that drops what an earlier sitting wrote after `step`."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise PathsumError("tensorboard=True needs tensorboard; run: pip install 'pathsum[train]'") from None
    return SummaryWriter(str(out / "tensorboard"), purge_step=step + 1 if step else None)
