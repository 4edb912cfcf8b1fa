"""Observers: what they measure, that training does not notice them, files that survive, and the loops of others."""

import itertools
import json
import types
from dataclasses import replace
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import pathsum as ps
from pathsum import runs
from pathsum.data import load
from pathsum.errors import DataError, NoJoinsError, OutputError, PathsumError
from pathsum.nets.tower import ResidualTower
from pathsum.observe import MEASURES, Instruments, LightningObserver, Observer, Probe, TrainerObserver
from pathsum.observe import observer as observer_module
from pathsum.observe.period import BUDGET, SLACK, passes, period
from pathsum.runs import read_rows
from pathsum.store import RunConfig
from pathsum.sweeping.config import key_of
from pathsum.train import TrainConfig, fit, fit_stack
from pathsum.training.loop import Training
from pathsum.training.options import OBSERVING, Measured

pytestmark = pytest.mark.usefixtures("one_thread")

EVERYTHING = ("complexity", "lengths", "orders", "lam", "gradient")


@pytest.fixture(scope="module")
def digits():
    return load("digits", train_limit=200, test_limit=40)


def tower(seed=0, depth=2, width=4, **options):
    return ResidualTower(depth, width, **{"in_channels": 1, "encoder": "conv3x3", "seed": seed, **options})


def config(**options):
    return TrainConfig(**{"lr": 0.05, "steps": 20, "batch_size": 16, "eval_every": 10, "augment": False, **options})


def timeless(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def probe_of(n=5):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 1, 8, 8, generator=generator), torch.arange(n) % 10


class Dropped(nn.Module):
    """A residual net that draws random numbers in training."""

    def __init__(self):
        super().__init__()
        self.first, self.branch, self.last = nn.Linear(64, 8), nn.Linear(8, 8), nn.Linear(8, 10)
        self.drop = nn.Dropout(0.3)

    def forward(self, x):
        z = self.first(x.flatten(1))
        return self.last(z + self.branch(self.drop(F.relu(z))))


# ---- what is measured


def test_every_measure_is_what_its_definition_says():
    net = tower(scale="learned:1/n").double()
    x, y = probe_of()
    x = x.double()
    row = Instruments(net, Probe.of((x, y)), EVERYTHING).read(7)
    net.eval()
    jacobian = torch.autograd.functional.jacobian(net, x)  # (B, C, B, ...)
    literal = sum(jacobian[i, :, i].square().sum() for i in range(len(x))) / len(x)
    assert row["complexity"] == pytest.approx(float(literal), rel=1e-10)
    F.cross_entropy(net(x), y).backward()
    squares = {name: float(p.grad.square().sum()) for name, p in net.named_parameters()}
    assert row["probe_grad_norm"] == pytest.approx(sum(squares.values()) ** 0.5, rel=1e-10)
    for i in (0, 1):
        inside = sum(value for name, value in squares.items() if name.startswith(f"blocks.{i}."))
        assert row["branch_grad_norm"][i] == pytest.approx(inside**0.5, rel=1e-10)
    spectrum, expansion = ps.spectrum(net, x), ps.expand(net, x, order=2)
    assert row["mean_length"] == spectrum.mean_length()
    assert sum(row["length_energy"]) == pytest.approx(float(spectrum.terms.square().sum()) / len(x), rel=1e-10)
    energies = [float((0.5**k * term).square().sum()) / len(x) for k, term in enumerate(expansion.terms)]
    assert row["order_energy"] == pytest.approx(energies, rel=1e-10)
    assert (row["lam"], row["step"]) == ([0.5, 0.5], 7)
    assert row["probe_loss"] == pytest.approx(float(F.cross_entropy(net(x), y).detach()))


def test_what_applies_is_measured_where_nothing_is_asked():
    net = tower().double()
    x, y = probe_of()
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).double()
    assert set(Instruments(plain, Probe.of(x.double())).read(0)) == {"step", "complexity", "seconds"}
    assert "probe_grad_norm" not in Instruments(net, Probe.of(x.double())).read(0)
    everything = Instruments(net, Probe.of((x.double(), y))).read(0)
    assert {"complexity", "mean_length", "order_energy", "lam", "probe_grad_norm"} <= set(everything)
    with pytest.raises(NoJoinsError, match="no residual joins"):
        Instruments(plain, Probe.of(x.double()), ["lam"]).read(0)
    with pytest.raises(DataError, match="needs labels; give the probe as"):
        Instruments(net, Probe.of(x.double()), ["gradient"]).read(0)


