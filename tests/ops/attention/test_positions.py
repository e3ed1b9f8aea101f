"""Position encodings: identities of the papers, the complex-number oracle, Llama 3.1's rule."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax.errors import UsageError
from arch_jax.ops.attention.positions import (
    apply_rope,
    apply_rope_reference,
    rope_frequencies,
    sinusoidal,
    sinusoidal_grid,
    sinusoidal_grid_reference,
)
from arch_jax.ops.attention.rope_scaling import Llama3Scaling


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_frequencies():
    np.testing.assert_allclose(rope_frequencies(8, 10_000), [1, 1e-1, 1e-2, 1e-3], rtol=1e-6)
    assert rope_frequencies(64, 500_000.0).shape == (32,)


# All of the 8 dimensions and positions that the batch shares; partial rotary and positions of each row's own.
@pytest.mark.parametrize(("half", "positions"), [(4, np.arange(6)), (3, [[0, 1, 2, 0, 1, 9], [5, 4, 3, 2, 1, 0]])])
def test_rotation_equals_multiplication_by_complex_units(half, positions):
    x, positions = random(2, 6, 3, 8), jnp.asarray(positions)
    frequencies = rope_frequencies(2 * half)
    weights = random(2, 6, 3, 8, seed=1)

    @functools.partial(jax.jit, static_argnums=0)
    def value_and_gradient(form, x):
        value, pull = jax.vjp(lambda x: form(x, positions, frequencies), x)
        return value, *pull(weights)

    (got, slope), expected = (value_and_gradient(form, x) for form in (apply_rope, apply_rope_reference))
    for ours, theirs in zip((got, slope), expected):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(got)[..., 2 * half :], np.asarray(x)[..., 2 * half :])


def test_scores_depend_on_the_difference_of_positions_only():
    with jax.enable_x64(True):
        q, k = (jnp.asarray(random(1, 5, 2, 8, seed=s), jnp.float64) for s in (0, 1))
        frequencies = rope_frequencies(8)
        assert frequencies.dtype == jnp.float64

        @jax.jit
        def scores(shift):
            positions = jnp.arange(5) + shift
            rotated = (apply_rope(x, positions, frequencies) for x in (q, k))
            return jnp.einsum("bthd,bshd->bhts", *rotated)

        np.testing.assert_allclose(scores(0), scores(1_000), rtol=0, atol=1e-10)
        apart = np.einsum("bthd,bshd->bhts", jax.jit(apply_rope)(q, jnp.arange(5), frequencies), k)
        assert np.abs(scores(0) - apart).max() > 0.1


def test_the_norm_of_every_head_is_kept():
    x = random(2, 6, 3, 8)
    x, rotated = map(np.asarray, (x, jax.jit(apply_rope)(x, 1_000 * np.arange(6), rope_frequencies(8))))
    np.testing.assert_allclose(np.linalg.norm(rotated, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5)
    assert np.abs(rotated - x)[:, 1:].max() > 0.1


def test_bfloat16_turns_by_float32_angles():
    """At position 4,000 a bfloat16 angle would be off by up to 8 radians."""
    x, positions, frequencies = random(1, 2, 1, 8), jnp.asarray([3999, 4000]), rope_frequencies(8)
    rotate = jax.jit(apply_rope)
    low = rotate(np.asarray(x).astype(jnp.bfloat16), positions, frequencies)
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(low, np.float32), rotate(x, positions, frequencies), atol=3e-2)


def test_llama3_scaling_by_its_rule():
    scaling = Llama3Scaling(factor=8.0, low_frequency_factor=1.0, high_frequency_factor=4.0, original_length=8192)
    plain = np.asarray(rope_frequencies(128, 500_000.0), np.float64)
    expected = []
    for f in plain:
        wavelength = 2 * math.pi / f
        if wavelength < 8192 / 4:
            expected.append(f)
        elif wavelength > 8192:
            expected.append(f / 8)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            expected.append((1 - smooth) * f / 8 + smooth * f)
    got = rope_frequencies(128, 500_000.0, scaling)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    ratio = np.asarray(got) / plain  # all three regions are met
    assert ratio[0] == 1
    np.testing.assert_allclose(ratio[-1], 1 / 8, rtol=1e-6)
    assert ((ratio > 0.13) & (ratio < 0.99)).any()


def test_llama3_scaling_equals_transformers():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rule = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 3.0}
    config = transformers.LlamaConfig(
        hidden_size=64,
        num_attention_heads=2,
        max_position_embeddings=2048,
        rope_parameters={**rule, "original_max_position_embeddings": 512},
    )
    expected, factor = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    assert factor == 1.0
    got = rope_frequencies(32, 5e5, Llama3Scaling(4.0, 1.0, 3.0, 512))
    np.testing.assert_allclose(got, expected.numpy(), rtol=2e-6)


def test_sinusoidal_by_its_definition():
    table = sinusoidal(50, 6)
    for position in (0, 1, 49):
        for i in range(3):
            angle = position / 10_000 ** (2 * i / 6)
            np.testing.assert_allclose(table[position, 2 * i], math.sin(angle), atol=1e-5)
            np.testing.assert_allclose(table[position, 2 * i + 1], math.cos(angle), atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rope_frequencies(7), "RoPE's dim is 7; .*the nearest is 8"),
        (lambda: rope_frequencies(8, -1.0), "theta is -1.0"),
        (lambda: apply_rope(jnp.ones((1, 2, 1, 6)), jnp.arange(2), jnp.ones(4)), "4 frequencies rotate 8 dimensions"),
        (lambda: sinusoidal(3, 5), "width is 5; .*the nearest is 6"),
        (lambda: sinusoidal(-1, 4), "length is -1"),
        (lambda: Llama3Scaling(factor=0.0), "factor of Llama3Scaling is 0.0"),
        (lambda: Llama3Scaling(low_frequency_factor=5.0), "5.0 \\(low\\) and 4.0 \\(high\\)"),
        (lambda: Llama3Scaling(original_length=0), "original_length of Llama3Scaling is 0"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(UsageError, match=message):
        call()


def test_a_grid_has_the_column_in_one_half_and_the_row_in_the_other():
    table = np.asarray(sinusoidal_grid(3, 5, 12))
    np.testing.assert_allclose(table, sinusoidal_grid_reference(3, 5, 12), atol=1e-6)
    places = table.reshape(3, 5, 2, 6)
    np.testing.assert_array_equal(places[:, :, 0], np.broadcast_to(places[:1, :, 0], (3, 5, 6)))
    np.testing.assert_array_equal(places[:, :, 1], np.broadcast_to(places[:, :1, 1], (3, 5, 6)))
    # Products depend on the distance alone, as those of one dimension do.
    products = table @ table.T
    np.testing.assert_allclose(products[0, 6], products[7, 13], rtol=1e-5)  # one down and one across
    np.testing.assert_allclose(np.diag(products), 6, rtol=1e-5)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [((2, 2, 10), "have 10 features; expected a multiple of 4, such as 8"), ((0, 2, 8), "the grid is 0 x 2")],
)
def test_a_grid_that_has_no_positions(sizes, said):
    with pytest.raises(UsageError, match=said):
        sinusoidal_grid(*sizes)
