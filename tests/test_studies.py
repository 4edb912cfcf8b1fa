"""`pathsum study table1`: cells, choices, checks and texts as pure functions of made-up runs; presets; the command."""

import json
import math
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from pathsum.commands_study import StudyCommand, Table1Command
from pathsum.errors import OutputError, PathsumError
from pathsum.runs import Run
from pathsum.store import RunConfig
from pathsum.studies.cost import Clock, words
from pathsum.studies.study import Evidence, environments
from pathsum.studies.table1 import PAPER, PRESETS, Table1, preset
from pathsum.studies.table1_checks import checks
from pathsum.studies.table1_page import build, write
from pathsum.studies.table1_results import cell_lines, cells, grid
from pathsum.studies.tables import Grid, latex, markdown

STUDY = Table1(
    data="cifar10:there", depths=(10, 100), width=(8,), lrs=(0.1, 0.2), seeds=(0, 1), steps=40, val_size=50
)  # fmt: skip
BATCH, ONE, OVER_N, ROOT = ("batch", "1"), ("none", "1"), ("none", "1/n"), ("none", "1/sqrt(n)")
ENVIRONMENT = {"pathsum": "0", "commit": "abc", "torch": "2", "system": "Linux", "cpus": 2, "gpu": None}


def recorded(
    config: RunConfig, status: str = "done", *, test: float = 0.5, val: float | None = 0.5, at_val=None
) -> Run:
    """A run as its folder is read back."""
    facts = {"name": "cifar10", "fingerprint": "f", "train_size": 800, "test_size": 2500, "classes": list("0123456789")}
    asked = {"train": {}, "model": {}, "data": facts, "environment": ENVIRONMENT}
    rows = [
        {"step": step, "lr": config.train.lr, "train_loss": None if step == 0 else 2.0, "test_accuracy": test}
        for step in (0, 20, 40)
    ]
    if status == "interrupted":
        return Run(Path(config.folder), asked, rows[:2], {})
    summary = {
        "status": status, "reason": "", "steps": 40, "best_test": test, "best_val": val,
        "test_at_best_val": test if at_val is None else at_val, "initial_loss": 2.3, "final_loss": 2.0, "seconds": 1.0,
    }  # fmt: skip
    return Run(Path(config.folder), asked, rows, summary)


def setting_of(config: RunConfig) -> tuple[str, str]:
    return config.model["norm"] or "none", config.model["scale"]


def evidence(means: dict, study: Table1 = STUDY, **overrides) -> Evidence:
    """Runs of the given mean accuracy by setting, or the status; seeds lie half a point on either side of it."""
    found = []
    for config in study.runs():
        value = means[setting_of(config)]
        value = value.get(config.model["depth"]) if isinstance(value, dict) else value
        value = value(config) if callable(value) else value
        if isinstance(value, str):
            found.append(recorded(config, value, test=0.1))
        elif value is not None:
            found.append(recorded(config, test=value + (0.005 if config.train.seed else -0.005)))
    return Evidence.gather(study.runs(), found)


AS_IN_THE_PAPER = {BATCH: 0.9, ONE: {10: 0.85, 100: "diverged"}, OVER_N: 0.878, ROOT: 0.88}


# ---- what is asked for


