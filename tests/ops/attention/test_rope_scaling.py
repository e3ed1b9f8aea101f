"""RoPE stretched linearly: the identity of position interpolation, and its place among the settings."""

import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax import fields
from arch_jax.errors import UsageError
from arch_jax.layers.mixers.attention import Attention
from arch_jax.layers.transformer.positions import RoPE
from arch_jax.ops.attention.positions import apply_rope, rope_frequencies
from arch_jax.ops.attention.rope_scaling import LinearScaling, Llama3Scaling


def test_linear_scaling_divides_positions():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 3, 8)), jnp.float32)
    stretched = apply_rope(x, 4 * jnp.arange(6), rope_frequencies(8, 100.0, LinearScaling(4.0)))
    np.testing.assert_allclose(stretched, apply_rope(x, jnp.arange(6), rope_frequencies(8, 100.0)), atol=1e-6)
    assert jnp.abs(stretched - apply_rope(x, 4 * jnp.arange(6), rope_frequencies(8, 100.0))).max() > 0.1


def test_rope_applies_its_scaling():
    x = jnp.ones((1, 5, 1, 4))
    expected = apply_rope(x, jnp.arange(5), rope_frequencies(4) / 2)
    np.testing.assert_allclose(RoPE(scaling=LinearScaling(2.0))(x, jnp.arange(5)), expected, atol=1e-6)


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan")])
def test_a_bad_factor_is_named(factor):
    with pytest.raises(UsageError, match=r"factor of LinearScaling is .*; expected a number above 0"):
        LinearScaling(factor)


@pytest.mark.parametrize("scaling", [None, LinearScaling(3.0), Llama3Scaling(factor=4.0)])
def test_scalings_as_json(scaling):
    mixer = Attention(rope=RoPE(scaling=scaling))
    assert fields.from_json(fields.to_json(mixer)) == mixer


def test_scalings_by_name():
    mixer = Attention(rope=RoPE())
    changed = fields.override(mixer, {"rope.scaling": '{"module": "linear_scaling", "factor": 3}'})
    assert changed.rope.scaling == LinearScaling(3.0)
    assert fields.override(mixer, {"rope.scaling": "llama3_scaling"}).rope.scaling == Llama3Scaling()
    with pytest.raises(UsageError, match="nearest are 'linear_scaling'"):
        fields.override(mixer, {"rope.scaling": "liner_scaling"})
    with pytest.raises(UsageError, match="expected a rope_scaling"):
        fields.override(mixer, {"rope.scaling": "rope"})
