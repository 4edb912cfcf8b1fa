"""The local sweep: nothing finished is lost or done twice, whatever is killed, full or forbidden."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pathsum import runs
from pathsum.errors import OutputError, PathsumError
from pathsum.storage import read_state
from pathsum.store import FINISHED, Store
from pathsum.sweep import sweep, work_group, work_one
from pathsum.sweeping import crew, display, supervisor, work
from pathsum.sweeping.display import Display
from tests.sweeps import kill, many, recorded, run, running, start, timeless, wait_for

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The rows of `many(num)`, by runs that nothing disturbed, in this process."""
    store = Store(tmp_path_factory.mktemp("reference"))

    def rows(num, steps=40):
        configs = many(num, steps)
        sweep(configs, store, engine="inline", device="cpu", progress=False)
        return recorded(store, configs)

    return rows


def ends(store, config):
    """How the attempts at a run ended."""
    return [attempt.outcome for attempt in store.attempts(config)]


def counts(out: str) -> dict[str, int]:
    """What a sweep in a process of its own printed last."""
    return json.loads(out.splitlines()[-1])


def check_whole(store, configs, expected):
    """Every run was finished once, and has the rows it has when nothing happens."""
    assert recorded(store, configs) == expected
    for config in configs:
        assert store.state(config) in FINISHED
        assert sum(end in FINISHED for end in ends(store, config)) <= 1  # 0: killed between its end and saying so
        assert not (store.folder(config) / runs.CHECKPOINT).exists()


# --- a sweep that nothing disturbs ---


def test_a_sweep_gives_the_rows_of_the_runs_alone(tmp_path, reference, capsys):
    configs = many(4)
    result = sweep([*configs, configs[0]], tmp_path / "store", workers=2, device="cpu")
    assert result.counts == {"done": 3, "diverged": 1}
    assert repr(result).startswith(f"SweepResult(4 runs in {tmp_path / 'store'}: 3 done, 1 diverged, ")
    assert "<table" in result._repr_html_()
    assert result.table()["status"].tolist() == ["done"] * 3 + ["diverged"]
    check_whole(result.store, configs, reference(4))
    assert len(result.rows()) == sum(map(len, reference(4).values()))
    lines = [line for line in capsys.readouterr().out.splitlines() if "/4 runs: " not in line]  # not on a slow machine
    assert [line[:6] for line in lines] == ["[1/4] ", "[2/4] ", "[3/4] ", "[4/4] "]
    assert sum("diverged" in line for line in lines) == 1
    before = {path: path.stat() for path in sorted(result.store.root.rglob("*"))}
    assert sweep(configs, result.store).counts == result.counts  # as in a read-only store: nothing is written
    assert {path: path.stat() for path in sorted(result.store.root.rglob("*"))} == before
    assert capsys.readouterr().out == ""


def test_a_run_that_fails_leaves_the_others_alone(tmp_path, capsys):
    good, bad = run(lr=0.1), run(lr=0.2, model={"in_channels": 3})
    result = sweep([bad, good], tmp_path, engine="inline")
    assert result.counts == {"failed": 1, "done": 1}
    table = result.table().set_index("key")
    assert "the model cannot take the images of digits" in table.loc[bad.key, "error"]
    assert "failed (the model cannot take" in capsys.readouterr().out
    assert ends(result.store, bad) == ["failed"]  # what pathsum refuses it refuses again
    assert sweep([bad, good], tmp_path, engine="inline").counts == result.counts
    assert ends(result.store, bad) == ["failed"]
    sweep([bad, good], tmp_path, engine="inline", retry=True, progress=False)
    assert ends(result.store, bad) == ["failed", "retried", "failed"]


def test_an_accident_is_tried_again(tmp_path, monkeypatch, capsys):
    original, left = work.fit, [2]

    def unlucky(*args, **kwargs):
        if left[0]:
            left[0] -= 1
            raise RuntimeError("CUDA error: an illegal\nmemory access")
        return original(*args, **kwargs)

    monkeypatch.setattr(work, "fit", unlucky)
    result = sweep([run()], tmp_path, engine="inline")
    assert result.counts == {"done": 1}
    assert ends(result.store, run()) == ["error", "error", "done"]
    assert "error (RuntimeError: CUDA error: an illegal memory access (test_sweep.py, line" in capsys.readouterr().out
    left[0] = 99
    result = sweep([run(lr=0.3)], Store(tmp_path, max_attempts=2), engine="inline", progress=False)
    assert result.counts == {"failed": 1}
    assert "given up after 2 attempts" in result.table()["error"][0]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"workers": 0}, "--workers is 0, expected 1 or more"),
        ({"memory": 0}, "--memory is 0"),
        ({"stack": 0}, "--stack is 0"),
        ({"engine": "steam"}, "engine is 'steam', expected one of local, inline, ray"),
    ],
)
def test_bad_options_start_nothing(tmp_path, options, text):
    with pytest.raises(PathsumError, match=text):
        sweep([run()], tmp_path / "store", **options)
    assert not (tmp_path / "store").exists()


