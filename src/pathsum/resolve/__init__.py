"""MODEL on the command line: from one word to a network, by a table of the forms a word can have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pathsum.errors import PathsumError

from .files import from_checkpoint, from_function
from .hub import from_hub
from .target import Target
from .vision import from_timm, from_torchvision

__all__ = ["FORMS", "Form", "Target", "resolve"]


@dataclass(frozen=True)
class Form:
    """One way to write MODEL: which words it covers, and how such a word becomes a network."""

    usage: str
    matches: Callable[[str], bool]
    load: Callable[[str, Path | None], Target]


def resolve(word: str, *, weights: Path | None = None) -> Target:
    """Return the network that `word` names; `weights` is a safetensors file for a form that takes one.

    Raises PathsumError for a word of no known form, a package that is missing, a model that cannot be had, or a
    function that fails or returns no module; CheckpointError for weights that are missing, damaged, or of another
    network.
    """
    for form in FORMS:
        if form.matches(word):
            return form.load(word, weights)
    forms = "; ".join(form.usage for form in FORMS)
    raise PathsumError(f"cannot tell what MODEL {word!r} is: nothing lies there; give {forms}")


FORMS = (
    Form(
        "torchvision:NAME (random weights, or --weights FILE.safetensors) or torchvision:NAME@DEFAULT (published ones)",
        lambda word: word.startswith("torchvision:"),
        from_torchvision,
    ),
    Form("timm:NAME or timm:NAME@DEFAULT, likewise", lambda word: word.startswith("timm:"), from_timm),
    Form(
        "hf:FOLDER or hf:NAME, a model of transformers on disk or on its hub",
        lambda word: word.startswith("hf:"),
        from_hub,
    ),
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
