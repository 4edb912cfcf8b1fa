"""Training that begins with a network there is: `pathsum train --start`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pathsum import runs
from pathsum.errors import PathsumError
from pathsum.train import TrainConfig, TrainOptions
from pathsum.training.record import make_optimizer
from pathsum.training.state import load_memory

if TYPE_CHECKING:
    from pathsum.commands_train import TrainCommand

# Options of the command that a network brings itself.
OWN = ("depth", "width", "encoder", "stem_norm", "activation", "scale", "norm", "init")


@dataclass(frozen=True)
class Start:
    """The network to begin with, and its optimizer's memory where there is one."""

    weights: Path
    config: dict[str, Any]

    @classmethod
    def read(cls, path: Path, command: TrainCommand) -> Start:
        """Look at the network; raises `PathsumError` where the command asks for another one."""
        defaults = {f.name: f.default for f in fields(command)}
        asked = [name for name in OWN if getattr(command, name) != defaults[name]]
        if asked:
            raise PathsumError(
                f"--{asked[0].replace('_', '-')} does not go with --start, whose network has its own; leave one out"
            )
        _, record = runs.load_model(path)
        return cls(runs.find_weights(path), record["config"])

    @property
    def depth(self) -> int:
        return int(self.config["depth"])

    @property
    def width(self) -> int:
        return int(self.config["width"])

    @property
    def size(self) -> dict[str, int]:
        """What results.csv says of it."""
        return {"depth": self.depth, "width": self.width}

    def model(self) -> nn.Module:
        """The network anew, for each run its own."""
        return runs.load_model(self.weights)[0]

    def optimizer(self, model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer | None:
        """An optimizer with the memory beside the network; None where there is none."""
        memory = self.weights.with_name(runs.OPTIMIZER)
        if not memory.is_file():
            return None
        optimizer = make_optimizer([p for p in model.parameters() if p.requires_grad], config)
        load_memory(memory, optimizer)
        return optimizer

    def configs(self, command: TrainCommand) -> Iterator[tuple[str, dict[str, Any], TrainConfig]]:
        """Folder name, the network's options and training configuration of every run, one for each learning rate.

        The name holds a digest of the weights, so that a run is not taken up with others.
        """
        if not command.lr:
            raise PathsumError("lr needs one value or more")
        common = {f.name: getattr(command, f.name) for f in fields(TrainOptions)}
        digest = hashlib.sha256(self.weights.read_bytes()).hexdigest()[:8]
        options = {name: self.config[name] for name in ("scale", "norm", "init")}
        for lr in dict.fromkeys(command.lr):
            yield f"from-{self.weights.parent.resolve().name}-{digest}_lr{lr:g}", options, TrainConfig(lr=lr, **common)