def test_a_measure_of_ones_own():
    def weight_norm(net, probe):
        return {"weight_norm": float(sum(p.square().sum() for p in net.model.parameters()) ** 0.5)}

    net = tower()
    watch = Observer(net, probe_of()[0], every=1, measures=[weight_norm, "lam"])
    assert watch.rows[0]["weight_norm"] > 0
    assert watch.rows[0]["lam"] == list(net.scales)


def test_wide_outputs_take_random_probes(monkeypatch):
    monkeypatch.setattr("pathsum.observe.measures.MOST_OUTPUTS", 9)
    net = tower()
    x, _ = probe_of(n=40)
    exact = ps.geometric_complexity(net.eval(), x).value
    first, again = (Instruments(net, Probe.of(x), ["complexity"]).read(0) for _ in range(2))
    assert first["complexity"] == again["complexity"]  # the same probes each time
    assert abs(first["complexity"] - exact) < 5 * first["complexity_error"]
    assert first["complexity"] != exact


def test_the_options_name_every_measure():
    assert set(get_args(Measured)) == set(MEASURES) == set(EVERYTHING)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "a probe is a tensor x, a pair"),
        (torch.zeros(0, 3), "the probe holds no samples"),
        (torch.zeros(()), "the probe holds no samples"),
        ({}, "the probe holds no samples"),
    ],
)
def test_what_is_no_probe(value, message):
    with pytest.raises(DataError, match=message):
        Probe.of(value)


# ---- training does not notice


def test_nothing_is_left_behind():
    net = tower().train()
    net.blocks[0].eval()  # not all in one mode
    x, y = probe_of()
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    modes = [module.training for module in net.modules()]
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    random = torch.get_rng_state()

    def fails(net, probe):
        torch.rand(3)
        net.model.encoder.norm.running_mean.add_(1)
        raise RuntimeError("in the midst of it")

    Instruments(net, Probe.of((x, y))).read(0)
    with pytest.raises(RuntimeError, match="in the midst"):
        Instruments(net, Probe.of((x, y)), [fails]).read(0)
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
    assert all(torch.equal(p.grad, torch.ones_like(p)) and p.requires_grad for p in net.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


@pytest.mark.parametrize("build", [tower, Dropped])
def test_an_observed_run_trains_bitwise_as_one_that_is_not(digits, build):
    torch.manual_seed(3)
    plain = build()
    observed = build()
    observed.load_state_dict(plain.state_dict())
    without = fit(plain, digits, config(), progress=False)
    asked = config(observe=EVERYTHING, observe_every=5, observe_size=16)
    result = fit(observed, digits, asked, progress=False)
    assert timeless(result.rows) == timeless(without.rows)
    pairs = zip(plain.state_dict().values(), observed.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert [row["step"] for row in result.observations] == [0, 5, 10, 15, 20]
    assert 0 < result.observing_share < 1
    assert without.observations == []
    assert without.observing_share == 0


def test_a_loop_of_ones_own_is_not_disturbed():
    x, y = probe_of(n=12)

    def train(observed):
        torch.manual_seed(0)
        net = Dropped().train()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        watch = Observer(net, (x, y), every=2) if observed else None
        for _ in range(6):
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
            if watch is not None:
                watch.step()
        return net.state_dict(), watch

    plain, _ = train(False)
    seen, watch = train(True)
    assert all(torch.equal(plain[name], seen[name]) for name in plain)
    assert [row["step"] for row in watch.rows] == [0, 2, 4, 6]
    assert watch.table()["complexity"].notna().all()
    assert watch.plot(name="mean_length").get_ylabel() == "mean length"
    with pytest.raises(PathsumError, match="no number 'loss' in the rows, which have complexity"):
        watch.plot(name="loss")


# ---- files


def broken_off(net, digits, asked, out, at):
    """A run that dies without warning after its step `at`, its last line torn."""
    steps = itertools.count(1)

    class Killed(BaseException):
        pass

    taken = Training._update

    def update(self, x, y):
        if next(steps) > at:
            raise Killed
        taken(self, x, y)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "_update", update)
        with pytest.raises(Killed):
            fit(net, digits, asked, out=out, progress=False)
    with open(out / runs.OBSERVATIONS, "a") as file:
        file.write('{"step": 12, "comple')


@pytest.mark.parametrize("at", [3, 8, 15])
def test_a_resumed_run_has_every_observation_once(digits, tmp_path, at):
    asked = config(observe=("complexity", "lam"), observe_every=2, observe_size=8, checkpoint_every=5)
    whole = fit(tower(), digits, asked, out=tmp_path / "whole", progress=False)
    broken_off(tower(), digits, asked, tmp_path / "broken", at)
    result = fit(tower(), digits, asked, out=tmp_path / "broken", progress=False)
    assert timeless(result.observations) == timeless(whole.observations)
    assert timeless(result.rows) == timeless(whole.rows)
    lines = (tmp_path / "broken" / runs.OBSERVATIONS).read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(0, 21, 2))
    read = runs.read_run(tmp_path / "broken")
    assert timeless(read.observations) == timeless(whole.observations)
    again = fit(tower(), digits, asked, out=tmp_path / "broken", progress=False)  # finished: read back
    assert again.observations == result.observations


