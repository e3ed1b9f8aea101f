"""Linear attention: its forms against each other and the definition, random features, and the low-rank form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax.errors import UsageError
from arch_jax.ops.attention import linear as ops
from arch_jax.ops.attention.dot_product import attention_reference
from arch_jax.ops.attention.linear import FORMS, elu_features, initial_state
from arch_jax.ops.attention.random_features import orthogonal_projection, positive_features

# Compiled whole: op by op, every small operation would be compiled on its own.
linear_attention = jax.jit(ops.linear_attention, static_argnames=("feature_map", "causal", "form", "chunk"))
low_rank_attention = jax.jit(ops.low_rank_attention)

BATCH, TIME, HEADS, KV, DIM, VDIM = 2, 21, 4, 2, 6, 5
RUNS = np.array([[1] * 7 + [2] * 8 + [0] * 3 + [3] * 3, [0, 0] + [4] * 19], np.int32)


def inputs(dtype=np.float64, spread=1.0, time=TIME):
    rng = np.random.default_rng(0)
    shapes = (BATCH, time, HEADS, DIM), (BATCH, time, KV, DIM), (BATCH, time, KV, VDIM)
    return tuple((spread * rng.normal(size=s)).astype(dtype) for s in shapes)


def by_definition(q, k, v, causal=True, run=None):
    """The definition, pair by pair, of raw queries and keys."""
    q, k = elu_features(q), jnp.repeat(elu_features(k), HEADS // KV, axis=2)
    pairs = jnp.einsum("bthf,bshf->bhts", q, k)
    visible = jnp.ones(pairs.shape[-2:], bool)[None]
    visible = jnp.tril(visible) if causal else visible
    if run is not None:
        visible = visible & (run[:, :, None] == run[:, None]) & (run > 0)[:, :, None]
    pairs = jnp.where(visible[:, None], pairs, 0)
    total = jnp.sum(pairs, axis=-1, keepdims=True)
    return jnp.einsum("bhts,bshd->bthd", pairs / jnp.where(total == 0, 1, total), jnp.repeat(v, HEADS // KV, axis=2))


def features(q, k):
    return elu_features(q), elu_features(k)


def fast(q, k, v, **settings):
    return linear_attention(q, k, v, feature_map=features, **settings)[0]


def values_and_gradients(form, arrays):
    def loss(*arrays):
        out = form(*arrays)
        weights = jnp.asarray(np.random.default_rng(9).normal(size=out.shape), out.dtype)
        return jnp.sum(out * weights), out

    (_, out), gradients = jax.jit(jax.value_and_grad(loss, tuple(range(len(arrays))), has_aux=True))(*arrays)
    return out, *gradients


@functools.cache
def expected(causal, runs):
    """What the definition gives, once for all forms."""
    return values_and_gradients(functools.partial(by_definition, causal=causal, run=RUNS if runs else None), inputs())


@pytest.mark.parametrize("form", FORMS[1:])
@pytest.mark.parametrize(
    ("causal", "runs"),
    [(True, True), (False, True), *(pytest.param(c, False, marks=pytest.mark.thorough) for c in (True, False))],
    ids=str,
)
def test_every_form_is_the_definition(form, causal, runs):
    with jax.enable_x64(True):
        settings = {"causal": causal, "run": RUNS if runs else None}
        got = values_and_gradients(functools.partial(fast, form=form, chunk=4, **settings), inputs())
        for a, b in zip(got, expected(causal, runs)):
            assert a.dtype == jnp.float64
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", FORMS[1:])
@pytest.mark.parametrize("runs", [False, True])
def test_a_state_goes_on_where_the_tokens_stopped(form, runs):
    with jax.enable_x64(True):
        q, k, v = inputs()
        q, k = map(np.asarray, jax.jit(features)(q, k))
        run = RUNS if runs else None
        whole, end = linear_attention(q, k, v, run=run, form="parallel")
        state, outs = initial_state(BATCH, KV, DIM, VDIM, jnp.float64), []
        for start, stop in ((0, 1), (1, 9), (9, 17), (17, 21)):
            part = slice(start, stop)
            ids = None if run is None else run[:, part]
            out, state = linear_attention(q[:, part], k[:, part], v[:, part], run=ids, state=state, form=form, chunk=3)
            outs.append(out)
        np.testing.assert_allclose(np.concatenate(outs, axis=1), whole, rtol=1e-10, atol=1e-12)
        for a, b in zip(state, end):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("form", FORMS[1:])
def test_the_future_jacobian_is_exactly_zero(form):
    q, k, v = inputs(np.float32, time=11)
    jacobian = jax.jit(jax.jacobian(lambda k, v: fast(q, k, v, form=form, chunk=4), (0, 1)))(k, v)
    for of in jacobian:  # "batch time heads vdim batch time kv dim"
        seen = np.abs(np.asarray(of)).sum(axis=(0, 2, 3, 4, 6, 7)) > 0
        assert not np.triu(seen, 1).any()
        assert np.tril(seen)[1:, 0].all()


def test_without_causality_the_future_is_seen():
    q, k, v = inputs(np.float32, time=5)
    jacobian = jax.jit(jax.jacobian(lambda v: fast(q, k, v, causal=False)))(v)
    assert (np.abs(np.asarray(jacobian)).sum(axis=(0, 2, 3, 4, 6, 7)) > 0).all()


@pytest.mark.parametrize("form", FORMS[1:])
@pytest.mark.parametrize("causal", [True, pytest.param(False, marks=pytest.mark.thorough)])
def test_padding_and_extremes_give_numbers(form, causal):
    """A row of padding alone is 0, and so are its gradients; features of logits of 1e4 give no NaN."""
    nothing = np.zeros((BATCH, TIME), np.int32)
    for x in values_and_gradients(functools.partial(fast, form=form, causal=causal, run=nothing), inputs(np.float32)):
        np.testing.assert_array_equal(x, 0)
    projection = orthogonal_projection(8, DIM)

    def performer(q, k, v):
        q, k = positive_features(q, projection, query=True), positive_features(k, projection)
        return linear_attention(q, k, v, form=form, causal=causal)[0]

    q, k, v = inputs(np.float32)
    for attend in (performer, functools.partial(fast, form=form, causal=causal)):
        for x in values_and_gradients(attend, (1e2 * q, 1e2 * k, v)):
            assert np.isfinite(x).all()


def test_bfloat16_values_are_summed_in_float32():
    q, k, v = inputs(jnp.bfloat16)
    out, state = linear_attention(*jax.jit(features)(q, k), v)
    assert out.dtype == jnp.bfloat16
    assert state.s.dtype == jnp.float32
    expected = jax.jit(by_definition)(*(x.astype(np.float32) for x in (q, k, v)))
    np.testing.assert_allclose(np.asarray(out, np.float32), expected, atol=2e-2)


def test_rows_of_a_block_are_orthogonal_and_as_long_as_normal_vectors():
    w = orthogonal_projection(10, 4, seed=3)
    for block in (w[:4], w[4:8], w[8:]):
        products = block @ block.T
        np.testing.assert_allclose(products - np.diag(np.diag(products)), 0, atol=1e-12)
    squares = (orthogonal_projection(4000, 8, seed=1) ** 2).sum(axis=1)
    assert abs(squares.mean() - 8) < 0.3  # chi-square of 8 degrees of freedom: mean 8, variance 16
    assert abs(squares.var() - 16) < 2
    assert (orthogonal_projection(10, 4, seed=4) != w).any()


def test_estimates_are_unbiased_and_their_variance_goes_with_1_over_m():
    """Lemma 1: the mean is exp(q . k); theorem 2: orthogonal directions have less variance."""
    draws = 3000
    q, k = 0.3 * np.random.default_rng(0).normal(size=(2, 8))
    exact = np.exp(q @ k)

    def estimates(m, orthogonal):
        w = orthogonal_projection(m * draws, 8, m, orthogonal)
        phi = [np.asarray(positive_features(jnp.asarray(x, jnp.float32), w)) for x in (q, k)]
        return (phi[0] * phi[1]).reshape(draws, m).sum(axis=1) * draws  # each draw has m features, not all of them

    found = {m: estimates(m, False) for m in (4, 16, 64)}
    for m, estimate in (*found.items(), (8, estimates(8, True))):
        assert abs(estimate.mean() - exact) < 4 * estimate.std() / np.sqrt(draws), m
    variances = [estimate.var() for estimate in found.values()]
    assert abs(np.polyfit(np.log([4, 16, 64]), np.log(variances), 1)[0] + 1) < 0.15
    assert estimates(8, True).var() < 0.95 * estimates(8, False).var()


def test_many_features_come_near_softmax_attention():
    q, k, v = inputs(np.float32, spread=0.5)
    shared = DIM**-0.25
    errors = []
    for m in (16, 8192):
        w = orthogonal_projection(m, DIM)

        @jax.jit
        def error(q, k, v, w=w):
            phi = positive_features(q * shared, w, query=True), positive_features(k * shared, w)
            return jnp.abs(linear_attention(*phi, v)[0] - attention_reference(q, k, v, causal=True)).max()

        errors.append(error(q, k, v))
    assert errors[1] < min(0.05, errors[0] / 5)


def test_features_do_not_overflow_in_wide_heads():
    w = orthogonal_projection(64, 512)
    x = jnp.asarray(w[:3], jnp.float32)  # the worst case: a key that is one of the directions
    assert positive_features(x, w).sum() * 1e6 < np.inf
    assert (positive_features(x / 8, w) > 0).all()


def test_low_rank_with_identities_is_full_attention():
    with jax.enable_x64(True):
        arrays = inputs()
        eye = jnp.eye(TIME + 3)[:TIME]
        form = lambda q, k, v: low_rank_attention(q, k, v, eye, eye)
        for a, b in zip(values_and_gradients(form, arrays), values_and_gradients(attention_reference, arrays)):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


def test_low_rank_mixes_each_run_as_if_it_were_alone():
    with jax.enable_x64(True):
        q, k, v = inputs()
        e, f = np.random.default_rng(1).normal(size=(2, 4, 8))
        position = np.array([[*range(7), *range(8), 0, 0, 0, *range(3)], [0, 0, *range(8), *range(8), 0, 0, 0]])
        run = np.array([[1] * 7 + [2] * 8 + [0] * 3 + [3] * 3, [0, 0] + [4] * 8 + [5] * 8 + [0] * 3])
        out = np.asarray(low_rank_attention(q, k, v, e, f, run=run, position=position))
        for row, start, stop in ((0, 0, 7), (0, 7, 15), (0, 18, 21), (1, 2, 10), (1, 10, 18)):
            alone = (x[row : row + 1, start:stop] for x in (q, k, v))
            expected = low_rank_attention(*alone, e, f)[0]
            np.testing.assert_allclose(out[row, start:stop], expected, rtol=1e-10, atol=1e-10)
        assert not out[run == 0].any()


def test_mistakes_are_named():
    q, k, v = inputs(np.float32)
    state = initial_state(BATCH, KV, DIM, VDIM)
    eye = jnp.eye(5)
    cases = [
        (lambda: linear_attention(q, k, v, form="chunk"), "unknown form of linear attention 'chunk'; .*'chunked'"),
        (lambda: linear_attention(q, k, v, chunk=0), "chunk of linear attention is 0; expected"),
        (lambda: linear_attention(q[:, :, :3], k, v), "3 query heads cannot share 2 kv heads; .* is 1"),
        (lambda: linear_attention(q, k, v, causal=False, state=state), "expected causal=True"),
        (lambda: linear_attention(q, k[:, :4], v[:, :4]), "21 queries and 4 keys"),
        (lambda: low_rank_attention(q, k, v, eye, eye), "21 positions; expected at most 5"),
        (lambda: orthogonal_projection(0, 4), "features of the random projection is 0"),
    ]
    for call, message in cases:
        with pytest.raises(UsageError, match=message):
            call()
