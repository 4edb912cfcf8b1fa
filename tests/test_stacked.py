"""Stacks: what a network does in one is what it does alone, whatever its neighbors do."""

import itertools
import math
import os
import signal
import threading

import pytest
import torch
from torch import nn

from pathsum import runs
from pathsum.data import Dataset, Split, batches, load
from pathsum.errors import CheckpointError, PathsumError
from pathsum.nets.mlp import ResidualMLP
from pathsum.nets.tower import ResidualTower
from pathsum.storage import read_state
from pathsum.train import WALL_CLOCK, TrainConfig, fit, fit_stack, stack_key
from pathsum.training import stacked
from pathsum.training.convolutions import each, grouped
from pathsum.training.loop import Training
from pathsum.training.stackdata import StackedData
from pathsum.training.stacked import Program
from pathsum.training.stacking import StackedTower

pytestmark = pytest.mark.usefixtures("one_thread")

# The stack sums in another order than the network alone. One step differs by some 1e-7 of each number in float32
# and by 1e-16 in float64; 30 steps at healthy learning rates multiply that by less than a thousand.
CLOSE = {torch.float32: {"rel": 2e-3, "abs": 2e-4}, torch.float64: {"rel": 1e-10, "abs": 1e-11}}


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits", train_limit=400, test_limit=60)


def tower(seed=0, depth=2, width=4, dtype=torch.float32, **options):
    options = {"in_channels": 1, "encoder": "conv3x3"} | options
    return ResidualTower(depth, width, seed=seed, **options).to(dtype)


def config(lr=0.05, **options):
    return TrainConfig(**{"lr": lr, "steps": 30, "batch_size": 16, "eval_every": 10} | options)


def timeless(result):
    return [{k: v for k, v in row.items() if k not in WALL_CLOCK} for row in result.rows]


