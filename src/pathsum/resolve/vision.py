"""MODEL as torchvision:NAME or timm:NAME, with random weights, weights from a file, or the published ones."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pathsum.data.checks import reason
from pathsum.errors import PathsumError

from .target import Target, check_safetensors, extra

SIZE = 224  # pixels a side, of nearly all training on ImageNet


def from_torchvision(word: str, weights: Path | None) -> Target:
    """A network of torchvision.models; what follows "@" names its published weights ("DEFAULT": the best)."""
    models = extra("torchvision.models", "vision")
    name, tag = parts(word)
    known = models.list_models()
    if name not in known:
        raise unknown(name, "torchvision", known)
    published: Any = None
    if tag:
        enum = models.get_model_weights(name)
        if tag not in enum.__members__:
            raise PathsumError(f"torchvision's {name} has no weights {tag}; it has {', '.join(enum.__members__)}")
        published = enum[tag]
    model, source = build(lambda **options: models.get_model(name, weights=published, **options), word, tag, weights)
    size, mean, std = getattr(model, "image_size", SIZE), None, None
    if published is not None:
        prepare = published.transforms()
        size = prepare.crop_size[0] if hasattr(prepare, "crop_size") else size
        mean, std = (tuple(v) if (v := getattr(prepare, key, None)) else None for key in ("mean", "std"))
    about = f"{type(model).__name__}, torchvision's {name}, {source}"
    return Target(model, name, about, takes="images", image_shape=(3, size, size), mean=mean, std=std)


def from_timm(word: str, weights: Path | None) -> Target:
    """A network of timm; what follows "@" (or a dot, as in timm's own names) names its published weights."""
    timm = extra("timm", "vision")
    name, tag = parts(word)
    name, _, own = name.partition(".")
    tag = own if tag in ("", "DEFAULT") and own else tag
    if not timm.is_model(name):
        raise unknown(name, "timm", timm.list_models())
    full = name if tag in ("", "DEFAULT") else f"{name}.{tag}"
    if tag and full not in (there := timm.list_models(f"{name}.*", pretrained=True)) and tag != "DEFAULT":
        tags = ", ".join(n.partition(".")[2] for n in there) or "none"
        raise PathsumError(f"timm's {name} has no weights {tag}; it has {tags}")
    model, source = build(
        lambda **options: timm.create_model(full, pretrained=bool(tag), **options), word, tag, weights
    )
    config: Any = model.pretrained_cfg
    mean, std = (tuple(config[key]) if tag and config.get(key) else None for key in ("mean", "std"))
    shape = tuple(config.get("input_size") or (3, SIZE, SIZE))
    about = f"{type(model).__name__}, timm's {full}, {source}"
    return Target(model, name, about, takes="images", image_shape=shape, mean=mean, std=std)


def parts(word: str) -> tuple[str, str]:
    """NAME and TAG of "package:NAME@TAG"."""
    name, _, tag = word.partition(":")[2].partition("@")
    return name, tag


def unknown(name: str, package: str, known: list[str]) -> PathsumError:
    """The error for a name that a package lacks."""
    import difflib

    near = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"{package} lists its {len(known)} names"
    return PathsumError(f"{package} has no model {name!r}; {hint}")


def build(make: Callable[..., nn.Module], word: str, tag: str, weights: Path | None) -> tuple[nn.Module, str]:
    """The network in eval mode, and where its weights are from."""
    if tag and weights is not None:
        raise PathsumError(f"--weights does not go with {word}, which has its own; leave one of the two out")
    with torch.random.fork_rng(devices=[]), no_pickled_code():
        torch.manual_seed(0)
        try:
            model = make()
        except Exception as error:  # of the package, or of a download
            raise PathsumError(
                f"{word} cannot be had ({type(error).__name__}: {reason(error)}); for published weights check the "
                "connection, or give a file with --weights FILE.safetensors"
            ) from error
        if weights is None:
            return model.eval(), f"published weights {tag}" if tag else "random weights (add @DEFAULT for trained ones)"
        return load(model, make, weights).eval(), f"weights {weights}"


def load(model: nn.Module, make: Callable[..., nn.Module], weights: Path) -> nn.Module:
    """The network with the weights of a file, built anew with the file's number of classes where that differs."""
    from pathsum.runs import load_state
    from pathsum.storage import read_tensors

    check_safetensors(weights)
    tensors, _ = read_tensors(weights)
    expected = model.state_dict()
    other = [(t.shape, expected[k].shape) for k, t in tensors.items() if k in expected and t.shape != expected[k].shape]
    rows = {found[0] for found, own in other if found[1:] == own[1:]}
    if len(rows) == 1 and all(found[1:] == own[1:] for found, own in other):
        model = make(num_classes=rows.pop())
    load_state(model, tensors, weights)
    return model


@contextmanager
def no_pickled_code() -> Iterator[None]:
    """Let torch unpickle nothing but tensors, whatever a package asks of it."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
