"""What is asked of a Ray cluster for each task, and whether it has it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pathsum.errors import PathsumError


@dataclass(frozen=True)
class Request:
    """The options of a sweep that concern a cluster."""

    address: str | None = None
    cpus: float | None = None
    gpus: float | None = None
    shared: bool | None = None
    workers: int | None = None
    memory: int | None = None
    device: str | None = None

    def check(self, engine: str) -> None:
        """Refuse what cannot be meant."""
        if engine != "ray":
            for name in ("address", "cpus", "gpus", "shared"):
                if getattr(self, name) is not None:
                    raise PathsumError(f"--{name} is for a Ray cluster, and the engine is {engine!r}; add --engine ray")
            return
        if self.cpus is not None and not 0 < self.cpus < math.inf:
            raise PathsumError(f"--cpus is {self.cpus:g}, expected more than 0")
        if self.gpus is not None and not 0 <= self.gpus <= 1:
            raise PathsumError(f"--gpus is {self.gpus:g}, expected 0 to 1: a run uses one GPU, or a share of it")
        if self.device is not None and self.device.startswith("cuda") and self.gpus == 0:
            raise PathsumError(f"--device is {self.device} with --gpus 0; give each task a share of a GPU")
        if self.device == "cpu" and self.gpus:
            raise PathsumError(f"--device is cpu with --gpus {self.gpus:g}; leave one of them out")

    def complete(self, nodes: Sequence[Mapping[str, float]]) -> Request:
        """With the defaults that a cluster of these nodes gives: a GPU where there are any, unless on the CPU."""
        cpus = 1.0 if self.cpus is None else self.cpus
        gpus = self.gpus
        if gpus is None:
            wanted = self.device is None and any(node.get("GPU") for node in nodes)
            gpus = 1.0 if wanted or (self.device or "").startswith("cuda") else 0.0
        return replace(self, cpus=cpus, gpus=gpus, device=self.device or ("cuda" if gpus else "cpu"))

    @property
    def need(self) -> dict[str, float]:
        """What a task takes of a node, by Ray's names."""
        need = {"CPU": self.cpus or 0.0, "GPU": self.gpus or 0.0, "memory": float(self.memory or 0)}
        return {name: value for name, value in need.items() if value}

    def fits(self, node: Mapping[str, float]) -> int:
        """How many tasks a node can have at a time."""
        return min(times(node.get(name, 0.0), value) for name, value in self.need.items())

    def slots(self, nodes: Sequence[Mapping[str, float]]) -> int:
        """How many tasks all nodes can have at a time."""
        return sum(map(self.fits, nodes))

    def missing(self, nodes: Sequence[Mapping[str, float]]) -> str:
        """Which resource no node has enough of for one task; empty where one has all."""
        if any(map(self.fits, nodes)):
            return ""
        if not nodes:
            return "the cluster has no node that is alive"
        for name, value in self.need.items():
            most = max(node.get(name, 0.0) for node in nodes)
            if times(most, value) < 1:
                asked, there = (shown(name, number) for number in (value, most))
                return f"a task asks for {asked}, and the most on one node of the cluster is {there}"
        asked = " and ".join(shown(name, value) for name, value in self.need.items())
        return f"a task asks for {asked}, which no node of the cluster has together"


def times(there: float, asked: float) -> int:
    """How often a share fits; a fraction of a GPU, on each GPU by itself."""
    if asked < 1:
        return int(there) * math.floor(1 / asked + 1e-9) + math.floor((there - int(there)) / asked + 1e-9)
    return math.floor(there / asked + 1e-9)


def shown(name: str, value: float) -> str:
    """A resource in words."""
    return f"{value / 2**20:,.0f} MiB of memory" if name == "memory" else f"{value:g} {name}"
