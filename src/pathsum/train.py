"""Training that survives: divergence is a result, a kill costs seconds, resuming is bitwise on the CPU."""

from __future__ import annotations

import math
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import nn

from pathsum import runs
from pathsum.data import Dataset
from pathsum.errors import DataError, PathsumError
from pathsum.storage import locked, read_json
from pathsum.training.contexts import channels_last, interruptible, mode, private_randomness, threads
from pathsum.training.evaluation import evaluate
from pathsum.training.loop import Training, describe
from pathsum.training.options import FREE, TrainConfig, TrainOptions
from pathsum.training.result import WALL_CLOCK, FitResult, Status

__all__ = ["WALL_CLOCK", "FitResult", "Status", "TrainConfig", "TrainOptions", "check_fit", "evaluate", "fit"]


def fit(
    model: nn.Module,
    data: Dataset,
    config: TrainConfig,
    *,
    out: str | Path | None = None,
    resume: bool = True,
    progress: bool | None = None,
) -> FitResult:
    """Train `model` in place on `data`: cross-entropy, a constant learning rate, evaluations as it goes.

    With a folder `out` the run is recorded there. SIGINT or SIGTERM then leave it resumable, with status
    `"interrupted"` (a second SIGINT forces), and a kill costs the time since the last checkpoint. The same
    call again continues it, on the CPU to bitwise the rows it would have had, or returns what a finished run
    recorded. Divergence and freezing (`pathsum.training.monitor`) end a run early; they are results, not
    errors. Global random state, thread count, signal handlers and the model's mode are as before afterwards.

    Raises `CheckpointError` (the folder's run has another configuration), `OutputError` (folder not empty or
    not writable, disk full; the last checkpoint stays good), `DataError` (model and data do not fit).
    """
    check_fit(model, data, config)
    if config.tensorboard and out is None:
        raise PathsumError("tensorboard=True needs an output folder; give fit(..., out=FOLDER)")
    device = next(model.parameters()).device
    with ExitStack() as stack:
        if out is not None:
            asked = describe(model, data, config)
            out = runs.open_run(out, asked, resume=resume, free=[f"train.{name}" for name in FREE])
            stack.enter_context(locked(out))
            if (out / runs.DONE).is_file():
                return _recorded(out, model)
        signals: list[int] = stack.enter_context(interruptible()) if out is not None else []
        stack.enter_context(threads(config.threads))
        stack.enter_context(private_randomness(config.seed, device))
        stack.enter_context(mode(model, training=True))
        stack.enter_context(channels_last(model, device))
        training = Training(model, data, config, device, out, signals)
        stack.callback(training.close)
        return training.run(progress)


def check_fit(model: nn.Module, data: Dataset, config: TrainConfig) -> None:
    """Raise `DataError` or `PathsumError` where `fit` could not start; runs the model on one image."""
    if not any(p.requires_grad for p in model.parameters()):
        raise PathsumError(f"{type(model).__name__} has no trainable parameters; nothing to fit")
    if not 0 <= config.val_size < len(data.train):
        raise DataError(
            f"val_size is {config.val_size}, expected less than the {len(data.train)} training images of "
            f"{data.name}; hold out fewer"
        )
    if len(data.train) - config.val_size < config.batch_size:
        raise DataError(
            f"{data.name} leaves {len(data.train) - config.val_size} images to train on, fewer than one batch "
            f"of {config.batch_size}; use a smaller batch size or more data"
        )
    try:
        evaluate(model, data.test.take(torch.arange(min(1, len(data.test)))), data)
    except RuntimeError as error:
        why = " ".join(str(error).split())
        raise DataError(
            f"the model cannot take the images of {data.name}, of shape {data.shape} ({why}); build it for that shape"
        ) from error


def _recorded(out: Path, model: nn.Module) -> FitResult:
    """The result of a finished run, its weights put into `model` where they were kept."""
    summary = read_json(out / runs.DONE)
    if (out / runs.MODEL).is_file():
        runs.load_weights(model, out / runs.MODEL)
    numbers = {k: math.nan if summary[k] is None else summary[k] for k in ("initial_loss", "final_loss")}
    return FitResult(rows=runs.read_rows(out / runs.ROWS), **{**summary, **numbers})
