"""`pathsum runs`: what is listed, shown, removed and exported, and what is refused with nothing done."""

import importlib.util
import json
import os
import pty
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from pathsum import commands_runs, entries, runs, runs_export, runs_view
from pathsum.cli import main
from pathsum.commands_runs import COMMANDS, RunsCommand
from pathsum.data import load
from pathsum.errors import CheckpointError, OutputError, PathsumError
from pathsum.nets import ResidualTower
from pathsum.storage import locked
from pathsum.store import Store
from pathsum.sweep import sweep
from pathsum.sweeping import lease
from pathsum.train import TrainConfig, fit
from tests.sweeps import run

pytestmark = pytest.mark.usefixtures("one_thread")
NAMED = replace(run(lr=0.2, model={"depth": 3}), name="mine")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder as users have it: runs/ of a sweep with one that diverged, and below it runs of `fit` alone."""
    root = tmp_path_factory.mktemp("trained")
    sweep([run(lr=0.1, steps=10), replace(run(lr=1e6, divergence_window=10), name="wild")], root / "runs",
          engine="inline", device="cpu", progress=False)  # fmt: skip
    data = load("digits", test_limit=50)
    for lr in (0.01, 0.02):
        tower = ResidualTower(3, 4, in_channels=1, encoder="conv3x3", scale="1/sqrt(n)", seed=0)
        fit(tower, data, TrainConfig(lr=lr, steps=4), out=root / "runs" / "train" / f"fit_lr{lr:g}")
    (root / "runs" / "train" / "results.csv").write_text("mine\n")
    return root


@pytest.fixture
def folder(trained, tmp_path, monkeypatch) -> Path:
    """A copy of it to be changed, and the working directory."""
    here = tmp_path / "here"
    shutil.copytree(trained, here)
    monkeypatch.chdir(here)
    return here


@pytest.fixture
def store(folder) -> Store:
    """The same with a run that waits, one that failed, and one that a live process holds."""
    store = Store("runs")
    waiting, failed, running = store.register([NAMED, run(lr=0.3), run(lr=0.4, model={"norm": "batch"})])
    store.claim(failed).release("failed", "no such data; get them")
    store.claim(running)
    assert [store.state(c) for c in (waiting, failed, running)] == ["waiting", "failed", "running"]
    return store


def pathsum(capsys, *args: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `pathsum runs …`."""
    capsys.readouterr()
    code = main(["runs", *args])
    out, err = capsys.readouterr()
    return code, out, err


def lines(capsys, *args: str) -> list[str]:
    """The lines of a table, without its head."""
    code, out, _ = pathsum(capsys, "ls", *args)
    assert code == 0
    return [line for line in out.split("\n\n")[0].splitlines()[1:] if line]


