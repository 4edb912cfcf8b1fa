"""All 2^n paths of a network with frozen gates, one by one (THEORY §3)."""

import torch
from torch import Tensor

from tests.reference.pieces import Pieces, Step, freeze


@torch.no_grad()
def path_terms(pieces: Pieces, x: Tensor) -> Tensor:
    """Sum the outputs of all paths through exactly k branches, k = 0..n: shape (n+1, batch, …).

    With the gates frozen at the real forward every step is affine, `v ↦ Av + c`. The path through no branch
    carries the constants of what it passes. A path through branches i1 < … < ik follows that path up to i1,
    enters branch i1 with its constant, and passes all later steps by their linear parts. The constant of a
    branch that is not the first of a path belongs to the path that starts there.
    """
    frozen = freeze(pieces, x, 1.0, "gates")
    depth = len(frozen.blocks)
    if depth > 10:
        raise ValueError(f"{depth} branches have {2**depth} paths: too many to enumerate")
    sums: list[Tensor | None] = [None] * (depth + 1)

    def follow(v: Tensor, i: int, length: int) -> None:
        """Walk on from block i with v, `length` branches taken: once by the shortcut, once by the branch."""
        if i == depth:
            out = passed(frozen.decoder, v, length)
            sums[length] = out if sums[length] is None else sums[length] + out
            return
        block = frozen.blocks[i]
        v = passed(block.before, v, length)
        follow(passed(block.after, passed(block.shortcut, v, length), length), i + 1, length)
        taken = block.scale * passed(block.branch, v, length)
        follow(passed(block.after, taken, length + 1), i + 1, length + 1)

    follow(frozen.encoder(x), 0, 0)
    return torch.stack(sums)


def passed(step: Step, v: Tensor, length: int) -> Tensor:
    """`Av + c` before the first branch of a path, `Av` after it."""
    value = step(v, None)
    return value if length == 0 else value - step(torch.zeros_like(v), None)
