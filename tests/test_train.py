"""Training: what it reports, when it stops, and that nothing is lost by interrupting it."""

import itertools
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pathsum import runs
from pathsum.data import Dataset, batches, load
from pathsum.errors import CheckpointError, DataError, OutputError, PathsumError
from pathsum.nets.mlp import ResidualMLP
from pathsum.nets.tower import ResidualTower
from pathsum.train import WALL_CLOCK, TrainConfig, evaluate, fit
from pathsum.training.loop import Training
from pathsum.training.monitor import Monitor


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits", test_limit=100)


pytestmark = pytest.mark.usefixtures("one_thread")


def tower(depth=2, width=4, **options):
    return ResidualTower(depth, width, in_channels=1, encoder="conv3x3", seed=0, **options)


class Noisy(nn.Module):
    """Dropout draws from the global generator, BatchNorm keeps buffers."""

    def __init__(self):
        super().__init__()
        self.tower = tower(norm="batch")
        self.drop = nn.Dropout(0.2)

    def forward(self, x):
        return self.tower(self.drop(x))


def noisy():
    model = Noisy()
    model.config = {"of": "this test"}
    return model


def timeless(result):
    return [{k: v for k, v in row.items() if k not in WALL_CLOCK} for row in result.rows]


def same_state(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


# --- learning, evaluating, reporting ---


def test_a_tower_learns_digits(digits):
    model = tower(depth=4, width=8, norm="batch")
    result = fit(model, digits, TrainConfig(lr=0.1, epochs=10, val_size=100))
    assert result.status == "done"
    assert result.final_loss < 0.5 * result.initial_loss
    assert result.best_test > 0.75
    best = max(result.rows, key=lambda row: row["val_accuracy"])
    assert result.best_val == best["val_accuracy"]
    assert result.test_at_best_val == best["test_accuracy"] <= result.best_test
    assert result.steps == result.rows[-1]["step"] == 10 * (798 // 64)
    assert result.rows[-1]["epoch"] == 10
    assert evaluate(model, digits.test, digits)[1] == pytest.approx(result.rows[-1]["test_accuracy"])


def test_results_show_themselves(digits):
    result = fit(tower(), digits, TrainConfig(lr=0.1, steps=20, eval_every=5))
    table = result.table()
    assert list(table["step"]) == [0, 5, 10, 15, 20]
    assert table["val_loss"].isna().all()
    assert "done after 20 steps" in repr(result)
    assert "\n" not in repr(result)
    assert "<table" in result._repr_html_()
    import matplotlib.pyplot as plt

    axes = result.plot()
    assert axes.get_xlabel() == "step"
    plt.close(axes.figure)


def test_the_loop_is_the_plain_one(digits):
    """Against the loop anyone would write: same batches, torch.optim's SGD without foreach."""
    model, twin = tower(norm="batch"), tower(norm="batch")
    config = TrainConfig(lr=0.05, steps=25, weight_decay=1e-3, seed=7)
    fit(model, digits, config)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3, foreach=False)
    stream = batches(digits.train, 64, mean=digits.mean, std=digits.std, seed=7, augment=True, crop_pad=1, flip=False)
    for _ in range(25):
        _, x, y = next(stream)
        optimizer.zero_grad()
        F.cross_entropy(twin(x), y).backward()
        optimizer.step()
    # Rounding differs by the memory format of the convolutions and grows over 25 steps.
    for (name, a), b in zip(model.state_dict().items(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_a_model_in_double_precision_trains_in_it(digits):
    """One step of float32 is off by 1e-7; here nothing is rounded to it on the way."""
    model, twin = tower(norm="batch").double(), tower(norm="batch").double()
    result = fit(model, digits, TrainConfig(lr=0.05, steps=10, seed=7, augment=False, momentum=0.0))
    for _, x, y in itertools.islice(
        batches(digits.train, 64, mean=digits.mean, std=digits.std, seed=7, dtype=torch.float64), 10
    ):
        loss = F.cross_entropy(twin(x), y)
        for p, grad in zip(twin.parameters(), torch.autograd.grad(loss, list(twin.parameters())), strict=True):
            p.data.sub_(0.05 * grad)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert result.rows[-1]["test_loss"] == pytest.approx(evaluate(twin, digits.test, digits)[0], rel=1e-9)


def test_bfloat16_is_used_where_it_is_asked_for_and_nowhere_else(digits):
    seen = []
    model = tower(norm="batch")
    model.blocks[0].conv1.register_forward_hook(lambda _, inputs, output: seen.append(output.dtype))
    result = fit(model, digits, TrainConfig(lr=0.05, steps=4, eval_every=4, precision="bf16"))
    assert set(seen[1:]) == {torch.bfloat16}  # in evaluations too, but for the look at one image before
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert result.status == "done"
    assert not torch.is_autocast_enabled("cpu")
    exact = fit(tower(norm="batch"), digits, TrainConfig(lr=0.05, steps=4, eval_every=4))
    assert result.final_loss == pytest.approx(exact.final_loss, rel=2e-2)


def test_adamw_learns_and_a_dense_tower_too(digits):
    result = fit(ResidualMLP(4, 32, seed=0), digits, TrainConfig(lr=3e-3, steps=60, optimizer="adamw", augment=False))
    assert result.best_test > 0.85


def test_evaluate_is_the_plain_mean(digits):
    model = tower(norm="batch").train()
    model.blocks[0].eval()  # a mode of its own, which must survive
    loss, accuracy = evaluate(model, digits.test, digits, 33)
    assert model.training
    assert not model.blocks[0].training
    pixels = digits.test.images / 255
    x = (pixels - torch.tensor(digits.mean).view(-1, 1, 1)) / torch.tensor(digits.std).view(-1, 1, 1)
    logits = model.eval()(x)
    assert loss == pytest.approx(F.cross_entropy(logits, digits.test.labels).item(), rel=1e-5)
    assert accuracy == pytest.approx((logits.argmax(1) == digits.test.labels).float().mean().item())


def test_fit_leaves_no_trace(digits):
    model = tower(norm="batch").eval()
    strides = [p.stride() for p in model.parameters()]
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    fit(model, digits, TrainConfig(lr=0.1, steps=3, threads=2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert not any(module.training for module in model.modules())
    assert [p.stride() for p in model.parameters()] == strides
    assert all(p.grad is None for p in model.parameters())


def test_outside_the_main_thread_signals_are_left_alone(digits, tmp_path):
    results = []
    work = threading.Thread(
        target=lambda: results.append(fit(tower(), digits, TrainConfig(steps=3), out=tmp_path / "run"))
    )
    work.start()
    work.join()
    assert results[0].status == "done"


def test_tensorboard_writes_events(digits, tmp_path):
    pytest.importorskip("tensorboard")
    fit(tower(), digits, TrainConfig(steps=4, tensorboard=True), out=tmp_path)
    assert list((tmp_path / "tensorboard").glob("events*"))
    with pytest.raises(PathsumError, match="needs an output folder"):
        fit(tower(), digits, TrainConfig(steps=4, tensorboard=True))


# --- verdicts ---


def test_divergence_is_a_result(digits, tmp_path):
    model = tower(depth=20, scale=1, init="he")
    result = fit(model, digits, TrainConfig(lr=0.1, steps=100), out=tmp_path)
    assert result.status == "diverged"
    assert result.steps < 100
    assert "not finite" in result.reason
    assert not math.isfinite(result.final_loss)
    assert result.rows[-1]["step"] == result.steps
    assert runs.read_run(tmp_path).status == "diverged"
    assert not (tmp_path / "model.safetensors").exists()
    again = fit(tower(depth=20, scale=1, init="he"), digits, TrainConfig(lr=0.1, steps=100), out=tmp_path)
    assert again.status == "diverged"
    assert math.isnan(again.final_loss)
    assert timeless(again) == timeless(result)


@pytest.mark.parametrize("norm", [None, "batch"])
def test_a_network_that_cannot_move_is_frozen(digits, norm):
    result = fit(tower(norm=norm), digits, TrainConfig(lr=0.0, steps=300))
    assert result.status == "frozen"
    assert result.steps == 100
    assert "no weight moved for 100 steps" in result.reason


def test_dead_units_are_frozen_though_biases_move(digits):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    with torch.no_grad():
        model[1].bias.fill_(-1e3)
    result = fit(model, digits, TrainConfig(lr=0.1, steps=300, weight_decay=1e-3))
    assert result.status == "frozen"


def feed(losses, **options):
    monitor = Monitor(**options)
    monitor.start([2.0, 2.6] * 32)  # mean 2.3, standard error 0.038: ceiling 2.415
    for loss in losses:
        monitor.add(loss)
    return monitor


def test_the_monitor_judges_windows_not_noise():
    rng = random.Random(0)
    noisy_start = [2.3 + rng.gauss(0, 0.3) for _ in range(500)]
    assert feed(noisy_start).verdict is None
    overshoot = [2.3 + 3 * math.exp(-(((step - 25) / 15) ** 2)) for step in range(200)]
    assert feed(overshoot).verdict is None
    slow_return = [30 * math.exp(-step / 60) for step in range(400)]  # above the start for 150 steps
    assert feed(slow_return).verdict is None
    risen = [2.3] * 20 + [5 + rng.gauss(0, 0.5) for _ in range(300)]
    monitor = feed(risen)
    assert monitor.verdict[0] == "diverged"
    assert 70 <= monitor.steps <= 150  # each look finds a flat loss fallen or not by chance
    assert feed([2.3, 2.2, math.nan, 1.0]).steps == 3
    assert feed([2.3, math.inf]).verdict[0] == "diverged"


def test_the_monitor_knows_a_loss_that_does_not_move_from_one_that_is_learned():
    monitor = feed([2.3] * 40)
    for _ in range(4):
        monitor.add_evaluation(2.3)
        for _ in range(50):
            monitor.add(2.3)
    assert monitor.verdict[0] == "frozen"
    learned = feed([0.1] * 40)
    for _ in range(6):
        learned.add_evaluation(0.2)
        for _ in range(50):
            learned.add(0.1)
    assert learned.verdict is None


@pytest.mark.parametrize(("lr", "options"), [(0.05, {}), (0.03, {"scale": 1}), (1e-3, {"scale": "1/n"})])
def test_healthy_runs_are_left_alone(digits, lr, options):
    result = fit(tower(depth=6, width=8, **options), digits, TrainConfig(lr=lr, steps=120))
    assert result.status == "done", result.reason


# --- resuming ---


def interrupt_at(monkeypatch, step, action):
    """Call `action` once, just before the update that follows `step`."""
    original = Training._update

    def update(self, x, y):
        if self.step == step:
            monkeypatch.setattr(Training, "_update", original)
            action()
        original(self, x, y)

    monkeypatch.setattr(Training, "_update", update)


def crash():
    raise RuntimeError("pulled the plug")


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("step", [0, 1, 13, 30, 44])
def test_a_signal_leaves_a_run_that_resumes_bitwise(digits, tmp_path, monkeypatch, optimizer, step):
    config = TrainConfig(lr=0.01, steps=45, eval_every=15, val_size=50, optimizer=optimizer, batch_size=32)
    whole_model, model = noisy(), noisy()
    whole = fit(whole_model, digits, config, out=tmp_path / "whole")
    number = random.Random(step).choice([signal.SIGINT, signal.SIGTERM])
    interrupt_at(monkeypatch, step, lambda: os.kill(os.getpid(), number))
    first = fit(model, digits, config, out=tmp_path / "run")
    if step < 44:  # at the last step there is nothing left to interrupt but the evaluation
        assert first.steps == step + 1
    assert first.status == "interrupted"
    assert first.reason == number.name
    model = noisy()
    for p in model.parameters():
        p.data.normal_()  # the folder decides, not what the caller built
    second = fit(model, digits, config, out=tmp_path / "run")
    assert second.status == "done"
    assert timeless(second) == timeless(whole)
    assert same_state(model, whole_model)
    assert second.final_loss == whole.final_loss
    assert not (tmp_path / "run" / "checkpoint.safetensors").exists()


def test_a_crash_costs_the_time_since_the_last_checkpoint(digits, tmp_path, monkeypatch):
    config = TrainConfig(lr=0.05, steps=40, eval_every=7, checkpoint_every=10)
    whole = fit(noisy(), digits, config)
    interrupt_at(monkeypatch, 37, crash)
    with pytest.raises(RuntimeError, match="pulled the plug"):
        fit(noisy(), digits, config, out=tmp_path)
    assert len(runs.read_rows(tmp_path / "rows.jsonl")) == 6  # at 0, 7, ..., 35
    with open(tmp_path / "rows.jsonl", "a") as file:
        file.write('{"step": 36, "tor')
    steps = []
    original = Training._update
    monkeypatch.setattr(Training, "_update", lambda self, x, y: (steps.append(self.step), original(self, x, y)))
    second = fit(noisy(), digits, config, out=tmp_path)
    assert steps[0] == 30
    assert timeless(second) == timeless(whole)


def test_resuming_twice_and_asking_again_after_the_end(digits, tmp_path, monkeypatch):
    config = TrainConfig(lr=0.05, steps=30, eval_every=10)
    whole = fit(noisy(), digits, config)
    for step in (8, 21):
        interrupt_at(monkeypatch, step, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert fit(noisy(), digits, config, out=tmp_path).status == "interrupted"
    model = noisy()
    done = fit(model, digits, config, out=tmp_path)
    assert timeless(done) == timeless(whole)
    monkeypatch.setattr(Training, "_update", lambda *_: pytest.fail("trained again"))
    fresh = noisy()
    again = fit(fresh, digits, config, out=tmp_path)
    assert again == done
    assert same_state(fresh, model)


def test_a_second_ctrl_c_forces_and_the_run_still_resumes(digits, tmp_path, monkeypatch):
    config = TrainConfig(lr=0.05, steps=30, eval_every=10, checkpoint_every=5)

    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    interrupt_at(monkeypatch, 17, twice)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(noisy(), digits, config, out=tmp_path)
    assert signal.getsignal(signal.SIGINT) is before
    assert timeless(fit(noisy(), digits, config, out=tmp_path)) == timeless(fit(noisy(), digits, config))


def test_a_signal_during_an_evaluation_resumes_with_that_evaluation(digits, tmp_path, monkeypatch):
    from pathsum.training import loop

    config = TrainConfig(lr=0.05, steps=30, eval_every=10)
    original, calls = loop.evaluate_until, []

    def evaluating(*args):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*args)

    monkeypatch.setattr(loop, "evaluate_until", evaluating)
    first = fit(noisy(), digits, config, out=tmp_path)
    assert (first.status, first.steps, len(first.rows)) == ("interrupted", 20, 2)
    assert timeless(fit(noisy(), digits, config, out=tmp_path)) == timeless(fit(noisy(), digits, config))


SCRIPT = """
import sys, time, torch
from pathsum.data import load
from pathsum.nets.tower import ResidualTower
from pathsum.train import TrainConfig, fit
from pathsum.training.loop import Training

torch.set_num_threads(1)
original = Training._update
Training._update = lambda self, x, y: (time.sleep(0.01), original(self, x, y))
model = ResidualTower(2, 4, in_channels=1, encoder="conv3x3", seed=0, norm="batch")
config = TrainConfig(lr=0.05, steps=60, eval_every=6, checkpoint_every=5)
result = fit(model, load("digits", test_limit=100), config, out=sys.argv[1])
print(result.status)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_process_resumes_bitwise(digits, tmp_path, number):
    out = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(out)], stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len(runs.read_rows(out / "rows.jsonl")) < 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert (process.returncode, output) == (0, "interrupted\n")
    config = TrainConfig(lr=0.05, steps=60, eval_every=6, checkpoint_every=5)
    model, whole_model = tower(norm="batch"), tower(norm="batch")
    second = fit(model, digits, config, out=out)
    whole = fit(whole_model, digits, config)
    assert second.status == "done"
    assert timeless(second) == timeless(whole)
    assert same_state(model, whole_model)


def test_resuming_asks_for_the_same_configuration(digits, tmp_path):
    config = TrainConfig(lr=0.1, steps=4)
    fit(tower(), digits, config, out=tmp_path)
    with pytest.raises(CheckpointError, match=r"train\.lr: 0\.1 -> 0\.2") as caught:
        fit(tower(depth=3), digits, TrainConfig(lr=0.2, steps=4, threads=1), out=tmp_path)
    assert "model.config.depth: 2 -> 3" in str(caught.value)
    assert "threads" not in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match=r"data\.fingerprint"):
        fit(tower(), load("digits", test_limit=50), config, out=tmp_path)
    with pytest.raises(OutputError, match="is not empty"):
        fit(tower(), digits, config, out=tmp_path, resume=False)


def test_a_damaged_checkpoint_is_one_clear_line(digits, tmp_path, monkeypatch):
    config = TrainConfig(lr=0.1, steps=20)
    interrupt_at(monkeypatch, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    fit(tower(), digits, config, out=tmp_path)
    path = tmp_path / "checkpoint.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-10])
    with pytest.raises(CheckpointError, match=r"checkpoint\.safetensors is truncated"):
        fit(tower(), digits, config, out=tmp_path)
    runs.save_model(path, tower())
    with pytest.raises(CheckpointError, match="is no checkpoint of a training run"):
        fit(tower(), digits, config, out=tmp_path)
    path.write_bytes(content)
    assert fit(tower(), digits, config, out=tmp_path).status == "done"


def test_a_full_disk_is_an_error_and_the_checkpoint_stays(digits, tmp_path, monkeypatch):
    config = TrainConfig(lr=0.1, steps=20, eval_every=5, checkpoint_every=4)
    real, calls = os.fsync, []

    def full(descriptor):
        calls.append(1)
        if len(calls) > 8:
            raise OSError(28, os.strerror(28))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left on device"):
        fit(noisy(), digits, config, out=tmp_path)
    monkeypatch.setattr(os, "fsync", real)
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".partial")]
    assert timeless(fit(noisy(), digits, config, out=tmp_path)) == timeless(fit(noisy(), digits, config))


# --- what is refused ---


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"steps": 0}, "steps is 0, expected 1 or more"),
        ({"steps": 5, "epochs": 1.0}, "give one of them"),
        ({"epochs": -1.0}, "epochs is -1.0"),
        ({"lr": math.nan}, "lr is nan"),
        ({"lr": -0.1}, "lr is -0.1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"optimizer": "lion"}, "optimizer is 'lion', expected 'sgd' or 'adamw'"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"precision": "fp16"}, "precision is 'fp16', expected 'fp32', 'tf32' or 'bf16'"),
    ],
)
def test_impossible_options_are_refused_at_once(options, text):
    with pytest.raises(PathsumError, match=text):
        TrainConfig(**options)


@pytest.mark.parametrize(
    ("model", "options", "error", "text"),
    [
        (lambda: tower(num_classes=5), {}, DataError, "digits has 10 classes, but the model gives outputs of"),
        (lambda: ResidualTower(2, 4, seed=0), {}, DataError, r"cannot take the images .*\(1, 8, 8\)"),
        (lambda: tower(), {"val_size": 5000}, DataError, "val_size is 5000, expected less than the 898"),
        (lambda: tower(), {"val_size": 890}, DataError, "leaves 8 images to train on"),
        (lambda: tower().requires_grad_(False), {}, PathsumError, "no trainable parameters"),
    ],
)
def test_model_and_data_must_fit(digits, tmp_path, model, options, error, text):
    with pytest.raises(error, match=text) as caught:
        fit(model(), digits, TrainConfig(steps=2, **options), out=tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
