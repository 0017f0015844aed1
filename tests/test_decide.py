"""Tests and intervals of docs/protocol.md, against scipy, by simulation, and on examples worked by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ffrlib import claims, decide, tables
from ffrlib.claims import CHANNELS, NOT_LOST, SPARSER, WEIGHTS, Part

shares = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def part(values, limits=SPARSER, **more):
    return Part("x", pd.Series(values, dtype=float), limits, ("a", "b"), **more)


def test_holm_on_a_worked_example():
    assert decide.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert decide.holm([0.5, 0.9]) == [1.0, 1.0] and decide.holm([]) == []


@given(shares)
def test_holm_lies_between_no_correction_and_bonferroni_and_keeps_the_order(p):
    adjusted = decide.holm(p)
    assert all(a >= x and a <= min(1, len(p) * x) + 1e-12 for a, x in zip(adjusted, p))
    assert [adjusted[k] for k in np.argsort(p, kind="stable")] == sorted(adjusted)


@given(st.lists(st.floats(-5, 5), min_size=3, max_size=9).filter(lambda x: np.std(x) > 1e-3), st.floats(-1, 1))
def test_p_value_is_scipys(x, boundary):
    for above, alternative in ((True, "greater"), (False, "less")):
        expected = stats.ttest_1samp(x, boundary, alternative=alternative).pvalue
        assert decide.p_value(x, boundary, above) == pytest.approx(expected, abs=1e-9)


def test_p_value_without_spread():
    assert decide.p_value([2.0] * 5, 1.0, True) == 0 and decide.p_value([2.0] * 5, 1.0, False) == 1
    assert decide.p_value([1.0] * 5, 1.0, True) == decide.p_value([1.0] * 5, 1.0, False) == 1
    assert decide.p_value([7.0], 1.0, True) == 1  # one pair shows nothing


@pytest.mark.parametrize(
    "values, limits, verdict",
    [
        ([5.0, 5.5, 6.0, 5.2, 5.8], SPARSER, "supported"),
        ([0.5, 0.6, 0.55, 0.52, 0.58], SPARSER, "not supported"),  # above 0 beyond doubt, but below one point
        ([-3.0, -2.0, -2.5, -2.2, -2.8], SPARSER, "not supported"),
        ([5.0, -4.0, 9.0, 0.0, 1.0], SPARSER, "undecided"),
        ([5.0, 5.5, 6.0, 5.2], SPARSER, "undecided"),  # four pairs
        ([-0.1, 0.0, -0.05, 0.05, -0.1], NOT_LOST, "supported"),
        ([-0.9, -0.8, -0.85, -0.95, -0.9], NOT_LOST, "not supported"),
        ([-0.1, 0.0, -0.05, 0.05, -0.1], claims.AT_LEAST, "undecided"),  # perhaps equal, perhaps a little below
        ([0.0] * 5, SPARSER, "not supported"),
        ([], SPARSER, "undecided"),
    ],
)
def test_one_part(values, limits, verdict):
    judged = decide.judge([part(values, limits)])[0]
    assert judged["verdict"] == verdict
    assert (judged["seeds_needed"] > 0) == (verdict == "undecided")


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=8), st.floats(-1e3, 1e3))
def test_a_constant_lead_has_no_width(values, lead):
    rows = [(name, seed, x + more) for name, more in (("a", lead), ("b", 0)) for seed, x in enumerate(values)]
    rows = [("a", 99, 1e6), *rows[::-1]]  # a seed that only one arm has, and any order
    frame = pd.DataFrame(rows, columns=["key", "seed", "test_accuracy"]).assign(status="finished", processor="")
    differences = claims.compare(frame, "a", "b", "test_accuracy", NOT_LOST, "a - b").differences
    assert tables.interval(differences) == pytest.approx((lead, lead, lead), abs=1e-8)


def test_correction_over_many_parts_can_undo_a_verdict():
    values = [1.0, 6.0, 3.0, 5.0, 4.5]
    alone, among = decide.judge([part(values)])[0], decide.judge([part(values)] * 12)[0]
    assert alone["verdict"] == "supported" and among["verdict"] == "undecided"
    assert float(among["p_above"]) == pytest.approx(12 * decide.p_value(values, 0, True), rel=0.05)


def test_false_support_is_as_rare_as_promised():
    random, runs, parts = np.random.default_rng(0), 300, 4
    judged = [decide.judge([part(random.normal(size=5)) for _ in range(parts)]) for _ in range(runs)]
    wrong = sum(any(j["verdict"] == "supported" for j in found) for found in judged)
    assert wrong / runs <= 0.025 + 3 * math.sqrt(0.025 * 0.975 / runs)


def test_seeds_needed_decide_when_they_repeat_what_is_there():
    x = np.array([5.0, -4.0, 9.0, 0.0, 1.0])
    needed = decide.seeds_needed(x, SPARSER, 1)
    spread = x.std(ddof=1)

    def passes(n):
        return (x.mean() - 0.0) * math.sqrt(n) / spread > stats.t.isf(0.025, n - 1)

    assert passes(5 + needed) and not passes(5 + needed - 1)
    assert decide.seeds_needed(x[:3], SPARSER, 1) == 2
    assert decide.seeds_needed(np.array([1.01, -99.0, 101.0, -50.0, 52.0]), SPARSER, 1) == decide.MOST + 1


def test_what_the_measure_cannot_see_is_undecided_in_both_directions():
    for values in ([-2.5, -2.5, 0.0, -2.5, -2.5], [0.0] * 5, [2.5, 2.5, 2.5, 2.5, 2.4]):
        judged = decide.judge([part(values, step=claims.STEP)])[0]
        assert (judged["verdict"], judged["seeds_needed"]) == ("undecided", 0), values
        assert decide.judge([part(values)])[0]["verdict"] != "undecided", "without a step it would have been decided"
    one_beyond = [2.5, 2.5, 2.5, 2.5, 5.0]
    assert decide.judge([part(one_beyond, step=claims.STEP)])[0]["verdict"] == "supported"


def test_only_removable_shares_have_a_step():
    columns = [WEIGHTS, CHANNELS, "test_accuracy", "zero_channels"]
    frame = pd.DataFrame(
        {"key": ["a", "b"], "seed": [0, 0], "status": "finished", "processor": ""} | dict.fromkeys(columns, 0.5)
    )
    steps = [claims.compare(frame, "a", "b", column, SPARSER, "a - b").step for column in columns]
    assert steps == [claims.STEP, claims.STEP, 0, 0]
