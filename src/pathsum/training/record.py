"""The books of one run: step, verdict, rows, checkpoints, result; the same for a network alone and one of a stack."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pathsum import runs
from pathsum.data import Dataset
from pathsum.errors import CheckpointError, PathsumError
from pathsum.storage import finite, read_tensors, write_json, write_tensors
from pathsum.training.monitor import CHECK, Monitor
from pathsum.training.options import TrainConfig, train_record
from pathsum.training.result import FitResult, best
from pathsum.training.state import adopt, pack, save_memory, unpack
from pathsum.training.watch import Watch

CHECKPOINT_SECONDS = 30.0  # between checkpoints, where no number of steps is asked for

Scores = dict[str, tuple[float, float] | None]  # loss and accuracy by split; None where it was not evaluated


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
    return {"train": train_record(config), "model": runs.model_record(model), "data": facts}


class Record:
    """What one run has done so far, and its folder; how the network takes its steps is not its business.

    The model and the optimizer hold the tensors that a checkpoint needs, at the latest when one is written.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Dataset,
        config: TrainConfig,
        generators: list[torch.Generator],
        out: Path | None,
        given: torch.optim.Optimizer | None = None,
    ) -> None:
        self.given = given
        self.model, self.data, self.config, self.generators, self.out = model, data, config, generators, out
        self.per_epoch = (len(data.train) - config.val_size) // config.batch_size
        self.num_steps = config.num_steps(self.per_epoch)
        self.eval_every = config.eval_every or math.ceil(self.num_steps / 10)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        # Biases alone can chase the batches' class counts while the network is dead.
        self.judged = [p.ndim > 1 for p in self.parameters]
        if not any(self.judged):
            self.judged = [True] * len(self.parameters)
        self.optimizer = self.new_optimizer()
        if given is not None:
            adopt(self.optimizer, given)
        self.monitor = self.new_monitor()
        self.grad_norm: float | None = None
        self.step, self.spent, self.began = 0, 0.0, time.monotonic()
        self.log: runs.RowLog | None = None
        self.rows: list[dict[str, Any]] = []
        self.watch = Watch(model, data, config, self.num_steps) if config.observe else None
        self.board: Any = None
        if out is not None:
            self._open(out)
        self.saved_at = time.monotonic()

    def new_optimizer(self) -> torch.optim.Optimizer:
        """What takes the steps."""
        return make_optimizer(self.parameters, self.config)

    def new_monitor(self) -> Monitor:
        """What judges the losses."""
        return Monitor(self.config.divergence_window, self.config.frozen_window, self.config.frozen_tolerance)

    def extra(self) -> dict[str, Any]:
        """What else a row says."""
        return {}

    def _open(self, out: Path) -> None:
        """Take up what the folder holds, or start it."""
        keep, observed = self._restore(out / runs.CHECKPOINT) if (out / runs.CHECKPOINT).is_file() else (0, 0)
        self.log = runs.RowLog(out / runs.ROWS, keep=keep)
        self.rows = self.log.rows
        if self.watch is not None:
            self.watch.open(out, observed)
        self.board = _tensorboard(out, self.step) if self.config.tensorboard else None
        if not keep and not self.step:
            self.checkpoint()  # resuming needs the weights it started from

    @property
    def weights(self) -> list[nn.Parameter]:
        """The parameters that must move for the network to count as alive."""
        return [p for p, judged in zip(self.parameters, self.judged, strict=True) if judged]

    @property
    def ended(self) -> bool:
        """Whether the last step was taken, or the monitor has seen enough."""
        return bool(self.step >= self.num_steps or self.monitor.verdict)

    @property
    def row_is_due(self) -> bool:
        """Whether a row belongs to this step and is not written yet."""
        due = self.step % self.eval_every == 0 or self.ended
        return due and not (self.rows and self.rows[-1]["step"] >= self.step)

    @property
    def healthy(self) -> bool:
        """Whether the weights are worth an evaluation."""
        return math.isfinite(self.monitor.final) or not self.monitor.recent

    def take(self, losses: Sequence[float], norms: Sequence[float] | None = None, *, moved: bool = True) -> None:
        """Judge the losses of the next steps, and what a probe saw: each gradient's norm, and whether a weight moved.

        The losses are judged each as if it had come alone; a verdict sets the step back to the one it fell at.
        """
        for loss in losses:
            self.monitor.add(loss)
        if norms is not None:
            self.grad_norm = math.hypot(*norms)
            reached = any(norm for norm, judged in zip(norms, self.judged, strict=True) if judged)
            self.monitor.add_update(dead=not (reached and moved))
        if self.monitor.verdict:
            self.step = self.monitor.steps

    def write_row(self, scores: Scores) -> None:
        """Write the row of this step."""
        row: dict[str, Any] = {
            "step": self.step,
            "epoch": self.step / self.per_epoch,
            "lr": self.config.lr,
            "train_loss": self.monitor.row_loss,
            "grad_norm": self.grad_norm,
        }
        for name in ("test", "val"):
            row[f"{name}_loss"], row[f"{name}_accuracy"] = scores.get(name) or (None, None)
        row |= {**self.extra(), "seconds": self.seconds}
        judged = row["val_loss"] if self.config.val_size else row["test_loss"]
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

    @property
    def observations(self) -> list[dict[str, Any]]:
        """What was observed so far."""
        return [] if self.watch is None else self.watch.rows

    @property
    def observation_is_due(self) -> bool:
        """Whether the network is to be observed at this step, and was not yet; once it has failed it is not."""
        return self.watch is not None and not self.monitor.verdict and self.watch.is_due(self.step)

    @property
    def checkpoint_is_due(self) -> bool:
        """Whether to write a checkpoint at this step."""
        if self.out is None or self.monitor.verdict:
            return False
        every = self.config.checkpoint_every
        if every is not None:
            return self.step % every == 0
        return self.step % CHECK == 0 and time.monotonic() - self.saved_at > CHECKPOINT_SECONDS

    def checkpoint(self) -> None:
        """Write everything needed to continue, in one file, after the rows are safely on the disk."""
        if self.out is None or self.log is None:
            return
        if self.monitor.verdict:  # weights that are not finite are no place to resume from
            return
        tensors, numbers = pack(self.model, self.optimizer, self.generators)
        state = {
            "step": self.step,
            "rows": len(self.rows),
            "observations": len(self.observations),
            "seconds": self.seconds,
            "grad_norm": self.grad_norm,
            "monitor": self.monitor.state(),
            "optimizer": numbers,
        }
        self._sync_logs()
        write_tensors(self.out / runs.CHECKPOINT, tensors, state)
        self.saved_at = time.monotonic()

    def _restore(self, path: Path) -> tuple[int, int]:
        """Take up a checkpoint; returns how many rows and observations belong to it."""
        tensors, state = read_tensors(path)
        if not {"step", "rows", "monitor", "optimizer"} <= state.keys():
            raise CheckpointError(f"{path} is no checkpoint of a training run; remove it to start over")
        unpack(tensors, state["optimizer"], self.model, self.optimizer, self.generators, path)
        self.monitor.restore(state["monitor"])
        self.step, self.spent, self.grad_norm = state["step"], state["seconds"], state["grad_norm"]
        return int(state["rows"]), int(state.get("observations", 0))

    def finish(self, signals: Sequence[int]) -> FitResult:
        """Record how it ended; where a signal came first, so that it can be resumed."""
        status, reason = self.monitor.verdict or ("done", "")
        if self.row_is_due or not self.ended:
            status, reason = "interrupted", signal.Signals(signals[0]).name
        result = FitResult(
            rows=list(self.rows),
            status=status,  # type: ignore[arg-type]
            reason=reason,
            steps=self.step,
            **best(self.rows),
            initial_loss=self.monitor.initial,
            final_loss=self.monitor.final,
            seconds=self.seconds,
            observations=list(self.observations),
        )
        if self.out is None:
            return result
        if status == "interrupted":
            self.checkpoint()
            return result
        summary = {key: value for key, value in vars(result).items() if key not in ("rows", "observations")}
        if math.isfinite(result.final_loss):
            self.save(self.out, result, summary)
            if self.given is not None:
                save_memory(self.out / runs.OPTIMIZER, self.optimizer)
        self._sync_logs()
        write_json(self.out / runs.DONE, summary)
        (self.out / runs.CHECKPOINT).unlink(missing_ok=True)
        return result

    def save(self, out: Path, result: FitResult, summary: dict[str, Any]) -> None:
        """Write the trained network."""
        described = describe(self.model, self.data, self.config)
        extra = {"data": described["data"], "train": described["train"], "summary": summary}
        runs.save_model(out, self.model, extra)

    @property
    def seconds(self) -> float:
        """Time in training, over all sittings; in a stack the time of the whole stack."""
        return self.spent + time.monotonic() - self.began

    def note(self) -> dict[str, str]:
        """What stands behind the progress bar."""
        accuracy = self.rows[-1]["test_accuracy"] if self.rows else None
        note = {"loss": f"{self.monitor.recent[-1]:.4g}"}
        return note if accuracy is None else {**note, "test": f"{accuracy:.1%}"}

    def _sync_logs(self) -> None:
        """Force rows and observations to the disk."""
        for log in (self.log, None if self.watch is None else self.watch.log):
            if log is not None:
                log.sync()

    def close(self) -> None:
        """Close what is open."""
        for log in (self.log, None if self.watch is None else self.watch.log):
            if log is not None:
                log.close()
        if self.board is not None:
            self.board.close()


def make_optimizer(parameters: list[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
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
