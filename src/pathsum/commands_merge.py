"""`pathsum merge`: from a linearized network to a plain, shallower one that other programs read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pathsum.errors import PathsumError

if TYPE_CHECKING:
    import pandas as pd

    from pathsum.data import Dataset
    from pathsum.merging import Merged

REPORT, LAYERS, UNITS = "report.csv", "layers.csv", "units.csv"


@dataclass(frozen=True, kw_only=True)
class MergeCommand:
    """Compose the layers between which nothing nonlinear is left: a plain network, equal and really shallower.

    MODEL is the network that was linearized, LINEARIZED the folder that `pathsum linearize` wrote. Convolutions, linear
    layers, batch norms and skips become one layer where that is exact, borders included, and takes less time on this
    machine (--decide). The result is compared with the linearized network on your images before it is written. Prints
    what was composed and what was not, and why; parameters, FLOPs, nonlinear scalars, path length, milliseconds and
    accuracy before and after. Writes merged.pt2 (torch.export) and, where onnx is installed, merged.onnx; neither needs
    pathsum to be read. The tables go beside them: report.csv, layers.csv, units.csv.

    Examples:
      pathsum linearize runs/train/he --target-units 4 --out lin/he
      pathsum merge runs/train/he lin/he
      pathsum merge nets.py:resnet20 lin/channel --weights resnet20.safetensors --data cifar10:data/cifar10 \\
          --mean .485 .456 .406 --std .229 .224 .225 --out merged/resnet20
      pathsum merge nets.py:resnet20 lin/channel --data cifar10:data/cifar10 --decide flops --batches 1 16 256
    """

    model: str
    """The network: FOLDER, FILE.py:FUNCTION, torchvision:NAME, timm:NAME or hf:NAME."""
    linearized: Path
    """A folder that pathsum linearize wrote for it."""
    data: str | None = None
    """digits, cifar10:PATH, cifar100:PATH, or a hub id. A checkpoint of pathsum may know."""
    weights: Path | None = None
    """A .safetensors file for a MODEL that takes one: its accuracy is the one before."""
    mean: tuple[float, ...] | None = None
    """Subtracted from pixels/255, a number per channel; by default as the model was trained, else the data's."""
    std: tuple[float, ...] | None = None
    """What that is divided by, likewise."""
    decide: Literal["latency", "flops", "always", "never"] = "latency"
    """Compose what takes less time on this machine, less arithmetic, everything that can be, or nothing."""
    compose: tuple[str, ...] = ()
    """Layers to compose whatever the clock says, by name; goes with latency."""
    keep: tuple[str, ...] = ()
    """Layers to leave as they are, by name; goes with latency."""
    batches: tuple[int, ...] = (1, 64)
    """Batch sizes to time."""
    samples: int = 64
    """Test images on which the merged network is compared with the linearized one, and timed."""
    test_limit: int | None = None
    """Take accuracies on a random subset of so many test images; by default on all."""
    out: Path | None = None
    """Folder for the result; by default pathsum-merge/NAME."""

    def run(self) -> None:
        """Merge, print and write the result."""
        import copy

        from rich.console import Console

        from pathsum import progress
        from pathsum.data import load, normalize
        from pathsum.knobs import knobs
        from pathsum.linearize import example
        from pathsum.linearizing.result import Linearized
        from pathsum.merging import merge
        from pathsum.resolve import resolve
        from pathsum.storage import writing

        self.check()
        target = resolve(self.model, weights=self.weights)
        found = load(target.source(self.data), train_limit=0, test_limit=self.test_limit)
        data = target.normalized(found, self.mean, self.std)
        console = Console()
        console.print(f"{target.about}; {data!r}", soft_wrap=True)
        net = knobs(copy.deepcopy(target.model).eval(), example(target.model, data))
        made = Linearized.load(self.linearized, net)
        x = normalize(data.test.images[: self.samples], data.mean, data.std)
        choice = {**dict.fromkeys(self.compose, True), **dict.fromkeys(self.keep, False)}
        with progress.lines() as now:
            now("Merging.")
            merged = merge(made.net, made.alpha, x, decide=choice or self.decide, batches=self.batches)
            now("Testing: the network as it was, and merged.")
            table = with_accuracies(merged, target.model, data)
        out = self.out or Path("pathsum-merge") / target.name
        with writing(out):
            out.mkdir(parents=True, exist_ok=True)
        files = save(merged, table, out)
        show(console, merged, table)
        console.print(f"Written to {out}: {', '.join(files)}", soft_wrap=True)

    def check(self) -> None:
        """Raise PathsumError for options that do not go together."""
        if self.decide != "latency" and (self.compose or self.keep):
            raise PathsumError(f"--compose and --keep go with --decide latency, not {self.decide}")
        both = set(self.compose) & set(self.keep)
        if both:
            raise PathsumError(f"--compose and --keep both name {', '.join(sorted(both))}; give each layer once")
        if self.samples < 1:
            raise PathsumError(f"--samples is {self.samples}, expected 1 or more")


def with_accuracies(merged: Merged, before: Any, data: Dataset) -> pd.DataFrame:
    """The report, with accuracies on all test images: of the network before it was linearized, and merged."""
    from pathsum.train import evaluate

    table = merged.table()
    _, first = evaluate(before, data.test, data)
    _, last = evaluate(merged.model, data.test, data)
    table["accuracy"] = [first, last, last]
    return table


def save(merged: Merged, table: pd.DataFrame, out: Path) -> list[str]:
    """Write module and tables; returns the files."""
    from pathsum.merging.merged import writes_onnx
    from pathsum.storage import write_atomic

    tables = {REPORT: table, LAYERS: merged.decision_table(), UNITS: merged.units}
    for name, each in tables.items():
        write_atomic(out / name, each.to_csv(index=name == REPORT))
    kinds = [".pt2", ".onnx"] if writes_onnx() else [".pt2"]
    return [merged.saved(out / f"merged{kind}").name for kind in kinds] + list(tables)


def show(console: Any, merged: Merged, table: pd.DataFrame) -> None:
    """Print what was composed and why, what is left of each unit, and the networks side by side."""
    from rich.table import Table

    chains: dict[tuple[bool, str], list[str]] = {}
    for d in merged.decisions:
        chains.setdefault((d.merged, d.why), []).append(" ∘ ".join(reversed(d.layers)))
    decisions = Table("composed", "why", "layers", title="What could be one layer", show_lines=True)
    for (composed, why), names in chains.items():
        decisions.add_row("yes" if composed else "no", why, "\n".join(dict.fromkeys(names)))
    units = Table("unit", "kind", "scalars", "nonlinear", title="What is left of each unit")
    for row in merged.units.to_dict("records"):
        units.add_row(row["unit"], row["kind"], f"{row['elements']:,}", f"{row['nonlinear']:,}")
    sides = Table("", *table.index, title="Before and after")
    for name, values in table.items():
        sides.add_row(str(name), *(written(str(name), value) for value in values))
    if merged.decisions:
        console.print(decisions)
    console.print(units)
    console.print(sides)
    console.print(repr(merged), soft_wrap=True, highlight=False)


def written(name: str, value: float) -> str:
    """A number of the report."""
    if name == "accuracy":
        return f"{value:.2%}"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.3g}"
