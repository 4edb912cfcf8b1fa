"""What a MODEL on the command line stands for, once it is loaded."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from torch import nn

from pathsum.data import Dataset
from pathsum.data.checks import reason
from pathsum.data.text import Tokenizer
from pathsum.errors import CheckpointError, DataError, PathsumError


@dataclass(frozen=True)
class Target:
    """A network to look at, in eval mode, and what is known of it; None stands for unknown."""

    model: nn.Module
    name: str  # short, good for a folder
    about: str  # one line: what it is and where it came from
    record: dict[str, Any] = field(default_factory=dict)  # of a checkpoint: its configuration and its data
    takes: Literal["images", "text"] | None = None
    image_shape: tuple[int, int, int] | None = None  # channels, height, width that it was built for
    mean: tuple[float, ...] | None = None  # that it was trained with
    std: tuple[float, ...] | None = None
    tokenizer: Tokenizer | None = None
    longest: int | None = None  # tokens of a sequence

    def source(self, given: str | None) -> str:
        """Where its images are: as given, else the digits if it was trained on them."""
        known = self.record.get("data") or {}
        source = given or ("digits" if known.get("name") == "digits" else None)
        if source is None:
            trained = f"was trained on {known['name']}" if "name" in known else "does not say what it was trained on"
            raise DataError(f"{self.name} {trained}: say where images lie with --data, such as --data cifar10:PATH")
        return source

    def statistics(self, data: str) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
        """The mean and standard deviation that it was trained with; those of its record if that is of these data."""
        known = self.record.get("data") or {}
        same = known if known.get("name") == data else {}
        mean, std = (getattr(self, key) or tuple(same.get(key) or ()) or None for key in ("mean", "std"))
        return mean, std

    def normalized(self, data: Dataset, mean: Sequence[float] | None, std: Sequence[float] | None) -> Dataset:
        """The data with the mean and deviation given, else with those that it was trained with, else with their own."""
        known = self.statistics(data.name)
        return replace(data, mean=tuple(mean or known[0] or data.mean), std=tuple(std or known[1] or data.std))


def extra(module: str, group: str) -> ModuleType:
    """Import an optional package, or say how to install it, or why it does not import."""
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        lacking = (error.name or package).partition(".")[0]
        needs = package if lacking == package else f"{package} (and {lacking}, which {package} imports)"
        raise PathsumError(f"this needs {needs}, which is not installed: pip install 'pathsum[{group}]'") from None
    except Exception as error:  # a wheel built for another torch fails in its own ways
        raise PathsumError(
            f"{package} is installed but does not import ({type(error).__name__}: {reason(error)}); "
            f"install the release of {package} that belongs to this torch"
        ) from error


def check_safetensors(path: Path) -> None:
    """Refuse weights in any other format."""
    if path.suffix != ".safetensors":
        raise CheckpointError(
            f"{path} is not a .safetensors file, the only format that is read (pickles can run code); "
            "convert it with safetensors.torch.save_file"
        )


def refuse_weights(word: str, weights: Path | None) -> None:
    """Refuse --weights for a MODEL that brings its own."""
    if weights is not None:
        raise PathsumError(f"--weights does not go with {word}, which has its own; leave one of the two out")
