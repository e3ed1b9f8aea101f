"""The linear layer: x W + b over the last axis, whatever stands before it; several at once; the table as output."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax.layers.dense import Dense, Embedding, affine, joint
from arch_jax.layers.norms import RMSNorm


@pytest.mark.parametrize("shape", [(3,), (2, 3), (4, 2, 3), (2, 1, 4, 3), (0, 2, 3)])
@pytest.mark.parametrize("biased", [True, False])
def test_it_is_the_product_plus_the_bias(shape, biased):
    rng = np.random.default_rng(0)
    x, kernel, bias = (rng.normal(size=size).astype(np.float32) for size in (shape, (3, 5), (5,)))
    found = jax.jit(affine)(x, kernel, bias if biased else None)
    assert found.shape == (*shape[:-1], 5)
    np.testing.assert_allclose(found, x.astype(float) @ kernel + (bias if biased else 0), atol=1e-6)


def test_the_gradient_is_that_of_sums_over_all_rows():
    rng = np.random.default_rng(1)
    x, kernel, bias, c = (rng.normal(size=size).astype(np.float32) for size in ((4, 2, 3), (3, 5), (5,), (4, 2, 5)))
    d_x, d_kernel, d_bias = jax.jit(lambda *given: jax.vjp(affine, *given)[1](c))(x, kernel, bias)
    np.testing.assert_allclose(d_x, c.astype(float) @ kernel.T, atol=1e-5)
    np.testing.assert_allclose(d_kernel, np.einsum("abi,abo->io", x.astype(float), c), atol=1e-5)
    np.testing.assert_allclose(d_bias, c.sum((0, 1), dtype=float), atol=1e-5)


def test_layers_at_once_are_the_layers():
    x = np.random.default_rng(2).normal(size=(2, 4, 3)).astype(np.float32)
    draw = jax.random.normal
    layers = [Dense(n, initial=draw, initial_bias=draw) for n in (5, 2)]
    bound = [layer.bind(jax.jit(layer.init)(jax.random.key(i), x)) for i, layer in enumerate(layers)]
    for found, layer in zip(joint(jnp.asarray(x), bound), bound):
        values = layer.variables["params"]
        np.testing.assert_allclose(found, x.astype(float) @ values["kernel"] + np.asarray(values["bias"]), atol=1e-5)


def test_a_table_looks_up_and_attends():
    layer = Embedding(6, 3, initial_std=1.0)
    variables = jax.jit(layer.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    table = np.asarray(variables["params"]["embedding"])
    for dtype in (jnp.int32, jnp.int8):
        found = layer.apply(variables, jnp.array([[4, 0], [1, 6]], dtype))
        np.testing.assert_array_equal(found[0], table[[4, 0]])
        assert np.isnan(found[1, 1]).all(), "an index outside"
    outside = layer.apply(variables, jnp.array([-1, -6, -7, 6, 2**31 - 1, 5]))
    assert np.isnan(outside[:5]).all()
    np.testing.assert_array_equal(outside[5], table[5])
    np.testing.assert_allclose(layer.apply(variables, found[:1], method="attend"), found[:1] @ table.T, atol=1e-6)


def test_what_is_added_to_a_stream_does_not_overflow_in_float16():
    """Its products are summed in float32, and so is the bias; the norm that reads the stream returns to float16."""
    x = jnp.full((2, 8), 300.0, jnp.float16)
    kernel, bias = np.full((8, 4), 300.0, np.float32), np.arange(4, dtype=np.float32)
    layer = Dense(4, dtype=jnp.float16, to_stream=True)
    variables = jax.tree.map(jnp.asarray, {"params": {"kernel": kernel, "bias": bias}})
    y = layer.apply(variables, x)
    np.testing.assert_array_equal(y, np.broadcast_to(720_000 + bias, (2, 4)))
    slope = jax.grad(lambda v: layer.apply(v, x).sum())(variables)["params"]["kernel"]
    np.testing.assert_array_equal(slope, np.full((8, 4), 600.0))
    assert np.isinf(Dense(4, dtype=jnp.float16).apply(variables, x)).all()
    for dtype in (jnp.bfloat16, jnp.float32):  # whose range is wide enough
        assert Dense(4, dtype=dtype, to_stream=True).apply(variables, x).dtype == dtype
    scale = {"params": {"scale": jnp.ones(4)}}
    stream = jnp.asarray([[1e6, -1e6, 3e5, 0]], jnp.float32)
    normed = RMSNorm(dtype=jnp.float16).apply(scale, stream)
    assert normed.dtype == jnp.float16
    np.testing.assert_allclose(normed, RMSNorm().apply(scale, stream), rtol=1e-3)
