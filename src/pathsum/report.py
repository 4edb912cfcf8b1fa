"""`pathsum report`: folders of training runs to one page, a pure function of what the runs recorded."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pathsum import figures, page
from pathsum.errors import OutputError, PathsumError

if TYPE_CHECKING:
    import pandas as pd

    from pathsum.runs import Run

SETTING = ["depth", "norm", "scale"]  # what a curve stands for; with lr, what a table row does
SCORES = ("best_test", "best_val", "test_at_best_val")
NUMBERS = (*SCORES, "initial_loss", "final_loss", "steps", "seconds")  # what a run comes to
STATUSES = ("done", "diverged", "frozen", "interrupted")


@dataclass(frozen=True)
class ReportCommand:
    """Turn folders of training runs into one page.

    Finds every run at or below a folder and writes: a table by depth, norm, λ and learning rate (number of runs,
    mean ± standard error, and how many diverged or froze), the learning-rate sweep, and training curves; beside the
    page the two tables as CSV. Accuracy is the best on the test images, which flatters, and, where validation images
    were held out, that at the best validation accuracy.

    Examples:
      pathsum report runs
      pathsum report runs --out sweep.html
    """

    folder: Path
    """A run folder, or a folder with run folders somewhere below it."""
    out: Path | None = None
    """The page to write; by default report.html in that folder."""

    def run(self) -> None:
        """Read, write, and say where the page is."""
        from pathsum.storage import write_atomic, writing

        out = self.out or self.folder / "report.html"
        check_page(out)
        found = read(self.folder)
        table = run_table(found)
        html = build(found, title=f"Training runs in {self.folder.resolve().name}")
        with writing(out):
            out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out.with_suffix(".runs.csv"), table.to_csv(index=False))
        write_atomic(out.with_suffix(".summary.csv"), summarize(table).to_csv(index=False))
        write_atomic(out, html)
        print(f"{len(found)} runs: {count_statuses(table)}")
        print(f"The page: {out}")


def check_page(out: Path) -> None:
    """Refuse a file that pathsum did not write."""
    if out.suffix != ".html":
        raise OutputError(f"--out {out} does not end in .html; name the page, such as {out / 'report.html'}")
    if out.is_dir() or (out.parent.exists() and not out.parent.is_dir()):
        raise OutputError(f"cannot write {out}: a folder is there, or a file where its folder should be")
    if out.is_file() and 'name="generator" content="pathsum' not in out.read_text("utf-8", errors="replace")[:2000]:
        raise OutputError(f"{out} exists and is no page of pathsum; choose another with --out")


def read(folder: Path) -> list[Run]:
    """All runs at or below `folder`; raises PathsumError where there are none, CheckpointError for damaged ones."""
    from pathsum.runs import find_runs, read_run

    if not folder.is_dir():
        raise PathsumError(f"no folder {folder}; give a folder of runs that 'pathsum train' wrote")
    found = [read_run(path) for path in find_runs(folder)]
    if not found:
        raise PathsumError(f"no training runs in {folder} or below it; make some with 'pathsum train --out {folder}'")
    return found


def run_table(found: Sequence[Run]) -> pd.DataFrame:
    """A row a run: what was asked and what came out; accuracies are shares of 1.

    Beside depth, norm, λ and learning rate there is a column for every option in which the runs differ.
    """
    import pandas as pd

    options = [
        {**dict(page.flat({k: v for k, v in run.config.items() if k in ("train", "model", "data")}))} for run in found
    ]
    names = dict.fromkeys(name for each in options for name in each)
    differing = [n for n in names if len({repr(each.get(n)) for each in options}) > 1 and not n.endswith("seed")]
    rows = []
    for run, each in zip(found, options, strict=True):
        base = {
            "run": run.folder.name,
            "depth": each.get("model.config.depth"),
            "norm": each.get("model.config.norm") or "none",
            "scale": each.get("model.config.scale", "own"),
            "lr": each.get("train.lr"),
        }
        known = {f"model.config.{name}" for name in SETTING} | {"train.lr"}
        others = {name: each.get(name) for name in differing if name not in known}
        summary = {name: run.summary.get(name) for name in NUMBERS}
        rows.append({**base, **others, "seed": each.get("train.seed"), "status": run.status, **summary})
    return pd.DataFrame(rows).astype(dict.fromkeys(NUMBERS, float))


def summarize(table: pd.DataFrame) -> pd.DataFrame:
    """A row a setting: number of runs and of each status, mean and standard error of the scores over seeds.

    Scores are those of the runs that finished; the standard error needs two of them.
    """
    import pandas as pd

    keys = [name for name in table.columns if name not in ("run", "seed", "status", *NUMBERS)]
    rows = []
    for values, group in table.groupby(keys, dropna=False, sort=False):
        done = group[group["status"] == "done"]
        row = {**dict(zip(keys, values, strict=True)), "n": len(group)}
        row |= {status: int((group["status"] == status).sum()) for status in STATUSES}
        for name in SCORES:
            row[name] = done[name].mean()
            row[f"{name}_se"] = done[name].sem() if len(done) > 1 else math.nan
        rows.append({**row, "final_loss": done["final_loss"].mean()})
    return pd.DataFrame(rows).sort_values(keys, ignore_index=True, key=sortable)


def sortable(column: pd.Series) -> pd.Series:
    """A sort key for columns that mix types."""
    return column if page.is_number(column) else column.astype(str)


def best_rates(summary: pd.DataFrame, score: str | None = None) -> pd.DataFrame:
    """The row with the best learning rate of each depth, norm and λ.

    Best by `score`; by default by validation where it was measured, else by test accuracy. A rate at which runs
    failed counts only where none is without, and then those with the fewest failures; where all failed, the lowest.
    """
    import pandas as pd

    groups = summary.groupby(SETTING, dropna=False, sort=False)
    return pd.DataFrame([best_rate(group, score) for _, group in groups]).reset_index(drop=True)


def best_rate(group: pd.DataFrame, score: str | None = None) -> pd.Series:
    """The row of `best_rates` for one setting."""
    if score is None:
        score = "best_val" if group.loc[sound(group), "best_val"].notna().any() else "best_test"
    scored = group[group[score].notna()]
    if not len(scored):
        return group.sort_values("lr").iloc[0]
    failed = (scored["diverged"] + scored["frozen"]) / scored["n"]
    return scored[failed == failed.min()].sort_values(score, kind="stable").iloc[-1]


def sound(summary: pd.DataFrame) -> pd.Series:
    """At which rates a run is finished and none has failed."""
    return (summary["done"] > 0) & (summary["diverged"] + summary["frozen"] == 0)


def setting(row: Any) -> str:
    """A short name for a curve: "λ = 1/√n", "λ = 1 with batch norm"."""
    scale = str(row["scale"]).replace("sqrt(n)", "√n")
    return f"λ = {scale}" if row["norm"] == "none" else f"λ = {scale} with {row['norm']} norm"


def outcome(row: Any, score: str = "best_test") -> str:
    """What became of a setting: "97.3 ± 0.2 %", "diverged", or both in words."""
    trouble = [f"{row[s]} of {row['n']} {s}" for s in STATUSES[1:] if row[s]]
    if row["done"] == 0:
        return next((s for s in STATUSES[1:] if row[s] == row["n"]), ", ".join(trouble))
    value = "–" if math.isnan(row[score]) else f"{100 * row[score]:.1f}"
    error = "" if math.isnan(row[f"{score}_se"]) else f" ± {100 * row[f'{score}_se']:.1f}"
    return f"{value}{error} %" + (f" ({', '.join(trouble)})" if trouble else "")


def readable(summary: pd.DataFrame) -> pd.DataFrame:
    """The summary for eyes: scores in percent with their error, a column each."""
    import pandas as pd

    scores = {"best_test": "best test", "test_at_best_val": "test at best validation"}
    used = {name: title for name, title in scores.items() if summary[name].notna().any()} or {"best_test": "best test"}
    keys = [name for name in summary.columns if name not in (*STATUSES, *SCORES, *(f"{s}_se" for s in SCORES))]
    table = pd.DataFrame({name: summary[name] for name in keys if name != "final_loss"})
    for name, title in used.items():
        table[title] = [outcome(row, name) for _, row in summary.iterrows()]
    return table.assign(**{"training loss": summary["final_loss"]})


def count_statuses(table: pd.DataFrame) -> str:
    """ "12 done, 3 diverged"."""
    counts = table["status"].value_counts()
    return ", ".join(f"{counts[status]} {status}" for status in STATUSES if status in counts)


def curves(found: Sequence[Run], table: pd.DataFrame, chosen: pd.DataFrame) -> list[tuple[Any, list[Run]]]:
    """For each chosen setting, its row and its runs."""
    keys = [name for name in chosen.columns if name in table.columns and name not in (*SCORES, "final_loss", "seed")]
    result = []
    for _, row in chosen.iterrows():
        same = table[keys].apply(lambda other, row=row: all(equal(other[k], row[k]) for k in keys), axis=1)
        result.append((row, [run for run, hit in zip(found, same, strict=True) if hit]))
    return result


def equal(a: Any, b: Any) -> bool:
    """Equal, or both missing."""
    return bool(a == b) or (a != a and b != b) or (a is None and b is None)


def depths(table: pd.DataFrame) -> list[Any]:
    """The depths there are, in order."""
    return sorted(table["depth"].dropna().unique().tolist())


def sweep_figure(summary: pd.DataFrame, folder: Path | None, name: str = "learning-rates") -> str:
    """Accuracy against learning rate, a panel a depth."""
    each = depths(summary) or [None]
    names = {setting(row): i for i, (_, row) in enumerate(summary.drop_duplicates(SETTING[1:]).iterrows())}

    def plot(*axes: Any) -> None:
        for ax, depth in zip(axes, each, strict=True):
            part = summary if depth is None else summary[summary["depth"] == depth]
            lines = {setting(g.iloc[0]): g for _, g in part.groupby(SETTING[1:], dropna=False, sort=False)}
            figures.sweep(ax, {k: lines[k] for k in names if k in lines}, names)
            ax.set_title("" if depth is None else f"depth {depth:g}")
            ax.set_ylim(0, top(summary["best_test"]))
        axes[0].set_ylabel("best test accuracy (%)")
        figures.shared_legend(axes)

    return figures.draw(plot, folder, name, columns=len(each), size=(max(7.6, 4.8 * len(each)), 4.4))


def top(accuracies: Iterable[float]) -> float:
    """Where an accuracy axis in percent ends: at the whole, or at half of it where nothing comes near the half."""
    return 102 if max((a for a in accuracies if a == a), default=1.0) > 0.4 else 51


def curve_figure(chosen: Sequence[tuple[Any, list[Run]]], folder: Path | None, name: str = "training") -> str:
    """Training loss and test accuracy against steps, a row of two panels; one color a setting."""
    each = sorted({row["depth"] for row, _ in chosen if row["depth"] == row["depth"]}) or [None]
    losses = [(run.status == "done", row["train_loss"]) for _, found in chosen for run in found for row in run.rows]
    sound = [loss for done, loss in losses if done and loss] or [loss for _, loss in losses if loss] or [1.0]
    cap = 3 * max(sound)  # a diverged run must not squash the others
    names = {setting(row): i for i, (row, _) in enumerate(unique(chosen))}

    def plot(*axes: Any) -> None:
        for column, depth in enumerate(each):
            loss, accuracy = axes[column], axes[column + len(each)]
            for row, found in chosen:
                if depth is None or row["depth"] == depth:
                    for run in found:
                        label = setting(row)
                        color = figures.PALETTE[names[label] % len(figures.PALETTE)]
                        figures.curve(loss, accuracy, run.rows, run.status, label, color, cap=cap)
            loss.set_title("" if depth is None else f"depth {depth:g}")
            loss.set_xlim(accuracy.get_xlim())
            accuracy.set_ylim(0, top(row["best_test"] for row, _ in chosen))
            figures.log_axis(loss.yaxis)
        axes[0].set_ylabel("training loss (nats)")
        axes[len(each)].set_ylabel("test accuracy (%)")
        figures.shared_legend(axes)

    size = (max(7.6, 4.8 * len(each)), 7.0)
    return figures.draw(plot, folder, name, rows=2, columns=len(each), size=size)


def unique(chosen: Iterable[tuple[Any, list[Run]]]) -> list[tuple[Any, list[Run]]]:
    """The first of each setting, whatever its depth."""
    return list({setting(row): (row, found) for row, found in reversed(list(chosen))}.values())[::-1]


def build(found: Sequence[Run], *, title: str) -> str:
    """The page: a pure function of the runs."""
    table = run_table(found)
    summary = summarize(table)
    chosen = best_rates(summary)
    by = "validation accuracy" if chosen["best_val"].notna().any() else "test accuracy"
    best = chosen[chosen["done"] > 0].sort_values("best_test").tail(1)
    first = f"{len(found)} runs: {count_statuses(table)}."
    for _, row in best.iterrows():
        first += f" The best: {setting(row)} at depth {row['depth']} and learning rate {row['lr']:g}, {outcome(row)}."
    data = sorted({str(run.config.get("data", {}).get("name")) for run in found})
    told = ("environment",) if len(found) > 1 else ("train", "model", "data", "environment")
    return page.page(
        title,
        page.paragraph(first, "lead"),
        page.paragraph(f"Data: {', '.join(data)}.", "soft"),
        page.heading("The best learning rate of each setting"),
        page.table(
            readable(chosen),
            f"Chosen by mean {by}; n runs, mean ± standard error over seeds. 'Best test' is the best evaluation on the "
            "test images, which flatters. Diverged: the loss rose or was not finite; frozen: nothing moved.",
        ),
        page.heading("Training"),
        page.figure(
            curve_figure(curves(found, table, chosen), None),
            "Loss of the training batches and accuracy on the test images against steps, each setting at its best "
            "learning rate. A cross ends a run that diverged, a triangle one that froze.",
        ),
        page.heading("All learning rates"),
        page.figure(
            sweep_figure(summary, None),
            "Best test accuracy against learning rate, with the standard error where there are several seeds. "
            "Crosses at the bottom are rates at which runs diverged, triangles those at which they froze.",
        ),
        page.details("All settings", page.table(readable(summary))),
        page.details("All runs", page.table(table)),
        page.heading("How this was made"),
        page.settings({k: v for k, v in found[0].config.items() if k in told}),
    )
