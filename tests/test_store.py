"""The store: what a run is called, who may work on it, and when it is given up."""

import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from pathsum import runs
from pathsum.data import load
from pathsum.errors import CheckpointError, OutputError, PathsumError
from pathsum.nets.mlp import ResidualMLP
from pathsum.storage import create, read_state, read_tensors, write_tensors
from pathsum.store import RunConfig, Store
from pathsum.sweeping import lease
from pathsum.sweeping.config import key_of
from pathsum.train import TrainConfig
from tests.sweeps import run

ELSEWHERE = {"host": "far", "machine": "far", "pid": 1, "started": 1}


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store", max_attempts=3)


@pytest.fixture
def one(store) -> RunConfig:
    return store.register([run()])[0]


def die(store: Store, config: RunConfig) -> None:
    """A process on this machine claims a run and dies of it."""
    script = (
        "import os, sys; from pathsum.store import Store; from tests.sweeps import run; "
        "assert Store(sys.argv[1]).claim(run()); os._exit(1)"
    )
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    subprocess.run([sys.executable, "-c", script, str(store.root)], cwd=root, check=False)


def finish(store: Store, config: RunConfig, **summary) -> None:
    """A run as training leaves it."""
    folder = store.folder(config)
    (folder / runs.ROWS).write_text('{"step": 0, "train_loss": null}\n{"step": 20, "train_loss": 0.5}\n')
    (folder / runs.DONE).write_text(
        json.dumps({"status": "done", "best_test": 0.5, "steps": 20, "seconds": 1.0, **summary})
    )


# --- what a run is ---


def test_the_key_is_of_all_that_changes_the_rows():
    config = run(lr=0.1)
    same = [
        run(lr=0.1, threads=2, tensorboard=True),
        replace(config, name="mine"),
        replace(config, model={"depth": 2.0, **{k: v for k, v in config.model.items() if k != "depth"}}),
        replace(config, model={**config.model, "scale": " 1 / √n"}),
    ]
    assert {other.key for other in same} == {config.key}
    others = [
        run(lr=0.2), run(lr=0.1, seed=1), run(lr=0.1, model={"depth": 3}), run(lr=0.1, model={"norm": "batch"}),
        run(lr=0.1, model={"seed": 7}), replace(config, train_limit=100), replace(config, data_seed=1),
        replace(config, data="cifar10:x"), replace(config, activations="reverse"), run(lr=0.1, precision="bf16"),
    ]  # fmt: skip
    assert len({other.key for other in [config, *others]}) == len(others) + 1
    assert len(config.key) == 16
    assert int(config.key, 16) >= 0


def test_a_record_is_the_configuration():
    config = run(crop_scale=(0.6, 1.0), lr=1)
    record = json.loads(json.dumps(config.to_json()))
    assert RunConfig.from_json(record) == config
    assert key_of(record) == config.key
    assert hash(RunConfig.from_json(record)) == hash(config)
    del record["model"]["zero_init_last"], record["activations"], record["train"]["weight_decay"]  # an older record
    assert RunConfig.from_json(record) == config
    for part, text in ((record, "the run record"), (record["train"], "the training record")):
        part["futuristic"] = 1
        with pytest.raises(
            PathsumError, match=rf"{text} holds unknown fields \(futuristic\); it is of another version"
        ):
            RunConfig.from_json(record)
        del part["futuristic"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"model": {"dept": 3}}, "ResidualTower has no option 'dept'; its options are depth, width"),
        ({"model_class": "Evil"}, "model_class is 'Evil', expected one of ResidualTower, ResidualMLP"),
        ({"model": {"scale": "sqrt(n)!"}}, "sqrt"),
        ({"model": {"init": {1, 2}}}, "cannot be written as JSON"),
        ({"activations": "none"}, "memory='none' is unknown"),
        ({"name": "a/b"}, "name is 'a/b', expected one that can be a folder's"),
        ({"name": ".."}, "name is '..', expected"),
    ],
)
def test_what_cannot_be_a_run_is_refused(options, text):
    with pytest.raises(PathsumError, match=text):
        RunConfig(**options)


