"""The Ray engine: on a fake foreman in this process; and, slow, on a cluster of two nodes of which one is killed."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from pathsum import runs
from pathsum.cli import main
from pathsum.errors import OutputError, PathsumError
from pathsum.store import Store
from pathsum.sweep import sweep
from pathsum.sweeping import foreman as foreman_module
from pathsum.sweeping import lease, parcels, ray_crew, ray_engine, ray_supervisor
from pathsum.sweeping.display import Display
from pathsum.sweeping.request import Request, times
from tests.sweeps import many, recorded, run, running, wait_for
from tests.test_sweep import check_whole, ends

ray = pytest.importorskip("ray")

pytestmark = pytest.mark.usefixtures("one_thread")

HERE = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The rows of `many(num, steps)`, by runs that nothing disturbed, in this process."""
    store = Store(tmp_path_factory.mktemp("reference"))

    def rows(num, steps):
        configs = many(num, steps)
        sweep(configs, store, engine="inline", device="cpu", progress=False)
        return recorded(store, configs)

    return rows


# --- what is asked for ---


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"engine": "local", "address": "auto"}, "--address is for a Ray cluster, and the engine is 'local'"),
        ({"engine": "inline", "gpus": 0.5}, "--gpus is for a Ray cluster, and the engine is 'inline'"),
        ({"engine": "ray"}, "needs the cluster's --address HOST:PORT, or auto; 'ray start --head' starts one"),
        ({"engine": "ray", "address": "somewhere"}, "--address is 'somewhere', expected HOST:PORT"),
        ({"engine": "ray", "address": "127.0.0.1:{port}"}, "no Ray cluster answers at 127.0.0.1:"),
        ({"engine": "ray", "cpus": 0}, "--cpus is 0, expected more than 0"),
        ({"engine": "ray", "gpus": 2}, "--gpus is 2, expected 0 to 1: a run uses one GPU, or a share of it"),
        ({"engine": "ray", "gpus": 0, "device": "cuda"}, "--device is cuda with --gpus 0"),
        ({"engine": "ray", "gpus": 0.5, "device": "cpu"}, "--device is cpu with --gpus 0.5"),
    ],
)
def test_what_cannot_be_meant_is_one_line(tmp_path, monkeypatch, options, text):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # nobody listens
        address = options.get("address", "").format(port=free.getsockname()[1])
        with pytest.raises(PathsumError, match=text):
            sweep([run()], tmp_path / "store", **{**options, **({"address": address} if address else {})})
    assert not ray.is_initialized()


def test_without_ray_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(PathsumError, match=r"needs Ray; run: pip install 'pathsum\[ray\]'"):
        sweep([run()], tmp_path, engine="ray", address="auto")


def test_the_command_line_passes_the_options_on(tmp_path, capsys):
    code = main(f"study table1 --preset smoke --out {tmp_path}/t --engine ray --address x --gpus 0.5".split())
    assert code == 2
    assert "--address is 'x', expected HOST:PORT" in capsys.readouterr().err


NODE = {"CPU": 8.0, "GPU": 2.0, "memory": 2.0**33}


@pytest.mark.parametrize(
    ("asked", "nodes", "text"),
    [
        ({}, [], "the cluster has no node that is alive"),
        ({"cpus": 16}, [NODE, NODE], "a task asks for 16 CPU, and the most on one node of the cluster is 8 CPU"),
        ({"device": "cuda"}, [{"CPU": 4.0}], "a task asks for 1 GPU, and the most on one node of the cluster is 0 GPU"),
        ({"memory": 2**34}, [NODE], "a task asks for 16,384 MiB of memory, and the most on one node"),
        ({"cpus": 16, "gpus": 1}, [NODE, {"CPU": 32.0}], "16 CPU and 1 GPU, which no node of the cluster has together"),
        ({"gpus": 0.5}, [NODE], ""),
    ],
)
def test_what_the_cluster_lacks_is_named(asked, nodes, text):
    missing = Request(**asked).complete(nodes).missing(nodes)
    assert text in missing
    assert bool(text) == bool(missing)


