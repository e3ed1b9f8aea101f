"""Encoder-decoders: decoding equals the whole, padding leaves no trace, and the Transformer's own symmetries."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import arch_jax
from arch_jax import registry
from arch_jax.errors import UsageError
from arch_jax.layers.mixers.attention import Attention
from arch_jax.layers.norms import LayerNorm
from arch_jax.layers.transformer.block import Block
from arch_jax.layers.transformer.positions import LearnedPosition
from arch_jax.sampling import beam_search

NAMES = {"transformer-base": {}, "t5-small": {}, "t5-v1.1-small": {"decoder_depth": 3}}
every = pytest.mark.parametrize("name", NAMES)


@functools.cache
def made(name):
    module = registry.entry(name).tiny().clone(dropout=0.0, **NAMES[name])
    rng = np.random.default_rng(0)
    source, target = (jnp.asarray(rng.integers(0, 32, (3, n)), jnp.int32) for n in (7, 6))
    mask = jnp.arange(7) < jnp.array([[7], [4], [5]])
    variables = jax.jit(module.init)(jax.random.key(0), source, target)
    noisy = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(jax.random.key(1), p.shape), variables)
    return module, noisy, source, target, mask


@every
@pytest.mark.parametrize("lengths", [[1] * 6, [2, 3, 1]])
def test_decoding_in_any_chunks_is_the_whole(name, lengths):
    module, variables, source, target, mask = made(name)
    whole = jax.jit(module.apply)(variables, source, target, mask)
    memory = module.apply(variables, source, mask, method="encode")
    state = module.apply(variables, memory, mask, 6, method="start")
    decode = jax.jit(functools.partial(module.apply, method="decode"))
    start, out = 0, []
    for length in lengths:
        logits, state = decode(variables, target[:, start : start + length], state)
        assert state.memory is None, "the memory's keys and values are computed once"
        out.append(logits)
        start += length
    np.testing.assert_allclose(jnp.concatenate(out, axis=1), whole, atol=2e-5, rtol=1e-4)


@every
def test_padding_of_the_source_leaves_no_trace(name):
    module, variables, source, target, mask = made(name)
    whole = module.apply(variables, source, target, mask)
    alone = module.apply(variables, source[1:2, :4], target[1:2])
    np.testing.assert_allclose(whole[1:2], alone, atol=2e-5, rtol=1e-4)
    other = jnp.where(mask, source, 9)
    np.testing.assert_array_equal(module.apply(variables, other, target, mask), whole)


@every
def test_targets_do_not_look_ahead_and_sources_are_read_both_ways(name):
    module, variables, source, target, mask = made(name)
    apply = jax.jit(module.apply)
    whole = apply(variables, source, target, mask)
    later = apply(variables, source, target.at[:, 4].add(1), mask)
    np.testing.assert_array_equal(later[:, :4], whole[:, :4])
    assert jnp.abs(later[:, 4] - whole[:, 4]).max() > 1e-3
    memory = module.apply(variables, source, mask, method="encode")
    changed = module.apply(variables, source.at[:, 3].add(1), mask, method="encode")
    assert jnp.all(jnp.abs(changed - memory).max(axis=(0, 2))[:3] > 1e-4), "earlier places see later ones"


@every
def test_unrolled_is_the_same_model(name):
    module, variables, source, target, mask = made(name)
    apart, layers = module.unrolled(variables)
    assert not apart.scan
    np.testing.assert_allclose(
        apart.apply(layers, source, target, mask), module.apply(variables, source, target, mask), atol=1e-5, rtol=1e-4
    )


def test_without_positions_the_encoder_is_permutation_equivariant():
    """Attention Is All You Need, section 3.5: it is the positions that tell the order."""
    module, variables, source, _, _ = made("transformer-base")
    order = jnp.array([3, 0, 6, 1, 5, 2, 4])
    encode = lambda m, s: m.apply(variables, s, method="encode")
    blind = module.clone(position=None)
    np.testing.assert_allclose(encode(blind, source[:, order]), encode(blind, source)[:, order], atol=1e-5)
    assert jnp.abs(encode(module, source[:, order]) - encode(module, source)[:, order]).max() > 0.1


def test_tables_of_source_and_target():
    """Shared: one table for source, target and output. Apart: three."""
    shapes = {}
    for shared, tied in ((True, True), (False, True), (False, False)):
        module = arch_jax.create("transformer-base", vocabulary=40, depth=1, shared=shared, tied=tied)
        found = registry.entry("transformer-base").abstract_variables(module)["params"]
        shapes[shared, tied] = sorted(name for name in found if "embedding" in name or name == "logits")
    assert shapes[True, True] == ["embedding"]
    assert shapes[False, True] == ["embedding", "source_embedding"]
    assert shapes[False, False] == ["embedding", "logits", "source_embedding"]


@pytest.mark.parametrize("placement", ["pre", "post", "sandwich"])
def test_where_norms_stand(placement):
    """Each placement against its formula, with parts that can be computed by hand."""
    import flax.linen as nn

    class Triple(nn.Module):
        def __call__(self, x, segment_ids=None, state=None, train=False):
            return 3 * x, None

    class Square(nn.Module):
        def __call__(self, x):
            return x**2

    x = jax.random.normal(jax.random.key(0), (2, 3, 8))
    block = Block(Triple(), LayerNorm(), Square(), placement=placement)
    variables = block.init(jax.random.key(1), x)
    norm = lambda x: (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
    expected = x
    for part in (lambda x: 3 * x, jnp.square):
        expected = {
            "pre": lambda x, f=part: x + f(norm(x)),
            "post": lambda x, f=part: norm(x + f(x)),
            "sandwich": lambda x, f=part: x + norm(f(norm(x))),
        }[placement](expected)
    np.testing.assert_allclose(block.apply(variables, x)[0], expected, atol=1e-5)
    assert len(variables["params"]) == (4 if placement == "sandwich" else 2)


def test_sizes_out_of_range():
    with pytest.raises(UsageError, match="decoder_depth is 0; expected at least 1"):
        arch_jax.create("t5-small", decoder_depth=0)
    module = arch_jax.create("transformer-base", vocabulary=9, depth=1, width=10, **{"feed_forward.hidden": 4})
    tokens = jnp.ones((1, 2), jnp.int32)
    with pytest.raises(UsageError, match="width 10 is not divisible by heads 8; the nearest"):
        module.init(jax.random.key(0), tokens, tokens)
    cross = module.clone(mixer=Attention(heads=2))
    with pytest.raises(UsageError, match="width 10 is not divisible by heads 8; the nearest"):
        cross.init(jax.random.key(0), tokens, tokens)
    short = cross.clone(cross=cross.cross.clone(heads=5), position=LearnedPosition(length=3))
    with pytest.raises(UsageError, match="a sequence of 4 tokens is longer than the table of 3"):
        beam_search(short, {}, np.ones((1, 4), np.int32), 2, start=0, stop=None)


def test_bert_heads():
    entry = registry.entry("bert-base")
    module = entry.tiny().clone(classes=5, embedding=True)
    batch = entry.inputs.resized(module).batch(module, 3, jax.random.key(0))
    arguments = entry.arguments(batch)
    variables = module.init(jax.random.key(1), *arguments)
    found = module.apply(variables, *arguments)
    assert {name: x.shape for name, x in found.items()} == {
        "hidden": (3, 12, 16),
        "pooled": (3, 16),
        "logits": (3, 12, 32),
        "next": (3, 2),
        "classes": (3, 5),
        "embedding": (3, 16),
    }
    np.testing.assert_allclose(jnp.linalg.norm(found["embedding"], axis=-1), 1, atol=1e-5)
    tokens, types, mask = arguments
    moved = module.apply(variables, jnp.where(mask, tokens, 5), types, mask)
    chex.assert_trees_all_close(moved["embedding"], found["embedding"])  # padding counts for nothing
    plain = module.clone(pooler=False, following=False, classes=None, masked=False, embedding=False)
    assert set(plain.apply(variables, *arguments)) == {"hidden"}
    with pytest.raises(UsageError, match="pooler is false, but following and classes read"):
        module.clone(pooler=False)
