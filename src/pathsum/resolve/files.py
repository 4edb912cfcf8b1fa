"""MODEL as files: a checkpoint that pathsum wrote, or a function in a Python file."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Literal

from torch import nn

from pathsum.errors import PathsumError

from .target import Target, check_safetensors, refuse_weights


def from_checkpoint(word: str, weights: Path | None) -> Target:
    """A network that pathsum trained."""
    from pathsum.runs import load_model

    refuse_weights(word, weights)
    path = Path(word)
    model, record = load_model(path)
    config = record.get("config") or {}
    options = ", ".join(f"{key} {config[key]}" for key in ("depth", "width", "norm", "scale") if key in config)
    name = path.resolve().name.removesuffix(".safetensors")
    return Target(model, name, f"{record.get('class')} ({options}) from {path}", record)


def from_function(word: str, weights: Path | None) -> Target:
    """The module that a function in a Python file returns, called without arguments."""
    from pathsum.runs import load_state
    from pathsum.storage import read_tensors

    file, _, name = word.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise PathsumError(f"no file {path} for MODEL {word}; check the path")
    with imported(path) as module:
        function = getattr(module, name, None)
        if not callable(function):
            there = ", ".join(key for key in public(module)) or "none"
            raise PathsumError(f"{path} has no function {name!r}; its functions are: {there}")
        try:
            model = function()
        except Exception as error:
            raise PathsumError(
                f"{name}() in {path} raised {type(error).__name__}: {error}; it is called without arguments "
                "and must return a torch.nn.Module"
            ) from error
    if not isinstance(model, nn.Module):
        raise PathsumError(
            f"{name}() in {path} returned {type(model).__name__}, expected a torch.nn.Module; return the network"
        )
    about = f"{type(model).__name__} from {word}"
    if weights is None:
        return Target(model.eval(), name, f"{about}, weights as {name}() leaves them", takes=kind_of(model))
    check_safetensors(weights)
    tensors, _ = read_tensors(weights)
    load_state(model, tensors, weights)
    return Target(model.eval(), name, f"{about}, weights {weights}", takes=kind_of(model))


def kind_of(model: nn.Module) -> Literal["text"] | None:
    """Text, where a model says (as those of transformers do) that its main input is tokens."""
    return "text" if getattr(model, "main_input_name", None) == "input_ids" else None


def public(module: ModuleType) -> Iterator[str]:
    """Names of the functions and module classes that a file defines itself."""
    for name, value in vars(module).items():
        if callable(value) and not name.startswith("_") and value.__module__ == module.__name__:
            yield name


@contextmanager
def imported(path: Path) -> Iterator[ModuleType]:
    """Run a Python file as a module, its folder first on the import path, as `python FILE` would have it."""
    name = f"_pathsum_model_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PathsumError(f"{path} cannot be imported as Python; give a .py file")
    module = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    sys.modules[name] = module  # dataclasses and pickles look their module up
    try:
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            raise PathsumError(
                f"{path} cannot be imported: {type(error).__name__}: {error}; run it with python to see where"
            ) from error
        yield module
    finally:
        sys.path.remove(folder)
        sys.modules.pop(name, None)
