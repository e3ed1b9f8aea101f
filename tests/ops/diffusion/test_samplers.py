"""Samplers against what is known exactly: Gaussian data, data that is one point, and a mixture's probability flow."""

import itertools

import numpy as np
import pytest

from arch_jax.errors import UsageError
from arch_jax.ops.diffusion.ancestral import ddim, ddpm, forward_std, posterior_std
from arch_jax.ops.diffusion.dpm_solver import dpm_solver
from arch_jax.ops.diffusion.grids import grid
from arch_jax.ops.diffusion.heun import heun
from arch_jax.ops.diffusion.laws import Mixture
from arch_jax.ops.diffusion.processes import (
    VPSDE,
    NoiseLevel,
    RectifiedFlow,
    VarianceExploding,
    VariancePreserving,
)
from arch_jax.ops.diffusion.solve import solve_reference

PROCESSES = {
    "chain": VariancePreserving(),
    "cosine": VariancePreserving("cosine"),
    "zero SNR": VariancePreserving(zero_terminal_snr=True),
    "VP SDE": VPSDE(),
    "sub-VP SDE": VPSDE(sub=True),
    "VE SDE": VarianceExploding(),
    "noise level": NoiseLevel(),
    "flow": RectifiedFlow(),
    "shifted flow": RectifiedFlow(shift=3.0),
}
everywhere = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())

DETERMINISTIC = {
    "DDIM": ddim,
    "Heun": heun,
    "1": lambda process, times: dpm_solver(process, times, 1),
    "2M midpoint": lambda process, times: dpm_solver(process, times, 2),
    "2M heun": lambda process, times: dpm_solver(process, times, 2, form="heun"),
    "2M lower at end": lambda process, times: dpm_solver(process, times, 2, lower_at_end=True),
    "3M": lambda process, times: dpm_solver(process, times, 3),
}
STOCHASTIC = {
    "DDPM": ddpm,
    "DDIM, eta .3": lambda process, times: ddim(process, times, 0.3),
    "DDIM, eta 1": lambda process, times: ddim(process, times, 1.0),
    "SDE 1": lambda process, times: dpm_solver(process, times, 1, stochastic=True),
    "SDE 2M midpoint": lambda process, times: dpm_solver(process, times, 2, stochastic=True),
    "SDE 2M heun": lambda process, times: dpm_solver(process, times, 2, stochastic=True, form="heun"),
}
every = pytest.mark.parametrize("make", {**DETERMINISTIC, **STOCHASTIC}.values(), ids=[*DETERMINISTIC, *STOCHASTIC])


def uneven(process, count=7, end=0.0):
    """Times of no regular spacing, the last step to `end`."""
    times = process.last * np.array([1.0, 0.9, 0.62, 0.6, 0.33, 0.1, 0.04, 0.03])[:count]
    return np.append(np.round(times) if process.discrete else times, end)


def moments(rows, process, mean, variance, start=None):
    """Mean and variance at each call and at the end, of data that is N(mean, variance) in one dimension.

    Its D is affine, so that every point is affine in what the sampler set out from and the noise of each call: the
    weights of those are carried along. It sets out from the exact marginal, or from `start`.
    """
    count = len(rows.times)
    one, begun, zero = np.eye(2, count + 2)[0], np.eye(2, count + 2)[1], np.zeros(count + 2)
    alphas, sigmas = process.coefficients(rows.times, np)
    if start is None:
        start = (alphas[0] * mean, alphas[0] ** 2 * variance + sigmas[0] ** 2)
    spread = np.append([0.0, start[1]], np.ones(count))
    x = anchor = begun + start[0] * one
    past, found = [zero] * rows.history, [(start[0], start[1])]
    for i, (alpha, sigma) in enumerate(zip(alphas, sigmas)):
        slope = alpha * variance / (alpha**2 * variance + sigma**2)
        clean = slope * x + (mean - slope * alpha * mean) * one
        past = [rows.stored[i, 0] * x + rows.stored[i, 1] * clean, *past][: rows.history]
        terms = np.stack([anchor, x, clean, *past, zero])
        terms[-1, 2 + i] = 1.0
        x, anchor = rows.point[i] @ terms, rows.anchor[i] @ terms
        found.append((x[0], (x**2 * spread).sum()))
    return np.array(found)


