"""The examples run as they stand, and the benchmarks run small."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.stem)
def test_example(path, capsys):
    runpy.run_path(str(path))
    out = capsys.readouterr().out
    assert "accuracy without block 3" in out
    assert "ResidualTower at half strength" in out


@pytest.mark.parametrize("theme", ["expansion", "spectrum"])
def test_benchmark_gives_rows_with_ratios(theme):
    from benchmarks.__main__ import THEMES

    rows = THEMES[theme](quick=True)
    assert {row["side"] for row in rows if row["ratio"] == 1} == {"forward"}
    assert all(row["seconds"] > 0 and row["commit"] and row["hardware"] for row in rows)
