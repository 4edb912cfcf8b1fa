"""`python -m benchmarks.gpu`: on a GPU, is a training step right, and what share of the arithmetic's peak is it?

Checks first: a captured step beside an eager one and one in float64. Then the peak, that of a large matrix product
in the same precision, measured here; and steps of towers of depth 10, 100 and 1000, alone (`fit`) and stacked
(`fit_stack`), whose floor is their floating-point operations at that peak. Rows go to a CSV, one after each case.

    python -m benchmarks.gpu                           # everything
    python -m benchmarks.gpu --cases 10x256 --out $OUT
    python -m benchmarks.gpu --quick --device cpu      # tiny, nothing written: does the script itself work?

Exits with 2 where there is no GPU, with 1 where a check fails or a way to take a step does (but for memory).
"""

from __future__ import annotations

import argparse
import gc
import itertools
import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pathsum.data import Dataset
from pathsum.nets.tower import ResidualTower
from pathsum.train import TrainConfig, fit, fit_stack
from pathsum.training.contexts import tensor_cores
from pathsum.training.convolutions import grouped
from pathsum.training.graphs import Captured
from pathsum.training.monitor import CHECK
from pathsum.training.record import Record
from pathsum.training.stacked import Program

from .timing import RESULTS, hardware, rows, save
from .training import noise

TARGET = 0.40  # of the peak, for ten stacked towers of depth 10
LR = 0.003  # at which no tower here diverges within the steps that are timed

# Largest relative difference of any network's loss at any of the steps: a captured step runs the kernels of the eager
# one, but gradients of weights may be summed in another order each time, and training amplifies what that rounds.
CAPTURED = {"fp32": 1e-3, "tf32": 1e-2, "bf16": 5e-2}
# The same of the first step, where nothing is amplified yet, to float64: 24, 11 and 8 bits.
EXACT = {"fp32": 1e-5, "tf32": 5e-3, "bf16": 3e-2}


@dataclass(frozen=True)
class Case:
    """What is timed: so many towers of one depth and width as one program, and one of them alone."""

    depth: int
    width: int
    networks: int
    steps: int  # between two readings of the clock, CHECK at least


@dataclass(frozen=True)
class Plan:
    """All sizes of a session."""

    cases: tuple[Case, ...]
    batch: int = 64
    matmul: int = 8192
    repeats: int = 3
    check: tuple[int, int] = (4, 64)  # depth and width of the towers that are checked


FULL = Plan((Case(10, 256, 10, 100), Case(100, 256, 10, 20), Case(1000, 128, 4, 10), Case(1000, 256, 2, 10)))
QUICK = Plan((Case(2, 8, 2, 10),), batch=4, matmul=64, repeats=1, check=(2, 8))


def flops(depth: int, width: int, batch: int) -> int:
    """Floating-point operations of a step of one tower on 32×32 images, two to a multiplication and addition.

    Convolutions and the last layer: three times the forward pass, for the gradients by weights and by inputs; the
    first layer has no use for the latter.
    """
    stem = 2 * 7 * 7 * 3 * width * 16 * 16
    block = 2 * (2 * 9 * width**2 * 8 * 8)
    last = 2 * width * 10
    return batch * (2 * stem + 3 * depth * block + 3 * last)


def peak(size: int, precision: str, device: torch.device, repeats: int) -> float:
    """Floating-point operations a second of a `size`³ matrix product, the best of some."""
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=kind) for _ in range(2))
    inner = 10
    with tensor_cores(precision):  # type: ignore[arg-type]
        seconds = clock(lambda: [a @ b for _ in range(inner)], device, repeats)
    return 2 * size**3 * inner / seconds


