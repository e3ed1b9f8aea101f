"""Intervals, paired differences and Holm's correction: against SciPy, numbers worked by hand, and simulation."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from arch_jax.errors import UsageError
from arch_jax.study.statistics import Interval, holm, interval, paired, prediction


def test_interval_by_hand():
    """Mean 3, deviation sqrt(2.5), and the table's t of 2.776 for 4 degrees of freedom."""
    found = interval([1, 2, 3, 4, 5])
    assert (found.mean, found.count) == (3, 5)
    assert found.deviation == pytest.approx(math.sqrt(2.5))
    assert found.half == pytest.approx(2.776 * math.sqrt(2.5 / 5), rel=1e-3)
    assert found.high - found.mean == pytest.approx(found.mean - found.low)


@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_interval_against_scipy(level):
    values = np.random.default_rng(0).normal(2, 3, 7)
    found = interval(values, level)
    expected = scipy.stats.ttest_1samp(values, 0).confidence_interval(level)
    np.testing.assert_allclose([found.low, found.high], expected, rtol=1e-10)


@pytest.mark.parametrize("count", [3, 5, 20])
def test_interval_holds_the_true_mean_as_often_as_it_says(count):
    draws = np.random.default_rng(count).normal(-1, 0.3, (2000, count))
    held = np.mean([found.low <= -1 <= found.high for found in map(interval, draws)])
    # Four standard errors of a proportion of 2000.
    assert abs(held - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 2000)


def test_prediction_by_hand():
    """Mean 2, deviation 1, and the table's t of 4.303 for 2 degrees of freedom."""
    found = prediction([1, 2, 3])
    assert found.half == pytest.approx(4.303 * math.sqrt(4 / 3), rel=1e-3)
    assert (found.mean, found.deviation) == (2, 1)


@pytest.mark.parametrize(
    ("scale", "back"), [("linear", lambda x: x), ("log", np.exp), ("arcsine", lambda x: np.sin(x) ** 2)]
)
def test_prediction_holds_the_next_value_as_often_as_it_says(scale, back):
    """Of values that are normal on the scale, and as shares stay away from the ends."""
    draws = back(np.random.default_rng(1).normal(0.8, 0.1, (4000, 4)))
    held = np.mean([prediction(row[:3], scale=scale).contains(row[3]) for row in draws])
    assert abs(held - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 4000)


def test_predictions_stay_within_the_range_of_their_scale():
    shares = prediction([1.0, 1.0, 0.996], scale="arcsine")
    assert 0.9 < shares.low < shares.mean < shares.high == 1.0
    assert prediction([0.0, 0.01, 0.02], scale="arcsine").low == 0.0
    losses = prediction([0.01, 0.1, 1.0], scale="log")
    assert losses.mean == pytest.approx(0.1)
    assert losses.low > 0
    assert losses.high / losses.mean == pytest.approx(losses.mean / losses.low)
    assert str(losses) == f"0.1 ({losses.low:.4g} to {losses.high:.4g})"
    assert prediction([0.5, 0.5, 0.5], scale="arcsine").high == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("values", "scale", "told"),
    [
        ([0.1, 0.0, 0.2], "log", "0 has no place on the scale 'log'; expected positive ones"),
        ([0.1, 1.5, 0.2], "arcsine", "1.5 has no place on the scale 'arcsine'; expected shares from 0 to 1"),
        ([0.1, 0.3, 0.2], "logit", "scale is 'logit'; expected one of 'linear', 'log', 'arcsine'"),
        ([0.1, 0.3], "log", "there are 2 values; expected at least 3"),
    ],
)
def test_what_can_not_be_predicted(values, scale, told):
    with pytest.raises(UsageError, match=told):
        prediction(values, scale=scale)


@pytest.mark.parametrize("values", [[1.5], [1.5, 2.5]])
def test_no_interval_from_fewer_than_three(values):
    found = interval(values)
    assert (found.low, found.high, found.half) == (None, None, None)
    assert found.deviation == (None if len(values) == 1 else pytest.approx(math.sqrt(0.5)))
    difference = paired(values, [0.5] * len(values))
    assert (difference.low, difference.high, difference.p) == (None, None, None)
    assert difference.mean == found.mean - 0.5