def test_a_failed_run_is_not_observed_after_its_failure(digits, tmp_path):
    asked = config(lr=1e6, divergence_window=10, observe=("complexity",), observe_every=1, observe_size=8, steps=50)
    result = fit(tower(), digits, asked, out=tmp_path / "run", progress=False)
    assert result.status == "diverged"
    assert all(row["step"] < result.steps for row in result.observations)
    assert read_rows(tmp_path / "run" / runs.OBSERVATIONS) == result.observations  # no number JSON does not know


def test_the_observers_own_file(tmp_path):
    net, out = tower(), tmp_path / "deep" / "observations.jsonl"
    watch = Observer(net, probe_of()[0], every=2, measures=["lam"], out=out)
    for _ in range(5):
        watch.step()
    assert [row["step"] for row in read_rows(out)] == [0, 2, 4]
    with open(out, "a") as file:
        file.write('{"step": 6, "la')
    with pytest.raises(OutputError, match="holds observations up to step 4; give start=STEP to go on"):
        Observer(net, probe_of()[0], every=2, measures=["lam"], out=out)
    resumed = Observer(net, probe_of()[0], measures=["lam"], out=out, start=3)
    assert resumed.every == 2  # as before
    for _ in range(3):
        resumed.step()
    resumed.finish()
    assert [row["step"] for row in read_rows(out)] == [0, 2, 4, 6]
    at_its_step = Observer(net, probe_of()[0], every=5, measures=["lam"], out=out, start=5)
    assert [row["step"] for row in at_its_step.rows] == [0, 2, 4, 5]


# ---- stacks


def test_networks_of_a_stack_are_observed_one_by_one(digits, tmp_path):
    asked = [
        config(seed=k, lr=lr, observe=EVERYTHING, observe_every=10, observe_size=8) for k, lr in ((0, 0.05), (1, 0.02))
    ]
    scales = ("1/n", "learned:0.3")
    models = [tower(seed=k, scale=scale) for k, scale in enumerate(scales)]
    outs = [tmp_path / "0", tmp_path / "1"]
    stacked = fit_stack(models, digits, asked, outs=outs, progress=False)
    for k, scale in enumerate(scales):
        alone = fit(tower(seed=k, scale=scale), digits, asked[k], progress=False)
        assert [row["step"] for row in stacked[k].observations] == [0, 10, 20]
        for row, twin in zip(stacked[k].observations, alone.observations, strict=True):
            assert row.keys() == twin.keys()
            for name in row.keys() - {"seconds"}:  # the stack sums in another order, which 20 steps amplify
                assert row[name] == pytest.approx(twin[name], rel=2e-3, abs=1e-5), name
        assert runs.read_run(outs[k]).observations == stacked[k].observations
    assert stacked[0].observations[0]["seconds"] == stacked[1].observations[0]["seconds"]
    assert stacked[1].observations[-1]["lam"] != stacked[1].observations[0]["lam"]


def test_an_observed_stack_trains_bitwise_as_one_that_is_not(digits):
    def train(**options):
        lrs = (0.05, 1e7)  # the second diverges and leaves
        asked = [config(seed=k, lr=lr, **options) for k, lr in enumerate(lrs)]
        return fit_stack([tower(seed=k) for k in (0, 1)], digits, asked, progress=False)

    plain, observed = train(), train(observe=("complexity",), observe_every=4, observe_size=8)
    assert [result.status for result in plain] == ["done", "diverged"]
    for a, b in zip(plain, observed, strict=True):
        assert (a.status, a.steps) == (b.status, b.steps)
        assert timeless(a.rows) == timeless(b.rows)
    assert [row["step"] for row in observed[0].observations] == [0, 4, 8, 12, 16, 20]