def test_how_many_tasks_fit():
    assert Request(cpus=2).complete([{"CPU": 8.0}]).slots([{"CPU": 8.0}, {"CPU": 3.0}, {}]) == 5
    request = Request(gpus=0.4).complete([NODE])
    assert (request.device, request.slots([NODE])) == ("cuda", 4)  # two to a GPU, though 2/0.4 is 5
    assert Request().complete([NODE]).need == {"CPU": 1.0, "GPU": 1.0}
    assert Request(device="cpu").complete([NODE]).need == {"CPU": 1.0}
    assert [times(1.0, 0.1), times(1.0, 1 / 3), times(3.5, 0.5), times(0.0, 0.5)] == [10, 3, 7, 0]


# --- run folders that travel ---


def trained(root, steps=20, **options):
    """A store with one run, to its end."""
    store = Store(root)
    sweep([run(steps=steps, **options)], store, engine="inline", device="cpu", progress=False)
    return store.folder(run(steps=steps, **options))


def test_a_parcel_is_the_run_and_a_finished_run_is_never_replaced(tmp_path):
    source = trained(tmp_path / "a")
    parcel = parcels.pack(source)
    assert set(parcel) == {"config.json", "rows.jsonl", "model.safetensors", "model.json", "done.json"}
    target = tmp_path / "b" / source.name
    target.mkdir(parents=True)
    (target / runs.CHECKPOINT).write_bytes(b"old")
    assert parcels.deliver(target, parcel)
    assert parcels.pack(target) == parcel
    other = {**parcel, runs.DONE: b"{}", runs.ROWS: b""}
    assert not parcels.deliver(target, other)
    assert parcels.pack(target) == parcel


def test_a_kill_while_a_run_arrives_leaves_it_resumable(tmp_path, monkeypatch):
    source = trained(tmp_path / "a")
    parcel, write = parcels.pack(source), parcels.write_atomic
    for number in range(4):
        store, left = Store(tmp_path / str(number)), [number]
        config = store.register([run()])[0]

        def torn(path, content, left=left):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            write(path, content)

        with monkeypatch.context() as patch:
            patch.setattr(parcels, "write_atomic", torn)
            with pytest.raises(KeyboardInterrupt):
                parcels.deliver(store.folder(config), parcel)
        assert store.state(config) == "waiting"
        result = sweep([config], store, engine="inline", device="cpu", progress=False)
        assert recorded(store, [config]) == recorded(Store(tmp_path / "a"), [config])
        assert result.counts == {"done": 1}


def test_an_older_checkpoint_does_not_replace_a_newer_one(tmp_path):
    states = {}
    for step in (5, 10):
        folder = tmp_path / str(step)
        folder.mkdir()
        parcels_of(folder, step)
        states[step] = parcels.pack(folder)
    target = tmp_path / "target"
    target.mkdir()
    assert [parcels.deliver(target, states[step]) for step in (5, 10, 5, 10)] == [True, True, False, False]
    assert parcels.pack(target) == states[10]
    assert not parcels.deliver(target, {runs.ROWS: b""})
    assert sorted(path.name for path in target.iterdir()) == [".lock", runs.CHECKPOINT, runs.ROWS]


def parcels_of(folder, step):
    """A checkpoint and its rows."""
    import torch

    from pathsum.storage import write_tensors

    (folder / runs.ROWS).write_text('{"step": 0}\n' * step)
    write_tensors(folder / runs.CHECKPOINT, {"x": torch.zeros(2)}, {"step": step})


def test_scratch_folders_end_and_those_of_the_dead_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    dead, alive = tmp_path / "pathsum-ray-dead", tmp_path / "pathsum-ray-alive"
    for folder, record in ((dead, {**lease.whereabouts(), "pid": 2**22 + 1}), (alive, lease.whereabouts())):
        folder.mkdir()
        (folder / parcels.OWNER).write_text(parcels.dump(record))
    with parcels.scratch() as root:
        assert root.parent == tmp_path
        assert not dead.exists()
    assert [path.name for path in tmp_path.iterdir()] == [alive.name]


# --- driver and tasks, in this process ---


class FakeForeman:
    """A foreman whose tasks run at once, in this process; `accident` may take the place of one."""

    def __init__(self, accident=None):
        self.real = foreman_module.Foreman.__new__(foreman_module.Foreman)
        self.real.__dict__.update(token="t", driver={}, seen=0.0, tasks={}, refs={}, claims={}, mail=[], count=0)
        self.accident = accident or (lambda number: None)
        self.submitted, self.killed = [], False

    def __getattr__(self, name):
        method = getattr(self, f"on_{name}", None) if name == "submit" else getattr(self.real, name)
        return SimpleNamespace(remote=method)

    def on_submit(self, task, parcel, options):
        self.submitted.append((task, parcel, options))
        self.real.tasks[task["name"]] = task
        message = self.accident(len(self.submitted))
        if message is None:
            message = foreman_module.train(task, parcel, self)
        elif callable(message):
            message = message(task, parcel, self)
        self.real.post(task["name"], {**message, "over": True})


