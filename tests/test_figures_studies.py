"""`pathsum study figure1` and `figure2`: points, checks and figures as pure functions of made-up runs; the commands."""

import json
import math
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from scipy import stats

from pathsum import runs
from pathsum.commands_study import StudyCommand
from pathsum.errors import PathsumError
from pathsum.runs import Run
from pathsum.store import RunConfig, Store
from pathsum.studies import capacity_plots
from pathsum.studies.capacity import FAILED, PRESETS, TRAINED, Capacity, preset
from pathsum.studies.capacity_checks import checks, last_fall
from pathsum.studies.capacity_page import PAPER, build, write
from pathsum.studies.capacity_results import best_row, curves, estimate, grid, points, share
from pathsum.studies.intervals import student
from pathsum.studies.ranks import spearman
from pathsum.studies.study import Evidence
from pathsum.studies.tables import markdown

STUDY = Capacity(data="cifar10:there", width=8, seeds=(0, 1, 2), steps=120, eval_every=10, val_size=50)
STEPS = range(0, 121, 10)
WIGGLE = (-0.01, 0.0, 0.01)  # relative, by seed


def as_in_the_paper(lam: float, step: int) -> dict[str, float]:
    """The story of Section 4.2: the larger λ, the lower the loss; complexity first rises with λ, then falls with it."""
    late = step / 120
    loss = 1.3 if lam == 0 else (1.2 - 4.7 * lam) ** 2 * 0.8 + 0.03
    rising, falling = 1 + 20 * lam, 60 * math.exp(-8 * lam) if lam else 5
    return {
        "loss": 2.3 + (loss - 2.3) * min(1.0, 2 * late),
        "accuracy": 0.1 + (0.5 + lam) * late,
        "complexity": rising + (falling - rising) * late**2,
    }


def recorded(config: RunConfig, lam: float, story=as_in_the_paper, status: str = "done", change=None) -> Run:
    """A run as its folder is read back."""
    wiggle = 1 + WIGGLE[config.train.seed]
    rows, seen = [], []
    for step in STEPS if status in ("done", "interrupted") else STEPS[:2]:
        now = {name: value * wiggle for name, value in story(lam, step).items()}
        now = now if change is None else change(now, lam, step)
        rows.append(
            {
                "step": step, "train_loss": now["loss"] if step else None, "test_accuracy": now["accuracy"],
                "val_accuracy": now.get("val", now["accuracy"]), "lr": config.train.lr,
            }
        )  # fmt: skip
        seen.append({"step": step, "complexity": now["complexity"], "seconds": 0.5})
    facts = {"name": "cifar10", "fingerprint": "f", "train_size": 850, "test_size": 2500, "classes": list("0123456789")}
    asked = {"train": {}, "model": {}, "data": facts, "environment": {"torch": "2"}}
    summary = {
        "status": status, "reason": "", "steps": rows[-1]["step"], "best_test": rows[-1]["test_accuracy"],
        "best_val": rows[-1]["val_accuracy"], "test_at_best_val": rows[-1]["test_accuracy"], "initial_loss": 2.3,
        "final_loss": rows[-1]["train_loss"] if status == "done" else None, "seconds": 100.0,
    }  # fmt: skip
    return Run(Path(config.folder), asked, rows, {} if status == "interrupted" else summary, seen)


def evidence(study: Capacity = STUDY, *, failing=FAILED, status=None, **options) -> Evidence:
    """Runs of the paper's story, with changes."""
    found = []
    for config in study.runs():
        scale = config.model["scale"]
        ended = (status or {}).get(scale, "diverged" if scale in failing else "done")
        found.append(recorded(config, study.lams[scale], status=ended, **options))
    return study.gather(found)


def verdicts(some: Evidence, study: Capacity = STUDY) -> dict[str, str]:
    found = checks(study, some)
    return {" ".join(c.claim.split()[:3]): c.verdict for figure in found.values() for c in figure}


# ---- what is asked for