def same_state(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def assert_close(result, alone, **tolerance):
    assert (result.status, result.steps, result.reason) == (alone.status, alone.steps, alone.reason)
    assert len(result.rows) == len(alone.rows)
    for row, twin in zip(timeless(result), timeless(alone), strict=True):
        for name in row:
            # One image of 60 on the other side of the boundary is no error.
            slack = {"abs": 1.01 / 40} if name.endswith("accuracy") else tolerance
            assert (row[name] is None) == (twin[name] is None)
            assert row[name] is None or row[name] == pytest.approx(twin[name], **slack), name


def signal_at(monkeypatch, step, number=signal.SIGTERM):
    """Send a signal just before the step that follows `step`, once."""
    original = Program._take

    def take(self, x, y):
        if self.step == step:
            monkeypatch.setattr(Program, "_take", original)
            os.kill(os.getpid(), number)
        original(self, x, y)

    monkeypatch.setattr(Program, "_take", take)


# --- as alone ---


SCALES = ("1/sqrt(n)", 1, "learned:1/n", (0.1, 0.7), "learned")
RUNS = (
    {"seed": 0, "weight_decay": 1e-2},
    {"seed": 1, "lr": 1e20},
    {"seed": 2, "lr": 0.02, "momentum": 0.0},
    {"seed": 0, "lr": 0.1, "momentum": 0.5, "weight_decay": 1e-3},
    {"seed": 4},
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("norm", "options"), [(None, {"val_size": 40, "crop_scale": (0.6, 1.0)}), ("batch", {"augment": False})]
)
def test_each_network_does_what_it_does_alone(digits, dtype, norm, options):
    configs = [config(**run, **options) for run in RUNS]
    runs = list(zip(SCALES, configs, strict=True))
    pairs = [[tower(c.seed, dtype=dtype, norm=norm, scale=s) for s, c in runs] for _ in range(2)]
    results = fit_stack(pairs[0], digits, configs)
    alone = [fit(model, digits, c) for model, c in zip(pairs[1], configs, strict=True)]
    assert [result.status for result in results] == ["done", "diverged", "done", "done", "done"]
    for result, twin in zip(results, alone, strict=True):
        assert_close(result, twin, **CLOSE[dtype])
        assert result.final_loss == pytest.approx(twin.final_loss, **CLOSE[dtype], nan_ok=True)
    for i, (model, twin) in enumerate(zip(*pairs, strict=True)):
        if results[i].status == "done":
            for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
                torch.testing.assert_close(a, b, rtol=CLOSE[dtype]["rel"], atol=5 * CLOSE[dtype]["abs"])
    assert pairs[0][3].scales == (0.1, 0.7)  # trained beside learned ones, and left alone


def test_base_models_without_blocks_are_stacked(digits):
    configs = [config(seed=i, val_size=40) for i in range(3)]
    results = fit_stack([tower(i, depth=0, width=8) for i in range(3)], digits, configs)
    for i, (result, c) in enumerate(zip(results, configs, strict=True)):
        assert_close(result, fit(tower(i, depth=0, width=8), digits, c), **CLOSE[torch.float32])


@pytest.mark.parametrize("encoder", ["imagenet", "affine"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_every_stem_and_activation(encoder, activation):
    """At odd sizes too, where SAME padding is another; AdamW's state; λ of a tower of depth 0 is empty."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (60, 3, 11, 14), generator=generator, dtype=torch.uint8)
    split = Split(images, torch.arange(60) % 3)
    data = Dataset("noise", split, split, tuple("abc"), (0.5,) * 3, (0.25,) * 3, flip=True)
    for depth in (0, 2):
        options = {"encoder": encoder, "activation": activation, "in_channels": 3, "num_classes": 3, "depth": depth}
        configs = [config(1e-3 * (1 + i), seed=i, steps=12, optimizer="adamw", weight_decay=0.1 * i) for i in range(2)]
        scales = ("1/n", "learned:1/n")
        pairs = [[tower(i, dtype=torch.float64, scale=scales[i], **options) for i in range(2)] for _ in range(2)]
        results = fit_stack(pairs[0], data, configs)
        for result, model, own in zip(results, pairs[1], configs, strict=True):
            assert_close(result, fit(model, data, own), **CLOSE[torch.float64])


def test_a_network_that_cannot_move_freezes_and_the_rest_goes_on(digits):
    configs = [config(0.0, steps=120, eval_every=60), config(steps=120, eval_every=60)]
    still, learned = fit_stack([tower(0), tower(0)], digits, configs)
    assert (still.status, still.steps, learned.status, learned.steps) == ("frozen", 100, "done", 120)
    assert [row["step"] for row in still.rows] == [0, 60, 100]
    assert_close(still, fit(tower(0), digits, configs[0]), **CLOSE[torch.float32])
    assert learned.final_loss < learned.initial_loss


def test_batches_are_those_of_each_network_alone(digits):
    flips = Dataset("flips", digits.train, digits.test, digits.classes, digits.mean, digits.std, flip=True)
    configs = [config(seed=seed, val_size=40, crop_pad=2, crop_scale=(0.5, 0.9)) for seed in (0, 3, 3)]
    stacked_data = StackedData(flips, configs, torch.device("cpu"), torch.float32)
    for step in (0, 5, 22, 23):  # 22 steps an epoch
        x, labels = stacked_data.batch(step)
        for i, own in enumerate(configs):
            rest, held_out = flips.train.split(40, own.seed)
            options = {"augment": True, "crop_pad": 2, "flip": True, "scale": (0.5, 0.9)}
            stream = batches(rest, 16, mean=flips.mean, std=flips.std, seed=own.seed, start_step=step, **options)
            _, images, y = next(stream)
            assert torch.equal(x[:, i : i + 1], images)
            assert torch.equal(labels[i], y)
            assert torch.equal(flips.train.labels[stacked_data.held_out[i]], held_out.labels)


# --- whichever company ---


@pytest.mark.parametrize(
    ("width", "norm", "scale"), [(4, "batch", "1/n"), (8, None, "learned:1/n"), (12, "batch", "learned:1/n")]
)
def test_the_company_changes_no_bit(digits, width, norm, scale):
    """Alone in a stack, first, last, among many, and beside networks that overflow."""

    def run(*seeds):
        models = [tower(s % 10, width=width, norm=norm, scale=scale) for s in seeds]
        configs = [config(1e25 if s >= 10 else 0.05, seed=s % 10, steps=12, eval_every=6) for s in seeds]
        results = fit_stack(models, digits, configs)
        assert [result.status for result in results] == ["diverged" if s >= 10 else "done" for s in seeds]
        place = seeds.index(0)
        return models[place], timeless(results[place])

    model, rows = run(0)
    for company in ((0, 1), (11, 0), (1, 2, 0), (11, 0, 12), (3, 2, 1, 13, 0), (1, 2, 3, 4, 5, 0, 6)):
        other, others = run(*company)
        assert others == rows, company
        assert same_state(model, other), company


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("width", "precision"), [(4, "fp32"), (5, "fp32"), (4, "bf16"), (5, "bf16")])
def test_numbers_that_are_not_finite_stay_in_their_slot(digits, poison, width, precision):
    """Weights, gradients, statistics and momentum of the others are bitwise what they are beside a healthy one."""

    def run(value):
        models = [tower(i, width=width, norm="batch") for i in range(3)]
        if value is not None:
            for p in models[1].parameters():
                p.data.fill_(value)
        configs = [config(seed=i, steps=9, precision=precision) for i in range(3)]
        return models, fit_stack(models, digits, configs)

    (clean, healthy), (models, results) = run(None), run(poison)
    assert [result.status for result in results] == ["done", "diverged", "done"]
    assert results[1].steps == 1
    for i in (0, 2):
        assert timeless(results[i]) == timeless(healthy[i])
        assert same_state(models[i], clean[i])


def test_one_by_one_is_the_same_as_grouped():
    x = torch.randn(3, 5 * 4, 7, 7, dtype=torch.float64)
    layer = nn.Conv2d(4, 6, 3, stride=2, padding=1)
    weight = torch.randn(5 * 6, 4, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(each(x, weight, layer, 5), grouped(x, weight, layer, 5), rtol=1e-12, atol=1e-12)


# --- resuming ---


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_signal_leaves_every_run_resumable_and_the_rows_are_bitwise(digits, tmp_path, monkeypatch, optimizer):
    lrs = (0.01, 1e25, 0.02, 0.03)
    configs = [config(lr, seed=i, optimizer=optimizer) for i, lr in enumerate(lrs)]

    def models():
        return [tower(i, norm="batch", scale="learned:1/n") for i in range(4)]

    whole_models = models()
    whole = fit_stack(whole_models, digits, configs)
    outs = [tmp_path / str(i) for i in range(4)]
    signal_at(monkeypatch, 16)
    first = fit_stack(models(), digits, configs, outs=outs)
    assert [result.status for result in first] == ["interrupted", "diverged", "interrupted", "interrupted"]
    assert [result.steps for result in first if result.status == "interrupted"] == [17] * 3
    assert {result.reason for result in first if result.status == "interrupted"} == {"SIGTERM"}
    second_models = models()
    some = fit_stack(second_models[2:], digits, configs[2:], outs=outs[2:])  # another company
    rest = fit_stack(second_models, digits, configs, outs=outs)  # two of them finished, one diverged long ago
    assert [timeless(result) for result in rest] == [timeless(result) for result in whole]
    assert [timeless(result) for result in some] == [timeless(result) for result in whole[2:]]
    for i in (0, 2, 3):
        assert same_state(second_models[i], whole_models[i])
        assert runs.read_run(outs[i]).status == "done"
        assert not (outs[i] / "checkpoint.safetensors").exists()


def test_a_run_moves_between_a_stack_and_solitude(digits, tmp_path, monkeypatch):
    """One format: rows in float64 agree with those of a run that was never interrupted, whoever trained when."""
    configs = [config(seed=i, momentum=m) for i, m in enumerate((0.9, 0.0))]

    def models():
        return [tower(i, dtype=torch.float64, norm="batch") for i in range(2)]

    whole = [fit(model, digits, c) for model, c in zip(models(), configs, strict=True)]
    outs = [tmp_path / str(i) for i in range(2)]
    signal_at(monkeypatch, 7)
    fit_stack(models(), digits, configs, outs=outs)
    original = Training._update

    def update(self, x, y):
        if self.step == 14:
            os.kill(os.getpid(), signal.SIGINT)
        original(self, x, y)

    monkeypatch.setattr(Training, "_update", update)
    assert fit(models()[0], digits, configs[0], out=outs[0]).steps == 15
    # Now at steps 15 and 8: the second catches up first.
    results = fit_stack(models(), digits, configs, outs=outs)
    for result, twin in zip(results, whole, strict=True):
        assert_close(result, twin, **CLOSE[torch.float64])
    assert [row["step"] for row in runs.read_rows(outs[1] / "rows.jsonl")] == [0, 10, 20, 30]


def test_a_crash_costs_the_time_since_the_last_checkpoints(digits, tmp_path, monkeypatch):
    configs = [config(seed=i, checkpoint_every=every) for i, every in enumerate((10, 7))]
    outs = [tmp_path / str(i) for i in range(2)]
    whole = fit_stack([tower(0), tower(1)], digits, configs)
    original = Program._take

    def take(self, x, y):
        if self.step == 25:
            monkeypatch.setattr(Program, "_take", original)
            raise RuntimeError("pulled the plug")
        original(self, x, y)

    monkeypatch.setattr(Program, "_take", take)
    with pytest.raises(RuntimeError, match="pulled the plug"):
        fit_stack([tower(0), tower(1)], digits, configs, outs=outs)
    steps = []
    monkeypatch.setattr(Program, "_take", lambda self, x, y: (steps.append(self.step), original(self, x, y)))
    results = fit_stack([tower(0), tower(1)], digits, configs, outs=outs)
    assert steps == [20, *range(21, 30)]  # the checkpoints are of steps 20 and 21
    assert [timeless(result) for result in results] == [timeless(result) for result in whole]


def test_a_signal_during_an_evaluation_resumes_with_it(digits, tmp_path, monkeypatch):
    configs = [config(seed=i) for i in range(2)]
    outs = [tmp_path / str(i) for i in range(2)]
    original, calls = StackedData.evaluate, itertools.count()

    def evaluate(self, *args):
        if next(calls) == 3:  # at the last step
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, *args)

    monkeypatch.setattr(StackedData, "evaluate", evaluate)
    first = fit_stack([tower(0), tower(1)], digits, configs, outs=outs)
    assert [(r.status, r.steps, len(r.rows)) for r in first] == [("interrupted", 30, 3)] * 2
    second = fit_stack([tower(0), tower(1)], digits, configs, outs=outs)
    whole = fit_stack([tower(0), tower(1)], digits, configs)
    assert [timeless(result) for result in second] == [timeless(result) for result in whole]
    monkeypatch.setattr(stacked, "Program", lambda *_: pytest.fail("trained again"))
    assert fit_stack([tower(0), tower(1)], digits, configs, outs=outs) == second


def test_another_configuration_is_refused_by_its_folder(digits, tmp_path):
    outs = [tmp_path / "a", tmp_path / "b"]
    fit_stack([tower(0), tower(1)], digits, [config(steps=2), config(steps=2)], outs=outs)
    with pytest.raises(CheckpointError, match=r"train\.lr: 0\.05 -> 0\.2"):
        fit_stack([tower(0), tower(1)], digits, [config(steps=2), config(0.2, steps=2)], outs=outs)


# --- two programs side by side ---


def test_a_stack_on_two_threads_is_two_programs_and_changes_no_bit(digits, monkeypatch):
    """Whichever company, and whether one program or two: also beside networks that overflow, which leave one half."""
    original, programs = stacked.Program, []

    def program(records, *rest):
        programs.append((threading.current_thread(), len(records), torch.get_num_threads()))
        return original(records, *rest)

    monkeypatch.setattr(stacked, "Program", program)
    lrs = (0.05, 1e25, 0.05, 0.02, 0.05, 1e25, 0.03)

    def run(num, threads):
        programs.clear()
        models = [tower(i, width=8, scale="learned:1/n") for i in range(num)]
        configs = [config(lr, seed=i, val_size=40, threads=threads) for i, lr in enumerate(lrs[:num])]
        results = fit_stack(models, digits, configs)
        return models, [result.status for result in results], [timeless(result) for result in results]

    models, states, rows = run(7, 1)
    assert [place[1:] for place in programs] == [(7, 1), (5, 1)]
    assert states.count("diverged") == 2
    for num, shares in (
        (7, {(4, 1), (3, 1), (1, 1)}),
        (4, {(2, 1), (1, 1)}),
        (3, {(2, 1), (1, 1)}),
        (2, {(2, 1), (1, 1)}),
    ):
        others, again, found = run(num, 2)
        assert {place[1:] for place in programs} == shares
        assert len({place[0] for place in programs}) == (2 if num > 2 else 1)
        assert (again, found) == (states[:num], rows[:num])
        assert all(same_state(others[i], models[i]) for i in range(num) if states[i] == "done")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_both_programs(digits, tmp_path, monkeypatch, number):
    configs = [config(seed=i, threads=2) for i in range(4)]
    outs = [tmp_path / str(i) for i in range(4)]
    whole = fit_stack([tower(i) for i in range(4)], digits, configs)
    signal_at(monkeypatch, 16, number)
    first = fit_stack([tower(i) for i in range(4)], digits, configs, outs=outs)
    assert [(result.status, result.reason) for result in first] == [("interrupted", number.name)] * 4
    second = fit_stack([tower(i) for i in range(4)], digits, configs, outs=outs)
    assert [timeless(result) for result in second] == [timeless(result) for result in whole]


def test_what_fails_in_one_program_stops_the_other(digits, tmp_path, monkeypatch):
    """The other has its checkpoints, and the error is the first one's."""
    configs = [config(seed=i, steps=3000, eval_every=3000, threads=2) for i in range(4)]
    outs = [tmp_path / str(i) for i in range(4)]
    original = Program._take

    def take(self, x, y):
        if self.step == 16 and self.records[0].config.seed == 0:
            raise RuntimeError("pulled the plug")
        original(self, x, y)

    monkeypatch.setattr(Program, "_take", take)
    with pytest.raises(RuntimeError, match="pulled the plug"):
        fit_stack([tower(i) for i in range(4)], digits, configs, outs=outs)
    saved = [read_state(out / "checkpoint.safetensors").get("step", 0) for out in outs]
    assert saved[0] == saved[2] == 0
    assert 0 < saved[1] == saved[3] < 3000


def test_an_interrupt_without_folders_stops_both_programs(digits, monkeypatch):
    number = threading.active_count()
    signal_at(monkeypatch, 16, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit_stack(
            [tower(i) for i in range(4)],
            digits,
            [config(seed=i, steps=100_000, eval_every=100_000, threads=2) for i in range(4)],
        )
    assert threading.active_count() == number


# --- no trace, and what is refused ---


def test_a_stack_leaves_no_trace(digits):
    models = [tower(i, norm="batch", scale="learned").eval() for i in range(3)]
    state, number, handler = torch.get_rng_state(), torch.get_num_threads(), signal.getsignal(signal.SIGTERM)
    fit_stack(models, digits, [config(seed=i, steps=3, threads=2) for i in range(3)])
    assert torch.equal(torch.get_rng_state(), state)
    assert (torch.get_num_threads(), signal.getsignal(signal.SIGTERM)) == (number, handler)
    seen = set()
    for model in models:
        assert not model.training
        for tensor in (*model.parameters(), *model.buffers()):
            assert tensor.is_contiguous()
            assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
            assert tensor.untyped_storage().data_ptr() not in seen
            seen.add(tensor.untyped_storage().data_ptr())
    assert all(p.grad is None for model in models for p in model.parameters())


def test_while_it_lives_the_towers_are_views_into_the_stack():
    models = [tower(i, norm="batch", scale=scale) for i, scale in enumerate(("learned", "1/n"))]
    before = [{k: v.clone() for k, v in model.state_dict().items()} for model in models]
    stack = StackedTower(models)
    with torch.no_grad():
        stack.parameters["encoder.conv.weight"].zero_()
        stack.parameters["lam"][0].fill_(3)
    assert not models[1].encoder.conv.weight.any()
    assert models[0].scales == (3.0, 3.0)
    stack.release()
    with torch.no_grad():
        stack.parameters["lam"][0].fill_(4)
    assert models[0].scales == (3.0, 3.0)
    for name, tensor in models[1].state_dict().items():
        assert name == "encoder.conv.weight" or torch.equal(tensor, before[1][name])


def test_stack_keys_group_what_can_share_a_program():
    base = stack_key(tower(), config())
    assert base == stack_key(tower(9, scale="learned"), config(0.3, seed=5, momentum=0.0, weight_decay=1.0))
    assert base == stack_key(tower(init="he").config, config(frozen_window=7))
    assert hash(base) == hash(stack_key(tower(3), config()))
    for model in (tower(depth=3), tower(width=8), tower(norm="batch"), tower(encoder="affine"), tower(num_classes=3)):
        assert stack_key(model, config()) != base
    for options in ({"batch_size": 8}, {"steps": 31}, {"val_size": 5}, {"optimizer": "adamw"}, {"precision": "bf16"}):
        assert stack_key(tower(), config(**options)) != base


def test_what_cannot_be_stacked_is_refused(digits, tmp_path):
    def refused(models, configs, text, **options):
        with pytest.raises(PathsumError, match=text) as caught:
            fit_stack(models, digits, configs, outs=[tmp_path / "a", tmp_path / "b"], **options)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "a").exists()

    two = [config(), config()]
    refused([tower(), tower(1, depth=3)], two, r"network 1 .* network 0 \(model\.depth: 2 -> 3\); group the runs by")
    refused([tower(), tower(1)], [config(), config(batch_size=8)], r"train\.batch_size: 16 -> 8")
    refused([tower(), tower(1).double()], two, r'dtype: "torch\.float32" -> "torch\.float64"')
    frozen = tower(1)
    frozen.encoder.requires_grad_(False)
    refused([tower(), frozen], two, r"fixed parameters: \[\] -> \[\"encoder\.conv\.weight\"")
    refused([tower(), ResidualMLP(2, 4, seed=0)], two, "network 1 is a ResidualMLP; only ResidualTower can be stacked")
    same = tower()
    refused([same, same], two, "network 1 is in the stack twice")
    refused([tower()], two, r"one of each for every network, got \{'models': 1, 'configs': 2, 'outs': 2\}")
    checkpointed = tower(1)
    checkpointed.memory = "checkpoint"
    refused([tower(), checkpointed], two, "network 1 has memory 'checkpoint'")
    learner = tower(scale="learned:1/n").requires_grad_(False)
    learner.lam.requires_grad_()
    refused([learner, tower(1).requires_grad_(False)], two, "ResidualTower has no trainable parameters")
    assert fit_stack([], digits, []) == []


def test_fixed_parameters_stay(digits):
    models = [tower(i) for i in range(2)]
    for model in models:
        model.encoder.requires_grad_(False)
    before = [model.encoder.conv.weight.clone() for model in models]
    results = fit_stack(models, digits, [config(seed=i, steps=5) for i in range(2)])
    assert [result.status for result in results] == ["done", "done"]
    assert all(torch.equal(model.encoder.conv.weight, old) for model, old in zip(models, before, strict=True))


# --- precision ---


@pytest.mark.parametrize("precision", ["bf16", "tf32"])
def test_other_precisions_learn_the_same_to_their_digits(digits, precision):
    """bfloat16 has 8 bits: losses of a few steps agree to a per cent, in a stack and alone; TF32 is a GPU's matter."""
    configs = [config(0.02, seed=i, steps=10, precision=precision) for i in range(2)]
    exact = fit(tower(0), digits, config(0.02, seed=0, steps=10))
    stack = fit_stack([tower(0), tower(1)], digits, configs)[0]
    alone = fit(tower(0), digits, configs[0])
    for result in (stack, alone):
        assert result.status == "done"
        assert result.final_loss == pytest.approx(exact.final_loss, rel=2e-2)
        assert (result.final_loss == exact.final_loss) == (precision == "tf32" and result is alone)
    assert not torch.backends.cuda.matmul.allow_tf32


# --- on a GPU ---


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_captured_steps_on_a_gpu_agree_with_each_network_alone(digits, precision):
    data = load("digits", train_limit=400, test_limit=60, device="cuda")
    configs = [config(lr, seed=i, precision=precision) for i, lr in enumerate((0.05, 1e25, 0.02))]
    pairs = [[tower(i, width=16, norm="batch").cuda() for i in range(3)] for _ in range(2)]
    results = fit_stack(pairs[0], data, configs)
    alone = [fit(model, data, c) for model, c in zip(pairs[1], configs, strict=True)]
    assert [result.status for result in results] == ["done", "diverged", "done"]
    rel = {"fp32": 2e-3, "tf32": 5e-2, "bf16": 2e-1}[precision]
    for result, twin in zip(results, alone, strict=True):
        assert result.status == twin.status
        assert result.final_loss == pytest.approx(twin.final_loss, rel=rel, nan_ok=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_stack_on_a_gpu_resumes(digits, tmp_path, monkeypatch):
    data = load("digits", train_limit=400, test_limit=60, device="cuda")
    configs = [config(seed=i) for i in range(2)]
    whole = fit_stack([tower(i).cuda() for i in range(2)], data, configs)
    outs = [tmp_path / str(i) for i in range(2)]
    signal_at(monkeypatch, 16)
    fit_stack([tower(i).cuda() for i in range(2)], data, configs, outs=outs)
    results = fit_stack([tower(i).cuda() for i in range(2)], data, configs, outs=outs)
    for result, twin in zip(results, whole, strict=True):
        assert_close(result, twin, rel=1e-2, abs=1e-3)
