"""Latent variables: closed forms against Monte Carlo, the order of the bounds, ways between codes."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax.errors import UsageError
from arch_jax.ops.latents import (
    bernoulli_log_likelihood,
    bernoulli_sparsity,
    draw_gaussian,
    gaussian_kl,
    gaussian_log_density,
    importance_bound,
    largest_only,
    linear_interpolation,
    spherical_interpolation,
)


def test_the_divergence_is_the_mean_of_log_ratios():
    draw = np.random.default_rng(0)
    mean, log_variance = (draw.normal(size=(4, 3)).astype(np.float32) for _ in range(2))

    @jax.jit
    def estimate(mean, log_variance):
        z = draw_gaussian(jax.random.normal(jax.random.key(0), (400_000, 4, 3)), mean, log_variance)
        zero = jnp.zeros(())
        ratios = gaussian_log_density(z, mean, log_variance) - gaussian_log_density(z, zero, zero)
        return ratios.mean(0), ratios.std(0), gaussian_kl(mean, log_variance)

    average, deviation, exact = map(np.asarray, estimate(mean, log_variance))
    # Standard error of the mean: the ratios' deviation over 632.
    error = deviation / 400_000**0.5
    assert (np.abs(average - exact) < 4 * error).all()
    assert (error < 0.01 * exact).all()
    assert float(gaussian_kl(jnp.zeros((1, 5)), jnp.zeros((1, 5)))[0]) == 0


def test_log_densities_are_scipys():
    from scipy import stats

    draw = np.random.default_rng(1)
    x, mean, log_variance = (draw.normal(size=(5, 4)) for _ in range(3))
    expected = stats.norm(mean, np.exp(log_variance / 2)).logpdf(x).sum(-1)
    with jax.enable_x64(True):
        np.testing.assert_allclose(gaussian_log_density(*map(jnp.asarray, (x, mean, log_variance))), expected)
        bits, logits = draw.integers(0, 2, (5, 4)).astype(float), 20 * draw.normal(size=(5, 4))
        expected = stats.bernoulli(1 / (1 + np.exp(-logits))).logpmf(bits).sum(-1)
        np.testing.assert_allclose(bernoulli_log_likelihood(*map(jnp.asarray, (bits, logits))), expected, rtol=1e-6)
    assert np.isfinite(bernoulli_log_likelihood(jnp.ones((1, 1)), jnp.full((1, 1), -1e4))).all()


@pytest.mark.thorough
def test_the_bound_rises_with_draws_and_ends_at_the_likelihood():
    """z ~ N(0, 1), x | z ~ N(z, 1): log p(x) = log N(x; 0, 2); the proposal is the prior, far from the posterior."""
    x, zero = 1.5, jnp.zeros(())
    exact = float(jax.jit(gaussian_log_density)(np.array([x], np.float32), zero, np.log(np.float32(2))))

    @functools.partial(jax.jit, static_argnums=1)
    def bound(key, draws):
        z = jax.random.normal(key, (draws, 20_000, 1))
        return importance_bound(gaussian_log_density(jnp.array([x]), z, zero)).mean()

    bounds = [float(bound(jax.random.key(number), draws)) for number, draws in enumerate((1, 2, 5, 50, 1000))]
    assert all(a < b for a, b in itertools.pairwise(bounds)), bounds
    assert abs(bounds[-1] - exact) < 0.01
    # One draw: the evidence lower bound, whose value with q = p(z) is E log p(x | z) = -log(2 pi) / 2 - (x^2 + 1) / 2.
    assert abs(bounds[0] + 0.5 * (np.log(2 * np.pi) + x**2 + 1)) < 0.05


def test_sparsity():
    activity = jnp.array([[0.1, 0.5], [0.3, 0.5]])
    expected = [0.2 * np.log(0.2 / p) + 0.8 * np.log(0.8 / (1 - p)) for p in (0.2, 0.5)]
    np.testing.assert_allclose(bernoulli_sparsity(activity, 0.2), expected, atol=1e-6)
    assert np.isfinite(bernoulli_sparsity(jnp.zeros((2, 1)), 0.05)).all()
    with pytest.raises(UsageError, match=r"target is 1\.5"):
        bernoulli_sparsity(activity, 1.5)


def test_the_largest_units_are_kept():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 9)), jnp.float32)
    kept = np.asarray(largest_only(x, 4))
    for row, out in zip(np.asarray(x), kept):
        best = np.argsort(row)[-4:]
        np.testing.assert_array_equal(np.flatnonzero(out), np.sort(best))
        np.testing.assert_array_equal(out[best], row[best])
    with pytest.raises(UsageError, match="10 units are to be kept of 9"):
        largest_only(x, 10)


def test_ways_between_codes():
    share = jnp.linspace(0, 1, 5)
    start, end = jnp.array([[3.0, 0, 0]]), jnp.array([[0, 0, 3.0]])
    straight, circle = linear_interpolation(start, end, share), spherical_interpolation(start, end, share)
    for way in (straight, circle):
        np.testing.assert_allclose(way[0], start, atol=1e-6)
        np.testing.assert_allclose(way[-1], end, atol=1e-6)
    np.testing.assert_allclose(jnp.linalg.norm(circle, axis=-1), 3, rtol=1e-6)
    angles = np.degrees(np.arctan2(circle[:, 0, 2], circle[:, 0, 0]))
    np.testing.assert_allclose(angles, [0, 22.5, 45, 67.5, 90], atol=1e-4)
    assert float(jnp.linalg.norm(straight[2])) < 2.2
    np.testing.assert_allclose(spherical_interpolation(start, start, share), jnp.broadcast_to(start, (5, 1, 3)))
