"""Path length against accuracy: what is matched and how, intervals by scipy, a run from end to end, kills."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

import pathsum as ps
from pathsum.cli import main
from pathsum.nets.plain import PlainNet, RepVGG
from pathsum.runs import save_model
from pathsum.studies.path_length import ARMS, PRESETS, PathLength, Point, Spot
from pathsum.studies.path_length_checks import checks
from pathsum.studies.path_length_results import at_half, differences, pairs
from pathsum.studies.path_length_runs import is_done, jobs, needs

OPTIONS = (
    "--preset smoke --train-limit 200 --test-limit 100 --widths 4 4 4 4 --shares 0.75 0.5 --steps 8 --start-epochs 1 "
    "--start-limit 200 --batch-size 50 --functional 3 --seeds 0 1"
).split()
COMMAND = ["study", "path-length-vs-accuracy", *OPTIONS]


# ---- the plain network


@pytest.mark.parametrize("widths", [(5,), (4, 4, 6, 6)])
def test_repvgg_folds_exactly(widths):
    net = RepVGG(widths, in_channels=2, num_classes=3, seed=0).double()
    x = torch.randn(7, 2, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        net(x)  # statistics other than 0 and 1
    folded = net.eval().fold(x)
    assert type(folded) is PlainNet
    torch.testing.assert_close(folded(x), net(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(folded.train()(x), net(x), rtol=0.01, atol=0.01)  # unbiased variance, eps
    assert ps.average_path_length(ps.knobs(folded.eval(), x)) == len(widths)


# ---- what is done


@pytest.mark.parametrize("successive", [True, False])
def test_each_job_comes_after_what_it_needs(successive):
    study = replace(PRESETS["smoke"], successive=successive, start_at=(0.5, 1.0))
    todo = jobs(study)
    assert len(set(todo)) == len(todo) == 2 + 2 * 2 * 4 * 2
    for place, job in enumerate(todo):
        assert set(needs(study, job)) <= set(todo[:place])
    last = Point(Spot("plain", 1.0, 1), "channel", 3)
    before = [last._replace(place=2)] if successive else []
    assert needs(study, last) == [("start", 1), *before, last._replace(arm="layer")]


def table(channel, layer, *, start=0.9, lengths=(8.0, 5.0, 2.0)) -> pd.DataFrame:
    """Points of two arms with these accuracies, by seed and point."""
    made = {"layer": layer, "channel": channel}
    rows = [
        {
            "start": "plain", "start_at": 1.0, "seed": seed, "arm": arm, "point": point,
            "share": lengths[point] / 10, "napl": lengths[point],
            "accuracy": made[arm][seed][point], "accuracy_start": start, "napl_start": 10.0,
        }
        for seed in range(len(layer)) for arm in ARMS for point in range(len(lengths))
    ]  # fmt: skip
    return pd.DataFrame(rows)


CHANNEL, LAYER = np.array([[0.9, 0.88, 0.8], [0.89, 0.87, 0.82], [0.9, 0.88, 0.79]]), np.full((3, 3), 0.8)


def test_paired_differences_are_those_of_scipy():
    found = differences(pairs(table(CHANNEL, LAYER - [[0.0], [0.01], [0.03]])))
    gaps = 100 * (CHANNEL - LAYER + [[0.0], [0.01], [0.03]])
    for line, values in zip(found.itertuples(), [*gaps.T, gaps.mean(1)], strict=True):
        ends = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert (line.difference, line.low, line.high) == pytest.approx((values.mean(), *ends), rel=1e-9, abs=1e-9)
    assert found["point"].tolist() == ["0", "1", "2", "pooled"]


def test_only_equal_lengths_are_pairs():
    points = table(CHANNEL, LAYER)
    points.loc[(points["arm"] == "channel") & (points["point"] == 1), "napl"] += 0.3  # 3 % of the original length
    assert set(pairs(points)["point"]) == {0, 2}


def verdicts(channel, layer, **changes) -> list[str]:
    study = PathLength(shares=(0.8, 0.5, 0.2), seeds=(0, 1, 2), **changes)
    return [check.verdict for check in checks(study, table(channel, layer))]


def test_verdicts_fall_either_way():
    assert verdicts(CHANNEL, LAYER)[:2] == ["pass", "pass"]
    assert verdicts(LAYER, CHANNEL)[:2] == ["fail", "fail"]
    assert verdicts(CHANNEL, CHANNEL + [[0.02], [-0.02], [0.0]])[1] == "not enough data"
    assert verdicts(CHANNEL, LAYER, loss_limit=1.0)[0] == "fail"
    falling = CHANNEL - [[0.0, 0.02, 0.05], [0.0, 0.02, 0.06], [0.01, 0.02, 0.06]]
    assert verdicts(CHANNEL, falling)[2] == "pass"


def test_half_is_the_longest_point_that_is_no_longer():
    points = table(CHANNEL, LAYER, lengths=(8.0, 5.2, 4.9))
    assert at_half(points, "channel")["napl"].tolist() == [4.9] * 3


# ---- from end to end


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small study, done in this process."""
    out = tmp_path_factory.mktemp("study") / "out"
    assert main([*COMMAND, "--workers", "1", "--out", str(out)]) == 0
    return out


