"""The operation on the modules: the children of containers put together anew, with their names and counters."""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from pathsum.growing.blocks import Child, join_path

NUMBERED = re.compile(r"^(.*?)([0-9]+)$")
INDICES = ("layer_idx", "layer_id")  # a layer's own number, in models of transformers
COUNTS = ("num_hidden_layers", "num_layers", "n_layer")  # in the configuration of models of transformers


@dataclass(frozen=True)
class Slot:
    """A child of a container in the new model: an old child, or a new one made like it."""

    key: str  # of the old child
    new: bool = False


Layout = Mapping[str, Sequence[Slot]]  # container -> its children


def rearrange(model: nn.Module, layout: Layout, containers: Collection[str]) -> dict[Child, Slot]:
    """Give containers other children, in place; returns for each child of them what it came from.

    New ones are deep copies. Numbers at the end of names go up again from where they began; a layer's own number
    (`layer_idx`) follows, and the number of layers in the configuration of a part whose blocks are all in one of the
    `containers`.
    """
    origins: dict[Child, Slot] = {}
    for container, slots in layout.items():
        home = model.get_submodule(container)
        old = dict(home._modules)
        children = [copy.deepcopy(old[s.key]) if s.new else old[s.key] for s in slots]
        keys = keys_of(list(old), slots)
        renumber(list(old.values()), children)
        recount(model, container, containers, list(old), slots)
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
    """Layers that know which of the container's children they are in (for caches) are told anew."""
    for name in INDICES:
        if any(number != i for i, number in numbers(old, name)):
            continue
        for i, child in enumerate(children):
            for module in child.modules() if child is not None else ():
                if isinstance(getattr(module, name, None), int):
                    setattr(module, name, i)


def numbers(children: Sequence[nn.Module | None], name: str) -> list[tuple[int, int]]:
    """The place of each child, with a number that a module in it goes by."""
    return [
        (i, getattr(module, name))
        for i, child in enumerate(children)
        for module in (child.modules() if child is not None else ())
        if isinstance(getattr(module, name, None), int)
    ]


def recount(
    model: nn.Module, container: str, containers: Collection[str], old: Sequence[str], slots: Sequence[Slot]
) -> None:
    """The number of layers in configurations, and their lists with an entry a layer, where it is this container's."""
    names = container.split(".")
    done: set[int] = set()
    for depth in range(len(names)):
        above = ".".join(names[:depth])
        config: Any = getattr(model.get_submodule(above), "config", None)
        others = any(c != container and (not above or c.startswith(f"{above}.")) for c in containers)
        if config is None or isinstance(config, dict) or id(config) in done or others:
            continue
        done.add(id(config))
        matched = [name for name in COUNTS if getattr(config, name, None) == len(old)]
        position = {key: i for i, key in enumerate(old)}
        for name, value in list(vars(config).items()) if matched else ():
            if isinstance(value, list) and len(value) == len(old) > 0 and "layer" in name:
                setattr(config, name, [value[position[s.key]] for s in slots])
        for name in matched:
            setattr(config, name, len(slots))


def paths_of(origins: Mapping[Child, Slot], *, new: bool) -> list[str]:
    """The names of the new children, or of the old ones."""
    return [join_path(container, key) for (container, key), slot in origins.items() if slot.new is new]
