"""Forward processes against the formulas of their papers and the moments of their stochastic differential equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax.errors import UsageError
from arch_jax.ops.diffusion.processes import (
    VPSDE,
    NoiseLevel,
    RectifiedFlow,
    VarianceExploding,
    VariancePreserving,
)

PROCESSES = {
    "linear": VariancePreserving(),
    "scaled linear": VariancePreserving("scaled_linear", start=0.00085, stop=0.012),
    "cosine": VariancePreserving("cosine"),
    "sigmoid": VariancePreserving("sigmoid"),
    "100 steps": VariancePreserving(steps=100, start=1e-3, stop=0.2),
    "zero SNR": VariancePreserving("scaled_linear", start=0.00085, stop=0.012, zero_terminal_snr=True),
    "shifted cosine": VariancePreserving("cosine", shift=4.0),
    "VP SDE": VPSDE(),
    "sub-VP SDE": VPSDE(sub=True),
    "VE SDE": VarianceExploding(),
    "noise level": NoiseLevel(),
    "flow": RectifiedFlow(),
    "shifted flow": RectifiedFlow(shift=3.0),
}
every = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())


def inner_times(process, count=23):
    """Times away from both ends."""
    times = np.linspace(process.first, process.last, count + 2)[1:-1]
    return np.round(times) if process.discrete else times


def alpha_bars(process, times=None):
    times = np.arange(1, process.last + 1) if times is None else times
    return process.coefficients(times, np)[0] ** 2


# The chains of DDPM and improved DDPM.


@pytest.mark.parametrize(
    ("process", "betas"),
    [
        (VariancePreserving(), np.linspace(1e-4, 0.02, 1000)),
        (VariancePreserving(steps=50, start=0.01, stop=0.3), np.linspace(0.01, 0.3, 50)),
        (
            VariancePreserving("scaled_linear", start=0.00085, stop=0.012),
            np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2,
        ),
        (
            VariancePreserving("sigmoid", start=1e-4, stop=0.02),
            1e-4 + (0.02 - 1e-4) / (1 + np.exp(-np.linspace(-6, 6, 1000))),
        ),
        (VariancePreserving(steps=3, betas=(0.1, 0.5, 0.9)), np.array([0.1, 0.5, 0.9])),
    ],
    ids=["linear", "50 steps", "scaled linear", "sigmoid", "given"],
)
def test_alpha_bar_is_the_product_of_what_the_betas_leave(process, betas):
    alpha, sigma = process.coefficients(np.arange(len(betas) + 1), np)
    expected = np.concatenate([[1.0], np.cumprod(1 - betas)])
    np.testing.assert_allclose(alpha**2, expected, rtol=1e-10)
    np.testing.assert_allclose(sigma[1], betas[0] ** 0.5, rtol=1e-10)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-12)


def test_the_chain_of_ddpm_steps_with_the_variance_beta():
    """q(x_t | x_{t-1}) composed 1000 times, mean and variance by themselves (2006.11239, equations 2 and 4)."""
    process = VariancePreserving()
    mean, variance = 1.0, 0.0
    for t, beta in enumerate(np.linspace(1e-4, 0.02, 1000), 1):
        mean, variance = np.sqrt(1 - beta) * mean, (1 - beta) * variance + beta
        alpha, sigma = process.coefficients(np.asarray(t), np)
        np.testing.assert_allclose([alpha, sigma**2], [mean, variance], rtol=1e-10)


def test_cosine_betas_have_no_smallest_value():
    """A well-known fault clips them to [1e-4, .9999]: 1 - alpha_bar of the first step is then 142 % too large."""
    alpha, sigma = VariancePreserving("cosine").coefficients(np.arange(1001), np)
    f = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(1e-4 / (1 - f[1] / f[0]), 2.42, atol=0.005)  # the fault
    np.testing.assert_allclose(sigma[1] ** 2, 1 - f[1] / f[0], rtol=1e-9)
    np.testing.assert_allclose(alpha[:-1] ** 2, f[:-1] / f[0], rtol=1e-9)
    # The largest beta is .999, not .9999: the last step would leave nothing of the data.
    np.testing.assert_allclose(alpha[-1] ** 2, 0.001 * f[-2] / f[0], rtol=1e-9)


def test_zero_terminal_snr_is_algorithm_1_of_lin_et_al():
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    root = np.sqrt(np.cumprod(1 - betas))
    expected = (root - root[-1]) * root[0] / (root[0] - root[-1])
    process = VariancePreserving("scaled_linear", start=0.00085, stop=0.012, zero_terminal_snr=True)
    alpha, sigma = process.coefficients(np.arange(1, 1001), np)
    np.testing.assert_allclose(alpha, expected, rtol=1e-9, atol=1e-15)
    assert alpha[-1] == 0
    assert sigma[-1] == 1
    assert process.ratios(np.array([1000.0]))[0] == np.inf
    np.testing.assert_allclose(alpha[0], np.sqrt(1 - betas[0]), rtol=1e-10)
    alpha, sigma = process.coefficients(jnp.asarray([999.5, 1000.0]))
    assert np.isfinite(alpha).all()
    assert alpha[-1] == 0
    assert sigma[-1] == 1


@pytest.mark.parametrize("shift", [0.5, 4.0])
def test_a_shift_multiplies_the_ratio_of_a_chain_and_keeps_its_variance(shift):
    plain, shifted = VariancePreserving("cosine"), VariancePreserving("cosine", shift=shift)
    times = np.arange(1001)
    np.testing.assert_allclose(shifted.ratios(times), shift * plain.ratios(times), rtol=1e-9)
    alpha, sigma = shifted.coefficients(times, np)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-12)
    # log SNR moves by 2 log(shift) (2301.11093, equation 4)
    np.testing.assert_allclose(
        np.log(alpha[1:] ** 2 / sigma[1:] ** 2), -2 * np.log(plain.ratios(times[1:])) - 2 * np.log(shift), atol=1e-9
    )


def test_between_two_steps_of_a_chain_the_logarithm_of_alpha_bar_is_linear():
    process = VariancePreserving()
    low, middle, high = np.log(alpha_bars(process, np.array([400.0, 400.25, 401.0])))
    np.testing.assert_allclose(middle, 0.75 * low + 0.25 * high, rtol=1e-12)


# Stochastic differential equations: the moments by Runge and Kutta.


def moments(drift, diffusion, begin, end, mean, variance, steps=4000):
    """Mean and variance of dx = drift(t) x dt + sqrt(diffusion(t)) dw, integrated from `begin` to `end`."""

    def slope(t, y):
        return np.array([drift(t) * y[0], 2 * drift(t) * y[1] + diffusion(t)])

    y, h = np.array([mean, variance]), (end - begin) / steps
    for t in begin + h * np.arange(steps):
        a = slope(t, y)
        b = slope(t + h / 2, y + h / 2 * a)
        c = slope(t + h / 2, y + h / 2 * b)
        d = slope(t + h, y + h * c)
        y = y + h / 6 * (a + 2 * b + 2 * c + d)
    return y


@pytest.mark.parametrize("sub", [False, True])
@pytest.mark.parametrize("end", [0.05, 0.4, 1.0])
def test_the_vp_sdes_moments_are_those_of_its_equation(sub, end):
    """2011.13456, equations 11 and 13: dx = -beta x / 2 dt + sqrt(beta [1 - exp(-2 integral of beta)]) dw."""
    low, high = 0.1, 20.0
    beta = lambda t: low + t * (high - low)
    total = lambda t: low * t + (high - low) * t**2 / 2
    diffusion = (lambda t: beta(t) * (1 - np.exp(-2 * total(t)))) if sub else beta
    mean, variance = moments(lambda t: -beta(t) / 2, diffusion, 0.0, end, 1.0, 0.0)
    alpha, sigma = VPSDE(low, high, sub).coefficients(np.asarray(end), np)
    np.testing.assert_allclose([alpha, sigma**2], [mean, variance], rtol=1e-7)


@pytest.mark.parametrize(("begin", "end"), [(0.1, 0.5), (0.5, 1.0)])
def test_the_ve_sdes_variance_grows_by_its_diffusion(begin, end):
    """2011.13456, equation 9: dx = sqrt(d sigma^2 / dt) dw; without the derivative the noise is far too small."""
    process = VarianceExploding(0.01, 50.0)
    squared = lambda t: 1e-4 * 5000.0 ** (2 * t)
    diffusion = lambda t: 2 * np.log(5000.0) * squared(t)
    _, variance = moments(lambda t: 0.0, diffusion, begin, end, 1.0, squared(begin))
    alpha, sigma = process.coefficients(np.asarray([begin, end]), np)
    np.testing.assert_allclose(sigma**2, [squared(begin), variance], rtol=1e-7)
    np.testing.assert_array_equal(alpha, 1)


def test_the_vp_sde_is_the_limit_of_ddpms_chain():
    """beta(t) T^-1 for a chain of T steps (2011.13456, appendix B)."""
    times = np.array([0.1, 0.5, 0.9])
    differences = []
    for steps in (1000, 2000):
        betas = (0.1 + np.arange(1, steps + 1) / steps * 19.9) / steps
        chain = VariancePreserving(steps=steps, betas=tuple(betas))
        difference = alpha_bars(chain, times * steps) - VPSDE().coefficients(times, np)[0] ** 2
        differences.append(np.abs(difference).max())
    assert differences[1] < 0.01
    np.testing.assert_allclose(differences[0] / differences[1], 2, rtol=0.05)


def test_noise_levels_and_straight_paths_are_what_they_are_called():
    times = np.array([0.1, 0.4, 0.9])
    np.testing.assert_allclose(NoiseLevel().coefficients(times, np), [np.ones(3), times])
    np.testing.assert_allclose(RectifiedFlow().coefficients(times, np), [1 - times, times], rtol=1e-12)
    moved = 3 * times / (1 + 2 * times)  # 2403.03206, equation 23
    np.testing.assert_allclose(RectifiedFlow(shift=3.0).coefficients(times, np), [1 - moved, moved], rtol=1e-12)


def test_a_shifted_path_has_the_ratio_times_the_shift():
    times = np.array([0.1, 0.4, 0.9])
    np.testing.assert_allclose(RectifiedFlow(shift=3.0).ratios(times), 3 * RectifiedFlow().ratios(times), rtol=1e-12)


# What every process keeps to.


@every
def test_time_0_is_the_data(process):
    alpha, sigma = process.coefficients(np.asarray(0.0), np)
    assert float(alpha) == 1
    assert float(sigma) == 0
    alpha, sigma = jax.jit(process.coefficients)(jnp.zeros(2))
    np.testing.assert_array_equal(alpha, 1)
    np.testing.assert_array_equal(sigma, 0)


@every
def test_the_noise_only_grows(process):
    times = np.linspace(process.first, process.last, 1000)
    ratios = process.ratios(times)
    assert (np.diff(ratios[np.isfinite(ratios)]) > 0).all()
    assert process.prior_std == pytest.approx(float(process.coefficients(np.asarray(process.last), np)[1]), rel=5e-3)


@every
def test_traced_coefficients_in_float32_are_those_of_float64_even_near_time_0(process):
    """sigma = sqrt(1 - alpha^2) loses all digits there, and a loss or a score that divides by it with them."""
    if process.discrete:
        times = np.concatenate([[1, 2, 3, 5], inner_times(process)]).astype(np.float32)
    else:
        times = np.concatenate([process.first * np.array([1, 1.5, 4]), inner_times(process)]).astype(np.float32)
    traced = jax.jit(process.coefficients)(jnp.asarray(times))
    assert all(part.dtype == jnp.float32 for part in traced)
    exact = process.coefficients(times.astype(np.float64), np)
    np.testing.assert_allclose(traced[0], exact[0], rtol=2e-5, atol=1e-7)
    np.testing.assert_allclose(traced[1], exact[1], rtol=1e-5)


@every
def test_traced_coefficients_in_float64_are_numpys(process):
    with jax.enable_x64(True):
        times = inner_times(process)
        for traced, exact in zip(process.coefficients(jnp.asarray(times)), process.coefficients(times, np)):
            np.testing.assert_allclose(traced, exact, rtol=1e-9, atol=1e-14)


@every
def test_the_time_of_a_ratio_is_the_inverse(process):
    times = inner_times(process)
    np.testing.assert_allclose(process.time_of(process.ratios(times)), times, rtol=1e-6)
    alpha, sigma = process.coefficients(times, np)
    np.testing.assert_allclose(process.ratios(times), sigma / alpha, rtol=1e-9)


@every
def test_fractional_times_of_a_ratio_have_that_ratio(process):
    low, high = process.ratios(np.asarray([process.first, process.last]))
    wanted = np.geomspace(low * 1.01, min(high, 1e3) * 0.99, 17)
    np.testing.assert_allclose(process.ratios(process.time_of(wanted)), wanted, rtol=1e-6)


@pytest.mark.parametrize("sub", [False, True])
def test_the_sde_never_reaches_noise_alone(sub):
    np.testing.assert_array_equal(VPSDE(sub=sub).time_of(np.array([0.0, np.inf])), [0.0, np.inf])


@every
def test_rates_are_the_derivatives(process):
    """Of the coefficients by central differences; a chain has corners at its whole times.

    Those of straight paths are by sigma, so that flow is noise - x_0 whatever the shift.
    """
    with jax.enable_x64(True):
        times = inner_times(process) + (0.4 if process.discrete else 0.0)
        h = 1e-6 * process.last
        above, below = process.coefficients(times + h, np), process.coefficients(times - h, np)
        for rate, one, other in zip(process.rates(jnp.asarray(times)), above, below):
            by = above[1] - below[1] if isinstance(process, RectifiedFlow) else 2 * h
            np.testing.assert_allclose(rate, (one - other) / by, rtol=1e-5, atol=1e-9)


def test_a_network_is_told_one_less_than_the_time_of_a_chain():
    np.testing.assert_allclose(VariancePreserving().conditioning(np.array([1.0, 500.0, 1000.0])), [0, 499, 999])


def test_a_network_of_another_number_of_steps_is_told_thousandths():
    """Improved DDPM's rescale_timesteps: t (1000 / T) of t from 0 to T - 1."""
    told = VariancePreserving(steps=4000).conditioning(np.array([1.0, 2001.0, 4000.0]))
    np.testing.assert_allclose(told, [0, 500, 999.75])