def tree(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


# --- ls ---


def test_every_kind_of_run_is_listed_with_counts(store, capsys):
    code, out, err = pathsum(capsys, "ls")
    assert (code, err) == (0, "")
    head = out.splitlines()[0].split()
    assert head == ["run", "what", "status", "step", "tries", "host", "best", "test", "age"]
    rows = {line.split()[0]: line for line in lines(capsys)}
    key = run(lr=0.1, steps=10).key
    assert "digits depth 2 λ=1/sqrt(n) lr 0.1" in rows[key[:6]]
    assert " 10/10 " in rows[key[:6]]
    assert "%" in rows[key[:6]]
    assert os.uname().nodename[:16] in rows[key[:6]]
    assert "diverged" in rows["wild"]
    assert "waiting" in rows["mine"]
    assert "no such data" in rows[run(lr=0.3).key[:6]]
    assert "batch" in rows[run(lr=0.4, model={"norm": "batch"}).key[:6]]
    assert any(name.startswith("train/") for name in rows)
    assert len(rows) == 7
    assert out.splitlines()[-1] == "7 runs in runs: 1 running, 1 waiting, 3 done, 1 diverged, 1 failed"


@pytest.mark.parametrize(
    ("args", "names"),
    [
        (["--status", "failed", "waiting"], {"failed", "mine"}),
        (["--where", "model.depth=3"], {"mine", "a", "b"}),
        (["--where", "depth=3", "lr<0.02"], {"a"}),
        (["--where", "lr>=0.2"], {"wild", "mine", "failed", "running"}),
        (["--where", "norm=batch"], {"running"}),
        (["--where", "norm=none", "lr!=0.1", "scale=1/√n", "--status", "done"], {"a", "b"}),
        (["--where", "train.lr=1e6"], {"wild"}),
        (["--where", "lr=many"], set()),
    ],
)
def test_filters(store, capsys, args, names):
    own = {
        "done": run(lr=0.1, steps=10).key, "failed": run(lr=0.3).key, "wild": "wild", "mine": "mine",
        "running": run(lr=0.4, model={"norm": "batch"}).key,
    }  # fmt: skip
    for found in entries.gather(Path("runs/train")):
        own["a" if found.config["train.lr"] == 0.01 else "b"] = f"train/{found.name}"
    code, out, _ = pathsum(capsys, "ls", "--json", *args)
    assert code == 0
    assert {row["run"] for row in json.loads(out)} == {own[name] for name in names}


@pytest.mark.parametrize(
    ("condition", "text"),
    [
        ("depth", "--where 'depth' is no condition; write it as model.depth=100"),
        ("dept=3", "no run has a column 'dept'; did you mean 'depth'?"),
        ("xyzzy=3", "no run has a column 'xyzzy'; 'pathsum runs show KEY' lists them"),
        ("seed=3", "'seed' is a column of several parts; name one: model.seed, train.seed"),
        ("norm<batch", "< needs a number, got 'batch'; compare words with = or !="),
    ],
)
def test_a_condition_that_means_nothing_is_refused(folder, capsys, condition, text):
    code, out, err = pathsum(capsys, "ls", "--where", condition)
    assert (code, out) == (2, "")
    assert text in err
    assert err.count("\n") == 1


def test_json_is_complete(folder, capsys):
    _, out, _ = pathsum(capsys, "ls", "--json", "--status", "diverged")
    (row,) = json.loads(out)
    assert (row["run"], row["model.depth"], row["train.lr"], row["steps"]) == ("wild", 2, 1e6, 20)
    assert row["key"] == run(lr=1e6, divergence_window=10).key
    assert "above its start" in row["reason"] or "not finite" in row["reason"]
    assert row["environment.torch"]


@pytest.mark.parametrize("width", [50, 72, 80, 100, 160])
def test_the_table_fits_the_terminal(store, width):
    from rich.console import Console

    console = Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    found = entries.gather(store.root)
    found.append(replace(found[0], name="x" * 8, config={**found[0].config, "data": "a long name of some data"}))
    console.print(runs_view.table([e for e in found if not e.name.startswith("train/")], width))
    printed = console.export_text().splitlines()
    assert max(map(len, printed)) <= width
    assert len(printed) == len(found) - 2 + 1  # nothing is folded
    assert all(word in printed[0] for word in ("run", "what", "status", "step", "best test"))
    assert ("host" in printed[0]) == (width >= 100)
    console.file.close()


def test_keys_are_as_long_as_they_need_to_be(folder):
    found = entries.gather(Path("runs"))
    one = next(e for e in found if e.key == e.folder.name)
    twin = replace(one, key=one.key[:9] + "z", folder=one.folder.with_name(one.key[:9] + "z"))
    assert runs_view.labels([one])[one.folder] == one.key[:6]
    assert runs_view.labels([one, twin])[one.folder] == one.key[:10]
    assert runs_view.labels([one, twin])[twin.folder] == twin.key


def test_a_damaged_run_is_named_and_hides_no_other(store, capsys):
    before = len(entries.gather(store.root))
    path = store.folder(run(lr=0.1, steps=10))
    (path / runs.CONFIG).write_text('{"train": ')
    (store.folder(NAMED) / runs.CONFIG).unlink()
    (store.folder(NAMED) / runs.ROWS).write_text("{}\n")
    shutil.move(store.folder(run(lr=0.3)), store.root / "renamed")
    (store.root / "wild" / runs.ROWS).write_text("what\n")
    (store.root / "other").mkdir()
    (store.root / "other" / "config.json").write_text('{"architectures": ["Some"]}')  # of something else
    code, out, _ = pathsum(capsys, "ls")
    assert code == 0
    found = {e.name: e for e in entries.gather(store.root)}
    assert len(found) == before
    assert {name for name, e in found.items() if e.status == "damaged"} == {path.name, "mine", "renamed", "wild"}
    assert f"damaged: {path.name}: {path / runs.CONFIG} is not valid JSON" in out
    assert "damaged: mine: no file" in out
    assert "the folder renamed; put it back" in out
    assert "damaged: wild: runs/wild/rows.jsonl, line 1: not JSON" in out
    assert out.count("\ndamaged: ") == 4
    assert "4 damaged" in out
    # nothing is known of them, so no condition chooses them for removal
    _, out, _ = pathsum(capsys, "ls", "--where", "norm!=batch")
    assert path.name not in out.partition("\n\n")[0]
    code, out, err = pathsum(capsys, "export", "x.csv", "--runs")
    assert code == 0
    assert len(pd.read_csv("x.csv")) == before - 4
    assert "left out, damaged: " in err
    assert "and 1 more" in err
    assert pathsum(capsys, "show", "mine")[0] == 0
    assert pathsum(capsys, "rm", path.name[:8], "--yes")[0] == 0
    assert not path.exists()


def test_where_it_looks(folder, capsys, monkeypatch):
    assert len(lines(capsys, "--store", ".")) == 4  # a study's --out holds its runs in a folder
    assert len(lines(capsys, "--store", "runs/train")) == 2
    assert len(lines(capsys, "--store", "runs/wild")) == 1
    (folder / "runs" / "circle").symlink_to(folder)
    (folder / "twice").symlink_to(folder / "runs")
    assert len(lines(capsys, "--store", "twice")) == 4
    (folder / "empty").mkdir()
    assert pathsum(capsys, "ls", "--store", "empty")[1] == "0 runs in empty\n"
    code, _, err = pathsum(capsys, "ls", "--store", "nowhere")
    assert code == 2
    assert err == "error: no folder nowhere; give one that holds runs, as --out or --store of an earlier command\n"
    (folder / "elsewhere").mkdir()
    shutil.copytree(folder / "runs" / "train", folder / "elsewhere" / "demo")
    monkeypatch.chdir(folder / "elsewhere")
    code, _, err = pathsum(capsys, "ls")
    assert code == 2
    assert "no folder runs here; give --store FOLDER" in err
    assert err.endswith("; demo here holds some\n")


def test_a_run_of_fit_alone_is_running_while_it_is_locked(folder, capsys):
    one = next(iter(sorted(Path("runs/train").glob("*/"))))
    (one / runs.DONE).unlink()
    state = {e.folder: e.status for e in entries.gather(Path("runs"))}
    assert state[one] == "interrupted"
    with locked(one):
        assert {e.folder: e.status for e in entries.gather(Path("runs"))}[one] == "running"
        code, _, err = pathsum(capsys, "rm", one.name, "--yes")
        assert code == 2
        assert f"train/{one.name} is being trained by a live process" in err
    assert one.is_dir()
    assert pathsum(capsys, "rm", one.name, "--yes")[0] == 0
    assert not one.exists()
    assert len(list(Path("runs/train").glob("*/"))) == 1
    assert Path("runs/train/results.csv").is_file()


def test_steps_follow_from_epochs_once_the_data_are_known(tmp_path, monkeypatch):
    config = run(steps=None, epochs=0.5)
    store = Store(tmp_path)
    store.register([config])
    assert entries.gather(tmp_path)[0].steps is None
    assert runs_view.progress(entries.gather(tmp_path)[0]) == "0/?"
    sweep([config], store, engine="inline", device="cpu", progress=False)
    (entry,) = entries.gather(tmp_path)
    assert runs_view.progress(entry) == "28/28"
    assert entry.summary["steps"] == 28


def test_the_clock_of_a_run(folder):
    found = {e.name: e for e in entries.gather(Path("runs"))}
    assert 0 <= found["wild"].age < 600
    for path in [*Path("runs/wild").iterdir(), *Path("runs/wild/attempts").iterdir()]:
        os.utime(path, (time.time() - 7300,) * 2)
    assert runs_view.age(entries.read(Path("runs/wild"), Path("runs")).age) == "2 h"


# --- show ---


def test_show_tells_everything(store, capsys):
    key = run(lr=0.1, steps=10).key
    code, out, _ = pathsum(capsys, "show", key[:5])
    assert code == 0
    for text in (
        f"{key}  digits depth 2", "done, step 10/10, best test accuracy", "Last rows", "Attempts", "Configuration",
        "train.lr                 0.1", "model.norm               none", "Environment", "torch    2.", "threads  ",
        f"Files in runs/{key}", "model.safetensors", "test accuracy  ",
    ):  # fmt: skip
        assert text in out, text
    assert set(out) & set(runs_view.BARS)
    _, out, _ = pathsum(capsys, "show", run(lr=0.3).key)
    assert "\nno such data; get them\n" in out
    _, out, _ = pathsum(capsys, "show", "mine")
    assert "waiting, step 0/20" in out
    for folder in ("runs/wild", str(next(iter(Path("runs/train").glob("*/"))))):
        assert pathsum(capsys, "show", folder)[0] == 0
        assert pathsum(capsys, "show", folder, "--store", "runs")[0] == 0
    _, out, _ = pathsum(capsys, "show", "wild", "--json")
    record = json.loads(out)
    assert record["attempts"][0]["end"]["status"] == "diverged"
    assert [row["step"] for row in record["rows"]] == [
        row["step"] for row in runs.read_rows(Path("runs/wild/rows.jsonl"))
    ]


def test_a_word_that_names_no_run_or_several(store, capsys):
    code, _, err = pathsum(capsys, "show", "zz")
    assert code == 2
    assert err == "error: no run of runs begins with 'zz'; see 'pathsum runs ls --store runs'\n"
    code, _, err = pathsum(capsys, "show", "train/")
    assert code == 2
    assert err.count("'train/' begins 2 runs of runs (train/") == 1


# --- rm ---


def test_rm_removes_what_is_named_and_nothing_else(store, capsys):
    doomed = [store.folder(NAMED), Path("runs/wild")]
    before = tree(Path())
    code, out, _ = pathsum(capsys, "rm", "mine", "wild", "--dry-run")
    assert code == 0
    assert "2 runs would be removed from runs" in out
    assert tree(Path()) == before
    code, out, err = pathsum(capsys, "rm", "mine", "wild", "--yes")
    assert (code, out, err) == (0, "2 runs removed from runs\n", "")
    after = {path: t for path, t in before.items() if not any(Path(path).is_relative_to(d) for d in doomed)}
    assert tree(Path()) == after
    assert not [path for path in Path("runs").iterdir() if path.name.startswith(".")]
    assert pathsum(capsys, "rm", "--status", "failed", "--where", "lr=0.3", "--yes")[1] == "1 run removed from runs\n"
    assert pathsum(capsys, "rm", "--status", "failed", "--yes")[1] == "no such runs: nothing to remove\n"


def test_rm_refuses_what_is_running_and_then_removes_nothing(store, capsys):
    before = tree(Path())
    code, out, err = pathsum(capsys, "rm", "--where", "depth=2", "--yes")
    running = run(lr=0.4, model={"norm": "batch"}).key
    assert (code, out) == (2, "")
    assert err == (
        f"error: {running} is being trained by a live process; stop it first, or leave them out; nothing was removed\n"
    )
    assert tree(Path()) == before
    # one that began after the look is refused too, and what went before is said
    busy = replace(entries.read(store.root / running, store.root), status="interrupted")
    with pytest.raises(OutputError, match="is being trained by a live process; stop its sweep first"):
        entries.remove(busy)


def test_rm_says_what_it_removed_before_it_failed(store, capsys, monkeypatch):
    original = entries.remove

    def remove(entry):
        if entry.name == "wild":
            raise OutputError("cannot write runs/wild: Read-only file system")
        original(entry)

    monkeypatch.setattr(entries, "remove", remove)
    code, _, err = pathsum(capsys, "rm", "mine", "wild", "--yes")
    assert code == 2
    assert "Read-only file system (1 of 2 runs removed before)" in err


def test_rm_asks_for_what_it_needs(store, capsys):
    before = tree(Path())
    assert "which runs? name them by their keys" in pathsum(capsys, "rm", "--yes")[2]
    assert "no run of runs begins with 'zz'" in pathsum(capsys, "rm", "mine", "zz", "--yes")[2]
    assert tree(Path()) == before


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("yes\n", 0), ("\n", 1), ("no\n", 1), ("\x04", 1)])
def test_rm_asks_on_a_terminal(folder, capsys, monkeypatch, answer, code):
    main_end, end = pty.openpty()
    with os.fdopen(end) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        os.write(main_end, answer.encode())
        got, out, _ = pathsum(capsys, "rm", "wild")
    os.close(main_end)
    assert got == code
    assert "Remove 1 run from runs for good? [y/N]" in out
    assert Path("runs/wild").exists() == bool(code)
    assert ("nothing was removed" in out) == bool(code)


