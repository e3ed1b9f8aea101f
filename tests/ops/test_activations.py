"""tanh-GELU by hand against automatic differentiation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax.ops.activations import gelu_tanh, gelu_tanh_reference


def slope(f):
    return jax.jit(jax.vmap(jax.grad(f)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_value_and_slope(dtype):
    with jax.enable_x64(dtype == np.float64):
        x = jnp.asarray(np.linspace(-12, 12, 401), dtype)
        tight = 2e-6 if dtype == np.float32 else 1e-14
        library = lambda x: jax.nn.gelu(x, approximate=True)
        value, by_definition, of_jax = (jax.jit(f)(x) for f in (gelu_tanh, gelu_tanh_reference, library))
        np.testing.assert_allclose(value, by_definition, atol=tight)
        slopes = [slope(f)(x) for f in (gelu_tanh, gelu_tanh_reference)]
        assert slopes[0].dtype == x.dtype
        np.testing.assert_allclose(*slopes, atol=tight)
        np.testing.assert_allclose(value, of_jax, atol=tight)


def test_known_points():
    np.testing.assert_allclose(gelu_tanh(jnp.asarray([-30.0, 0.0, 1.0, 30.0])), [0, 0, 0.841192, 30], atol=1e-6)


def test_the_slope_of_huge_inputs_is_0_or_1():
    x = jnp.asarray([-3e38, -1e25, -25.0, 25.0, 1e25, 3e38])
    np.testing.assert_array_equal(slope(gelu_tanh)(x), [0, 0, 0, 1, 1, 1])


def test_bfloat16_computes_in_float32():
    x = jnp.asarray(np.linspace(-4, 4, 201), jnp.bfloat16)
    for f in (jax.jit(gelu_tanh), slope(gelu_tanh)):
        got = f(x)
        assert got.dtype == jnp.bfloat16
        np.testing.assert_array_equal(got, np.asarray(f(np.asarray(x, np.float32))).astype(jnp.bfloat16))