def test_the_arms_are_matched(finished):
    points = pd.read_csv(finished / "points.csv")
    assert len(points) == 2 * 2 * 2
    assert points["napl_start"].eq(4).all()
    paired = points.pivot_table(index=["seed", "point"], columns="arm", values="napl")
    assert (paired["layer"] <= [3.0, 2.0, 3.0, 2.0]).all()
    np.testing.assert_allclose(paired["channel"], paired["layer"], atol=0.02 * 4)
    slopes = points.groupby("arm")["slopes"].unique()
    assert (slopes["layer"].tolist(), slopes["channel"].tolist()) == ([4], [16])
    net = PlainNet((4, 4, 4, 4), in_channels=1)
    weights = sum(p.numel() for p in net.parameters())
    np.testing.assert_allclose(points["slopes_share"], points["slopes"] / weights)
    assert (points["relus"] <= points["relus_start"]).all()
    assert points["rounds"].le(4).all()


def test_all_points_learn_from_the_network_they_started_from(finished):
    folders = sorted((finished / "runs").glob("plain-1-0-*/config.json"))
    assert len(folders) == 2 * 2 * 2  # with the parts in which they settle
    assert len({teacher(json.loads(file.read_text())) for file in folders}) == 1


def teacher(config) -> str:
    """The hash of a run's teacher, wherever it stands."""
    found = [config["teacher"]] if "teacher" in config else []
    return "".join(found + [teacher(value) for value in config.values() if isinstance(value, dict)])


def test_what_is_written(finished):
    for name in ("points.csv", "summary.csv", "pairs.csv", "differences.csv", "histograms.csv", "checks.csv",
                 "tables.md", "tables.tex", "report.html", "study.json"):  # fmt: skip
        assert (finished / name).stat().st_size > 0, name
    assert len(list((finished / "figures").glob("*.png"))) >= 2
    histograms = pd.read_csv(finished / "histograms.csv")
    column = histograms.columns[-1]
    assert (
        histograms.groupby([c for c in histograms.columns if c not in ("length", column)])[column]
        .sum()
        .round(9)
        .eq(1)
        .all()
    )
    assert os.fspath(finished) not in (finished / "report.html").read_text()


def test_again_nothing_is_done(finished, capsys):
    before = {path: path.stat().st_mtime_ns for path in (finished / "runs").rglob("point.json")}
    assert main([*COMMAND, "--workers", "1", "--out", str(finished)]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in (finished / "runs").rglob("point.json")}
    assert main([*COMMAND, "--report-only", "--out", str(finished)]) == 0
    assert "channel − layer" in capsys.readouterr().out


def test_other_options_need_another_folder(finished, capsys):
    assert main([*COMMAND, "--steps", "9", "--out", str(finished)]) == 2
    assert "--steps 8, not 9" in capsys.readouterr().err


def test_a_network_of_ones_own(tmp_path):
    net = PlainNet((4, 4), in_channels=1, seed=0).eval()
    folder = tmp_path / "mine"
    save_model(folder, net)
    out = tmp_path / "out"
    options = [*OPTIONS, "--seeds", "0", "--model", str(folder), "--shares", "0.5", "--out", str(out)]
    assert main(["study", "path-length-vs-accuracy", *options, "--workers", "1"]) == 0
    points = pd.read_csv(out / "points.csv")
    assert points["start"].unique().tolist() == ["mine"]
    assert points["napl"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shares", "0.5", "0.7"], "expected falling shares"),
        (["--shares", "1.5"], "between 0 and 1"),
        (["--seeds", "1", "1"], "all different"),
        (["--start-at", "0"], "above 0, up to 1"),
        (["--weights", "w.safetensors"], "go with --model"),
        (["--model", "x.py:f", "--start-at", "0.5"], "does not go with --model"),
        (["--preset", "small"], "needs CIFAR-10"),
        (["--workers", "0"], "expected 1 or more"),
    ],
)
def test_bad_options(options, message, tmp_path, capsys):
    assert main(["study", "path-length-vs-accuracy", "--preset", "smoke", *options, "--out", str(tmp_path / "x")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_nothing_to_report(tmp_path, capsys):
    assert main([*COMMAND, "--report-only", "--out", str(tmp_path / "none")]) == 2
    assert "holds no points" in capsys.readouterr().err


@pytest.mark.slow  # two runs of half a minute in processes
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_study_continues(number, finished, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "pathsum.cli", *COMMAND, "--workers", "2", "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 300
    while len(list(out.glob("runs/*/point.json"))) < 4 and time.monotonic() < until:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    process.send_signal(number)
    process.communicate(timeout=120)
    study = PathLength(**{k: tuple(v) if isinstance(v, list) else v for k, v in asked(out).items()})
    done = [job for job in jobs(study) if is_done(study, out / "runs", job)]
    assert 4 <= len(done) < len(jobs(study))
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    again, whole = (pd.read_csv(folder / "points.csv") for folder in (out, finished))
    pd.testing.assert_frame_equal(again, whole)


def asked(out) -> dict:
    """The options of a study as its folder has them."""
    return json.loads((out / "runs" / "asked.json").read_text()) | {"seeds": (0, 1)}
