"""Least squares: which rows count, that a sum is learned, and the gradient's norm against distance."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import arch_jax
from arch_jax.evaluation.gradient_reach import gradient_by_distance
from arch_jax.layers.mixers.rnn.gru import GRU
from arch_jax.layers.mixers.rnn.rnn import RNN
from arch_jax.layers.seq2seq.sequence_reader import SequenceReader


def loss_of(it, *given):
    """The loss, compiled whole: op by op, every small operation would be compiled on its own."""
    player, *rest = given
    return jax.jit(it.loss, static_argnums=(0, 1))(player, "main", *rest, 0)


def evaluated(it, *given):
    """The evaluation, compiled whole."""
    return jax.jit(it.evaluate)(*given)


class Fading(nn.Module):
    """y = sum_t a^(T - t) (c x_t): whose gradient is known."""

    a: float = 0.5
    outputs: int = 2

    @nn.compact
    def __call__(self, x, segment_ids=None, train=False):
        c = self.param("c", nn.initializers.normal(1.0), (x.shape[-1], self.outputs))
        if segment_ids is not None:
            x = x * (segment_ids > 0)[..., None]
        return jnp.einsum("btf,t,fo->bo", x, self.a ** jnp.arange(x.shape[1])[::-1].astype(x.dtype), c)


def task(model=None, **fields):
    return arch_jax.objective("regress", **fields).with_model(model or SequenceReader(mixer=GRU(), width=8))


def batch(rows=4, outputs=2, weights=(1, 1, 0, 1)):
    draw = np.random.default_rng(0)
    return {
        "x": jnp.asarray(draw.normal(size=(rows, 5, 3)), jnp.float32),
        "targets": jnp.asarray(draw.normal(size=(rows, outputs)), jnp.float32),
        "weights": jnp.asarray(weights, jnp.float32),
    }


def test_the_error_by_hand():
    it, given = task(Fading(), tolerance=1.0), batch(weights=(1, 0.5, 0, 1))
    variables = jax.jit(it.init)(jax.random.key(0), given)
    off = np.asarray(jax.jit(it.model.apply)(variables, given["x"]) - given["targets"], np.float64)
    weights = np.array([1, 0.5, 0, 1])
    given["x"] = given["x"].at[2].set(jnp.nan)
    expected = {
        "loss": weights[[0, 1, 3]] @ (off[[0, 1, 3]] ** 2).mean(axis=1),
        "absolute_error": weights[[0, 1, 3]] @ np.abs(off[[0, 1, 3]]).mean(axis=1),
        "accuracy": weights[[0, 1, 3]] @ (np.abs(off[[0, 1, 3]]) <= 1).all(axis=1),
    }
    found = evaluated(it, variables, given)
    for name, total in expected.items():
        assert (float(found[name][0]), float(found[name][1])) == (pytest.approx(total, rel=1e-5), 2.5)
    pair, (metrics, updates) = loss_of(it, "model", variables, given, jax.random.key(1))
    assert float(pair[0]) == float(metrics["loss"][0]) == pytest.approx(expected["loss"], rel=1e-5)
    assert updates == {}


def test_targets_of_one_number_have_no_axis_of_their_own():
    it, given = task(Fading(outputs=1)), batch(outputs=1)
    variables = jax.jit(it.init)(jax.random.key(0), given)
    flat = given | {"targets": given["targets"][:, 0]}
    assert float(evaluated(it, variables, flat)["loss"][0]) == float(evaluated(it, variables, given)["loss"][0])
    given["segment_ids"] = jnp.asarray([[1, 1, 1, 0, 0]] * 4)
    padded = given | {"x": given["x"].at[:, 3:].set(9.0)}
    assert float(evaluated(it, variables, padded)["loss"][0]) == float(evaluated(it, variables, given)["loss"][0])


def test_a_sum_is_learned():
    it = task(SequenceReader(mixer=GRU(), width=16))
    corpus = arch_jax.AddingProblem(length=6, batch=64, validation=256).load()
    it.check(corpus)
    stream = corpus.train(0)
    batches = [next(stream) for _ in range(300)]
    batches = {name: np.stack([one[name] for one in batches]) for name in batches[0]}
    optimizer = optax.adam(2e-2)

    @jax.jit
    def trained(key, batches):
        variables = it.init(key, jax.tree.map(lambda a: a[0], batches))

        def step(carry, given):
            variables, state = carry

            def mean(variables):
                (total, weight), _ = loss_of(it, "model", variables, given, key)
                return total / weight

            loss, gradient = jax.value_and_grad(mean)(variables)
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(variables, updates), state), loss

        return jax.lax.scan(step, (variables, optimizer.init(variables)), batches)

    (variables, _), losses = trained(jax.random.key(0), batches)
    assert losses[:5].mean() > 0.1, "1/6 is what the variance of the targets gives"
    (whole,) = arch_jax.AddingProblem(length=6, batch=256, validation=256).load().validation()
    found = evaluated(it, variables, whole)
    assert float(found["loss"][0] / found["loss"][1]) < 0.01


def test_the_gradient_against_the_whole_jacobian():
    model = SequenceReader(mixer=RNN(), width=6, outputs=2)
    x = jax.random.normal(jax.random.key(0), (3, 5, 2))
    variables = jax.jit(model.init)(jax.random.key(1), x)
    whole = jax.jit(jax.jacrev(lambda x: model.apply(variables, x)))(x)  # "batch outputs batch time features"
    own = np.stack([whole[i, :, i] for i in range(3)])
    expected = np.sqrt(np.square(own).sum(axis=(1, 3))).mean(axis=0)[::-1]
    found = jax.jit(lambda x: gradient_by_distance(lambda x: model.apply(variables, x), x))(x)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_gradient_of_a_known_recurrence():
    """a^d, also where its square is 0 in float32."""
    model = Fading(a=0.01)
    x = jnp.ones((2, 16, 3))
    variables = model.init(jax.random.key(0), x)
    size = float(jnp.linalg.norm(variables["params"]["c"]))
    found = gradient_by_distance(lambda x: model.apply(variables, x), x)
    np.testing.assert_allclose(found, size * 0.01 ** np.arange(16.0), rtol=1e-4)


def test_what_is_shown():
    it = task(SequenceReader(mixer=RNN(), width=4), show_rows=30)
    corpus = arch_jax.AddingProblem(length=7, batch=20, validation=50).load()
    first = next(iter(corpus.validation()))
    fresh = jax.jit(it.init)(jax.random.key(0), first)
    variables = jax.tree.map(lambda p: 0.5 * p, fresh)
    shown = it.draw(variables, corpus, jax.random.key(5))
    (points,) = shown["answers"].axes[0].collections
    assert points.get_offsets().shape == (30, 2)
    np.testing.assert_allclose(points.get_offsets()[:20, 0], first["targets"], rtol=1e-6)
    np.testing.assert_allclose(
        points.get_offsets()[:20, 1], jax.jit(it.model.apply)(variables, jnp.asarray(first["x"]))[:, 0], rtol=1e-5
    )
    axes = shown["gradient"].axes[0]
    assert axes.get_yscale() == "log"
    drawn = {line.get_label(): line.get_ydata() for line in axes.lines}
    for name, its in (("trained", variables), ("freshly initialised", fresh)):
        expected = jax.jit(lambda v, x: gradient_by_distance(lambda x: it.model.apply(v, x), x))(its, first["x"])
        np.testing.assert_allclose(drawn[name], expected, rtol=1e-5)


def test_wrong_settings_and_data():
    with pytest.raises(arch_jax.UsageError, match="tolerance is -1"):
        task(tolerance=-1.0)
    with pytest.raises(arch_jax.UsageError, match="show_rows is 0"):
        task(show_rows=0)
    with pytest.raises(arch_jax.UsageError, match="takes numbers with targets, and the data has x;"):
        task().check(arch_jax.Ring().load())
    with pytest.raises(arch_jax.UsageError, match=r"model.outputs is 3, but the data has 1 targets a row; set"):
        task(SequenceReader(outputs=3)).check(arch_jax.AddingProblem().load())
