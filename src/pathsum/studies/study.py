"""What all studies share: what became of the runs they ask for, which learning rate was best, verdicts, exports."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from pathsum import page, report
from pathsum.runs import Run
from pathsum.storage import finite
from pathsum.sweeping.config import RunConfig

if TYPE_CHECKING:
    import pandas as pd

DIGITS_VALIDATION = 98  # of the 898 training images of the digits: leaves 800
Study = TypeVar("Study")
Verdict = Literal["pass", "fail", "not enough data"]
Choice = Literal["test", "validation"]
FINISHED = ("done", "diverged", "frozen")
FACTS = ("name", "fingerprint", "train_size", "test_size")  # of the data, in the export
CHOSEN_BY: dict[Choice, tuple[str, str]] = {  # the score that is maximized, and the one that is then reported
    "test": ("best_test", "best_test"),
    "validation": ("best_val", "test_at_best_val"),
}


def on_data(study: Study, data: str, *, name: str) -> Study:
    """A preset on other data; `small` runs on the digits where none are given, which needs no download.

    On the digits all 898 images are used and none is augmented: eight pixels leave no room.
    """
    preset: Any = study
    data = data or preset.data or ("digits" if name == "small" else "")
    if data == "digits" and preset.data != "digits":
        held_out = min(preset.val_size, DIGITS_VALIDATION)
        preset = replace(preset, train_limit=None, test_limit=None, val_size=held_out, augment=False)
    return cast(Study, replace(preset, data=data))


@dataclass(frozen=True)
class Check:
    """A claim of the paper at one place, with the numbers that decide it."""

    claim: str
    where: str
    numbers: str
    verdict: Verdict


@dataclass(frozen=True)
class Evidence:
    """The runs a study asks for, and what each has recorded so far, in the same order; nothing else is looked at."""

    configs: tuple[RunConfig, ...]
    runs: tuple[Run, ...]

    @classmethod
    def gather(cls, configs: Iterable[RunConfig], found: Iterable[Run]) -> Evidence:
        """Match runs to configurations by the names of their folders; a run that is not there has no rows yet."""
        asked = tuple(configs)
        there = {run.folder.name: run for run in found}
        return cls(asked, tuple(there.get(config.folder) or unbegun(config) for config in asked))

    @property
    def num_finished(self) -> int:
        """How many runs have ended by themselves."""
        return sum(run.status in FINISHED for run in self.runs)

    @property
    def progress(self) -> str:
        """ "120 runs", or "partial: 37 of 120 runs"."""
        total = len(self.runs)
        return f"{total} runs" if self.num_finished == total else f"partial: {self.num_finished} of {total} runs"

    @cached_property
    def table(self) -> pd.DataFrame:
        """A line a run, as `pathsum.report.summarize` takes it; a run that is not finished is "interrupted"."""
        import pandas as pd

        table = pd.DataFrame([line(config, run) for config, run in zip(self.configs, self.runs, strict=True)])
        return table.astype(dict.fromkeys(report.NUMBERS, float))

    @cached_property
    def summary(self) -> pd.DataFrame:
        """A line for each depth, norm, λ and learning rate: counts, means and standard errors."""
        return report.summarize(self.table)

    @property
    def choices(self) -> tuple[Choice, ...]:
        """How the best learning rate can be chosen: by validation only where images were held out."""
        return ("test", "validation") if self.table["best_val"].notna().any() else ("test",)

    def best(self, choice: Choice) -> pd.DataFrame:
        """The line of the best learning rate of each depth, norm and λ."""
        return report.best_rates(self.summary, CHOSEN_BY[choice][0])

    @property
    def chance(self) -> float:
        """Below this an accuracy is chance: five standard errors over one guess in C, of N test images.

        1/C + 5·√((1/C)(1 − 1/C)/N). Five, since the accuracy is the best of several evaluations.
        """
        data: Mapping[str, Any] = next((run.config["data"] for run in self.runs if "data" in run.config), {})
        share = 1 / len(data.get("classes") or range(10))
        return share + 5 * math.sqrt(share * (1 - share) / max(data.get("test_size", 1000), 1))


def unbegun(config: RunConfig) -> Run:
    """A run of which there is nothing yet."""
    return Run(Path(config.folder), {}, [], {})


def line(config: RunConfig, run: Run) -> dict[str, Any]:
    """What was asked of a run, and what came out; accuracies are shares of 1."""
    return {
        "run": config.folder,
        "depth": config.model["depth"],
        "norm": config.model.get("norm") or "none",
        "scale": config.model["scale"],
        "width": config.model["width"],
        "lr": config.train.lr,
        "seed": config.train.seed,
        "status": run.status,
        **{name: run.summary.get(name) for name in report.NUMBERS},
    }


def run_lines(evidence: Evidence) -> pd.DataFrame:
    """A line a run with all that is known: results, complete configuration, versions, hardware, commit."""
    import pandas as pd

    lines = []
    for config, run in zip(evidence.configs, evidence.runs, strict=True):
        asked = {name: value for name, value in config.to_json().items() if name not in ("name", "data")}
        about = {"environment": run.config.get("environment", {})}
        facts = {f"data.{name}": run.config.get("data", {}).get(name) for name in FACTS}
        result = {"run": config.folder, "status": run.status, "reason": run.summary.get("reason", "")}
        scores = {name: run.summary.get(name) for name in report.NUMBERS}
        lines.append({**result, **scores, **dict(page.flat(asked)), **facts, **dict(page.flat(about))})
    return pd.DataFrame(lines)


def row_lines(evidence: Evidence) -> pd.DataFrame:
    """A line for every evaluation of every run."""
    import pandas as pd

    about = evidence.table.drop(columns=list(report.NUMBERS)).to_dict("records")
    return pd.DataFrame([{**each, **row} for each, run in zip(about, evidence.runs, strict=True) for row in run.rows])


def environments(runs: Sequence[Run]) -> dict[str, str]:
    """Where the runs were trained: every value there was of each of versions, hardware and commit."""
    seen: dict[str, dict[str, None]] = {}
    for run in runs:
        for name, value in page.flat(run.config.get("environment", {})):
            seen.setdefault(name, {})[str(value)] = None
    return {name: ", ".join(values) for name, values in seen.items()}


def record(evidence: Evidence, options: Mapping[str, Any], checks: Sequence[Check]) -> dict[str, Any]:
    """The study as JSON: what was asked, how far it is, the verdicts."""
    return dict(
        finite(
            {
                "options": page.jsonable(options),
                "progress": evidence.progress,
                "checks": [vars(check) for check in checks],
                "environment": environments(evidence.runs),
            }
        )
    )
