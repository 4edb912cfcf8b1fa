"""Run folders, models and checkpoints: whole or absent, and one clear line where they do not fit."""

import errno
import json
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from pathsum import runs, storage
from pathsum.errors import CheckpointError, OutputError
from pathsum.nets.mlp import ResidualMLP
from pathsum.nets.tower import ResidualTower


def tower(depth=3, **options):
    return ResidualTower(depth, 4, in_channels=1, encoder="conv3x3", seed=0, **options)


def one_line(caught) -> str:
    text = str(caught.value)
    assert "\n" not in text
    return text


# --- models ---


@pytest.mark.parametrize(
    "build",
    [
        lambda: tower(),
        lambda: tower(norm="batch", scale=1),
        lambda: tower(scale="learned:1/sqrt(n)"),
        lambda: tower(scale=[0.1, 0.2, 0.3]),
        lambda: ResidualMLP(3, 8, seed=0),
    ],
)
def test_a_model_is_rebuilt_from_its_files(tmp_path, build):
    model = build()
    x = torch.randn(5, 1, 8, 8)
    model(x)  # moves BatchNorm's buffers
    if getattr(model, "lam", None) is not None:
        model.lam.data.mul_(0.7)
    runs.save_model(tmp_path, model, {"data": {"name": "digits"}})
    loaded, record = runs.load_model(tmp_path)
    assert not loaded.training
    assert torch.equal(loaded(x), model.eval()(x))
    assert loaded.config == model.config
    assert record["data"] == {"name": "digits"}
    assert sorted(os.listdir(tmp_path)) == ["model.json", "model.safetensors"]
    again, _ = runs.load_model(tmp_path / "model.safetensors")
    assert torch.equal(again(x), loaded(x))


def test_the_only_model_below_a_folder_is_found_and_several_are_listed(tmp_path):
    runs.save_model(tmp_path / "a", tower())
    assert isinstance(runs.load_model(tmp_path)[0], ResidualTower)
    runs.save_model(tmp_path / "b", tower())
    with pytest.raises(CheckpointError, match=r"2 models \(a, b\)"):
        runs.load_model(tmp_path)


def test_tied_weights_and_half_precision_survive(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).to(torch.bfloat16)
    model[1].weight = model[0].weight
    path = runs.save_model(tmp_path / "tied.safetensors", model)
    other = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).to(torch.bfloat16)
    runs.load_weights(other, path)
    assert torch.equal(other[1].weight, model[0].weight)
    with pytest.raises(CheckpointError, match=r"cannot rebuild class 'Sequential'.*--weights"):
        runs.load_model(path)


@pytest.mark.parametrize("where", ["nothing", "header", "middle", "tail"])
def test_a_truncated_model_is_one_clear_line(tmp_path, where):
    path = runs.save_model(tmp_path, tower())
    content = path.read_bytes()
    length = {"nothing": 0, "header": 20, "middle": len(content) // 2, "tail": len(content) - 1}[where]
    path.write_bytes(content[:length])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is truncated or no safetensors file"):
        runs.load_model(tmp_path)


def test_a_flipped_bit_is_noticed(tmp_path):
    path = runs.save_model(tmp_path, tower())
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged: its contents do not match their checksum") as caught:
        runs.load_model(tmp_path)
    one_line(caught)


def test_another_depth_names_both(tmp_path):
    path = runs.save_model(tmp_path, tower(depth=3))
    with pytest.raises(CheckpointError, match="holds a network of depth 3, expected depth 5"):
        runs.load_weights(tower(depth=5), path)
    record = json.loads((tmp_path / "model.json").read_text())
    record["config"]["depth"] = 7
    (tmp_path / "model.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match="depth 3, expected depth 7") as caught:
        runs.load_model(tmp_path)
    one_line(caught)


def test_other_misfits_name_the_first_tensor(tmp_path):
    path = runs.save_model(tmp_path, tower())
    with pytest.raises(CheckpointError, match=r"lacks .*norm1"):
        runs.load_weights(tower(norm="batch"), path)
    wide = ResidualTower(3, 8, in_channels=1, encoder="conv3x3", seed=0)
    before = {name: value.clone() for name, value in wide.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"has shape \(4, .*expected \(8,"):
        runs.load_weights(wide, path)
    assert all(torch.equal(value, before[name]) for name, value in wide.state_dict().items())


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected a JSON object"),
        ('{"class": "Evil", "config": {}}', "cannot rebuild class 'Evil'"),
        ('{"class": "ResidualTower", "config": {"depht": 3}}', "cannot build ResidualTower"),
        ('{"class": "ResidualTower", "config": {"scale": "sqrt"}}', "cannot build ResidualTower"),
    ],
)
def test_a_damaged_record_is_one_clear_line(tmp_path, content, text):
    runs.save_model(tmp_path, tower())
    (tmp_path / "model.json").write_text(content)
    with pytest.raises(CheckpointError, match=text) as caught:
        runs.load_model(tmp_path)
    assert "model.json" in one_line(caught)