def test_rm_without_a_terminal_needs_yes(folder, capsys):
    with open(os.devnull) as nothing, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", nothing)
        code, _, err = pathsum(capsys, "rm", "wild")
    assert code == 2
    assert err == "error: there is no terminal to ask on: add --yes to remove them, or --dry-run to see them\n"
    assert Path("runs/wild").exists()


def test_rm_leaves_what_a_link_points_to_and_what_it_cannot_judge(store, capsys, tmp_path):
    away = tmp_path / "away"
    shutil.move("runs/wild", away)
    Path("runs/wild").symlink_to(away)
    code, _, err = pathsum(capsys, "rm", "wild", "--yes")
    assert code == 2
    assert "is a link to a run elsewhere, which stays; remove the link yourself" in err
    assert (away / runs.ROWS).is_file()
    path = lease.path_of(store.folder(run(lr=0.3)), 1)
    path.write_text("{")
    code, _, err = pathsum(capsys, "rm", run(lr=0.3).key, "--yes")
    assert code == 2
    assert "cannot tell whether a process still holds" in err
    assert path.is_file()


# --- export ---


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_export_writes_every_row_with_its_configuration(store, capsys, suffix):
    def read(path):
        return pd.read_csv(path) if suffix == ".csv" else pd.read_parquet(path)

    name = f"new/rows{suffix}"
    code, out, _ = pathsum(capsys, "export", name)
    assert code == 0
    table = read(name)
    recorded = {e.name: e for e in entries.gather(Path("runs"))}
    assert len(table) == sum(len(e.rows) for e in recorded.values())
    assert out == f"{len(table)} rows of 7 runs written to {name}\n"
    for (own, lr, depth), rows in table.groupby(["run", "train.lr", "model.depth"]):
        entry = recorded[own]
        assert (lr, depth) == (entry.config["train.lr"], entry.config["model.depth"])
        assert rows["step"].tolist() == [row["step"] for row in entry.rows]
        losses = [row["test_loss"] for row in entry.rows]
        assert rows["test_loss"].astype(float).fillna(-1).tolist() == [-1.0 if v is None else v for v in losses]
    assert (table["environment.torch"] == entry.environment["torch"]).all()
    assert not (set(runs_export.RESULTS) - {"step", "seconds"}) & set(table)
    code, out, _ = pathsum(capsys, "export", f"runs{suffix}", "--runs")
    assert (code, out) == (0, f"7 runs written to runs{suffix}\n")
    table = read(f"runs{suffix}").set_index("run")
    assert set(table.index) == set(recorded)
    assert table.loc["wild", "status"] == "diverged"
    assert table.loc["mine", "model.depth"] == 3
    assert pd.isna(table.loc["mine", "best_test"])
    assert {"environment.commit", "environment.gpu", "environment.cpus", "train.momentum", "error"} <= set(table)
    assert list(Path().glob(".*.partial")) == []