def test_the_papers_preset_is_appendix_a():
    study = preset("paper", "cifar10:there")
    runs = study.runs()
    assert len(runs) == len({run.key for run in runs}) == 4 * 3 * 10 * 5
    assert study.lrs == (1 / 1024, 1 / 512, 1 / 256, 1 / 128, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
    assert {run.model["depth"]: run.model["width"] for run in runs} == {10: 256, 100: 256, 1000: 128}
    assert {setting_of(run) for run in runs} == {BATCH, ONE, OVER_N, ROOT}
    assert {run.train.seed for run in runs} == {run.model["seed"] for run in runs} == {0, 1, 2, 3, 4}
    for run in runs:
        train, model = run.train, run.model
        assert (train.steps, train.batch_size, train.optimizer, train.momentum) == (160_000, 64, "sgd", 0.9)
        assert (train.weight_decay, train.val_size, train.precision) == (0.0, 0, "fp32")
        assert train.augment
        assert (train.padding(32), train.crop_scale) == (4, (0.6, 1.0))
        assert (model["encoder"], model["stem_norm"], model["init"]) == ("imagenet", True, "lecun")
        assert (run.train_limit, run.test_limit, run.activations) == (None, None, "plain")


def test_the_papers_values():
    assert PAPER[BATCH] == {10: "90.0 ± 0.1", 100: "89.02 ± 0.1", 1000: "88.33 ± 0.1"}
    assert PAPER[ONE] == {10: "85.19 ± 0.3", 100: "–", 1000: "–"}
    assert PAPER[OVER_N] == {10: "87.87 ± 0.1", 100: "87.53 ± 0.2", 1000: "81.52 ± 0.4"}
    assert PAPER[ROOT] == {10: "88.0 ± 0.1", 100: "89.02 ± 0.09", 1000: "86.82 ± 0.3"}


def test_the_h200_preset_fits_an_hour():
    """Its docstring's arithmetic: blocks of two 3×3 convolutions on 8×8 maps, at 40 % of 989 TFLOP/s."""
    study = preset("h200", "cifar10:there")
    seconds = 0.0
    for run in study.runs():
        flop_block = 2 * 2 * 9 * run.model["width"] ** 2 * 64  # an image, forwards
        images = 3 * run.train.steps * run.train.batch_size  # forwards and backwards
        images += run.train.steps // run.train.eval_every * (10_000 + run.train.val_size)
        seconds += run.model["depth"] * flop_block * images / (0.4 * 989e12)
    assert 1800 < seconds < 3000
    assert study.depths == (10,)
    assert {setting_of(run) for run in study.runs()} == {BATCH, ONE, OVER_N, ROOT}
    assert {run.train.precision for run in study.runs()} == {"bf16"}


def test_small_runs_without_cifar():
    study = preset("small")
    assert (study.data, study.depths, study.augment) == ("digits", (10, 100, 1000), False)
    assert study.train_limit is None
    assert {run.model["encoder"] for run in study.runs()} == {"conv3x3"}
    assert len(study.runs()) == 4 * 3 * 3 * 2
    assert study.val_size < 898 - study.batch_size
    on_cifar = preset("small", "cifar10:there")
    assert (on_cifar.train_limit, on_cifar.augment, on_cifar.val_size) == (6000, True, 500)
    assert replace(on_cifar, data="") == PRESETS["small"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": ""}, "this preset needs CIFAR-10; give it as --data cifar10:PATH"),
        ({"lrs": ()}, "--lrs is empty, expected one value or more"),
        ({"seeds": (1, 1)}, "--seeds 1 1: a value is given twice; leave one out"),
        ({"width": (8, 8, 8)}, "--width has 3 values for 2 depths; give one, or one for each depth"),
        ({"depths": (0, 10)}, "--depths 0 is not possible: λ = 1/n needs a depth of 1 or more"),
        ({"margin": math.nan}, "--margin is nan, expected points of accuracy, 0 or more"),
    ],
)
def test_what_is_no_study(change, message):
    with pytest.raises(PathsumError, match=message):
        replace(STUDY, **change).runs()


# ---- cells


def test_mean_and_standard_error_over_seeds():
    cell = cells(evidence(AS_IN_THE_PAPER))[*BATCH, "test", 10]
    assert (cell.mean, cell.error) == (pytest.approx(90.0), pytest.approx(0.5))  # ±0.5 points: deviation √½, over √2
    assert (cell.done, cell.n, cell.text) == (2, 2, "90.0 ± 0.5")
    one = evidence(AS_IN_THE_PAPER, replace(STUDY, seeds=(0,)))
    assert cells(one)[*BATCH, "test", 10].text == "89.5"


def test_best_rate_by_test_and_by_validation():
    def run(config):  # the larger rate is better on the test images, the smaller on the validation images
        high = config.train.lr == 0.2
        return recorded(config, test=0.8 if high else 0.7, val=0.6 if high else 0.65, at_val=0.75 if high else 0.69)

    found = cells(Evidence.gather(STUDY.runs(), map(run, STUDY.runs())))
    by_test, by_validation = found[*ROOT, "test", 10], found[*ROOT, "validation", 10]
    assert (by_test.lr, by_test.mean, by_test.is_largest) == (0.2, pytest.approx(80), True)
    assert (by_validation.lr, by_validation.mean, by_validation.is_largest) == (0.1, pytest.approx(69), False)