def test_the_network_takes_its_ends_from_the_data_and_its_seed_from_the_training():
    data = load("digits", test_limit=10)
    tower = run(seed=3).build(data)
    assert tower.config["in_channels"] == 1
    assert tower.config["seed"] == 3
    mlp = RunConfig(model_class="ResidualMLP", model={"depth": 1, "width": 8}, activations="checkpoint").build(data)
    assert isinstance(mlp, ResidualMLP)
    assert mlp.memory.mode == "checkpoint"
    assert mlp(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


# --- entering runs ---


def test_registering_again_changes_nothing(store):
    config = run(lr=0.1)
    assert store.register([config, config]) == [config]
    before = (store.folder(config) / runs.CONFIG).stat()
    store.register([replace(config, train=replace(config.train, threads=2))])
    assert (store.folder(config) / runs.CONFIG).stat() == before
    assert store.state(config) == "waiting"
    assert json.loads((store.folder(config) / runs.CONFIG).read_text())["environment"]["torch"] == torch.__version__


def test_a_folder_of_another_run_is_refused(store, one):
    path = store.folder(one) / runs.CONFIG
    record = json.loads(path.read_text())
    record["request"]["train"]["lr"] = 7.0
    path.write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=r"is of the run \w{16}, not of the one its folder is named after"):
        store.register([one])
    with pytest.raises(CheckpointError, match="put it back, or remove the folder"):
        store.status()
    named = replace(one, name="mine")
    store.register([named])
    with pytest.raises(CheckpointError, match=r"another configuration \(train.lr: 0.1 -> 0.5, stored -> asked\)"):
        store.register([replace(run(lr=0.5), name="mine")])
    with pytest.raises(PathsumError, match="two different runs are both named 'mine'"):
        store.register([named, replace(run(lr=0.5), name="mine")])
    runs.open_run(store.root / "other", {"train": {}})
    with pytest.raises(CheckpointError, match="holds a run that no sweep asked for"):
        store.register([replace(one, name="other")])


def test_a_read_only_store_is_one_clear_line(store, monkeypatch):
    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    with pytest.raises(OutputError, match=r"cannot write .*: Read-only file system; free some space or choose another"):
        store.register([run()])


# --- leases ---


def test_of_many_at_once_one_gets_a_run(store, one):
    for round_number in range(20):
        barrier = threading.Barrier(8)

        def claim(_, barrier=barrier):
            barrier.wait()
            return store.claim(one)

        with ThreadPoolExecutor(8) as pool:
            got = [held for held in pool.map(claim, range(8)) if held]
        assert len(got) == 1
        assert got[0].number == round_number + 1
        assert store.state(one) == "running"
        if round_number % 2:  # the next ones find a dead holder
            path = lease.path_of(store.folder(one), got[0].number)
            path.write_text(json.dumps({**json.loads(path.read_text()), "started": 0, "step": -1}))
        else:
            got[0].release("interrupted")
        assert store.state(one) == "interrupted"


def test_a_dead_process_leaves_its_run_at_once(store, one):
    die(store, one)
    assert store.state(one) == "interrupted"
    held = store.claim(one)
    assert held is not None
    assert store.attempts(one)[0].outcome == "died"
    assert store.claim(one) is None
    zombie = subprocess.Popen([sys.executable, "-c", ""])
    lease_of_zombie = {"machine": lease.machine(), "pid": zombie.pid, "started": lease.started(zombie.pid)}
    time.sleep(0.3)
    assert lease.is_gone(lease_of_zombie)  # ended, and not yet waited for
    zombie.wait()


def test_another_machine_is_judged_by_its_heartbeat(store, one, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(lease, "whereabouts", lambda: ELSEWHERE)
        theirs = store.claim(one)
    path = lease.path_of(store.folder(one), 1)
    assert store.claim(one) is None
    old = time.time() - store.timeout - 1
    os.utime(path, (old, old))
    assert theirs.heartbeat()
    assert store.claim(one) is None  # it was only late
    os.utime(path, (old, old))
    ours = store.claim(one)
    assert ours is not None
    assert not theirs.heartbeat()  # it has to stop
    assert ours.heartbeat()
    ours.release("interrupted")
    store.claim(one)
    assert ours.heartbeat()  # released before, nothing was taken


def test_a_clock_that_is_ahead_takes_nothing_from_the_living(store, one, monkeypatch):
    monkeypatch.setattr(lease, "whereabouts", lambda: ELSEWHERE)
    assert store.claim(one) is not None
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3600)
    assert store.claim(one) is None


def test_a_file_is_created_once_and_whole(tmp_path):
    assert create(tmp_path / "x", "first\n")
    assert not create(tmp_path / "x", "second\n")
    assert (tmp_path / "x").read_text() == "first\n"
    assert os.listdir(tmp_path) == ["x"]


def test_a_run_that_was_finished_meanwhile_is_not_taken_up(store, one, monkeypatch):
    original = lease.acquire

    def late(folder, *args, **kwargs):
        finish(store, one)  # between the look and the lease
        return original(folder, *args, **kwargs)

    monkeypatch.setattr(lease, "acquire", late)
    assert store.claim(one) is None
    assert store.state(one) == "done"
    assert store.claim(one) is None


# --- giving up, and trying again ---


