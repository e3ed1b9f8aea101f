"""Sampling: the filters against numpy and transformers, and the frequencies of what is drawn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax.errors import UsageError
from arch_jax.ops.token_sampling import filter_logits, sample

SETTINGS = [
    {"top_k": 1},
    {"top_k": 3},
    {"top_k": 50},
    {"top_p": 0.5},
    {"top_p": 0.9},
    {"top_p": 1e-9},
    {"top_p": 1.0},
    {"temperature": 0.5, "top_k": 4, "top_p": 0.7},
    {"temperature": 2.0, "top_p": 0.3},
]


def random_logits(seed=0, rows=6, vocabulary=9):
    return np.random.default_rng(seed).normal(size=(rows, vocabulary)).astype(np.float32) * 2


def by_hand(row, temperature=1.0, top_k=None, top_p=None):
    """One row, filtered in numpy: sort from the most likely down, stop when the probability reaches p."""
    row = row.astype(np.float64) / temperature
    kept = np.full(row.shape, -np.inf)
    order = np.argsort(-row)[: top_k or len(row)]
    probabilities = np.exp(row[order]) / np.exp(row[order]).sum()
    sum_before = 0.0
    for token, probability in zip(order, probabilities):
        if top_p is None or sum_before < top_p:
            kept[token] = row[token]
        sum_before += probability
    return kept


@pytest.mark.parametrize("settings", SETTINGS)
def test_filter_equals_numpy(settings):
    logits = random_logits()
    got = jax.jit(functools.partial(filter_logits, **settings))(logits)
    np.testing.assert_allclose(got, [by_hand(row, **settings) for row in logits], rtol=1e-5)


@pytest.mark.parametrize("settings", SETTINGS)
def test_filter_equals_transformers(settings):
    pytest.importorskip("transformers", reason="transformers is not installed")
    import torch
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    ties = np.asarray([[1, 1, 1, 1], [0, 2, 2, 0], [3, 0, 0, 0]], np.float32)
    if settings.get("top_p", 1) < 1:
        ties = ties[2:]  # transformers' unstable sort leaves open which of equal tokens goes
    for logits in (random_logits(), random_logits(1), ties):
        expected = torch.tensor(logits)
        if "temperature" in settings:
            expected = TemperatureLogitsWarper(settings["temperature"])(None, expected)
        if "top_k" in settings:
            expected = TopKLogitsWarper(settings["top_k"])(None, expected)
        if "top_p" in settings:
            expected = TopPLogitsWarper(settings["top_p"])(None, expected)
        np.testing.assert_allclose(filter_logits(jnp.asarray(logits), **settings), expected.numpy(), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("temperature", [1e-2, 1e-20, 1e-37, 1e-38, 1e-45, 1e-300])
def test_the_lower_the_temperature_the_nearer_to_the_likeliest(temperature, dtype):
    """Not token 0, which is what is drawn where all are infinite."""
    rows = [[1.0, 3.0, 2.0], [-9.0, -5.0, -3.0], [0.0, -1.0, 88.0], [-np.inf, 400.0, -400.0], [-np.inf, -np.inf, -5.0]]
    logits = jnp.asarray(rows, dtype)
    for settings in ({}, {"top_k": 2}, {"top_p": 0.9}):
        filtered = filter_logits(logits, temperature=temperature, **settings)
        assert not jnp.isnan(filtered).any()
        drawn = jax.vmap(lambda key, s=settings: sample(key, logits, temperature=temperature, **s))(
            jax.random.split(jax.random.key(0), 20)
        )
        np.testing.assert_array_equal(drawn, np.broadcast_to([1, 2, 2, 1, 2], (20, 5)))
    tied = sample(jax.random.key(0), jnp.zeros((400, 2), dtype), temperature=temperature)
    assert 120 < int(tied.sum()) < 280  # no order where there is none


def test_ties():
    logits = jnp.asarray([[1.0, 2.0, 1.0, 1.0]])
    kept = lambda **kw: np.isfinite(filter_logits(logits, **kw))[0].tolist()
    assert kept(top_k=2) == [True] * 4  # all that equal the second
    assert kept(temperature=0) == [False, True, False, False]
    equal = jnp.zeros((1, 4))
    assert np.isfinite(filter_logits(equal, top_p=0.5)).sum() == 2  # exactly half is enough
    assert np.isfinite(filter_logits(equal, top_p=0.500001)).sum() == 3
    assert np.isfinite(filter_logits(equal, temperature=0)).sum() == 1


def test_excluded_tokens_stay_excluded():
    logits = np.asarray([[-np.inf, 0.0, 1.0]], np.float32)
    every = jax.jit(lambda logits: [filter_logits(logits, **settings) for settings in SETTINGS])
    for settings, filtered in zip(SETTINGS, every(logits), strict=True):
        assert np.asarray(filtered)[0, 0] == -np.inf, settings


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7, "top_k": 6, "top_p": 0.8}])
def test_frequencies(settings):
    """Chi-square of 20,000 draws against the softmax of numpy's filter; 0.999 quantile of 8 degrees of freedom."""
    row = random_logits(3, rows=1)[0]
    drawn = jax.jit(functools.partial(sample, **settings))
    draws = drawn(jax.random.key(5), np.tile(row, (20_000, 1)))
    assert draws.dtype == jnp.int32
    kept = by_hand(row, **settings)
    expected = 20_000 * np.exp(kept) / np.exp(kept).sum()
    counts = np.bincount(draws, minlength=len(row))
    assert not counts[expected == 0].any()
    possible = expected > 0
    assert ((counts - expected)[possible] ** 2 / expected[possible]).sum() < 26.1


def test_greedy_takes_the_largest_and_needs_no_luck():
    logits = jnp.asarray(random_logits())
    for seed in range(3):
        np.testing.assert_array_equal(sample(jax.random.key(seed), logits, temperature=0), logits.argmax(-1))
    np.testing.assert_array_equal(sample(jax.random.key(0), logits, top_k=1), logits.argmax(-1))


def test_both_kinds_of_key_jit_and_bfloat16():
    logits = jnp.asarray(random_logits(), jnp.bfloat16)
    for key in (jax.random.key(1), jax.random.PRNGKey(1)):
        drawn = jax.jit(functools.partial(sample, top_p=0.9))(key, logits)
        np.testing.assert_array_equal(drawn, sample(key, logits, top_p=0.9))
    assert filter_logits(logits).dtype == jnp.float32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.5}, "temperature is -0.5"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"top_p": float("nan")}, "top_p is nan"),
    ],
)
def test_mistakes_are_named(settings, message):
    with pytest.raises(UsageError, match=f"{message}; expected"):
        sample(jax.random.key(0), jnp.zeros((1, 3)), **settings)