def test_without_held_out_images_there_is_no_choice_by_validation():
    study = replace(STUDY, val_size=0)
    some = Evidence.gather(study.runs(), [recorded(config, val=None) for config in study.runs()])
    assert some.choices == ("test",)
    assert {key[2] for key in cells(some)} == {"test"}
    assert "validation" not in markdown(grid(some))


def test_frozen_and_diverged_are_told_apart():
    def mixed(config):
        return "frozen" if config.train.lr == 0.1 else "diverged"

    cell = cells(evidence({**AS_IN_THE_PAPER, ONE: mixed}))[*ONE, "test", 100]
    assert cell.text == "– (2 diverged, 2 frozen)"
    assert not cell.trains


def test_a_rate_without_failures_is_preferred():
    def second_seed_fails(config):
        return 0.9 if config.train.lr == 0.1 else "diverged" if config.train.seed else 0.95

    assert cells(evidence({**AS_IN_THE_PAPER, ROOT: second_seed_fails}))[*ROOT, "test", 10].lr == 0.1

    def seed_0_fails(config):
        return 0.3 + config.train.lr if config.train.seed else "frozen"

    cell = cells(evidence({**AS_IN_THE_PAPER, ROOT: seed_0_fails}))[*ROOT, "test", 10]
    assert (cell.lr, cell.text) == (0.2, "50.5 (1 of 2 frozen)")


def test_at_chance_is_five_standard_errors_over_guessing():
    some = evidence({**AS_IN_THE_PAPER, ONE: 0.12})
    assert some.chance == pytest.approx(0.1 + 5 * math.sqrt(0.09 / 2500))  # 13 %
    assert cells(some)[*ONE, "test", 10].text == "12.0 ± 0.5 (at chance)"
    assert not cells(evidence({**AS_IN_THE_PAPER, ONE: 0.14}))[*ONE, "test", 10].at_chance


def test_a_partial_sweep_says_so():
    def only_small_rate(config):
        return 0.8 if config.train.lr == 0.1 else None

    some = evidence({BATCH: only_small_rate, ONE: None, OVER_N: "interrupted", ROOT: "diverged"})
    assert some.progress == "partial: 12 of 32 runs"
    found = cells(some)
    assert found[*BATCH, "test", 10].text == "80.0 ± 0.5 …"
    assert found[*ONE, "test", 10].text == "… (4 to come)"
    assert found[*OVER_N, "test", 10].text == "… (4 to come)"
    assert found[*ROOT, "test", 10].text == "– (4 diverged)"
    text = markdown(grid(some))
    assert "(partial: 12 of 32 runs)" in text
    assert "…: not all runs are finished." in text


def test_before_the_first_run_there_is_a_table_too():
    nothing = Evidence.gather(STUDY.runs(), [])
    assert nothing.progress == "partial: 0 of 32 runs"
    found = checks(nothing, STUDY.margin)
    assert {check.verdict for check in found} == {"not enough data"}
    assert "Partial: 0 of 32 runs" in build(STUDY, nothing, found)


def test_runs_of_other_studies_are_left_out():
    others = [recorded(config) for config in replace(STUDY, steps=41).runs()]
    assert Evidence.gather(STUDY.runs(), others).num_finished == 0


# ---- texts

