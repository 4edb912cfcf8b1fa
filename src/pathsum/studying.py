"""What the commands of all studies have in common: options, sweep, report, plan."""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from pathsum.errors import PathsumError
from pathsum.studies.parts import VERDICTS, Words

if TYPE_CHECKING:
    from pathsum.store import Store
    from pathsum.studies.study import Check, Evidence
    from pathsum.studies.tables import Grid
    from pathsum.sweeping.config import RunConfig

Study = TypeVar("Study")


@dataclass(frozen=True, kw_only=True)
class StudyOptions(ABC):
    """How a study is run. A command adds what it studies: `study`, `table` and `write`."""

    marker: ClassVar[str] = "study.json"  # what tells a folder of this study from others
    words: ClassVar[Words] = VERDICTS

    preset: Any = "small"
    """Where the other options begin."""
    out: Path = Path("pathsum-study")
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

        study = self.study
        configs = study.runs()
        if study.data == "digits" and self.preset != "smoke":
            print("On the digits, whose numbers do not compare with the paper's; --data cifar10:PATH takes CIFAR-10.")
        store = Store(self.root)
        if self.dry_run:
            show_plan(configs, store, self)
            return 0
        if not {path.name for path in self.out.glob("*")} <= {"runs"}:
            page.check_free(self.out, marker=self.marker, overwrite=True)
        if not self.report_only:
            try:
                self.train(configs, store)
            except BaseException:
                if any(store.runs(configs)):
                    self.report(configs, store)
                raise
        evidence, verdicts = self.report(configs, store)
        self.show(evidence, verdicts)
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
    @abstractmethod
    def study(self) -> Any:
        """The study alone."""

    @abstractmethod
    def table(self, evidence: Evidence) -> Grid:
        """What is printed of it."""

    @abstractmethod
    def write(self, evidence: Evidence) -> list[Check]:
        """Write its report into `out`; returns the checks of its claims."""

    @property
    def root(self) -> Path:
        """The store's folder."""
        return self.store or self.out / "runs"

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

    def report(self, configs: Sequence[RunConfig], store: Store) -> tuple[Evidence, list[Check]]:
        """Write the report of what there is."""
        from pathsum.storage import writing
        from pathsum.studies.study import Evidence

        evidence = Evidence.gather(configs, store.runs(configs))
        with writing(self.out):
            return evidence, self.write(evidence)

    def show(self, evidence: Evidence, verdicts: Sequence[Check]) -> None:
        """Print the table and the checks."""
        from rich.console import Console

        from pathsum.explain import grid as printed
        from pathsum.studies.parts import frame

        console, table = Console(highlight=False), self.table(evidence)
        printed(console, f"\n{table.caption}", frame(table))
        for note in table.notes:
            console.print(note)
        console.print("\nThe paper's claims")
        for check in verdicts:
            console.print(f"  {self.words[check.verdict]} at {check.where}: {check.claim}")
            console.print(f"    {check.numbers}", soft_wrap=True)


def show_plan(configs: Sequence[RunConfig], store: Store, options: StudyOptions) -> None:
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
    train = left[0].train
    printed(console, f"\nTo be trained: {train.steps:,} steps of {train.batch_size} images each", shown)
    count = min(options.workers or min(cores(), MOST_WORKERS), len(left))
    console.print(
        f"About {words(total / count)} on {clock.device}: {count} at a time, {clock.stack} to a program; runs that "
        "diverge end early.",
        soft_wrap=True,
    )


def part(options: Any, study: type[Study]) -> Study:
    """The options of the study alone."""
    return study(**{field.name: getattr(options, field.name) for field in fields(study)})  # type: ignore[arg-type]


def from_preset(command: type[Any], presets: Mapping[Any, Any], prog: str, args: Sequence[str]) -> Any:
    """Read the options of a study's command; those not given are those of the preset (small, where none is)."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--preset", default="small")
    name = "small"
    try:
        known, _ = first.parse_known_args(list(args))
        name = known.preset if known.preset in presets else "small"  # tyro says what is wrong
    except argparse.ArgumentError:
        pass
    begin = {field.name: getattr(presets[name], field.name) for field in fields(presets[name])}
    return read(command, command(**begin, preset=name), f"pathsum study {prog}", args)


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
