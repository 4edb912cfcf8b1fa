"""`pathsum study path-length-vs-accuracy`."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pathsum import page
from pathsum.errors import OutputError, PathsumError
from pathsum.storage import read_json, write_json, writing
from pathsum.studies.path_length import PRESETS, PathLength, Preset

ASKED = "asked.json"  # beside the runs: the options that made them
FREE = ("seeds", "loss_limit")  # other values of these go with the same runs


@dataclass(frozen=True, kw_only=True)
class PathLengthCommand(PathLength):
    """Are paths of many lengths worth more than a shallower network, at the same average path length?

    The experiment of "ResNets Are Deeper Than You Think" (arXiv 2506.14386): one trained network is linearized by
    layer, which makes it shallower, and by channel, which leaves paths of many lengths, to the same average path
    lengths (NAPL), several seeds, the same number of steps. The layers go first, since they reach only some lengths;
    the channels then go to exactly those. Writes curves of accuracy against path length, nonlinear scalars and rounds,
    paired differences with their 95 % intervals, and checks. After an interruption, even a kill, the same command
    continues.

    The network: your own (--model, --weights), or a plain one that is trained here, RepVGG with its branches folded.

    Presets: smoke (under a minute, digits), small (two cores, half an hour from a CIFAR ResNet-20; needs --data),
    paper (60 epochs a point, a GPU; --data cifar100:PATH or cifar10:PATH). The other options begin as the preset has
    them.

    Examples:
      pathsum study path-length-vs-accuracy --preset smoke
      pathsum study path-length-vs-accuracy --preset small --data cifar10:data/cifar10 --model nets.py:resnet20 \\
          --weights resnet20.safetensors --mean .485 .456 .406 --std .229 .224 .225
      pathsum study path-length-vs-accuracy --preset small --data cifar10:data/cifar10 --start-at 0.25 1
    """

    preset: Preset = "small"
    """Where the other options begin."""
    out: Path = Path("pathsum-path-length")
    """Folder for runs, page, tables and figure."""
    workers: int | None = None
    """Processes at a time; by default one per core, 8 at most, and one on a GPU."""
    device: str | None = None
    """cpu or cuda; by default cuda where there is one."""
    report_only: bool = False
    """Write the report of what there is, and compute nothing."""
    check: bool = False
    """Exit with 1 where a claim does not hold."""

    def run(self) -> int:
        """Do what is not done, write the report, say what came out; returns the exit code."""
        from pathsum.studies.path_length_page import MARKER, write
        from pathsum.studies.path_length_results import gather
        from pathsum.studying import part

        study = part(self, PathLength)
        study.validate()
        if not study.data:
            raise PathsumError(
                "this preset needs CIFAR-10 or CIFAR-100; give it as --data cifar10:PATH or cifar100:PATH"
            )
        if self.workers is not None and self.workers < 1:
            raise PathsumError(f"--workers is {self.workers}, expected 1 or more")
        if not {path.name for path in self.out.glob("*")} <= {"runs"}:
            page.check_free(self.out, marker=MARKER, overwrite=True)
        root = self.out / "runs"
        same_study(study, root, read_only=self.report_only)
        if not self.report_only:
            try:
                self.work(study, root)
            except BaseException:
                if len(gather(study, root)):
                    write(study, root, self.out)
                raise
        if not len(gather(study, root)):
            raise PathsumError(f"{root} holds no points of this study; run it without --report-only")
        verdicts = write(study, root, self.out)
        for check in verdicts:
            print(f"{check.verdict}: {check.claim} ({check.where})\n    {check.numbers}")
        print(f"\nThe page: {self.out / 'report.html'}")
        return int(self.check and any(check.verdict == "fail" for check in verdicts))

    def work(self, study: PathLength, root: Path) -> None:
        """Train the starts and linearize to all points."""
        from pathsum import progress
        from pathsum.studies import path_length_runs as pieces
        from pathsum.studies.crew import do_all
        from pathsum.sweep import MOST_WORKERS, cores, share
        from pathsum.sweeping.work import default_device

        device = self.device or default_device()
        workers = self.workers or (1 if device != "cpu" else min(cores(), MOST_WORKERS))
        todo = pieces.jobs(study)
        size = len(study.start_dataset().train) if study.model is None else 0
        done = [job for job in todo if pieces.is_done(study, root, job)]
        if len(done) == len(todo):
            return
        threads = share(workers) if device == "cpu" else None
        with progress.lines() as now:
            now(f"{len(todo) - len(done)} of {len(todo)} pieces to do, {workers} at a time on {device}")
            do_all(
                todo,
                {job: pieces.needs(study, job) for job in todo},
                functools.partial(do, study, root, device, threads, workers == 1),
                done=done,
                workers=workers,
                total=sum(pieces.length_of(study, job, size) for job in todo),
                taken=lambda: sum(pieces.steps_done(study, root, job, size) for job in todo),
                label="steps",
            )


def do(study: PathLength, root: Path, device: str, threads: int | None, shown: bool, job: Any) -> None:
    """One piece, in whichever process."""
    from pathsum.studies.path_length_runs import work
    from pathsum.training.contexts import threads as limited

    with limited(threads):
        work(study, root, job, device, threads, progress=None if shown else False)


def same_study(study: PathLength, root: Path, *, read_only: bool) -> None:
    """Refuse runs of a study with other options; else keep the options for the next time."""
    asked = page.jsonable({k: v for k, v in asdict(study).items() if k not in FREE})
    asked |= {name: about_file(str(asked[name])) for name in ("data", "model", "weights") if asked[name]}
    if (root / ASKED).is_file():
        before = read_json(root / ASKED)
        for name, value in asked.items():
            if before.get(name) != value:
                raise OutputError(
                    f"{root} holds runs with --{name.replace('_', '-')} {before.get(name)}, not {value}; give the same "
                    "options, or another --out"
                )
    elif not read_only:
        with writing(root):
            root.mkdir(parents=True, exist_ok=True)
        write_json(root / ASKED, asked)


def about_file(name: str) -> str:
    """An option that may name files, without where they are; of a file of weights a hash too."""
    kind, _, rest = name.partition(":")
    last = Path(rest or kind).name
    file = Path(name)
    known = f" {hashlib.sha256(file.read_bytes()).hexdigest()[:16]}" if file.is_file() else ""
    return (f"{kind}:{last}" if rest and len(kind) > 1 and "/" not in kind else last) + known


def parse_path_length(args: Sequence[str]) -> PathLengthCommand:
    """Read the options; those not given are the preset's."""
    from pathsum.studying import from_preset

    command: PathLengthCommand = from_preset(PathLengthCommand, PRESETS, "path-length-vs-accuracy", args)
    return command
