"""`pathsum train`: towers trained on images, one run for every combination of what is given several times."""

from __future__ import annotations

import itertools
import json
import re
import signal
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch

from pathsum.data import Dataset, load
from pathsum.errors import PathsumError
from pathsum.nets.tower import ResidualTower
from pathsum.runs import COMMAND, new_folder
from pathsum.scaling import parse_rule
from pathsum.starting import Start
from pathsum.storage import write_atomic, write_json
from pathsum.train import FitResult, TrainConfig, TrainOptions, check_fit, fit

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


@dataclass(frozen=True, kw_only=True)
class TrainCommand(TrainOptions):
    """Train residual towers on images.

    Several values of scale, norm, init or lr train one tower for every combination, each in its own folder;
    a table at the end compares them, also in results.csv. Divergence is a result. After an interruption the
    same command continues where it stopped.

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
    """digits, or CIFAR-10: cifar10:PATH (parquet folder, or the official archive), or a hub id."""
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
    resume: bool = True
    """Continue, or return, what the folder holds; with no-resume it must be empty."""

    def run(self) -> int:
        """Train everything, print and write the table; returns the exit code (interrupted: 128 + signal)."""
        from rich.console import Console

        start = None if self.start is None else Start.read(self.start, self)
        # every option is checked before anything is loaded or written
        configs = list(self._configs() if start is None else start.configs(self))
        if self.out.exists():  # refuse it now rather than after loading
            new_folder(self.out, resume_ok=self.resume)
        console = Console()
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        data = load(
            self.data,
            device=device,
            train_limit=self.train_limit,
            test_limit=self.test_limit,
            seed=self.seed,
        )
        shown = self if start is None else start
        console.print(f"{data!r} on {device}, depth {shown.depth}, width {shown.width}, {len(configs)} run(s)")
        results: list[dict[str, Any]] = []
        for name, options, config in configs:
            model = (self._build(data, options) if start is None else start.model()).to(device)
            if not results:
                check_fit(model, data, config)  # before anything is written
                out = new_folder(self.out, resume_ok=self.resume)
                write_json(out / COMMAND, json.loads(json.dumps(asdict(self), default=str)))
            optimizer = None if start is None else start.optimizer(model, config)
            result = fit(model, data, config, out=out / name, resume=self.resume, optimizer=optimizer)
            results.append(self._row(name, options, config, result) | ({} if start is None else start.size))
            _write_csv(out / "results.csv", results)
            console.print(f"{name}: {result.status}{f' ({result.reason})' if result.reason else ''}")
            if result.status == "interrupted":
                console.print(_table(results))
                console.print("Interrupted; the same command continues.")
                return 128 + signal.Signals[result.reason]
        console.print(_table(results))
        console.print(f"{len(results)} run(s) in {out}, table in {out / 'results.csv'}", soft_wrap=True)
        return 0

    def _configs(self) -> Iterator[tuple[str, dict[str, Any], TrainConfig]]:
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

    def _build(self, data: Dataset, options: dict[str, Any]) -> ResidualTower:
        channels, height, _ = data.shape
        return ResidualTower(
            self.depth,
            self.width,
            num_classes=data.num_classes,
            in_channels=channels,
            encoder=self.encoder or ("imagenet" if height >= 32 else "conv3x3"),
            stem_norm=self.stem_norm,
            activation=self.activation,
            seed=self.seed,
            **options,
        )

    def _row(self, name: str, options: dict[str, Any], config: TrainConfig, result: FitResult) -> dict[str, Any]:
        """One line of results.csv."""
        return {
            **options,
            "norm": options["norm"] or "none",
            "lr": config.lr,
            "depth": self.depth,
            "width": self.width,
            "seed": self.seed,
            "status": result.status,
            "reason": result.reason,
            "steps": result.steps,
            "initial_loss": result.initial_loss,
            "final_loss": result.final_loss,
            "best_test": result.best_test,
            "best_val": result.best_val,
            "test_at_best_val": result.test_at_best_val,
            "seconds": result.seconds,
            "folder": name,
        }


def _slug(text: str) -> str:
    """A rule as part of a folder's name."""
    return re.sub(r"[^A-Za-z0-9.+-]+", "-", text.replace("/", "-over-")).strip("-")


def _write_csv(path: Path, results: list[dict[str, Any]]) -> None:
    import pandas as pd

    write_atomic(path, pd.DataFrame(results).to_csv(index=False))


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
