"""Rules for the branch multiplier λ: `"1/sqrt(n)"`, `"n^-0.8"`, `0.3`, a list, `"learned"`, each `"… per stage"`."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeVar

from pathsum.errors import LambdaError, RuleError

ALLOWED = (
    "a number, C/n, C/sqrt(n), n^E, C*n^E, C/n^E with numbers C and E (such as '1', '1/n', '1/sqrt(n)', "
    "'n^-0.8'), a list with one number per branch, 'learned' (starts at 0), or 'learned:' and any of these; "
    "with ' per stage' behind it n counts the branches of a stage, and a list has one number per stage"
)
Per = Literal["net", "stage"]
PER_STAGE = " per stage"

_NUMBER = r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:e[+-]?[0-9]+)?"
_POWER = re.compile(
    rf"""(?:(?P<coefficient>{_NUMBER})\s*(?P<operator>[*/])\s*)?
         (?:(?P<root>sqrt\s*\(\s*n\s*\)|√\s*n|√\s*\(\s*n\s*\))
           |n(?:\s*(?:\^|\*\*)\s*(?P<open>\(\s*)?(?P<exponent>{_NUMBER})(?(open)\s*\)))?)""",
    re.VERBOSE,
)


@dataclass(frozen=True)
class Rule:
    """λ as a function of the number of branches n: `coefficient · n^exponent`, or `entries`, one per branch.

    A learned rule gives the starting values of parameters instead of constants. Per stage, n is the number of branches
    of the stage, and `entries` has one number per stage.
    `parse_rule` makes rules; `text` is their canonical spelling, and `parse_rule(rule.text) == rule`.
    """

    coefficient: float = 1.0
    exponent: float = 0.0
    entries: tuple[float, ...] | None = None
    learned: bool = False
    per: Per = "net"

    @property
    def text(self) -> str:
        """Canonical text, such as `"1/sqrt(n)"`, `"n^-0.8 per stage"`, `"0.3"`, `"[0.1, 0.2]"`, `"learned:1/n"`."""
        text = self._start_text()
        if self.learned:
            text = "learned" if text == "0" else f"learned:{text}"
        return text + PER_STAGE * (self.per == "stage")

    def values(self, n: int, stages: Sequence[Hashable] | None = None) -> tuple[float, ...]:
        """Return λ_1..λ_n, the starting values where learned; `stages` labels each branch (default: one stage).

        >>> parse_rule("1/sqrt(n)").values(4)
        (0.5, 0.5, 0.5, 0.5)
        >>> parse_rule("1/n per stage").values(3, stages=[0, 0, 1])
        (0.5, 0.5, 1.0)

        Raises LambdaError where a list has another number of entries, or where λ overflows.
        """
        if isinstance(n, bool) or not isinstance(n, int) or n < 0:
            raise LambdaError(f"the number of branches must be an integer ≥ 0, got {_show(n)}")
        if self.per == "stage":
            return self._staged([0] * n if stages is None else stages)
        if self.entries is not None:
            if len(self.entries) != n:
                raise LambdaError(
                    f"the list of λ has {len(self.entries)} entries, but there are {n} branches: give one "
                    "number for each branch, or one rule for all, such as '1/sqrt(n)'"
                )
            return self.entries
        return (self._power(n),) * n if n else ()

    def _staged(self, labels: Sequence[Hashable]) -> tuple[float, ...]:
        """The values of each stage, given to its branches."""
        counts = Counter(labels)
        if self.entries is None:
            of = {label: self._power(count) for label, count in counts.items()}
        elif len(self.entries) == len(counts):
            of = dict(zip(counts, self.entries, strict=True))
        else:
            raise LambdaError(
                f"the list of λ has {len(self.entries)} entries, but there are {len(counts)} stages: give one number "
                "for each stage, or one rule for all, such as '1/sqrt(n) per stage'"
            )
        return tuple(of[label] for label in labels)

    def _power(self, n: int) -> float:
        """λ for n ≥ 1; the two usual exponents by division and square root, so that 1/n is exactly 1/n."""
        if self.exponent == -1:
            return self.coefficient / n
        if self.exponent == -0.5:
            return self.coefficient / math.sqrt(n)
        try:
            value = self.coefficient * float(n) ** self.exponent
        except OverflowError:
            value = math.inf
        if not math.isfinite(value):
            raise LambdaError(f"λ = {self.text} is too large for a float at n = {n}: use a smaller exponent")
        return value

    def _start_text(self) -> str:
        if self.entries is not None:
            return f"[{', '.join(map(_digits, self.entries))}]"
        coefficient, exponent = _digits(self.coefficient), _digits(self.exponent)
        if self.exponent == 0:
            return coefficient
        if self.exponent in (-1, -0.5):
            return f"{coefficient}/{'n' if self.exponent == -1 else 'sqrt(n)'}"
        return f"n^{exponent}" if self.coefficient == 1 else f"{coefficient}*n^{exponent}"

    def __str__(self) -> str:
        return self.text


def parse_rule(rule: str | float | Sequence[float] | Rule) -> Rule:
    """Read a scaling rule for λ; text goes through a small grammar and is never evaluated.

    Numbers C and E, n the number of branches, blanks and `√n` welcome::

        rule    = ("learned" | "learned:" start | start) [" per stage" | " per net"]
        start   = C | [C ("*" | "/")] power | "[" C "," … "]"
        power   = "n" | "n^" E | "sqrt(n)"

    A list, tuple, array or tensor of numbers is one λ per branch. `"learned"` starts at 0 (SkipInit of De &
    Smith 2020; ReZero), `"learned:1/sqrt(n)"` at 1/√n. Per stage, n counts the branches of a stage.

    >>> parse_rule("3 / √n").text, parse_rule("n**-1").text, parse_rule([1, 0.5]).values(2)
    ('3/sqrt(n)', '1/n', (1.0, 0.5))

    Raises RuleError, which lists what is allowed.
    """
    if isinstance(rule, Rule):
        return rule
    if isinstance(rule, str):
        return _parse_text(rule)
    if hasattr(rule, "tolist"):  # an array or tensor; NumPy and PyTorch scalars give a plain number
        rule = rule.tolist()
    if isinstance(rule, int | float):
        return Rule(_finite(rule, rule))
    if isinstance(rule, Sequence) and not isinstance(rule, bytes | bytearray):
        return _per_branch(rule, rule)
    raise _refusal(rule)


def with_per(rule: str | float | Sequence[float] | Rule, per: Per | None) -> Rule:
    """The rule, with n counted over the net or over each stage; None leaves what its text says."""
    parsed = parse_rule(rule)
    if per is None:
        return parsed
    if per not in ("net", "stage"):
        raise RuleError(f"per={per!r}: n counts the branches of the whole net (per='net') or of a stage (per='stage')")
    return replace(parsed, per=per)


class Rescalable(Protocol):
    """A network with one λ per branch: the towers of `pathsum.nets`, and what `pathsum.knobs` returns."""

    def rescale(self, rule: str | float | Sequence[float] | Rule) -> Any: ...


Net = TypeVar("Net", bound=Rescalable)


def rescale(net: Net, rule: str | float | Sequence[float] | Rule, *, per: Per | None = None) -> Net:
    """Put `rule` on every λ of `net`, in place, and return `net`; the weights stay.

    per: what n counts, the branches of the whole "net" (default) or of a "stage"; a tower is one stage.
    Raises RuleError for an unknown rule, LambdaError for a list of another length or a model without λ.
    """
    parsed = with_per(rule, per)
    if not callable(getattr(net, "rescale", None)):
        raise LambdaError(f"{type(net).__name__} has no λ to rescale: wrap it first, net = pathsum.knobs(model, x)")
    net.rescale(parsed)
    return net


def lr_factor(lam: float, n: int, optimizer: str) -> float:
    """How much to multiply the learning rate of a branch scaled by λ, one of n, by.

    A branch's first update moves the output by λ²·lr under SGD and by λ·lr under Adam; for n branches to move it by
    O(1) together, lr ∝ 1/(nλ²) and 1/(nλ). At λ = 1/√n that is 1 and 1/√n (depth-μP), at 1/n it is n and 1. A branch
    that starts at λ = 0 keeps the learning rate.

    >>> lr_factor(0.1, 100, "sgd"), lr_factor(0.1, 100, "adamw")
    (1.0, 0.1)
    """
    powers = {"sgd": 2, "adamw": 1, "adam": 1}
    if optimizer not in powers:
        raise RuleError(f"optimizer {optimizer!r} has no law of its own: give one of {', '.join(powers)}")
    return 1.0 if lam == 0 else round(1 / (n * abs(lam) ** powers[optimizer]), 12)


def _parse_text(text: str) -> Rule:
    body = text.replace("−", "-").strip().lower()
    start, per, which = body.rpartition(" per ")
    if per:
        if which.strip() not in ("net", "stage") or " per " in start:
            raise _refusal(text)
        return replace(_parse_body(start.strip(), text), per="stage" if which.strip() == "stage" else "net")
    return _parse_body(body, text)


def _parse_body(body: str, text: str) -> Rule:
    if body == "learned":
        return Rule(0.0, learned=True)
    learned = body.startswith("learned")
    if learned:
        head, colon, body = body.partition(":")
        body = body.strip()
        if head.strip() != "learned" or not colon:
            raise _refusal(text)
    if body[:1] == "[" and body[-1:] == "]":
        return _per_branch(body[1:-1].split(","), text, learned=learned)
    if re.fullmatch(_NUMBER, body):
        return Rule(_finite(body, text), learned=learned)
    match = _POWER.fullmatch(body)
    if match is None:
        raise _refusal(text)
    coefficient = _finite(match["coefficient"] or 1, text)
    exponent = 0.5 if match["root"] else _finite(match["exponent"] or 1, text)
    if match["operator"] == "/":
        exponent = -exponent
    if coefficient == 0 or exponent == 0:  # 0·n^E and C·n^0 are numbers
        exponent = 0.0
    return Rule(coefficient, exponent, learned=learned)


def _per_branch(entries: Sequence[Any], rule: object, *, learned: bool = False) -> Rule:
    if not entries:
        raise _refusal(rule)
    return Rule(entries=tuple(_finite(entry, rule) for entry in entries), learned=learned)


def _finite(value: Any, rule: object) -> float:
    """A finite float; text must be a number of the grammar, since float() also reads 'nan' and '1_0'."""
    if isinstance(value, str):
        value = value.strip()
        if not re.fullmatch(_NUMBER, value):
            raise _refusal(rule)
    elif hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise _refusal(rule)
    try:
        number = float(value)
    except OverflowError:  # an integer of hundreds of digits
        number = math.inf
    if not math.isfinite(number):
        raise RuleError(f"λ must be finite, got {_show(rule)}: allowed are {ALLOWED}")
    return number + 0.0  # −0.0 becomes 0.0


def _digits(value: float) -> str:
    """The shortest text that reads back as the same float, without a trailing `.0`."""
    return repr(value).removesuffix(".0")


def _show(value: object) -> str:
    """A value on one line, cut to a readable length."""
    shown = " ".join(repr(value).split())
    return shown if len(shown) <= 60 else f"{shown[:57]}…"


def _refusal(rule: object) -> RuleError:
    return RuleError(f"{_show(rule)} is not a scaling rule: allowed are {ALLOWED}")