def test_a_run_is_given_up_after_attempts_that_came_to_nothing(store, one):
    for number in range(3):
        store.claim(one).release("error", f"boom {number}")
        assert store.state(one) == "interrupted"
    assert store.claim(one) is None
    assert store.state(one) == "failed"
    expected = "given up after 3 attempts without a new checkpoint; the last: boom 2"
    assert store.error(one) == expected == store.status()["error"][0]
    store.register([one])
    assert store.claim(one) is None
    store.register([one], retry=True)
    for _ in range(3):
        store.claim(one).release("error", "boom")
    assert store.claim(one) is None


def test_interruptions_and_progress_do_not_count(store, one):
    for number in range(8):
        store.claim(one).release("interrupted")
        held = store.claim(one)
        write_tensors(store.folder(one) / runs.CHECKPOINT, {"x": torch.zeros(1)}, {"step": number + 1})
        held.release("error", "killed by a neighbor")
    assert store.step(one) == 8
    assert store.state(one) == "interrupted"
    for number in range(3):  # more memory than there is, whatever step it comes to
        held = store.claim(one)
        write_tensors(store.folder(one) / runs.CHECKPOINT, {"x": torch.zeros(1)}, {"step": 9 + number})
        held.release("memory", "too much")
    assert store.claim(one) is None
    assert "the last: too much" in store.error(one)


def test_a_checkpoint_is_asked_for_its_step_alone(tmp_path):
    assert read_state(tmp_path / "none") == {}
    write_tensors(tmp_path / "x.safetensors", {"x": torch.zeros(3)}, {"step": 7})
    assert read_state(tmp_path / "x.safetensors") == {"step": 7}
    (tmp_path / "x.safetensors").write_bytes(b"torn")
    assert read_state(tmp_path / "x.safetensors") == {}


def test_a_checkpoint_is_read_whole_while_it_is_replaced(tmp_path):
    path, over = tmp_path / "x.safetensors", threading.Event()
    contents = []
    for number in range(20):
        write_tensors(path, {"x": torch.full((1000 + number,), float(number))}, {"step": number})
        contents.append(path.read_bytes())

    def replace_it() -> None:
        number = 0
        while not over.is_set():
            number = (number + 1) % 20
            (tmp_path / "next").write_bytes(contents[number])
            os.replace(tmp_path / "next", path)

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(replace_it)
        try:
            for _ in range(1000):
                assert "step" in read_state(path)
                tensors, state = read_tensors(path)
                assert torch.equal(tensors["x"], torch.full((1000 + state["step"],), float(state["step"])))
        finally:
            over.set()
        writer.result()


# --- reading back ---


def test_status_and_rows_are_tables(store):
    a, b = store.register([run(lr=0.1), run(lr=0.2)])
    finish(store, a)
    store.claim(b)
    table = store.status().set_index("key")
    assert table.loc[a.key, ["status", "step", "attempts", "best_test", "train.lr"]].tolist() == [
        "done",
        20,
        0,
        0.5,
        0.1,
    ]
    assert table.loc[b.key, ["status", "step", "attempts"]].tolist() == ["running", 0, 1]
    assert table.loc[b.key, "model.depth"] == 2
    rows = store.rows([a])
    assert rows["key"].tolist() == [a.key, a.key]
    assert rows["step"].tolist() == [0, 20]
    assert rows["train.lr"].tolist() == [0.1, 0.1]
    assert [run.folder.name for run in store.runs()] == [a.key]
    assert store.status([]).empty


def test_runs_are_found_by_a_beginning(store):
    a, b = store.register([run(lr=0.1), replace(run(lr=0.2), name="second")])
    assert store.find(a.key[:6]) == store.folder(a)
    assert store.find("sec") == store.find(b.key[:6]) == store.folder(b)
    with pytest.raises(PathsumError, match=r"'' begins 2 runs of .*; give more of the key"):
        store.find("")
    with pytest.raises(PathsumError, match=r"no run of .* begins with 'zz'; see 'pathsum runs ls"):
        store.find("zz")
    with pytest.raises(PathsumError, match="no folder nowhere"):
        Store("nowhere").find("a")


def test_removing_spares_what_is_running(store, one):
    held = store.claim(one)
    with pytest.raises(OutputError, match="is being trained by a live process; stop its sweep first"):
        store.remove(store.folder(one))
    held.release("interrupted")
    store.remove(store.folder(one))
    assert os.listdir(store.root) == []
    assert store.register([one])
    assert store.claim(one).number == 1


def test_a_defaulted_option_is_recorded():
    """So that a later change of a default cannot change what a stored run was."""
    assert RunConfig().to_json()["model"]["init"] == "lecun"
    assert RunConfig(train=TrainConfig()).to_json()["train"]["momentum"] == 0.9