def test_workers_that_cannot_start_are_an_error_and_not_a_loop(tmp_path, monkeypatch):
    monkeypatch.setattr(crew, "STARTER", "raise SystemExit(7)")
    with pytest.raises(PathsumError, match="3 workers in a row ended before they could train, the last with code 7"):
        sweep([run()], tmp_path, workers=1, progress=False)
    assert Store(tmp_path).state(run()) == "waiting"


def test_what_a_terminal_shows(tmp_path, monkeypatch):
    from rich.console import Console

    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    configs = many(4)
    store = Store(tmp_path)
    sweep(configs[:2], store, engine="inline", progress=False, device="cpu")
    shown = Display(store, 4, lambda config: f"lr {config.train.lr:g}", workers=2)
    for config in configs[:2]:
        shown.finished(config, "done", "", store.summary(config))
    member = crew.Member(process=subprocess.Popen([sys.executable, "-c", ""]), ready=True)
    member.process.wait()
    member.order, member.running, member.since = [configs[2]], [configs[1].folder], time.monotonic()
    left = {config.folder: config for config in configs[2:]}
    console = Console(width=100)
    with console.capture() as capture:
        console.print(shown.draw({**left, configs[1].folder: configs[1]}, [member]))
    text = capture.get()
    assert "2/4 runs: 2 done, 1 running, 2 waiting, under a minute left" in text
    assert "lr 0.02" in text
    assert "step 40/40" in text
    assert "lr 0.02: done, best test accuracy" in text


def test_elsewhere_a_line_breaks_a_long_silence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(display, "QUIET", 3600.0)
    configs = [run(lr=0.01 * (1 + k), steps=40) for k in range(3)]
    store = Store(tmp_path)
    store.register(configs)
    shown = Display(store, 3, repr, workers=1)
    left = {config.folder: config for config in configs}
    member = crew.Member(process=subprocess.Popen([sys.executable, "-c", ""]), ready=True)
    member.process.wait()
    member.running = [config.folder for config in configs[:2]]
    shown.update(left, [member])
    assert capsys.readouterr().out == ""  # nothing was silent yet
    shown.said -= 3600
    shown.update(left, [member])
    assert capsys.readouterr().out == "0/3 runs: 2 running, 1 waiting\n"  # no row yet, so no guess
    for config in configs[:2]:
        (store.folder(config) / "rows.jsonl").write_text('{"step": 0}\n{"step": 20}\n')
    shown.began = time.monotonic() - 300  # 2·20 of 3·40 steps in 5 minutes
    shown.said -= 3600
    shown.update(left, [member])
    assert capsys.readouterr().out == "0/3 runs: 2 running, 1 waiting, about 10 min left\n"


# --- kills ---


def kill_at_random(root: Path, num: int, kills: int, workers: int, seed: int) -> dict[str, float]:
    """A sweep in which workers, and now and then the supervisor, are killed; when each run was finished."""
    chance, store, finished = random.Random(seed), Store(root), {}
    process = start(root, num, workers=workers)

    def look() -> None:
        for path in root.glob(f"*/{runs.DONE}"):
            finished.setdefault(path.parent.name, path.stat().st_mtime_ns)

    for number in range(kills):
        alive = wait_for(lambda process=process: process.poll() is not None or running(store), 120)
        look()
        if process.poll() is None:
            time.sleep(chance.uniform(0, 0.15))
            kill(process.pid if number % 5 == 4 else chance.choice(alive))
        if number % 5 == 4 or process.poll() is not None:
            process.communicate()
            if len(finished) == num:
                break
            process = start(root, num, workers=workers)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert sum(counts(out).values()) == num
    return finished


@pytest.mark.parametrize(("kills", "num", "workers"), [(4, 4, 2), pytest.param(200, 40, 4, marks=pytest.mark.slow)])
def test_random_kills_lose_and_double_nothing(tmp_path, reference, kills, num, workers):
    finished = kill_at_random(tmp_path, num, kills, workers, seed=0)
    store, configs = Store(tmp_path), many(num)
    check_whole(store, configs, reference(num))
    for name, when in finished.items():
        assert (tmp_path / name / runs.DONE).stat().st_mtime_ns == when  # written once
    assert any("died" in ends(store, config) for config in configs)