# ---- how often


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 10**5), st.floats(1, 1e5), st.integers(1, 512))
def test_observations_stay_within_their_budget(steps, samples, batch_size):
    every = period(steps, samples=samples, batch_size=batch_size)
    count = 1 + -(-steps // every)  # the start, the multiples, the end
    assert 1 <= every <= steps
    cost = SLACK * samples / (3 * batch_size)
    assert count == 2 or count * cost <= BUDGET * steps * (1 + 1e-9)


def test_the_worth_of_an_observation():
    each = {name: passes([name], depth=3, classes=10, order=4) for name in EVERYTHING}
    assert each == {"complexity": 11, "lengths": 3, "orders": 5, "lam": 0, "gradient": 3}
    assert period(100, samples=0, batch_size=64) <= 10


def test_the_period_of_a_run_is_the_same_wherever_it_runs(digits):
    asked = config(steps=30, observe=("lam", "complexity"), observe_size=16)
    result = fit(tower(), digits, asked, progress=False)
    every = period(30, samples=16 * 11, batch_size=16)
    assert [row["step"] for row in result.observations] == sorted({*range(0, 31, every), 30})


def test_a_plain_observer_settles_on_a_period_once(monkeypatch):
    clock = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr(observer_module, "time", types.SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(Instruments, "read", lambda self, step: {"step": step, "seconds": 1.0})
    watch = Observer(tower(), probe_of()[0], budget=0.1)
    for _ in range(100):
        clock.now += 0.3
        watch.step()
    # An observation of a second needs nine of training: 30 steps of 0.3 s, and 50 is the next round number.
    assert watch.every == 50
    assert [row["step"] for row in watch.rows] == [0, 50, 100]
    assert "every 50 steps" in repr(watch)


@pytest.mark.slow
def test_the_default_takes_a_tenth_of_the_time(digits):
    """By the clock, of a short run; sizes at which PyTorch's own overhead counts."""
    asked = config(steps=200, batch_size=64, observe=("complexity", "lengths", "lam", "gradient"))
    result = fit(tower(depth=8, width=8), digits, asked, progress=False)
    assert len(result.observations) >= 2
    assert result.observing_share < 0.1


# ---- options and keys


def test_a_run_that_is_not_observed_is_the_run_it_was():
    plain = RunConfig(model={"depth": 2}, train=TrainConfig(lr=0.1, steps=20))
    assert not plain.to_json()["train"].keys() & set(OBSERVING)
    assert plain.key == "682c2b5c34a8f787"  # as before there were observers
    assert plain.key == replace(plain, train=replace(plain.train, observe_size=8)).key
    observed = replace(plain, train=replace(plain.train, observe=("complexity",)))
    assert observed.key != plain.key
    assert RunConfig.from_json(observed.to_json()) == observed
    assert key_of(observed.to_json()) == observed.key


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"observe": ("colour",)}, "observe has 'colour'; give complexity, lengths, orders, lam, gradient, each once"),
        ({"observe": ("lam", "lam")}, "observe has 'lam'"),
        ({"observe_every": 0}, "observe_every is 0, expected 1 or more"),
        ({"observe_size": 0}, "observe_size is 0, expected 1 or more"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(PathsumError, match=message):
        config(**options)


def test_errors_of_an_observer(digits):
    x, _ = probe_of()
    with pytest.raises(PathsumError, match="'sharpness' is no measure: choose from complexity"):
        Observer(tower(), x, measures=["sharpness"])
    with pytest.raises(PathsumError, match="every is 0, expected a whole number, 1 or more"):
        Observer(tower(), x, every=0)
    with pytest.raises(PathsumError, match="budget is 2, expected a share of the time"):
        Observer(tower(), x, budget=2)
    with pytest.raises(DataError, match="observe_size is 999, but digits has 200 training images; observe fewer"):
        fit(tower(), digits, config(observe=("lam",), observe_size=999), progress=False)


# ---- the loops of others


def test_transformers_calls_its_hooks(tmp_path):
    callbacks = pytest.importorskip("transformers.trainer_callback", reason="transformers is not installed")
    net = Dropped()
    x, y = probe_of(n=6)
    watch = TrainerObserver((x, y), every=2, measures=["complexity", "gradient"], out=tmp_path / "seen.jsonl")
    handler = callbacks.CallbackHandler([watch], net, None, torch.optim.SGD(net.parameters(), lr=0.1), None)
    arguments, state, control = types.SimpleNamespace(), callbacks.TrainerState(), callbacks.TrainerControl()
    handler.on_init_end(arguments, state, control)
    handler.on_train_begin(arguments, state, control)
    for _ in range(5):
        handler.on_step_begin(arguments, state, control)
        handler.on_substep_end(arguments, state, control)
        handler.on_pre_optimizer_step(arguments, state, control)
        handler.on_optimizer_step(arguments, state, control)
        state.global_step += 1
        handler.on_step_end(arguments, state, control)
    handler.on_log(arguments, state, control, {"loss": 1.0})
    handler.on_evaluate(arguments, state, control, {})
    handler.on_save(arguments, state, control)
    handler.on_train_end(arguments, state, control)
    assert [row["step"] for row in read_rows(tmp_path / "seen.jsonl")] == [0, 2, 4, 5]
    state.global_step = 3  # resumed from a checkpoint
    handler.on_train_begin(arguments, state, control)
    state.global_step = 4
    handler.on_step_end(arguments, state, control)
    assert [row["step"] for row in read_rows(tmp_path / "seen.jsonl")] == [0, 2, 4]


def test_every_hook_of_transformers_is_there():
    callbacks = pytest.importorskip("transformers.trainer_callback", reason="transformers is not installed")
    hooks = [name for name in dir(callbacks.TrainerCallback) if name.startswith("on_")]
    assert len(hooks) > 10
    assert all(callable(getattr(TrainerObserver(torch.zeros(2, 3)), name)) for name in hooks)
    with pytest.raises(AttributeError, match="no 'of_a_kind'"):
        TrainerObserver(torch.zeros(2, 3)).of_a_kind  # noqa: B018


@pytest.mark.slow
def test_a_real_trainer(tmp_path):
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    sizes = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=11, n_positions=8)
    torch.manual_seed(0)
    net = transformers.GPT2LMHeadModel(sizes)
    ids = torch.randint(0, 11, (8, 6))
    watch = TrainerObserver({"input_ids": ids[:4]}, every=2, measures=["complexity", "lengths"])
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=4, per_device_train_batch_size=4, report_to=[], use_cpu=True,
        save_strategy="no", logging_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    data = [{"input_ids": row, "labels": row} for row in ids]
    transformers.Trainer(net, arguments, train_dataset=data, callbacks=[watch]).train()
    assert [row["step"] for row in watch.observer.rows] == [0, 2, 4]
    assert all(len(row["length_energy"]) == 5 for row in watch.observer.rows)


