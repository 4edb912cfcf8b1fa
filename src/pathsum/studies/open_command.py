"""What the commands of the studies of open questions have in common: presets, resuming, report, exit code."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pathsum.errors import PathsumError

if TYPE_CHECKING:
    from pathsum.studies.answers import Findings

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class OpenOptions(ABC):
    """How such a study is run. A command adds what it studies, `train` and `findings`."""

    kind: ClassVar[type[Any]]  # the study's class

    preset: Any = "small"
    """Where the other options begin."""
    out: Path = Path("pathsum-study")
    """Folder for runs, page, tables and figure."""
    report_only: bool = False
    """Write the report of what is there, and train nothing."""
    check: bool = False
    """Exit with 1 where a check of the measurement fails; an answer is never a failure."""

    @property
    def study(self) -> Any:
        """The study alone."""
        from pathsum.studying import part

        return part(self, self.kind)

    @abstractmethod
    def train(self, study: Any, folder: Path, say: Say) -> None:
        """Do what is not done."""

    @abstractmethod
    def findings(self, study: Any, folder: Path) -> Findings | None:
        """What came out of what is done; None where nothing is."""

    def run(self) -> int:
        """Train and measure what is not finished, write the report, say what came out; returns the exit code."""
        from pathsum import page, progress
        from pathsum.storage import writing
        from pathsum.studies.answers import MARKER, write

        study = self.study
        study.validate()
        folder = self.out / "runs"
        if not {path.name for path in self.out.glob("*")} <= {"runs"}:
            page.check_free(self.out, marker=MARKER, overwrite=True)
        if not self.report_only:
            with progress.lines() as say:
                self.train(study, folder, say)
        found = self.findings(study, folder)
        if found is None:
            raise PathsumError(f"{folder} holds no results with these options; run it without --report-only")
        with writing(self.out):
            write(study, found, self.out)
        for check in found.checks:
            print(f"{check.verdict}: {check.claim} ({check.where})\n    {check.numbers}")
        for answer in found.answers:
            print(f"{answer.question} {answer.where}: {answer.answer}\n    {answer.numbers}")
        print(f"\nThe page: {self.out / 'report.html'}")
        return int(self.check and any(check.verdict == "fail" for check in found.checks))