GOLDEN_MARKDOWN = """\
Test accuracy in percent, mean ± standard error over seeds (16 runs).

| setting | chosen | n = 100 |
| --- | --- | --: |
| λ = 1 with batch norm | by test | 90.0 ± 0.5 |
|  | by validation | 90.0 ± 0.5 |
|  | the paper | 89.02 ± 0.1 |
| λ = 1 | by test | – (4 diverged) |
|  | by validation | – (4 diverged) |
|  | the paper | – |
| λ = 1/n | by test | 87.8 ± 0.5 |
|  | by validation | 87.8 ± 0.5 |
|  | the paper | 87.53 ± 0.2 |
| λ = 1/√n | by test | 88.0 ± 0.5 |
|  | by validation | 88.0 ± 0.5 |
|  | the paper | 89.02 ± 0.09 |

By test: learning rate and evaluation chosen by test accuracy, as in the paper, which flatters. By validation: both \
chosen on held-out images.

–: no run at any learning rate reached its end. Diverged: the loss rose or was not finite; frozen: nothing moved.
"""
GOLDEN_LATEX = r"""\begin{table}
\centering
\caption{50 \% \& more}
\label{tab:x}
\begin{tabular}{lr}
\toprule
$\lambda$ & n = 10 \\
\midrule
1/$\sqrt{n}$ & 88.0 $\pm$ 0.1 \\
\midrule
1\_000 & -- (4 frozen) \\
\bottomrule
\end{tabular}
\par\smallskip\footnotesize A \textbackslash{} note.
\end{table}
"""


def test_markdown():
    assert markdown(grid(evidence(AS_IN_THE_PAPER, replace(STUDY, depths=(100,))))) == GOLDEN_MARKDOWN


def test_depths_that_the_paper_has_not():
    table = grid(evidence(AS_IN_THE_PAPER | {ONE: 0.85}, replace(STUDY, depths=(3, 10))))
    assert table.groups[0][2] == ("", "the paper", "", "90.0 ± 0.1")
    assert "the paper |" not in markdown(grid(evidence(AS_IN_THE_PAPER | {ONE: 0.85}, replace(STUDY, depths=(3,)))))


def test_latex():
    rows = ((("1/√n", "88.0 ± 0.1"),), (("1_000", "– (4 frozen)"),))
    assert latex(Grid(("λ", "n = 10"), rows, "50 % & more", (r"A \ note.",)), "tab:x") == GOLDEN_LATEX


def test_cells_as_csv_have_the_papers_numbers():
    lines = cell_lines(evidence(AS_IN_THE_PAPER)).set_index(["norm", "scale", "choice", "depth"])
    assert lines.loc[(*ROOT, "test", 100), ["paper_mean", "paper_error"]].tolist() == [89.02, 0.09]
    assert lines.loc[(*ONE, "test", 100), ["paper_mean", "mean"]].isna().all()
    assert lines.loc[(*ONE, "test", 100), "all_diverged"] == 4


# ---- checks


def verdicts(means: dict, study: Table1 = STUDY) -> dict[tuple[int, str], tuple[str, str]]:
    """Verdict and numbers by claim (1 to 3) and place."""
    found = checks(evidence(means, study), study.margin)
    claims = list(dict.fromkeys(check.claim for check in found))
    assert len(claims) == 3
    return {(1 + claims.index(check.claim), check.where): (check.verdict, check.numbers) for check in found}


def test_the_papers_numbers_pass_the_papers_claims():
    found = verdicts(AS_IN_THE_PAPER)
    assert {verdict for verdict, _ in found.values()} == {"pass"}
    assert found.keys() == {(1, "n = 100"), (2, "n = 10"), (2, "n = 100"), (3, "n = 10"), (3, "n = 100")}
    assert found[1, "n = 100"][1] == "4 runs: 4 diverged, 0 frozen, 0 at chance, 0 trained"
    # √(0.5² + 0.5²) = 0.7
    numbers = "88.0 ± 0.5 against 87.8 ± 0.5: +0.2 ± 0.7, by test and by validation"
    edge = "; the best rate of 1/n is the largest one tried, so a larger one may do better"
    assert found[2, "n = 10"][1] == numbers + edge
    assert found[3, "n = 10"][1] == "88.0 ± 0.5 against 90.0 ± 0.5: −2.0 ± 0.7, by test and by validation"


def test_untrainable_fails_where_one_rate_trains():
    def trains_at_small_rate(config):
        return 0.3 if config.train.lr == 0.1 else "diverged"

    verdict, numbers = verdicts({**AS_IN_THE_PAPER, ONE: trains_at_small_rate})[1, "n = 100"]
    assert verdict == "fail"
    assert numbers == (
        "4 runs: 2 diverged, 0 frozen, 0 at chance, 2 trained; the best 30.5 % at lr 0.1, where chance ends at 13.0 %"
    )
    assert verdicts({**AS_IN_THE_PAPER, ONE: 0.11})[1, "n = 100"][0] == "pass"  # at chance
    assert verdicts({**AS_IN_THE_PAPER, ONE: "frozen"})[1, "n = 100"][0] == "pass"


