"""What one run of a sweep is: data, network and training as JSON, and the key that names it."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any

from pathsum.data import Dataset
from pathsum.errors import PathsumError
from pathsum.nets.memory import Memory, Mode
from pathsum.nets.mlp import ResidualMLP
from pathsum.nets.tower import ResidualTower, SumOfPaths
from pathsum.scaling import parse_rule
from pathsum.training.options import FREE, TrainConfig, train_record

NETWORKS: dict[str, type[SumOfPaths]] = {"ResidualTower": ResidualTower, "ResidualMLP": ResidualMLP}
FROM_DATA = ("in_channels", "in_features", "num_classes")  # None: as the data have them


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run, complete: two that are equal in all that changes their rows have the same `key`.

    `model` holds options of the network class; those left out are filled in, so that the record is complete
    (`in_channels`, `in_features` and `num_classes` then come from the data, and `seed` from the training).
    `data`, the limits and `data_seed` are `pathsum.data.load`'s; `activations` is the network's `memory` mode. A
    `name` becomes the run's folder in place of the key.

    >>> run = RunConfig(model={"depth": 2, "scale": 1}, train=TrainConfig(lr=0.1, steps=20))
    >>> run == RunConfig.from_json(run.to_json()), len(run.key), run.model["scale"]
    (True, 16, '1')

    Raises PathsumError for an unknown class or option, and for a value that JSON cannot hold.
    """

    data: str = "digits"
    train_limit: int | None = None
    test_limit: int | None = None
    data_seed: int = 0
    model: dict[str, Any] = field(default_factory=dict)
    model_class: str = "ResidualTower"
    activations: Mode = "plain"
    train: TrainConfig = field(default_factory=TrainConfig)
    name: str = ""

    def __post_init__(self) -> None:
        if self.name != self.name.strip(". ") or "/" in self.name or "\\" in self.name:
            raise PathsumError(f"name is {self.name!r}, expected one that can be a folder's, without / and dots around")
        Memory(self.activations)  # refuses an unknown one
        object.__setattr__(self, "model", _complete(self.model_class, self.model, self.train.seed))

    def __hash__(self) -> int:
        return hash(self.key)

    @cached_property
    def key(self) -> str:
        """The first 16 hex digits of the SHA-256 of everything that changes the rows."""
        return key_of(self.to_json())

    @property
    def folder(self) -> str:
        """Its folder in a store: the name where it has one, else the key."""
        return self.name or self.key

    def to_json(self) -> dict[str, Any]:
        """The complete record, as JSON holds it."""
        return dict(json.loads(json.dumps({**asdict(self), "train": train_record(self.train)})))

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> RunConfig:
        """What `to_json` gave, back; options that are younger than the record get their defaults."""
        train = dict(record.get("train", {}))
        for name in ("crop_scale", "observe"):
            if train.get(name) is not None:
                train[name] = tuple(train[name])
        for name, given, known in (("run", record, cls), ("training", train, TrainConfig)):
            unknown = sorted(given.keys() - {f.name for f in fields(known)})
            if unknown:
                raise PathsumError(
                    f"the {name} record holds unknown fields ({', '.join(unknown)}); it is of another version of "
                    "pathsum: use that one, or another store"
                )
        return cls(**{**record, "train": TrainConfig(**train)})

    def build(self, data: Dataset) -> SumOfPaths:
        """The network, on the CPU."""
        flat = {"in_channels": data.shape[0], "in_features": math.prod(data.shape), "num_classes": data.num_classes}
        options = {k: flat[k] if v is None and k in FROM_DATA else v for k, v in self.model.items()}
        network = NETWORKS[self.model_class](**options)
        network.memory = self.activations
        return network

    def describe(self) -> str:
        """A few words that tell it from its neighbors."""
        if self.name:
            return self.name
        norm = f" {self.model['norm']}" if self.model.get("norm") else ""
        seed = f" seed {self.train.seed}" if self.train.seed else ""
        return f"{self.key} depth {self.model['depth']} λ={self.model['scale']}{norm} lr {self.train.lr:g}{seed}"


def key_of(record: Mapping[str, Any]) -> str:
    """The key of a run's record: over its canonical JSON, without what leaves the rows alone."""
    kept = {name: value for name, value in record.items() if name != "name"}
    kept["train"] = {name: value for name, value in kept.get("train", {}).items() if name not in FREE}
    text = json.dumps(_plain(kept), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    """Whole numbers as integers, so that 1 and 1.0 are one configuration."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _complete(model_class: str, options: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """All options of a network, the scaling rule in its own words."""
    if model_class not in NETWORKS:
        raise PathsumError(f"model_class is {model_class!r}, expected one of {', '.join(NETWORKS)}")
    parameters = inspect.signature(NETWORKS[model_class]).parameters
    unknown = sorted(options.keys() - parameters.keys())
    if unknown:
        raise PathsumError(f"{model_class} has no option {unknown[0]!r}; its options are {', '.join(parameters)}")
    complete = {name: None if name in FROM_DATA else parameter.default for name, parameter in parameters.items()}
    complete.update(options)
    complete["scale"] = parse_rule(complete["scale"]).text  # type: ignore[arg-type]
    if complete["seed"] is None:
        complete["seed"] = seed
    try:
        return dict(json.loads(json.dumps(complete, allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise PathsumError(
            f"the options of {model_class} cannot be written as JSON ({error}); give plain values"
        ) from None
