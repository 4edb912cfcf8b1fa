"""Which layers of a region become one: the cheapest way to cut its chain, by dynamic programming."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce

import torch

from .costs import MARGIN, Prices
from .maps import Map, NotExact, columns_of, compose, identity, rows_of, total
from .regions import Bend, Item, Layer, Sum, names_of

MOST_WEIGHTS = 2**26  # of a composed map: beyond it nothing is saved, and memory is short
_FORCED = 1e6  # times its cost, for a layer that the user wants composed


@dataclass(frozen=True, eq=False)
class Keep:
    """An item as it is; of an addition, what becomes of its parts."""

    item: Item
    parts: tuple[list[Piece], ...] = ()


@dataclass(frozen=True, eq=False)
class Merge:
    """Items that become one map."""

    items: list[Item]
    map: Map
    rows: int


@dataclass(frozen=True, eq=False)
class Split:
    """A layer, a unit, a layer: the linear channels take a way of their own, past the unit."""

    items: list[Item]
    bend: Bend
    into: Map  # to the channels that stay nonlinear
    out: Map
    past: Map
    rows: int


Piece = Keep | Merge | Split


@dataclass(frozen=True)
class Decision:
    """What was decided on layers that could be one, and why."""

    layers: tuple[str, ...]
    merged: bool
    why: str
    before: float = float("nan")  # in the unit of the decision
    after: float = float("nan")


@dataclass
class Planner:
    """Decides region by region; the decisions are listed in `decisions`."""

    prices: Prices
    wanted: Mapping[str, bool] = field(default_factory=dict)
    decisions: list[Decision] = field(default_factory=list)
    seen: dict[int, tuple[dict, list[tuple[float, Piece]]]] = field(default_factory=dict)

    def plan(self, items: list[Item]) -> list[Piece]:
        """The cheapest cut of a region's chain; what was decided is noted."""
        pieces = self.best(items)[1]
        self.note(items, pieces)
        return pieces

    def best(self, items: list[Item]) -> tuple[float, list[Piece]]:
        """The cheapest cut of a chain: its cost, and its pieces in order."""
        makes = {
            (i, j): made
            for i in range(len(items))
            for j, made in self.composed_from(items, i)
            if j > i or isinstance(items[i], Sum)
        }
        kept = [self.keep(item) for item in items]
        self.seen[id(items)] = makes, kept
        costs: list[float] = [0.0]
        cuts: list[tuple[int, Piece]] = []
        for j, (alone, piece) in enumerate(kept):
            forced = any(self.wanted.get(n) is True for n in names_of([items[j]]))
            choice: tuple[float, int, Piece] = (costs[j] + alone * (_FORCED if forced else 1.0), j, piece)
            for i in range(j, -1, -1):
                for price, made in self.options(items, i, j, makes):
                    if costs[i] + price < choice[0]:
                        choice = costs[i] + price, i, made
            costs.append(choice[0])
            cuts.append(choice[1:])
        pieces: list[Piece] = []
        at = len(items)
        while at:
            at, piece = cuts[at - 1]
            pieces.insert(0, piece)
        return costs[-1], pieces

    def options(self, items: list[Item], i: int, j: int, makes: dict) -> list[tuple[float, Piece]]:
        """The ways to make one piece of items i … j, with the price of each."""
        names = names_of(items[i : j + 1])
        if self.prices.decide == "never" or any(self.wanted.get(n) is False for n in names):
            return []
        margin = MARGIN[self.prices.decide]
        found: list[tuple[float, Piece]] = []
        made = makes.get((i, j))
        if isinstance(made, Map):
            rows = rows_of_items(items[i : j + 1])
            found.append((margin * self.prices.of_map(made, rows), Merge(items[i : j + 1], made, rows)))
        for at in range(i + 1, j):
            bend = items[at]
            left, right = self.one(items, i, at - 1, makes), self.one(items, at + 1, j, makes)
            if isinstance(bend, Bend) and left is not None and right is not None:
                split = split_of(items[i : j + 1], left, bend, right)
                if split is not None:
                    maps = sum(self.prices.of_map(m, split.rows) for m in (split.into, split.out, split.past))
                    numel = bend.numel * split.into.channels[1] // len(bend.linear) + _numel(split.out, split.rows)
                    found.append((margin * (maps + self.prices.of_elements(numel)), split))
        return found

    def one(self, items: list[Item], i: int, j: int, makes: dict) -> Map | None:
        """Items i … j as one map."""
        item = items[i]
        made = item.map if i == j and isinstance(item, Layer) else makes.get((i, j))
        return made if isinstance(made, Map) else None

    def keep(self, item: Item) -> tuple[float, Piece]:
        """The cost of leaving an item as it is."""
        if isinstance(item, Bend):
            return self.prices.of_elements(item.numel), Keep(item)
        if isinstance(item, Layer):
            price = self.prices.of_elements(item.rows * _numel(item.map, 1)) if item.view else None
            return self.prices.of_map(item.map, item.rows) if price is None else price, Keep(item)
        parts = [self.best(part) if part else (0.0, []) for part in item.parts]
        price = sum(p for p, _ in parts) + self.prices.of_elements(item.numel)
        return price, Keep(item, tuple(pieces for _, pieces in parts))

    def composed_from(self, items: list[Item], start: int) -> list[tuple[int, Map | NotExact]]:
        """Items start … j as one map for each j, up to the first for which there is none."""
        found: list[tuple[int, Map | NotExact]] = []
        made: Map | None = None
        for j in range(start, len(items)):
            try:
                after = map_of_item(items[j])
                made = after if made is None else compose(made, check_size(made, after))
            except NotExact as reason:
                return [*found, (j, reason)]
            found.append((j, made))
        return found

    def note(self, items: list[Item], pieces: list[Piece]) -> None:
        """Say what was decided on each piece, and on neighbors that stay apart."""
        makes, kept = self.seen[id(items)]
        at = 0
        for k, piece in enumerate(pieces):
            here = [piece.item] if isinstance(piece, Keep) else piece.items
            end = at + len(here)
            before = sum(cost for cost, _ in kept[at:end])
            names = tuple(names_of(here))
            if isinstance(piece, Merge):
                after = self.prices.of_map(piece.map, piece.rows)
                self.decisions.append(Decision(names, True, "composed", before, after))
            elif isinstance(piece, Split):
                share = f"{int(piece.bend.linear.sum())} of {len(piece.bend.linear)} channels linear: split off"
                after = sum(self.prices.of_map(m, piece.rows) for m in (piece.into, piece.out, piece.past))
                self.decisions.append(Decision(names, True, share, before, after))
            elif isinstance(piece.item, Sum):
                self.leave(names, makes.get((at, at)), before, rows_of_items(here))
                for part, inner in zip(piece.item.parts, piece.parts, strict=True):
                    if part:
                        self.note(part, inner)
            if k and isinstance(piece, Keep) and isinstance(pieces[k - 1], Keep):
                pair = items[at - 1 : at + 1]
                if all(isinstance(i, Layer) for i in pair):
                    cost = sum(c for c, _ in kept[at - 1 : at + 1])
                    self.leave(tuple(names_of(pair)), makes.get((at - 1, at)), cost, rows_of_items(pair))
            at = end

    def leave(self, names: tuple[str, ...], made: Map | NotExact | None, before: float, rows: int) -> None:
        if any(self.wanted.get(n) is False for n in names) or self.prices.decide == "never":
            self.decisions.append(Decision(names, False, "not wanted"))
        elif isinstance(made, Map):
            after = self.prices.of_map(made, rows)
            times = after / before if before else float("inf")
            self.decisions.append(Decision(names, False, f"one map would cost {times:.2f} ×", before, after))
        else:
            self.decisions.append(Decision(names, False, f"not exact: {made}"))


