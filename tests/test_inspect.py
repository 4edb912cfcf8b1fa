"""`pathsum inspect`: the numbers against the library's own, the page, and what it refuses."""

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import pathsum as ps
from pathsum.cli import main
from pathsum.data import Dataset, Split, load, normalize
from pathsum.errors import CheckpointError, DataError, NoJoinsError, OutputError, PathsumError
from pathsum.inspect import inspect
from pathsum.resolve import resolve
from pathsum.runs import save_model
from pathsum.tasks import CLASSES

MODEL = """
import torch
from torch import nn
from pathsum import ResidualTower

def tower():
    return ResidualTower(depth=2, width=4, in_channels=1, encoder="conv3x3", scale="1/n", seed=0)

def deeper():
    return ResidualTower(depth=3, width=4, in_channels=1, encoder="conv3x3", scale="1/n", seed=0)

def plain():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

def few():
    return ResidualTower(depth=2, width=4, in_channels=1, encoder="conv3x3", num_classes=3, seed=0)

def colored():
    return ResidualTower(depth=2, width=4, encoder="conv3x3", seed=0)

def maps():
    class Maps(nn.Module):
        def forward(self, x):
            return x
    return Maps()

def counts():
    class Counts(ResidualTower):
        def forward(self, x):
            return super().forward(x).argmax(1)
    return Counts(depth=2, width=4, in_channels=1, encoder="conv3x3", seed=0)

def broken():
    raise RuntimeError("no such file")

def nothing():
    return 3
"""


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return load("digits", train_limit=0, test_limit=60)


@pytest.fixture
def tower() -> ps.ResidualTower:
    return ps.ResidualTower(depth=5, width=6, in_channels=1, encoder="conv3x3", seed=0).eval()


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty working directory with a model file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(MODEL)
    return tmp_path


def run_inspect(*options: str) -> int:
    return main(["inspect", *options, "--samples", "20", "--chunk-size", "20"])


# --- numbers ---------------------------------------------------------------------------------------------


def test_agrees_with_expand_and_spectrum_on_all_samples_at_once(tower, digits):
    result = inspect(tower, digits, order=3, chunk_size=25, dtype="float64")
    x = normalize(digits.test.images, digits.mean, digits.std, dtype=torch.float64)
    y = digits.test.labels
    e = ps.expand(tower, x, order=3)
    s = ps.spectrum(tower, x)
    # Sums over samples in another order: float64 rounding only.
    np.testing.assert_allclose(result.orders["remainder"], e.errors, rtol=1e-10)
    np.testing.assert_allclose(result.orders["accuracy"], e.accuracy(y))
    np.testing.assert_allclose(result.lengths["share"], s.share(), rtol=1e-10, atol=1e-30)
    np.testing.assert_allclose(result.lengths["accuracy"], s.accuracy(y))
    assert result.lengths["paths"].tolist() == [1, 5, 10, 10, 5, 1]
    assert result.mean_length == pytest.approx(s.mean_length(), rel=1e-12)
    assert result.verdict == e.verdict
    assert result.conservation < 1e-13
    assert result.accuracy == pytest.approx(float((tower(x).argmax(1) == y).double().mean()))
    np.testing.assert_allclose(result.sample_lengths, s.per_sample()["mean_length"])
    assert result.num_samples == 60
    assert result.branches["lam"].tolist() == pytest.approx([5**-0.5] * 5)


@pytest.mark.parametrize(
    ("max_length", "slots", "longer"), [(None, 6, False), (2, 4, True), (5, 6, False), (9, 6, False)]
)
def test_lengths_beyond_the_longest_share_one_slot(tower, digits, max_length, slots, longer):
    result = inspect(tower, digits, max_length=max_length)
    assert len(result.lengths) == slots
    assert result.longer is longer
    assert result.lengths["length"].iloc[-1] == (">2" if longer else "5")
    assert result.lengths["paths"].sum() == 2**5
    assert result.conservation < 1e-5


def words(accuracy: list[float], whole: float, *, longer: bool = False) -> str:
    """What is said of an accuracy by longest path."""
    from pathsum.explain import enough

    lengths = pd.DataFrame({"accuracy": accuracy})
    result = SimpleNamespace(branches=[None] * 4, lengths=lengths, value=whole, longer=longer, task=CLASSES)
    return enough(result)


