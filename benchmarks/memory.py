"""Peak memory and time of a training step against depth: all activations, √n of them, or reversal.

Every cell runs in a process of its own, whose peak is then its own: `process_bytes` is the most it had resident
(on a GPU: reserved) beyond what it had before the network was built, `tensor_bytes` the most that tensors took,
weights, gradients and momentum among them, `saved_bytes` what autograd kept of the forward pass. Rows of side
"counted, ..." have the same `tensor_bytes` of a step on the meta device, which takes neither memory nor time: for the
batch of 64, and for bfloat16, where a step on a CPU takes many minutes.
"""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

import pathsum as ps
from pathsum.allocation import freed_memory
from pathsum.nets.memory import Mode
from pathsum.training.estimate import Estimate, estimate
from pathsum.training.memory import PeakMemory, Updates, saved_bytes

from .timing import rows

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
THIN = {"width": 32, "batch": 64, "dtype": "float32", "fused": False}  # as in a small study
WIDE_BATCH = {"width": 16, "batch": 512, "dtype": "float32", "fused": False}  # activations are what matters
DEEPEST = [  # which the paper halved; without a GPU a smaller batch, whose activations are the smallest part anyway
    {"width": 256, "batch": 64 if DEVICE == "cuda" else 4, "dtype": dtype, "fused": fused}
    for dtype, fused in (("float32", False), ("float32", True), ("bfloat16", False))
]


class Trial:
    """A tower and its optimizer, to be trained step by step."""

    def __init__(
        self, depth: int, width: int, batch: int, dtype: str, fused: bool, mode: Mode, device: str = DEVICE
    ) -> None:
        kind: torch.dtype = getattr(torch, dtype)
        with torch.device(device):
            self.net = ps.ResidualTower(depth, width, scale="1/sqrt(n)", seed=0).to(kind)
        self.net.memory = mode  # type: ignore[assignment]
        self.x = torch.randn(batch, 3, 32, 32, device=device, dtype=kind)
        self.y = torch.arange(batch, device=device) % 10
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=1e-3, momentum=0.9, foreach=True)
        self.fused = fused

    def step(self) -> float:
        """One step; its seconds."""
        start = time.perf_counter()
        saving = nullcontext() if self.net.memory.mode == "plain" else freed_memory("returned")  # as in `fit`
        with saving, Updates(self.optimizer).fused() if self.fused else nullcontext():
            F.cross_entropy(self.net(self.x).float(), self.y).backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def weights(self) -> list[Tensor]:
        return [*self.net.parameters(), *self.net.buffers()]

    def tensors(self) -> list[Tensor]:
        """What there is between two steps."""
        return [self.x, self.y, *self.weights(), *(s["momentum_buffer"] for s in self.optimizer.state.values())]


def measure(depth: int, repeats: int, config: dict[str, Any]) -> dict[str, Any]:
    """Bytes and seconds of one cell; to be run in a process of its own."""
    Trial(1, **{**config, "width": 8, "batch": 2}).step()  # what torch itself loads at first use
    before = resident()
    trial = Trial(depth, **config)
    trial.step()
    found: dict[str, Any] = {"seconds": median(trial.step() for _ in range(repeats))}
    found["process_bytes"] = peak() - before
    with PeakMemory(trial.tensors()) as memory:
        trial.step()
    found["tensor_bytes"] = memory.peak
    found["saved_bytes"] = saved_bytes(lambda: trial.net(trial.x), without=trial.weights())
    if config["mode"] == "reverse":
        found["reversal"] = str(trial.net.memory.record)
    return found


def count(depth: int, config: dict[str, Any]) -> int:
    """The most bytes that tensors took in a step, momentum there already, without doing its arithmetic."""
    trial = Trial(depth, **config, device="meta")
    trial.step()
    with PeakMemory(trial.tensors()) as memory:
        trial.step()
    return memory.peak


