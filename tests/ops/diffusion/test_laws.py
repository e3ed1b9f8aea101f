"""Mixtures of Gaussians under noise: densities, scores and denoised estimates against numerical integrals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax.ops.diffusion.laws import Mixture

LINE = Mixture(np.array([[-1.0], [0.4], [2.0]]), np.array([[0.1], [0.3], [0.02]]), np.array([0.5, 0.3, 0.2]))
PLANE = Mixture(np.array([[-0.8, 0.1], [0.5, 0.9]]), np.array([[0.2, 0.1], [0.05, 0.3]]), np.array([0.3, 0.7]))


def density(x):
    """Of LINE, by its definition."""
    each = np.exp(-((x - LINE.means[:, 0]) ** 2) / (2 * LINE.variances[:, 0]))
    return (each / np.sqrt(2 * np.pi * LINE.variances[:, 0])) @ LINE.weights


def test_the_density_is_the_weighted_sum_of_the_components():
    x = np.linspace(-3, 4, 57)[:, None]
    np.testing.assert_allclose(np.exp(LINE.log_density(x)), density(x), rtol=1e-10)
    grid = np.linspace(-6, 6, 4001)[:, None]
    np.testing.assert_allclose(np.exp(LINE.log_density(grid)).sum() * 12 / 4000, 1, rtol=1e-9)


@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 0.5), (0.6, 0.8), (0.3, 2.0)])
def test_the_noisy_law_and_the_denoised_estimate_are_integrals_over_the_data(alpha, sigma):
    x = np.linspace(-2, 2, 9)
    data = np.linspace(-8, 8, 8001)
    joint = density(data[:, None]) * np.exp(-((x[:, None] - alpha * data) ** 2) / (2 * sigma**2))
    joint /= np.sqrt(2 * np.pi) * sigma
    step = data[1] - data[0]
    marginal = joint.sum(1) * step
    np.testing.assert_allclose(np.exp(LINE.noisy(alpha, sigma).log_density(x[:, None])), marginal, rtol=1e-9)
    expected = (joint @ data) * step / marginal
    np.testing.assert_allclose(LINE.denoised(x[:, None], alpha, sigma)[:, 0], expected, rtol=1e-8)


def test_the_score_is_the_gradient_and_gives_the_denoised_estimate():
    """Tweedie's formula in the plane; the gradient by central differences."""
    alpha, sigma = 0.7, 0.6
    noisy = PLANE.noisy(alpha, sigma)
    x = np.random.default_rng(0).normal(size=(6, 2))
    h = 1e-5
    gradient = np.stack(
        [(noisy.log_density(x + h * e) - noisy.log_density(x - h * e)) / (2 * h) for e in np.eye(2)], axis=-1
    )
    np.testing.assert_allclose(noisy.score(x), gradient, rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(PLANE.denoised(x, alpha, sigma), (x + sigma**2 * gradient) / alpha, rtol=1e-6)


def test_a_gaussians_denoised_estimate_is_the_posterior_mean():
    law = Mixture.gaussian(np.array([1.5, -1.0]), np.array([2.0, 0.3]))
    x = np.array([[0.3, 0.2]])
    for alpha, sigma in ((0.8, 0.6), (1.0, 3.0)):
        # precision-weighted mean of N(m, v) and of the observation x / alpha of variance sigma^2 / alpha^2
        precision = alpha**2 / sigma**2
        expected = (np.array([1.5, -1.0]) / [2.0, 0.3] + precision * x / alpha) / (1 / np.array([2.0, 0.3]) + precision)
        np.testing.assert_allclose(law.denoised(x, alpha, sigma), expected, rtol=1e-10)


def test_without_data_left_the_denoised_estimate_is_the_mean_and_without_noise_the_point():
    x = np.array([[0.3, 0.2]])
    np.testing.assert_allclose(PLANE.denoised(x, 0.0, 1.0), PLANE.mean[None], rtol=1e-10)
    np.testing.assert_allclose(PLANE.denoised(x, 1.0, 0.0), x, rtol=1e-10)


def test_far_from_all_modes_the_shares_are_finite():
    ring = Mixture.ring(8, 1.0, 0.01)
    shares = ring.shares(np.array([[300.0, 1.0]]))
    np.testing.assert_allclose(shares.sum(-1), 1)
    assert np.isfinite(ring.score(np.array([[300.0, 1.0]]))).all()


def moments_of_draws(law):
    draws = law.draw(np.random.default_rng(0), 200_000)
    return draws, draws.mean(0), draws.var(0)


@pytest.mark.parametrize("law", [PLANE, LINE, Mixture.ring()], ids=["plane", "line", "ring"])
def test_draws_have_the_mean_and_variance_that_are_said(law):
    draws, mean, variance = moments_of_draws(law)
    error = 5 / np.sqrt(len(draws))
    np.testing.assert_allclose(mean, law.mean, atol=error * np.sqrt(variance).max())
    np.testing.assert_allclose(variance, law.variance, rtol=2 * error)


def test_draws_lie_on_each_component_as_often_as_its_weight():
    draws = LINE.draw(np.random.default_rng(0), 100_000)[:, 0]
    edges = np.linspace(-4, 5, 10)
    counts = np.histogram(draws, edges)[0] / len(draws)
    fine = np.linspace(-4, 5, 9 * 2000 + 1)
    middle = (fine[1:] + fine[:-1]) / 2
    expected = density(middle[:, None]).reshape(9, 2000).sum(1) / 2000
    np.testing.assert_allclose(counts, expected, atol=0.01)


def test_a_ring_has_its_modes_on_the_circle_at_equal_angles():
    ring = Mixture.ring(8, 2.0, 0.1)
    np.testing.assert_allclose(np.linalg.norm(ring.means, axis=-1), 2)
    np.testing.assert_allclose(
        np.linalg.norm(ring.means - np.roll(ring.means, 1, axis=0), axis=-1), 4 * np.sin(np.pi / 8)
    )
    np.testing.assert_allclose(ring.variances, 0.01)
    np.testing.assert_allclose(ring.weights, 1 / 8)
    np.testing.assert_allclose(ring.mean, 0, atol=1e-12)
    np.testing.assert_allclose(ring.variance, 2.0**2 / 2 + 0.01)  # radius^2 / 2 in each coordinate


def test_a_component_alone_is_one_gaussian():
    one = PLANE.component(1)
    np.testing.assert_allclose(one.mean, PLANE.means[1])
    np.testing.assert_allclose(one.variance, PLANE.variances[1])
    x = np.array([[0.2, 0.3]])
    mixed = np.log(sum(w * np.exp(PLANE.component(k).log_density(x)) for k, w in enumerate(PLANE.weights)))
    np.testing.assert_allclose(PLANE.log_density(x), mixed, rtol=1e-10)


def test_the_log_density_is_that_of_jax():
    law = Mixture.gaussian(np.array([0.5]), np.array([2.0]))
    with jax.enable_x64(True):
        expected = jax.scipy.stats.norm.logpdf(jnp.asarray([1.7]), 0.5, np.sqrt(2.0))
    np.testing.assert_allclose(law.log_density(np.array([[1.7]])), expected, rtol=1e-12)