def test_export_keeps_types(folder, capsys):
    assert pathsum(capsys, "export", "runs.parquet", "--runs")[0] == 0
    types = pd.read_parquet("runs.parquet").dtypes.astype(str)
    assert types[["step", "train.lr", "model.stem_norm", "model.scale", "train_limit", "test_limit"]].tolist() == [
        "Int64", "Float64", "boolean", "string", "object", "Int64",
    ]  # fmt: skip
    assert runs_export.column([1, "a", None]).tolist() == ["1", "a", pd.NA]
    assert runs_export.column([2**63, 1]).tolist() == [str(2**63), "1"]  # exact, where no integer type is


def test_export_refuses_what_it_cannot_write(folder, capsys, monkeypatch):
    Path("there.csv").write_text("mine")
    Path("folder.csv").mkdir()
    cases = {
        ("x.txt",): "cannot export to x.txt: its name must end in .csv or .parquet",
        ("x",): "must end in .csv or .parquet",
        ("there.csv",): "there.csv exists; add --overwrite to replace it",
        ("folder.csv", "--overwrite"): "it is a folder; give a file's name",
        ("x.csv", "--rows", "--runs"): "give one of them, not both",
        ("x.csv", "--status", "frozen"): "no rows of runs to export",
        ("there.csv/x.csv",): "cannot write there.csv/x.csv",
    }
    for args, text in cases.items():
        code, out, err = pathsum(capsys, "export", *args)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert text in err
    assert Path("there.csv").read_text() == "mine"
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        code, _, err = pathsum(capsys, "export", "x.parquet")
    assert (code, err) == (
        2, "error: Parquet needs pyarrow; run: pip install 'pathsum[train]', or export to a .csv\n",
    )  # fmt: skip
    assert not any(Path().glob("x*"))
    assert pathsum(capsys, "export", "there.csv", "--overwrite")[0] == 0
    assert len(pd.read_csv("there.csv")) > 4


