"""Which blocks a model is made of: the children of a `ModuleList` or `Sequential` that its branches lie in."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import nn

from pathsum.errors import PathsumError
from pathsum.sites import Anatomy, Branch

Child = tuple[str, str]  # a container's path, and the key of one of its children


@dataclass(frozen=True)
class Block:
    """A child of a container, with the residual branches that lie in it."""

    container: str
    key: str
    branches: tuple[Branch, ...]

    @property
    def name(self) -> str:
        return join_path(self.container, self.key)

    @property
    def stage(self) -> int:
        """The stage it leaves its result on."""
        return self.branches[-1].stage

    def fault(self, *, zero: bool = False) -> str:
        """Why zero last maps, or with `zero` all weights at zero, do not make a copy of it the identity."""
        for branch in self.branches:
            if not branch.identity:
                return f"the shortcut of its branch {branch.name} is not the identity (it changes the shape)"
            if not branch.ends and not zero:
                why = f"does not end in a linear map of its own: {branch.stuck} (new='zero' sets all weights to 0)"
                return f"its branch {branch.name} {why}"
        return ""


def join_path(*parts: str) -> str:
    return ".".join(filter(None, parts))


def blocks_of(model: nn.Module, found: Anatomy, only: Sequence[str] | None = None) -> list[Block]:
    """The blocks of a model in the order they run; branches outside every container are in none.

    `only` names the containers to use, where the choice made here is not what is wanted. The innermost container is
    taken that holds two blocks of one stage, of one class and with parameters of the same names; failing that, of one
    class; failing that, the innermost.
    """
    ways = {b.index: ways_to(model, found, b) for b in found.branches}
    if only is not None:
        unknown = sorted(set(only) - {c for way in ways.values() for c, _ in way})
        if unknown:
            raise PathsumError(f"container {unknown[0]!r} holds no residual branches: {describe(ways.values())}")
        ways = {i: [child for child in way if child[0] in only] for i, way in ways.items()}
    inside: dict[Child, list[Branch]] = defaultdict(list)
    for b in found.branches:
        for child in ways[b.index]:
            inside[child].append(b)
    alike, akin = repeating(model, inside, names=True), repeating(model, inside, names=False)
    chosen: dict[Child, list[Branch]] = defaultdict(list)
    for b in found.branches:
        way = ways[b.index]
        if way:
            chosen[next((c for good in (alike, akin) for c in way if c[0] in good), way[0])].append(b)
    return [Block(container, key, tuple(branches)) for (container, key), branches in chosen.items()]


def ways_to(model: nn.Module, found: Anatomy, branch: Branch) -> list[Child]:
    """The children of containers that hold the branch, the likeliest first.

    Where the addition is made inside a child, the innermost; where the model's own forward adds, the outermost.
    """
    adds = found.steps[branch.step].module
    around = children_above(model, adds)
    if around:
        return around[::-1]
    parts = [name for name in branch.modules if name and name != adds]
    if not parts:
        return []
    shared = [child for child in children_above(model, parts[0]) if all(is_in(p, join_path(*child)) for p in parts)]
    return [child for child in shared if len(join_path(*child)) > len(adds)]


def by_child(model: nn.Module, found: Anatomy, containers: Collection[str]) -> dict[Child | None, list[Branch]]:
    """The branches of each child of the containers in question; None: of no such child."""
    groups: dict[Child | None, list[Branch]] = defaultdict(list)
    for b in found.branches:
        groups[next((c for c in ways_to(model, found, b) if c[0] in containers), None)].append(b)
    return groups


def children_above(model: nn.Module, path: str) -> list[Child]:
    """Every (container, key) on the way from the model to a module, the outermost first."""
    found: list[Child] = []
    module, names = model, path.split(".") if path else []
    for depth, name in enumerate(names):
        if isinstance(module, nn.ModuleList | nn.Sequential):
            found.append((".".join(names[:depth]), name))
        module = getattr(module, name)
    return found


def is_in(path: str, of: str) -> bool:
    return path == of or path.startswith(f"{of}.")


def repeating(model: nn.Module, inside: dict[Child, list[Branch]], *, names: bool) -> set[str]:
    """The containers with two children of one stage and class (and names of parameters) that keep the shape."""
    plans: dict[str, Counter] = defaultdict(Counter)
    for (container, key), branches in inside.items():
        if all(b.identity for b in branches):
            child = model.get_submodule(join_path(container, key))
            plan = tuple(name for name, _ in child.named_parameters()) if names else ()
            plans[container][type(child), plan, branches[0].stage, branches[-1].stage] += 1
    return {container for container, counts in plans.items() if max(counts.values()) > 1}


def describe(ways: object) -> str:
    """Which containers there are."""
    names = dict.fromkeys(repr(c) for way in ways for c, _ in way)  # type: ignore[attr-defined]
    return f"those that do are {', '.join(names)}" if names else "there are none in this model"