def test_a_missing_model_says_what_is_expected(tmp_path):
    with pytest.raises(CheckpointError, match="no model at"):
        runs.load_model(tmp_path / "nowhere")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="no file .*model.json"):
        runs.load_model(tmp_path)
    with pytest.raises(CheckpointError, match="no file"):
        runs.load_weights(tower(), tmp_path / "gone.safetensors")


# --- folders and files ---


def test_new_folder_refuses_what_holds_something(tmp_path):
    made = runs.new_folder(tmp_path / "a" / "b")
    assert made.is_dir()
    assert runs.new_folder(made) == made  # empty is fine
    (made / "notes.txt").write_text("mine")
    for resume_ok in (False, True):
        with pytest.raises(OutputError, match="is not empty and holds no run to resume"):
            runs.new_folder(made, resume_ok=resume_ok)
    (made / "config.json").write_text("{}")
    assert runs.new_folder(made, resume_ok=True) == made
    with pytest.raises(OutputError, match="is not empty; choose another"):
        runs.new_folder(made)
    with pytest.raises(OutputError, match="is a file"):
        runs.new_folder(made / "notes.txt")
    with pytest.raises(OutputError, match="cannot write .*Not a directory"):
        runs.new_folder(made / "notes.txt" / "below")


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    storage.write_json(path, {"a": 1})

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"cannot write .*x\.json: No space left on device; free") as caught:
        storage.write_json(path, {"a": 2})
    one_line(caught)
    assert storage.read_json(path) == {"a": 1}
    assert os.listdir(tmp_path) == ["x.json"]


def test_a_write_cut_short_by_the_system_leaves_nothing(tmp_path):
    """A file-size limit makes the kernel refuse the second half of a file, as a quota does."""
    script = (
        "import resource, sys; from pathlib import Path; from pathsum import storage; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); "
        "storage.write_atomic(Path(sys.argv[1]), bytes(100_000))"
    )
    run = [sys.executable, "-c", script, str(tmp_path / "big")]
    result = subprocess.run(run, capture_output=True, text=True, check=False)
    assert "OutputError: cannot write" in result.stderr
    assert "File too large" in result.stderr
    assert os.listdir(tmp_path) == []


def test_json_has_no_infinities(tmp_path):
    storage.write_json(tmp_path / "x.json", {"a": float("inf"), "b": [float("nan"), 1.5], "c": (1,)})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": None, "b": [None, 1.5], "c": [1]}


def test_a_locked_folder_is_not_shared(tmp_path):
    with (
        storage.locked(tmp_path),
        pytest.raises(OutputError, match="another process is training into"),
        storage.locked(tmp_path),
    ):
        pass
    with storage.locked(tmp_path):
        pass


# --- rows and runs ---


def test_a_torn_last_row_is_dropped_and_later_rows_are_truncated(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"step": 0}\n{"step": 5}\n{"step": 10}\n{"step": 1')
    assert [row["step"] for row in runs.read_rows(path)] == [0, 5, 10]
    log = runs.RowLog(path, keep=2)
    log.write({"step": 6, "loss": float("nan")})
    log.close()
    assert path.read_text() == '{"step": 0}\n{"step": 5}\n{"step": 6, "loss": null}\n'
    with pytest.raises(CheckpointError, match="holds 3 whole rows, expected at least 4"):
        runs.RowLog(path, keep=4)
    path.write_text('{"step": 0}\nrubbish\n{"step": 1}\n')
    with pytest.raises(CheckpointError, match="line 2: not JSON"):
        runs.read_rows(path)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_row_that_cannot_be_written_is_one_error(tmp_path):
    log = runs.RowLog(tmp_path / "rows.jsonl")
    log.close()
    log._file = open("/dev/full", "a")  # noqa: SIM115 (closed by the log)
    with pytest.raises(OutputError, match=r"cannot write .*rows\.jsonl: No space left"):
        log.write({"step": 0})
    log.close()


def test_opening_a_run_again_asks_for_the_same_configuration(tmp_path):
    asked = {"train": {"lr": 0.1, "threads": 1}, "model": {"config": {"depth": 3}}}
    folder = runs.open_run(tmp_path / "run", asked)
    assert runs.open_run(folder, asked) == folder
    assert runs.read_run(folder).status == "interrupted"
    assert runs.read_run(folder).config["environment"]["torch"] == torch.__version__
    other = {"train": {"lr": 0.2, "threads": 2}, "model": {"config": {"depth": 4}}}
    with pytest.raises(CheckpointError, match="stored -> asked") as caught:
        runs.open_run(folder, other, free=["train.threads"])
    text = one_line(caught)
    assert "train.lr: 0.1 -> 0.2" in text
    assert "model.config.depth: 3 -> 4" in text
    assert "threads" not in text
    with pytest.raises(OutputError, match="is not empty"):
        runs.open_run(folder, asked, resume=False)


def test_find_runs_lists_run_folders(tmp_path):
    for name in ("b", "a/c"):
        runs.open_run(tmp_path / name, {})
        (tmp_path / name / "rows.jsonl").write_text("")
    assert runs.find_runs(tmp_path) == [tmp_path / "a/c", tmp_path / "b"]
