"""`pathsum train`: towers trained on images, one run for every combination of what is given several times."""

from __future__ import annotations

import itertools
import json
import re
import signal
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from pathsum.data import Dataset, load
from pathsum.errors import PathsumError
from pathsum.runs import COMMAND, ROWS, new_folder, read_rows
from pathsum.scaling import parse_rule
from pathsum.starting import Start
from pathsum.storage import write_atomic, write_json
from pathsum.store import FINISHED, RunConfig, Store
from pathsum.sweep import sweep
from pathsum.sweeping.work import default_device
from pathsum.train import TrainConfig, TrainOptions, check_fit, fit
from pathsum.training.result import best

COLUMNS = {  # of results.csv: heading in the table
    "scale": "scale",
    "norm": "norm",
    "init": "init",
    "lr": "lr",
    "status": "status",
    "initial_loss": "start loss",
    "final_loss": "final loss",
    "best_test": "best test",
    "test_at_best_val": "at best val",
    "seconds": "seconds",
}
RESULTS = (
    "reason", "steps", "initial_loss", "final_loss", "best_test", "best_val", "test_at_best_val", "seconds",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainCommand(TrainOptions):
    """Train residual towers on images.

    Several values of scale, norm, init or lr train one tower for every combination, each in its own folder,
    several at a time; a table at the end compares them, also in results.csv. Divergence is a result. After an
    interruption, even a kill, the same command continues where it stopped.

    Examples:
      pathsum train --depth 50 --width 8 --scale "1/sqrt(n)" 1/n 1 --steps 300 --out runs/rules
      pathsum train --data cifar10:data/cifar10 --train-limit 10000 --depth 100 --scale "1/sqrt(n)" 1 --init he \\
          --steps 300 --out runs/deep
      pathsum train --norm none batch --lr 0.01 0.03 0.1 --epochs 5 --val-size 98
      pathsum train --start runs/deeper --lr 0.01 --steps 300 --out runs/grown
    """

    out: Path = Path("runs/train")
    """Folder for the runs."""
    start: Path | None = None
    """Train this network on, a folder that pathsum wrote (train, grow), with the optimizer's memory if it is there;
    depth, width and all else of the network are then its own."""
    data: str = "digits"
    """digits, cifar10:PATH or cifar100:PATH (parquet folder, or the official archive), or a hub id."""
    train_limit: int | None = None
    """Train on a random subset of so many images, classes balanced."""
    test_limit: int | None = None
    """Test on a random subset of so many images."""
    depth: int = 16
    """Residual blocks, two convolutions each."""
    width: int = 16
    """Channels (the paper: 256)."""
    encoder: Literal["imagenet", "conv3x3", "affine"] | None = None
    """Stem; by default imagenet (stride 4, the paper's), and conv3x3 for images below 32×32."""
    stem_norm: bool = True
    """BatchNorm in the stem."""
    activation: Literal["relu", "tanh", "gelu", "silu"] = "relu"
    """Nonlinearity of the branches."""
    scale: tuple[str, ...] = ("1/sqrt(n)",)
    """Rules for λ: 1, 1/n, 1/sqrt(n), n^-0.8, a number, learned, learned:1/sqrt(n). One run each."""
    norm: tuple[Literal["none", "batch"], ...] = ("none",)
    """BatchNorm in the branches, or none. One run each."""
    init: tuple[Literal["lecun", "he", "torch"], ...] = ("lecun",)
    """Initialization of the weights. One run each."""
    lr: tuple[float, ...] = (0.03,)
    """Learning rates. One run each."""
    device: str | None = None
    """cpu or cuda; by default cuda where there is one."""
    workers: int | None = None
    """Processes that train; by default one per core, 8 at most, and one on a GPU."""
    stack: int = 1
    """Networks that a process trains as one program: quicker where they are small."""
    resume: bool = True
    """Continue, or return, what the folder holds; with no-resume it must be empty."""

    def run(self) -> int:
        """Train everything, print and write the table; returns the exit code (interrupted: 128 + signal)."""
        from rich.console import Console

        if self.start is not None:
            return self._go_on(Start.read(self.start, self))
        asked = list(self._asked())  # every option is checked before anything is loaded or written
        console, device, data = Console(), self.device or default_device(), self._data()
        console.print(f"{data!r} on {device}, depth {self.depth}, width {self.width}, {len(asked)} run(s)")
        configs = [self._config(name, options, train, data) for name, options, train in asked]
        check_fit(configs[0].build(data).to(device), data, configs[0].train)  # before anything is written
        del data  # every worker loads its own
        out = self._begin()
        store = Store(out)
        workers = self.workers or (None if device == "cpu" else 1)
        try:
            trained = sweep(configs, store, workers=workers, stack=self.stack, device=device, retry=True)
        except KeyboardInterrupt as error:
            self._show(console, [self._row(config, store) for config in configs])
            console.print("Interrupted; the same command continues.")
            return 128 + (signal.SIGTERM if "SIGTERM" in error.args else signal.SIGINT)
        self._show(console, [self._row(config, store) for config in configs])
        console.print(f"{len(configs)} run(s) in {out}, table in {out / 'results.csv'}", soft_wrap=True)
        trained.refuse_failed()
        return 0

    def _data(self) -> Dataset:
        """The images, after a look at the output folder."""
        if self.out.exists():  # refuse it now rather than after loading
            new_folder(self.out, resume_ok=self.resume)
        return load(
            self.data,
            device=self.device or default_device(),
            train_limit=self.train_limit,
            test_limit=self.test_limit,
            seed=self.seed,
        )

    def _begin(self) -> Path:
        """The output folder, with these options in it."""
        out = new_folder(self.out, resume_ok=self.resume)
        write_json(out / COMMAND, json.loads(json.dumps(asdict(self), default=str)))
        return out

    def _go_on(self, start: Start) -> int:
        """Train a network there is, here, at one rate after the other."""
        from rich.console import Console

        asked = list(start.configs(self))
        console, data = Console(), self._data()
        console.print(f"{data!r}, depth {start.depth}, width {start.width}, {len(asked)} run(s)")
        results: list[dict[str, Any]] = []
        for name, options, config in asked:
            model = start.model().to(self.device or default_device())
            check_fit(model, data, config)  # before anything is written
            out = self._begin()
            result = fit(
                model, data, config, out=out / name, resume=self.resume, optimizer=start.optimizer(model, config)
            )
            row = self._line(options, config, str(result.status), {key: getattr(result, key) for key in RESULTS}, name)
            results.append(row | start.size)
            self._show(console, results)
            if result.status == "interrupted":
                console.print("Interrupted; the same command continues.")
                return 128 + signal.Signals[result.reason]
        console.print(f"{len(results)} run(s) in {out}, table in {out / 'results.csv'}", soft_wrap=True)
        return 0

    def _show(self, console: Any, results: list[dict[str, Any]]) -> None:
        """Print and write the table."""
        import pandas as pd

        write_atomic(self.out / "results.csv", pd.DataFrame(results).to_csv(index=False))
        console.print(_table(results))

    def _asked(self) -> Iterator[tuple[str, dict[str, Any], TrainConfig]]:
        """Folder name, tower options and training configuration of every run."""
        common = {f.name: getattr(self, f.name) for f in fields(TrainOptions)}
        rules = [parse_rule(rule) for rule in self.scale]
        for rule in rules:
            rule.values(self.depth)
        if not all((rules, self.norm, self.init, self.lr)):
            raise PathsumError("scale, norm, init and lr each need one value or more")
        seen = set()
        for rule, norm, init, lr in itertools.product(rules, self.norm, self.init, self.lr):
            name = "_".join((_slug(rule.text), f"norm-{norm}", init, f"lr{lr:g}"))
            if name in seen:
                raise PathsumError(f"scale {rule.text}, norm {norm}, init {init}, lr {lr:g} is asked for twice")
            seen.add(name)
            options = {"scale": rule.text, "norm": None if norm == "none" else norm, "init": init}
            yield name, options, TrainConfig(lr=lr, **common)

    def _config(self, name: str, options: dict[str, Any], train: TrainConfig, data: Dataset) -> RunConfig:
        """One run, as a sweep takes it."""
        model = {
            "depth": self.depth,
            "width": self.width,
            "encoder": self.encoder or ("imagenet" if data.shape[1] >= 32 else "conv3x3"),
            "stem_norm": self.stem_norm,
            "activation": self.activation,
            **options,
        }
        return RunConfig(
            name=name,
            data=self.data,
            train_limit=self.train_limit,
            test_limit=self.test_limit,
            data_seed=self.seed,
            model=model,
            train=train,
        )

    def _row(self, config: RunConfig, store: Store) -> dict[str, Any]:
        """One line of results.csv."""
        status = store.state(config)
        rows = [] if status == "failed" else read_rows(store.folder(config) / ROWS)  # which may be why
        last = rows[-1] if rows else {"step": 0}
        unfinished = {
            "reason": store.error(config),
            "steps": last["step"],
            "seconds": last.get("seconds"),
            **best(rows),
        }
        summary = store.summary(config) if status in FINISHED else unfinished
        return self._line(config.model, config.train, status, summary, config.folder)

    def _line(
        self, model: Mapping[str, Any], train: TrainConfig, status: str, summary: Mapping[str, Any], folder: str
    ) -> dict[str, Any]:
        return {
            "scale": model["scale"],
            "norm": model["norm"] or "none",
            "init": model["init"],
            "lr": train.lr,
            "depth": self.depth,
            "width": self.width,
            "seed": self.seed,
            "status": status,
            **{name: summary.get(name) for name in RESULTS},
            "folder": folder,
        }


def _slug(text: str) -> str:
    """A rule as part of a folder's name."""
    return re.sub(r"[^A-Za-z0-9.+-]+", "-", text.replace("/", "-over-")).strip("-")


def _table(results: list[dict[str, Any]]) -> Any:
    """The results as a rich table."""
    from rich import box
    from rich.table import Table

    validated = any(row["best_val"] is not None for row in results)
    columns = [name for name in COLUMNS if validated or name != "test_at_best_val"]
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    for name in columns:
        table.add_column(COLUMNS[name], no_wrap="loss" not in name and "test" not in name)
    for row in results:
        table.add_row(*(_show(column, row[column]) for column in columns))
    return table


def _show(column: str, value: Any) -> str:
    if value is None or value != value:
        return "–"
    if "test" in column:
        return f"{value:.2%}"
    if column == "seconds":
        return f"{value:.1f}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
