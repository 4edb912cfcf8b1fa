"""`pathsum study NAME`: a table of the paper, from its runs to a page; the same command continues it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pathsum.errors import PathsumError
from pathsum.studies.growth_command import parse_growth
from pathsum.studies.table1 import HOW, Preset, Table1, preset

if TYPE_CHECKING:
    from pathsum.store import Store
    from pathsum.studies.study import Check, Evidence
    from pathsum.sweeping.config import RunConfig


class Runnable(Protocol):
    """A command with its options."""

    def run(self) -> int | None:
        """Do it, and return the exit code."""


@dataclass(frozen=True, kw_only=True)
class Table1Command(Table1):
    """Reproduce Table 1 of "On residual network depth": does λ = 1/√n replace batch normalization?

    Trains towers of three depths with batch norm, and without it with λ = 1, 1/n and 1/√n, at several learning rates
    and seeds, and writes the table beside the paper's, learning curves, and the paper's claims as checks. After an
    interruption the same command continues, and other options reuse the runs they share.

    Presets: smoke (under a minute, digits), small (2 cores, about an hour; the digits, or CIFAR-10 with --data), h200
    (the column n = 10, an hour of that GPU), paper (Appendix A as it is, 600 runs of 160,000 steps). The other options
    begin as the preset has them.

    Examples:
      pathsum study table1 --preset smoke
      pathsum study table1 --preset small --data cifar10:data/cifar10 --out studies/table1
      pathsum study table1 --preset paper --data uoft-cs/cifar10 --depths 10 --width 256 --dry-run
      pathsum study table1 --preset paper --engine ray --address auto --gpus 0.25   (docs/sweeps.md)
    """

    preset: Preset = "small"
    """Where the other options begin."""
    out: Path = Path("pathsum-table1")
    """Folder for the page, tables and figures."""
    store: Path | None = None
    """Store of runs, which studies may share; by default the folder runs in --out."""
    workers: int | None = None
    """Processes that train; by default one per core, 8 at most."""
    stack: int = 1
    """Networks that a process trains as one program."""
    memory: int | None = None
    """MiB that a process may hold."""
    engine: Literal["local", "inline", "ray"] = "local"
    """Where to train: processes here, this process alone, or a Ray cluster."""
    address: str | None = None
    """The Ray cluster's, HOST:PORT; or auto, the one of this machine ('ray start --head' starts one)."""
    cpus: float | None = None
    """CPUs of each task on the Ray cluster; by default 1."""
    gpus: float | None = None
    """GPU of each task on the Ray cluster, 0.25 for four tasks to a GPU; by default 1 where there are any."""
    device: str | None = None
    """cpu or cuda; by default cuda where there is one."""
    retry: bool = False
    """Try runs again that failed in an earlier sweep."""
    dry_run: bool = False
    """List the runs and the time they would take, and train nothing."""
    report_only: bool = False
    """Write the report of what is finished, and train nothing."""
    check: bool = False
    """Exit with 1 where a claim does not hold."""

    def run(self) -> int:
        """Train what is not finished, write the report, say where it is; returns the exit code."""
        from pathsum import page
        from pathsum.store import Store
        from pathsum.studies.table1_page import MARKER

        study = self.study
        configs = study.runs()
        if study.data == "digits" and self.preset != "smoke":
            print("On the digits, whose numbers do not compare with the paper's; --data cifar10:PATH takes CIFAR-10.")
        store = Store(self.store or self.out / "runs")
        if self.dry_run:
            show_plan(configs, store, self)
            return 0
        if not {path.name for path in self.out.glob("*")} <= {"runs"}:
            page.check_free(self.out, marker=MARKER, overwrite=True)
        if not self.report_only:
            try:
                self.train(configs, store)
            except BaseException:
                if any(store.runs(configs)):
                    self.report(study, configs, store)
                raise
        evidence, verdicts = self.report(study, configs, store)
        show(evidence, verdicts)
        print(f"\nThe page: {self.out / 'report.html'}")
        failed = {config.describe(): store.error(config) for config in configs if store.state(config) == "failed"}
        if failed:
            first, error = next(iter(failed.items()))
            raise PathsumError(
                f"{len(failed)} of {len(configs)} runs failed, the first {first}: {error}; 'pathsum runs ls --store "
                f"{store.root}' shows them, --retry tries them again"
            )
        return int(self.check and any(check.verdict == "fail" for check in verdicts))

    @property
    def study(self) -> Table1:
        """The study alone."""
        return Table1(**{field.name: getattr(self, field.name) for field in fields(Table1)})

    def train(self, configs: Sequence[RunConfig], store: Store) -> None:
        """Sweep."""
        from pathsum.sweep import sweep

        memory = None if self.memory is None else self.memory * 2**20
        sweep(
            configs,
            store,
            workers=self.workers,
            memory=memory,
            stack=self.stack,
            engine=self.engine,
            address=self.address,
            cpus=self.cpus,
            gpus=self.gpus,
            device=self.device,
            retry=self.retry,
        )

    def report(self, study: Table1, configs: Sequence[RunConfig], store: Store) -> tuple[Evidence, list[Check]]:
        """Write the report of what there is."""
        from pathsum.storage import writing
        from pathsum.studies.study import Evidence
        from pathsum.studies.table1_page import write

        evidence = Evidence.gather(configs, store.runs(configs))
        with writing(self.out):
            return evidence, write(study, evidence, self.out)


