"""Table 1 from scratch with a worker and a supervisor killed on the way: row for row the uninterrupted sweep.

`python -m tests.test_table1_killed OUT [option …]` runs a study of any size this way and keeps it.
"""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from pathsum.commands_study import StudyCommand
from pathsum.store import FINISHED, Store
from tests.sweeps import kill, recorded, running, wait_for

PATIENCE = 6 * 3600.0  # seconds
LOOK = 1.0  # seconds between two looks at the store, which take the sweep's time


def command(out: Path, options: list[str]) -> subprocess.Popen:
    words = ["-m", "pathsum.cli", "study", "table1", *options, "--out", str(out)]
    return subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def train_with_kills(out: Path, options: list[str]) -> list[str]:
    """The study, started again after each kill; what was killed, and how many runs were finished then."""
    store, configs, killed = Store(out / "runs"), StudyCommand.parse(["table1", *options]).runs(), []
    process = command(out, options)

    def finished() -> int:
        return sum(store.state(config) in FINISHED for config in configs)

    def begun() -> list[int]:
        assert process.poll() is None, process.communicate()[1]
        started = any(store.state(config) in FINISHED or store.step(config) for config in configs)
        return running(store) if started else []

    kill(wait_for(begun, PATIENCE, every=LOOK)[0])
    killed.append(f"a worker, {finished()} of {len(configs)} runs finished")
    wait_for(lambda: finished() >= len(configs) // 4 and begun(), PATIENCE, every=LOOK)
    kill(process.pid)
    process.communicate()
    killed.append(f"the supervisor, {finished()} of {len(configs)} runs finished")
    again = command(out, options)
    _, err = again.communicate(timeout=PATIENCE)
    assert again.returncode == 0, err
    return killed


def check_same_runs(out: Path, other: Path, options: list[str]) -> int:
    """Every run of the study `options` has the same rows in both folders; returns how many rows there are."""
    configs = StudyCommand.parse(["table1", *options]).runs()
    one, two = (recorded(Store(folder / "runs"), configs) for folder in (out, other))
    assert one == two
    assert len(one) == len(configs)
    return sum(map(len, one.values()))


SIZES = {
    "smoke": ["--preset", "smoke"],
    "small": ["--preset", "small", "--data", f"cifar10:{os.environ.get('PATHSUM_SHARED', '../shared')}/data/cifar10"],
}


@pytest.mark.slow  # smoke: a minute and a half of two cores; small: an hour
@pytest.mark.parametrize("size", SIZES)
def test_the_table_outlives_kills(size, tmp_path):
    if size == "small" and "PATHSUM_HOURS" not in os.environ:
        pytest.skip("takes an hour: set PATHSUM_HOURS=1")
    train_with_kills(tmp_path / "killed", SIZES[size])
    whole = command(tmp_path / "whole", SIZES[size])
    _, err = whole.communicate()
    assert whole.returncode == 0, err
    assert check_same_runs(tmp_path / "killed", tmp_path / "whole", SIZES[size]) > 0
    tables = [pd.read_csv(tmp_path / name / "table1.csv") for name in ("killed", "whole")]
    pd.testing.assert_frame_equal(*tables)


if __name__ == "__main__":
    print("killed:", *train_with_kills(Path(sys.argv[1]), sys.argv[2:]), sep="\n  ")
