"""Convolution against its definition, values and gradients, in every implementation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax.errors import UsageError
from arch_jax.ops.convolution import IMPLEMENTATIONS, choose, convolve, convolve_reference


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("side", "size", "stride", "padding"),
    [(8, 3, 1, None), (9, 5, 1, 0), (8, 3, 2, 1), (7, 2, 1, None), (5, 5, 1, 0), (11, 7, 3, 3), (6, 1, 2, 0)],
)
def test_values_and_gradients(implementation, side, size, stride, padding):
    with jax.enable_x64(True):
        draw = np.random.default_rng(size)
        x, k = jnp.asarray(draw.normal(size=(2, side, side, 3))), jnp.asarray(draw.normal(size=(size, size, 3, 4)))
        fast = lambda x, k: convolve(x, k, stride, padding, implementation)
        slow = lambda x, k: convolve_reference(x, k, stride, padding)
        np.testing.assert_allclose(fast(x, k), slow(x, k), atol=1e-12)
        for ours, theirs in zip(
            *(jax.grad(lambda x, k, f=f: jnp.sum(jnp.sin(f(x, k))), (0, 1))(x, k) for f in (fast, slow))
        ):
            np.testing.assert_allclose(ours, theirs, atol=1e-11)


def test_the_choice_is_by_platform():
    assert (choose("cpu"), choose("gpu"), choose("tpu")) == ("patches", "xla", "xla")
    with pytest.raises(UsageError, match="patchs"):
        convolve(jnp.zeros((1, 3, 3, 1)), jnp.zeros((3, 3, 1, 1)), implementation="patchs")
