"""Relative positions: against their equations, and in every form that a layer takes them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax.errors import UsageError
from arch_jax.layers.mixers.attention import Attention
from arch_jax.layers.transformer.positions import ALiBi, RelativeBuckets, ShawPositions, SinusoidalPosition
from arch_jax.ops.attention.dot_product import attention
from arch_jax.ops.attention.positions import alibi_slopes, relative_buckets, relative_buckets_reference, sinusoidal
from arch_jax.ops.attention.relative import relative_attention, relative_attention_reference


def test_slopes_of_alibi():
    """The paper's examples (section 3): 8 heads from 1/2 to 1/256; 16 from 2^-0.5; other numbers take every second."""
    np.testing.assert_allclose(alibi_slopes(8), 2.0 ** -np.arange(1, 9))
    np.testing.assert_allclose(alibi_slopes(16), 2.0 ** (-np.arange(1, 17) / 2), rtol=1e-6)
    np.testing.assert_allclose(alibi_slopes(6), [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3])
    with pytest.raises(UsageError, match="heads is 0; expected at least 1"):
        alibi_slopes(0)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "longest"), [(32, 128), (8, 6), (4, 3)])
def test_buckets_in_exact_arithmetic(buckets, longest, bidirectional):
    distance = np.arange(-300, 300)
    expected = [relative_buckets_reference(int(d), buckets, longest, bidirectional) for d in distance]
    found = np.asarray(jax.jit(relative_buckets, static_argnums=(1, 2, 3))(distance, buckets, longest, bidirectional))
    # At the very border of two buckets float32 may put a distance on either side, as it does in the authors' code.
    assert np.abs(found - expected).max() <= 1
    assert np.mean(found != expected) < 0.01
    assert found.min() >= 0
    assert found.max() == buckets - 1 if bidirectional else found.max() <= buckets - 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"buckets": 3, "bidirectional": True}, "buckets is 3; expected at least 4"),
        ({"longest": 16}, "longest is 16, but"),
    ],
)
def test_bad_buckets(settings, message):
    with pytest.raises(UsageError, match=message):
        RelativeBuckets(**settings)


@pytest.mark.parametrize("values", [True, False])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_shaw_equals_a_key_for_every_pair(values, softcap):
    with jax.enable_x64(True):
        draw = np.random.default_rng(0)
        q = draw.normal(size=(2, 6, 4, 8))
        k, v = draw.normal(size=(2, 2, 7, 2, 8))
        tables = draw.normal(size=(2, 5, 8))
        distance = jnp.asarray(np.arange(6)[None, :, None] - np.arange(7))
        visible = draw.uniform(size=(2, 6, 7)) < 0.7
        visible[0, 2] = False  # a query that sees nothing
        visible = jnp.asarray(visible)

        def run(form):
            def loss(q, k, v, a, b):
                out = form(q, k, v, a, b if values else None, distance, visible, softcap=softcap)
                return jnp.sum(out * np.cos(np.arange(out.size).reshape(out.shape))), out

            return jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3, 4), has_aux=True))(q, k, v, *tables)

        (_, out), gradients = run(relative_attention)
        (_, expected), expected_gradients = run(relative_attention_reference)
        assert not np.any(np.asarray(out)[0, 2])
        np.testing.assert_allclose(out, expected, atol=1e-10)
        for a, b in zip(gradients, expected_gradients):
            np.testing.assert_allclose(a, b, atol=1e-10)


@pytest.mark.parametrize("causal", [True, pytest.param(False, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("relative", [ALiBi(), RelativeBuckets(buckets=8, longest=20), ShawPositions(longest=3)])
def test_a_layer_adds_what_its_distances_say(relative, causal):
    """The layer's shortcut (slopes, no distances) and its long way (ids, distances) are the same attention."""
    layer = Attention(heads=4, kv_heads=2, causal=causal, relative=relative)
    without = Attention(heads=4, kv_heads=2, causal=causal)

    @jax.jit
    def three(x):
        variables = layer.init(jax.random.key(1), x)
        variables = jax.tree.map(lambda p: p + 0.3 * jax.random.normal(jax.random.key(2), p.shape), variables)
        own = {name: value for name, value in variables["params"].items() if name != "by_distance"}
        with_ids = layer.apply(variables, x, jnp.ones((2, 9), jnp.int32))
        return layer.apply(variables, x)[0], with_ids[0], without.apply({"params": own}, x)[0]

    plain, with_ids, other = map(np.asarray, three(np.random.default_rng(0).normal(size=(2, 9, 16)).astype(np.float32)))
    np.testing.assert_allclose(plain, with_ids, atol=1e-5)
    assert np.abs(plain - other).max() > 1e-3


def test_alibi_is_a_bias():
    q, k, v = np.random.default_rng(0).normal(size=(3, 1, 7, 3, 4)).astype(np.float32)
    distance = np.abs(np.arange(7)[:, None] - np.arange(7))
    bias = -np.asarray(alibi_slopes(3))[None, :, None, None] * distance.astype(np.float32)
    form = jax.jit(functools.partial(attention, causal=True), static_argnames="implementation")
    expected = form(q, k, v, bias=bias)
    for implementation in ("reference", "xla"):
        found = form(q, k, v, alibi=alibi_slopes(3), implementation=implementation)
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_sines_in_two_orders():
    positions = jnp.arange(5)
    paper = SinusoidalPosition().apply({}, positions, 6)
    np.testing.assert_allclose(paper, sinusoidal(5, 6), atol=1e-6)
    marian = SinusoidalPosition(interleaved=False).apply({}, positions, 6)
    np.testing.assert_allclose(marian, jnp.concatenate([paper[:, 0::2], paper[:, 1::2]], axis=1), atol=1e-6)
