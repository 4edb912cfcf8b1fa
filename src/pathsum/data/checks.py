"""What every reader checks, and how it says so."""

from __future__ import annotations

import importlib
from types import ModuleType

import numpy as np

from pathsum.errors import DataError, PathsumError


def need(module: str) -> ModuleType:
    """Import an optional package, or say how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise PathsumError(
            f"reading this data needs the package {package}, which is not installed: pip install 'pathsum[train]'"
        ) from error


def reason(error: BaseException) -> str:
    """The first words of an error of another library, on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


def check_labels(labels: np.ndarray, num_classes: int, where: object) -> np.ndarray:
    """Labels as int64, all within `0..num_classes-1`; the error names the first offender."""
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(
            f"labels in {where}: expected a column of integers 0..{num_classes - 1}, "
            f"got {labels.dtype} of shape {labels.shape}; check that this is the column of labels"
        )
    bad = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if bad.size:
        raise DataError(
            f"label {labels[bad[0]]} in {where}, row {bad[0]} ({bad.size} such of {labels.size}): "
            "expected "
            f"0..{num_classes - 1}; use data with these {num_classes} classes or correct the labels"
        )
    return labels.astype(np.int64)
