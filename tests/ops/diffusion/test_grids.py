"""Grids of times against their papers' formulas, and what is refused."""

import numpy as np
import pytest

from arch_jax.errors import UsageError
from arch_jax.ops.diffusion.grids import checked, grid
from arch_jax.ops.diffusion.processes import (
    VPSDE,
    NoiseLevel,
    RectifiedFlow,
    VarianceExploding,
    VariancePreserving,
)

CHAIN = VariancePreserving()
SPACINGS = ["trailing", "leading", "linspace", "quadratic", "karras", "exponential"]


def test_table_2_of_lin_et_al():
    """2305.08891, table 2, of 10 steps; their timesteps are 1 to 1000 as ours."""
    leading = [901, 801, 701, 601, 501, 401, 301, 201, 101, 1]
    linspace = [1000, 889, 778, 667, 556, 445, 334, 223, 112, 1]
    trailing = [1000, 900, 800, 700, 600, 500, 400, 300, 200, 100]
    for spacing, expected in (("leading", leading), ("linspace", linspace), ("trailing", trailing)):
        np.testing.assert_array_equal(grid(CHAIN, 10, spacing), [*expected, 0])


@pytest.mark.parametrize("steps", [4, 10, 13])
def test_quadratic_times_are_ddims(steps):
    """2010.02502, appendix D.3: the floor of c i^2; its code lets i^2 c go to .8 T, and counts from 0."""
    squares = np.array([int(x + 1e-9) for x in np.linspace(0, np.sqrt(800), steps) ** 2])
    np.testing.assert_array_equal(grid(CHAIN, steps, "quadratic")[::-1], [0, *(squares + 1)])


@pytest.mark.parametrize("process", [NoiseLevel(), VPSDE(), VarianceExploding(), CHAIN])
def test_karras_and_exponential_noise_levels(process):
    low, high = process.ratios(np.array([process.first, process.last]))
    i = np.arange(9)
    for rho in (7.0, 3.0, 1.0):
        expected = (high ** (1 / rho) + i / 8 * (low ** (1 / rho) - high ** (1 / rho))) ** rho
        ratios = process.ratios(grid(process, 9, "karras", rho=rho))
        np.testing.assert_allclose(ratios[:-1], expected, rtol=1e-6)
        assert ratios[-1] == 0
    ratios = process.ratios(grid(process, 9, "exponential"))
    np.testing.assert_allclose(ratios[:-1], np.geomspace(high, low, 9), rtol=1e-6)


def test_edms_default_grid():
    """2206.00364, table 1: 18 levels from 80 to .002 with rho 7, then 0."""
    times = grid(NoiseLevel(), 18, "karras")
    assert len(times) == 19
    np.testing.assert_allclose(times[[0, 1, 17, 18]], [80, 57.586, 0.002, 0], rtol=1e-4)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("process", [CHAIN, VPSDE(), NoiseLevel(), VarianceExploding()])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_grid_has_as_many_steps_as_asked_and_ends_at_the_data(spacing, process, steps):
    times = grid(process, steps, spacing)
    assert len(times) == steps + 1
    assert (np.diff(times) < 0).all()
    assert times[-1] == 0
    assert times[-2] >= process.first * (1 - 1e-9)
    if spacing not in ("leading", "quadratic") and steps > 1:
        np.testing.assert_allclose(times[0], process.last, rtol=1e-9)
    if process.discrete and spacing not in ("karras", "exponential"):
        np.testing.assert_array_equal(times, np.round(times))


@pytest.mark.parametrize("process", [VPSDE(), NoiseLevel(), RectifiedFlow()])
@pytest.mark.parametrize("spacing", ["linspace", "quadratic"])
def test_of_a_continuous_process_the_numbers_go_from_its_last_time_to_its_first(process, spacing):
    times = grid(process, 5, spacing)[:-1]
    part = np.array([1, 0.75, 0.5, 0.25, 0]) ** (2 if spacing == "quadratic" else 1)
    np.testing.assert_allclose(times, process.first + part * (process.last - process.first), rtol=1e-9)


@pytest.mark.parametrize("spacing", ["trailing", "linspace", "quadratic", "karras", "exponential"])
@pytest.mark.parametrize("process", [VPSDE(), NoiseLevel(), CHAIN])
def test_a_grid_may_end_at_the_first_trained_time_with_as_many_steps(spacing, process):
    """Also a spacing whose numbers end there by themselves: it is not the data that follows."""
    times = grid(process, 6, spacing, final="first")
    assert len(times) == 7
    np.testing.assert_allclose(times[-1], process.first, rtol=1e-6)
    assert (np.diff(times) < 0).all()


def test_all_steps_of_a_chain_are_all_of_its_times():
    for spacing in ("trailing", "leading", "linspace"):
        np.testing.assert_array_equal(grid(CHAIN, 1000, spacing), np.arange(1000, -1, -1))


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: grid(CHAIN, 0), "0"),
        (lambda: grid(CHAIN, 1001), "1001.*1000"),
        (lambda: grid(VariancePreserving(steps=10, start=0.01, stop=0.3), 11), "11.*10"),
        (lambda: grid(CHAIN, 10, "leading", offset=200), "1101"),
        (lambda: grid(CHAIN, 10, final="middle"), "middle"),
        (lambda: grid(CHAIN, 10, "leading", final="first"), "1 is followed by 1"),
        (lambda: grid(VariancePreserving(zero_terminal_snr=True), 10, "karras"), "karras"),
        (lambda: grid(VariancePreserving(zero_terminal_snr=True), 10, "exponential"), "exponential"),
        (lambda: grid(RectifiedFlow(), 10, "karras"), "karras"),
        (lambda: checked(CHAIN, np.array([1000.0, 500.0, 500.0, 0.0])), "500 is followed by 500"),
        (lambda: checked(CHAIN, np.array([500.0, 700.0, 0.0])), "500 is followed by 700"),
        (lambda: checked(CHAIN, np.array([1200.0, 500.0, 0.0])), "1200"),
        (lambda: checked(CHAIN, np.array([500.0, -3.0])), "-3"),
        (lambda: checked(CHAIN, np.array([500.0])), "500"),
        (lambda: checked(CHAIN, np.array([500.0, np.nan])), "nan"),
    ],
    ids=["no step", "more than 1000", "more than 10", "offset", "end", "leading to first",
         "karras of zero SNR", "exponential of zero SNR", "karras of flow", "twice", "up", "beyond", "below 0", "alone",
         "nan"],
)  # fmt: skip
def test_what_is_no_grid_is_refused_in_one_sentence_that_names_the_value(call, named):
    with pytest.raises(UsageError, match=named) as refusal:
        call()
    assert "\n" not in str(refusal.value)


def test_steps_that_squares_name_twice_are_taken_once():
    """DDIM's own code repeats them, and a step to where one is changes nothing."""
    times = grid(CHAIN, 100, "quadratic")
    squares = 1 + np.floor(np.linspace(np.sqrt(800), 0, 100) ** 2 + 1e-9)
    assert len(squares) > len(np.unique(squares))
    np.testing.assert_array_equal(times, [*np.unique(squares)[::-1], 0])
