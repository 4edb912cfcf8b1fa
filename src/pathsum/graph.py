"""The graph of the tensors in one run, and which of its additions are residual joins.

An addition a + b is a *join* if, from the nearest common ancestor of a and b, one of them (the *skip*) comes without
a nonlinearity and by one weighted layer at most, and the other (the *branch*) passes at least one weighted layer more.
A skip may have come through earlier joins: then what counts is its way along their skips, so that x + a(x) + b(x) is
two joins, and so is (x + a(x)) + up(b(x)).
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Any, NamedTuple


@dataclass
class Node:
    """A tensor in the recorded run: the call that made it and the tensors it was made from."""

    step: int
    inputs: tuple[int, ...]
    ancestors: int  # bit i: node i is an ancestor; a node is one of its own
    func: Any = None
    module: str = ""
    weighted: bool = False
    nonlinear: bool = False
    still: bool = False  # the call leaves the values as they are
    content: bool = True  # depends on the numbers of an input; a mask or token ids alone are none
    shape: tuple[int, ...] = ()
    slot: int = 0  # which of the tensors that the call made


@dataclass
class Join:
    """A residual join as found."""

    step: int
    node: int
    func: Any
    module: str
    shape: tuple[int, ...]
    skip: int  # which argument of the addition
    branch: int
    skip_node: int
    branch_node: int
    root: int
    identity: bool
    modules: list[str]  # whose calls make up the branch, in order
    signs: tuple[int, int]
    own: str
    lam: float


class Route(NamedTuple):
    """What lies on the ways from one tensor to another."""

    weights: int  # most weighted layers on a way
    bent: bool  # some way passes a nonlinearity
    still: bool  # no way changes the values
    modules: list[str]
    roots: set[int]  # of the joins passed


class Found(NamedTuple):
    """Which operand of an addition is the skip, and what its branch is."""

    skip: int
    root: int
    identity: bool
    modules: list[str]


class Graph:
    """Tensors by number, in the order of the run."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.joined: dict[int, Join] = {}  # node -> the join that made it

    def add(self, node: Node) -> int:
        number = len(self.nodes)
        node.ancestors |= 1 << number
        self.nodes.append(node)
        return number

    def join_of(self, first: int, second: int) -> Found | None:
        """Whether the sum of two tensors is a join: the reading of it that explains most (see `rank`)."""
        nodes = self.nodes
        common = nodes[first].ancestors & nodes[second].ancestors
        root = common.bit_length() - 1
        if root < 0 or not nodes[root].content:
            return None
        pair = (first, second)
        ways = (self.route(root, first), self.route(root, second))
        best: tuple[int, Found] | None = None
        for along_stream in (False, True):
            for skip in (0, 1):
                end = pair[skip]
                way, other = ways[skip], ways[1 - skip]
                start: int | None = root
                if along_stream:
                    start = self.stream_root(end, pair[1 - skip])
                    if start is None or not nodes[start].content:
                        continue
                    way, other = self.route(start, end, along_stream=True), self.route(start, pair[1 - skip])
                if way.bent or way.weights > 1 or other.weights <= way.weights:
                    continue
                assert start is not None
                identity = way.still and nodes[start].shape == nodes[end].shape
                found = Found(skip, start, identity, other.modules)
                grade = rank(way, start, end, along_stream)
                if best is None or grade < best[0]:
                    best = grade, found
            if best is not None and (best[0] == 0 or not self.joined):
                break
        return None if best is None else best[1]

    def sources(self, number: int, along_stream: bool) -> tuple[int, ...]:
        """What a tensor was made from; along the stream, of a join only its skip."""
        join = self.joined.get(number) if along_stream else None
        return self.nodes[number].inputs if join is None else (join.skip_node,)

    def stream_root(self, skip: int, branch: int) -> int | None:
        """The nearest tensor on the stream that ends in `skip` from which `branch` descends too."""
        ancestors = self.nodes[branch].ancestors
        heap, seen = [-skip], {skip}
        while heap:
            number = -heapq.heappop(heap)
            if (ancestors >> number) & 1:
                return number
            for i in self.sources(number, along_stream=True):
                if i not in seen:
                    seen.add(i)
                    heapq.heappush(heap, -i)
        return None

    def route(self, root: int, end: int, *, along_stream: bool = False) -> Route:
        """What lies on the ways from root to end."""
        if root == end:
            return Route(0, False, True, [], set())
        nodes = self.nodes
        wanted, todo = {end}, [end]
        while todo:
            for i in self.sources(todo.pop(), along_stream):
                if i > root and i not in wanted and (nodes[i].ancestors >> root) & 1:
                    wanted.add(i)
                    todo.append(i)
        weights, bent, still = {root: 0}, {root: False}, {root: True}
        roots = set()
        order = sorted(wanted)
        for j in order:
            node = nodes[j]
            before = [i for i in self.sources(j, along_stream) if i in weights]
            weights[j] = max((weights[i] for i in before), default=0) + node.weighted
            bent[j] = node.nonlinear or any(bent[i] for i in before)
            passed = self.joined.get(j) if along_stream else None
            still[j] = (node.still or passed is not None) and all(still[i] for i in before)
            if passed is not None:
                roots.add(passed.root)
        return Route(weights[end], bent[end], still[end], [nodes[j].module for j in order], roots)


def rank(way: Route, root: int, end: int, along_stream: bool) -> int:
    """How well a skip explains an addition; less is better.

    0: the skip is where the branch starts. 1: so it is but for branches that start there too (x + a + b). 2: a
    projection of it. 3: the stream of later joins.
    """
    if not along_stream:
        return 0 if root == end else 2
    return 1 if way.weights == 0 and way.roots <= {root} else 3
