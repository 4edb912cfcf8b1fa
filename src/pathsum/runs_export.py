"""Runs as a table in a file, for whatever one analyzes them with: CSV or Parquet, whole or not at all."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pathsum.entries import Entry
from pathsum.errors import OutputError, PathsumError
from pathsum.storage import write_atomic, writing

if TYPE_CHECKING:
    import pandas as pd

SUFFIXES = (".csv", ".parquet")


def check(path: Path, *, overwrite: bool) -> None:
    """Refuse a file that cannot be written so, before anything is read."""
    if path.suffix not in SUFFIXES:
        raise OutputError(f"cannot export to {path}: its name must end in {' or '.join(SUFFIXES)}")
    if path.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise PathsumError("Parquet needs pyarrow; run: pip install 'pathsum[train]', or export to a .csv")
    if path.is_dir():
        raise OutputError(f"cannot export to {path}: it is a folder; give a file's name")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists; add --overwrite to replace it, or give another name")


def frame(entries: Sequence[Entry], *, rows: bool) -> pd.DataFrame:
    """A line an evaluation or a line a run, each with the run's configuration, versions, hardware and commit."""
    import pandas as pd

    lines: list[dict[str, Any]] = []
    for entry in entries:
        about = entry.to_json()
        if not rows:
            lines.append(about)
            continue
        own = {name: about.pop(name) for name in ("run", "key", "status")}
        for row in entry.rows:
            # A row's step and seconds are its own; what the run came to in the end stays in the other export.
            rest = {name: value for name, value in about.items() if name not in RESULTS}
            lines.append({**own, **row, **rest})
    names = dict.fromkeys(name for line in lines for name in line)
    return pd.DataFrame({name: column([line.get(name) for line in lines]) for name in names})


RESULTS = (
    "step", "seconds", "best_test", "best_val", "test_at_best_val", "initial_loss", "final_loss", "attempts", "error",
    "reason",
)  # fmt: skip


def write(table: pd.DataFrame, path: Path) -> None:
    """Write a table; what the file held before stays until the new one is complete. Raises `OutputError`."""
    buffer = io.BytesIO()
    if path.suffix == ".csv":
        table.to_csv(buffer, index=False)
    else:
        table.to_parquet(buffer, index=False)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, buffer.getvalue())


def column(values: Sequence[Any]) -> pd.Series[Any]:
    """Values as a column of one type, gaps included; of several types as text.

    >>> column([1, None]).tolist(), column([1, 0.5]).dtype, column(["a", 1]).tolist(), column([True, None]).dtype
    ([1, <NA>], Float64Dtype(), ['a', '1'], BooleanDtype)
    """
    import pandas as pd

    kinds = {type(value) for value in values if value is not None}
    if not kinds:
        return pd.Series(values, dtype=object)
    if kinds == {bool}:
        return pd.Series(values, dtype="boolean")
    if kinds == {int} and all(abs(value) < 2**63 for value in values if value is not None):
        return pd.Series(values, dtype="Int64")
    if float in kinds and kinds <= {int, float}:
        return pd.Series(values, dtype="Float64")
    return pd.Series([None if value is None else str(value) for value in values], dtype="string")
