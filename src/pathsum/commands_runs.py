"""`pathsum runs ls|show|rm|export`: the runs in a folder, whatever command made them."""

from __future__ import annotations

import difflib
import inspect
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from pathsum import entries
from pathsum.entries import Entry
from pathsum.errors import OutputError, PathsumError

Status = Literal["waiting", "running", "interrupted", "done", "diverged", "frozen", "failed", "damaged"]
DEFAULT = Path("runs")


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Which runs."""

    store: Path | None = None
    """Folder of runs: a --store or --out of an earlier command; by default the folder runs."""
    status: tuple[Status, ...] = ()
    """Only runs of this status, or of one of several."""
    where: tuple[str, ...] = ()
    """Only runs whose configuration has it so: model.depth=100, lr<0.1, norm!=batch. All must hold."""

    @property
    def root(self) -> Path:
        """The folder looked through."""
        return self.store or default_root()

    def choose(self) -> tuple[list[Entry], list[Entry]]:
        """All runs, and those asked for."""
        found = entries.gather(self.root)
        return found, entries.chosen(found, self.status, self.where)


def default_root() -> Path:
    """The folder runs; where there is none, an error that names the folders here that hold some."""
    if DEFAULT.is_dir():
        return DEFAULT
    here = [path for path in sorted(Path().iterdir()) if path.is_dir() and not path.name.startswith(".")]
    some = [str(path) for path in here if any(entries.folders(path, 2, set()))]
    hint = f"; {' and '.join(some[:3])} here hold{'s' if len(some) == 1 else ''} some" if some else ""
    raise PathsumError(
        f"no folder {DEFAULT} here; give --store FOLDER, the --store or --out of an earlier command{hint}"
    )


@dataclass(frozen=True, kw_only=True)
class ListCommand(Chosen):
    """List runs: what each is, its status, how far it is, its best test accuracy.

    Shows runs of sweeps (by the first digits of their key) and those of `pathsum train` and the demo (by their
    folder). A run that cannot be read is listed as damaged. "tries" counts attempts, "age" the time since the last
    sign of life; --where takes any column that `pathsum runs show` lists under Configuration.

    Examples:
      pathsum runs ls
      pathsum runs ls --store pathsum-table1 --status failed damaged
      pathsum runs ls --where model.depth=100 "lr<0.1" norm=none
      pathsum runs ls --json > runs.json
    """

    json: bool = False
    """Print JSON, complete, instead of a table."""

    def run(self) -> int:
        """Print the table."""
        from pathsum import runs_view

        found, asked = self.choose()
        if self.json:
            print_json([entry.to_json() for entry in asked])
            return 0
        console = runs_view.console()
        if asked:
            console.print(runs_view.table(asked, console.width), "", sep="\n")
        console.print(runs_view.summary(asked, len(found), self.root), soft_wrap=True, markup=False)
        for entry in found:
            if entry.status == entries.DAMAGED:
                console.print(f"damaged: {entry.name}: {entry.error}", soft_wrap=True, markup=False)
        return 0


@dataclass(frozen=True, kw_only=True)
class ShowCommand:
    """Show one run: configuration, versions and hardware, attempts, learning curve, last rows, its error, its files.

    Examples:
      pathsum runs show 3f2a91
      pathsum runs show depth50-batch-1-lr0.1 --store pathsum-demo
      pathsum runs show 3f2a91 --json
    """

    key: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="KEY")]
    """The beginning of its key or name, or its folder."""
    store: Path | None = None
    """Folder of runs: a --store or --out of an earlier command; by default the folder runs."""
    json: bool = False
    """Print JSON, with all rows, instead."""

    def run(self) -> int:
        """Print it."""
        from pathsum import runs_view

        entry = self.find()
        if self.json:
            attempts = [{**a.record, "end": a.end} for a in entry.attempts]
            print_json({**entry.to_json(), "attempts": attempts, "rows": list(entry.rows)})
        else:
            runs_view.show(entry)
        return 0

    def find(self) -> Entry:
        """The run meant."""
        folder = Path(self.key)
        if self.store is None and folder.is_dir() and entries.is_run(folder):
            return entries.read(folder, folder)
        root = self.store or default_root()
        return entries.find(entries.gather(root), self.key, root)


@dataclass(frozen=True, kw_only=True)
class RemoveCommand(Chosen):
    """Remove runs for good: those named, or those that --status and --where choose, and nothing else.

    Asks first on a terminal. Runs that a live process is training are refused, and then nothing is removed.

    Examples:
      pathsum runs rm 3f2a91 77b0c4
      pathsum runs rm --status failed --dry-run
      pathsum runs rm --where model.depth=1000 --store pathsum-table1 --yes
    """

    keys: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[KEY …]")] = ()
    """The beginnings of their keys or names."""
    yes: bool = False
    """Do not ask."""
    dry_run: bool = False
    """Say what would be removed, and remove nothing."""

    def run(self) -> int:
        """Remove them; returns 1 where the answer was no."""
        from pathsum import runs_view

        doomed = self.doomed()
        console = runs_view.console()
        if not doomed:
            console.print("no such runs: nothing to remove")
            return 0
        busy = [entry.name for entry in doomed if entry.status == "running"]
        if busy:
            raise OutputError(
                f"{some(busy)} {'is' if len(busy) == 1 else 'are'} being trained by a live process; stop it first, or "
                "leave them out; nothing was removed"
            )
        count = f"{len(doomed)} run{'s' if len(doomed) != 1 else ''}"
        if self.dry_run or not self.yes:
            console.print(runs_view.table(doomed, console.width), "", sep="\n")
        if self.dry_run:
            console.print(f"{count} would be removed from {self.root}", soft_wrap=True, markup=False)
            return 0
        if not self.yes and not confirmed(f"Remove {count} from {self.root} for good?"):
            console.print("nothing was removed")
            return 1
        for number, entry in enumerate(doomed):
            try:
                entries.remove(entry)
            except PathsumError as error:
                raise OutputError(f"{error} ({number} of {count} removed before)") from None
        console.print(f"{count} removed from {self.root}", soft_wrap=True, markup=False)
        return 0

    def doomed(self) -> list[Entry]:
        """The runs to remove."""
        if not self.keys and not self.status and not self.where:
            raise PathsumError("which runs? name them by their keys, or choose with --status or --where")
        found, chosen = self.choose()
        if not self.keys:
            return chosen
        named = {entries.find(found, word, self.root).folder for word in self.keys}
        return [entry for entry in chosen if entry.folder in named]


@dataclass(frozen=True, kw_only=True)
class ExportCommand(Chosen):
    """Write runs to a file for your own analysis, CSV or Parquet by its name.

    A line an evaluation, or with --runs a line a run; either with the complete configuration, versions, hardware and
    commit. The file appears whole or not at all.

    Examples:
      pathsum runs export runs.csv
      pathsum runs export depth100.parquet --runs --where model.depth=100
      pathsum runs export done.csv --runs --status done --store pathsum-table1 --overwrite
    """

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """Where to write, such as runs.csv or runs.parquet."""
    rows: bool = False
    """A line an evaluation (the default)."""
    runs: bool = False
    """A line a run."""
    overwrite: bool = False
    """Replace the file where it exists."""

    def run(self) -> int:
        """Write it."""
        from pathsum import runs_export

        if self.rows and self.runs:
            raise PathsumError("--rows and --runs: give one of them, not both")
        runs_export.check(self.file, overwrite=self.overwrite)
        _, asked = self.choose()
        damaged = [entry for entry in asked if entry.status == entries.DAMAGED]
        whole = [entry for entry in asked if entry.status != entries.DAMAGED]
        table = runs_export.frame(whole, rows=not self.runs)
        if table.empty:
            what = "runs" if self.runs else "rows"
            raise PathsumError(
                f"no {what} of {self.root} to export; 'pathsum runs ls --store {self.root}' shows what is there"
            )
        runs_export.write(table, self.file)
        print(f"{len(table):,} {'runs' if self.runs else f'rows of {len(whole)} runs'} written to {self.file}")
        if damaged:
            print(f"left out, damaged: {some([entry.name for entry in damaged])}", file=sys.stderr)
        return 0


def some(names: Sequence[str]) -> str:
    """The first few names.

    >>> some(["a", "b", "c", "d"])
    'a, b, c and 1 more'
    """
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def confirmed(question: str) -> bool:
    """Ask on the terminal. Raises `PathsumError` where there is none."""
    if not sys.stdin.isatty():
        raise PathsumError("there is no terminal to ask on: add --yes to remove them, or --dry-run to see them")
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def print_json(value: Any) -> None:
    """Print JSON; not-a-number becomes null."""
    from pathsum.storage import finite

    print(json.dumps(finite(value), indent=2, allow_nan=False, ensure_ascii=False))


COMMANDS: dict[str, tuple[type[Any], str]] = {
    "ls": (ListCommand, "list them: what, status, step, best test accuracy"),
    "show": (ShowCommand, "one with all there is to know about it"),
    "rm": (RemoveCommand, "remove some for good"),
    "export": (ExportCommand, "write rows or runs to a CSV or Parquet file"),
}


@dataclass(frozen=True)
class HelpCommand:
    """Say what can be done with runs."""

    def run(self) -> int:
        """Print it."""
        print("usage: pathsum runs ls|show|rm|export\n\nThe runs in a folder, whatever command made them.\n")
        for name, (_, summary) in COMMANDS.items():
            print(f"  pathsum runs {name:<6}  {summary}")
        print("\nOptions and examples: pathsum runs ls --help")
        return 0


class RunsCommand:
    """`pathsum runs`: the first word says what to do, the others are its options."""

    @staticmethod
    def parse(args: Sequence[str]) -> Any:
        """What was asked for, with its options. Raises PathsumError for what there is not."""
        if not args or args[0] in ("-h", "--help", "help"):
            return HelpCommand()
        if args[0] not in COMMANDS:
            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f"did you mean 'pathsum runs {near[0]}'?" if near else "'pathsum runs --help' says what each does"
            raise PathsumError(f"'{args[0]}' is nothing to do with runs; there are {', '.join(COMMANDS)}; {hint}")
        command, _ = COMMANDS[args[0]]
        return tyro.cli(
            command,
            prog=f"pathsum runs {args[0]}",
            description=inspect.getdoc(command),
            args=list(args[1:]),
            config=(tyro.conf.PositionalRequiredArgs, tyro.conf.FlagCreatePairsOff),
        )
