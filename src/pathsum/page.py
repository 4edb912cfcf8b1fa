"""One self-contained HTML page: text, tables and inlined figures; and the folder it is published in.

Every function returns a piece of HTML; text is escaped where it enters. Nothing is loaded from outside: no
script, font, image or style sheet.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pathsum import __version__
from pathsum.errors import OutputError

if TYPE_CHECKING:
    import pandas as pd

CSS = """
:root { color-scheme: light dark; --page: #ffffff; --ink: #1f2328; --soft: #59636e; --line: #d0d7de; --tint: #f6f8fa;
  --c1: #0072b2; --c2: #d55e00; --c3: #009e73; --c4: #cc79a7; --c5: #e69f00; --c6: #56b4e9; }
@media (prefers-color-scheme: dark) { :root { --page: #15181d; --ink: #e6e9ed; --soft: #9aa4af; --line: #3a414a;
  --tint: #1d2127; --c1: #4aa8e0; --c2: #f08040; --c3: #2fc59a; --c4: #e3a0c4; --c5: #f0b840; --c6: #8fd0f5; } }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 50rem; background: var(--page); color: var(--ink);
  font: 17px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.35rem; margin: 3rem 0 .75rem; padding-top: .75rem; border-top: 1px solid var(--line); }
p { margin: .75rem 0; }
.lead { font-size: 1.12rem; }
.soft, figcaption, caption { color: var(--soft); }
figure { margin: 1.5rem 0; }
figure svg { display: block; width: 100%; height: auto; }
figcaption, caption { font-size: .95rem; line-height: 1.5; text-align: left; }
figcaption { margin-top: .5rem; }
caption { padding-bottom: .4rem; }
.scroll { overflow-x: auto; margin: 1.25rem 0; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .9rem .3rem 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { border-bottom-width: 2px; }
th.text, td.text { text-align: left; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.6rem, 1fr)); gap: .75rem; margin: 1.5rem 0; }
dl div { background: var(--tint); border: 1px solid var(--line); border-radius: 6px; padding: .6rem .8rem; }
dt { color: var(--soft); font-size: .85rem; }
dd { margin: 0; font-size: 1.25rem; font-weight: 600; }
details { margin: 1rem 0; } summary { cursor: pointer; }
code { font: .9em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
""".strip()


def page(title: str, *blocks: str) -> str:
    """The whole page, well-formed as HTML and as XML."""
    head = (
        f'<meta charset="utf-8"/><meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f'<meta name="generator" content="pathsum {escape(__version__)}"/><title>{escape(title)}</title>'
    )
    body = "\n".join(blocks)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}<style>{CSS}</style></head>\n'
        f"<body>\n<h1>{escape(title)}</h1>\n{body}\n</body></html>\n"
    )


def heading(text: str) -> str:
    """A section begins."""
    return f"<h2>{escape(text)}</h2>"


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph; `kind` is "lead" (larger) or "soft" (paler)."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def figure(svg: str, caption: str) -> str:
    """A figure (SVG from `pathsum.figures.draw`) with the sentences that explain it."""
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{escape(caption)}"', 1)
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def facts(values: Mapping[str, str]) -> str:
    """The numbers to see first, each with its name."""
    items = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in values.items())
    return f"<dl>{items}</dl>"


def table(frame: pd.DataFrame, caption: str = "") -> str:
    """A table; text columns stand left, numbers right, with four significant digits."""
    text = {name: not is_number(frame[name]) for name in frame.columns}

    def row(tag: str, cells: Iterable[tuple[Any, Any]]) -> str:
        each = (
            f'<{tag} class="text">{cell(v)}</{tag}>' if text[name] else f"<{tag}>{cell(v)}</{tag}>" for name, v in cells
        )
        return f"<tr>{''.join(each)}</tr>"

    head = row("th", ((name, name) for name in frame.columns))
    body = "\n".join(row("td", zip(frame.columns, r, strict=True)) for r in frame.itertuples(index=False, name=None))
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f'<div class="scroll"><table>{title}<thead>{head}</thead><tbody>\n{body}\n</tbody></table></div>'


def is_number(column: pd.Series) -> bool:
    """Whether a column holds numbers."""
    import pandas as pd

    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


def cell(value: Any) -> str:
    """A table cell: numbers by `number`, nothing for a missing value."""
    return escape(number(value) if isinstance(value, float) else "" if value is None else str(value))


def number(value: float) -> str:
    """Four significant digits; small and large numbers in scientific notation; nothing for not-a-number.

    >>> number(0.9173), number(1.23e-15), number(-0.0), number(12345.0)
    ('0.9173', '1.2e-15', '0', '12345')
    """
    if value != value:
        return ""
    if value == 0:
        return "0"
    if abs(value) < 1e-3 or abs(value) >= 1e6:
        return f"{value:.1e}"
    return f"{value:.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def details(summary: str, *blocks: str) -> str:
    """Blocks that open on a click."""
    return f"<details><summary>{escape(summary)}</summary>{''.join(blocks)}</details>"


def settings(values: Mapping[str, Any]) -> str:
    """Configuration and versions, name and value, nested mappings flattened."""
    rows = "".join(
        f'<tr><td class="text">{escape(name)}</td><td class="text"><code>{escape(str(value))}</code></td></tr>'
        for name, value in flat(values)
    )
    return f'<div class="scroll"><table><tbody>{rows}</tbody></table></div>'


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings as ("outer.inner", value), without those that are None."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", value


def check_free(folder: Path, *, marker: str, overwrite: bool) -> None:
    """Refuse a folder that holds something, unless it holds `marker` and may be overwritten.

    Raises OutputError.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file, expected a folder; choose another with --out")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not (folder / marker).is_file():
        raise OutputError(f"{folder} is not empty and no earlier result of this command; choose another with --out")
    if not overwrite:
        raise OutputError(f"{folder} holds an earlier result; add --overwrite to replace it, or choose another --out")


@contextmanager
def staged(folder: Path, *, marker: str, overwrite: bool) -> Iterator[Path]:
    """Yield an empty folder to write into that takes the place of `folder` at the end, whole or not at all.

    Raises OutputError as `check_free` does, or where the place cannot be written to.
    """
    check_free(folder, marker=marker, overwrite=overwrite)
    folder = folder.absolute()
    work: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        new, old = work / "new", work / "old"
        new.mkdir()
        yield new
        if folder.exists():
            os.rename(folder, old)
        try:
            os.rename(new, folder)
        except BaseException:
            if old.exists():
                os.rename(old, folder)
            raise
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}; choose another with --out") from error
    finally:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)


def jsonable(value: Any) -> Any:
    """Paths as text and tuples as lists, inside mappings: what JSON gives back."""
    if isinstance(value, Mapping):
        return {key: jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    return str(value) if isinstance(value, Path) else value
