"""Latent attention: its cache holds the latents alone, and never keys or values of the heads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax.errors import UsageError
from arch_jax.layers.mixers.latent_attention import LatentAttention
from arch_jax.layers.mixers.linear_attention import LinearAttention, Linformer, Performer


def test_the_cache_holds_the_latent_and_one_rotated_key():
    layer = LatentAttention(heads=16, kv_rank=12, head_size=8, rope_size=4)
    state = layer.initial_state(3, 20, 64)
    assert [x.shape for x in state.entries] == [(3, 20, 12), (3, 20, 4)]


def test_decoding_makes_no_keys_or_values_of_the_heads():
    """In the absorbed form nothing as large as every head's keys, "length heads head_size", comes up."""
    layer, length, width = LatentAttention(heads=8, kv_rank=6, head_size=32, rope_size=4), 256, 16
    x = jax.ShapeDtypeStruct((1, 1, width), jnp.float32)
    variables = jax.eval_shape(layer.init, jax.random.key(0), x)
    state = jax.eval_shape(lambda: layer.initial_state(1, length, width))
    jaxpr = jax.make_jaxpr(lambda v, x, s: layer.apply(v, x, None, s))(variables, x, state)

    def largest(jaxpr):
        sizes = [v.aval.size for eqn in jaxpr.eqns for v in eqn.outvars if hasattr(v.aval, "size")]
        inner = [largest(p.jaxpr) for e in jaxpr.eqns for p in e.params.values() if hasattr(p, "jaxpr")]
        return max([*sizes, *inner, 0])

    assert largest(jaxpr.jaxpr) < length * 8 * 32 / 2


def test_a_linear_state_does_not_grow_with_the_length():
    for layer in (LinearAttention(heads=2), Performer(heads=2, random_features=5)):
        sizes = [sum(x.size for x in jax.tree.leaves(layer.initial_state(2, n, 16))) for n in (8, 8000)]
        assert sizes[0] == sizes[1]
    assert Performer(heads=2, random_features=5).initial_state(2, 8, 16).s.shape == (2, 2, 5, 8)


def test_performers_features_come_from_the_seed_and_are_no_parameters():
    x = np.random.default_rng(0).normal(size=(1, 6, 16)).astype(np.float32)
    layers = [Performer(heads=2, random_features=3, initial_std=None, seed=seed) for seed in (0, 0, 1)]
    variables = jax.jit(layers[0].init)(jax.random.key(1), x)
    assert sum(p.size for p in jax.tree.leaves(variables)) == 4 * 16 * 16
    first, again, other = (np.asarray(jax.jit(layer.apply)(variables, x)[0]) for layer in layers)
    assert np.array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


def test_mistakes_are_named():
    x = jnp.zeros((1, 6, 16))
    key = jax.random.key(0)
    cases = [
        (lambda: LatentAttention(kv_rank=0), "kv_rank of latent_attention is 0; expected"),
        (lambda: LatentAttention(rope_size=3), "rope_size of latent_attention is 3; expected an even .* nearest is 4"),
        (lambda: LatentAttention(causal=False).initial_state(1, 1, 1), "causal=False has no state"),
        (lambda: LinearAttention(heads=3).init(key, x), "width 16 is not divisible by heads 3"),
        (
            lambda: LinearAttention(heads=2, feature_map="elo").init(key, x),
            "feature map .* 'elo'; the nearest is 'elu'",
        ),
        (lambda: LinearAttention(heads=2, chunk=0).init(key, x), "chunk is 0; expected at least 1"),
        (lambda: Performer(heads=2, random_features=0).init(key, x), "random_features is 0; expected at least 1"),
        (lambda: Linformer(rank=0), "rank of linformer is 0; expected"),
        (lambda: Linformer(heads=2, length=5).init(key, x), "6 positions; expected at most 5"),
    ]
    for call, message in cases:
        with pytest.raises(UsageError, match=message):
            call()