def marginals(process, times, mean, variance):
    alpha, sigma = process.coefficients(times, np)
    return np.stack([alpha * mean, alpha**2 * variance + sigma**2], axis=-1)


# Data that is one point: every step of every sampler is exact.


@every
@everywhere
def test_of_one_point_every_marginal_is_exact_whatever_the_grid(make, process):
    """D is constant, so that all orders are exact; and the variances of what is kept and of what is drawn add up."""
    times = uneven(process)
    rows = make(process, times)
    found = moments(rows, process, 0.7, 0.0)
    # Heun's method is at the next time before and after its correction.
    expected = marginals(process, np.append(rows.times, times[-1]), 0.7, 0.0)
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(found[-1], [0.7, 0], atol=1e-9)


@pytest.mark.parametrize("make", DETERMINISTIC.values(), ids=DETERMINISTIC.keys())
@everywhere
def test_without_noise_of_its_own_a_sampler_keeps_the_noise_it_began_with(make, process):
    """x = alpha x_0 + sigma noise with the same noise at all times (2010.02502, equation 13)."""
    times = uneven(process, end=process.first)
    rows = make(process, times)
    assert not rows.noisy
    alphas, sigmas = process.coefficients(times, np)
    noise, clean = np.array([0.4, -1.2]), np.array([0.7, 0.1])
    end = solve_reference(rows, lambda x, time: clean, alphas[0] * clean + sigmas[0] * noise)
    np.testing.assert_allclose(end, alphas[-1] * clean + sigmas[-1] * noise, rtol=1e-7, atol=1e-9)


# The posterior, by conditioning Gaussians.


@everywhere
def test_the_posterior_and_forward_deviations_are_those_of_the_joint_law(process):
    times = uneven(process)
    alpha, sigma = process.coefficients(times, np)
    # x_t = (alpha_t / alpha_s) x_s + forward noise, for which Var(x_t | x_0) is sigma_t^2
    kept = alpha[:-1] / alpha[1:]
    forward = sigma[:-1] ** 2 - kept**2 * sigma[1:] ** 2
    np.testing.assert_allclose(forward_std(process, times), np.sqrt(forward), rtol=1e-9)
    inner = slice(None, -1)
    posterior = 1 / (1 / sigma[1:-1] ** 2 + kept[inner] ** 2 / forward[inner])  # precisions add up
    found = posterior_std(process, times)
    np.testing.assert_allclose(found[:-1], np.sqrt(posterior), rtol=1e-9)
    assert found[-1] == 0


def test_the_posterior_deviation_of_the_chain_is_equation_7():
    betas = np.linspace(1e-4, 0.02, 1000)
    bars = np.append(1.0, np.cumprod(1 - betas))
    times = np.arange(1000.0, -1, -1)
    expected = np.sqrt((1 - bars[:-1]) / (1 - bars[1:]) * betas)[::-1]
    np.testing.assert_allclose(posterior_std(VariancePreserving(), times), expected, rtol=1e-7)
    np.testing.assert_allclose(forward_std(VariancePreserving(), times), np.sqrt(betas[::-1]), rtol=1e-7)


# DDPM, 2006.11239


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize(("mean", "spread"), [(0.0, 1.0), (0.7, 0.09), (-2.0, 4.0)])
def test_ddpms_thousand_steps_give_the_moments_of_algorithm_2(mean, spread, variance):
    """x_{t-1} = 1 / sqrt(1 - beta) (x - beta / sqrt(1 - alpha_bar) noise) + std z, in the paper's form."""
    betas = np.linspace(1e-4, 0.02, 1000)
    bars = np.append(1.0, np.cumprod(1 - betas))
    m, v = np.sqrt(bars[-1]) * mean, bars[-1] * spread + 1 - bars[-1]
    expected = [(m, v)]
    for t in range(1000, 0, -1):
        beta, bar = betas[t - 1], bars[t]
        # noise(x) = sqrt(1 - bar) (x - sqrt(bar) mean) / (bar spread + 1 - bar), the posterior mean of a Gaussian
        per_x = np.sqrt(1 - bar) / (bar * spread + 1 - bar)
        slope = (1 - beta / np.sqrt(1 - bar) * per_x) / np.sqrt(1 - beta)
        m = slope * m + beta / np.sqrt(1 - bar) * per_x * np.sqrt(bar) * mean / np.sqrt(1 - beta)
        drawn = {"small": (1 - bars[t - 1]) / (1 - bar) * beta, "large": beta}[variance] if t > 1 else 0.0
        v = slope**2 * v + drawn
        expected.append((m, v))
    process = VariancePreserving()
    rows = ddpm(process, grid(process, 1000), variance)
    np.testing.assert_allclose(moments(rows, process, mean, spread), expected, rtol=1e-6, atol=1e-9)


