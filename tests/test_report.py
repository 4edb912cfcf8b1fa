"""`pathsum report`: tables, choices and words as pure functions of run folders, and the page."""

import json
import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pandas as pd
import pytest

from pathsum import page, report
from pathsum.cli import main
from pathsum.demo import DemoCommand, Plan, prepare
from pathsum.demo_page import by_depth, effect
from pathsum.errors import OutputError, PathsumError
from pathsum.report import best_rates, build, outcome, read, run_table, setting, summarize


def write_run(
    folder: Path, *, status: str = "done", best: float = 0.9, val: float | None = None, seed: int = 0, lr: float = 0.1,
    depth: int = 10, norm: str | None = None, scale: str = "1/n", **train,
) -> None:  # fmt: skip
    """A run folder as training leaves it."""
    folder.mkdir(parents=True)
    config = {
        "train": {"lr": lr, "seed": seed, "val_size": 10 if val else 0, **train},
        "model": {"class": "ResidualTower", "config": {"depth": depth, "width": 8, "norm": norm, "scale": scale}},
        "data": {"name": "digits", "train_size": 898, "mean": [0.3]},
        "environment": {"torch": "2"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    loss = {"done": [2.3, 0.5], "diverged": [2.3, None], "frozen": [2.3, 2.3], "interrupted": [2.3]}[status]
    rows = [{"step": 0, "train_loss": None, "test_accuracy": 0.1, "val_accuracy": None}]
    rows += [
        {"step": 10 * k, "train_loss": v, "test_accuracy": None if v is None else best, "val_accuracy": val}
        for k, v in enumerate(loss, 1)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if status == "interrupted":
        return
    summary = {
        "status": status, "reason": "", "steps": 20, "best_test": best, "best_val": val,
        "test_at_best_val": best - 0.01 if val else None, "initial_loss": 2.3, "final_loss": loss[-1], "seconds": 1.0,
    }  # fmt: skip
    (folder / "done.json").write_text(json.dumps(summary))


def test_mean_and_standard_error_over_seeds(tmp_path):
    for seed, best in enumerate((0.8, 0.9, 1.0)):
        write_run(tmp_path / f"s{seed}", seed=seed, best=best)
    (row,) = summarize(run_table(read(tmp_path))).to_dict("records")
    assert row["n"] == row["done"] == 3
    assert row["best_test"] == pytest.approx(0.9)
    assert row["best_test_se"] == pytest.approx(0.1 / math.sqrt(3))  # sample deviation 0.1
    assert outcome(row) == "90.0 ± 5.8 %"


def test_the_best_rate_is_by_validation_and_needs_every_seed(tmp_path):
    write_run(tmp_path / "a", lr=0.1, best=0.90, val=0.95)
    write_run(tmp_path / "b", lr=0.2, best=0.99, val=0.91)
    write_run(tmp_path / "c", lr=0.3, best=0.99, val=0.99)
    write_run(tmp_path / "d", lr=0.3, seed=1, val=0.2, status="diverged")
    summary = summarize(run_table(read(tmp_path)))
    assert best_rates(summary)["lr"].tolist() == [0.1]
    assert outcome(summary.iloc[2]) == "99.0 % (1 of 2 diverged)"
    write_run(tmp_path / "e", lr=0.01, scale="1", val=0.1, status="diverged")
    write_run(tmp_path / "f", lr=0.02, scale="1", val=0.1, status="diverged")
    chosen = best_rates(summarize(run_table(read(tmp_path)))).set_index("scale")
    assert chosen.loc["1", "lr"] == 0.01
    assert outcome(chosen.loc["1"]) == "diverged"


def test_diverged_and_frozen_are_told_apart(tmp_path):
    for status in ("done", "diverged", "frozen", "interrupted"):
        write_run(tmp_path / status, status=status, scale={"done": "1/n"}.get(status, f"0.{len(status)}"))
    table = run_table(read(tmp_path))
    assert report.count_statuses(table) == "1 done, 1 diverged, 1 frozen, 1 interrupted"
    summary = summarize(table)
    assert sorted(map(outcome, summary.to_dict("records"))) == ["90.0 %", "diverged", "frozen", "interrupted"]


def test_options_that_differ_become_columns(tmp_path):
    write_run(tmp_path / "a", batch_size=32)
    write_run(tmp_path / "b", batch_size=64)
    table = run_table(read(tmp_path))
    assert table["train.batch_size"].tolist() == [32, 64]
    assert "data.name" not in table
    assert len(summarize(table)) == 2


@pytest.mark.parametrize(
    ("norm", "scale", "name"),
    [("none", "1/sqrt(n)", "λ = 1/√n"), ("batch", "1", "λ = 1 with batch norm"), ("none", "learned", "λ = learned")],
)
def test_settings_have_names(norm, scale, name):
    assert setting({"norm": norm, "scale": scale}) == name


def runs_of_all_kinds(folder: Path) -> None:
    write_run(folder / "good", scale="1/sqrt(n)", best=0.95)
    write_run(folder / "deep" / "good", scale="1/sqrt(n)", best=0.93, depth=50)
    write_run(folder / "deep" / "bad", scale="1", status="diverged", best=0.1, depth=50)
    write_run(folder / "deep" / "cold", scale="n^-2", status="frozen", best=0.1, depth=50)
    write_run(folder / "half", scale="1", status="interrupted", best=0.3)


def test_the_page_is_a_pure_function_of_the_runs(tmp_path):
    runs_of_all_kinds(tmp_path)
    found = read(tmp_path)
    text = build(found, title="Runs <of> all kinds")
    assert text == build(found, title="Runs <of> all kinds")
    root = ET.fromstring(text.partition("\n")[2])
    words = " ".join("".join(root.itertext()).split())
    assert "Runs <of> all kinds" in words
    assert "5 runs: 2 done, 1 diverged, 1 frozen, 1 interrupted. The best: λ = 1/√n at depth 10" in words
    assert len(root.findall(".//figure")) == 2
    assert not re.findall(r"""(?:src|href)=["'](?!#)""", text)


def test_report_command(tmp_path, capsys):
    runs_of_all_kinds(tmp_path / "runs")
    assert main(["report", str(tmp_path / "runs")]) == 0
    assert "5 runs: 2 done" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "runs" / "report.runs.csv")
    assert table["status"].value_counts().to_dict() == {"done": 2, "diverged": 1, "frozen": 1, "interrupted": 1}
    assert len(pd.read_csv(tmp_path / "runs" / "report.summary.csv")) == 5
    assert main(["report", str(tmp_path / "runs")]) == 0  # replaces its own page


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["gone"], r"no folder gone"),
        (["empty"], r"no training runs in empty or below it.*pathsum train"),
        (["damaged"], r"config\.json is not valid JSON"),
        (["runs", "--out", "page.txt"], r"page\.txt does not end in \.html"),
        (["runs", "--out", "mine.html"], r"mine\.html exists and is no page of pathsum"),
        (["runs", "--out", "mine.html/x.html"], r"cannot write mine\.html/x\.html"),
    ],
)
def test_report_refuses_in_one_line(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write_run(tmp_path / "runs" / "a")
    write_run(tmp_path / "damaged")
    (tmp_path / "damaged" / "config.json").write_text("{")
    (tmp_path / "mine.html").write_text("<p>mine</p>")
    before = sorted(tmp_path.rglob("*"))
    assert main(["report", *options]) == 2
    assert re.fullmatch(rf"error: .*{message}.*\n", capsys.readouterr().err)
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "mine.html").read_text() == "<p>mine</p>"


