"""`pathsum train`: combinations, table, files, and what it refuses before anything is written."""

import json
import os
import signal
from dataclasses import replace

import pandas as pd
import pytest

from pathsum import runs
from pathsum.commands_train import TrainCommand
from pathsum.errors import CheckpointError, DataError, OutputError, PathsumError
from pathsum.training.loop import Training

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


def test_an_interrupted_command_continues(command, monkeypatch, capsys):
    command = replace(command, lr=(0.01, 0.02))
    original = Training._update

    def update(self, x, y):
        if self.config.lr == 0.02 and self.step == 5:
            monkeypatch.setattr(Training, "_update", original)
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, x, y)

    monkeypatch.setattr(Training, "_update", update)
    assert command.run() == 128 + signal.SIGTERM
    assert list(pd.read_csv(command.out / "results.csv")["status"]) == ["done", "interrupted"]
    assert "the same command continues" in capsys.readouterr().out
    assert command.run() == 0
    results = pd.read_csv(command.out / "results.csv")
    assert list(results["status"]) == ["done", "done"]
    assert command.run() == 0  # nothing left to do: the recorded results again
    pd.testing.assert_frame_equal(pd.read_csv(command.out / "results.csv"), results)
    with pytest.raises(CheckpointError, match="another configuration"):
        replace(command, steps=13).run()


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
