"""Langevin dynamics and predictor-corrector steps against the papers' equations, and the law that a step keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax.errors import UsageError
from arch_jax.ops.diffusion.ancestral import ddpm
from arch_jax.ops.diffusion.grids import grid
from arch_jax.ops.diffusion.langevin import annealed_langevin, predictor_corrector, reverse_diffusion, technique_4
from arch_jax.ops.diffusion.laws import Mixture
from arch_jax.ops.diffusion.predictions import Data
from arch_jax.ops.diffusion.processes import VPSDE, NoiseLevel, RectifiedFlow, VarianceExploding, VariancePreserving
from arch_jax.ops.diffusion.solve import CURRENT, HISTORY, solve, solve_reference, step_table

CHAIN = VariancePreserving()
LAW = Mixture(np.array([[-1.0, 0.2], [0.8, 0.5]]), np.array([[0.2, 0.1], [0.05, 0.3]]), np.array([0.3, 0.7]))


def draws(calls, count=5, width=2, seed=0):
    return np.random.default_rng(seed).normal(size=(calls, count, width))


def denoise(process, law=LAW):
    return lambda x, time: law.denoised(x, *process.coefficients(np.float64(time), np))


def score(process, time, x, law=LAW):
    return law.noisy(*process.coefficients(np.float64(time), np)).score(x)


def variance_after(rows, process, variance, begin):
    """Of x, of data that is N(0, variance) in one dimension, after all rows of a sampler of one call a step."""
    alpha, sigma = process.coefficients(rows.times, np)
    slope = alpha * variance / (alpha**2 * variance + sigma**2)
    for i, row in enumerate(rows.point):
        begin = (row[CURRENT] + row[HISTORY] * slope[i]) ** 2 * begin + row[-1] ** 2
    return begin


# Predictors.


def test_reverse_diffusion_of_the_chain_is_appendix_e():
    """x' = (2 - sqrt(1 - beta)) x + beta s + sqrt(beta) z (2011.13456, appendix E), of steps of one."""
    times, z = np.array([501.0, 500.0, 499.0]), draws(2)
    x = begin = draws(1, seed=1)[0]
    for i in range(2):
        beta = np.linspace(1e-4, 0.02, 1000)[int(times[i]) - 1]
        x = (2 - np.sqrt(1 - beta)) * x + beta * score(CHAIN, times[i], x) + np.sqrt(beta) * z[i] * (i < 1)
    found = solve_reference(reverse_diffusion(CHAIN, times), denoise(CHAIN), begin, z)
    np.testing.assert_allclose(found, x, rtol=1e-9)


def test_reverse_diffusion_of_a_variance_exploding_process_is_algorithm_2():
    """x' = x + (sigma^2 - sigma'^2) s + sqrt(sigma^2 - sigma'^2) z."""
    times, z = np.array([3.0, 1.0, 0.4, 0.0]), draws(3)
    x = begin = draws(1, seed=1)[0]
    for i in range(3):
        grown = times[i] ** 2 - times[i + 1] ** 2
        x = x + grown * score(NoiseLevel(), times[i], x) + np.sqrt(grown) * z[i] * (i < 2)
    found = solve_reference(reverse_diffusion(NoiseLevel(), times), denoise(NoiseLevel()), begin, z)
    np.testing.assert_allclose(found, x, rtol=1e-9)


@pytest.mark.parametrize("process", [CHAIN, VarianceExploding(), VPSDE(sub=True)], ids=lambda one: type(one).__name__)
def test_reverse_diffusion_approaches_the_law_with_the_steps(process):
    for steps, allowed in ((100, 0.1), (1000, 0.01)):
        rows = reverse_diffusion(process, grid(process, steps))
        begin = process.prior_std**2
        assert abs(variance_after(rows, process, 0.7, begin) / 0.7 - 1) < allowed


# Predictor and corrector.


@pytest.mark.parametrize("predictor", ["reverse_diffusion", "ancestral"])
def test_predictor_and_corrector_written_out(predictor):
    """Algorithm 1 with algorithm 5's step, e = 2 alpha_i (snr |z| / |s|)^2, and |z| / |s| = sigma."""
    process, times, snr = CHAIN, np.array([900.0, 600.0, 200.0, 0.0]), 0.3
    rows = predictor_corrector(process, times, predictor, correctors=2, snr=snr)
    np.testing.assert_array_equal(rows.times, [900, 600, 600, 600, 200, 200, 200])
    z, x = draws(7), draws(1, seed=1)[0]
    alpha, sigma = process.coefficients(times, np)
    single = (reverse_diffusion if predictor == "reverse_diffusion" else ddpm)(process, times)
    number, begin = 0, x
    for i in range(3):
        d = denoise(process)(x, times[i])
        x = single.point[i, CURRENT] * x + single.point[i, HISTORY] * d + single.point[i, -1] * z[number]
        number += 1
        for _ in range(2 if i < 2 else 0):
            e = 2 * (alpha[i + 1] / alpha[i + 2]) ** 2 * (snr * sigma[i + 1]) ** 2
            x = x + e * score(process, times[i + 1], x) + np.sqrt(2 * e) * z[number]
            number += 1
    np.testing.assert_allclose(solve_reference(rows, denoise(process), begin, z), x, rtol=1e-9)