def test_sentences_follow_the_data():
    assert words([0.1, 0.5, 0.895, 0.9, 0.9], 0.9).startswith(
        "Paths through at most 2 of the 4 blocks alone reach 89.5%"
    )
    assert "alone reach 97.0%, the whole network 90.0%" in words([0.1, 0.97, 0.92, 0.9, 0.9], 0.9)
    assert words([0.9, 0.9, 0.9, 0.9, 0.9], 0.9).startswith("The path that skips every block alone reaches 90.0%")
    assert words([0.9, 0.2, 0.9, 0.3, 0.9], 0.9).startswith("Its accuracy needs paths of every length")
    assert words([0.1, 0.2, 0.9], 0.9, longer=True).startswith("Its accuracy needs paths of every length")


def test_chunks_change_nothing(tower, digits):
    one, many = (inspect(tower, digits, chunk_size=size, dtype="float64") for size in (60, 7))
    for name in ("orders", "lengths"):
        pd.testing.assert_frame_equal(getattr(one, name), getattr(many, name), rtol=1e-9)


def test_labels_that_are_not_the_classes(tower, digits):
    """No accuracy then, and it says so; what is compared instead is the choice of the whole network."""
    many = tuple(str(k) for k in range(15))
    other = replace(digits, classes=many, test=Split(digits.test.images, digits.test.labels + 5))
    result = inspect(tower, other, order=2)
    assert result.accuracy is None
    assert result.scores == {"agreement": 1.0}
    assert "There is no accuracy: the network has 10 classes, and they are not the 15 of digits." in result.notes[-1]
    x = normalize(digits.test.images, digits.mean, digits.std)
    choices = ps.spectrum(tower, x).terms.cumsum(0).argmax(2)
    expected = (choices == tower(x).argmax(1)).double().mean(1)
    np.testing.assert_allclose(result.lengths["agreement"], expected)


def test_a_diverged_network_is_refused(tower, digits):
    with torch.no_grad():
        tower.decoder.linear.weight.fill_(torch.nan)
    with pytest.raises(DataError, match="output is not finite"):
        inspect(tower, digits)


# --- MODEL -----------------------------------------------------------------------------------------------


def test_a_file_may_import_its_neighbors(here):
    (here / "parts.py").write_text("DEPTH = 2\n")
    (here / "whole.py").write_text(
        "import parts\nfrom pathsum import ResidualMLP\ndef net():\n    return ResidualMLP(parts.DEPTH, seed=0)\n"
    )
    before = list(sys.path)
    assert len(resolve(f"{here}/whole.py:net").model.blocks) == 2
    assert sys.path == before
    sys.modules.pop("parts")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("nowhere", r"cannot tell what MODEL 'nowhere' is.*FILE\.py:FUNCTION.*pathsum wrote"),
        ("gone.py:net", r"no file gone\.py for MODEL gone\.py:net"),
        ("nets.py:twoer", r"nets\.py has no function 'twoer'; its functions are: tower, deeper"),
        ("nets.py:broken", r"broken\(\) in nets\.py raised RuntimeError: no such file"),
        ("nets.py:nothing", r"nothing\(\) in nets\.py returned int, expected a torch\.nn\.Module"),
        ("bad.py:net", r"bad\.py cannot be imported: SyntaxError"),
        ("gone.safetensors", r"gone\.json"),
    ],
)
def test_models_that_cannot_be_had(here, word, message):
    (here / "bad.py").write_text("def net(:\n")
    with pytest.raises(PathsumError, match=message):
        resolve(word)