def show(evidence: Evidence, verdicts: Sequence[Check]) -> None:
    """Print the table and the checks."""
    from rich.console import Console

    from pathsum.explain import grid as printed
    from pathsum.studies.table1_page import frame
    from pathsum.studies.table1_results import grid

    console, table = Console(highlight=False), grid(evidence)
    printed(console, f"\n{table.caption}", frame(table))
    for note in table.notes:
        console.print(note)
    console.print("\nThe paper's claims")
    for check in verdicts:
        console.print(f"  {check.verdict} at {check.where}: {check.claim}")
        console.print(f"    {check.numbers}", soft_wrap=True)


def show_plan(configs: Sequence[RunConfig], store: Store, options: Table1Command) -> None:
    """Print the runs that are not finished, by kind, and the time they would take here."""
    import pandas as pd
    from rich.console import Console

    from pathsum.explain import grid as printed
    from pathsum.store import FINISHED
    from pathsum.studies.cost import Clock, words
    from pathsum.sweep import MOST_WORKERS, cores
    from pathsum.sweeping.work import default_device

    clock = Clock(options.device or default_device(), 1 if options.engine == "inline" else options.stack)
    left = [config for config in configs if store.state(config) not in FINISHED]
    lines = [
        {
            "depth": config.model["depth"],
            "width": config.model["width"],
            "norm": config.model["norm"] or "none",
            "λ": config.model["scale"],
            "runs": 1,
            "seconds": clock.run(config),
        }
        for config in left
    ]
    print(f"{len(configs)} runs, {len(configs) - len(left)} of them finished; store {store.root}")
    if not left:
        return
    table = pd.DataFrame(lines).groupby(["depth", "width", "norm", "λ"], sort=False, as_index=False).sum()
    total = float(table["seconds"].sum())
    each = table["seconds"] / table["runs"]
    shown = table.assign(each=each.map(words), all=table["seconds"].map(words)).drop(columns="seconds")
    console = Console(highlight=False)
    printed(console, f"\nTo be trained: {options.steps:,} steps of {options.batch_size} images each", shown)
    count = min(options.workers or min(cores(), MOST_WORKERS), len(left))
    console.print(
        f"About {words(total / count)} on {clock.device}: {count} at a time, {clock.stack} to a program; runs that "
        "diverge end early.",
        soft_wrap=True,
    )


@dataclass(frozen=True)
class ListCommand:
    """Say which studies there are."""

    def run(self) -> None:
        """Print them."""
        width = max(map(len, STUDIES))
        print("Studies, each with --help:\n")
        for name, (_, summary) in STUDIES.items():
            print(f"  pathsum study {name:<{width}}  {summary}")


def parse_table1(args: Sequence[str]) -> Table1Command:
    """Read the options; those not given are the preset's."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--preset", default="small")
    first.add_argument("--data", default="")
    try:
        known, _ = first.parse_known_args(list(args))
        begin = preset(known.preset, known.data)
    except (argparse.ArgumentError, KeyError):
        begin, known = preset("small"), None  # tyro says what is wrong
    name: Any = "small" if known is None else known.preset
    options = {field.name: getattr(begin, field.name) for field in fields(Table1)}
    default = Table1Command(**options, **HOW.get(name, {}), preset=name)
    asked: Table1Command = read(Table1Command, default, "pathsum study table1", args)
    others = asked.depths and asked.depths != begin.depths and asked.width == begin.width
    return replace(asked, width=begin.at_depths(asked.depths).width) if others and len(asked.width) > 1 else asked


def read(command: type[Any], default: Any, prog: str, args: Sequence[str]) -> Any:
    """Read options that have their defaults from an instance."""
    import inspect

    import tyro

    return tyro.cli(
        command,
        prog=prog,
        description=inspect.getdoc(command),
        default=default,
        args=list(args),
        config=(tyro.conf.FlagCreatePairsOff,),
    )


STUDIES: dict[str, tuple[Callable[[Sequence[str]], Runnable], str]] = {
    "table1": (parse_table1, "does λ = 1/√n replace batch normalization at depth 10, 100, 1000?"),
    "growth": (parse_growth, "is a net that was grown as good as a deep one from scratch, at equal FLOPs?"),
}


class StudyCommand:
    """`pathsum study`: the first word says which, the others are its options."""

    @staticmethod
    def parse(args: Sequence[str]) -> Runnable:
        """The study asked for, with its options. Raises PathsumError for one that there is not."""
        import difflib

        if not args or args[0] in ("-h", "--help", "help"):
            return ListCommand()
        if args[0] in STUDIES:
            return STUDIES[args[0]][0](args[1:])
        near = difflib.get_close_matches(args[0], STUDIES, n=1)
        hint = f"did you mean '{near[0]}'?" if near else "'pathsum study' lists them"
        raise PathsumError(f"'{args[0]}' is not a study, which are {', '.join(STUDIES)}; {hint}")
