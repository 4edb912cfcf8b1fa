"""The operation on the modules: the children of containers put together anew, with their names and counters."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from pathsum.growing.blocks import Child, join_path

NUMBERED = re.compile(r"^(.*?)([0-9]+)$")
COUNTS = ("num_hidden_layers", "num_layers", "n_layer")  # in the configuration of models of transformers


@dataclass(frozen=True)
class Slot:
    """A child of a container in the new model: an old child, or a new one made like it."""

    key: str  # of the old child
    new: bool = False


Layout = Mapping[str, Sequence[Slot]]  # container -> its children


def rearrange(model: nn.Module, layout: Layout) -> dict[Child, Slot]:
    """Give containers other children, in place; returns for each child of them what it came from.

    New ones are deep copies. Numbers at the end of names go up again from where they began; a layer's own number
    (`layer_idx`) and the number of layers in the configuration follow.
    """
    origins: dict[Child, Slot] = {}
    for container, slots in layout.items():
        home = model.get_submodule(container)
        old = dict(home._modules)
        children = [copy.deepcopy(old[s.key]) if s.new else old[s.key] for s in slots]
        keys = keys_of(list(old), slots)
        renumber(list(old.values()), children)
        recount(model, list(old), slots)
        home._modules.clear()
        home._modules.update(zip(keys, children, strict=True))
        origins |= {(container, key): slot for key, slot in zip(keys, slots, strict=True)}
    return origins


def keys_of(old: Sequence[str], slots: Sequence[Slot]) -> list[str]:
    """Names of the children: numbered ones are numbered anew, others keep theirs.

    >>> keys_of(["layer_1", "layer_2"], [Slot("layer_1"), Slot("layer_1", new=True), Slot("layer_2")])
    ['layer_1', 'layer_2', 'layer_3']
    """
    found = [NUMBERED.match(key) for key in old]
    if old and all(found):
        stems, numbers = zip(*((m[1], int(m[2])) for m in found if m), strict=True)
        if len(set(stems)) == 1 and list(numbers) == list(range(numbers[0], numbers[0] + len(old))):
            return [f"{stems[0]}{numbers[0] + i}" for i in range(len(slots))]
    keys: list[str] = []
    for slot in slots:
        key, copies = slot.key, 1
        while key in keys or (slot.new and key in old):
            copies += 1
            key = f"{slot.key}_{copies}"
        keys.append(key)
    return keys


def renumber(old: Sequence[nn.Module | None], children: Sequence[nn.Module | None]) -> None:
    """Layers that know which of the container's children they are in (`layer_idx`, for caches) are told anew."""
    for i, child in enumerate(old):
        for module in child.modules() if child is not None else ():
            if getattr(module, "layer_idx", i) != i:
                return
    for i, child in enumerate(children):
        for module in child.modules() if child is not None else ():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = i  # type: ignore[assignment]


def recount(model: nn.Module, old: Sequence[str], slots: Sequence[Slot]) -> None:
    """The configuration's number of layers, and its lists with an entry a layer, where it is plainly this container."""
    config: Any = getattr(model, "config", None)
    if config is None or isinstance(config, dict):
        return
    matched = [name for name in COUNTS if getattr(config, name, None) == len(old)]
    if not matched:
        return
    position = {key: i for i, key in enumerate(old)}
    for name, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == len(old) > 0 and name.startswith("layer"):
            setattr(config, name, [value[position[s.key]] for s in slots])
    for name in matched:
        setattr(config, name, len(slots))


def paths_of(origins: Mapping[Child, Slot], *, new: bool) -> list[str]:
    """The names of the new children, or of the old ones."""
    return [join_path(container, key) for (container, key), slot in origins.items() if slot.new is new]
