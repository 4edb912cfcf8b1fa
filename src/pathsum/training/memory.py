"""Weights, gradients and what lives beside them: counting bytes, and updating each weight as its gradient comes."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of all tensors alive at once, while it is entered: `now`, and `peak`, the most there were.

    Tensors that exist already are counted where they are given, as `PeakMemory(net.parameters())`; others, once an
    operation returns them. Exact and the same on every machine; the workspace inside an operation and what an
    allocator loses are not in it. It works on the meta device too, where nothing takes memory.

    >>> with PeakMemory() as memory:
    ...     a = torch.zeros(1000, dtype=torch.uint8)
    ...     b = a + a
    ...     del a
    >>> memory.peak, memory.now
    (2000, 1000)
    """

    def __init__(self, existing: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.sizes: dict[int, int] = {}
        for tensor in existing:
            self._add(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._add(leaf)
        return out

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self.sizes:
            return
        self.sizes[storage._cdata] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, storage._cdata).atexit = False

    def _drop(self, storage: int) -> None:
        self.now -= self.sizes.pop(storage)


def saved_bytes(function: Callable[[], Any], *, without: Iterable[Tensor] = ()) -> int:
    """Bytes of the tensors that autograd keeps for the gradient of what `function` computes, each memory once.

    Those of `without`, such as weights, do not count. The graph that `function` returns lives until the count is
    done.

    >>> x = torch.ones(100, requires_grad=True)
    >>> saved_bytes(lambda: x.exp().sin())  # exp keeps its result, which is also what sin keeps
    400
    """
    left_out = {tensor.untyped_storage()._cdata for tensor in without}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in left_out:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        graph = function()
    del graph
    return sum(kept.values())


class Updates:
    """The steps of an optimizer, one parameter at a time; its state and options stay where they are.

    `fused` takes a parameter's step as soon as its gradient is complete and frees the gradient, so that gradients
    never exist together: a quarter to a third less memory for a deep net under SGD with momentum. The rows are
    bitwise those of the whole step, which no parameter's step looks beyond. For any optimizer of `torch.optim`
    whose `step` needs no closure.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.probing = False  # whether fused steps are measured
        self.seen: dict[int, tuple[Tensor, Tensor]] = {}

    def step(self, parameter: Tensor) -> None:
        """One step of this parameter alone."""
        group = next(g for g in self.optimizer.param_groups if any(p is parameter for p in g["params"]))
        part = object.__new__(type(self.optimizer))
        part.__dict__.update(self.optimizer.__dict__, param_groups=[{**group, "params": [parameter]}])
        type(self.optimizer).step(part)  # a scheduler may have put another `step` on the optimizer itself

    def probe(self, parameters: Sequence[nn.Parameter]) -> list[tuple[Tensor, Tensor]]:
        """For each parameter, the norm of its gradient and whether its step moved it; takes the steps not taken yet.

        Unlike a comparison with all the weights before, it needs memory for one parameter more, not for all.
        """
        for parameter in parameters:
            if parameter.grad is not None:
                self._measured(parameter)
        still = parameters[0].new_zeros(()), parameters[0].new_zeros((), dtype=torch.bool)
        return [self.seen.pop(id(p), still) for p in parameters]

    @torch.no_grad()
    def _measured(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        norm, before = torch.linalg.vector_norm(parameter.grad), parameter.clone()
        self.step(parameter)
        self.seen[id(parameter)] = norm, (parameter != before).any()

    def _take(self, parameter: Tensor) -> None:
        if self.probing:
            self._measured(parameter)
        else:
            self.step(parameter)
        parameter.grad = None

    @contextmanager
    def fused(self) -> Iterator[None]:
        """Within, `backward()` takes the optimizer's steps, and `optimizer.step()` finds nothing left to do."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad]
        handles = [p.register_post_accumulate_grad_hook(self._take) for p in parameters]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