def counted(depth: int, config: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a mode, of those that do not look at numbers."""
    guessed = guesses(depth, config)
    found = {mode: count(depth, {**config, "mode": mode}) for mode in ("plain", "checkpoint")}
    seconds = {f"counted, {mode}": math.nan for mode in found}
    made = rows("memory", case(depth, config), seconds, "counted, plain", {"depth": depth, **config})
    for row, mode in zip(made, found, strict=True):
        row["tensor_bytes"], row["tensor_ratio"] = found[mode], found[mode] / found["plain"]
        row["estimated_bytes"] = guessed[mode].peak
    return made


def resident() -> int:
    """Bytes resident now; on a GPU, reserved there. The peak is counted from here: at first it is the parent's."""
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_reserved()
    Path("/proc/self/clear_refs").write_text("5")
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak() -> int:
    """The most there was."""
    if DEVICE == "cuda":
        return torch.cuda.max_memory_reserved()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def room() -> int:
    """Bytes this machine has left."""
    if DEVICE == "cuda":
        return torch.cuda.mem_get_info()[0]
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def cell(*options: Any) -> dict[str, Any]:
    """`measure` in a new process."""
    command = [sys.executable, "-m", "benchmarks.memory", json.dumps(options)]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"benchmark of {options} failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def case(depth: int, config: dict[str, Any]) -> str:
    described = f"depth {depth}, width {config['width']}, batch {config['batch']}, {config['dtype']}"
    return described + (", fused update" if config["fused"] else "")


def guesses(depth: int, config: dict[str, Any]) -> dict[str, Estimate]:
    """What `pathsum` says beforehand, by mode."""
    with torch.device("meta"):
        net = ps.ResidualTower(depth, config["width"])
    shape, kind = (config["batch"], 3, 32, 32), getattr(torch, config["dtype"])
    return {e.memory: e for e in estimate(net, shape, dtype=kind, fused=config["fused"])}


def table(depth: int, config: dict[str, Any], *, repeats: int) -> list[dict[str, Any]]:
    """One row a mode, of those that fit into the memory left."""
    guessed = guesses(depth, config)
    modes = [mode for mode in get_args(Mode) if 1.3 * guessed[mode].peak < room()]
    modes = [mode for mode in modes if mode != "reverse" or getattr(torch, config["dtype"]).itemsize >= 4]
    found = {mode: cell(depth, repeats, {**config, "mode": mode}) for mode in modes}
    if not found:
        return []
    seconds = {mode: found[mode]["seconds"] for mode in modes}
    made = rows("memory", case(depth, config), seconds, modes[0], {"depth": depth, **config})
    for row in made:
        one, base = found[row["side"]], found[modes[0]]
        for name in ("tensor", "process", "saved"):
            row[f"{name}_bytes"] = one[f"{name}_bytes"]
            row[f"{name}_ratio"] = one[f"{name}_bytes"] / base[f"{name}_bytes"]
        row["estimated_bytes"] = guessed[row["side"]].peak
        row["reversal"] = one.get("reversal")
    return made


def quick_bfloat16() -> bool:
    """Whether the device multiplies bfloat16 itself."""
    return DEVICE == "cuda" or torch.cpu._is_avx512_bf16_supported()


def bench(*, quick: bool = False) -> list[dict[str, Any]]:
    if quick:
        small = {**THIN, "width": 8, "batch": 16}
        return [*table(20, small, repeats=1), *counted(20, small)]
    found = []
    for config in (THIN, WIDE_BATCH):
        for depth in (10, 100, 1000):
            found += table(depth, config, repeats=1 if depth == 1000 else 5)
    for config in DEEPEST:
        if config["dtype"] == "bfloat16" and not quick_bfloat16():
            continue  # emulated, a step takes many minutes
        found += table(1000, config, repeats=1)
    for config in DEEPEST:
        found += counted(1000, {**config, "batch": 64})
    return found


if __name__ == "__main__":
    print(json.dumps(measure(*json.loads(sys.argv[1]))))
