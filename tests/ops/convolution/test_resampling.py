"""Filtered resampling against its definition pixel by pixel, and what the shortest filter is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax.errors import UsageError
from arch_jax.ops.convolution.resampling import doubled, filtered, halved, upfirdn, upfirdn_reference

upfirdn = jax.jit(upfirdn, static_argnums=(1, 2, 3, 4))
halved = jax.jit(halved, static_argnums=1)
doubled, filtered = (jax.jit(each, static_argnums=1, static_argnames="margin") for each in (doubled, filtered))
X = np.random.default_rng(0).normal(size=(2, 5, 4, 3))


@pytest.mark.parametrize(
    ("taps", "up", "down", "padding"),
    [((1, 3, 3, 1), 2, 1, (2, 1)), ((1, 3, 3, 1), 1, 2, (1, 1)), ((1, 2, 5), 3, 2, (0, 4)), ((2, 1), 1, 1, (3, 0))],
)
def test_it_is_its_definition(taps, up, down, padding):
    """Filters that are not symmetric too: it is a convolution, in which they are turned around."""
    with jax.enable_x64(True):
        made = upfirdn(jnp.asarray(X), taps, up, down, padding)
        assert made.dtype == jnp.float64
    np.testing.assert_allclose(made, upfirdn_reference(X, taps, up, down, padding), rtol=0, atol=1e-12)


def test_two_taps_are_the_mean_and_the_nearest_neighbour():
    x = jnp.asarray(X[:, :4], jnp.float32)
    mean = np.asarray(x).reshape(2, 2, 2, 2, 2, 3).mean((2, 4))
    np.testing.assert_allclose(halved(x, (1.0, 1.0)), mean, atol=1e-6)
    np.testing.assert_array_equal(doubled(x, (1.0, 1.0)), np.asarray(x).repeat(2, 1).repeat(2, 2))


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1), (1, 2, 4, 4, 2, 1)])
def test_a_margin_is_what_a_convolution_takes_away(taps):
    """With zeros around the image only once: what is more on every side continues the same filtered image."""
    x = jnp.asarray(X[:, :4], jnp.float32)
    np.testing.assert_array_equal(doubled(x, taps, margin=2)[:, 2:-2, 2:-2], doubled(x, taps))
    np.testing.assert_array_equal(filtered(x, taps, margin=2)[:, 2:-2:2, 2:-2:2], halved(x, taps))
    assert halved(x, taps).shape == (2, 2, 2, 3)
    assert doubled(x, taps).shape == (2, 8, 8, 3)


@pytest.mark.parametrize("half", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_summed_in_float32(half):
    x = jnp.asarray(X, half)
    made = upfirdn(x, (1, 3, 3, 1), 2, 1, (2, 1))
    assert made.dtype == half
    expected = upfirdn_reference(np.asarray(x, np.float64), (1, 3, 3, 1), up=2, padding=(2, 1))
    np.testing.assert_allclose(np.asarray(made, np.float64), expected, rtol=float(jnp.finfo(half).eps), atol=1e-7)


@pytest.mark.parametrize("taps", [(1.0, 2.0, 1.0), (), (0.0, 0.0)])
@pytest.mark.parametrize("resample", [halved, doubled, filtered])
def test_what_is_refused(taps, resample):
    with pytest.raises(UsageError, match=r"the filter is \(.*; expected an even number of weights .* such as \(1.0, 3"):
        resample(jnp.asarray(X, jnp.float32), taps)