def test_continuous_processes_tell_the_network_numbers_up_to_999_or_1000():
    np.testing.assert_allclose(VPSDE().conditioning(np.array([0.0, 0.5, 1.0])), [0, 499.5, 999])
    np.testing.assert_allclose(VarianceExploding().conditioning(np.array([0.0, 1.0])), [0, 999])
    np.testing.assert_allclose(RectifiedFlow().conditioning(np.array([0.25, 1.0])), [250, 1000])
    # of a shifted one 1000 sigma, not 1000 t
    np.testing.assert_allclose(RectifiedFlow(shift=3.0).conditioning(np.array([0.25, 1.0])), [500, 1000])
    # 1000 log(sigma) / 4
    np.testing.assert_allclose(NoiseLevel().conditioning(np.array([0.002, 80.0])), 250 * np.log([0.002, 80.0]))


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: VariancePreserving(steps=0), "0"),
        (lambda: VariancePreserving(start=0.02, stop=1.5), "1.5"),
        (lambda: VariancePreserving(steps=3, betas=(0.1, 0.2)), "2"),
        (lambda: VariancePreserving(steps=2, betas=(0.1, 1.5)), "1.5"),
        (lambda: VariancePreserving(steps=2, betas=(-0.1, 0.5)), "-0.1"),
        (lambda: VPSDE(20.0, 0.1), "20"),
        (lambda: VarianceExploding(50.0, 0.01), "50"),
        (lambda: NoiseLevel(80.0, 0.002), "80"),
    ],
    ids=["no step", "beta above 1", "too few betas", "given beta above 1", "negative", "SDE", "VE", "level"],
)
def test_a_process_that_cannot_be_is_refused_with_its_value(make, named):
    with pytest.raises(UsageError, match=named):
        make()
