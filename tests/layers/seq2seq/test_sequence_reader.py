"""A reader of sequences of numbers: what it pools, what padding changes, and what stands between its two layers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import arch_jax
from arch_jax.errors import UsageError
from arch_jax.fields import from_json, to_json
from arch_jax.layers.mixers.attention import Attention
from arch_jax.layers.mixers.rnn.gru import GRU
from arch_jax.layers.mixers.rnn.lstm import LSTM
from arch_jax.layers.mixers.rnn.rnn import RNN
from arch_jax.layers.mixers.ssm.s4 import S4D
from arch_jax.layers.norms import LayerNorm
from arch_jax.layers.seq2seq.sequence_reader import SequenceReader
from arch_jax.layers.transformer.block import unrolled_variables
from arch_jax.layers.transformer.feed_forward import MLP
from arch_jax.layers.transformer.positions import LearnedPosition

WIDTH, TIME, FEATURES = 6, 5, 2
SMALL = {"width": WIDTH, "outputs": 3}
#: Two recurrences, chained; and residual blocks with norms, one of a pattern of two mixers.
PLAIN = SequenceReader(mixer=(GRU(), RNN()), depth=2, **SMALL)
RESIDUAL = SequenceReader(
    mixer=(S4D(state=4), LSTM()),
    feed_forward=MLP(hidden=7),
    norm=LayerNorm(),
    residual=True,
    depth=2,
    pooling="mean",
    scan=True,
    scale_residual=True,
    **SMALL,
)


def noisy(model, time=TIME):
    """Inputs, and parameters away from where they start."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, time, FEATURES)), jnp.float32)
    return x, perturbed(model, x)


@functools.partial(jax.jit, static_argnums=0)
def perturbed(model, x):
    variables = model.init(jax.random.key(1), x)
    return jax.tree.map(lambda p: p + 0.3 * jax.random.normal(jax.random.key(2), p.shape), variables)


@functools.partial(jax.jit, static_argnums=0)
def applied(model, *arguments):
    """One compiled program is quicker than many small ones, and serves all tests of the same model."""
    return model.apply(*arguments)


def norm(params, x):
    return applied(LayerNorm(), {"params": params}, x)


def dense(params, x):
    return x @ params["kernel"] + params["bias"]


def test_recurrences_are_chained():
    """Without residual connection and norm: the last output of one layer after the other, between two matrices."""
    x, variables = noisy(PLAIN)
    params = variables["params"]

    def by_hand(params, x):
        h = dense(params["input"], x)
        for i, mixer in enumerate(PLAIN.mixer):
            h, _ = mixer.apply({"params": params["stack"][f"layer_{i}"]["mixer"]}, h)
        return dense(params["output"], h[:, -1])

    np.testing.assert_allclose(applied(PLAIN, variables, x), jax.jit(by_hand)(params, x), atol=1e-6)
    assert set(params["stack"]["layer_0"]) == {"mixer"}
    assert set(params) == {"input", "stack", "output"}


@pytest.mark.thorough
def test_residual_blocks_are_those_of_a_decoder():
    x, variables = noisy(RESIDUAL)
    params = variables["params"]
    apart = params | {"stack": unrolled_variables({"params": params["stack"]}, 2)["params"]}

    def by_hand(params, x):
        h = dense(params["input"], x)
        for i, mixer in enumerate(RESIDUAL.mixer):
            block = params["stack"][f"layer_{i}"]
            h = h + mixer.apply({"params": block["mixer"]}, norm(block["mixer_norm"], h))[0]
            h = h + MLP(hidden=7).apply({"params": block["feed_forward"]}, norm(block["feed_forward_norm"], h))
        return dense(params["output"], norm(params["final_norm"], h).mean(axis=1))

    scanned = applied(RESIDUAL, variables, x)
    np.testing.assert_allclose(scanned, jax.jit(by_hand)(apart, x), atol=1e-5)
    np.testing.assert_allclose(scanned, applied(RESIDUAL.clone(scan=False), {"params": apart}, x), atol=1e-5)


@pytest.mark.parametrize("placement", ["pre", "post", pytest.param("sandwich", marks=pytest.mark.thorough)])
def test_where_norms_stand_without_sums(placement):
    model = SequenceReader(mixer=RNN(), norm=LayerNorm(), placement=placement, **SMALL)
    x, variables = noisy(model)
    params = variables["params"]
    block = params["stack"]["layer_0"]
    h = dense(params["input"], x)
    h = h if placement == "post" else norm(block["mixer_norm"], h)
    h, _ = applied(RNN(), {"params": block["mixer"]}, h)
    if placement != "pre":
        h = norm(block["mixer_norm" if placement == "post" else "mixer_output_norm"], h)
    if placement != "post":
        h = norm(params["final_norm"], h)
    np.testing.assert_allclose(applied(model, variables, x), dense(params["output"], h[:, -1]), atol=1e-5)


