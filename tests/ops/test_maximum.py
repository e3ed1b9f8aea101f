"""The maximum against JAX's own, and its gradient at ties."""

import jax
import jax.numpy as jnp
import numpy as np

from arch_jax.ops.maximum import largest, largest_reference


def test_values_and_gradients():
    parts = list(jax.random.normal(jax.random.key(0), (5, 4, 3)))
    np.testing.assert_array_equal(largest(parts), largest_reference(parts))
    ours, theirs = (jax.grad(lambda p, f=f: jnp.sum(jnp.sin(f(p))))(parts) for f in (largest, largest_reference))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_ties_go_to_the_first_and_nothing_is_lost():
    parts = [jnp.zeros(2), jnp.array([0.0, 1.0]), jnp.array([0.0, 1.0])]
    gradient = jax.grad(lambda p: jnp.sum(largest(p) * jnp.array([3.0, 5.0])))(parts)
    np.testing.assert_array_equal(gradient, [[3, 0], [0, 5], [0, 0]])


def test_nan_is_not_hidden():
    for place in range(3):
        parts = [jnp.float32(1), jnp.float32(2), jnp.float32(0)]
        parts[place] = jnp.float32(jnp.nan)
        assert jnp.isnan(largest(parts))
