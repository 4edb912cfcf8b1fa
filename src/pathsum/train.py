"""Training that survives: divergence is a result, a kill costs seconds, resuming is bitwise on the CPU."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import torch
from torch import nn

from pathsum.allocation import freed_memory
from pathsum.data import Dataset
from pathsum.nets.memory import keeps_activations
from pathsum.training.contexts import (
    channels_last,
    interruptible,
    mode,
    private_randomness,
    tensor_cores,
    threads,
)
from pathsum.training.evaluation import evaluate, placement
from pathsum.training.loop import Training
from pathsum.training.opening import check_fit, check_out, open_folder
from pathsum.training.options import TrainConfig, TrainOptions
from pathsum.training.result import WALL_CLOCK, FitResult, Status
from pathsum.training.stacked import fit_stack, stack_key
from pathsum.training.state import adopt

__all__ = [
    "WALL_CLOCK",
    "FitResult",
    "Status",
    "TrainConfig",
    "TrainOptions",
    "check_fit",
    "evaluate",
    "fit",
    "fit_stack",
    "stack_key",
]


def fit(
    model: nn.Module,
    data: Dataset,
    config: TrainConfig,
    *,
    out: str | Path | None = None,
    resume: bool = True,
    optimizer: torch.optim.Optimizer | None = None,
    progress: bool | None = None,
) -> FitResult:
    """Train `model` in place on `data`: cross-entropy, a constant learning rate, evaluations as it goes.

    With a folder `out` the run is recorded there. SIGINT or SIGTERM then leave it resumable, with status
    `"interrupted"` (a second SIGINT forces), and a kill costs the time since the last checkpoint. The same
    call again continues it, on the CPU to bitwise the rows it would have had, or returns what a finished run
    recorded. Divergence and freezing (`pathsum.training.monitor`) end a run early; they are results, not
    errors. Global random state, thread count, signal handlers and the model's mode are as before afterwards.

    An `optimizer` on the model, of the class that `config` asks for (as `grow` gives one), lends its memory: the run
    begins with it and leaves its own there; rates and decays are those of `config`.

    Raises `CheckpointError` (the folder's run has another configuration), `OutputError` (folder not empty or
    not writable, disk full; the last checkpoint stays good), `DataError` (model and data do not fit).
    """
    return run_training(Training, model, data, config, out=out, resume=resume, optimizer=optimizer, progress=progress)


def run_training(
    kind: type[Training],
    model: nn.Module,
    data: Dataset,
    config: TrainConfig,
    *,
    out: str | Path | None,
    resume: bool,
    progress: bool | None,
    optimizer: torch.optim.Optimizer | None = None,
) -> FitResult:
    """`fit` with a loop of any kind."""
    check_fit(model, data, config)
    check_out(config, out)
    device = placement(model)[0]
    with ExitStack() as stack:
        folder = None
        if out is not None:
            folder, result = open_folder(stack, model, data, config, out, resume=resume, optimizer=optimizer)
            if result is not None:
                return result
        signals: list[int] = stack.enter_context(interruptible()) if folder is not None else []
        stack.enter_context(threads(config.threads))
        stack.enter_context(freed_memory("kept" if keeps_activations(model) else "returned"))
        stack.enter_context(tensor_cores(config.precision))
        stack.enter_context(private_randomness(config.seed, device))
        stack.enter_context(mode(model, training=True))
        stack.enter_context(channels_last(model, device, config.precision))
        training = kind(model, data, config, device, folder, signals, optimizer)
        stack.callback(training.close)
        result = training.run(progress)
        if optimizer is not None:
            adopt(optimizer, training.record.optimizer)
        return result