def test_untrainable_waits_for_all_runs_unless_one_has_trained():
    def partly(value):
        return lambda config: value if config.train.lr == 0.1 else None

    found = verdicts({**AS_IN_THE_PAPER, ONE: partly("diverged")})[1, "n = 100"]
    assert found == ("not enough data", "4 runs: 2 diverged, 0 frozen, 0 at chance, 0 trained, 2 to come")
    assert verdicts({**AS_IN_THE_PAPER, ONE: partly(0.5)})[1, "n = 100"][0] == "fail"


def test_untrainable_is_about_deep_towers():
    found = verdicts(AS_IN_THE_PAPER, replace(STUDY, depths=(10,)))
    assert found[1, "n ≥ 100"] == ("not enough data", "no such depth was asked for")


@pytest.mark.parametrize(
    ("over_n", "root", "verdict", "words"),
    [
        (0.80, 0.85, "pass", "+5.0 ± 0.7"),
        (0.85, 0.80, "fail", "−5.0 ± 0.7"),
        (0.81, 0.80, "not enough data", "−1.0 ± 0.7"),  # below, by less than two standard errors
        ("diverged", 0.80, "pass", "λ = 1/n does not train"),
        (0.80, "frozen", "fail", "λ = 1/√n does not train"),
        (0.80, 0.11, "fail", "λ = 1/√n does not train"),
        (0.11, "diverged", "not enough data", "neither trains"),
        (None, 0.80, "not enough data", "4 runs are to come"),
    ],
)
def test_root_against_one_over_n(over_n, root, verdict, words):
    found = verdicts({**AS_IN_THE_PAPER, OVER_N: over_n, ROOT: root})[2, "n = 10"]
    assert found[0] == verdict
    assert words in found[1]


@pytest.mark.parametrize(("margin", "verdict"), [(5.0, "pass"), (4.9, "not enough data"), (3.5, "fail"), (0.0, "fail")])
def test_within_the_margin_of_batch_norm(margin, verdict):
    study = replace(STUDY, margin=margin)
    assert verdicts({**AS_IN_THE_PAPER, BATCH: 0.93}, study)[3, "n = 100"][0] == verdict  # 5.0 points


def test_one_seed_is_not_enough_data():
    found = verdicts(AS_IN_THE_PAPER, replace(STUDY, seeds=(0,)))
    assert found[2, "n = 10"] == ("not enough data", "a standard error needs two runs or more of each")


# ---- outputs


def test_the_outputs(tmp_path):
    some = evidence(AS_IN_THE_PAPER)
    write(STUDY, some, tmp_path)
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")}
    tables = {"table1.md", "table1.tex", "table1.csv", "checks.csv", "runs.csv", "rows.csv", "study.json"}
    figures = {f"figures/learning-{name}.{kind}" for name in ("curves", "rates") for kind in ("png", "svg")}
    assert names == tables | figures | {"report.html"}
    runs = pd.read_csv(tmp_path / "runs.csv")
    assert len(runs) == 32
    assert {"environment.commit", "environment.torch", "environment.cpus", "train.lr", "model.depth", "best_test",
            "data.fingerprint", "status"} <= set(runs.columns)  # fmt: skip
    rows = pd.read_csv(tmp_path / "rows.csv")
    assert len(rows) == 3 * 32
    assert rows["step"].max() == 40
    record = json.loads((tmp_path / "study.json").read_text())
    assert record["options"]["lrs"] == [0.1, 0.2]
    assert record["environment"]["commit"] == "abc"
    assert r"$\lambda$ = 1/$\sqrt{n}$" in (tmp_path / "table1.tex").read_text()
    for path in tmp_path.rglob("*.*"):  # where the data lay is nobody's business
        assert path.suffix == ".png" or "cifar10:there" not in path.read_text(), path


