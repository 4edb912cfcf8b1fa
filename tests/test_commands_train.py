"""`pathsum train`: combinations, table, files, and what it refuses before anything is written."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pandas as pd
import pytest

from pathsum import runs
from pathsum.commands_train import TrainCommand
from pathsum.errors import CheckpointError, DataError, OutputError, PathsumError
from tests.sweeps import wait_for

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def command(tmp_path) -> TrainCommand:
    return TrainCommand(out=tmp_path / "out", depth=30, width=4, steps=12, test_limit=50, init=("he",))


def test_healthy_and_diverged_runs_end_in_one_table(command, capsys):
    command = replace(command, scale=("1/sqrt(n)", "1"), lr=(0.01, 0.02), val_size=50)
    assert command.run() == 0
    results = pd.read_csv(command.out / "results.csv")
    assert list(results["status"]) == ["done", "done", "diverged", "diverged"]
    assert list(results["scale"]) == ["1/sqrt(n)", "1/sqrt(n)", "1", "1"]
    assert results["final_loss"].isna().tolist() == [False, False, True, True]
    printed = capsys.readouterr().out
    for word in ("1/sqrt(n)", "diverged", "final", "best", "val", "seconds"):
        assert word in printed
    assert {run.name for run in runs.find_runs(command.out)} == set(results["folder"])
    model, record = runs.load_model(command.out / "1-over-sqrt-n_norm-none_he_lr0.01")
    assert model.config["scale"] == "1/sqrt(n)"
    assert record["data"]["name"] == "digits"
    assert record["summary"]["status"] == "done"
    assert json.loads((command.out / "command.json").read_text())["depth"] == 30


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_an_interrupted_command_continues(command, number, capsys):
    command = replace(command, lr=(0.01, 0.02), steps=40, eval_every=2, workers=1)
    options = f"--out {command.out} --depth 30 --width 4 --steps 40 --eval-every 2 --test-limit 50 --init he"
    asked = [sys.executable, "-m", "pathsum.cli", "train", *options.split(), "--lr", "0.01", "0.02", "--workers", "1"]
    process = subprocess.Popen(asked, stdout=subprocess.PIPE, text=True)
    first = command.out / "1-over-sqrt-n_norm-none_he_lr0.01" / runs.ROWS
    try:
        wait_for(lambda: len(runs.read_rows(first)) > 1, 120)
        process.send_signal(number)
        out, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 128 + number
    assert "the same command continues" in out
    results = pd.read_csv(command.out / "results.csv")
    assert list(results["status"]) == ["interrupted", "waiting"]
    kept = runs.read_rows(first)
    assert 0 < results["steps"][0] == kept[-1]["step"] < 40
    assert command.run() == 0
    results = pd.read_csv(command.out / "results.csv")
    assert list(results["status"]) == ["done", "done"]
    assert runs.read_rows(first)[: len(kept)] == kept  # continued, not begun again
    capsys.readouterr()
    assert command.run() == 0  # nothing left to do: the recorded results again
    assert "lr0.01: " not in capsys.readouterr().out
    pd.testing.assert_frame_equal(pd.read_csv(command.out / "results.csv"), results)
    with pytest.raises(CheckpointError, match="another configuration"):
        replace(command, steps=13).run()


@pytest.mark.slow
def test_a_run_that_fails_leaves_the_others_and_is_tried_again(command):
    command = replace(command, lr=(0.01, 0.02), workers=1)
    bad = command.out / "1-over-sqrt-n_norm-none_he_lr0.02" / runs.ROWS
    bad.parent.mkdir(parents=True)
    bad.write_text("{\n")
    (command.out / runs.COMMAND).write_text("{}")
    with pytest.raises(PathsumError, match=r"1 of 2 runs failed, the first .*lr0.02: .*line 1: not JSON"):
        command.run()
    results = pd.read_csv(command.out / "results.csv")
    assert list(results["status"]) == ["done", "failed"]
    assert "not JSON" in results["reason"][1]
    bad.unlink()
    assert command.run() == 0
    assert list(pd.read_csv(command.out / "results.csv")["status"]) == ["done", "done"]


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"scale": ("sqrt(n)!",)}, PathsumError, "sqrt"),
        ({"scale": ("1/n", "1 / n")}, PathsumError, "asked for twice"),
        ({"lr": ()}, PathsumError, "need one value or more"),
        ({"lr": (-1.0,)}, PathsumError, "lr is -1.0"),
        ({"data": "nowhere/at/all"}, DataError, "nowhere"),
        ({"device": "abacus"}, DataError, "abacus"),
        ({"depth": -1}, PathsumError, "branches must be an integer"),
        ({"width": 0}, PathsumError, "width"),
        ({"val_size": 5000}, DataError, "val_size is 5000"),
        ({"batch_size": 5000}, DataError, "fewer than one batch"),
    ],
)
def test_bad_input_writes_nothing(command, options, error, text):
    with pytest.raises(error, match=text) as caught:
        replace(command, **options).run()
    assert "\n" not in str(caught.value)
    assert not command.out.exists()


def test_a_folder_that_holds_something_else_is_refused(command):
    command.out.mkdir()
    (command.out / "thesis.tex").write_text("mine")
    with pytest.raises(OutputError, match="is not empty and holds no run to resume"):
        command.run()
    assert os.listdir(command.out) == ["thesis.tex"]


@pytest.mark.slow
def test_without_resume_the_folder_must_be_empty(command):
    assert command.run() == 0
    with pytest.raises(OutputError, match="is not empty"):
        replace(command, resume=False).run()


@pytest.mark.data
@pytest.mark.slow
def test_depth_100_on_cifar10(shared, tmp_path):
    """λ=1/√n trains without norm where λ=1 diverges (paper, Table 1); 300 steps on 10,000 images."""
    command = TrainCommand(
        out=tmp_path / "out",
        data=str(shared / "data" / "cifar10"),
        train_limit=10_000,
        test_limit=1000,
        depth=100,
        width=16,
        steps=300,
        scale=("1/sqrt(n)", "1"),
        init=("he",),
        eval_every=150,
    )
    assert command.run() == 0
    results = pd.read_csv(command.out / "results.csv").set_index("scale")
    trained = results.loc["1/sqrt(n)"]
    assert trained["status"] == "done"
    assert trained["final_loss"] < 0.8 * trained["initial_loss"]
    assert results.loc["1", "status"] == "diverged"
