"""Conditions on a run's columns, as one types them: `model.depth=100`, `lr<=0.1`, `norm!=batch`."""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from pathsum.errors import PathsumError, RuleError

COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "!=": operator.ne,
    "=": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}
FORM = re.compile(r"\s*([\w.-]+)\s*(<=|>=|!=|==|=|<|>)(.*)", re.DOTALL)
NOTHING = ("", "none", "null")


def parse(text: str, columns: Sequence[str]) -> Callable[[Mapping[str, Any]], bool]:
    """The condition as a function of a row; the last part of a column's name is enough where it is of one.

    >>> holds = parse("depth>=100", ["model.depth", "train.lr"])
    >>> holds({"model.depth": 100}), holds({"model.depth": 10}), holds({"model.depth": None})
    (True, False, False)
    >>> parse("model.scale = 1/√n", ["model.scale"])({"model.scale": "1/sqrt(n)"})
    True

    Raises PathsumError for another form, an unknown or ambiguous column, and an order among what has none.
    """
    match = FORM.fullmatch(text)
    if match is None:
        raise PathsumError(f"--where {text!r} is no condition; write it as model.depth=100, or with !=, <, <=, >, >=")
    asked, sign, value = match[1], match[2].replace("==", "="), match[3].strip()
    column = _column(asked, columns)
    wanted = _number(value)
    if sign[0] in "<>" and wanted is None:
        raise PathsumError(f"--where {text!r}: {sign} needs a number, got {value!r}; compare words with = or !=")
    compare = COMPARE[sign]

    def holds(row: Mapping[str, Any]) -> bool:
        found = row.get(column)
        if wanted is not None and isinstance(found, int | float) and not isinstance(found, bool):
            return compare(float(found), wanted)
        if sign[0] in "<>":
            return False
        return compare(_word(column, found), _word(column, value))

    return holds


def _column(asked: str, columns: Sequence[str]) -> str:
    """The column meant."""
    if asked in columns:
        return asked
    found = [name for name in columns if name.endswith(f".{asked}")]
    if len(found) == 1:
        return found[0]
    if found:
        raise PathsumError(f"{asked!r} is a column of several parts; name one: {', '.join(found)}")
    near = difflib.get_close_matches(asked, [*columns, *(name.rpartition(".")[2] for name in columns)], n=1)
    hint = f"did you mean {near[0]!r}?" if near else "'pathsum runs show KEY' lists them"
    raise PathsumError(f"no run has a column {asked!r}; {hint}")


def _number(text: str) -> float | None:
    with suppress(ValueError):
        return float(text)
    return None


def _word(column: str, value: Any) -> str:
    """A value as it is compared: nothing is "none", and a scaling rule is in its own words."""
    text = "" if value is None else str(value).strip()
    if column == "model.scale" and text:
        from pathsum.scaling import parse_rule

        with suppress(RuleError):
            return parse_rule(text).text
    return "none" if text.lower() in NOTHING else text.lower()