def clock(run: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Seconds of `run`, the least of some, after one that does not count."""
    seconds = []
    for _ in range(repeats + 1):
        wait(device)
        began = time.perf_counter()
        run()
        wait(device)
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def config(precision: str, batch: int, steps: int, eval_every: int, seed: int = 0) -> TrainConfig:
    options: dict[str, Any] = {"lr": LR, "batch_size": batch, "seed": seed, "precision": precision}
    return TrainConfig(steps=steps, eval_every=eval_every, **options)


def program(models: Sequence[ResidualTower], data: Dataset, precision: str, batch: int) -> Program:
    """What `fit_stack` runs."""
    device = next(models[0].parameters()).device
    made = []
    for i, model in enumerate(models):
        own = config(precision, batch, 10**6, 10**6, seed=i)
        made.append(Record(model, data, own, [torch.Generator(device)], None))
    return Program(made, data, [])


# --- is it right? ---


def losses(device: torch.device, plan: Plan, precision: str, *, captured: bool, steps: int, double: bool) -> Tensor:
    """Each network's loss at each step, `(steps, networks)`, of three towers with and without batch norm."""
    depth, width = plan.check
    found = []
    for norm in (None, "batch"):
        models = [ResidualTower(depth, width, norm=norm, seed=i).to(device) for i in range(3)]  # type: ignore[arg-type]
        models = [model.double() for model in models] if double else models
        with tensor_cores(precision):  # type: ignore[arg-type]
            work = program(models, noise(8 * plan.batch, 1), precision, plan.batch)
            work.tower.convolution = grouped  # the same on both sides, whatever is quicker
            update = work.update if captured else work._update
            taken = []
            for step in range(steps):
                x, y = work.data.batch(step)
                taken.append(update(x, y, (step + 1) % CHECK == 0)[0].mean(1).double().cpu())
            assert isinstance(work.update, Captured)
            work.update.release()
        found.append(torch.stack(taken))
    return torch.cat(found, 1)


def checks(device: torch.device, plan: Plan) -> list[tuple[bool, str]]:
    """What was compared: whether it is right, and how far it is apart."""
    steps = 3 * CHECK + 2  # both kinds of step run, are captured, and are replayed
    exact = losses(device, plan, "fp32", captured=False, steps=1, double=True)
    found = []
    for precision, limit in CAPTURED.items():
        eager = losses(device, plan, precision, captured=False, steps=steps, double=False)
        captured = losses(device, plan, precision, captured=True, steps=steps, double=False)
        off, start, moved = apart(captured, eager), apart(captured[:1], exact), apart(captured[-1:], captured[:1])
        found += [
            (off <= limit, f"{precision}: {steps} steps captured and eager: {off:.1e} apart, {limit:.0e} allowed"),
            (
                start <= EXACT[precision],
                f"{precision}: first loss and that in float64: {start:.1e} apart, {EXACT[precision]:.0e} allowed",
            ),
            (moved > limit, f"{precision}: training moved the losses by up to {moved:.1e}, more than that"),
        ]
    return found


def apart(a: Tensor, b: Tensor) -> float:
    """The largest relative difference; infinite where something is not finite."""
    value = ((a - b).abs() / b.abs()).max().item()
    return value if math.isfinite(value) else math.inf


# --- how quick is it? ---


def sides(case: Case, precision: str, plan: Plan, device: torch.device) -> dict[str, Callable[[], float]]:
    """Ways to take a step; each gives the seconds of one, for all of its networks together."""
    batch, num, data = plan.batch, case.networks, noise(32 * plan.batch, 1)
    built = [ResidualTower(case.depth, case.width, scale="1/sqrt(n)", seed=i).to(device) for i in range(num)]

    def whole(count: int, *, stack: bool) -> float:
        """Of whole trainings, by the times in their rows once all is captured; one image is evaluated between two."""
        steps = (2 + plan.repeats) * case.steps
        own = [config(precision, batch, steps, case.steps, seed=i) for i in range(count)]
        if stack:
            (result, *_) = fit_stack(built[:count], data, own, progress=False)
        else:
            result = fit(built[0], data, own[0], progress=False)
        if result.status != "done":
            raise RuntimeError(f"the training {result.status} ({result.reason}), so there is nothing to time")
        times = [row["seconds"] for row in result.rows][2:]
        return min(b - a for a, b in itertools.pairwise(times)) / case.steps

    def ready(count: int, *, captured: bool = True, tuned: bool = False) -> float:
        """Of steps alone, always on the same batch."""
        with tensor_cores(precision), autotuned(tuned):  # type: ignore[arg-type]
            work = program(built[:count], data, precision, batch)
            assert isinstance(work.update, Captured)
            try:
                x, y = work.data.batch(0)
                update = work.update if captured else work._update
                for _ in range(3):
                    update(x, y, False)
                seconds = clock(lambda: [update(x, y, False) for _ in range(case.steps)], device, plan.repeats)
            finally:
                work.update.release()
                work.tower.release()
        return seconds / case.steps

    return {
        "fit": lambda: whole(1, stack=False),
        "fit_stack of 1": lambda: whole(1, stack=True),
        f"fit_stack of {num}": lambda: whole(num, stack=True),
        "step of 1, captured, batch ready": lambda: ready(1),
        f"step of {num}, eager, batch ready": lambda: ready(num, captured=False),
        f"step of {num}, captured, batch ready": lambda: ready(num),
        f"step of {num}, captured, cuDNN autotuned": lambda: ready(num, tuned=True),
    }


@contextmanager
def autotuned(on: bool) -> Any:
    """Let cuDNN choose its algorithms by measuring for a while."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = on
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def measure(case: Case, precision: str, best: float, plan: Plan, device: torch.device) -> list[dict[str, Any]]:
    """A row a way: seconds, floor, and share of the peak."""
    seconds, failures = {}, {}
    for name, run in sides(case, precision, plan, device).items():
        try:
            seconds[name] = run()
        except RuntimeError as error:  # such as too little memory: the other ways may fit
            seconds[name], failures[name] = math.nan, " ".join(str(error).split())[:200]
        gc.collect()  # what a failure left
        if device.type == "cuda":
            torch.cuda.empty_cache()
    made = {"depth": case.depth, "width": case.width, "batch": plan.batch, "precision": precision, "maps": "8x8"}
    found = rows(
        "gpu", f"depth {case.depth}, width {case.width}, {precision}", seconds, f"fit_stack of {case.networks}", made
    )
    for row in found:
        networks = case.networks if f"of {case.networks}" in row["side"] else 1
        row["networks"] = networks
        row["flops"] = networks * flops(case.depth, case.width, plan.batch)
        row["peak_flops_per_second"] = best
        row["floor_seconds"] = row["flops"] / best
        row["share_of_peak"] = row["floor_seconds"] / row["seconds"]
        row["error"] = failures.get(row["side"], "")
        row["device"] = str(device)
    return found


def verdict(found: Sequence[dict[str, Any]]) -> str:
    """Whether ten stacked towers of depth 10 reach the target."""
    theirs = [r for r in found if r["side"].startswith("fit_stack of") and r["networks"] > 1 and "bf16" in r["case"]]
    theirs = [row for row in theirs if row["case"].startswith("depth 10,")]
    if not theirs:
        return "depth 10 in bf16 was not among the cases: nothing to say about its share of the peak"
    share = theirs[0]["share_of_peak"]
    says = "reach" if share >= TARGET else "fall short of"
    return f"{theirs[0]['networks']} stacked towers of depth 10 {says} {TARGET:.0%} of the bf16 peak: {share:.1%}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the rows (default: benchmarks/results)")
    parser.add_argument("--cases", nargs="*", default=[], metavar="DEPTHxWIDTH", help="only these, such as 10x256")
    parser.add_argument("--precisions", nargs="*", default=["bf16", "tf32"], choices=list(CAPTURED))
    parser.add_argument("--device", default="cuda", help="cuda, or cpu with --quick")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, nothing written")
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print(
            "benchmarks.gpu needs a CUDA GPU and a PyTorch built for it; to try the script: --quick --device cpu",
            file=sys.stderr,
        )
        return 2
    if device.type != "cuda" and not args.quick:
        print("on a CPU these sizes would take days; add --quick", file=sys.stderr)
        return 2
    plan = QUICK if args.quick else FULL
    cases = [case for case in plan.cases if not args.cases or f"{case.depth}x{case.width}" in args.cases]
    if not cases:
        print(f"no such case; there are {', '.join(f'{c.depth}x{c.width}' for c in plan.cases)}", file=sys.stderr)
        return 2
    print(f"{hardware()}, torch {torch.__version__}")
    found_right = checks(device, plan)
    for right, what in found_right:
        print(f"  {'ok   ' if right else 'WRONG'} {what}", flush=True)
    if not all(right for right, _ in found_right):
        print("a check failed: no timing would mean anything", file=sys.stderr)
        return 1
    best = {precision: peak(plan.matmul, precision, device, plan.repeats) for precision in args.precisions}
    for precision, value in best.items():
        print(f"peak of a {plan.matmul}³ product in {precision}: {value / 1e12:.4g} TFLOP/s")
    found: list[dict[str, Any]] = []
    for case in cases:
        for precision in args.precisions:
            new = measure(case, precision, best[precision], plan, device)
            found += new
            print(f"{new[0]['case']}, batch {plan.batch}")
            for row in new:
                note = f"  {row['error']}" if row["error"] else ""
                print(
                    f"  {row['side']:<42} {1e3 * row['seconds']:>10.3f} ms {row['share_of_peak']:>7.1%} of peak{note}",
                    flush=True,
                )
            if not args.quick:
                save(found, "gpu", args.out)
    print(verdict(found))
    if not args.quick:
        print(f"rows written to {save(found, 'gpu', args.out)}")
    failed = [row for row in found if row["error"] and "out of memory" not in row["error"]]
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