def test_the_page_is_a_pure_function_of_the_rows():
    some = evidence({**AS_IN_THE_PAPER, OVER_N: lambda config: 0.8 if config.train.lr == 0.1 else None})
    text = build(STUDY, some, checks(some, 3.0))
    assert text == build(STUDY, some, checks(some, 3.0))
    words = " ".join("".join(ET.fromstring(text.partition("\n")[2]).itertext()).split())
    assert "Partial: 28 of 32 runs. The claims' checks: 3 pass, 2 not enough data." in words
    assert "λ = 1/√n is at least as good as 1/n: not enough data at n = 10, not enough data at n = 100." in words
    assert "trained on 750 training images of CIFAR-10, with 50 more held out" in words


def test_environments_name_every_value():
    runs = [Run(Path(name), {"environment": {"torch": name, "cpus": 2}}, [], {}) for name in ("2.12", "2.13", "2.13")]
    assert environments(runs) == {"torch": "2.12, 2.13", "cpus": "2"}


# ---- time


def test_the_estimate_is_linear_in_depth_and_steps(monkeypatch):
    monkeypatch.setattr(Clock, "_step", lambda self, config, depth: 1.0 + 2.0 * depth)
    run = replace(STUDY, val_size=0, test_limit=64, batch_size=64, eval_every=20).runs()[0]
    # 40 steps, 3 evaluations of one batch at a third of a step
    assert Clock("cpu").run(run) == pytest.approx((1 + 2 * 100) * (40 + 3 / 3))


@pytest.mark.parametrize("stack", [1, 2])
def test_steps_are_timed(stack):
    run = preset("smoke").runs()[0]
    clock = Clock("cpu", stack)
    assert 0 < clock.run(run) < 60
    assert clock.run(replace(run, model=run.model | {"depth": 80})) > clock.run(run)
    assert len(clock.known) == 1


def test_words_for_times():
    assert [words(t) for t in (3, 100, 6000, 3e5)] == ["3 s", "2 min", "1.7 h", "3.5 days"]


# ---- command line


@pytest.fixture
def no_figures(monkeypatch):
    """Pages that take no time."""
    monkeypatch.setattr("pathsum.studies.table1_page.build", lambda *args: "")


def printed(capsys) -> str:
    """What was printed, without line breaks."""
    return " ".join(capsys.readouterr().out.split())


def run_study(*args: str) -> int:
    return StudyCommand.parse(["table1", *args]).run() or 0


def test_options_begin_as_the_preset_has_them():
    plain = StudyCommand.parse(["table1", "--preset", "smoke"])
    assert isinstance(plain, Table1Command)
    assert plain.study == PRESETS["smoke"]
    options = [
        "--depths",
        "3",
        "5",
        "--lrs",
        "0.1",
        "--seeds",
        "7",
        "--steps",
        "9",
        "--width",
        "4",
        "6",
        "--val-size",
        "50",
    ]
    study = StudyCommand.parse(["table1", *options, "--preset=paper", "--data", "digits"]).study
    changes = {"depths": (3, 5), "lrs": (0.1,), "seeds": (7,), "steps": 9, "width": (4, 6), "val_size": 50}
    assert study == replace(preset("paper", "digits"), **changes)
    other_depths = StudyCommand.parse(["table1", "--preset", "paper", "--depths", "5", "999", "1000"]).study
    assert other_depths.width == (256, 256, 128)
    small = StudyCommand.parse(["table1", "--data", "cifar10:there"])
    assert (small.study, small.stack) == (preset("small", "cifar10:there"), 6)


def test_studies_are_listed(capsys):
    for args in ([], ["--help"]):
        StudyCommand.parse(args).run()
        assert "pathsum study table1" in capsys.readouterr().out


def test_unknown_studies_and_presets(capsys):
    with pytest.raises(PathsumError, match=r"'tabel1' is not a study, which are table1, .*; did you mean 'table1'\?"):
        StudyCommand.parse(["tabel1"])
    with pytest.raises(PathsumError, match="'pathsum study' lists them"):
        StudyCommand.parse(["zzz"])
    with pytest.raises(SystemExit):
        StudyCommand.parse(["table1", "--preset", "huge"])
    assert "huge" in capsys.readouterr().err


