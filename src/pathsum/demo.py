"""`pathsum demo`: train towers on digits, say what depth did to them, and explain the best deep one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pathsum import page
from pathsum.demo_page import ROWS, build, by_depth, pick
from pathsum.errors import OutputError

if TYPE_CHECKING:
    import pandas as pd

    from pathsum.inspect import Inspection
    from pathsum.runs import Run
    from pathsum.store import RunConfig

MARKER = "demo.json"
SHOWN = (None, "1/sqrt(n)")  # the row whose best deep network is explained


@dataclass(frozen=True)
class DemoCommand:
    """See in minutes what depth does in a residual network.

    Trains towers of 10 and 50 residual blocks on handwritten digits (1,797 real images that come with scikit-learn),
    with λ = 1 and batch normalization, λ = 1 without, λ = 1/n and λ = 1/√n, each at five learning rates; then
    explains the best 1/√n tower of depth 50 by its paths. Ends with a page. Under 4 minutes on 2 cores; a demo that
    was interrupted continues where it stopped.

    Examples:
      pathsum demo
      pathsum demo --quick --out quick-demo
    """

    out: Path = Path("pathsum-demo")
    """Folder for the page, its figures and tables, and the runs."""
    quick: bool = False
    """Small towers and few steps: seconds, but they hardly learn."""
    workers: int | None = None
    """Processes that train, one CPU thread each; by default one per core, 8 at most."""

    def run(self) -> None:
        """Train what is not trained yet, explain, write the page."""
        from pathsum.progress import lines
        from pathsum.runs import DONE
        from pathsum.sweep import sweep

        plan = Plan(depths=(3, 8), width=8, rates=(0.03, 0.3), steps=40, samples=100) if self.quick else Plan()
        prepare(self.out, plan)
        runs = plan.runs()
        folder = self.out / "runs"
        finished = sum((folder / run.folder / DONE).is_file() for run in runs)
        ready = f"; {finished} are trained already" if finished else ""
        print(f"Training {len(runs)} towers on handwritten digits, in {folder}{ready}.", flush=True)
        # Towers this small are quickest on the CPU, and there no slower one by one than stacked.
        trained = sweep(runs, folder, workers=self.workers, device="cpu", retry=True)
        trained.refuse_failed()
        with lines() as now:
            finish(sorted(trained.runs(), key=lambda run: run.folder.name), plan, self.out, now)
        print(f"\nThe page: {self.out / 'report.html'}")


@dataclass(frozen=True)
class Plan:
    """Everything a demo trains; chosen so that all of it takes about three minutes on two cores."""

    depths: tuple[int, int] = (10, 50)
    width: int = 16
    rates: tuple[float, ...] = (0.02, 0.05, 0.3)  # the best of 0.01 … 0.3 for each row is among them, or within 1 %
    steps: int = 240
    batch_size: int = 32
    val_size: int = 98
    samples: int = 200

    def runs(self) -> list[RunConfig]:
        """What is trained, the longest first."""
        from pathsum.store import RunConfig
        from pathsum.train import TrainConfig

        return [
            RunConfig(
                name=f"depth{depth}-{slug(norm, scale)}-lr{rate:g}",
                data="digits",
                model={"depth": depth, "width": self.width, "encoder": "conv3x3", "norm": norm, "scale": scale},
                train=TrainConfig(
                    lr=rate,
                    steps=self.steps,
                    batch_size=self.batch_size,
                    val_size=self.val_size,
                    augment=False,  # eight pixels leave no room for crops
                    eval_every=max(1, self.steps // 6),
                    threads=1,
                ),
            )
            for depth in sorted(self.depths, reverse=True)
            for norm, scale in ROWS
            for rate in self.rates
        ]


def slug(norm: str | None, scale: str) -> str:
    """A row's name in a folder's name."""
    text = scale.replace("sqrt(n)", "sqrtn").replace("/", "-over-")
    return f"lam-{text}" + (f"-{norm}norm" if norm else "")


def prepare(out: Path, plan: Plan) -> None:
    """Make the folder, or check that it holds this very demo, to be continued. Raises OutputError."""
    from pathsum.storage import read_json, write_json, writing

    asked = page.jsonable(asdict(plan))
    if out.is_dir() and (out / MARKER).is_file():
        if read_json(out / MARKER) != asked:
            raise OutputError(f"{out} holds a demo with other settings; remove it, or choose another with --out")
        return
    page.check_free(out, marker=MARKER, overwrite=False)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    write_json(out / MARKER, asked)


def finish(found: Sequence[Run], plan: Plan, out: Path, now: Callable[[str], None]) -> None:
    """Print the table, explain the deep network, write figures, tables, and last the page."""
    now("Comparing the runs.")
    from pathsum.report import best_rates, run_table, summarize
    from pathsum.storage import write_atomic

    table = run_table(found)
    chosen = best_rates(summarize(table))
    effects = by_depth(chosen, plan.depths, num_test=found[0].config["data"]["test_size"])
    show(effects)
    result = explain(chosen, found, plan, now)
    now("Drawing the figures of the page.")
    write_atomic(out / "report.html", build(found, table, chosen, effects, result, out))


def show(effects: pd.DataFrame) -> None:
    """Print what depth did."""
    from rich.console import Console

    from pathsum.explain import grid

    grid(Console(highlight=False), "\nTest accuracy at the best learning rate of each", effects)


def explain(chosen: pd.DataFrame, found: Sequence[Run], plan: Plan, now: Callable[[str], None]) -> Inspection | None:
    """Inspect the best deep network of the row to be shown; None where none of them finished."""
    row = pick(chosen, max(plan.depths), *SHOWN)
    if not row["done"]:
        return None
    name = f"depth{max(plan.depths)}-{slug(*SHOWN)}-lr{row['lr']:g}"
    now(f"\nExplaining {name} by its paths.")
    from dataclasses import replace

    from pathsum.data import load
    from pathsum.inspect import inspect
    from pathsum.resolve import resolve

    target = resolve(str(next(run.folder for run in found if run.folder.name == name)))
    data = load("digits", train_limit=0, test_limit=plan.samples)
    result = inspect(target.model, data, order=10, max_length=16)
    return replace(result, name=name, about=f"{type(target.model).__name__}, {name}")