def test_weights_must_fit(here):
    save_model(here / "saved", resolve("nets.py:tower").model, {})
    weights = here / "saved" / "model.safetensors"
    again = resolve("nets.py:tower", weights=weights)
    assert str(weights) in again.about
    with pytest.raises(CheckpointError, match="depth 2, expected depth 3"):
        resolve("nets.py:deeper", weights=weights)
    with pytest.raises(CheckpointError, match=r"unknown tensors.*give the checkpoint of this network"):
        resolve("nets.py:plain", weights=weights)
    with pytest.raises(
        CheckpointError, match=r"encoder\.conv\.weight has shape \(4, 1, 3, 3\), expected \(4, 3, 3, 3\)"
    ):
        resolve("nets.py:colored", weights=weights)
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        resolve("nets.py:tower", weights=weights)
    with pytest.raises(CheckpointError, match=r"no file .*gone\.safetensors"):
        resolve("nets.py:tower", weights=here / "gone.safetensors")
    with pytest.raises(CheckpointError, match=r"not a \.safetensors file"):
        resolve("nets.py:tower", weights=here / "weights.pth")
    with pytest.raises(PathsumError, match="--weights does not go with"):
        resolve("saved", weights=weights)


# --- the command -----------------------------------------------------------------------------------------


def test_writes_a_page_figures_and_tables(here, capsys):
    save_model(here / "runs" / "small", resolve("nets.py:tower").model, {"data": {"name": "digits"}})
    assert run_inspect("runs/small") == 0
    out = here / "pathsum-inspect" / "small"
    printed = capsys.readouterr().out
    for text in ("Residual branches", "Expansion in λ", "Path lengths: mean", "blocks.0.add", "report.html"):
        assert text in printed
    assert printed.count("classified correctly") == 1
    lengths = pd.read_csv(out / "tables" / "lengths.csv")
    assert lengths["paths"].tolist() == [1, 2, 1]
    assert lengths["share"].sum() == pytest.approx(1)
    assert set(pd.read_csv(out / "tables" / "orders.csv")) == {"order", "norm", "remainder", "accuracy"}
    assert len(pd.read_csv(out / "tables" / "branches.csv")) == 2
    figures = {path.name for path in (out / "figures").iterdir()}
    assert figures == {
        f"{n}.{e}" for n in ("accuracy-by-length", "path-lengths", "orders", "images") for e in ("png", "svg")
    }
    check_page(out / "report.html", num_figures=4)
    record = json.loads((out / "inspect.json").read_text())
    assert record["inspect"]["model"] == "runs/small"
    assert record["environment"]["torch"] == torch.__version__
    assert record["result"]["num_samples"] == 20
    assert [path.name for path in out.parent.iterdir()] == ["small"]  # nothing left behind


def check_page(path: Path, *, num_figures: int) -> None:
    """Well-formed, self-contained, themed, and every figure has its sentences."""
    text = path.read_text()
    root = ET.fromstring(text.partition("\n")[2])
    assert root.tag == "html"
    assert not re.findall(r"""(?:src|href)=["'](?!#)""", text)  # inside a figure, #fragments of itself
    assert not re.findall(r"url\((?!#)|@import|<script|<link", text)
    assert "prefers-color-scheme: dark" in text
    figures = root.findall(".//figure")
    assert len(figures) == num_figures
    for figure in figures:
        assert len(re.findall(r"[.)](?:\s|$)", "".join(figure.find("figcaption").itertext()))) >= 2
    ids = [e.get("id") for e in root.iter() if e.get("id", "").startswith("figure")]
    assert ids


def test_is_the_same_twice(here):
    for out in ("a", "b"):
        assert run_inspect("nets.py:tower", "--data", "digits", "--out", out) == 0
    for name in ("orders.svg", "images.png"):
        assert (here / "a" / "figures" / name).read_bytes() == (here / "b" / "figures" / name).read_bytes()


