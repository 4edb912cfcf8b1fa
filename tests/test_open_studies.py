"""The studies of open questions: measures by hand, matched arms, answers either way, resuming, and what is refused."""

import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import pathsum as ps
from pathsum.cli import main
from pathsum.data import load
from pathsum.storage import read_json, write_json
from pathsum.studies import length_complexity, robustness, robustness_page, variable_depth, variable_depth_page
from pathsum.studies.image_complexity import compressed, difficulty, high_share, variation
from pathsum.studies.ranks import ranks, spearman
from pathsum.studies.starts import kept, plain, recall
from tests.sweeps import wait_for

pytestmark = pytest.mark.usefixtures("one_thread")
SIZE = "--depth 2 --width 4 --steps 12 --test-limit 60 --batch-size 32"
STUDIES = {
    "robustness": f"{SIZE} --linear-steps 10 --alpha-lr .2 --shares .5 --seeds 0 --attacked 20 --pgd-steps 2",
    "variable-depth": f"{SIZE} --alpha-lr .2 --shares .5 --omegas .1 --seeds 0",
    "length-vs-complexity": f"{SIZE} --samples 40 --resamples 100 --seeds 0 1",
}


def study(name: str, out: Path, *more: str) -> list[str]:
    return ["study", name, "--preset", "smoke", *STUDIES[name].split(), "--out", str(out), *more]


# ------------------------------------------------------------------------------------------- measures of an image


def test_measures_of_images_by_hand():
    wave = (torch.arange(8) % 2).double().expand(1, 1, 8, 8)  # half a cycle a pixel, along rows
    slow = torch.cos(2 * math.pi * torch.arange(8) / 8).double().expand(1, 1, 8, 8)  # an eighth
    both = 3 * wave + 4 * slow
    assert high_share(torch.cat([wave, slow, wave * 0 + 0.7])).tolist() == pytest.approx([1, 0, 0], abs=1e-12)
    power = 3**2 / 4, 4**2 / 2  # variances
    assert float(high_share(both)) == pytest.approx(power[0] / sum(power))
    assert float(variation(wave)) == pytest.approx(7 * 8 / 64)
    assert float(variation(wave.transpose(2, 3).contiguous())) == pytest.approx(7 * 8 / 64)
    noise = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8)
    ramp = torch.arange(16, dtype=torch.uint8).expand(1, 3, 16, 16)
    sizes = compressed(torch.cat([ramp, noise]))
    assert sizes[0] < 60 < 3 * 16 * 16 < sizes[1]


def test_difficulty_by_hand():
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    found = difficulty(logits, torch.tensor([1, 2]))
    p = np.exp([2, 1, 0]) / np.exp([2, 1, 0]).sum()
    assert found["loss"] == pytest.approx([-np.log(p[1]), np.log(3)])
    assert found["margin"] == pytest.approx([-1, 0])
    assert found["entropy"] == pytest.approx([-(p * np.log(p)).sum(), np.log(3)])


def test_rank_correlation_with_ties_is_pandas_own():
    generator = np.random.default_rng(0)
    a, b = generator.integers(0, 6, 50), generator.integers(0, 4, 50) + generator.normal(size=50).round()
    frame = pd.DataFrame({"a": a, "b": b}).rank()
    assert ranks(b) == pytest.approx(frame["b"].to_numpy())
    assert spearman(a, b) == pytest.approx(frame["a"].corr(frame["b"]))
    assert spearman(a, -(a**3)) == pytest.approx(-1)
    assert math.isnan(spearman(a, np.ones(50)))


# ------------------------------------------------------------------------------------------- answers either way