def test_without_correctors_the_predictor_is_alone():
    times = grid(CHAIN, 7)
    found, alone = predictor_corrector(CHAIN, times, "ancestral", correctors=0), ddpm(CHAIN, times)
    np.testing.assert_array_equal(found.point, alone.point)
    np.testing.assert_array_equal(found.times, alone.times)


@pytest.mark.parametrize("process", [CHAIN, NoiseLevel(), RectifiedFlow()], ids=lambda one: type(one).__name__)
def test_the_corrector_keeps_a_gaussians_law_up_to_the_bias_of_its_step(process):
    """Of x ~ N(0, V) a step of e has x' = (1 - e / V) x + sqrt(2 e) z, which keeps V / (1 - e / (2 V))."""
    times, snr = np.append(process.last * np.full(400, 0.3), 0.0), 0.4
    alpha, sigma = process.coefficients(times[0], np)
    v = 0.7 * alpha**2 + sigma**2
    # The level above as a predictor that stays where it is: correctors alone.
    rows = annealed_langevin(process, times[[0, -1]], correctors=400, step_size=2 * snr**2, denoise=False)
    e = 2 * (snr * sigma) ** 2
    kept = v / (1 - e / (2 * v))
    for begin in (v, 9 * v):
        np.testing.assert_allclose(variance_after(rows, process, 0.7, begin) * alpha**2, kept, rtol=1e-6)


def test_a_corrector_beyond_the_noise_itself_is_held_at_it():
    rows = predictor_corrector(NoiseLevel(), np.array([3.0, 1.0, 0.0]), correctors=1, snr=5.0)
    np.testing.assert_allclose(rows.point[1, [CURRENT, HISTORY, -1]], [0, 1, np.sqrt(2)])


# The size of each example's own norms.


def own(x, keys, process=CHAIN, times=(900.0, 500.0, 0.0), snr=0.3):
    rows = predictor_corrector(process, np.array(times), correctors=1, snr=snr, norms="own")
    network = lambda x, time, scale: jnp.tanh(x) + 0.1
    return solve(step_table(rows, process, Data()), network, x, keys, noisy=True, path=True), rows


def test_own_norms_written_out():
    """2011.13456, algorithm 5, with the norms of each example, whose draws are those of its key."""
    x, keys = jnp.asarray(draws(1, 4, 6)[0], jnp.float32), jax.random.split(jax.random.key(0), 4)
    (end, path), rows = own(x, keys)
    z = np.array(jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 1), (6,)))(keys))
    at = np.asarray(path[1])
    alpha, sigma = CHAIN.coefficients(500.0, np)
    s = (alpha * (np.tanh(at) + 0.1) - at) / sigma**2
    norm = lambda part: np.linalg.norm(part, axis=1, keepdims=True)
    e = np.minimum(2 * (alpha * 0.3 * norm(z) / norm(s)) ** 2, sigma**2)  # alpha_next is 1
    np.testing.assert_allclose(path[2], at + e * s + np.sqrt(2 * e) * z, rtol=1e-4)
    assert (rows.adaptive > 0).tolist() == [False, True, False]
    for i in range(4):  # and no row depends on the others
        np.testing.assert_allclose(own(x[i : i + 1], keys[i : i + 1])[0][0], end[i : i + 1], rtol=1e-5, atol=1e-6)


def test_of_many_features_at_much_noise_own_norms_are_the_expected_ones():
    x, keys = 80 * jnp.asarray(draws(1, 2, 20_000)[0], jnp.float32), jax.random.split(jax.random.key(0), 2)
    process, zero = NoiseLevel(), lambda x, time, scale: 0 * x
    for snr in (0.1, 0.3):
        made = []
        for norms in ("own", "expected"):
            rows = predictor_corrector(process, np.array([80.0, 79.0, 0.0]), snr=snr, norms=norms)
            _, path = solve(step_table(rows, process, Data()), zero, x, keys, noisy=True, path=True)
            made.append(path[2])
        np.testing.assert_allclose(made[0], made[1], atol=0.1 * 80 * snr)


