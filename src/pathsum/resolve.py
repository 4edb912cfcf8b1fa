"""MODEL on the command line: from one word to a network, by a table of the forms a word can have."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from pathsum.errors import CheckpointError, PathsumError


@dataclass(frozen=True)
class Target:
    """A network to look at, in eval mode, and what is known of it."""

    model: nn.Module
    name: str  # short, good for a folder
    about: str  # one line: what it is and where it came from
    record: dict[str, Any] = field(default_factory=dict)  # of a checkpoint: its configuration and its data


@dataclass(frozen=True)
class Form:
    """One way to write MODEL: which words it covers, and how such a word becomes a network."""

    usage: str
    matches: Callable[[str], bool]
    load: Callable[[str, Path | None], Target]


def resolve(word: str, *, weights: Path | None = None) -> Target:
    """Return the network that `word` names; `weights` is the safetensors file for a `FILE.py:FUNCTION`.

    Raises PathsumError for a word of no known form, or a function that is missing, fails or returns no module;
    CheckpointError for weights that are missing, damaged, or of another network.
    """
    for form in FORMS:
        if form.matches(word):
            return form.load(word, weights)
    forms = "; ".join(form.usage for form in FORMS)
    raise PathsumError(f"cannot tell what MODEL {word!r} is: nothing lies there; give {forms}")


def from_checkpoint(word: str, weights: Path | None) -> Target:
    """A network that pathsum trained."""
    from pathsum.runs import load_model

    if weights is not None:
        raise PathsumError(f"--weights does not go with {word}, which has its own; leave one of the two out")
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
        return Target(model.eval(), name, f"{about}, weights as {name}() leaves them")
    if weights.suffix != ".safetensors":
        raise CheckpointError(
            f"{weights} is not a .safetensors file, the only format that is read (pickles can run code); "
            "convert it with safetensors.torch.save_file"
        )
    tensors, _ = read_tensors(weights)
    load_state(model, tensors, weights)
    return Target(model.eval(), name, f"{about}, weights {weights}")


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


FORMS = (
    Form(
        "FILE.py:FUNCTION, a function that returns a torch.nn.Module (with --weights FILE.safetensors)",
        lambda word: word.rpartition(":")[0].endswith(".py"),
        from_function,
    ),
    Form(
        "a folder or .safetensors file that pathsum wrote",
        lambda word: Path(word).exists() or Path(word).suffix == ".safetensors",
        from_checkpoint,
    ),
)
