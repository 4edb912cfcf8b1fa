"""Interleaved timings, peak memory, and rows that say where they come from."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import torch

RESULTS = Path(__file__).parent / "results"


def interleaved(sides: dict[str, Callable[[], Any]], *, repeats: int = 7, warmup: int = 1) -> dict[str, float]:
    """Median seconds of each side; the sides take turns, so that a slow moment of the machine hits all of them."""
    for _ in range(warmup):
        for run in sides.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, run in sides.items():
            start = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    return {name: median(values) for name, values in seconds.items()}


def hardware() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
    return f"{os.cpu_count()}× {names[0] if names else platform.processor() or platform.machine()}"


def commit() -> str:
    """The checked-out commit, marked + where files differ from it."""
    where = Path(__file__).parent
    done = subprocess.run(["git", "describe", "--always", "--dirty=+"], cwd=where, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def rows(theme: str, case: str, seconds: dict[str, float], against: str, config: dict[str, Any]) -> list[dict]:
    """One row a side: seconds, and the ratio to the side named `against`."""
    return [
        {
            "theme": theme,
            "case": case,
            "side": side,
            "seconds": value,
            "ratio": value / seconds[against],
            "against": against,
            "config": json.dumps(config),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "hardware": hardware(),
            "commit": commit(),
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        for side, value in seconds.items()
    ]


def save(found: list[dict], theme: str, folder: Path = RESULTS) -> Path:
    """Write the rows of a theme as CSV, named theme–hardware–date."""
    device = torch.cuda.get_device_name(0).replace(" ", "-") if torch.cuda.is_available() else f"cpu{os.cpu_count()}"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{theme}-{device}-{datetime.now(UTC):%Y-%m-%d}.csv"
    pd.DataFrame(found).to_csv(path, index=False)
    return path