def test_the_papers_preset_is_appendix_a():
    study = preset("paper", "cifar10:there")
    asked = study.runs()
    assert len(asked) == len({run.key for run in asked}) == 50
    n = 16.0
    powers = [0, n**-2, n**-1.5, n**-1.2, n**-1, n**-0.8, n**-0.5, n**-0.4, n**-0.3, 1]
    assert list(study.lams.values()) == pytest.approx(powers)
    for run in asked:
        train, model = run.train, run.model
        assert (train.steps, train.batch_size, train.lr, train.momentum) == (100_000, 64, 0.3, 0.9)
        assert (train.optimizer, train.weight_decay, train.augment, train.val_size) == ("sgd", 0.0, True, 0)
        assert (model["depth"], model["width"], model["encoder"], model["norm"]) == (16, 256, "imagenet", None)
        assert (train.observe, train.observe_every) == (("complexity",), train.eval_every)
    assert {run.train.seed for run in asked} == {0, 1, 2, 3, 4}


def test_both_figures_ask_for_the_same_runs():
    for name in PRESETS:
        options = ["--preset", name, "--data", "cifar10:there"]
        one, two = (StudyCommand.parse([figure, *options]) for figure in ("figure1", "figure2"))
        assert [run.key for run in one.study.runs()] == [run.key for run in two.study.runs()]
        assert one.root == two.root == Path("pathsum-figures/runs")
        assert one.stack == two.stack


def test_options_begin_as_the_preset_has_them():
    command = StudyCommand.parse(
        ["figure1", "--preset", "small", "--data", "cifar10:there", "--seeds", "7", "--out", "a/b"]
    )
    assert command.study == replace(preset("small", "cifar10:there"), seeds=(7,))
    assert command.root == Path("a/runs")
    assert StudyCommand.parse(["figure2", "--store", "there"]).root == Path("there")
    on_digits = preset("small")
    assert (on_digits.data, on_digits.augment, on_digits.train_limit) == ("digits", False, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": ""}, "this preset needs CIFAR-10"),
        ({"scales": ()}, "--scales is empty"),
        ({"scales": ("0", "0")}, "--scales 0 0: a value is given twice"),
        ({"depth": 0}, "--depth 0 is not possible"),
        ({"scales": ("learned",)}, "--scales has a learned λ, which is no point on an axis of λ"),
    ],
)
def test_what_is_no_study(change, message):
    with pytest.raises(PathsumError, match=message):
        replace(STUDY, **change).runs()


# ---- numbers


def test_points_are_means_over_seeds_at_the_best_evaluation():
    found = {point.scale: point for point in points(STUDY, evidence())}
    assert list(found) == list(STUDY.lams)
    base = found["0"]
    assert (base.n, base.done, base.failed, base.state) == (3, 3, 0, "3 done")
    assert base.accuracy["test"].mean == pytest.approx(60)
    assert base.accuracy["test"].error == pytest.approx(60 * 0.01 / math.sqrt(3))
    assert base.complexity["test"].mean == pytest.approx(5)
    assert base.step["test"].mean == 120
    assert (found["1"].state, found["1"].done) == ("3 diverged", 0)
    assert math.isnan(found["1"].accuracy["test"].mean)


def test_the_maximum_by_test_and_by_validation():
    def change(now, lam, step):  # best on the test images at step 60, on those held out at step 30
        return {**now, "accuracy": 0.5 - abs(step - 60) / 200, "val": 0.5 - abs(step - 30) / 200}

    some = evidence(change=change)
    point = points(STUDY, some)[3]
    assert (point.step["test"].mean, point.step["validation"].mean) == (60, 30)
    assert point.accuracy["test"].mean == pytest.approx(50)
    assert point.accuracy["validation"].mean == pytest.approx(35)
    expected = as_in_the_paper(point.lam, 30)["complexity"]
    assert point.complexity["validation"].mean == pytest.approx(expected)
    assert evidence(replace(STUDY, val_size=0)).choices  # by test alone where nothing is held out


def test_the_first_of_equal_evaluations_counts():
    some = evidence(change=lambda now, lam, step: {**now, "accuracy": 0.4})
    assert best_row(some.runs[0], "test")["step"] == 0