@pytest.fixture
def on_fake(monkeypatch):
    """A function that sweeps as the driver of a fake foreman, and returns it."""
    monkeypatch.setattr(ray, "get", lambda value: value)
    monkeypatch.setattr(ray, "kill", lambda foreman: setattr(foreman, "killed", True))
    monkeypatch.setattr(ray_engine, "alive", lambda: [{"Resources": {"CPU": 2.0}}])
    monkeypatch.setattr(ray_crew, "BEAT", 0.01)

    def go(store, configs, fake, *, shared, asked=None):
        left = [config for config in store.register(configs) if store.state(config) not in ("done", "diverged")]
        known = fake.real.attach({"pid": 1}, {})
        request = Request(device="cpu", cpus=1.0, gpus=0.0, shared=asked)
        crew = ray_crew.RayCrew(store, fake, known, request, ray_engine.ray_options(request), every=0.01)
        crew.shared = shared
        try:
            with Display(store, len(left), repr, workers=2, show=False) as display:
                display.interval = 0.05
                ray_supervisor.ClusterSupervisor(store, left, crew, display, workers=2, stack=1).run()
        finally:
            crew.stop()
        return fake

    return go


@pytest.mark.parametrize("shared", [True, False])
def test_the_rows_are_those_of_the_runs_alone(tmp_path, on_fake, reference, shared):
    store = Store(tmp_path / "store")
    fake = on_fake(store, many(3), FakeForeman(), shared=shared)
    check_whole(store, many(3), reference(3, 40))
    assert all(len(store.attempts(config)) == 1 for config in many(3))
    assert fake.killed
    assert not list(store.root.glob(".probe*"))
    options = fake.submitted[0][2]
    assert (options["num_cpus"], options["scheduling_strategy"]) == (1.0, "SPREAD")
    assert options["max_retries"] == (ray_crew.RETRIES if shared else 0)


@pytest.fixture
def half(monkeypatch):
    """A task that sends the checkpoint of step 20, and then its node dies."""
    from pathsum.training.record import Record

    whole = Record.checkpoint

    def stops(self):
        whole(self)
        if self.step == 20:
            os.kill(os.getpid(), signal.SIGTERM)

    def task(task, parcel, fake):
        with monkeypatch.context() as patch:
            patch.setattr(Record, "checkpoint", stops)
            assert foreman_module.train(task, parcel, fake)["ended"][0]["status"] == "interrupted"
        return {"lost": "the node has died"}

    return task


def test_what_a_dead_node_had_sent_is_not_done_again(tmp_path, on_fake, reference, half):
    store, config = Store(tmp_path / "store"), many(3)[0]
    fake = on_fake(store, [config], FakeForeman(lambda number: half if number == 1 else None), shared=False)
    assert recorded(store, [config])[config.folder] == reference(3, 40)[config.folder]
    assert ends(store, config) == ["died", "done"]
    assert store.attempts(config)[1].record["step"] == 20
    assert set(fake.submitted[1][1][config.folder]) == {runs.CONFIG, runs.ROWS, runs.CHECKPOINT}


def test_a_run_that_kills_its_task_is_given_up(tmp_path, on_fake):
    def killed(task, parcel, fake):
        fake.real.post(task["name"], {"claimed": list(parcel), "host": "a", "pid": 1})
        return {"lost": "worker crashed"}

    store = Store(tmp_path / "store", max_attempts=3)
    fake = on_fake(store, [run()], FakeForeman(lambda number: killed), shared=False)
    assert store.state(run()) == "failed"
    assert "given up after 3 attempts" in store.error(run())
    assert len(fake.submitted) == 3


def test_tasks_that_never_begin_are_an_error_and_not_a_loop(tmp_path, on_fake):
    with pytest.raises(PathsumError, match="tasks in a row ended before they could train, the last so: no such thing"):
        on_fake(Store(tmp_path), [run()], FakeForeman(lambda number: {"lost": "no such thing"}), shared=True)