def fake_lightning(module, callback, steps, *, accumulate=1, start=0):
    """The hooks of one fit, in the order of Lightning's documentation."""
    trainer = types.SimpleNamespace(global_step=start)
    callback.setup(trainer, module, "fit")
    callback.on_fit_start(trainer, module)
    callback.on_sanity_check_start(trainer, module)
    callback.on_sanity_check_end(trainer, module)
    callback.on_train_start(trainer, module)
    callback.on_train_epoch_start(trainer, module)
    for index in range(steps * accumulate):
        callback.on_train_batch_start(trainer, module, None, index)
        callback.on_before_zero_grad(trainer, module, None)
        callback.on_before_backward(trainer, module, None)
        callback.on_after_backward(trainer, module)
        trainer.global_step += (index + 1) % accumulate == 0
        callback.on_train_batch_end(trainer, module, None, None, index)
    callback.on_train_epoch_end(trainer, module)
    callback.on_save_checkpoint(trainer, module, {})
    callback.on_train_end(trainer, module)
    callback.on_fit_end(trainer, module)
    callback.teardown(trainer, module, "fit")


def test_lightnings_order_of_hooks():
    module = nn.Module()
    module.net = Dropped()
    x, _ = probe_of()
    watch = LightningObserver(x, model=lambda module: module.net, every=2, measures=["lengths"])
    fake_lightning(module, watch, 5, accumulate=3)
    assert [row["step"] for row in watch.observer.rows] == [0, 2, 4, 5]
    assert watch.state_dict() == {}
    fake_lightning(module, watch, 2, start=5)
    assert [row["step"] for row in watch.observer.rows] == [5, 6, 7]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Lightning's own
def test_real_lightning(tmp_path):
    lightning = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = Dropped()

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, index):
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    x, y = probe_of(n=12)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=4)
    watch = LightningObserver((x[:4], y[:4]), every=2, out=tmp_path / "seen.jsonl")
    trainer = lightning.Trainer(
        max_steps=5, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path, callbacks=[watch], enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(Module(), loader)
    assert [row["step"] for row in read_rows(tmp_path / "seen.jsonl")] == [0, 2, 4, 5]
