"""The sLSTM: against the definition without a stabiliser, its gradient by hand, states, and extreme gates."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax.errors import UsageError
from arch_jax.ops.recurrence.linear import resets
from arch_jax.ops.recurrence.slstm import initial_state, slstm, slstm_reference
from arch_jax.ops.segments import runs_and_positions

BATCH, TIME, HEADS, DIM = 2, 11, 2, 3
IDS = jnp.asarray([[1, 1, 1, 0, 1, 1, 2, 2, 2, 1, 1], [0, 0, 3, 3, 0, 4, 4, 4, 0, 0, 5]], jnp.int32)
STARTS, REAL = resets(*runs_and_positions(IDS)[:2])


def inputs(dtype=np.float64, gates=1.0):
    rng = np.random.default_rng(0)
    x, r = rng.normal(size=(BATCH, TIME, HEADS, 4, DIM)), rng.normal(size=(HEADS, DIM, 4, DIM))
    return jnp.asarray(gates * x, dtype), jnp.asarray(r, dtype)


@functools.partial(jax.jit, static_argnums=0)
def values_and_gradients(form, *arrays):
    def loss(*arrays):
        out = form(*arrays)
        weights = jnp.asarray(np.random.default_rng(9).normal(size=out.shape), out.dtype)
        return jnp.sum(out * weights), out

    (_, out), gradients = jax.value_and_grad(loss, tuple(range(len(arrays))), has_aux=True)(*arrays)
    return out, *gradients


@pytest.mark.parametrize("packed", [False, True])
def test_it_is_the_definition(packed):
    with jax.enable_x64(True):
        masks = {"starts": STARTS, "real": REAL} if packed else {}
        got = values_and_gradients(lambda *a: slstm(*a, **masks)[0], *inputs())
        expected = values_and_gradients(functools.partial(slstm_reference, **masks), *inputs())
        assert min(float(jnp.abs(x).max()) for x in expected) > 0.1
        for a, b in zip(got, expected):
            assert a.dtype == jnp.float64
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.thorough
def test_a_state_goes_on_where_the_tokens_stopped():
    """In values and in gradients, which pass through the state."""
    with jax.enable_x64(True):

        def in_parts(x, r, cuts=((0, 0), (0, 1), (1, 4), (4, 11))):
            state, outs = initial_state(BATCH, HEADS, DIM, x.dtype), []
            for start, stop in cuts:
                part = slice(start, stop)
                out, state = slstm(x[:, part], r, starts=STARTS[:, part], real=REAL[:, part], state=state)
                outs.append(out)
            ends = jnp.stack([state.h, state.c / jnp.where(state.n == 0, 1, state.n)])
            return jnp.concatenate([jnp.concatenate(outs, axis=1).reshape(-1), ends.reshape(-1)])

        whole = lambda x, r: in_parts(x, r, cuts=((0, TIME),))
        for a, b in zip(values_and_gradients(in_parts, *inputs()), values_and_gradients(whole, *inputs())):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_gates_beyond_any_exponential():
    """c / n is a weighted mean of tanh(z~), so |h| < 1; and a closed forget gate leaves the last token alone."""
    x, r = inputs(np.float32, gates=400.0)
    for y in values_and_gradients(lambda *a: slstm(*a)[0], x, r):
        assert np.isfinite(y).all()
    assert float(jnp.abs(slstm(x, r)[0]).max()) <= 1
    closed = x.at[:, :, :, 1].set(-1e4) * jnp.asarray([1e-2, 1, 1e-2, 1e-2])[:, None]
    h, _ = slstm(closed, 0 * r)
    expected = jax.nn.sigmoid(closed[..., 3, :]) * jnp.tanh(closed[..., 2, :])
    np.testing.assert_allclose(h, expected, rtol=1e-6)


def test_bad_input():
    x, r = inputs(np.float32)
    with pytest.raises(UsageError, match="state of the sLSTM"):
        slstm(x, r, state=initial_state(BATCH + 1, HEADS, DIM))
