"""`pathsum study growth`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pathsum.errors import PathsumError
from pathsum.studies.growth import PRESETS, GrowthStudy, Preset


@dataclass(frozen=True, kw_only=True)
class GrowthCommand(GrowthStudy):
    """Is a tower that was trained shallow, grown and trained on as good as a deep one from scratch, at equal FLOPs?

    For each seed three towers spend the same FLOPs: one is deep from the start, one stays shallow, one is trained
    shallow, grown without changing what it computes (Appendix C of "On residual network depth"), and trained on with
    its momentum. Writes loss and accuracy against FLOPs, a table, and checks: outputs preserved, no spike of the loss
    after growth, final accuracy within a margin. After an interruption the same command continues.

    Presets: smoke (under a minute, digits), small (two cores, under ten minutes, digits), cifar10 (hours; needs
    --data). The other options begin as the preset has them.

    Examples:
      pathsum study growth --preset smoke
      pathsum study growth --deep 32 --scale 1/n --out studies/growth
      pathsum study growth --preset cifar10 --data cifar10:data/cifar10 --train-limit 10000 --width 16 --steps 2000
    """

    preset: Preset = "small"
    """Where the other options begin."""
    out: Path = Path("pathsum-growth")
    """Folder for runs, page, tables and figure."""
    report_only: bool = False
    """Write the report of what is there, and train nothing."""
    check: bool = False
    """Exit with 1 where a claim does not hold."""

    def run(self) -> int:
        """Train what is not finished, write the report, say what came out; returns the exit code."""
        from pathsum import page
        from pathsum.studies.growth import found_runs, plan, study_data, train_all
        from pathsum.studies.growth_page import MARKER, write
        from pathsum.studying import part

        study = part(self, GrowthStudy)
        study.validate()
        if not study.data:
            raise PathsumError("this preset needs CIFAR-10; give it as --data cifar10:PATH")
        if not {path.name for path in self.out.glob("*")} <= {"runs"}:
            page.check_free(self.out, marker=MARKER, overwrite=True)
        folder = self.out / "runs"
        if not self.report_only:
            train_all(study, folder)
        found = found_runs(study, folder)
        if not found:
            raise PathsumError(f"{folder} holds no runs of this study; run it without --report-only")
        verdicts = write(study, plan(study, study_data(study)), found, self.out)
        for check in verdicts:
            print(f"{check.verdict}: {check.claim}\n    {check.numbers}")
        print(f"\nThe page: {self.out / 'report.html'}")
        return int(self.check and any(check.verdict == "fail" for check in verdicts))


def parse_growth(args: Sequence[str]) -> GrowthCommand:
    """Read the options; those not given are the preset's."""
    from pathsum.studying import from_preset

    command: GrowthCommand = from_preset(GrowthCommand, PRESETS, "growth", args)
    return command
