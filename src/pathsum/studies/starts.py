"""What the studies of open questions share: the data, the network they start from, and results kept beside the runs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import nn

from pathsum.data import Dataset, load
from pathsum.errors import PathsumError
from pathsum.nets.tower import ResidualTower
from pathsum.page import jsonable
from pathsum.storage import finite, read_json, write_json, writing
from pathsum.train import TrainConfig, fit

HOW = ("seeds", "device")  # options that change no result of a single run


@dataclass(frozen=True, kw_only=True)
class StartOptions:
    """The data, and the network: a tower that the study trains, one for each seed, or the user's."""

    data: str = "digits"
    """digits, cifar10:PATH (parquet folder, or the official archive), or a hub id."""
    train_limit: int | None = None
    """Train on a random subset of so many images, classes balanced."""
    test_limit: int | None = None
    """Test on a random subset of so many images."""
    depth: int = 8
    """Blocks of the tower, two convolutions each."""
    width: int = 16
    """Its channels."""
    scale: str = "1"
    """Its rule for λ."""
    norm: Literal["none", "batch"] = "batch"
    """Batch norm in its branches, or none."""
    steps: int = 300
    """Steps of its training."""
    lr: float = 0.05
    """Learning rate of it."""
    batch_size: int = 64
    """Images in a batch, in all training."""
    augment: bool = False
    """Random crops, and mirrored images where the data allow it."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of initialization and order of the data."""
    device: str = "cpu"
    """cpu or cuda."""

    def validate(self) -> None:
        """Raise PathsumError for what is no study."""
        if not self.data:
            raise PathsumError("this preset needs CIFAR-10; give it as --data cifar10:PATH")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise PathsumError("--seeds: expected one or more, all different")
        if self.steps < 1 or self.depth < 1:
            raise PathsumError(f"--steps {self.steps} --depth {self.depth}: expected 1 or more")

    def images(self) -> Dataset:
        """The data."""
        return load(self.data, device=self.device, train_limit=self.train_limit, test_limit=self.test_limit)

    def tower(self, data: Dataset, seed: int, depth: int | None = None) -> nn.Module:
        """A tower as initialized."""
        depth = self.depth if depth is None else depth
        return tower_for(data, depth, self.width, norm=self.norm, scale=self.scale, seed=seed).to(self.device)

    def config(self, steps: int, lr: float, seed: int) -> TrainConfig:
        """How a network is trained; evaluated at the beginning, the middle and the end."""
        every = max(1, -(-steps // 2))
        options: dict[str, Any] = {"batch_size": self.batch_size, "augment": self.augment, "eval_every": every}
        return TrainConfig(lr=lr, steps=steps, seed=seed, **options)

    def key(self, *apart: str) -> dict[str, Any]:
        """The options that a kept result depends on: all but seeds, device, and those named."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in (*HOW, *apart)}


@dataclass(frozen=True, kw_only=True)
class ModelOptions(StartOptions):
    """The same, where the network can be the user's."""

    model: str = ""
    """A trained network in place of the tower: FOLDER, FILE.py:FUNCTION, torchvision:NAME, timm:NAME or hf:NAME."""
    weights: Path | None = None
    """A .safetensors file for a --model that takes one."""
    mean: tuple[float, ...] = ()
    """Subtracted from pixels/255, a number per channel; by default as the model was trained, else the data's."""
    std: tuple[float, ...] = ()
    """What that is divided by, likewise."""

    def validate(self) -> None:
        super().validate()
        if not self.model and (self.weights is not None or self.mean or self.std):
            raise PathsumError("--weights, --mean and --std go with --model; leave them out, or give it")

    def starts(self, folder: Path) -> tuple[Dataset, Callable[[int], nn.Module]]:
        """The data, and a function that gives the trained network of a seed, in eval mode and of its own memory."""
        data = self.images()
        if not self.model:
            return data, lambda seed: self.trained(data, seed, folder)
        from pathsum.resolve import resolve

        target = resolve(self.model, weights=self.weights)
        net = target.model.to(self.device).eval()
        return target.normalized(data, self.mean, self.std), lambda seed: copy.deepcopy(net)

    def trained(self, data: Dataset, seed: int, folder: Path) -> nn.Module:
        """The tower of a seed after its training, of which the run is kept."""
        net = self.tower(data, seed)
        ended(fit(net, data, self.config(self.steps, self.lr, seed), out=folder / f"start-{seed}"))
        return net.eval()


def tower_for(
    data: Dataset, depth: int, width: int, *, norm: Literal["none", "batch"], scale: str, seed: int, **more: Any
) -> ResidualTower:
    """A tower that takes these images, as initialized."""
    channels, height, _ = data.shape
    return ResidualTower(
        depth,
        width,
        num_classes=data.num_classes,
        in_channels=channels,
        encoder="imagenet" if height >= 32 else "conv3x3",
        norm=None if norm == "none" else "batch",
        scale=scale,
        seed=seed,
        **more,
    )


class Interrupted(PathsumError):
    """A signal came; the same command continues."""


class Ended(Protocol):
    """A result of training."""

    @property
    def status(self) -> str: ...

    @property
    def reason(self) -> str: ...


def ended(result: Ended) -> None:
    """Stop where training was interrupted; that it diverged is a result."""
    if result.status == "interrupted":
        raise Interrupted(f"interrupted by {result.reason}: run the same command again to continue where it stopped")


def kept(path: Path, key: Mapping[str, Any], make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """What `make()` gave for this key, from the file `path` or made now and written there whole."""
    found = recall(path, key)
    if found is not None:
        return found
    made = make()
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"key": plain(key), "result": made})
    return dict(read_json(path)["result"])


def recall(path: Path, key: Mapping[str, Any]) -> dict[str, Any] | None:
    """What is kept in the file for this key; None where nothing is, or something for another key."""
    if not path.is_file():
        return None
    record = read_json(path)
    return dict(record["result"]) if record.get("key") == plain(key) else None


def plain(key: Mapping[str, Any]) -> Any:
    """A key as JSON gives it back."""
    return finite(jsonable(key))


def increasing(values: Iterable[float]) -> tuple[float, ...]:
    """The values, each once, in order."""
    return tuple(sorted(set(values)))