def attacked(tmp_path: Path, differ: float, *, apart: float = 0.0):
    """A robustness study of three seeds whose arms differ by so many points under attack."""
    asked = replace(robustness.PRESETS["smoke"], seeds=(0, 1, 2))
    for arm, seed, share in asked.nets():
        strong = [0.9 - 0.1 * (1 - share), 0.6 + 0.01 * seed, 0.3]
        if arm == "channel":
            strong = [strong[0], *(value + differ / 100 + 0.001 * seed for value in strong[1:])]
        result = {"napl": 3 * share + apart * (arm == "channel"), "relus": 1, "pgd": strong, "fgsm": strong}
        write_json(
            asked.place(tmp_path, arm, seed, share), {"key": plain(asked.what(arm, seed, share)), "result": result}
        )
    found = robustness_page.findings(asked, tmp_path)
    assert found is not None
    return found


@pytest.mark.parametrize(("differ", "said"), [(5, "by channel is"), (-5, "by layer is"), (-0.1, "undecided")])
def test_robustness_is_answered_either_way(tmp_path, differ, said):
    found = attacked(tmp_path, differ)
    assert {answer.answer[: len(said)] for answer in found.answers} == {said}
    assert len(found.answers) == 2 * 2 + 2
    assert [check.verdict for check in found.checks] == ["pass"] * 3
    matched, _ = found.tables["matched_accuracy"]
    assert matched["difference"].to_numpy() == pytest.approx(differ + 0.1)


def test_arms_that_are_not_matched_fail_the_check(tmp_path):
    assert [check.verdict for check in attacked(tmp_path, 0, apart=0.3).checks] == ["fail", "pass", "pass"]


@pytest.mark.parametrize(
    ("differ", "said"), [(0.05, "better"), (-0.05, "worse"), (0.0, "undecided: the interval holds 0")]
)
def test_variable_depth_is_answered_either_way(tmp_path, differ, said):
    asked = replace(variable_depth.PRESETS["smoke"], seeds=(0, 1, 2))
    for arm, seed, value in asked.nets():
        mine = 0.8 + (differ + 0.001 * (seed - 1) if arm == "channel" else 0)
        numbers = {"accuracy": mine, "loss": 1.0, "napl": 2, "spread": 1, "relus": 5, "units": 2, "blocks": 4}
        record = {"key": plain(asked.what(arm, seed, value)), "result": {**numbers, "status": "done"}}
        write_json(asked.place(tmp_path, arm, seed, value), record)
    found = variable_depth_page.findings(asked, tmp_path)
    assert found is not None
    assert [answer.answer for answer in found.answers] == [said] * 3
    assert [check.verdict for check in found.checks] == ["pass"] * 3


# ------------------------------------------------------------------------------------------- what is measured


def test_the_shallow_tower_has_the_matched_length():
    asked, data = variable_depth.PRESETS["small"], load("digits", train_limit=20, test_limit=20)
    whole = variable_depth.length_of(asked, data, asked.depth)
    assert whole == 1 + asked.depth / 2
    assert variable_depth.nearest_depth(asked, data, 0.5) == 3  # 1 + 3/2 = 0.5 · 5
    net = variable_depth.tower_knobs(asked.tower(data, 0), data)
    alpha = [1.0, torch.tensor([0.0] + [1.0] * 15), *[0.0] * 7]
    found = variable_depth.measured(net, alpha, data, "done", 8)
    assert found["napl"] == pytest.approx(ps.average_path_length(net, alpha=alpha))
    assert found["units"] == 7 + 1 / 16
    assert found["relus"] == 7 * 16 * 64 + 64
    assert found["spread"] == pytest.approx(ps.path_lengths(net, alpha=alpha).std)


def test_results_are_kept_for_their_key(tmp_path):
    path, made = tmp_path / "a" / "x.json", []

    def make():
        made.append(1)
        return {"value": 2.5}

    for _ in range(2):
        assert kept(path, {"steps": 3, "shares": (1, 2)}, make) == {"value": 2.5}
    assert len(made) == 1
    assert recall(path, {"steps": 4}) is None
    kept(path, {"steps": 4}, make)
    assert len(made) == 2


