"""Before a run: can it start, and what does its folder hold already?"""

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
from pathsum.training.evaluation import evaluate
from pathsum.training.options import FREE, TrainConfig
from pathsum.training.record import describe, make_optimizer
from pathsum.training.result import FitResult
from pathsum.training.state import adopt, load_memory


def check_fit(model: nn.Module, data: Dataset, config: TrainConfig) -> None:
    """Raise `DataError` or `PathsumError` where `fit` could not start; runs the model on one image."""
    check_trainable(model)
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


def check_trainable(model: nn.Module) -> None:
    """Raise `PathsumError` where there is nothing to train."""
    if not any(p.requires_grad for p in model.parameters()):
        raise PathsumError(f"{type(model).__name__} has no trainable parameters; nothing to fit")


def check_out(config: TrainConfig, out: str | Path | None) -> None:
    """Raise `PathsumError` where an option needs a folder and there is none."""
    if config.tensorboard and out is None:
        raise PathsumError("tensorboard=True needs an output folder; give fit(..., out=FOLDER)")


def open_folder(
    held: ExitStack,
    model: nn.Module,
    data: Dataset,
    config: TrainConfig,
    out: str | Path,
    *,
    resume: bool,
    optimizer: torch.optim.Optimizer | None = None,
) -> tuple[Path, FitResult | None]:
    """Start or take up the run in the folder `out`, locked while `held` lasts; its result where it is finished."""
    free = [f"train.{name}" for name in FREE]
    folder = runs.open_run(out, describe(model, data, config), resume=resume, free=free)
    held.enter_context(locked(folder))
    return folder, _recorded(folder, model, config, optimizer) if (folder / runs.DONE).is_file() else None


def _recorded(out: Path, model: nn.Module, config: TrainConfig, optimizer: torch.optim.Optimizer | None) -> FitResult:
    """The result of a finished run, its weights put into `model` where they were kept, its memory into `optimizer`."""
    summary = read_json(out / runs.DONE)
    if (out / runs.MODEL).is_file():
        runs.load_weights(model, out / runs.MODEL)
        if optimizer is not None:
            remembered = make_optimizer([p for p in model.parameters() if p.requires_grad], config)
            load_memory(out / runs.OPTIMIZER, remembered)
            adopt(optimizer, remembered)
    numbers = {k: math.nan if summary[k] is None else summary[k] for k in ("initial_loss", "final_loss")}
    rows, observations = (runs.read_rows(out / name) for name in (runs.ROWS, runs.OBSERVATIONS))
    return FitResult(rows=rows, observations=observations, **{**summary, **numbers})
