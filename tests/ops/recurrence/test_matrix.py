"""Matrix-state recurrences: three forms of each against a loop over tokens, with runs, padding and carried states."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax.errors import UsageError
from arch_jax.ops.recurrence import matrix as ops
from arch_jax.ops.recurrence.matrix import FORMS, MatrixState, initial_state

# Compiled whole: op by op, every small operation would be compiled on its own.
matrix_recurrence = jax.jit(ops.matrix_recurrence, static_argnames=("form", "chunk"))
delta_rule = jax.jit(ops.delta_rule, static_argnames=("form", "chunk"))
TIME = 11
RUN = np.array([[1, 1, 1, 2, 0, 2, 2, 3, 3, 0, 3], [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]], np.int32)
#: Heads of q, k, v and the decay.
HEADS = [(3, 3, 3, 3), (4, 2, 2, 2), (2, 2, 4, 4)]


def draw(heads, time=TIME, dim=3, vdim=5, seed=0):
    generator = np.random.default_rng(seed)
    sizes = (dim, dim, vdim, 1)
    q, k, v, d = (generator.normal(size=(2, time, n, size)) for n, size in zip(heads, sizes))
    return tuple(map(jnp.asarray, (q, k, v, -np.abs(d[..., 0]))))


def reference(q, k, v, d=None, run=None, beta=None):
    """The definition: for each row and head, token after token; the last matrix of each head."""
    q, k, v = map(np.asarray, (q, k, v))
    heads = max(x.shape[2] for x in (q, k, v))
    kept = max(k.shape[2], v.shape[2])
    of = lambda x, h: x[:, :, h // (heads // x.shape[2])]
    y = np.zeros((*v.shape[:2], heads, v.shape[-1]))
    last = np.zeros((len(v), kept, k.shape[-1], v.shape[-1]))
    for b in range(len(v)):
        for h in range(heads):
            s, now = np.zeros(last.shape[2:]), 0
            for t in range(v.shape[1]):
                number = 1 if run is None else run[b, t]
                if number == 0:
                    continue
                s, now = (s if number == now else np.zeros_like(s)), number
                key, value = of(k, h)[b, t], of(v, h)[b, t]
                s = s * (1 if d is None else np.exp(of(np.asarray(d)[..., None], h)[b, t, 0]))
                if beta is not None:
                    share = np.asarray(beta)[b, t, h]
                    s = s - share * np.outer(key, key @ s)
                    value = share * value
                s = s + np.outer(key, value)
                y[b, t, h] = of(q, h)[b, t] @ s
            last[b, h // (heads // kept)] = s
    return y, last


@pytest.mark.parametrize(
    ("heads", "packed"),
    [
        (HEADS[0], False),
        (HEADS[1], True),
        (HEADS[2], True),
        *(
            pytest.param(*c, marks=pytest.mark.thorough)
            for c in ((HEADS[0], True), (HEADS[1], False), (HEADS[2], False))
        ),
    ],
)
def test_all_forms_are_the_definition(heads, packed):
    with jax.enable_x64(True):
        run = jnp.asarray(RUN) if packed else None
        q, k, v, d = draw(heads)
        for decay in (d,) if packed else (d, None):
            expected, last = reference(q, k, v, decay, run)
            for form in FORMS[1:]:
                y, state = matrix_recurrence(q, k, v, decay, run=run, form=form, chunk=4)
                np.testing.assert_allclose(y, expected, atol=1e-12)
                np.testing.assert_allclose(state.s, last, atol=1e-12)


@pytest.mark.parametrize("packed", [False, True])
def test_the_delta_rule_is_the_definition(packed):
    with jax.enable_x64(True):
        run = jnp.asarray(RUN) if packed else None
        q, k, v, d = draw((3, 3, 3, 3))
        k = k / jnp.linalg.norm(k, axis=-1, keepdims=True)
        beta = 2 * jax.nn.sigmoid(draw((3, 3, 3, 3), seed=1)[3])
        for decay in (d,) if packed else (d, None):
            expected, last = reference(q, k, v, decay, run, beta)
            for form in FORMS[1:]:
                y, state = delta_rule(q, k, v, beta, decay, run=run, form=form, chunk=4)
                np.testing.assert_allclose(y, expected, atol=1e-12)
                np.testing.assert_allclose(state.s, last, atol=1e-12)


@pytest.mark.parametrize("rule", ["matrix", "delta"])
def test_gradients_of_all_forms_agree(rule):
    """Also that of the state carried in, through what comes out of both ends."""
    with jax.enable_x64(True):
        q, k, v, d = draw((2, 2, 2, 2))
        beta = jax.nn.sigmoid(d)
        begin = jax.random.normal(jax.random.key(0), (2, 2, 3, 5))
        weights = draw((2, 2, 2, 2), seed=4)[2]

        def loss(form, q, k, v, d, beta, begin):
            state = MatrixState(begin, jnp.ones(2, jnp.int32))
            run = jnp.asarray(RUN)
            if rule == "delta":
                y, after = delta_rule(q, k, v, beta, d, run=run, state=state, form=form, chunk=3)
            else:
                y, after = matrix_recurrence(q, k, v, d, run=run, state=state, form=form, chunk=3)
            return jnp.sum(y * weights) + jnp.sum(jnp.sin(after.s))

        found = [
            jax.jit(jax.grad(functools.partial(loss, form), argnums=range(6)))(q, k, v, d, beta, begin)
            for form in FORMS[1:]
        ]
        assert float(jnp.abs(found[0][5]).max()) > 0.01
        chex.assert_trees_all_close(found[0], found[1], atol=1e-10, rtol=1e-10)
        chex.assert_trees_all_close(found[0], found[2], atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("form", ["auto", "chunked"])
def test_any_chunks_through_the_state_give_the_whole(form):
    with jax.enable_x64(True):
        q, k, v, d = draw((2, 2, 4, 4))
        whole, last = matrix_recurrence(q, k, v, d, run=RUN)
        state, out = initial_state(2, 4, 3, 5, jnp.float64), []
        for part in (slice(0, 4), slice(4, 5), slice(5, 5), slice(5, 11)):
            arrays = (x[:, part] for x in (q, k, v, d))
            y, state = matrix_recurrence(*arrays, run=jnp.asarray(RUN[:, part]), state=state, form=form, chunk=2)
            out.append(y)
        np.testing.assert_allclose(jnp.concatenate(out, axis=1), whole, atol=1e-12)
        chex.assert_trees_all_close(state, last, atol=1e-12)


def test_without_runs_a_state_goes_on():
    q, k, v, d = (x.astype(jnp.float32) for x in draw((2, 2, 2, 2)))
    whole, _ = matrix_recurrence(q, k, v, d)
    _, state = matrix_recurrence(q[:, :6], k[:, :6], v[:, :6], d[:, :6], state=initial_state(2, 2, 3, 5))
    y, _ = matrix_recurrence(q[:, 6:], k[:, 6:], v[:, 6:], d[:, 6:], state=state)
    np.testing.assert_allclose(y, whole[:, 6:], atol=1e-5)


def test_a_decay_of_nothing_left_has_no_nan():
    """exp(-1e4) is 0, and no difference of sums overflows."""
    q, k, v, d = (x.astype(jnp.float32) for x in draw((2, 2, 2, 2)))
    loss = lambda d: jnp.sum(matrix_recurrence(q, k, v, d - 1e4, run=jnp.asarray(RUN), form="chunked", chunk=4)[0] ** 2)
    value, slope = jax.jit(jax.value_and_grad(loss))(d)
    own = jnp.sum(q * k, axis=-1)[..., None] * v * (RUN > 0)[..., None, None]
    np.testing.assert_allclose(value, jnp.sum(own**2), rtol=1e-5)
    chex.assert_tree_all_finite(slope)


def test_orthonormal_keys_are_recalled_exactly():
    """The delta rule is an associative memory: what a key was given last is what it recalls."""
    keys = jnp.asarray(np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0], jnp.float32)
    order = jnp.array([0, 1, 2, 3, 1, 0])
    k = keys[order][None, :, None]
    v = jax.random.normal(jax.random.key(1), (1, 6, 1, 5))
    _, state = delta_rule(k, k, v, jnp.ones((1, 6, 1)))
    recalled = keys @ state.s[0, 0]
    np.testing.assert_allclose(recalled, v[0, jnp.array([5, 4, 2, 3]), 0], atol=1e-5)
    _, sums = matrix_recurrence(k, k, v)
    assert float(jnp.abs(keys @ sums.s[0, 0] - recalled).max()) > 0.1


def test_bad_input_is_named():
    q, k, v, d = draw((2, 2, 2, 2))
    with pytest.raises(UsageError, match=r"3 of values.*expected one number, or two of which one divides"):
        matrix_recurrence(q, k, jnp.concatenate([v, v[:, :, :1]], axis=2), d)
    with pytest.raises(UsageError, match=r"state has the shape \(2, 2, 3, 4\); expected \(2, 2, 3, 5\)"):
        matrix_recurrence(q, k, v, d, state=initial_state(2, 2, 3, 4))
    with pytest.raises(UsageError, match="form of a matrix recurrence 'chunk'"):
        matrix_recurrence(q, k, v, d, form="chunk")
    with pytest.raises(UsageError, match="chunk of a matrix recurrence is 0"):
        delta_rule(q, k, v, d, d, chunk=0)