def test_estimates_and_ranks_are_those_of_scipy():
    values = [0.3, 1.7, 0.9, 2.2]
    found = estimate(values)
    assert (found.mean, found.error) == (pytest.approx(1.275), pytest.approx(stats.sem(values)))
    assert math.isnan(estimate([]).mean)
    assert estimate([1.0, math.nan]).n == 1
    x, y = [1.0, 2.0, 2.0, 5.0, 7.0], [3.0, 1.0, 4.0, 1.0, 0.5]
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    for freedom in range(1, 12):
        assert student(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-9)


def test_observing_has_its_share_of_the_time():
    assert share(evidence()) == pytest.approx((21 * 13 + 9 * 2) * 0.5 / (30 * 100))
    assert math.isnan(share(STUDY.gather([])))


# ---- claims


def test_the_papers_story_holds():
    assert set(verdicts(evidence()).values()) == {"pass"}


def test_before_the_first_run_nothing_is_testable():
    nothing = STUDY.gather([])
    assert set(verdicts(nothing).values()) == {"not enough data"}
    assert len(points(STUDY, nothing)) == 10
    assert "partial: 0 of 30 runs" in markdown(grid(STUDY, nothing))


def test_a_base_model_that_fits_fails_the_first_claim():
    some = evidence(change=lambda now, lam, step: {**now, "loss": 0.5})
    assert verdicts(some)["λ = 0"] == "fail"


def test_a_loss_that_still_falls_is_no_plateau():
    some = evidence(change=lambda now, lam, step: {**now, "loss": 2.3 - step / 120})
    assert verdicts(some)["λ = 0"] == "not enough data"
    check = checks(STUDY, some)["figure1"][0]
    assert "so it is not at its plateau" in check.numbers


def test_the_fall_over_the_last_quarter():
    table = pd.DataFrame({"step": [10, 20, 30, 40] * 2, "train_loss": [9, 9, 9, 2.0] * 2, "seed": [0] * 4 + [1] * 4})
    assert math.isnan(last_fall(table))  # a single row in the quarter shows no trend
    long = pd.DataFrame({"step": range(1, 101), "train_loss": [2.0] * 84 + [1.0] * 16})
    assert last_fall(long) == pytest.approx(0.5)


def test_a_loss_that_rises_with_lambda_fails():
    some = evidence(change=lambda now, lam, step: {**now, "loss": now["loss"] if lam < 0.1 else 1.25 + lam})
    assert verdicts(some)["the training loss"] == "fail"
    assert "it goes back from λ = 1/n to λ = n^−0.8" in checks(STUDY, some)["figure1"][1].numbers


def test_a_large_lambda_that_trains_fails_the_claim_of_divergence():
    assert verdicts(evidence(failing=("n^-0.3", "1")))["every λ above"] == "fail"
    assert verdicts(evidence(failing=(*FAILED, "1/sqrt(n)")))["every λ above"] == "fail"
    few = replace(STUDY, scales=TRAINED)
    assert verdicts(evidence(few), few)["every λ above"] == "not enough data"


def test_trends_end_where_divergence_begins():
    some = evidence(status={"1/sqrt(n)": "frozen"})
    numbers = checks(STUDY, some)["figure2"][0].numbers
    assert "n^−0.8" in numbers
    assert "1/√n" not in numbers


def test_accuracy_that_falls_fails_and_noise_is_no_evidence():
    falling = evidence(change=lambda now, lam, step: {**now, "accuracy": 0.5 - lam})
    assert verdicts(falling)["the maximum test"] == "fail"
    flat = evidence(
        change=lambda now, lam, step: {
            **now,
            "accuracy": 0.5 * now["accuracy"] / as_in_the_paper(lam, step)["accuracy"],
        }
    )
    assert verdicts(flat)["the maximum test"] == "not enough data"


@pytest.mark.parametrize(("loss", "verdict"), [(0.05, "fail"), (0.5, "not enough data")])
def test_without_a_reversal(loss, verdict):
    """Only networks that fit their data could have shown it."""

    def change(now, lam, step):
        return {
            **now,
            "complexity": (1 + lam) * now["complexity"] / as_in_the_paper(lam, step)["complexity"],
            "loss": loss,
        }

    found = verdicts(evidence(change=change))
    assert found["the order of"] == verdict
    assert found["complexity at the"] == verdict


