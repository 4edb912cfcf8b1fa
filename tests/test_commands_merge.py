"""`pathsum merge`: from a linearized checkpoint to files that other programs read, and what is refused."""

import pandas as pd
import pytest
import torch

import pathsum as ps
from pathsum.cli import main
from pathsum.data import load, normalize
from pathsum.linearize import Linearized, linearize
from pathsum.runs import load_model, save_model
from pathsum.train import TrainConfig

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A small network of pathsum, and a linearization of it, two of whose five units are whole and nonlinear."""
    root = tmp_path_factory.mktemp("merge")
    net = ps.ResidualMLP(depth=5, width=12, seed=0)
    save_model(root / "net", net)
    linearize(net, load("digits"), "layer", target_units=2, train=TrainConfig(lr=0.02, steps=30), out=root / "lin")
    return root


def merge(root, out, *more):
    words = ["merge", str(root / "net"), str(root / "lin"), "--data", "digits", "--out", str(out)]
    return main([*words, "--batches", "1", "2", "--test-limit", "100", *more])


def test_files_that_other_programs_read(folders, tmp_path, capsys):
    assert merge(folders, tmp_path / "out", "--decide", "always") == 0
    data = load("digits")
    net, _ = load_model(folders / "net")
    x = normalize(data.test.images[:7], data.mean, data.std)
    made = Linearized.load(folders / "lin", net, x)
    expected = made.net(x, alpha=made.alpha)
    module = torch.export.load(tmp_path / "out" / "merged.pt2").module()
    torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-5)
    report = pd.read_csv(tmp_path / "out" / "report.csv", index_col="net")
    assert report["nonlinear units"].tolist() == [5, 2, 2]
    assert report["path length"].tolist() == [2.5, 1, 1]
    assert report["accuracy"]["linearized"] == report["accuracy"]["merged"]
    layers = pd.read_csv(tmp_path / "out" / "layers.csv")
    assert layers["merged"].any()
    units = pd.read_csv(tmp_path / "out" / "units.csv")
    assert (units["nonlinear"] > 0).sum() == 2
    said = capsys.readouterr().out
    for text in ("What could be one layer", "path length", "accuracy", "merged.pt2"):
        assert text in said


def test_the_accuracy_before_is_that_of_the_network_given(folders, tmp_path):
    assert merge(folders, tmp_path / "out", "--decide", "never") == 0
    data = load("digits", test_limit=100)
    net, _ = load_model(folders / "net")
    x = normalize(data.test.images, data.mean, data.std)
    expected = (net(x).argmax(1) == data.test.labels).double().mean()
    report = pd.read_csv(tmp_path / "out" / "report.csv", index_col="net")
    assert report["accuracy"]["original"] == pytest.approx(float(expected))


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--decide", "flops", "--keep", "blocks.0.fc1"], "--compose and --keep go with --decide latency"),
        (["--keep", "a", "--compose", "a"], "both name a"),
        (["--samples", "0"], "--samples is 0"),
        (["--batches", "0"], "batches"),
        (["--keep", "nowhere"], "no layer that could be composed"),
    ],
)
def test_bad_options(folders, tmp_path, capsys, more, text):
    assert merge(folders, tmp_path / "out", *more) == 2
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_another_models_linearization(folders, tmp_path, capsys):
    save_model(tmp_path / "other", ps.ResidualMLP(depth=3, width=12, seed=0))
    assert main(["merge", str(tmp_path / "other"), str(folders / "lin"), "--data", "digits"]) == 2
    assert "another model" in capsys.readouterr().err
    assert main(["merge", str(tmp_path / "other"), str(tmp_path / "none"), "--data", "digits"]) == 2
    assert "linearized.json" in capsys.readouterr().err