# ------------------------------------------------------------------------------------------- from end to end


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_from_end_to_end_and_again(tmp_path, capsys, name):
    out = tmp_path / "study"
    assert main(study(name, out)) == 0
    answers = out / "answers.csv"
    first = answers.read_bytes()
    assert first.count(b"\n") > 1
    names = {path.name for path in out.iterdir()}
    assert {"report.html", "report.md", "study.json", "checks.csv", "answers.csv", "figures", "runs"} <= names
    assert (out / "figures" / f"{name}.png").stat().st_size > 10_000
    assert read_json(out / "study.json")["study"] == name
    kept_files = {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*.json*")}
    one = next(path for path in kept_files if path.parent.name == "runs" and not path.name.startswith("attack-start"))
    before = one.read_text()
    one.unlink()  # a study that was stopped while it measured
    assert main(study(name, out)) == 0
    assert answers.read_bytes() == first
    assert one.read_text() == before
    assert all(path.stat().st_mtime_ns == time for path, time in kept_files.items() if path != one)
    assert main(study(name, out, "--report-only")) == 0
    assert main(study(name, out, "--report-only", "--steps", "13")) == 2
    assert "holds no results with these options" in capsys.readouterr().err


def test_a_model_of_the_user(tmp_path, capsys):
    run = tmp_path / "run"
    net = ps.ResidualTower(2, 4, in_channels=1, encoder="conv3x3", seed=0)
    data = load("digits", train_limit=100, test_limit=60)
    ps.fit(net, data, ps.TrainConfig(lr=0.05, steps=5, batch_size=20, augment=False), out=run)
    out = tmp_path / "study"
    assert main(study("length-vs-complexity", out, "--model", str(run), "--seeds", "0")) == 0
    assert not list((out / "runs").glob("start-*"))
    found = read_json(out / "runs" / "images-0.json")["result"]
    x = ps.data.normalize(data.test.subset(40).images, data.mean, data.std)
    per_image = ps.unit_spectrum(net.eval(), x).per_sample()["mean_length"]
    assert found["columns"]["units"] == pytest.approx(per_image.tolist(), rel=1e-4)
    assert len(found["columns"]["units"]) == 40


def test_what_is_no_study(tmp_path, capsys):
    for name, options, text in (
        ("robustness", ["--shares", "1.5"], "expected shares of the start's path length"),
        ("robustness", ["--epsilons", "8"], "expected pixel units above 0, up to 1"),
        ("robustness", ["--mean", "0.5"], "--weights, --mean and --std go with --model"),
        ("variable-depth", ["--omegas", "0"], "expected strengths above 0"),
        ("variable-depth", ["--seeds", "1", "1"], "--seeds: expected one or more, all different"),
        ("length-vs-complexity", ["--samples", "3"], "--samples must be 10 or more"),
        ("length-vs-complexity", ["--model", "x"], "a network of yours is one network"),
    ):
        assert main([*study(name, tmp_path / "no"), *options]) == 2
        assert text in capsys.readouterr().err
    for name in STUDIES:
        assert main(["study", name, "--preset", "cifar10"]) == 2
        assert "this preset needs CIFAR-10" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
    assert length_complexity.PRESETS["small"].data == "digits"


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_killed_and_continued(tmp_path, name):
    """SIGKILL in the midst; the same command ends in the same results as one that nothing disturbed."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    results = []
    for kill in (True, False):
        out = tmp_path / str(kill)
        words = [sys.executable, "-m", "pathsum.cli", *study(name, out)]
        if kill:
            process = subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            wait_for(lambda out=out: list((out / "runs").glob("*/rows.jsonl")), 300)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            assert process.returncode == -signal.SIGKILL
        subprocess.run(words, env=env, check=True, stdout=subprocess.DEVNULL, timeout=600)
        results.append({path.name: read_json(path)["result"] for path in (out / "runs").glob("*.json")})
    assert results[0] == results[1]
    assert results[0]
