"""Additive and multiplicative scores: each against its equation, and what the softmax over them promises."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax import fields
from arch_jax.errors import UsageError
from arch_jax.layers.seq2seq.scores import AdditiveAttention, LocalAttention, LuongAttention
from arch_jax.ops.attention.scores import (
    additive_scores,
    attend,
    attend_locally,
    concat_scores,
    dot_scores,
    general_scores,
)

BATCH, TIME, SOURCE, WIDTH, HIDDEN = 2, 3, 5, 4, 6
MASK = np.array([[True] * 5, [True, False, True, False, False]])
MODULES = [
    AdditiveAttention(initial_std=0.5),
    *(LuongAttention(score, initial_scale=1.0) for score in ("dot", "general", "concat")),
]
LOCAL = [LocalAttention(alignment=alignment, window=1, initial_scale=1.0) for alignment in ("monotonic", "predictive")]


@functools.partial(jax.jit, static_argnums=0)
def initial(module, s, h):
    return module.init(jax.random.key(0), s, h)


@functools.partial(jax.jit, static_argnums=0)
def applied(module, variables, *arguments):
    return module.apply(variables, *arguments)


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def test_each_score_is_its_equation():
    with jax.enable_x64(True):
        s, h = draw(BATCH, TIME, WIDTH), draw(BATCH, SOURCE, WIDTH, seed=1)
        w, u, v = draw(WIDTH, HIDDEN, seed=2), draw(WIDTH, HIDDEN, seed=3), draw(HIDDEN, seed=4)
        square = draw(WIDTH, WIDTH, seed=5)
        s, h, w, u, v, square = map(np.asarray, (s, h, w, u, v, square))
        got = {
            "additive": jax.jit(additive_scores)(s, h, w, u, v),
            "dot": jax.jit(dot_scores)(s, h),
            "general": jax.jit(general_scores)(s, h, square),
            "concat": jax.jit(concat_scores)(s, h, np.concatenate([w, u]), v),
        }
        got = {name: np.asarray(scores) for name, scores in got.items()}
        for b, i, j in np.ndindex(BATCH, TIME, SOURCE):
            expected = {
                "additive": v @ np.tanh(s[b, i] @ w + h[b, j] @ u),
                "dot": s[b, i] @ h[b, j],
                "general": s[b, i] @ square @ h[b, j],
                "concat": v @ np.tanh(np.concatenate([s[b, i], h[b, j]]) @ np.concatenate([w, u])),
            }
            for name, value in expected.items():
                np.testing.assert_allclose(got[name][b, i, j], value, rtol=1e-12, err_msg=name)
        np.testing.assert_allclose(jax.jit(general_scores)(s, h, np.eye(WIDTH)), got["dot"], rtol=1e-12)


@pytest.mark.parametrize("module", MODULES, ids=repr)
def test_weights_sum_to_1_over_what_is_visible(module):
    s, h = draw(BATCH, TIME, WIDTH), draw(BATCH, SOURCE, WIDTH, seed=1)
    variables = initial(module, s, h)
    context, weights = map(np.asarray, applied(module, variables, s, h, MASK))
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-6)
    assert not weights[1][:, ~MASK[1]].any()
    np.testing.assert_allclose(context, np.einsum("bts,bsd->btd", weights, h), rtol=1e-5, atol=1e-6)
    # Queries differ in what they read, and each is its own: the first alone reads the same.
    assert np.abs(weights[:, 0] - weights[:, 1]).max() > 1e-3
    np.testing.assert_allclose(applied(module, variables, s[:, :1], h, MASK)[1], weights[:, :1], rtol=1e-5)
    named = fields.from_json(fields.to_json(module), kind="score")
    np.testing.assert_array_equal(applied(named, variables, s, h, MASK)[0], context)


def test_the_softmax_is_the_usual_one():
    scores, values = draw(BATCH, TIME, SOURCE), draw(BATCH, SOURCE, WIDTH)
    expected = jax.nn.softmax(jnp.where(MASK[:, None], scores, -1e30), axis=-1)
    np.testing.assert_allclose(attend(scores, values, jnp.asarray(MASK))[1], expected, rtol=1e-6, atol=1e-7)


def test_local_attention_is_its_equations():
    """Equations 9 and 10, place by place: a softmax within the window, and a Gaussian around the centre."""
    with jax.enable_x64(True):
        s, h = draw(BATCH, TIME, WIDTH), draw(BATCH, SOURCE, WIDTH, seed=1)
        mask = np.array([[True] * 5, [True, True, True, False, False]])
        for module in LOCAL:
            module = module.clone(dtype=jnp.float64, parameter_dtype=jnp.float64)
            variables = initial(module, s, h)
            context, weights = map(np.asarray, applied(module, variables, s, h, mask))
            p, s, h = jax.tree.map(np.asarray, (variables["params"], s, h))
            for b, t in np.ndindex(BATCH, TIME):
                length = mask[b].sum()
                centre = min(t, length - 1)
                if module.alignment == "predictive":
                    centre = length / (1 + np.exp(-p["place_v"] @ np.tanh(s[b, t] @ p["place_kernel"])))
                inside = [j for j in range(length) if abs(j - centre) <= module.window]
                each = {j: np.exp(s[b, t] @ p["kernel"] @ h[b, j]) for j in inside}
                for j in range(SOURCE):
                    expected = each[j] / sum(each.values()) if j in each else 0.0
                    if module.alignment == "predictive":
                        expected *= np.exp(-((j - centre) ** 2) / (2 * (module.window / 2) ** 2))
                    np.testing.assert_allclose(weights[b, t, j], expected, rtol=1e-10, atol=1e-14)
                np.testing.assert_allclose(context[b, t], weights[b, t] @ h[b], rtol=1e-10)


def test_a_wide_window_without_the_gaussian_is_global():
    scores, values = draw(BATCH, TIME, SOURCE), draw(BATCH, SOURCE, WIDTH)
    centre = jnp.broadcast_to(jnp.arange(TIME), (BATCH, TIME))
    mask = jnp.asarray(MASK)
    for ours, expected in zip(
        attend_locally(scores, values, centre, SOURCE, mask, gaussian=False), attend(scores, values, mask)
    ):
        np.testing.assert_allclose(ours, expected, atol=1e-6)
    _, weights = attend_locally(scores, values, centre, SOURCE, mask)
    assert (np.asarray(weights).sum(axis=-1) < 1).all()
    with pytest.raises(UsageError, match="window is 0; expected at least 1 place"):
        attend_locally(scores, values, centre, 0)


def test_a_centre_learns_where_to_look():
    """The gradient in the centre, of half of the smallest window, against differences."""
    with jax.enable_x64(True):
        scores, values = draw(1, 1, SOURCE), draw(1, SOURCE, 1)
        read = jax.jit(lambda c: attend_locally(scores, values, jnp.full((1, 1), c), 3)[0].sum())
        slope = (read(1.3 + 1e-5) - read(1.3 - 1e-5)) / 2e-5
        np.testing.assert_allclose(jax.jit(jax.grad(read))(1.3), slope, rtol=1e-8)


@pytest.mark.parametrize("module", MODULES, ids=repr)
def test_what_is_prepared_changes_nothing(module):
    """A decoder's loop reads query by query, with the keys' part of the scores computed before it."""
    s, h = draw(BATCH, TIME, WIDTH), draw(BATCH, SOURCE, WIDTH, seed=1)
    variables = initial(module, s, h)

    def run(module):
        read, prepared = module.reader(WIDTH, WIDTH), module.prepared(h, WIDTH)
        return jax.lax.scan(lambda _, q: (None, read(q[:, None], h, prepared)[0][:, 0]), None, s.swapaxes(0, 1))[1]

    expected = applied(module, variables, s, h)[0]
    found = jax.jit(lambda variables: module.apply(variables, method=run))(variables)
    np.testing.assert_allclose(np.asarray(found).swapaxes(0, 1), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("module", [*MODULES, *LOCAL], ids=repr)
def test_nothing_visible_is_0_and_large_scores_are_finite(module):
    s, h = draw(BATCH, TIME, WIDTH), draw(BATCH, SOURCE, WIDTH, seed=1)
    variables = initial(module, s, h)

    @jax.jit
    def run(s, h, mask):
        def loss(variables, s, h):
            context, _ = module.apply(variables, s, h, mask)
            return jnp.sum(context * draw(*context.shape)), context

        (_, context), gradients = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(variables, s, h)
        return context, gradients

    for x in jax.tree.leaves(run(s, h, np.zeros((BATCH, SOURCE), bool))):
        np.testing.assert_array_equal(x, 0)
    for x in jax.tree.leaves(run(100 * s, 100 * h, MASK)):
        assert np.isfinite(x).all()


def test_half_precision_has_its_softmax_in_float32():
    context, weights = attend(draw(2, 3, 4).astype(jnp.bfloat16), draw(2, 4, 2).astype(jnp.bfloat16))
    assert (context.dtype, weights.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-6)


def test_mistakes_are_named():
    s, h = draw(BATCH, TIME, WIDTH), draw(BATCH, SOURCE, WIDTH + 1)
    key = jax.random.key(0)
    cases = [
        (lambda: LuongAttention("dots"), "unknown score of luong_attention 'dots'; the nearest is 'dot'"),
        (lambda: LuongAttention("dot").init(key, s, h), 'queries of width 4 and keys of 5; expected .*"general"'),
        (lambda: AdditiveAttention(hidden=0), "hidden is 0; expected at least 1"),
        (lambda: concat_scores(s, h, draw(8, 3), draw(3)), "8 rows; expected 9"),
    ]
    for call, message in cases:
        with pytest.raises(UsageError, match=message):
            call()
    # The suite's type checker would refuse this one before the op does; users run without it.
    with pytest.raises(UsageError, match=r"shape \(2, 3, 3\); expected .* \(2, 3, 4\)"):
        attend.__wrapped__(draw(2, 3, 4), draw(2, 4, 2), jnp.ones((2, 3, 3), bool))
