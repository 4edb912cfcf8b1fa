"""The grammar of scaling rules: what it reads, what it refuses, and that text is never code."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pathsum.errors import LambdaError, PathsumError, RuleError
from pathsum.nets import ResidualMLP
from pathsum.scaling import Rule, parse_rule, rescale

NUMBERS = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e6, max_value=1e6)
PER = st.sampled_from(["net", "stage"])
RULES = st.one_of(
    st.builds(Rule, coefficient=NUMBERS),
    st.builds(Rule, coefficient=NUMBERS.filter(bool), exponent=st.floats(-3, 3)),
    st.builds(Rule, entries=st.lists(NUMBERS, min_size=1, max_size=8).map(tuple)),
).flatmap(lambda rule: st.builds(replace, st.just(rule), learned=st.booleans(), per=PER))


@pytest.mark.parametrize(
    ("rule", "text", "at_16"),
    [
        ("1", "1", 1.0),
        ("1/n", "1/n", 1 / 16),
        ("1/sqrt(n)", "1/sqrt(n)", 0.25),
        ("1/√n", "1/sqrt(n)", 0.25),
        ("1/√(n)", "1/sqrt(n)", 0.25),
        ("  2 /  sqrt( n ) ", "2/sqrt(n)", 0.5),
        ("1/N", "1/n", 1 / 16),
        ("n^-0.5", "1/sqrt(n)", 0.25),
        ("n^−0.8", "n^-0.8", 16**-0.8),  # a typographic minus
        ("n ** -0.8", "n^-0.8", 16**-0.8),
        ("n^(-0.8)", "n^-0.8", 16**-0.8),
        ("1/n^0.8", "n^-0.8", 16**-0.8),
        ("n^-1", "1/n", 1 / 16),
        ("n^-2", "n^-2", 1 / 256),
        ("n^.25", "n^0.25", 2.0),
        ("n^1", "n^1", 16.0),
        ("sqrt(n)", "n^0.5", 4.0),
        ("0.5*n^-0.25", "0.5*n^-0.25", 0.25),
        ("3*n^0", "3", 3.0),
        ("0/n", "0", 0.0),
        ("-1/n", "-1/n", -1 / 16),
        ("-0.0", "0", 0.0),
        ("1e-3", "0.001", 0.001),
        ("5.", "5", 5.0),
        (".5", "0.5", 0.5),
        (0.3, "0.3", 0.3),
        (1, "1", 1.0),
        (0, "0", 0.0),
        (np.float32(0.5), "0.5", 0.5),
        (torch.tensor(0.5), "0.5", 0.5),
        ("learned", "learned", 0.0),
        ("learned:0", "learned", 0.0),
        ("learned:1/sqrt(n)", "learned:1/sqrt(n)", 0.25),
        ("Learned : 0.1", "learned:0.1", 0.1),
        ("1/sqrt(n) per stage", "1/sqrt(n) per stage", 0.25),
        ("  1/√n   PER   stage ", "1/sqrt(n) per stage", 0.25),
        ("learned per stage", "learned per stage", 0.0),
        ("learned:1/n per stage", "learned:1/n per stage", 1 / 16),
        ("0.5 per net", "0.5", 0.5),
    ],
)
def test_reads(rule, text, at_16):
    parsed = parse_rule(rule)
    assert parsed.text == str(parsed) == text
    assert parsed.values(16) == (at_16,) * 16
    assert parsed.learned == text.startswith("learned")
    assert parse_rule(parsed) is parsed
    assert parse_rule(text) == parsed


@pytest.mark.parametrize("rule", [[0.1, 0.2, 3], (0.1, 0.2, 3), np.array([0.1, 0.2, 3]), "[0.1, 0.2,3]"])
def test_one_number_per_branch(rule):
    parsed = parse_rule(rule)
    assert parsed.text == "[0.1, 0.2, 3]"
    assert parsed.values(3) == (0.1, 0.2, 3.0)
    assert parse_rule("learned:[0.1, 0.2, 3]") == Rule(entries=(0.1, 0.2, 3.0), learned=True)
    with pytest.raises(LambdaError, match=r"list of λ has 3 entries, but there are 4 branches"):
        parsed.values(4)


def test_a_list_of_tensors_is_a_list_of_numbers():
    rule = [torch.tensor(0.5), np.float64(0.25), 1]
    assert parse_rule(rule).values(3) == (0.5, 0.25, 1.0)


@given(RULES)
def test_text_reads_back_as_the_same_rule(rule):
    again = parse_rule(json.loads(json.dumps(parse_rule(rule.text).text)))
    assert again.text == parse_rule(rule.text).text
    n = len(rule.entries) if rule.entries is not None else 7
    assert again.values(n, range(n)) == pytest.approx(rule.values(n, range(n)), rel=1e-15, abs=0)


@given(st.integers(1, 10_000), st.floats(-3, 3))
def test_a_power_is_the_power(n, exponent):
    (value, *_) = parse_rule(f"n^{exponent!r}").values(n)
    assert value == pytest.approx(math.exp(exponent * math.log(n)), rel=1e-12)


@given(st.integers(1, 5000))
def test_the_usual_rules_are_exact(n):
    assert parse_rule("1/n").values(n) == (1 / n,) * n
    assert parse_rule("1/sqrt(n)").values(n) == (1 / math.sqrt(n),) * n


@given(RULES, st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_per_stage_is_the_rule_of_each_stage_on_its_own(rule, labels):
    rule = replace(rule, per="stage")
    if rule.entries is not None and len(rule.entries) != len(set(labels)):
        with pytest.raises(LambdaError, match="stages: give one number for each stage"):
            rule.values(len(labels), labels)
        return
    values = rule.values(len(labels), labels)
    for k, label in enumerate(dict.fromkeys(labels)):
        alone = replace(rule, per="net", entries=None if rule.entries is None else rule.entries[k : k + 1])
        count = 1 if rule.entries is not None else labels.count(label)
        assert {v for v, of in zip(values, labels, strict=True) if of == label} == {alone.values(count)[0]}


def test_no_branches_no_values():
    assert parse_rule("1/n").values(0) == ()


REFUSED = [
    "",
    "   ",
    "banana",
    "m^2",
    "1/m",
    "n^",
    "n^n",
    "n^(-0.8",
    "n^-0.8)",
    "2n",
    "1 2",
    "1//n",
    "1/2/n",
    "1/sqrt(2*n)",
    "1_0",
    "٣",  # float() reads Arabic digits, the grammar does not
    "0x10",
    "nan",
    "inf",
    "-inf",
    "1e999",
    "1e999*n^-1",
    "n^1e999",
    "[]",
    "[1, nan]",
    "[1, '2']",
    "[1, [2]]",
    "[1,]",
    "learned:",
    "learned:learned",
    "learnedly",
    "learned 1/n",
    "1/n per",
    "1/n per block",
    "per stage",
    "1/n per stage per stage",
    "1/n perstage",
    "1 if n else 2",
    "__import__('os')",
    "__import__('os').system('false')",
    "(lambda: 1)()",
    "n.__class__",
    "1" + "\n" * 3 + "import os",
    float("nan"),
    float("inf"),
    10**400,
    True,
    None,
    b"1",
    1j,
    {},
    {"n": 1},
    [],
    [1, None],
    [1, True],
    [1, "2/n"],
    [[1, 2], [3, 4]],
    np.ones((2, 2)),
    [0.5, float("nan")],
    torch.tensor([0.5, float("inf")]),
    object(),
]


@pytest.mark.parametrize("rule", REFUSED, ids=lambda rule: repr(rule).partition(" at 0x")[0][:24])
def test_refuses_and_lists_what_is_allowed(rule):
    with pytest.raises(RuleError) as caught:
        parse_rule(rule)
    text = str(caught.value)
    assert isinstance(caught.value, PathsumError)
    assert isinstance(caught.value, ValueError)
    assert "\n" not in text
    for allowed in ("1/n", "1/sqrt(n)", "n^-0.8", "list", "learned"):
        assert allowed in text


def test_text_is_never_executed(monkeypatch):
    def trap(*args, **kwargs):
        raise AssertionError("a rule was executed")

    monkeypatch.setattr("builtins.eval", trap)
    monkeypatch.setattr("builtins.exec", trap)
    monkeypatch.setattr("os.system", trap)
    with pytest.raises(RuleError, match="__import__"):
        parse_rule("__import__('os').system('true')")
    assert parse_rule("1/sqrt(n)").values(4) == (0.5,) * 4


@given(st.text(max_size=40))
def test_any_text_gives_a_rule_or_a_rule_error(text):
    try:
        rule = parse_rule(text)
    except RuleError:
        return
    assert parse_rule(rule.text).text == rule.text


def test_long_text_is_refused_quickly_and_shown_short():
    with pytest.raises(RuleError) as caught:
        parse_rule("1" * 200_000 + "x")
    assert len(str(caught.value)) < 500


def test_overflow_names_the_rule_and_n():
    with pytest.raises(LambdaError, match=r"n\^500 is too large for a float at n = 100"):
        parse_rule("n^500").values(100)


@pytest.mark.parametrize("n", [-1, 2.0, True, "3", None])
def test_the_number_of_branches_is_an_integer(n):
    with pytest.raises(LambdaError, match="number of branches must be an integer"):
        parse_rule("1/n").values(n)


def test_rescale_changes_lam_and_keeps_the_weights():
    net = ResidualMLP(4, 8, seed=0)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert rescale(net, "1/n") is net
    assert net.scales == (0.25,) * 4
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_rescale_refuses_before_it_changes_anything():
    net = ResidualMLP(4, 8, scale="1/n", seed=0)
    with pytest.raises(RuleError):
        rescale(net, "half")
    with pytest.raises(LambdaError, match="has 2 entries, but there are 4 branches"):
        rescale(net, [1, 2])
    assert net.scales == (0.25,) * 4
    assert net.config["scale"] == "1/n"
    with pytest.raises(LambdaError, match=r"Linear has no λ to rescale: .*pathsum\.knobs"):
        rescale(torch.nn.Linear(2, 2), "1/n")
