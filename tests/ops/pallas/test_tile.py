"""Products inside a kernel: a TPU rounds float32's factors to bfloat16 unless it is told not to."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from arch_jax.ops.pallas.tile import dot


@pytest.mark.parametrize(
    ("dtype", "precision"), [(jnp.float32, (lax.Precision.HIGHEST,) * 2), (jnp.bfloat16, None)], ids=str
)
def test_factors_of_float32_stay_whole_and_sums_are_float32(dtype, precision):
    a, b = jnp.ones((2, 3), dtype), jnp.ones((4, 3), dtype)
    (product,) = jax.make_jaxpr(lambda a, b: dot(a, b, 1, 1))(a, b).eqns
    assert product.params["precision"] == precision
    assert product.params["preferred_element_type"] == jnp.float32
