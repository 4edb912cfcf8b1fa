"""Where new blocks go: which existing block each one follows, and which one it is a copy of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pathsum.errors import PathsumError
from pathsum.growing.blocks import Block

Where = Literal["end", "interleaved", "stage"] | Sequence[str]
WORDS = ("end", "interleaved", "stage")


@dataclass(frozen=True)
class Place:
    """One new block: it follows `after`, and is made like `like`."""

    after: Block
    like: Block


def count_of(depth: int | None, insert: int | None, where: Where, now: int) -> int:
    """How many blocks to insert."""
    named = None if isinstance(where, str) else len(where)
    asked = [n for n in (None if depth is None else depth - now, insert, named) if n is not None]
    if not asked:
        raise PathsumError(f"how deep? give depth (more than the {now} blocks there are), insert, or names in where")
    for name, value in (("depth", depth), ("insert", insert)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise PathsumError(f"{name}={value!r}: give a whole number of blocks")
    if len(set(asked)) > 1:
        raise PathsumError(
            f"depth, insert and where disagree: they ask for {', '.join(map(str, asked))} new blocks; give one of them"
        )
    if asked[0] < 1:
        given = f"depth={depth}" if depth is not None else f"insert={insert}" if insert is not None else "where=[]"
        raise PathsumError(
            f"{given} adds no block to the {now} there are: ask for more, or take blocks out with pathsum.shrink"
        )
    return asked[0]


def places(blocks: Sequence[Block], count: int, where: Where, *, zero: bool = False) -> list[Place]:
    """The places of `count` new blocks, in the order the network runs.

    "end": after the last block. "interleaved": evenly among the blocks that can be copied, each after the one it is
    made like. "stage": as many at the end of each stage, later stages first where it does not divide. Names: one after
    each block named, as often as it is named.
    """
    if not isinstance(where, str):
        return named_places(blocks, where, zero=zero)
    if where not in WORDS:
        raise PathsumError(f"where={where!r}: give {', '.join(map(repr, WORDS))}, or names of blocks to put one after")
    if where == "end":
        return [Place(blocks[-1], pattern(blocks, blocks[-1], zero=zero))] * count
    if where == "interleaved":
        good = [block for block in blocks if not block.fault(zero=zero)]
        if not good:
            raise refusal(blocks[-1], zero=zero)
        shares = spread(count, len(good))
        return [Place(block, block) for block, share in zip(good, shares, strict=True) for _ in range(share)]
    ends = list({(block.container, block.stage): block for block in blocks}.values())
    shares = spread(count, len(ends))
    return [
        Place(block, pattern(blocks, block, zero=zero))
        for block, share in zip(ends, shares, strict=True)
        for _ in range(share)
    ]


def named_places(blocks: Sequence[Block], names: Sequence[str], *, zero: bool) -> list[Place]:
    by_name = {block.name: block for block in blocks}
    for name in names:
        if name not in by_name:
            raise PathsumError(f"where names {name!r}, which is no block: the blocks are {', '.join(by_name)}")
    chosen = [(block, name) for block in blocks for name in names if name == block.name]
    return [Place(block, pattern(blocks, block, zero=zero)) for block, _ in chosen]


def spread(count: int, over: int) -> list[int]:
    """`count` in `over` shares as equal as can be, the larger ones spread and the last among them.

    >>> spread(2, 4), spread(5, 3)
    ([0, 1, 0, 1], [1, 2, 2])
    """
    return [count * (i + 1) // over - count * i // over for i in range(over)]


def pattern(blocks: Sequence[Block], near: Block, *, zero: bool) -> Block:
    """The block a new one after `near` is made like: itself, else the nearest of its stage that can be copied."""
    at = blocks.index(near)
    alike = [
        (abs(i - at), i)
        for i, block in enumerate(blocks)
        if (block.container, block.stage) == (near.container, near.stage) and not block.fault(zero=zero)
    ]
    if not alike:
        raise refusal(near, zero=zero)
    return blocks[min(alike)[1]]


def refusal(block: Block, *, zero: bool) -> PathsumError:
    return PathsumError(
        f"no block can be added after '{block.name}': {block.fault(zero=zero)}, so a copy of it is not the "
        "identity, and its stage has no other block; add to another stage with where=[NAME of a block]"
    )