def test_a_chain_ends_without_noise():
    """Data of variance 1 under large variances ends at .9999; a last step with noise gives 1.0 and looks better."""
    process = VariancePreserving()
    rows = ddpm(process, grid(process, 1000), "large")
    assert rows.point[-1, -1] == 0
    assert (rows.point[:-1, -1] > 0).all()
    np.testing.assert_allclose(moments(rows, process, 0.0, 1.0)[-1, 1], 0.9999, atol=2e-6)


@pytest.mark.parametrize("steps", [10, 50])
def test_large_variance_of_a_jump_is_the_jumps_beta(steps):
    process = VariancePreserving()
    times = grid(process, steps)
    alpha, _ = process.coefficients(times, np)
    beta = 1 - (alpha[:-1] / alpha[1:]) ** 2
    np.testing.assert_allclose(ddpm(process, times, "large").point[:-1, -1], np.sqrt(beta[:-1]), rtol=1e-7)
    small, large = ddpm(process, times), ddpm(process, times, "large")
    np.testing.assert_array_equal(small.point[:, :-1], large.point[:, :-1])  # the mean is the posterior's of both


def test_learned_variance_lies_between_the_logarithms_of_the_two():
    process = VariancePreserving()
    times = grid(process, 20)
    bounds = ddpm(process, times, "learned").bounds
    np.testing.assert_allclose(bounds[:-1, 0], 2 * np.log(posterior_std(process, times)[:-1]), rtol=1e-9)
    np.testing.assert_allclose(bounds[:-1, 1], 2 * np.log(forward_std(process, times)[:-1]), rtol=1e-9)
    assert np.isfinite(bounds).all()


