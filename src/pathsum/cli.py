"""The `pathsum` command: finds the command's options, runs it, and turns errors into one line and a code.

Each command is a frozen dataclass whose docstrings are its help and whose `run()` does the work (and may return an
exit code). Its module is imported only when the command is asked for, so that `pathsum --help` is quick.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pathsum import __version__
from pathsum.errors import PathsumError


@dataclass(frozen=True)
class Command:
    """Where a command's dataclass is, what it does in a line, and what to do after Ctrl-C."""

    target: str  # "module:dataclass"
    summary: str
    interrupted: str = "nothing was written; run the same command again"

    def load(self) -> Any:
        """Import the dataclass."""
        module, name = self.target.split(":")
        return getattr(importlib.import_module(module), name)


RESUME = "run the same command again to continue where it stopped"
COMMANDS = {
    "demo": Command(
        "pathsum.demo:DemoCommand",
        "train towers on digits, explain the best deep one, end with a page (under 4 minutes)",
        RESUME,
    ),
    "train": Command("pathsum.commands_train:TrainCommand", "train residual towers on images", RESUME),
    "grow": Command("pathsum.commands_grow:GrowCommand", "make a trained tower deeper, with the same outputs"),
    "inspect": Command(
        "pathsum.inspect:InspectCommand",
        "explain a trained network by its paths: branches, orders, path lengths, a page",
    ),
    "linearize": Command(
        "pathsum.commands_linearize:LinearizeCommand",
        "make units of a trained network linear, by channel or by layer: what can it do without?",
        RESUME,
    ),
    "merge": Command(
        "pathsum.commands_merge:MergeCommand",
        "compose the layers of a linearized network into fewer: a plain one, for onnxruntime or torch",
    ),
    "study": Command(
        "pathsum.commands_study:StudyCommand", "reproduce a table or figure of the paper, from runs to a page", RESUME
    ),
    "runs": Command("pathsum.commands_runs:RunsCommand", "list, show, remove and export training runs"),
    "report": Command("pathsum.report:ReportCommand", "turn folders of training runs into one page"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 2 for an error a user can act on, 130 after Ctrl-C.

    Wrong options end in SystemExit(2), as is usual on a command line; bugs propagate with their traceback.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if args[0] in ("-V", "--version"):
        print(f"pathsum {__version__}")
        return 0
    if args[0] not in COMMANDS:
        return fail(unknown(args[0]))
    command = COMMANDS[args[0]]
    try:
        return parse(args[0], command.load(), args[1:]).run() or 0
    except PathsumError as error:
        return fail(str(error))
    except KeyboardInterrupt:
        print(f"interrupted: {command.interrupted}", file=sys.stderr)
        return 130


def parse(name: str, command: type[Any], args: Sequence[str]) -> Any:
    """Read the options of one command; its required fields are positional, the others `--options`."""
    import tyro

    if custom := getattr(command, "parse", None):  # its options depend on the first word
        return custom(args)
    return tyro.cli(
        command,
        prog=f"pathsum {name}",
        description=inspect.getdoc(command),
        args=args,
        config=(tyro.conf.PositionalRequiredArgs, tyro.conf.FlagCreatePairsOff),
    )


def fail(message: str) -> int:
    """Print an error on one line of stderr and return the exit code 2."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def unknown(name: str) -> str:
    """The error for a word that is no command, with the nearest one where there is one."""
    import difflib

    near = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean 'pathsum {near[0]}'?" if near else "'pathsum --help' shows what each does"
    return f"'{name}' is not a command of pathsum, which are {', '.join(COMMANDS)}; {hint}"


def overview() -> str:
    """The help of `pathsum` alone."""
    width = max(map(len, COMMANDS))
    lines = [f"  pathsum {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            f"pathsum {__version__}: a residual network is a sum over paths; see the sum, and turn its knobs.",
            "",
            *lines,
            "",
            "Start with: pathsum demo",
            "Options and examples of a command: pathsum COMMAND --help",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