def test_complexity_that_only_falls_fails():
    def change(now, lam, step):
        return {**now, "complexity": (5 - 10 * lam) * now["complexity"] / as_in_the_paper(lam, step)["complexity"]}

    assert verdicts(evidence(change=change))["complexity at the"] == "fail"


def test_one_seed_is_not_enough_data():
    study = replace(STUDY, seeds=(0,))
    found = verdicts(evidence(study), study)
    assert found["the maximum test"] == found["the order of"] == "not enough data"


def test_runs_to_come_are_waited_for():
    some = evidence(status={"n^-2": "interrupted"})
    found = verdicts(some)
    assert found["the maximum test"] == "not enough data"
    assert "3 of 30 runs are to come" in checks(STUDY, some)["figure2"][0].numbers


# ---- figures and pages


def drawn(monkeypatch, plot):
    """The axes that a figure was drawn on."""
    from matplotlib.figure import Figure

    from pathsum import figures

    kept = []

    def draw(paint, folder, name, *, rows=1, columns=1, size=(7, 3)):
        kept.extend(Figure(figsize=size).subplots(rows, columns, squeeze=False).flat)
        paint(*kept)
        return "<svg/>"

    monkeypatch.setattr(figures, "draw", draw)
    plot()
    return kept


def test_figure1_shows_every_lambda_that_trains(monkeypatch):
    some = evidence()
    axes = drawn(monkeypatch, lambda: capacity_plots.figure1(points(STUDY, some), curves(STUDY, some), None))
    labels = [ax.get_ylabel() for ax in axes]
    assert labels == ["training loss (nats)", "test accuracy (%)", "geometric complexity"]
    for ax in axes:
        named = [line for line in ax.get_lines() if line.get_label().startswith("λ")]
        assert len(named) == len(TRAINED) == len(ax.collections)  # a band each
        assert ax.get_xlabel() == "step"
    complexity = axes[2].get_lines()[0]
    assert list(complexity.get_xdata()) == list(STEPS)
    assert complexity.get_ydata()[-1] == pytest.approx(5)
    assert sum(line.get_marker() == "x" for line in axes[0].get_lines()) == len(FAILED)
    assert "failed" in axes[0].get_title(loc="left") + axes[0].get_title()


def test_figure2_has_both_maxima_error_bars_and_marks(monkeypatch):
    some = evidence()
    axes = drawn(monkeypatch, lambda: capacity_plots.figure2(points(STUDY, some), some.choices, None))
    for ax in axes:
        assert len(ax.containers) == 2  # by test, by validation; each with error bars
        assert all(container.has_yerr for container in ax.containers)
        assert sum(line.get_marker() == "x" for line in ax.get_lines()) == len(FAILED)
        assert [text.get_text().splitlines()[0] for text in ax.get_xticklabels()][3] == "$n^{-1.2}$"
    assert axes[0].get_ylabel() == "maximum test accuracy (%)"
    assert axes[1].get_ylabel() == "geometric complexity at that step"


@pytest.mark.parametrize("name", ["figure1", "figure2"])
def test_the_outputs(tmp_path, name):
    some = evidence()
    found = write(name, STUDY, some, tmp_path)
    there = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    tables = ("points", "curves", "runs", "rows", "observations", "checks")
    figure = (f"{name}.{ending}" for ending in ("json", "md", "png", "svg"))
    assert there == {"report.html", *figure, *(f"{table}.csv" for table in tables)}
    kept = json.loads((tmp_path / f"{name}.json").read_text())
    assert {check["verdict"] for check in kept["checks"]} == {"held"}
    assert len(pd.read_csv(tmp_path / "observations.csv")) == 21 * 13 + 9 * 2
    assert len(found) == (5 if name == "figure1" else 4)
    html = (tmp_path / "report.html").read_text()
    assert PAPER[name].replace("'", "&#x27;") in html
    assert "cifar10:there" not in html  # where the data are on this machine
    ET.fromstring(html.removeprefix("<!DOCTYPE html>\n"))
    assert "| held |" in (tmp_path / f"{name}.md").read_text()