def test_where_the_score_is_0_a_step_of_own_norms_is_finite():
    process, still = NoiseLevel(), lambda x, time, scale: x
    rows = predictor_corrector(process, np.array([3.0, 1.0, 0.0]), norms="own")
    end, _ = solve(
        step_table(rows, process, Data()), still, jnp.ones((3, 2)), jax.random.split(jax.random.key(0), 3), noisy=True
    )
    assert np.isfinite(np.asarray(end)).all()


# Annealed Langevin dynamics.


@pytest.mark.parametrize("denoised", [True, False])
def test_annealed_langevin_dynamics_is_algorithm_1(denoised):
    """alpha_i = epsilon sigma_i^2 / sigma_L^2, x + alpha_i / 2 s + sqrt(alpha_i) z (1907.05600), and denoising."""
    levels, epsilon, process = np.array([5.0, 1.0, 0.2]), 2e-2, NoiseLevel()
    step_size = epsilon / (2 * levels[-1] ** 2)
    rows = annealed_langevin(process, np.append(levels, 0.0), 3, step_size, denoised)
    z = draws(len(rows.times))
    x = begin = 5 * draws(1, seed=1)[0]
    for i, level in enumerate(levels):
        a = epsilon * level**2 / levels[-1] ** 2
        for t in range(3):
            x = x + a / 2 * score(process, level, x) + np.sqrt(a) * z[3 * i + t]
    if denoised:
        x = x + levels[-1] ** 2 * score(process, levels[-1], x)
    assert len(rows.times) == 9 + denoised
    np.testing.assert_allclose(solve_reference(rows, denoise(process), begin, z), x, rtol=1e-9)


@pytest.mark.parametrize("denoised", [True, False])
def test_of_another_process_it_is_the_same_in_x_over_alpha(denoised):
    """The chain's levels sigma / alpha, taken by a variance exploding process."""
    times = np.array([900.0, 500.0, 100.0, 0.0])
    ratios = CHAIN.ratios(times)
    z, begin = draws(7), draws(1, seed=1)[0]
    alpha, _ = CHAIN.coefficients(times, np)
    one = solve_reference(annealed_langevin(CHAIN, times, 2, 0.2, denoised), denoise(CHAIN), alpha[0] * begin, z)
    rows = annealed_langevin(NoiseLevel(largest=200.0), ratios, 2, 0.2, denoised)
    np.testing.assert_allclose(one, solve_reference(rows, denoise(NoiseLevel()), begin, z), rtol=1e-8)


@pytest.mark.parametrize(
    ("largest", "levels", "correctors", "epsilon"),
    [(50, 232, 5, 6.2e-6), (90, 500, 5, 3.3e-6), (190, 1086, 3, 1.8e-6)],
    ids=["CIFAR-10", "CelebA", "LSUN bedroom"],
)
def test_technique_4_finds_the_step_sizes_that_were_published(largest, levels, correctors, epsilon):
    """NCSNv2's configurations, whose smallest level is .01 (2006.09011, appendix B)."""
    gamma = (largest / 0.01) ** (1 / (levels - 1))
    assert technique_4(gamma, correctors) * 0.01**2 == pytest.approx(epsilon, rel=0.02)


def test_with_technique_4_the_variance_stays_nearest_to_the_noises():
    """Of data that is one point, through the rows themselves: more with other steps."""
    process = NoiseLevel(0.01, 50.0)
    times = grid(process, 232, "exponential")
    found = technique_4((50 / 0.01) ** (1 / 231), 5)

    def ends(size):
        rows = annealed_langevin(process, times, 5, size, denoise=False)
        return variance_after(rows, process, 0.0, times[0] ** 2) / 0.01**2

    # From level to level proposition 3 has v -> (1 - h)^10 (gamma^2 v - 2 / (2 - h)) + 2 / (2 - h).
    kept, limit, gamma = (1 - found) ** 10, 2 / (2 - found), (50 / 0.01) ** (1 / 231)
    np.testing.assert_allclose(ends(found), limit * (1 - kept) / (1 - kept * gamma**2), rtol=1e-9)
    assert 1 < ends(found) < 1.15
    assert ends(found / 2) > ends(found) + 0.01
    np.testing.assert_array_equal(
        annealed_langevin(process, times).point, annealed_langevin(process, times, 5, found).point
    )


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: predictor_corrector(RectifiedFlow(), np.array([1.0, 0.5, 0.0])), "expected predictor='ancestral'"),
        (lambda: annealed_langevin(RectifiedFlow(), np.array([1.0, 0.5, 0.0])), "begins with noise alone"),
        (lambda: annealed_langevin(NoiseLevel(), np.array([1.0, 0.0])), "step_size none; expected a number"),
    ],
)
def test_what_it_is_not_defined_for_is_refused(make, sentence):
    with pytest.raises(UsageError, match=sentence):
        make()