# DDIM, 2010.02502


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@everywhere
def test_ddims_moments_are_those_of_equation_12(process, eta):
    mean, spread = 0.7, 0.3
    times = uneven(process)
    alpha, sigma = process.coefficients(times, np)
    (m, v), expected = marginals(process, times[:1], mean, spread)[0], []
    for i in range(len(times) - 1):
        a, s, to_a, to_s = alpha[i], sigma[i], alpha[i + 1], sigma[i + 1]
        # equation 16, in which 1 - alpha_bar is sigma^2
        std = eta * to_s / s * np.sqrt(max(s**2 - (a / to_a) ** 2 * to_s**2, 0.0))
        gain = a * spread / (a**2 * spread + s**2)  # of D = mean + gain (x - a mean)
        direction = np.sqrt(max(to_s**2 - std**2, 0.0)) / s
        slope = to_a * gain + direction * (1 - a * gain)
        m = to_a * mean + slope * (m - a * mean)
        v = slope**2 * v + std**2
        expected.append((m, v))
    np.testing.assert_allclose(
        moments(ddim(process, times, eta), process, mean, spread)[1:], expected, rtol=1e-7, atol=1e-12
    )


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("steps", [400, pytest.param(1000, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("process", [VariancePreserving(), RectifiedFlow(), NoiseLevel()], ids=["chain", "flow", "EDM"])
def test_of_many_steps_all_marginals_are_right_whatever_eta(process, steps, eta):
    spacing = "karras" if isinstance(process, NoiseLevel) else "trailing"
    times = grid(process, steps, spacing)
    found = moments(ddim(process, times, eta), process, 0.5, 0.09)
    expected = marginals(process, times, 0.5, 0.09)
    np.testing.assert_allclose(found[:, 0], expected[:, 0], atol=0.02)
    np.testing.assert_allclose(np.sqrt(found[:, 1]), np.sqrt(expected[:, 1]), rtol=0.03)


def test_jumps_of_twenty_timesteps_use_the_coefficients_of_where_they_land():
    """A fault seen elsewhere takes those of t - 1, and gives a standard deviation of .684 for data of .3."""
    process = VariancePreserving()
    times = grid(process, 50)
    np.testing.assert_allclose(times[:2], [1000, 980])
    for eta in (0.0, 1.0):
        std = np.sqrt(moments(ddim(process, times, eta), process, 0.0, 0.09)[-1, 1])
        np.testing.assert_allclose(std, 0.3, atol=0.05)


def test_ancestral_samples_have_the_spread_of_the_data():
    """Without their noise the spread collapses (.0006 for .3), and without d sigma^2 / dt it explodes (23.5 for 1)."""
    for process in (VarianceExploding(), VPSDE(), VPSDE(sub=True)):
        times = grid(process, 300, "karras")
        for std in (0.3, 1.0):
            found = moments(ddpm(process, times), process, 0.0, std**2)
            np.testing.assert_allclose(np.sqrt(found[-1, 1]), std, rtol=0.03)


@everywhere
def test_eta_1_is_ddpm_and_eta_0_is_dpm_solver_of_order_1(process):
    times = uneven(process)
    noises = np.random.default_rng(0).normal(size=(7, 4))
    law = Mixture.gaussian(np.full(4, 0.5), np.full(4, 0.3))

    def run(rows):
        denoise = lambda x, time: law.denoised(x[None], *(float(p) for p in process.coefficients(time, np)))[0]
        return solve_reference(rows, denoise, process.prior_std * np.arange(4.0), noises)

    ancestral = run(ddpm(process, times))
    np.testing.assert_allclose(run(ddim(process, times, 1.0)), ancestral, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(run(dpm_solver(process, times, 1, stochastic=True)), ancestral, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(run(dpm_solver(process, times, 1)), run(ddim(process, times)), rtol=1e-7, atol=1e-9)


def test_on_straight_paths_ddim_is_eulers_method_in_t():
    times = uneven(RectifiedFlow())
    law = Mixture.ring()
    x = expected = np.array([[0.3, -1.1]])
    for t, after in itertools.pairwise(times):
        flow = (expected - law.denoised(expected, 1 - t, t)) / t  # noise - data, by x = (1 - t) data + t noise
        expected = expected + (after - t) * flow
    denoise = lambda x, time: law.denoised(x, 1 - time, time)
    found = solve_reference(ddim(RectifiedFlow(), times), denoise, x)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


# Deterministic solvers


def test_heuns_method_is_algorithm_1_of_karras_et_al():
    process, law = NoiseLevel(), Mixture.ring()
    times = grid(process, 8, "karras")
    x = y = 80 * np.array([[0.3, -1.1]])
    calls = []
    for t, after in itertools.pairwise(times):
        slope = (y - law.denoised(y, 1.0, t)) / t
        ahead = y + (after - t) * slope
        if after > 0:
            slope = (slope + (ahead - law.denoised(ahead, 1.0, after)) / after) / 2
        y = y + (after - t) * slope

    def denoise(x, time):
        calls.append(time)
        return law.denoised(x, 1.0, time)

    found = solve_reference(heun(process, times), denoise, x)
    np.testing.assert_allclose(found, y, rtol=1e-9)
    np.testing.assert_allclose(calls, np.repeat(times[:-1], 2)[1:])


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_calls_of_the_network_are_as_many_as_the_papers_say(steps):
    process = NoiseLevel()
    times = grid(process, steps, "trailing")
    for name, make in {**DETERMINISTIC, **STOCHASTIC}.items():
        assert len(make(process, times).times) == (2 * steps - 1 if name == "Heun" else steps)
    assert len(heun(process, np.append(times[:-1], process.first)).times) == 2 * steps
    # From noise alone: of straight paths, whose rate is finite there, as many; of a chain one less.
    assert len(heun(RectifiedFlow(), grid(RectifiedFlow(), steps)).times) == 2 * steps - 1
    chain = VariancePreserving(zero_terminal_snr=True)
    assert len(heun(chain, grid(chain, steps)).times) == max(2 * steps - 2, 1)


def test_2m_is_algorithm_2_of_lu_et_al():
    """2211.01095: D = (1 + 1 / 2r) D_i - 1 / 2r D_{i-1}, r = h_{i-1} / h_i, on a grid of uneven h."""
    process, law = VPSDE(), Mixture.ring()
    times = uneven(process)
    alpha, sigma = process.coefficients(times, np)
    lam = np.append(np.log(alpha[:-1] / sigma[:-1]), np.inf)
    x = y = np.array([[0.3, -1.1]])
    before = None
    for i in range(len(times) - 1):
        clean, h = law.denoised(y, alpha[i], sigma[i]), lam[i + 1] - lam[i]
        used = clean
        if before is not None and np.isfinite(h):
            r = (lam[i] - lam[i - 1]) / h
            used = (1 + 1 / (2 * r)) * clean - 1 / (2 * r) * before
        y = sigma[i + 1] / sigma[i] * y - alpha[i + 1] * np.expm1(-h) * used
        before = clean
    denoise = lambda x, time: law.denoised(x, *process.coefficients(time, np))
    np.testing.assert_allclose(solve_reference(dpm_solver(process, times, 2), denoise, x), y, rtol=1e-9)


def integral(process, start, end, x, denoised, stochastic=False):
    """x at `end` by the exact solution (2211.01095, equation 8; of the SDE's mean, appendix B), D a function of lambda.

    By the midpoint rule with many points.
    """
    (alpha, sigma), (to_alpha, to_sigma) = (process.coefficients(np.asarray(t), np) for t in (start, end))
    h = np.log(to_alpha / to_sigma) - np.log(alpha / sigma)
    s = (np.arange(20_000) + 0.5) * h / 20_000
    lam = np.log(alpha / sigma) + s
    k = 2 if stochastic else 1
    kernel = k * np.exp(k * (s - h)) * h / 20_000
    left = to_sigma / sigma * (np.exp(-h) if stochastic else 1.0)
    return left * x + to_alpha * (kernel * denoised(lam)).sum()


EXACT = {
    "heun form": (dict(order=2, form="heun"), 1, False),
    "SDE, heun form": (dict(order=2, form="heun", stochastic=True), 1, True),
    "3M": (dict(order=3), 1, False),
}


def last_step(rows, process, times, denoised, stochastic=False):
    """(exact, found) of a step with all of its history, for a D that is a function of lambda."""
    alpha, sigma = process.coefficients(times, np)
    anchor, past, x = 0.4, [0.0] * rows.history, 0.4
    for i in range(len(times) - 1):
        clean = denoised(np.log(alpha[i] / sigma[i]))
        past = [clean, *past][: rows.history]
        before = x
        x, anchor = (w[i] @ np.array([anchor, x, clean, *past, 0.0]) for w in (rows.point, rows.anchor))
    return integral(process, times[-2], times[-1], before, denoised, stochastic), x


@pytest.mark.parametrize(("settings", "degree", "stochastic"), EXACT.values(), ids=EXACT.keys())
def test_a_polynomial_in_lambda_is_integrated_exactly(settings, degree, stochastic):
    process, times = VPSDE(), np.array([0.8, 0.7, 0.4, 0.33])
    polynomial = lambda lam: 0.3 + 0.5 * lam**degree
    expected, found = last_step(dpm_solver(process, times, **settings), process, times, polynomial, stochastic)
    np.testing.assert_allclose(found, expected, rtol=1e-7)


def test_3m_takes_half_of_the_quadratic_term_as_the_authors_code_does():
    """Of s^2 in D the integral is 2 phi_3 h^2; their code, and all that followed it, has phi_3 h^2."""
    process = VPSDE()
    times = np.array([0.8, 0.7, 0.4, 0.33])
    alpha, sigma = process.coefficients(times, np)
    lam = np.log(alpha / sigma)
    polynomial = lambda at: 0.3 + 0.5 * at**2
    expected, x = last_step(dpm_solver(process, times, 3), process, times, polynomial)
    # of (lambda - lambda_2)^2 alone, from x = 0
    half = integral(process, times[2], times[3], 0.0, lambda at: 0.5 * (at - lam[2]) ** 2) / 2
    assert half > 1e-3
    np.testing.assert_allclose(x, expected - half, rtol=1e-7)
    expected, whole = last_step(dpm_solver(process, times, 3, form="heun"), process, times, polynomial)
    np.testing.assert_allclose(whole, expected, rtol=1e-7)


LEVELS = NoiseLevel(0.05, 20.0)


def ring_start():
    return 20.0 * np.random.default_rng(0).normal(size=(24, 2))


@pytest.fixture(scope="module")
def flow():
    """Where the probability flow of eight Gaussians takes 24 points from noise level 20 to .05: Runge and Kutta's."""
    law = Mixture.ring(8, 1.0, 0.2)
    slope = lambda log_r, y: y - law.denoised(y, 1.0, np.exp(log_r))
    y, steps = ring_start(), 2000
    h = (np.log(0.05) - np.log(20.0)) / steps
    for log_r in np.log(20.0) + h * np.arange(steps):
        a = slope(log_r, y)
        b = slope(log_r + h / 2, y + h / 2 * a)
        c = slope(log_r + h / 2, y + h / 2 * b)
        y = y + h / 6 * (a + 2 * b + 2 * c + slope(log_r + h, y + h * c))
    return law, y


def error(flow, make, steps, process=LEVELS):
    law, expected = flow
    times = process.time_of(LEVELS.ratios(grid(LEVELS, steps, "karras", final="first")))
    alpha, _ = process.coefficients(times, np)
    denoise = lambda x, time: law.denoised(x, *(float(part) for part in process.coefficients(time, np)))
    end = solve_reference(make(process, times), denoise, alpha[0] * ring_start())
    return np.sqrt(np.mean((end / alpha[-1] - expected) ** 2))


@pytest.mark.parametrize(
    ("name", "order"),
    [("DDIM", 1.0), ("1", 1.0), ("Heun", 2.0), ("2M midpoint", 2.0), ("2M heun", 2.0)],
)
@pytest.mark.parametrize("process", [LEVELS, VPSDE()], ids=["noise level", "VP SDE"])
def test_orders_of_convergence(flow, name, order, process):
    one, other = (error(flow, DETERMINISTIC[name], steps, process) for steps in (160, 320))
    np.testing.assert_allclose(np.log2(one / other), order, atol=0.06)


def test_the_third_order_is_more_accurate_than_the_second(flow):
    for steps in (40, 80, 160):
        assert error(flow, DETERMINISTIC["3M"], steps) < 0.5 * error(flow, DETERMINISTIC["2M midpoint"], steps)


def test_the_flow_of_a_gaussian_is_a_scaling():
    """x' - alpha' m = std' / std (x - alpha m), whatever the process: Heun and 2M with few steps are close to it."""
    for process in (VPSDE(), NoiseLevel(), RectifiedFlow()):
        times = process.time_of(np.geomspace(30.0, 0.03, 61))
        expected = marginals(process, times, 0.5, 0.3)[-1]
        for name in ("Heun", "2M midpoint", "2M heun", "3M"):
            found = moments(DETERMINISTIC[name](process, times), process, 0.5, 0.3)[-1]
            np.testing.assert_allclose(found, expected, rtol=0.01)


# The SDE's solvers


def test_the_stochastic_second_order_has_smaller_errors_of_a_gaussians_variance():
    process = VPSDE()
    errors = {}
    for steps in (20, 40):
        times = process.time_of(np.geomspace(30.0, 0.03, steps + 1))
        expected = marginals(process, times, 0.5, 0.09)[-1, 1]
        for name in ("SDE 1", "SDE 2M midpoint", "SDE 2M heun"):
            errors[name, steps] = abs(
                moments(STOCHASTIC[name](process, times), process, 0.5, 0.09)[-1, 1] / expected - 1
            )
    for name in ("SDE 2M midpoint", "SDE 2M heun"):
        assert errors[name, 40] < 0.5 * errors["SDE 1", 40]
        assert errors[name, 40] < 0.4 * errors[name, 20]


# Zero terminal SNR


def test_the_first_step_from_noise_alone_is_finite_for_every_sampler_and_goes_where_d_says():
    process = VariancePreserving(zero_terminal_snr=True)
    times = grid(process, 6)
    for make in {**DETERMINISTIC, **STOCHASTIC}.values():
        rows = make(process, times)
        assert np.isfinite(rows.point).all()
        assert np.isfinite(rows.anchor).all()
        # of noise alone nothing can be said of the data: D is its mean
        found = moments(rows, process, 0.5, 0.09)
        assert np.isfinite(found).all()


# Refusals


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda p, t: ddim(p, t, eta=-0.5), "-0.5"),
        (lambda p, t: ddim(p, t, eta=1.5), "1.5"),
        (lambda p, t: dpm_solver(p, t, order=4), "4"),
        (lambda p, t: dpm_solver(p, t, order=0), "0"),
        (lambda p, t: dpm_solver(p, t, order=3, stochastic=True), "3"),
    ],
    ids=["negative eta", "eta above 1", "order 4", "order 0", "stochastic order 3"],
)
def test_settings_that_no_paper_defines_are_refused(call, named):
    with pytest.raises(UsageError, match=named):
        call(VariancePreserving(), grid(VariancePreserving(), 5))