def test_the_page_is_there_from_the_first_run_on():
    half = evidence(status={"0": "interrupted", "n^-2": "interrupted"})
    for some in (STUDY.gather([]), half):
        found = checks(STUDY, some)
        html = build("figure2", STUDY, some, found["figure2"])
        assert "not testable at this size" in html


# ---- the commands

TINY = [
    "--preset", "smoke", "--depth", "2", "--width", "4", "--steps", "30", "--eval-every", "10", "--probe-size", "8",
    "--scales", "0", "1/n", "1/sqrt(n)", "--seeds", "0", "--lr", "0.05", "--test-limit", "60",
]  # fmt: skip


def run(*args: str) -> int:
    return StudyCommand.parse([*args]).run() or 0


def test_figure2_trains_nothing_after_figure1(tmp_path, capsys, monkeypatch):
    assert run("figure1", *TINY, "--engine", "inline", "--out", str(tmp_path / "figure1")) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "λ = 0 underfits" in text
    assert "the order of complexities reverses" in text
    store = Store(tmp_path / "runs")
    before = {path: path.stat().st_mtime_ns for path in store.root.rglob("*") if path.is_file()}
    rows = [runs.read_run(folder) for folder in store.folders()]
    assert len(rows) == 3
    for each in rows:
        assert [row["step"] for row in each.observations] == [row["step"] for row in each.rows] == [0, 10, 20, 30]
        assert all(row["complexity"] > 0 for row in each.observations)
    monkeypatch.setattr("pathsum.sweeping.work._fit", lambda *args: pytest.fail("it trained"))
    assert run("figure2", *TINY, "--engine", "inline", "--out", str(tmp_path / "figure2")) == 0
    assert "the maximum test accuracy rises with λ" in " ".join(capsys.readouterr().out.split())
    after = {path: path.stat().st_mtime_ns for path in store.root.rglob("*") if path.is_file()}
    assert after == before
    assert (tmp_path / "figure2" / "figures" / "figure2.png").stat().st_size > 10_000
    with pytest.raises(PathsumError, match="is not empty and no earlier result of this command"):
        run("figure2", *TINY, "--report-only", "--out", str(tmp_path / "figure1"), "--store", str(store.root))


@pytest.mark.slow
def test_a_killed_study_continues(tmp_path):
    """SIGKILL to the whole family in the midst of stacks; the same command ends in the same rows."""
    program = "import sys; from pathsum.cli import main; sys.exit(main(sys.argv[1:]))"
    options = [*TINY, "--steps", "160", "--eval-every", "10", "--stack", "3", "--workers", "2"]

    def command(name):
        return [sys.executable, "-c", program, "study", "figure1", *options, "--out", str(tmp_path / name / "figure1")]

    def rows(name):
        found = [runs.read_run(folder) for folder in Store(tmp_path / name / "runs").folders()]
        clean = lambda lines: [{k: v for k, v in line.items() if k != "seconds"} for line in lines]  # noqa: E731
        return {each.folder.name: (clean(each.rows), clean(each.observations)) for each in found}

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command("whole"), check=True, env=environment, capture_output=True)
    process = subprocess.Popen(
        command("broken"), env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        seen = sum(len(runs.read_rows(path)) for path in tmp_path.glob(f"broken/runs/*/{runs.OBSERVATIONS}"))
        if seen >= 12:
            break
        time.sleep(0.05)
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(2)  # its workers see the end of their input, and end too
    subprocess.run(command("broken"), check=True, env=environment, capture_output=True)
    assert rows("broken") == rows("whole")


@pytest.mark.slow
def test_the_smoke_presets(tmp_path, capsys):
    for figure in ("figure1", "figure2"):
        assert run(figure, "--preset", "smoke", "--out", str(tmp_path / figure)) == 0
        assert "not testable at this size" in capsys.readouterr().out
        assert (tmp_path / figure / "figures" / f"{figure}.png").is_file()