def test_a_killed_worker_loses_no_more_than_since_its_checkpoint(tmp_path):
    steps = 4000
    store, config = Store(tmp_path), many(2, steps)[0]
    process = start(tmp_path, 2, steps=steps, workers=2)
    pid = wait_for(lambda: store.step(config) >= 10 and store.attempts(config)[-1].record["pid"])
    kill(pid)
    step = store.step(config)
    second = wait_for(lambda: len(store.attempts(config)) == 2 and store.attempts(config)[-1])
    assert second.record["step"] >= step >= 10
    assert store.attempts(config)[0].outcome == "died"
    kill(process.pid)  # the supervisor: its workers write a checkpoint and end
    process.communicate()
    wait_for(lambda: store.state(config) == "interrupted")
    assert ends(store, config)[-1] == "interrupted"
    assert read_state(store.folder(config) / runs.CHECKPOINT)["step"] > second.record["step"]


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_a_signal_leaves_all_resumable(tmp_path, number):
    process = start(tmp_path, 3, steps=4000)
    store = Store(tmp_path)
    wait_for(lambda: len(running(store)) == 2 and all(store.step(c) for c in many(3, 4000)[:2]))
    os.kill(process.pid, number)
    process.communicate(timeout=60)
    assert process.returncode not in (0, 2)
    for config in many(3, 4000)[:2]:
        assert ends(store, config) == ["interrupted"]
        assert store.step(config) > 0


def test_two_supervisors_share_the_work(tmp_path, reference):
    processes = [start(tmp_path, 8, workers=1) for _ in range(2)]
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert counts(out) == {"done": 7, "diverged": 1}
    store, configs = Store(tmp_path), many(8)
    check_whole(store, configs, reference(8))
    assert all(len(store.attempts(config)) == 1 for config in configs)
    assert len({attempt.record["pid"] for config in configs for attempt in store.attempts(config)}) == 2


# --- memory, disk, permission ---


HUNGRY = """
import sys
from pathsum.store import Store
from pathsum.sweep import sweep, work_one
from pathsum.sweeping.work import resident, _load, default_device
from tests.sweeps import run
small, big = run(steps=5), run(steps=500, batch_size=800, model={"width": 64, "depth": 8})
work_one(small, sys.argv[1], device="cpu")
limit = resident() + int(sys.argv[2]) * 2**20
print(work_one(big, sys.argv[1], device="cpu", memory=limit, max_attempts=2).to_json())
"""


def test_a_run_over_the_memory_limit_stops_and_says_so(tmp_path):
    here = Path(__file__).parents[1]
    big = run(steps=500, batch_size=800, model={"width": 64, "depth": 8})
    store = Store(tmp_path, max_attempts=2)
    for spare in (10, 10):  # far too little: no time for a checkpoint, or just enough for one
        command = [sys.executable, "-c", HUNGRY, str(tmp_path), str(spare)]
        done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
    assert ends(store, big) == ["memory", "memory"]
    assert store.claim(big) is None
    assert "of memory, over its limit of" in store.error(big)
    assert "allow more memory with fewer workers, a smaller batch, or checkpointed activations" in store.error(big)


def test_a_limit_below_an_idle_worker_is_an_error_at_once(tmp_path):
    with pytest.raises(PathsumError, match=r"before it trains anything, over its limit of 50 MiB; allow more"):
        sweep([run()], tmp_path, workers=1, memory=50 * 2**20, progress=False)


def in_private_mount(options: str, folder: Path, script: str) -> subprocess.CompletedProcess:
    """Run Python with a small disk at `folder` that nobody else sees, and that ends with it."""
    if shutil.which("unshare") is None or os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root and unshare")
    mount = f"mount -t tmpfs -o {options} none {folder}"
    trial = subprocess.run(["unshare", "--mount", "bash", "-c", mount], capture_output=True, text=True, check=False)
    if trial.returncode:
        pytest.skip(f"mounts are not allowed here: {trial.stderr.strip()}")
    head = "import os, sys; from pathlib import Path; from pathsum.errors import OutputError; "
    head += "from pathsum.sweep import sweep; from tests.sweeps import many; root = Path(sys.argv[1])\n"
    head += "def go(num): print(sweep(many(num), root, engine='inline', progress=False).counts, flush=True)\n"
    command = [
        "unshare",
        "--mount",
        "bash",
        "-c",
        f"{mount}; exec '{sys.executable}' -c \"$0\" {folder}",
        head + script,
    ]
    here = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done


