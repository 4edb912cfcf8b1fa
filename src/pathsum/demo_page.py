"""The demo's page: what depth did, read from the runs; every sentence can say the opposite."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pathsum import page

if TYPE_CHECKING:
    import pandas as pd

    from pathsum.inspect import Inspection
    from pathsum.runs import Run

ROWS = (("batch", "1"), (None, "1"), (None, "1/n"), (None, "1/sqrt(n)"))  # norm, λ: the rows of the paper's Table 1


def by_depth(chosen: pd.DataFrame, depths: tuple[int, int], *, num_test: int) -> pd.DataFrame:
    """A row a setting: what became of it at either depth, and the difference in words."""
    import pandas as pd

    from pathsum.report import outcome, setting

    rows = []
    for norm, scale in ROWS:
        pair = [pick(chosen, depth, norm, scale) for depth in sorted(depths)]
        cells = {
            f"depth {depth}": f"{outcome(row, 'test_at_best_val')} (lr {row['lr']:g})" if row["done"] else outcome(row)
            for depth, row in zip(sorted(depths), pair, strict=True)
        }
        rows.append({"setting": setting(pair[0]), **cells, "what depth does": effect(*pair, num_test=num_test)})
    return pd.DataFrame(rows)


def pick(chosen: pd.DataFrame, depth: int, norm: str | None, scale: str) -> Any:
    """The row of one setting."""
    same = (chosen["depth"] == depth) & (chosen["norm"] == (norm or "none")) & (chosen["scale"] == scale)
    return chosen[same].iloc[0]


def effect(shallow: Any, deep: Any, *, num_test: int) -> str:
    """What going from the shallow to the deep tower did, read from the two results.

    A difference within two binomial standard errors is none: 2·√((a(1−a) + b(1−b))/N) for N test images.
    """
    if not shallow["done"] and not deep["done"]:
        return "trains at neither depth"
    if not deep["done"]:
        return "no longer trains"
    if not shallow["done"]:
        return "trains only when deep"
    before, after = shallow["test_at_best_val"], deep["test_at_best_val"]
    gain = after - before
    if math.isnan(gain):
        return "cannot be compared: no evaluation"
    if abs(gain) <= 2 * math.sqrt((before * (1 - before) + after * (1 - after)) / num_test):
        return "does as well"
    return f"{'gains' if gain > 0 else 'loses'} {100 * abs(gain):.1f} points"


def build(
    found: Sequence[Run],
    table: pd.DataFrame,
    chosen: pd.DataFrame,
    effects: pd.DataFrame,
    result: Inspection | None,
    out: Path,
) -> str:
    """The page; figures and tables also go to files."""
    from pathsum.explain import headline, sections
    from pathsum.report import curve_figure, curves, readable, summarize, sweep_figure

    summary = summarize(table)
    (out / "tables").mkdir(exist_ok=True)
    for name, frame in (("runs", table), ("learning-rates", summary), ("best", chosen), ("depth", effects)):
        frame.to_csv(out / "tables" / f"{name}.csv", index=False)
    shallow, deep = sorted(int(d) for d in chosen["depth"].unique())
    blocks = [
        page.paragraph(verdict(effects, shallow, deep), "lead"),
        page.paragraph(
            f"Towers of {shallow} and {deep} residual blocks were just trained on {images(found)} handwritten digits "
            "(8×8 pixels). A block adds its branch to what passes by it, z + λ·F(z); the four settings differ in the "
            "factor λ, n being the number of blocks, and in whether the branches hold batch normalization."
        ),
        page.table(
            effects,
            "Test accuracy at the evaluation with the best validation accuracy, at the learning rate with the best "
            "validation accuracy. One run each; 'does as well' is a difference that is chance with so many test images "
            "(two standard errors); another seed may differ by more.",
        ),
        page.heading("Which learning rates work?"),
        page.figure(
            sweep_figure(summary, out / "figures"),
            "Best test accuracy of each setting at each learning rate; a cross at the bottom marks a rate at which it "
            f"diverged, a triangle one at which it froze. {about_rates(summary, shallow, deep)}",
        ),
        page.heading("How does training go?"),
        page.figure(
            curve_figure(curves(found, table, chosen), out / "figures"),
            "Training loss and test accuracy of each setting at its best learning rate; a cross ends a run that "
            f"diverged. {about_start(table, deep)}",
        ),
        page.details("All settings and learning rates", page.table(readable(summary))),
    ]
    if result is None:
        blocks += [
            page.heading("Inside a deep tower"),
            page.paragraph(f"No tower of depth {deep} with λ = 1/√n finished training, so there is none to explain."),
        ]
    else:
        blocks += [
            page.heading(f"Inside the best tower of depth {deep} with λ = 1/√n"),
            page.paragraph(headline(result)),
            page.paragraph(
                "Explained are the weights at the end of training; the table above has the best evaluation on the way.",
                "soft",
            ),
            *sections(result, out),
        ]
    config = {key: value for key, value in found[0].config.items() if key in ("train", "environment", "data")}
    config.get("train", {}).pop("lr", None)
    return page.page(
        "What depth does in a residual network",
        *blocks,
        page.heading("How this was made"),
        page.paragraph("Every run is a folder in runs/; tables are in tables/ as CSV, figures as PNG and SVG."),
        page.settings({"width": found[0].config["model"]["config"]["width"], **config}),
    )


def images(found: Sequence[Run]) -> str:
    """How many training images there were."""
    config = found[0].config
    return f"{config['data']['train_size'] - config['train']['val_size']:,}"


def verdict(effects: pd.DataFrame, shallow: int, deep: int) -> str:
    """What depth did to each setting, in a sentence."""
    parts = [f"{row['setting']} {row['what depth does']}" for _, row in effects.iterrows()]
    text = "; ".join(parts).replace("λ = ", "λ\u00a0=\u00a0")  # no line break inside a formula
    return f"From {shallow} to {deep} blocks, {text}."


def about_rates(summary: pd.DataFrame, shallow: int, deep: int) -> str:
    """How many learning rates each depth survives."""
    texts = []
    for depth in (shallow, deep):
        part = summary[summary["depth"] == depth]
        texts.append(f"{int((part['done'] == part['n']).sum())} of {len(part)} at depth {depth}")
    return f"Pairs of setting and rate that trained to the end: {' and '.join(texts)}."


def about_start(table: pd.DataFrame, deep: int) -> str:
    """The loss before training, which shows what λ does to the size of the output."""
    from pathsum.report import setting

    part = table[table["depth"] == deep].drop_duplicates(["norm", "scale"])
    texts = [f"{page.number(row['initial_loss'])} for {setting(row)}" for _, row in part.iterrows()]
    return f"Before the first step the loss at depth {deep} is {', '.join(texts)}; guessing has {math.log(10):.2f}."