@pytest.mark.parametrize(
    ("model", "pooling"),
    [
        pytest.param(PLAIN, "last", id="plain-last"),
        pytest.param(RESIDUAL, "mean", id="residual-mean"),
        pytest.param(PLAIN, "mean", id="plain-mean", marks=pytest.mark.thorough),
        pytest.param(RESIDUAL, "last", id="residual-last", marks=pytest.mark.thorough),
    ],
)
def test_padding_changes_nothing(model, pooling):
    """In front, in the middle and at the end; a row of padding alone is answered without a look at it."""
    model = model.clone(pooling=pooling, parent=None)
    x, variables = noisy(model)
    apply = functools.partial(applied, model)
    expected = apply(variables, x)
    places = np.array([[0, 2, 3, 5, 6], [1, 2, 3, 4, 5], [3, 4, 5, 6, 7]])
    padded = np.random.default_rng(3).normal(size=(3, 8, FEATURES)).astype(np.float32)
    ids = np.zeros((3, 8), np.int32)
    for row, place in enumerate(places):
        padded[row, place], ids[row, place] = x[row], 4
    np.testing.assert_allclose(apply(variables, jnp.asarray(padded), jnp.asarray(ids)), expected, atol=1e-5)
    nothing = apply(variables, jnp.asarray(padded), jnp.zeros_like(ids))
    np.testing.assert_allclose(nothing, np.tile(variables["params"]["output"]["bias"], (3, 1)), atol=1e-6)


def test_the_last_of_several_segments_is_read():
    model = SequenceReader(mixer=GRU(), **SMALL)
    x, variables = noisy(model)
    ids = jnp.asarray([[1, 1, 2, 2, 0]] * 3)
    np.testing.assert_allclose(applied(model, variables, x, ids), applied(model, variables, x[:, 2:4]), atol=1e-6)


def test_a_image_is_read_pixel_by_pixel_row_by_row():
    model = SequenceReader(mixer=GRU(), **SMALL)
    image = np.random.default_rng(0).normal(size=(2, 3, 4, FEATURES)).astype(np.float32)
    variables = perturbed(model, image)
    sequence = np.stack([image[:, i, j] for i in range(3) for j in range(4)], axis=1)
    ours = applied(model, variables, image)
    np.testing.assert_array_equal(ours, applied(model, variables, sequence))
    assert model.classes == 3


@pytest.mark.parametrize(
    ("time", "pooling"),
    [
        (0, "last"),
        (1, "mean"),
        *(pytest.param(*case, marks=pytest.mark.thorough) for case in ((1, "last"), (0, "mean"))),
    ],
)
def test_no_time_and_one(time, pooling):
    model = SequenceReader(mixer=GRU(), pooling=pooling, **SMALL)
    x, variables = noisy(model, time)
    params = variables["params"]
    h = applied(GRU(), {"params": params["stack"]["layer_0"]["mixer"]}, dense(params["input"], x))[0].sum(axis=1)
    np.testing.assert_allclose(applied(model, variables, x), dense(params["output"], h), atol=1e-6)


def test_attention_with_a_table_of_positions():
    model = SequenceReader(mixer=Attention(heads=2), position=LearnedPosition(length=TIME), residual=True, **SMALL)
    x, variables = noisy(model)
    without = model.clone(position=None)
    params = {name: part for name, part in variables["params"].items() if name != "position_embedding"}
    assert jnp.any(jnp.abs(applied(model, variables, x) - applied(without, {"params": params}, x)) > 1e-3)
    model.check((TIME, FEATURES))
    with pytest.raises(UsageError, match="a sequence of 6 tokens is longer than the table of 5 learned positions"):
        model.check((2, 3, FEATURES))


def test_dropout_is_active_in_training_only():
    model = SequenceReader(mixer=GRU(), dropout=0.5, **SMALL)
    x, variables = noisy(model)
    train = jax.jit(lambda key: model.apply(variables, x, train=True, rngs={"dropout": jax.random.key(key)}))
    assert jnp.any(train(0) != train(1))
    np.testing.assert_array_equal(applied(model, variables, x), applied(model.clone(dropout=0.0), variables, x))


def test_it_is_written_down_and_read_again():
    from arch_jax.experiment import import_components

    import_components()
    assert from_json(to_json(RESIDUAL)) == RESIDUAL
    assert arch_jax.SequenceReader is SequenceReader


def test_bad_input():
    for fields, says in (
        ({"outputs": 0}, "outputs is 0; expected at least 1"),
        ({"depth": 0}, "depth is 0"),
        ({"width": -1}, "width is -1"),
        ({"dropout": 1.0}, "dropout is 1.0"),
    ):
        with pytest.raises(UsageError, match=says):
            SequenceReader(**fields)
    with pytest.raises(UsageError, match=r"expected batch, time and features"):
        SequenceReader().init(jax.random.key(0), jnp.zeros((2, 3)))
