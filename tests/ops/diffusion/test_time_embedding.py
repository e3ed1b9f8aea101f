"""Time as sines and cosines: against its definition, and its ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax.errors import UsageError
from arch_jax.ops.diffusion.time_embedding import (
    fourier_features,
    fourier_features_reference,
    time_embedding,
    time_embedding_reference,
)

TIMES = [0.0, 0.25, 41.0, 999.0]


@pytest.mark.parametrize(
    ("features", "options"),
    [(8, {}), (8, {"shift": 1}), (9, {"cosine_first": True}), (4, {"shift": 1.0, "period": 50.0})],
)
def test_it_is_its_definition(features, options):
    with jax.enable_x64(True):
        made = time_embedding(jnp.array(TIMES, float), features, **options)
        assert made.dtype == jnp.float64
        np.testing.assert_allclose(made, time_embedding_reference(TIMES, features, **options), atol=1e-12)


@pytest.mark.parametrize("cosine_first", [False, True])
def test_fourier_features_are_their_definition(cosine_first):
    frequencies = np.array([0.3, -2.0, 16.5])
    with jax.enable_x64(True):
        made = fourier_features(jnp.array(TIMES, float), jnp.asarray(frequencies), cosine_first)
        assert made.dtype == jnp.float64
    np.testing.assert_allclose(made, fourier_features_reference(TIMES, frequencies, cosine_first), atol=1e-10)
    half = fourier_features(jnp.array(TIMES[:2], jnp.bfloat16), jnp.array(frequencies, jnp.bfloat16))
    assert half.dtype == jnp.float32


def test_half_a_time_is_computed_in_float32():
    made = time_embedding(jnp.array(TIMES, jnp.bfloat16), 6)
    assert made.dtype == jnp.float32
    np.testing.assert_allclose(made, time_embedding_reference([0, 0.25, 41, 1000], 6), atol=1e-4)


def test_the_lowest_frequency():
    """DDPM's shift makes it exactly 1 / period; without, there is a step to go."""
    last = lambda shift: float(jnp.arcsin(time_embedding(jnp.ones(1), 8, shift)[0, 3]))
    assert last(1) == pytest.approx(1e-4)
    assert last(0) == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("features", "options", "message"),
    [
        (1, {}, "has 1 features and a shift of 0; expected at least 2 features"),
        (2, {"shift": 1}, "has 2 features and a shift of 1; expected at least 4 features"),
        (4, {"period": 0}, "the period of the embedding of time is 0; expected a number above 0"),
    ],
)
def test_what_is_refused(features, options, message):
    with pytest.raises(UsageError, match=message):
        time_embedding(jnp.zeros(1), features, **options)
