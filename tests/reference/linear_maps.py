"""Affine maps by brute force: the dense matrix, one unit vector pushed through at a time (THEORY §10)."""

from collections.abc import Callable

import torch
from torch import Tensor


@torch.no_grad()
def dense_matrix(f: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """A and c of the affine f(x) = Ax + c on inputs of one sample's shape: column i is f(e_i) − f(0)."""
    size = torch.Size(shape).numel()
    zero = torch.zeros(1, *shape, dtype=torch.float64)
    offset = f(zero).flatten()
    columns = []
    for i in range(size):
        unit = zero.clone()
        unit.view(-1)[i] = 1
        columns.append(f(unit).flatten() - offset)
    return torch.stack(columns, 1), offset