def test_a_node_without_the_store_gets_the_files(tmp_path, on_fake, reference):
    unshared = {"unshared": "far"}
    store = Store(tmp_path / "store")
    fake = on_fake(store, many(3), FakeForeman(lambda number: unshared if number == 1 else None), shared=True)
    check_whole(store, many(3), reference(3, 40))
    assert [parcel is None for _, parcel, _ in fake.submitted] == [True, True, False, False]
    with pytest.raises(PathsumError, match="node far does not see the store at .*; mount it there"):
        on_fake(Store(tmp_path / "b"), many(3), FakeForeman(lambda number: unshared), shared=True, asked=True)


def test_data_that_a_node_lacks_are_one_line_and_no_failed_run(tmp_path, on_fake):
    config = run(data="cifar10:data/nowhere")
    store = Store(tmp_path)
    with pytest.raises(PathsumError, match=r"node \S+ cannot read the data: .*nowhere.*at the same path on every node"):
        on_fake(store, [config], FakeForeman(), shared=True)
    assert store.state(config) == "waiting"


def test_a_full_disk_here_keeps_what_the_nodes_have_for_the_next_driver(tmp_path, on_fake, monkeypatch, reference):
    store, fake, configs = Store(tmp_path / "store"), FakeForeman(), many(3)[:1]

    def full(folder, files):
        raise OutputError("cannot write x: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ray_crew, "deliver", full)
        with pytest.raises(OutputError, match="No space left"):
            on_fake(store, configs, fake, shared=False)
    assert not fake.killed
    assert store.state(configs[0]) == "interrupted"
    on_fake(store, configs, fake, shared=False)  # the tasks are adopted: nothing is trained again
    assert len(fake.submitted) == 1
    assert recorded(store, configs) == {configs[0].folder: reference(3, 40)[configs[0].folder]}
    assert fake.killed


def test_a_foreman_keeps_what_was_not_taken_in_and_of_files_the_last():
    boss = FakeForeman().real
    boss.tasks = {"a": {"name": "a"}}
    for step in range(3):
        boss.post("a", {"files": {"x": bytes([step])}, "folder": "f"})
    boss.post("a", {"files": {"x": b"9"}, "folder": "g"})
    boss.post("a", {"ended": [], "over": True})
    letters, _ = boss.fetch(0)
    assert [letter[2].get("files") for letter in letters] == [{"x": b"\2"}, {"x": b"9"}, None]
    assert boss.fetch(0)[0] == letters
    assert boss.attach({"pid": 2}, {"pid": 1}) is None
    assert boss.attach({"pid": 2}, {})["tasks"] == [{"name": "a"}]
    assert boss.fetch(letters[-1][0]) == ([], 0)
    assert boss.tasks == {}


def test_when_the_owner_of_the_tasks_dies_another_takes_its_place(tmp_path, on_fake, monkeypatch, reference):
    store, second, config = Store(tmp_path / "store"), FakeForeman(), many(3)[0]
    monkeypatch.setattr(ray_engine, "hire", lambda store: (second, {"token": "u", "tasks": [], "claims": {}}))

    def dies(number):
        raise ray.exceptions.RayActorError

    first = on_fake(store, [config], FakeForeman(dies), shared=False)
    assert (len(first.submitted), len(second.submitted), first.killed, second.killed) == (1, 1, False, True)
    assert ends(store, config) == ["died", "done"]
    assert recorded(store, [config])[config.folder] == reference(3, 40)[config.folder]
    assert not list(store.root.glob(".probe*"))


def test_a_cluster_that_lost_its_nodes_is_an_error_in_the_end(tmp_path, on_fake, monkeypatch):
    monkeypatch.setattr(ray_engine, "alive", list)
    monkeypatch.setattr(ray_supervisor, "BARREN", -1.0)
    with pytest.raises(PathsumError, match="the cluster has no node that is alive; for -1 s no run could go on"):
        on_fake(Store(tmp_path), [run()], FakeForeman(), shared=True)


# --- a cluster of two nodes ---

cluster_test = pytest.mark.slow
STORE_BYTES = 80 * 2**20


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """The cluster's head with one CPU; a test adds the other node."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("OMP_NUM_THREADS", "1")
        args = {"num_cpus": 1, "object_store_memory": STORE_BYTES, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=args)
        try:
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()


@pytest.fixture
def second(head):
    """The second node, with one CPU."""
    node = head.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
    yield node
    while DRIVERS:
        left = DRIVERS.pop()
        left.kill()  # of a test that failed
        left.communicate()
    if node in head.worker_nodes:
        head.remove_node(node)


DRIVERS: list[subprocess.Popen] = []
DRIVER = """
import json, sys
from pathsum.store import Store
from pathsum.sweep import sweep
from pathsum.sweeping import ray_engine
from tests.sweeps import many
root, num, steps, address, shared = sys.argv[1:]
ray_engine.FETCH = 0.2
shared = {"None": None, "False": False, "True": True}[shared]
print(json.dumps(sweep(many(int(num), int(steps)), root, engine="ray", address=address, shared=shared).counts))
"""


def drive(root, num, steps, address, shared):
    """A driver in a process of its own."""
    command = [sys.executable, "-c", DRIVER, *map(str, (root, num, steps, address, shared))]
    process = subprocess.Popen(command, cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    DRIVERS.append(process)
    return process


def finish(process):
    """Wait for a driver that ends well."""
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err[-3000:]
    return out


def both_train(store, configs):
    """Whether two runs are being trained, and a checkpoint of each is in the store."""
    return store.root.is_dir() and len(running(store)) == 2 and sum(store.step(config) > 0 for config in configs) == 2


@cluster_test
@pytest.mark.parametrize("shared", [None, False])
def test_a_node_killed_in_the_middle(tmp_path, head, second, reference, shared):
    configs, store = many(3, 600), Store(tmp_path / "store")
    process = drive(store.root, 3, 600, head.address, shared)
    wait_for(lambda: both_train(store, configs[:2]), 180)
    head.remove_node(second, allow_graceful=False)
    finish(process)
    check_whole(store, configs, reference(3, 600))
    outcomes = [ends(store, config) for config in configs]
    lost = outcomes.count(["died", "done"])  # one was on that node, or both: the driver's own may be either of the two
    assert lost in (1, 2)
    assert sorted(outcomes) == sorted([["died", "done"]] * lost + [["diverged"]] + [["done"]] * (2 - lost))
    assert not list(store.root.glob(".probe*"))


@cluster_test
@pytest.mark.parametrize("shared", [None, False])
def test_a_driver_killed_and_started_again(tmp_path, head, second, reference, shared):
    configs, store = many(3, 600), Store(tmp_path / "store")
    process = drive(store.root, 3, 600, head.address, shared)
    wait_for(lambda: both_train(store, configs[:2]), 180)
    process.kill()
    process.communicate()
    if shared is None:
        time.sleep(1.0)
        assert len(running(store)) == 2  # the tasks outlive their driver
    out = finish(drive(store.root, 3, 600, head.address, shared))
    check_whole(store, configs, reference(3, 600))
    if shared is None:  # each was trained in one go; with fetched files the drivers hold the leases
        assert sorted(ends(store, config) for config in configs) == [["diverged"], ["done"], ["done"]]
    else:
        assert sorted(ends(store, config) for config in configs)[:2] == [["died", "done"], ["died", "done"]]
    assert "done" in out


@cluster_test
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_all_resumable(tmp_path, head, second, number):
    shared = None if number == signal.SIGINT else False
    configs, store = many(3, 6000), Store(tmp_path / "store")
    process = drive(store.root, 3, 6000, head.address, shared)
    wait_for(lambda: both_train(store, configs[:2]), 180)
    os.kill(process.pid, number)
    process.communicate(timeout=120)
    assert process.returncode not in (0, 2)
    for config in configs[:2]:
        assert ends(store, config) == ["interrupted"]
        assert store.step(config) > 0
    assert not list(store.root.glob(".probe*"))


@cluster_test
def test_a_cluster_that_lacks_something_is_an_error_at_once(tmp_path, head):
    with pytest.raises(PathsumError, match="a task asks for 0.5 GPU, and the most on one node of the cluster is 0 GPU"):
        sweep([run()], tmp_path, engine="ray", address=head.address, gpus=0.5)
    assert not ray.is_initialized()
    with pytest.raises(PathsumError, match="a task asks for 64 CPU, and the most on one node of the cluster is 1 CPU"):
        sweep([run()], tmp_path, engine="ray", address=head.address, cpus=64)