def test_a_dry_run_trains_nothing(tmp_path, capsys):
    assert run_study("--preset", "smoke", "--dry-run", "--out", str(tmp_path / "out")) == 0
    said = capsys.readouterr().out
    assert "48 runs, 0 of them finished" in said
    assert "80 steps of 32 images" in said
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(OutputError, match="is not empty and no earlier result of this command"):
        run_study("--preset", "smoke", "--out", str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


THIN = ["--preset", "smoke", "--lrs", "0.05", "--steps", "6", "--eval-every", "3", "--width", "4", "--engine", "inline"]


def test_from_runs_to_table_and_on(tmp_path, capsys):
    """Two depths, a seed each; then a second seed in the same store, and a report of what is there."""
    out = ["--out", str(tmp_path / "out"), "--store", str(tmp_path / "store")]
    assert run_study(*THIN, *out, "--depths", "2", "3", "--seeds", "0", "--check") == 0  # nothing is decided
    assert "(8 runs)" in printed(capsys)
    first = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").glob("*/done.json")}
    assert len(first) == 8
    page = (tmp_path / "out" / "report.html").read_text()
    assert run_study(*THIN, *out, "--depths", "2", "3", "--seeds", "0") == 0
    assert (tmp_path / "out" / "report.html").read_text() == page
    assert run_study(*THIN, *out, "--depths", "2", "3", "--seeds", "0", "1", "--report-only") == 0
    assert "(partial: 8 of 16 runs)" in printed(capsys)
    assert run_study(*THIN, *out, "--depths", "2", "--seeds", "0", "1") == 0
    assert "(8 runs)" in printed(capsys)
    assert all(path.stat().st_mtime_ns == time for path, time in first.items())
    assert len(list((tmp_path / "store").glob("*/done.json"))) == 12


def test_check_decides_the_exit_code(tmp_path, monkeypatch, no_figures):
    monkeypatch.setattr(Table1Command, "train", lambda self, configs, store: None)
    some = {name: evidence({**AS_IN_THE_PAPER, ROOT: root}) for name, root in (("good", 0.88), ("bad", 0.5))}
    for name, code in (("good", 0), ("bad", 1)):
        monkeypatch.setattr("pathsum.store.Store.runs", lambda self, configs, name=name: some[name].runs)
        options = vars(STUDY)
        assert Table1Command(**options, out=tmp_path / name, check=True).run() == code
        assert Table1Command(**options, out=tmp_path / name).run() == 0


def test_an_interrupted_sweep_leaves_a_report(tmp_path, monkeypatch, no_figures):
    def interrupted(self, configs, store):
        raise KeyboardInterrupt

    half = evidence({**AS_IN_THE_PAPER, BATCH: None})
    monkeypatch.setattr(Table1Command, "train", interrupted)
    monkeypatch.setattr("pathsum.store.Store.runs", lambda self, configs: half.runs)
    with pytest.raises(KeyboardInterrupt):
        Table1Command(**vars(STUDY), out=tmp_path / "out").run()
    assert "partial: 24 of 32 runs" in (tmp_path / "out" / "table1.md").read_text()


def test_failed_runs_are_an_error_that_names_them(tmp_path):
    """More validation images than there are training images: each run fails, and the report is there."""
    with pytest.raises(
        PathsumError, match=r"4 of 4 runs failed, the first .*: val_size is 900.*--retry tries them again"
    ):
        run_study(*THIN, "--out", str(tmp_path / "out"), "--depths", "2", "--seeds", "0", "--val-size", "900")
    assert "partial: 0 of 4 runs" in (tmp_path / "out" / "table1.md").read_text()


@pytest.mark.slow  # 48 trainings in processes of their own: half a minute of two cores
def test_the_smoke_preset(tmp_path, capsys):
    assert run_study("--preset", "smoke", "--out", str(tmp_path / "out")) == 0
    assert "(48 runs)" in printed(capsys)
    runs = pd.read_csv(tmp_path / "out" / "runs.csv")
    assert set(runs["status"]) <= {"done", "diverged", "frozen"}
    best = runs[runs["model.norm"] == "batch"].groupby("model.depth")["best_test"].max()
    assert (best > 0.4).all()
