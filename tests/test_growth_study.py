"""The growth study: FLOPs counted by hand, checks that can fail, a run from end to end; and `pathsum grow`."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import pathsum as ps
from pathsum.cli import main
from pathsum.data import load
from pathsum.nets.tower import ResidualTower
from pathsum.runs import Run, load_model
from pathsum.storage import read_json
from pathsum.studies.growth import PRESETS, Plan, plan, step_flops
from pathsum.studies.growth_page import write
from pathsum.studies.growth_results import checks
from pathsum.train import TrainConfig, fit
from pathsum.training.record import make_optimizer

TINY = replace(PRESETS["smoke"], steps=20, evaluations=5, deep=4, width=4, seeds=(0, 1), test_limit=100)


@pytest.mark.parametrize("depth", [1, 4])
def test_flops_of_a_step_by_hand(depth):
    """Two for each product with a sum; backward twice the forward, but for the stem, whose input needs no gradient."""
    width, pixels, classes, batch = 5, 64, 10, 32
    net = ResidualTower(depth, width, in_channels=1, encoder="conv3x3", num_classes=classes, seed=0)
    stem = 9 * 1 * width * pixels
    branches = depth * 2 * 9 * width * width * pixels
    head = width * classes
    assert step_flops(net, (1, 8, 8), batch) == 2 * batch * (2 * stem + 3 * branches + 3 * head)
    assert all(p.grad is None for p in net.parameters())
    assert net.encoder.norm.num_batches_tracked == 0


def test_all_arms_cost_the_same():
    steps = plan(PRESETS["small"], load("digits"))
    grown = steps.before * steps.shallow_step + steps.after * steps.deep_step
    for cost in (grown, steps.shallow * steps.shallow_step):
        assert abs(cost - steps.budget) <= steps.deep_step
    assert steps.growth_at == pytest.approx(PRESETS["small"].share * steps.budget, rel=0.01)


def made(accuracies: dict[str, float], after: list[float], *, before: float = 0.5, status: str = "done"):
    """Runs of two seeds with these final accuracies, and these losses from growth on."""

    def run(losses: list[float], accuracy: float) -> Run:
        rows = [{"step": i, "test_loss": v, "train_loss": v, "test_accuracy": accuracy} for i, v in enumerate(losses)]
        return Run(Path("run"), {}, rows, {"status": status})

    parts = {"shallow": [1.0, 0.4], "deep": [1.0, 0.4], "before": [1.0, before], "after": after}
    return {
        (part, seed): run(losses, accuracies.get(part, 0.9) + 0.001 * seed)
        for part, losses in parts.items()
        for seed in TINY.seeds
    }


PLAN = Plan(1, 2, 20, 40, 10, 15)


@pytest.mark.parametrize(
    ("found", "verdicts"),
    [
        (made({}, [0.5, 0.5, 0.5, 0.4]), ["pass", "pass", "pass"]),
        (made({}, [0.6, 0.6, 0.6, 0.4]), ["fail", "pass", "pass"]),
        (made({}, [0.5, 0.53, 0.5, 0.4]), ["pass", "fail", "pass"]),
        (made({}, [0.5, 0.52, 0.5, 0.4]), ["pass", "pass", "pass"]),
        (made({"after": 0.8}, [0.5, 0.5, 0.5, 0.4]), ["pass", "pass", "fail"]),
        (made({"deep": 0.8}, [0.5, 0.5, 0.5, 0.4]), ["pass", "pass", "pass"]),
        (made({}, [0.5]), ["pass", "not enough data", "pass"]),
        ({}, ["not enough data"] * 3),
    ],
)
def test_the_checks_can_fail(found, verdicts):
    assert [check.verdict for check in checks(TINY, PLAN, found)] == verdicts


def test_a_report_is_written_of_what_there_is(tmp_path):
    write(TINY, PLAN, made({}, [0.5, 0.5, 0.5, 0.4]), tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"report.html", "study.json", "curves.csv", "arms.csv", "checks.csv", "figures"}
    assert (tmp_path / "figures" / "growth.png").stat().st_size > 10_000
    assert "From" not in (tmp_path / "study.json").read_text()


def test_a_study_runs_and_goes_on_where_it_stopped(tmp_path, capsys, one_thread):
    out = tmp_path / "study"
    options = "--steps 20 --evaluations 5 --deep 4 --width 4 --seeds 0 --test-limit 100"
    args = ["study", "growth", "--preset", "smoke", *options.split(), "--out", str(out)]
    assert main(args) == 0
    first = capsys.readouterr().out
    assert "pass: growing leaves the function as it is" in first
    runs = {path: path.stat().st_mtime_ns for path in out.rglob("rows.jsonl")}
    assert {path.parent.name for path in runs} == {"deep-0", "shallow-0", "before-0", "after-0"}
    rows = {path: path.read_text() for path in runs}
    shutil.rmtree(out / "runs" / "after-0")  # a study that was killed at the growth
    assert main(args) == 0
    assert capsys.readouterr().out == first  # with the momentum it had
    after = out / "runs" / "after-0" / "rows.jsonl"
    assert strip(after.read_text()) == strip(rows[after])
    assert all(path.stat().st_mtime_ns == time for path, time in runs.items() if path != after)
    assert read_json(out / "study.json")["study"] == "growth"


def strip(text: str) -> list[dict]:
    """Rows without their times."""
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in text.splitlines()]


def test_bad_options_of_the_study(capsys):
    for options, text in (
        (["--deep", "2"], "--shallow 2 --deep 2: expected 1 or more, and deeper"),
        (["--share", "1.5"], "--share 1.5: expected a share"),
        (["--seeds", "1", "1"], "--seeds: expected one or more, all different"),
    ):
        assert main(["study", "growth", "--preset", "smoke", *options]) == 2
        assert text in capsys.readouterr().err
    assert main(["study", "growth", "--preset", "cifar10"]) == 2
    assert "this preset needs CIFAR-10" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------- pathsum grow


def trained(out: Path, steps: int, *, stop_at: int = 0, **options) -> tuple[ps.ResidualTower, Path]:
    """A small tower trained on the digits, with a checkpoint left behind where it is to stop early."""
    data = load("digits", train_limit=200, test_limit=50)
    net = ResidualTower(2, 4, in_channels=1, encoder="conv3x3", scale="1/n", seed=0)
    config = TrainConfig(lr=0.05, steps=steps, batch_size=20, augment=False, checkpoint_every=5, **options)
    fit(net, data, config, out=out)
    return net, out


def test_grow_writes_what_inspect_and_train_read(tmp_path, capsys, one_thread):
    net, run = trained(tmp_path / "run", 10)
    out = tmp_path / "grown"
    assert main(["grow", str(run), "--depth", "5", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "2 blocks, now 5; new ones: blocks.1, blocks.3, blocks.4" in said
    assert "the old last layers were multiplied by 2.5" in said
    model, record = load_model(out)
    assert record["grown"]["new_blocks"] == ["blocks.1", "blocks.3", "blocks.4"]
    assert record["data"]["name"] == "digits"
    x = torch.randn(4, 1, 8, 8)
    torch.testing.assert_close(model(x), net.eval()(x), rtol=1e-5, atol=1e-6)
    more = tmp_path / "more"
    args = ["train", "--start", str(out), "--steps", "10", "--train-limit", "200", "--test-limit", "50", "--no-augment"]
    assert main([*args, "--out", str(more)]) == 0
    folder = next(path for path in more.iterdir() if path.is_dir())
    assert folder.name.startswith("from-grown-")
    assert read_json(folder / "model.json")["config"]["depth"] == 5
    assert "depth 5" in capsys.readouterr().out
    assert main([*args, "--depth", "9", "--out", str(tmp_path / "no")]) == 2
    assert "--depth does not go with --start" in capsys.readouterr().err
    assert main(["grow", str(run), "--depth", "2", "--out", str(tmp_path / "no")]) == 2
    assert "depth=2 adds no block" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_grow_carries_the_memory_of_an_interrupted_run(tmp_path, capsys, monkeypatch, one_thread):
    from pathsum.training import loop

    real, count = loop.Training._update, [0]

    def update(self, x, y):
        count[0] += 1
        if count[0] == 8:
            self.signals.append(2)
        real(self, x, y)

    monkeypatch.setattr(loop.Training, "_update", update)
    _, run = trained(tmp_path / "run", 20)
    assert (run / "checkpoint.safetensors").is_file()
    out = tmp_path / "grown"
    assert main(["grow", str(run), "--out", str(out)]) == 0
    assert "the optimizer's memory was carried over" in capsys.readouterr().out
    model, record = load_model(out)
    optimizer = make_optimizer(list(model.parameters()), TrainConfig(**{**record["train"], "crop_scale": None}))
    from pathsum.storage import read_tensors
    from pathsum.training.state import load_memory

    load_memory(out / "optimizer.safetensors", optimizer)
    before, _ = read_tensors(run / "checkpoint.safetensors")
    names = [name for name, _ in ResidualTower(**read_json(run / "config.json")["model"]["config"]).named_parameters()]
    old = {name: before[f"optimizer.{i}.momentum_buffer"] for i, name in enumerate(names)}
    assert torch.equal(optimizer.state[model.blocks[2].conv1.weight]["momentum_buffer"], old["blocks.1.conv1.weight"])
    scaled = optimizer.state[model.blocks[2].conv2.weight]["momentum_buffer"]
    assert torch.equal(scaled, old["blocks.1.conv2.weight"] / 2)  # 1/2 → 1/4: weights times 2
    assert not optimizer.state.get(model.blocks[1].conv1.weight)


def test_fit_goes_on_with_an_optimizer_and_leaves_its_memory_there(tmp_path, one_thread):
    """Ten steps, then five with the same order of data, are momentum's fifteen; and a finished run gives both back."""
    data = load("digits", train_limit=200, test_limit=50)
    config = TrainConfig(lr=0.05, steps=5, batch_size=20, augment=False)

    def net():
        return ResidualTower(2, 4, in_channels=1, encoder="conv3x3", seed=0)

    kept, fresh = net(), net()
    optimizer = make_optimizer(list(kept.parameters()), config)
    fit(kept, data, config, optimizer=optimizer, out=tmp_path / "first")
    fit(fresh, data, config)
    again, memory = net(), None
    memory = make_optimizer(list(again.parameters()), config)
    fit(again, data, config, optimizer=memory, out=tmp_path / "first")
    for p, q in zip(kept.parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q)
        assert torch.equal(optimizer.state[p]["momentum_buffer"], memory.state[q]["momentum_buffer"])
    fit(kept, data, config, optimizer=optimizer)
    fit(again, data, config)  # without its memory
    assert not torch.equal(kept.blocks[0].conv1.weight, again.blocks[0].conv1.weight)
    other = torch.optim.AdamW(fresh.parameters())
    with pytest.raises(ps.PathsumError, match="the optimizer given is AdamW, but the configuration asks for SGD"):
        fit(fresh, data, config, optimizer=other)
