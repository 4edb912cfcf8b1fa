"""The benchmarks run, and the arithmetic floor of the GPU's is right."""

import json
import os

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from benchmarks import __main__ as command
from benchmarks import gpu
from benchmarks.timing import save
from torch.utils.flop_counter import FlopCounterMode

from pathsum.nets.tower import ResidualTower

CPU = torch.device("cpu")


@pytest.mark.slow
@pytest.mark.parametrize("theme", command.THEMES)
def test_every_theme_runs(theme, capsys):
    found = command.THEMES[theme](quick=True)
    assert found
    for row in found:
        assert {"theme", "case", "side", "seconds", "ratio", "against", "torch", "hardware", "commit"} <= row.keys()
        assert row["theme"] == theme
        if row["side"].startswith("counted"):  # bytes without the arithmetic, so no time
            assert row["tensor_bytes"] > 0
        else:
            assert row["seconds"] > 0 or "not installed" in row["side"]
        assert isinstance(json.loads(row["config"]), dict)
    command.show(found)
    assert found[0]["side"][:6] in capsys.readouterr().out


@pytest.mark.parametrize(("depth", "width"), [(0, 8), (1, 8), (3, 16)])
def test_the_floor_counts_what_torch_counts(depth, width):
    net, batch = ResidualTower(depth, width, seed=0), 5
    x = torch.randn(batch, 3, 32, 32)
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(net(x), torch.arange(batch)).backward()
    assert gpu.flops(depth, width, batch) == counter.get_total_flops()


def test_without_a_gpu_one_line_says_what_is_needed(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("benchmarks.gpu needs a CUDA GPU")
    assert err.count("\n") == 1
    assert gpu.main(["--device", "cpu"]) == 2
    assert "add --quick" in capsys.readouterr().err
    assert gpu.main(["--device", "cpu", "--quick", "--cases", "9x9"]) == 2
    assert capsys.readouterr().err == "no such case; there are 2x8\n"


@pytest.mark.slow
def test_the_checks_find_a_step_that_does_something_else(one_thread, monkeypatch):
    plan = gpu.Plan((), batch=4, check=(1, 4))
    assert all(right for right, _ in gpu.checks(CPU, plan))
    original = gpu.Captured.__call__

    def stale(self, x, y, probe):
        """A capture that forgot to take in its batch."""
        self.inputs = self.inputs or (x.clone(), y.clone())
        return original(self, *self.inputs, probe)

    monkeypatch.setattr(gpu.Captured, "__call__", stale)
    verdicts = gpu.checks(CPU, plan)
    assert not any(right for right, what in verdicts if "captured and eager" in what)


def test_the_verdict_is_of_the_stack_of_depth_10():
    row = {"side": "fit_stack of 10", "networks": 10, "case": "depth 10, width 256, bf16", "share_of_peak": 0.41}
    others = [
        {**row, "case": "depth 100, width 256, bf16", "share_of_peak": 0.9},
        {**row, "case": "depth 10, width 256, tf32"},
    ]
    assert "10 stacked towers of depth 10 reach 40% of the bf16 peak: 41.0%" in gpu.verdict([*others, row])
    assert "fall short of 40%" in gpu.verdict([{**row, "share_of_peak": 0.39}])
    assert "fall short of 40%" in gpu.verdict([{**row, "share_of_peak": float("nan")}])
    assert "nothing to say" in gpu.verdict(others)


@pytest.mark.slow
def test_the_gpu_script_runs_on_the_cpu(one_thread, capsys):
    before = set(os.listdir(gpu.RESULTS))
    assert gpu.main(["--quick", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert out.count("  ok    ") == 9
    assert "WRONG" not in out
    for side in ("fit ", "fit_stack of 1", "fit_stack of 2", "step of 2, captured, batch ready"):
        assert out.count(f"  {side}") == 2  # in bf16 and tf32
    assert set(os.listdir(gpu.RESULTS)) == before


def test_one_way_to_take_a_step_may_fail(one_thread, monkeypatch, tmp_path):
    def fail():
        raise RuntimeError("CUDA out of memory. Tried to allocate")

    monkeypatch.setattr(gpu, "sides", lambda *args: {"fit": lambda: 0.5, "fit_stack of 2": fail})
    found = gpu.measure(gpu.QUICK.cases[0], "bf16", 1e9, gpu.QUICK, CPU)
    assert found[0]["share_of_peak"] == pytest.approx(gpu.flops(2, 8, 4) / 1e9 / 0.5)
    assert found[1]["error"].startswith("CUDA out of memory")
    table = pd.read_csv(save(found, "gpu", tmp_path / "new"))
    assert table["flops"].tolist() == [gpu.flops(2, 8, 4), 2 * gpu.flops(2, 8, 4)]
    assert table["seconds"].isna().tolist() == [False, True]
    assert {"hardware", "commit", "torch", "floor_seconds", "peak_flops_per_second"} <= set(table)
