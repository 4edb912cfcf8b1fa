"""The command line as a user meets it: help, versions, exit codes, interruption, and the demo."""

import itertools
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import pandas as pd
import pytest

import pathsum
from pathsum import cli
from pathsum.cli import COMMANDS, main
from pathsum.errors import DataError

SILENCE = 60  # seconds in which a command must print something: four times what it means to
RUN = [sys.executable, "-m", "pathsum.cli"]
SUBCOMMANDS = {"study": "study table1", "runs": "runs ls"}


def run(*args: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([*RUN, *args], capture_output=True, text=True, timeout=120, **options)


@pytest.mark.parametrize("args", [[], ["--help"], ["-h"], ["help"]])
def test_overview(capsys, args):
    assert main(args) == 0
    out = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert re.search(rf"pathsum {name} +{re.escape(command.summary)}", out)


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"pathsum {pathsum.__version__}\n"


@pytest.mark.parametrize("name", [SUBCOMMANDS.get(name, name) for name in COMMANDS])
def test_every_command_teaches(capsys, name):
    with pytest.raises(SystemExit) as stop:
        main([*name.split(), "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert f"usage: pathsum {name}" in out
    for option in re.findall(r"^│ (--[\w-]+)[^│]*│\n│ {15,}│", out, flags=re.M):
        pytest.fail(f"{option} of {name} has no help")


@pytest.mark.parametrize("name", ["demo", "train", "inspect", "linearize", "report"])
def test_help_has_examples_that_parse(name):
    command = COMMANDS[name].load()
    text = re.sub(r"\\\n\s*", "", command.__doc__)
    examples = re.findall(rf"^\s+pathsum {name}(.*)$", text, flags=re.M)
    assert len(examples) >= 2
    for example in examples:
        assert isinstance(cli.parse(name, command, shlex.split(example)), command)


def test_unknown_command_names_the_nearest(capsys):
    assert main(["inspekt"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "did you mean 'pathsum inspect'?" in err
    assert main(["xyz"]) == 2
    assert "'pathsum --help' shows" in capsys.readouterr().err


class Failing:
    """A command that raises what it is given."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def run(self) -> None:
        raise self.error


def test_errors_of_ours_are_one_line_and_bugs_are_not_hidden(monkeypatch, capsys):
    error: list[BaseException] = [DataError("two\n  lines")]
    monkeypatch.setattr(cli, "parse", lambda name, command, args: Failing(error[0]))
    assert main(["report"]) == 2
    assert capsys.readouterr().err == "error: two lines\n"
    error[0] = KeyboardInterrupt()
    assert main(["demo"]) == 130
    assert capsys.readouterr().err == "interrupted: run the same command again to continue where it stopped\n"
    error[0] = ZeroDivisionError("a bug")
    with pytest.raises(ZeroDivisionError):
        main(["report"])


@pytest.mark.slow
def test_exit_codes_of_the_process(tmp_path):
    done = run("report", "nowhere", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: no folder nowhere.*\n", done.stderr)
    done = run("report", cwd=tmp_path)  # a missing argument
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert run("inspect", "x", "--chunks", "3", cwd=tmp_path).returncode == 2
    assert run("--version").returncode == 0
    assert list(tmp_path.iterdir()) == []


def timed(command: list[str], **options) -> tuple[subprocess.CompletedProcess, list[float]]:
    """Run a command whose output is no terminal; also the seconds from each of its lines to the next."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
    times, lines = [time.monotonic()], []
    for line in process.stdout:
        times.append(time.monotonic())
        lines.append(line)
    _, err = process.communicate(timeout=60)
    times.append(time.monotonic())
    done = subprocess.CompletedProcess(command, process.returncode, "".join(lines), err)
    return done, [after - before for before, after in itertools.pairwise(times)]


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """A quick demo that was interrupted on the way, and continued."""
    folder = tmp_path_factory.mktemp("demo")
    command = [*RUN, "demo", "--quick", "--out", "out", "--workers", "2"]
    first = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 100
    while not any((folder / "out" / "runs").glob("*/done.json")) and time.monotonic() < deadline:
        assert first.poll() is None, first.communicate()
        time.sleep(0.1)
    os.kill(first.pid, signal.SIGINT)
    _, err = first.communicate(timeout=60)
    assert first.returncode == 130, err
    assert err == "interrupted: run the same command again to continue where it stopped\n"
    finished = {path.parent.name for path in (folder / "out" / "runs").glob("*/done.json")}
    assert 0 < len(finished) < 12  # the others waited
    assert not (folder / "out" / "report.html").exists()
    done, silences = timed(command, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert max(silences) < SILENCE
    again = set(re.findall(r"^\[\d+/\d+\] (\S+):", done.stdout, flags=re.M))
    assert again.isdisjoint(finished)
    assert len(again | finished) == 16
    return folder / "out", done


def test_demo_prints_a_table_and_where_the_page_is(demo):
    _, done = demo
    for text in ("what depth does", "λ = 1 with batch norm", "λ = 1/√n", "The page: out/report.html"):
        assert text in done.stdout


def test_demo_page(demo):
    out, _ = demo
    text = (out / "report.html").read_text()
    root = ET.fromstring(text.partition("\n")[2])
    assert len(root.findall(".//figure")) == 6
    assert not re.findall(r"""(?:src|href)=["'](?!#)""", text)
    assert "From 3 to 8 blocks, λ\u00a0=\u00a01 with batch norm" in text
    names = {path.stem for path in (out / "figures").iterdir()}
    assert {"learning-rates", "training", "path-lengths", "orders"} <= names
    assert pd.read_csv(out / "tables" / "depth.csv").shape == (4, 4)
    assert len(pd.read_csv(out / "tables" / "runs.csv")) == 16


def test_demo_again_trains_nothing(demo, capsys, monkeypatch):
    out, _ = demo
    monkeypatch.chdir(out.parent)
    before = {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*")}
    assert main(["demo", "--quick", "--out", "out"]) == 0
    assert {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*")} == before
    assert main(["demo", "--out", "out"]) == 2
    assert "holds a demo with other settings" in capsys.readouterr().err


def test_report_and_inspect_read_what_the_demo_trained(demo, monkeypatch, capsys):
    out, _ = demo
    monkeypatch.chdir(out.parent)
    assert main(["report", "out/runs", "--out", "all.html"]) == 0
    done = next(path for path in sorted((out / "runs").glob("depth3-*")) if (path / "model.safetensors").exists())
    assert main(["inspect", str(done), "--samples", "10", "--out", "one"]) == 0
    assert "Path lengths" in capsys.readouterr().out
    assert main(["inspect", "out/runs"]) == 2
    assert re.fullmatch(r"error: out/runs holds \d+ models .*; name one of these folders\n", capsys.readouterr().err)