def map_of_item(item: Item) -> Map:
    """An item as one map; raises `NotExact` where it is none."""
    if isinstance(item, Layer):
        return item.map
    if isinstance(item, Bend):
        raise NotExact("a nonlinear unit lies between")
    sides = []
    for part in item.parts:
        maps = [map_of_item(i) for i in part] or [identity(item.channels, item.size, linear=item.linear)]
        sides.append(reduce(lambda a, b: compose(a, check_size(a, b)), maps))
    return total(sides[0], sides[1])


def check_size(a: Map, b: Map) -> Map:
    """b, where composing it with a makes no map of absurd size."""
    spans = [(k - 1) * s + n for k, s, n in zip(b.kernel, a.stride, a.kernel, strict=True)]
    if a.channels[0] * b.channels[1] * torch.Size(spans).numel() > MOST_WEIGHTS:
        raise NotExact("the one map would be too large")
    return b


def rows_of_items(items: list[Item]) -> int:
    """Samples (or tokens) that pass them."""
    for item in items:
        if isinstance(item, Layer):
            return item.rows
        if isinstance(item, Sum):
            inner = [i for part in item.parts for i in part]
            return rows_of_items(inner)
    return 1


def split_of(items: list[Item], left: Map, bend: Bend, right: Map) -> Split | None:
    """The linear channels of a unit between two maps on a way of their own, where that is exact."""
    if left.groups != 1 or right.groups != 1 or left.linear != bend.features or left.plane:
        return None
    if len(bend.linear) != left.channels[1] or left.linear != right.linear:
        return None
    through, bent = bend.linear.nonzero().flatten(), (~bend.linear).nonzero().flatten()
    try:
        past = compose(rows_of(left, through), columns_of(right, through, bias=False))
    except NotExact:
        return None
    return Split(items, bend, rows_of(left, bent), columns_of(right, bent, bias=True), past, rows_of_items(items))


def _numel(m: Map, rows: int) -> int:
    return rows * m.channels[1] * torch.Size(m.size_out).numel()