FULL = """
go(2)
whole = {path: path.read_bytes() for path in root.glob("*/done.json")}
with open(root / "ballast", "wb", buffering=0) as file:
    try:
        while True: file.write(bytes(4096))
    except OSError: pass
for room in (0, 8192, 30000):
    os.truncate(root / "ballast", os.path.getsize(root / "ballast") - room)
    try: go(8)
    except OutputError as error: print(error)
    assert whole == {path: path.read_bytes() for path in whole} and len(whole) == 2
os.remove(root / "ballast")
go(8)
"""


def test_a_full_disk_is_one_error_and_loses_nothing_finished(tmp_path, reference):
    """A disk of 600 kB, on which the first runs fit; then with room for the folders, for a checkpoint, for all."""
    lines = in_private_mount("size=600k", tmp_path, FULL).stdout.splitlines()
    assert lines[0] == "{'done': 1, 'diverged': 1}"
    assert len(lines) == 5
    for line in lines[1:4]:
        assert re.fullmatch(
            r"cannot write \S+: No space left on device; free some space or choose another folder", line
        )
    assert lines[4] == "{'done': 7, 'diverged': 1}"


READ_ONLY = """
go(2)
import subprocess
subprocess.run(["mount", "-o", "remount,ro", str(root)], check=True)
go(2)
try: go(3)
except OutputError as error: print(error)
"""


def test_a_read_only_store_is_one_error_and_is_read(tmp_path):
    lines = in_private_mount("size=4M", tmp_path, READ_ONLY).stdout.splitlines()
    assert lines[:2] == ["{'done': 1, 'diverged': 1}"] * 2
    assert re.fullmatch(r"cannot write \S+: Read-only file system; free some space or choose another folder", lines[2])


@pytest.mark.slow
def test_a_disk_that_fills_on_the_way_is_one_error(tmp_path):
    """The workers' files may not grow beyond 4 kB, as with a quota: the first checkpoint is larger."""
    script = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); "
        "import sys; from tests.sweeps import main; sys.exit(main())"
    )
    command = [sys.executable, "-c", script, str(tmp_path), "3", "40", "2", "0"]
    here = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("OutputError: cannot write ")
    assert "File too large; free some space" in done.stderr
    assert "nothing finished is lost: the same command continues" in done.stderr
    store = Store(tmp_path)
    assert {store.state(config) for config in many(3)} <= {"waiting", "interrupted"}
    result = sweep(many(3), store, engine="inline", progress=False, device="cpu")
    assert result.counts == {"done": 2, "diverged": 1}


# --- one unit of work, for any engine ---


def test_work_one_takes_a_record_and_returns_what_became_of_it(tmp_path, reference):
    config = many(3)[0]
    store = Store(tmp_path)
    store.register([config])
    outcome = work_one(config.to_json(), tmp_path, device="cpu")
    assert (outcome.run, outcome.status) == (config.key, "done")
    assert timeless(store.runs([config])[0].rows) == reference(3)[config.key]
    assert work_one(config, tmp_path).status == "taken"
    names: list[list[str]] = []
    other = store.register([run(lr=0.5)])[0]
    assert [o.status for o in work_group([other], tmp_path, claimed=names.append)] == ["done"]
    assert names == [[other.key]]


def test_a_stack_shares_its_runs_evenly(tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "group_key", lambda config: config.train.batch_size)
    configs = [run(lr=0.1 * k, batch_size=16 if k < 6 else 8) for k in range(8)]
    store = Store(tmp_path)
    silent = Display(store, 8, repr, workers=2, show=False)
    boss = supervisor.Supervisor(store, store.register(configs), crew.Crew({}, 1), silent, workers=2, stack=4)
    boss.survey()
    orders = [boss.next_order() for _ in range(6)]
    assert [[config.train.batch_size for config in order] for order in orders] == [
        [16] * 3,
        [16] * 2,
        [16],
        [8],
        [8],
        [],
    ]


def test_output_errors_are_raised_and_the_run_is_given_back(tmp_path, monkeypatch):
    store = Store(tmp_path)
    store.register([run()])

    def full(*_, **__):
        raise OutputError("cannot write x: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(work, "fit", full)
        with pytest.raises(OutputError, match="No space left"):
            work_one(run(), tmp_path)
    assert ends(store, run()) == ["stopped"]
    assert work_one(run(), tmp_path).status == "done"
