"""Mixtures of Gaussians against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np

from arch_jax.ops.gaussian_mixture import mixture_log_density, mixture_score, mixture_score_reference


def drawn(size=3):
    draw = np.random.default_rng(0)
    return draw.normal(size=(7, size)), draw.normal(size=(4, size)), 0.6


def test_the_score_is_the_gradient_of_the_log_density():
    with jax.enable_x64(True):
        x, centres, std = drawn()

        @jax.jit
        def three(x, centres):
            gradient = jax.vmap(jax.grad(lambda x: mixture_log_density(x, centres, std)))(x)
            return mixture_score(x, centres, std), mixture_score_reference(x, centres, std), gradient

        score, reference, gradient = three(x, centres)
        np.testing.assert_allclose(score, reference, atol=1e-12)
        np.testing.assert_allclose(score, gradient, atol=1e-12)


def test_the_density_integrates_to_one():
    with jax.enable_x64(True):
        _, centres, std = drawn(2)
        line = np.linspace(-8, 8, 401)
        plane = np.stack(np.meshgrid(line, line), axis=-1)
        density = jax.jit(lambda x: jnp.exp(mixture_log_density(x, jnp.asarray(centres), std)).sum())
        total = density(plane) * (line[1] - line[0]) ** 2
        np.testing.assert_allclose(total, 1, atol=1e-10)


def test_far_from_all_centres_it_points_at_the_nearest():
    """Densities that vanish in floating point: the score does not become 0 / 0."""
    x, centres = jnp.array([[300.0, 1.0]]), jnp.array([[0.0, 0.0], [10.0, 0.0]])
    np.testing.assert_allclose(mixture_score(x, centres, 0.1), (centres[1] - x) / 0.01, rtol=1e-6)
