"""What a command prints where there is no terminal: what begins, and again, with how far it is, where it takes long."""

import re
import threading
import time

import pytest

from pathsum import progress
from pathsum.progress import bar, lines


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(progress, "QUIET", 0.1)


def test_what_takes_long_is_said_again(quick, capsys):
    with lines() as now:
        now("\nThinking.")
        time.sleep(0.35)
        now("Writing.")
    out = capsys.readouterr().out.splitlines()
    assert out[:2] == ["", "Thinking."]
    assert set(out[2:-1]) == {"Thinking. 0 s so far"}
    assert 1 <= len(out[2:-1]) <= 3
    assert out[-1] == "Writing."
    time.sleep(0.15)
    assert capsys.readouterr().out == ""  # it ends with the block


def test_bars_inside_say_how_far_they_are(quick, capsys):
    with lines() as now:
        now("Working.")
        with bar("samples", 4) as update:
            update(1)
            time.sleep(0.15)
            update(3)
        time.sleep(0.15)
    out = capsys.readouterr().out
    assert "Working. samples 1/4, under a minute left\n" in out
    assert out.endswith(" s so far\n")  # the bar is over
    with bar("samples", 4) as update:  # outside nothing is printed
        update(1)
        time.sleep(0.15)
    assert capsys.readouterr().out == ""


def test_a_pace_is_told_of_new_work_and_of_enough_of_it(quick, capsys):
    with lines() as now:
        now("Working.")
        with bar("steps", 1000, done=500) as update:
            time.sleep(0.15)
            assert "steps" not in capsys.readouterr().out  # nothing was told yet
            update(1)
            time.sleep(0.15)
            out = capsys.readouterr().out
            assert "Working. steps 501/1000\n" in out
            assert "left" not in out
            update(99)
            time.sleep(0.15)
    assert "Working. steps 600/1000, under a minute left\n" in capsys.readouterr().out


def test_short_work_is_said_once_and_leaves_no_thread(capsys):
    before = threading.active_count()

    def divide() -> None:
        with lines() as now:
            now("Dividing.")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        divide()
    assert capsys.readouterr().out == "Dividing.\n"
    assert threading.active_count() == before


def test_on_a_terminal_the_bar_tells(quick, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with lines() as now:
        now("Working.")
        time.sleep(0.15)
    assert re.fullmatch(r"Working\.\n", capsys.readouterr().out)
