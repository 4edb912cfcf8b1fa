"""Pieces of a study's page and files that all studies share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pathsum import page
from pathsum.studies.study import Check, Evidence, Verdict
from pathsum.studies.tables import Grid

if TYPE_CHECKING:
    import pandas as pd

Words = Mapping[Verdict, str]
VERDICTS: Words = {"pass": "pass", "fail": "fail", "not enough data": "not enough data"}
HELD: Words = {"pass": "held", "fail": "not held", "not enough data": "not testable at this size"}


def check_frame(verdicts: Sequence[Check], words: Words = VERDICTS) -> pd.DataFrame:
    """The checks as a table."""
    import pandas as pd

    return pd.DataFrame([{**asdict(check), "verdict": words[check.verdict]} for check in verdicts])


def lead(evidence: Evidence, verdicts: Sequence[Check], words: Words = VERDICTS) -> str:
    """How far the study is and what it says."""
    progress = evidence.progress
    return f"{progress[0].upper()}{progress[1:]}. The claims' checks: {lead_words(verdicts, words)}."


def lead_words(verdicts: Sequence[Check], words: Words = VERDICTS) -> str:
    """How many checks have each verdict."""
    counts = Counter(check.verdict for check in verdicts)
    return ", ".join(f"{counts[name]} {word}" for name, word in words.items() if counts[name])


def said(verdicts: Sequence[Check], words: Words = VERDICTS) -> list[str]:
    """For each claim its verdicts, then the numbers."""
    blocks = []
    for claim in dict.fromkeys(check.claim for check in verdicts):
        each = [check for check in verdicts if check.claim == claim]
        blocks.append(page.paragraph(f"{claim}: {', '.join(f'{words[c.verdict]} at {c.where}' for c in each)}."))
        blocks += [page.paragraph(f"{check.where}: {check.numbers}.", "soft") for check in each]
    return blocks


def frame(table: Grid) -> pd.DataFrame:
    """A grid for `page.table`."""
    import pandas as pd

    return pd.DataFrame([row for group in table.groups for row in group], columns=list(table.header))


def options(study: Any) -> dict[str, Any]:
    """The options, but for the place of the data on this machine, which tells a reader nothing."""
    source = "cifar10:PATH" if study.data.startswith("cifar10:") or Path(study.data).is_absolute() else study.data
    return {field.name: getattr(study, field.name) for field in fields(study)} | {"data": source}


def settings(study: Any) -> dict[str, Any]:
    """The options, lists as text."""
    values = options(study).items()
    return {
        k: ", ".join(v if isinstance(v, str) else f"{v:g}" for v in value) if isinstance(value, tuple) else value
        for k, value in values
    }