@pytest.mark.parametrize(
    ("mean", "half", "count", "text"),
    [
        (1.903712, 0.008491, 5, "1.9037 ± 0.0085"),
        (1.903712, None, 1, "1.9037 (1 seed)"),
        (1.903712, None, 2, "1.9037 (2 seeds)"),
        (1.903712, 0.0996, 3, "1.90 ± 0.10"),
        (12345.678, 123.4, 3, "12350 ± 120"),
        (98.25, 12.5, 3, "98 ± 12"),
        (0.5, 0, 3, "0.5 ± 0"),
        (0.0, 0.25, 3, "0.00 ± 0.25"),
        (1.9037, 1.25e-12, 3, "1.903700000e+00 ± 1.2e-12"),
        (2.5e-7, 3.1e-8, 3, "2.50e-07 ± 3.1e-08"),
        (6.02e23, 1.5e21, 3, "6.020e+23 ± 1.5e+21"),
    ],
)
def test_text_has_two_digits_of_the_half_width(mean, half, count, text):
    ends = (None, None) if half is None else (float(mean - half), float(mean + half))
    assert str(Interval(mean, *ends, None, count)) == text


def test_paired_against_scipy():
    generator = np.random.default_rng(1)
    baseline = generator.normal(size=6)
    values = baseline + generator.normal(0.1, 0.2, 6)
    found = paired(values, baseline)
    expected = scipy.stats.ttest_rel(values, baseline)
    assert found.p == pytest.approx(expected.pvalue)
    np.testing.assert_allclose([found.low, found.high], expected.confidence_interval(0.95), rtol=1e-10)
    assert str(found).startswith(("+", "-"))


def test_pairing_cancels_what_seeds_share():
    """Seeds that differ by much more than the effect: apart they say nothing, paired they do."""
    generator = np.random.default_rng(2)
    baseline = generator.normal(0, 10, 5)
    values = baseline + 0.1 + generator.normal(0, 0.01, 5)
    assert interval(values).half > 1
    found = paired(values, baseline)
    assert found.low > 0
    assert found.p < 0.01
    assert paired(baseline, values).mean == pytest.approx(-found.mean)


def test_equal_differences():
    same = paired([1.1, 2.2, 3.3], [1.1, 2.2, 3.3])
    assert (same.mean, same.low, same.high, same.p) == (0, 0, 0, 1)
    shifted = paired([1.5, 2.5, 3.5], [1, 2, 3])
    assert (shifted.mean, shifted.low, shifted.high, shifted.p) == (0.5, 0.5, 0.5, 0)


def test_holm_by_hand():
    """Sorted .005 .01 .03 .04 times 4 3 2 1 are .02 .03 .06 .04, and the last is raised to .06."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.01, None, 0.03, None]) == [pytest.approx(0.02), None, pytest.approx(0.03), None]
    assert holm([0.6, 0.7]) == [1, 1]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_keeps_order_and_lies_between_none_and_bonferroni(ps):
    adjusted = holm(ps)
    for p, q in zip(ps, adjusted):
        assert p <= q <= min(1, p * len(ps)) + 1e-12
    order = np.argsort(ps, kind="stable")
    assert (np.diff(np.array(adjusted)[order]) >= 0).all()


def test_holm_rarely_calls_nothing_something():
    """Without any effect, the chance of one or more findings among eight is at most 5 %; uncorrected it is 34 %."""
    draws = np.random.default_rng(3).uniform(size=(2000, 8))
    found = np.mean([min(holm(ps)) <= 0.05 for ps in draws.tolist()])
    assert 0.02 < found < 0.05 + 4 * math.sqrt(0.05 * 0.95 / 2000)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: interval([]), "there are 0 values"),
        (lambda: interval([1, math.nan, 2]), "a value is nan"),
        (lambda: interval([1, 2, 3], level=95.0), "level is 95.0"),
        (lambda: paired([1, 2, 3], [1, 2]), "3 values and 2 of the baseline"),
        (lambda: paired([1, 2, 3], [1, 2, math.inf]), "baseline's value is inf"),
        (lambda: holm([0.5, 1.5]), "a p-value is 1.5"),
        (lambda: holm([math.nan]), "a p-value is nan"),
    ],
)
def test_bad_input(call, says):
    with pytest.raises(UsageError, match=says):
        call()
