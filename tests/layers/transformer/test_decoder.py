"""The decoder and its parts: initial loss, positions, dropout, remat, hybrids, unrolling, packed rows."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax import create
from arch_jax.errors import UsageError
from arch_jax.layers.mixers.attention import Attention
from arch_jax.layers.transformer.feed_forward import MLP, SwiGLU
from arch_jax.layers.transformer.positions import LearnedPosition, RoPE, SinusoidalPosition
from arch_jax.ops.attention.positions import sinusoidal
from arch_jax.ops.losses import cross_entropy

TOKENS = jax.random.randint(jax.random.key(9), (2, 10), 0, 32)
SMALL = {"vocabulary": 32, "depth": 2, "width": 16, "mixer.heads": 4}


@functools.partial(jax.jit, static_argnums=0, static_argnames="method")
def applied(module, variables, *arguments, method=None):
    """Compiled whole, once for all tests of the same module."""
    return module.apply(variables, *arguments, method=method)


@functools.partial(jax.jit, static_argnums=0)
def initial(model, tokens):
    return model.init(jax.random.key(0), tokens)


@functools.partial(jax.jit, static_argnums=0)
def stepped(model, variables, tokens, state, segment_ids=None):
    return model.apply(variables, tokens, segment_ids, state)


def made(name="gpt", **changes):
    model = create(name, **{**SMALL, **changes})
    return model, initial(model, TOKENS)


@pytest.mark.parametrize("name", ["gpt", pytest.param("gpt2", marks=pytest.mark.thorough), "llama2-7b"])
def test_loss_at_the_start_is_that_of_guessing(name):
    """Weights near 0 make every other token equally likely: ln V nats. (A tied output knows the token it reads.)"""
    model, variables = made(name, **({"mixer.kv_heads": 2, "feed_forward.hidden": 32} if "llama" in name else {}))
    logits = np.asarray(applied(model, variables, TOKENS), np.float64)
    right = np.take_along_axis(logits, (np.asarray(TOKENS)[..., None] + 7) % 32, axis=-1)[..., 0]
    nats = np.mean(np.log(np.exp(logits).sum(-1)) - right)
    assert abs(float(nats) - np.log(32)) < 0.05


@pytest.mark.parametrize(
    "position", [LearnedPosition(length=16), pytest.param(SinusoidalPosition(), marks=pytest.mark.thorough), None]
)
def test_only_positions_break_the_symmetry_of_order(position):
    """Without positions and causality, permuting the tokens permutes the outputs (1706.03762, section 3.5)."""
    mixer = Attention(heads=4, causal=False)
    model = create("gpt", **{**SMALL, "mixer.heads": 6}).clone(mixer=mixer, position=position)
    variables = initial(model, TOKENS)
    order = np.random.default_rng(1).permutation(TOKENS.shape[1])
    permuted, whole = (
        np.asarray(applied(model, variables, tokens)) for tokens in (np.asarray(TOKENS)[:, order], TOKENS)
    )
    same = np.allclose(permuted, whole[:, order], atol=1e-5)
    assert same == (position is None)


def test_rope_depends_on_differences_only():
    """Tokens that start at position 100 instead of 0 see the same: the state says where a row stands."""
    model, variables = made("gpt", depth=1)
    shifted = model.initial_state(2, 20)
    moved = lambda at, **by: at.replace(**{name: getattr(at, name) + n for name, n in by.items()})
    layers = tuple(layer.replace(at=moved(layer.at, last_position=100)) for layer in shifted.layers)
    logits, _ = stepped(model, variables, TOKENS, model.initial_state(2, 20))
    # The first id, 1, differs from the state's 0, so the run would start anew at 0: let the state have seen it.
    seen = tuple(layer.replace(at=moved(layer.at, last_id=1, last_run=1)) for layer in layers)
    moved, _ = stepped(model, variables, TOKENS, shifted.replace(layers=seen), np.ones(TOKENS.shape, np.int32))
    chex.assert_trees_all_close(moved, logits, atol=1e-5)


def test_sinusoidal_layer_gives_the_table():
    layer = SinusoidalPosition()
    table = layer.apply({}, jnp.arange(7), 16)
    chex.assert_trees_all_close(table, sinusoidal(7, 16), atol=1e-6)


def test_sequence_longer_than_the_table_is_refused():
    model, variables = made("gpt2", **{"position.length": 10})
    with pytest.raises(UsageError, match=r"11 tokens .* 10 learned positions"):
        applied(model, variables, np.zeros((1, 11), np.int32))
    with pytest.raises(UsageError, match="12 tokens"):
        model.initial_state(1, 12)


def test_token_outside_the_vocabulary_shows():
    model, variables = made()
    assert not np.isfinite(applied(model, variables, np.full((1, 3), 32, np.int32))).any()


def test_dropout_is_off_unless_training():
    model, variables = made("gpt2", dropout=0.5)
    quiet = [applied(model, variables, TOKENS) for _ in range(2)]
    chex.assert_trees_all_equal(*quiet)
    chex.assert_trees_all_close(quiet[0], applied(model.clone(dropout=0.0), variables, TOKENS))
    train = jax.jit(lambda key: model.apply(variables, TOKENS, train=True, rngs={"dropout": key}))
    loud = [train(jax.random.key(i)) for i in (0, 1, 0)]
    chex.assert_trees_all_equal(loud[0], loud[2])
    assert not np.allclose(loud[0], loud[1])


def test_dropout_differs_between_scanned_layers():
    """The same mask in every layer would be the equal-keys bug again."""
    model, variables = made("gpt2", dropout=0.5, depth=2)
    options = {"train": True, "capture_intermediates": True, "mutable": ["intermediates"]}
    run = jax.jit(lambda key: model.apply(variables, TOKENS, rngs={"dropout": key}, **options))
    _, captured = run(jax.random.key(0))
    dropped = np.asarray(captured["intermediates"]["stack"]["layers"]["block_0"]["Dropout_0"]["__call__"][0]) == 0
    assert dropped.shape[0] == 2
    assert (dropped[0] != dropped[1]).any()


@pytest.mark.parametrize("scan", [True, pytest.param(False, marks=pytest.mark.thorough)])
def test_remat_changes_no_value(scan):
    model, variables = made("gpt", scan=scan)
    of = lambda m, v: cross_entropy(m.apply(v, TOKENS), TOKENS).mean()
    loss = lambda m: jax.jit(jax.value_and_grad(functools.partial(of, m)))(variables)
    chex.assert_trees_all_close(loss(model), loss(model.clone(remat=True)), atol=1e-6)


def test_scanned_and_unrolled_are_the_same():
    model, variables = made("gpt2")
    flat, apart = model.unrolled(variables)
    assert set(apart["params"]["stack"]) == {"layer_0", "layer_1"}
    chex.assert_trees_all_close(applied(flat, apart, TOKENS), applied(model, variables, TOKENS), atol=1e-6)
    chex.assert_trees_all_equal_shapes(apart, jax.eval_shape(flat.init, jax.random.key(0), TOKENS))
    assert flat.unrolled(apart)[0] is flat


@pytest.mark.thorough
def test_scores_divided_by_the_layers_number():
    """Layer i, counted from 1, attends as one whose scale is 1 / i of theirs: scanned, unrolled and with a cache."""
    model, variables = made(**{"depth": 3, "mixer.initial_std": 1.0, "scan": True})
    model = model.clone(mixer=model.mixer.clone(scale_by_layer=True))
    apart, layers = model.unrolled(variables)
    assert not apart.scan
    found = applied(apart, layers, TOKENS)
    for i in range(3):  # the same by weights: a score is linear in the query
        query = layers["params"]["stack"][f"layer_{i}"]["mixer"]["query"]
        query["kernel"] = query["kernel"] / (i + 1)  # of a tree of its own: the scanned one keeps what it has
    plain = model.clone(mixer=model.mixer.clone(scale_by_layer=False))
    expected = applied(plain.clone(scan=False), layers, TOKENS)
    assert np.abs(expected - applied(plain, variables, TOKENS)).max() > 1e-3
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(applied(model, variables, TOKENS), expected, atol=1e-5)
    logits, state = stepped(model, variables, TOKENS[:, :5], model.initial_state(2, 10))
    np.testing.assert_allclose(logits, expected[:, :5], atol=1e-5)
    np.testing.assert_allclose(stepped(model, variables, TOKENS[:, 5:], state)[0], expected[:, 5:], atol=1e-5)


@pytest.mark.parametrize("depth", [4, 3])
def test_hybrid_takes_mixers_in_turn(depth):
    """Layer i takes mixer i modulo their number, scanned by turns where the depth is whole turns."""
    mixers = (Attention(heads=4, rope=RoPE()), Attention(heads=2, window=2))
    model = create("gpt2", **SMALL).clone(mixer=mixers, depth=depth)
    variables = initial(model, TOKENS)
    assert ("layers" in variables["params"]["stack"]) == (depth == 4)
    flat, apart = model.unrolled(variables)
    whole = applied(model, variables, TOKENS)
    chex.assert_trees_all_close(applied(flat, apart, TOKENS), whole, atol=1e-6)
    state, out = model.initial_state(2, 10), []
    for t in range(10):
        logits, state = stepped(model, variables, np.asarray(TOKENS)[:, t : t + 1], state)
        out.append(logits)
    chex.assert_trees_all_close(np.concatenate(out, axis=1), np.asarray(whole), atol=1e-5)


def test_one_instance_twice_in_a_tuple_has_parameters_of_its_own():
    mixer = Attention(heads=4)
    model = create("gpt", **SMALL).clone(mixer=(mixer, mixer), scan=True)
    block = jax.eval_shape(model.init, jax.random.key(0), TOKENS)["params"]["stack"]["layers"]
    assert set(block) == {"block_0", "block_1"}


@pytest.mark.parametrize("name", [pytest.param("gpt", marks=pytest.mark.thorough), "gpt2"])
def test_packed_rows_are_what_their_documents_are_alone(name):
    model, variables = made(name)
    ids = np.array([[1, 1, 1, 1, 2, 2, 2, 3, 3, 0], [1] * 10], np.int32)
    packed = np.asarray(applied(model, variables, TOKENS, ids))
    for start, stop in ((0, 4), (4, 7), (7, 9)):
        alone = np.asarray(applied(model, variables, np.asarray(TOKENS)[:1, start:stop]))
        chex.assert_trees_all_close(packed[:1, start:stop], alone, atol=1e-5)


def test_swiglu_hidden_width():
    """8/3 of the width, rounded up to a multiple; Llama 2 7B's 11,008 is 8/3 x 4096 rounded up to 256s."""
    layer = SwiGLU(multiple=256)
    shapes = jax.eval_shape(layer.init, jax.random.key(0), jnp.zeros((1, 4096)))["params"]
    assert shapes["gate"]["kernel"].shape == (4096, 11_008)


def test_unknown_activation_is_named():
    with pytest.raises(UsageError, match=r"'gelu_tan'.*'gelu_tanh'"):
        jax.eval_shape(MLP(activation="gelu_tan").init, jax.random.key(0), jnp.zeros((1, 4)))


@pytest.mark.parametrize("placement", ["pre", pytest.param("post", marks=pytest.mark.thorough)])
def test_a_stream_beyond_float16(placement):
    """What the blocks give sums to more than 65,504: with a cache and whole; gradients are finite too."""
    model, variables = made(placement=placement, scan=False)
    for layer in variables["params"]["stack"].values():
        layer["feed_forward"]["down"]["kernel"] = layer["feed_forward"]["down"]["kernel"] * 5e5
    half = model.clone(dtype=jnp.float16)
    exact = np.asarray(applied(model, variables, TOKENS))
    logits, _ = stepped(half, variables, TOKENS, half.initial_state(2, 10))
    assert logits.dtype == jnp.float16
    np.testing.assert_allclose(logits, exact, atol=0.02 * np.abs(exact).max())
    slope = jax.jit(jax.grad(lambda v: jnp.sum(half.apply(v, TOKENS).astype(jnp.float32))))(variables)
    chex.assert_tree_all_finite(slope)