def test_an_export_that_is_cut_short_leaves_the_old_file(folder, capsys, monkeypatch):
    Path("x.csv").write_text("old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    code, _, err = pathsum(capsys, "export", "x.csv", "--overwrite")
    assert code == 2
    assert "cannot write x.csv: No space left on device" in err
    assert Path("x.csv").read_text() == "old"
    assert list(Path().glob(".x.csv*")) == []


# --- help ---


def test_the_words_after_runs(capsys):
    for args in ([], ["--help"], ["help"]):
        code, out, _ = pathsum(capsys, *args)
        assert code == 0
        assert all(f"pathsum runs {name}" in out for name in COMMANDS)
    code, _, err = pathsum(capsys, "lss")
    assert code == 2
    assert "did you mean 'pathsum runs ls'?" in err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_word_teaches(capsys, name):
    import re
    import shlex

    with pytest.raises(SystemExit) as stop:
        main(["runs", name, "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert f"usage: pathsum runs {name}" in out
    examples = re.findall(rf"^\s+pathsum runs ({name}.*)$", COMMANDS[name][0].__doc__, flags=re.M)
    assert len(examples) >= 3
    for example in examples:
        words = shlex.split(example.partition(" > ")[0])
        assert isinstance(RunsCommand.parse(words), COMMANDS[name][0])


def test_what_the_store_finds_is_found_here(store):
    """The two ways of looking agree: names, keys and statuses."""
    table = store.status().set_index("run")
    mine = {e.name: e for e in entries.gather(store.root) if e.in_store}
    assert set(mine) == set(table.index)
    for name, entry in mine.items():
        row = table.loc[name]
        assert (entry.key, entry.status, entry.step, len(entry.attempts)) == (
            row["key"], row["status"], row["step"], row["attempts"],
        )  # fmt: skip
    (store.root / "wild" / runs.CONFIG).write_text("{")
    with pytest.raises(CheckpointError):
        store.status()


def test_without_runs_nothing_is_chosen():
    assert entries.chosen([], where=["depth=3"]) == []
    with pytest.raises(PathsumError, match="no folder"):
        commands_runs.ListCommand(store=Path("nowhere")).run()