# --- words and numbers on a page -------------------------------------------------------------------------


def test_tables_escape_and_align():
    text = page.table(pd.DataFrame({"name": ["<b>", None], "value": [1.5, math.nan]}), "a & b")
    root = ET.fromstring(text)
    assert root.find(".//caption").text == "a & b"
    assert [cell.text for cell in root.findall(".//tbody//td")] == ["<b>", "1.5", None, None]
    assert root.findall(".//tbody//td")[0].get("class") == "text"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5, "0.5"), (1689.3, "1689"), (0.00012345, "1.2e-04"), (math.nan, ""), (math.inf, "inf"), (12345.6, "12346")],
)
def test_numbers_are_short(value, text):
    assert page.number(value) == text


def test_staging_keeps_what_was_there_when_it_fails(tmp_path):
    old = tmp_path / "out"
    old.mkdir()
    (old / "mark").write_text("old")

    def fill() -> None:
        with page.staged(old, marker="mark", overwrite=True) as folder:
            (folder / "mark").write_text("new")
            raise OSError(28, "disk full")

    with pytest.raises(OutputError, match="disk full"):
        fill()
    assert (old / "mark").read_text() == "old"
    assert list(tmp_path.iterdir()) == [old]


# --- the demo's sentences --------------------------------------------------------------------------------


def result(test: float | None, status: str = "done") -> dict:
    row = {"n": 1, "done": 0, "diverged": 0, "frozen": 0, "interrupted": 0, "lr": 0.1, "test_at_best_val": math.nan}
    return {**row, status: 1, "test_at_best_val": math.nan if test is None else test, "test_at_best_val_se": math.nan}


@pytest.mark.parametrize(
    ("shallow", "deep", "text"),
    [
        (result(0.90), result(0.95), "gains 5.0 points"),
        (result(0.95), result(0.90), "loses 5.0 points"),
        (result(0.95), result(0.935), "does as well"),
        (result(0.95), result(None, "diverged"), "no longer trains"),
        (result(0.95), result(None, "frozen"), "no longer trains"),
        (result(None, "diverged"), result(0.9), "trains only when deep"),
        (result(None, "diverged"), result(None, "frozen"), "trains at neither depth"),
    ],
)
def test_sentences_follow_the_data(shallow, deep, text):
    assert effect(shallow, deep, num_test=899) == text


def test_the_table_by_depth(tmp_path):
    for depth, norm, scale, best in [(d, *row, 0.5 + d / 100) for d in (10, 30) for row in (
        ("batch", "1"), (None, "1"), (None, "1/n"), (None, "1/sqrt(n)")
    )]:  # fmt: skip
        write_run(
            tmp_path / f"{depth}{norm}{scale.replace('/', '-')}",
            depth=depth,
            norm=norm,
            scale=scale,
            best=best,
            val=best,
        )
    table = by_depth(best_rates(summarize(run_table(read(tmp_path)))), (10, 30), num_test=899)
    assert table["setting"].tolist() == ["λ = 1 with batch norm", "λ = 1", "λ = 1/n", "λ = 1/√n"]
    assert set(table["what depth does"]) == {"gains 20.0 points"}
    assert table["depth 10"].iloc[0] == "59.0 % (lr 0.1)"


def test_a_demo_folder_belongs_to_one_demo(tmp_path):
    prepare(tmp_path / "demo", Plan())
    prepare(tmp_path / "demo", Plan())  # to be continued
    with pytest.raises(OutputError, match="holds a demo with other settings"):
        prepare(tmp_path / "demo", Plan(steps=7))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("")
    with pytest.raises(OutputError, match="not empty"):
        prepare(tmp_path / "mine", Plan())
    with pytest.raises(PathsumError, match="--workers is 0"):
        DemoCommand(out=tmp_path / "demo", workers=0).run()