def test_overwrite_replaces_only_its_own(here, capsys):
    args = ("nets.py:tower", "--data", "digits", "--out", "out")
    assert run_inspect(*args) == 0
    assert run_inspect(*args) == 2
    assert "holds an earlier result; add --overwrite" in capsys.readouterr().err
    (here / "out" / "tables" / "old.csv").write_text("")
    assert run_inspect(*args, "--overwrite") == 0
    assert not (here / "out" / "tables" / "old.csv").exists()
    (here / "mine").mkdir()
    (here / "mine" / "notes.txt").write_text("precious")
    assert run_inspect(*args[:3], "--out", "mine", "--overwrite") == 2
    assert (here / "mine" / "notes.txt").read_text() == "precious"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nets.py:plain", "--data", "digits"], r"Sequential has no residual joins"),
        (["nets.py:colored", "--data", "digits"], r"cannot take digits's images of shape \(1, 8, 8\).*--data"),
        (["nets.py:maps", "--data", "digits"], r"Maps has no residual joins"),
        (["nets.py:counts", "--data", "digits"], r"returns torch\.int64 of shape \(2,\) for 2 samples.*--output"),
        (["nets.py:tower"], r"tower does not say what it was trained on.*--data"),
        (["nets.py:tower", "--data", "nowhere/x.parquet"], r"nowhere/x\.parquet"),
        (["nets.py:tower", "--data", "digits", "--mean", "1", "2"], r"--mean has 2 values, but digits has 1 channels"),
        (["nets.py:tower", "--data", "digits", "--order", "-1"], r"--order is -1, expected 0 or more"),
        (["nets.py:tower", "--data", "digits", "--out", "nets.py"], r"nets\.py is a file, expected a folder"),
        (["nets.py:tower", "--data", "digits", "--out", "nets.py/x"], r"cannot write"),
        (["nets.py:tower", "--data", "digits", "--out", "."], r"not empty"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(here, capsys, options, message):
    before = sorted(here.rglob("*"))
    assert run_inspect(*options) == 2
    err = capsys.readouterr().err
    assert re.fullmatch(rf"error: .*{message}.*\n", err), err
    assert [p for p in sorted(here.rglob("*")) if "__pycache__" not in str(p)] == before


def test_a_failure_while_writing_leaves_nothing(tower, digits, tmp_path, monkeypatch):
    from pathsum import explain, page

    result = inspect(tower, digits)
    monkeypatch.setattr(page, "settings", lambda values: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OutputError, match="No space left on device"):
        explain.publish(result, tmp_path / "out", settings={}, marker="inspect.json")
    assert list(tmp_path.iterdir()) == []


def test_train_mode_is_not_a_trap(here):
    """A function may return its model in train mode; inspect looks at it in eval mode."""
    (here / "bn.py").write_text(
        "from pathsum import ResidualTower\n"
        "def net():\n"
        "    return ResidualTower(2, 4, in_channels=1, encoder='conv3x3', norm='batch', scale='1', seed=0).train()\n"
    )
    assert run_inspect("bn.py:net", "--data", "digits") == 0


def test_no_joins_by_call(digits):
    with pytest.raises(NoJoinsError):
        inspect(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)), digits)


@pytest.mark.data
def test_a_model_nobody_here_trained(shared, tmp_path, capsys):
    """The whole command on a CIFAR ResNet from elsewhere, through a file, in another process."""
    source = Path(__file__).parent / "architectures" / "resnets.py"
    weights = shared / "models" / "cifar10-resnet" / "resnet20.safetensors"
    (tmp_path / "nets.py").write_text(
        "import importlib.util\n"
        f"spec = importlib.util.spec_from_file_location('architectures', {str(source)!r})\n"
        "module = importlib.util.module_from_spec(spec)\nspec.loader.exec_module(module)\n"
        "def resnet20():\n    return module.resnet20()\n"
    )
    command = [
        sys.executable, "-m", "pathsum.cli", "inspect", "nets.py:resnet20", "--weights", str(weights),
        "--data", f"cifar10:{shared / 'data' / 'cifar10'}", "--samples", "100", "--order", "3",
        "--mean", ".485", ".456", ".406", "--std", ".229", ".224", ".225",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "pathsum-inspect" / "resnet20" / "inspect.json").read_text())["result"]
    assert 0.85 <= record["accuracy"] <= 0.98  # 91.73 % on all 10,000
    assert record["conservation"] < 1e-5
    assert pd.read_csv(tmp_path / "pathsum-inspect" / "resnet20" / "tables" / "lengths.csv")["paths"].sum() == 2**9


def test_a_folder_named_by_its_learning_rate_keeps_its_whole_name(here):
    save_model(here / "tower-lr0.03", resolve("nets.py:tower").model, {})
    assert resolve("tower-lr0.03").name == "tower-lr0.03"
