"""On a GPU: a step recorded once as a CUDA graph, and the quickest form of the convolutions found by measuring."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

Step = Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor | None]]
Form = TypeVar("Form")


class Captured:
    """`step(x, y, probe)`; on a GPU the first call of either kind runs, the second is captured, others replay it.

    What a step changes it must change in place, and it may not wait for the GPU. Its outputs are copied out at once,
    so both graphs can work in the same memory, which is that of one step.
    """

    def __init__(self, step: Step, device: torch.device) -> None:
        self.step, self.device = step, device
        self.ran: set[bool] = set()
        self.graphs: dict[bool, torch.cuda.CUDAGraph] = {}
        self.outputs: dict[bool, tuple[Tensor, Tensor | None]] = {}
        self.inputs: tuple[Tensor, Tensor] | None = None

    def __call__(self, x: Tensor, y: Tensor, probe: bool) -> tuple[Tensor, Tensor | None]:
        if self.device.type != "cuda":
            return self.step(x, y, probe)
        with torch.cuda.device(self.device):
            return self._on_gpu(x, y, probe)

    def _on_gpu(self, x: Tensor, y: Tensor, probe: bool) -> tuple[Tensor, Tensor | None]:
        if self.inputs is None:
            self.inputs = x.clone(), y.clone()
        inputs = self.inputs
        for kept, new in zip(inputs, (x, y), strict=True):
            kept.copy_(new)
        if probe not in self.ran:  # libraries need a run before a capture
            self.ran.add(probe)
            return aside(lambda: self.step(*inputs, probe), self.device)
        if probe not in self.graphs:
            pool = next((graph.pool() for graph in self.graphs.values()), None)
            self.graphs[probe], self.outputs[probe] = record(lambda: self.step(*inputs, probe), self.device, pool)
        self.graphs[probe].replay()
        losses, seen = self.outputs[probe]
        return losses.clone(), None if seen is None else seen.clone()

    def release(self) -> None:
        """Give the memory of the graphs back now: the step usually belongs to an object that holds this one."""
        self.ran.clear()
        self.graphs.clear()
        self.outputs.clear()
        self.inputs = None


def aside(function: Callable[[], Form], device: torch.device) -> Form:
    """What `function` gives on another stream, as before a capture."""
    side, here = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    side.wait_stream(here)
    with torch.cuda.stream(side):
        out = function()
    here.wait_stream(side)
    return out


def record(function: Callable[[], Form], device: torch.device, pool: Any = None) -> tuple[torch.cuda.CUDAGraph, Form]:
    """A graph of what `function` does on the GPU, and its outputs, which are there after a replay."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, stream=torch.cuda.Stream(device)):
        out = function()
    return graph, out


def quickest(forms: Mapping[str, Form], run: Callable[[Form], object], device: torch.device, repeats: int = 5) -> Form:
    """The form for which `run` takes the least time on the GPU, launches not counted: they are replayed too."""
    seconds: dict[str, float] = {}
    for name, form in forms.items():
        with torch.cuda.device(device):
            aside(lambda form=form: run(form), device)  # type: ignore[misc]
            graph, _ = record(lambda form=form: run(form), device)  # type: ignore[misc]
            graph.replay()
            times = []
            for _ in range(repeats):
                start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                start.record()
                graph.replay()
                end.record()
                end.synchronize()
                times.append(start.elapsed_time(end))
            seconds[name] = min(times)
            del graph  # its memory, before the next is recorded
    return forms[min(seconds, key=lambda name: seconds[name])]
