"""Guidance, its rescaling, and thresholds of the denoised estimate, each example on its own."""

import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax.ops.diffusion.grids import grid
from arch_jax.ops.diffusion.guidance import guided, rescaled
from arch_jax.ops.diffusion.heun import heun
from arch_jax.ops.diffusion.laws import Mixture
from arch_jax.ops.diffusion.processes import NoiseLevel
from arch_jax.ops.diffusion.solve import solve_reference
from arch_jax.ops.diffusion.thresholds import dynamic_threshold, static_threshold


def pair(shape=(3, 4, 2)):
    draw = np.random.default_rng(0)
    return jnp.asarray(draw.normal(size=shape)), jnp.asarray(draw.normal(size=shape))


def test_scale_1_is_the_conditional_model_and_scale_0_the_unconditional_one():
    conditional, unconditional = pair()
    np.testing.assert_allclose(guided(conditional, unconditional, 1.0), conditional, atol=1e-6)
    np.testing.assert_allclose(guided(conditional, unconditional, 0.0), unconditional, atol=1e-6)
    # (1 + w) conditional - w unconditional (2207.12598, equation 6), w = 2
    np.testing.assert_allclose(guided(conditional, unconditional, 3.0), 3 * conditional - 2 * unconditional, atol=2e-6)


def test_guidance_of_one_example_does_not_depend_on_the_others():
    conditional, unconditional = pair()
    alone = guided(conditional[:1], unconditional[:1], 3.0)
    np.testing.assert_array_equal(guided(conditional, unconditional, 3.0)[:1], alone)
    alone = rescaled(conditional[:1], unconditional[:1], 0.7)
    np.testing.assert_allclose(rescaled(conditional, unconditional, 0.7)[:1], alone, rtol=1e-6)


def test_rescaled_guidance_has_the_conditional_outputs_deviation_by_its_share():
    """2305.08891, equations 15 and 16."""
    conditional, unconditional = pair()
    combined = guided(conditional, unconditional, 5.0)
    std = lambda x: np.std(np.asarray(x).reshape(3, -1), axis=1, ddof=1)[:, None, None]
    np.testing.assert_allclose(std(rescaled(combined, conditional, 1.0)), std(conditional), rtol=1e-5)
    np.testing.assert_allclose(rescaled(combined, conditional, 0.0), combined, rtol=1e-6)
    expected = combined * (0.7 * std(conditional) / std(combined) + 0.3)
    np.testing.assert_allclose(rescaled(combined, conditional, 0.7), expected, rtol=1e-5)


def test_what_has_no_deviation_is_left_as_it_is():
    one = jnp.array([[2.0], [-3.0]])
    np.testing.assert_array_equal(rescaled(one, 2 * one, 0.7), one)
    flat = jnp.ones((2, 4, 4, 1))
    np.testing.assert_array_equal(rescaled(flat, 2 * flat, 0.7), flat)


def test_the_flow_of_guided_gaussians_has_the_variance_that_is_known():
    """a^(2 (1 - s)) b^(2 s), a the unconditional deviation and b the conditional one; the tilted law has another.

    From an infinite noise level, where the two begin alike; variances 2 and 1, s = 3: .25, and of the tilt .5.
    """
    process = NoiseLevel(1e-4, 500.0)
    conditional, unconditional = (
        Mixture.gaussian(np.array([1.5]), np.array([1.0])),
        Mixture.gaussian(np.zeros(1), np.array([2.0])),
    )
    times = grid(process, 200, "karras")
    both = lambda x, time: (jnp.asarray(law.denoised(x, 1.0, time)) for law in (conditional, unconditional))
    denoise = lambda x, time: np.asarray(guided(*both(x, time), 3.0))
    low, high = solve_reference(heun(process, times), denoise, 500.0 * np.array([[-1.0], [1.0]]))
    np.testing.assert_allclose(((high - low) / 2) ** 2, 0.25, rtol=0.01)


def test_static_thresholds_clip():
    x = jnp.array([-3.0, -0.5, 0.2, 1.5])
    np.testing.assert_allclose(static_threshold(x), [-1, -0.5, 0.2, 1])
    np.testing.assert_allclose(static_threshold(x, 2.0), [-2, -0.5, 0.2, 1.5])


@pytest.mark.parametrize("share", [0.5, 0.9, 0.995])
def test_dynamic_thresholds_are_each_examples_quantile_and_at_least_1(share):
    """2205.11487, section 2.3: clip to [-s, s] and divide by s, s the quantile of absolute values, if s > 1."""
    x = np.asarray(pair((3, 5, 7))[0]) * np.array([0.1, 1.0, 8.0])[:, None, None]
    s = np.maximum(np.quantile(np.abs(x).reshape(3, -1), share, axis=1), 1)[:, None, None]
    found = dynamic_threshold(jnp.asarray(x), share)
    np.testing.assert_allclose(found, np.clip(x, -s, s) / s, rtol=1e-5, atol=1e-6)
    assert np.abs(found).max() <= 1
    np.testing.assert_allclose(found[0], x[0], rtol=1e-6)  # within the range nothing changes
    np.testing.assert_allclose(dynamic_threshold(jnp.asarray(x[2:]), share), found[2:], rtol=1e-6)


def test_dynamic_thresholds_of_another_range():
    """s at least `most`, and the result within it."""
    x = np.array([[0.5, -4.0, 8.0, 1.0]], np.float32)
    np.testing.assert_allclose(dynamic_threshold(jnp.asarray(x), 1.0, 2.0), 2 * x / 8, rtol=1e-6)
    np.testing.assert_allclose(dynamic_threshold(jnp.asarray(x), 1.0, 9.0), x, rtol=1e-6)
