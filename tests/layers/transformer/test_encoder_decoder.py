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
from arch_jax.layers.transformer.feed_forward import MLP
from arch_jax.layers.transformer.positions import LearnedPosition
from arch_jax.sampling import beam_search

OWN = {"decoder_mixer": Attention(heads=2, head_size=6), "decoder_feed_forward": MLP(hidden=20)}
NAMES = {"transformer-base": {}, "t5-small": {}, "t5-v1.1-small": {"decoder_depth": 3, **OWN}}
#: T5 v1.1 has what T5 has, and gates in its feed-forward layers.
every = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.thorough] * (name == "t5-small")) for name in NAMES]
)


@functools.partial(jax.jit, static_argnums=0, static_argnames="method")
def applied(module, variables, *arguments, method=None):
    """Compiled whole, once for all tests of the same module."""
    return module.apply(variables, *arguments, method=method)


@functools.cache
def made(name):
    module = registry.entry(name).tiny().clone(dropout=0.0, **NAMES[name])
    rng = np.random.default_rng(0)
    source, target = (jnp.asarray(rng.integers(0, 32, (3, n)), jnp.int32) for n in (7, 6))
    mask = jnp.arange(7) < jnp.array([[7], [4], [5]])

    @jax.jit
    def noisy(key):
        variables = module.init(key, source, target)
        return jax.tree.map(lambda p: p + 0.1 * jax.random.normal(jax.random.key(1), p.shape), variables)

    return module, noisy(jax.random.key(0)), source, target, mask


@functools.cache
def whole(name):
    return np.asarray(applied(*made(name)))


#: The Transformer's own steps are compared with the whole by beam search's tests.
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.thorough) for name in NAMES])
def test_decoding_in_any_chunks_is_the_whole(name):
    module, variables, source, target, mask = made(name)
    memory = applied(module, variables, source, mask, method="encode")
    state = jax.jit(lambda variables: module.apply(variables, memory, mask, 6, method="start"))(variables)
    start, out = 0, []
    for length in (1, 1, 3, 1):
        part = np.asarray(target)[:, start : start + length]
        logits, state = applied(module, variables, part, state, method="decode")
        assert state.memory is None, "the memory's keys and values are computed once"
        out.append(logits)
        start += length
    np.testing.assert_allclose(np.concatenate(out, axis=1), whole(name), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.thorough] * (name != "t5-v1.1-small")) for name in NAMES]
)
def test_padding_of_the_source_leaves_no_trace(name):
    module, variables, source, target, mask = made(name)
    alone = applied(module, variables, np.asarray(source)[1:2, :4], np.asarray(target)[1:2])
    np.testing.assert_allclose(whole(name)[1:2], alone, atol=2e-5, rtol=1e-4)
    other = np.where(mask, source, 9)
    np.testing.assert_array_equal(applied(module, variables, other, target, mask), whole(name))


@every
def test_targets_do_not_look_ahead_and_sources_are_read_both_ways(name):
    module, variables, source, target, mask = made(name)
    moved_at = lambda tokens, place: np.asarray(tokens) + (np.arange(tokens.shape[1]) == place).astype(np.int32)
    before = whole(name)
    later = np.asarray(applied(module, variables, source, moved_at(target, 4), mask))
    np.testing.assert_array_equal(later[:, :4], before[:, :4])
    assert np.abs(later[:, 4] - before[:, 4]).max() > 1e-3
    encode = lambda source: np.asarray(applied(module, variables, source, mask, method="encode"))
    apart = np.abs(encode(moved_at(source, 3)) - encode(source)).max(axis=(0, 2))
    assert np.all(apart[:3] > 1e-4), "earlier places see later ones"


@every
def test_unrolled_is_the_same_model(name):
    module, variables, source, target, mask = made(name)
    apart, layers = module.unrolled(variables)
    assert not apart.scan
    found = applied(apart, layers, source, target, mask)
    np.testing.assert_allclose(found, whole(name), atol=1e-5, rtol=1e-4)


def test_without_positions_the_encoder_is_permutation_equivariant():
    """Attention Is All You Need, section 3.5: it is the positions that tell the order."""
    module, variables, source, _, _ = made("transformer-base")
    source, order = np.asarray(source), np.array([3, 0, 6, 1, 5, 2, 4])
    encode = lambda m, s: np.asarray(applied(m, variables, s, method="encode"))
    blind = module.clone(position=None)
    np.testing.assert_allclose(encode(blind, source[:, order]), encode(blind, source)[:, order], atol=1e-5)
    assert np.abs(encode(module, source[:, order]) - encode(module, source)[:, order]).max() > 0.1


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
        def __call__(self, x, segment_ids=None, train=False):
            return x**2

    x = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
    block = Block(Triple(), LayerNorm(), Square(), placement=placement)
    (found, _), variables = jax.jit(block.init_with_output)(jax.random.key(1), x)
    norm = lambda x: (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    expected = x
    for part in (lambda x: 3 * x, np.square):
        expected = {
            "pre": lambda x, f=part: x + f(norm(x)),
            "post": lambda x, f=part: norm(x + f(x)),
            "sandwich": lambda x, f=part: x + norm(f(norm(x))),
        }[placement](expected)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert len(variables["params"]) == (4 if placement == "sandwich" else 2)


def test_sizes_out_of_range():
    with pytest.raises(UsageError, match="decoder_depth is 0; expected at least 1"):
        arch_jax.create("t5-small", decoder_depth=0)
    module = arch_jax.create("transformer-base", vocabulary=9, depth=1, width=10, **{"feed_forward.hidden": 4})
    tokens = jnp.ones((1, 2), jnp.int32)
    with pytest.raises(UsageError, match="width 10 is not divisible by heads 8; the nearest"):
        jax.eval_shape(module.init, jax.random.key(0), tokens, tokens)
    cross = module.clone(mixer=Attention(heads=2))
    with pytest.raises(UsageError, match="width 10 is not divisible by heads 8; the nearest"):
        jax.eval_shape(cross.init, jax.random.key(0), tokens, tokens)
    short = cross.clone(cross=cross.cross.clone(heads=5), position=LearnedPosition(length=3))
    with pytest.raises(UsageError, match="a sequence of 4 tokens is longer than the table of 3"):
        beam_search(short, {"params": {}}, np.ones((1, 4), np.int32), 2, start=0, stop=None)


def test_bert_heads():
    entry = registry.entry("bert-base")
    module = entry.tiny().clone(classes=5, embedding=True)
    batch = entry.inputs.resized(module).batch(module, 3, jax.random.key(0))
    arguments = entry.arguments(batch)
    variables = jax.jit(module.init)(jax.random.key(1), *arguments)
    found = applied(module, variables, *arguments)
    assert {name: x.shape for name, x in found.items()} == {
        "hidden": (3, 12, 16),
        "pooled": (3, 16),
        "logits": (3, 12, 32),
        "next": (3, 2),
        "classes": (3, 5),
        "embedding": (3, 16),
    }
    np.testing.assert_allclose(np.linalg.norm(found["embedding"], axis=-1), 1, atol=1e-5)
    tokens, types, mask = arguments
    moved = applied(module, variables, jnp.where(mask, tokens, 5), types, mask)
    chex.assert_trees_all_close(moved["embedding"], found["embedding"])  # padding counts for nothing
    plain = module.clone(pooler=False, following=False, classes=None, masked=False, embedding=False)
    assert set(jax.eval_shape(plain.apply, variables, *arguments)) == {"hidden"}
    with pytest.raises(UsageError, match="pooler is false, but following and classes read"):
        module.clone(pooler=False)
