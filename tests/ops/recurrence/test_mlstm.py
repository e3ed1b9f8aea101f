"""The mLSTM: its forms against the definition without a stabiliser, states, and gates beyond any exponential."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import arch_jax
from arch_jax.errors import UsageError
from arch_jax.ops.recurrence.mlstm import initial_state, mlstm, mlstm_reference

BATCH, TIME, HEADS, DIM, VDIM = 2, 13, 2, 3, 4
RUNS = jnp.asarray([[1] * 4 + [0] + [1] * 2 + [2] * 6, [0, 0, 3, 3, 0, 3, 4, 4, 4, 5, 5, 5, 0]], jnp.int32)
FORMS = ("parallel", "chunked", "recurrent")


def inputs(dtype=np.float64, gates=1.5):
    rng = np.random.default_rng(0)
    shapes = [(BATCH, TIME, HEADS, n) for n in (DIM, DIM, VDIM)] + 2 * [(BATCH, TIME, HEADS)]
    arrays = [rng.normal(size=shape) for shape in shapes]
    arrays[3], arrays[4] = gates * arrays[3], gates * arrays[4] + 1
    return tuple(jnp.asarray(x, dtype) for x in arrays)


@functools.partial(jax.jit, static_argnums=0)
def values_and_gradients(form, *arrays):
    def loss(*arrays):
        out = form(*arrays)
        weights = jnp.asarray(np.random.default_rng(9).normal(size=out.shape), out.dtype)
        return jnp.sum(out * weights), out

    (_, out), gradients = jax.value_and_grad(loss, tuple(range(5)), has_aux=True)(*arrays)
    return out, *gradients


@pytest.mark.parametrize(("packed", "epsilon"), [pytest.param(False, 0.0, marks=pytest.mark.thorough), (True, 1e-2)])
def test_every_form_is_the_definition(packed, epsilon):
    """The stabiliser changes nothing; epsilon is large here, so that its place shows."""
    with jax.enable_x64(True):
        settings = {"run": RUNS if packed else None, "epsilon": epsilon}
        expected = values_and_gradients(functools.partial(mlstm_reference, **settings), *inputs())
        assert float(jnp.abs(expected[0]).max()) > 0.5
        for form in FORMS:
            fast = lambda *a, form=form: mlstm(*a, form=form, chunk=4, **settings)[0]
            for a, b in zip(values_and_gradients(fast, *inputs()), expected):
                assert a.dtype == jnp.float64
                np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_a_state_goes_on_where_the_tokens_stopped(form):
    with jax.enable_x64(True):
        arrays = inputs()
        cuts = ((0, 0), (0, 1), (1, 5), (5, 13))

        @functools.partial(jax.jit, static_argnums=(0, 1))
        def fed(form, cuts):
            state, outs = initial_state(BATCH, HEADS, DIM, VDIM, jnp.float64), []
            for start, stop in cuts:
                part = (x[:, start:stop] for x in arrays)
                out, state = mlstm(*part, run=RUNS[:, start:stop], state=state, form=form, chunk=3)
                outs.append(out)
            return jnp.concatenate(outs, axis=1), state

        for a, b in zip(jax.tree.leaves(fed(form, cuts)), jax.tree.leaves(fed("parallel", ((0, TIME),)))):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("form", ["chunked", "recurrent"])
def test_gates_beyond_any_exponential(form):
    """exp(500) has no float32. Where n . q is large, the first token's answer is v with the sign of k . q."""
    q, k, v, i, f = inputs(np.float32, gates=400.0)
    fast = lambda *a: mlstm(*a, form=form, chunk=4)[0]
    for x in values_and_gradients(fast, q, k, v, i, f):
        assert np.isfinite(x).all()
    h = values_and_gradients(fast, q, k, v, jnp.full_like(i, 500.0), f)[0]
    sign = jnp.sign(jnp.einsum("bhd,bhd->bh", q[:, 0], k[:, 0]))
    np.testing.assert_allclose(h[:, 0], sign[..., None] * v[:, 0], rtol=1e-5)
    h = values_and_gradients(fast, q, k, v, jnp.full_like(i, -500.0), f)[0]
    np.testing.assert_array_equal(h, 0)


def test_padding_alone_is_nothing():
    fast = lambda *a: mlstm(*a, run=jnp.zeros((BATCH, TIME), jnp.int32))[0]
    for x in values_and_gradients(fast, *inputs(np.float32)):
        np.testing.assert_array_equal(x, 0)


def test_bad_input():
    arrays = inputs(np.float32)
    with pytest.raises(UsageError, match=r"chunk.* 0"):
        jax.eval_shape(functools.partial(mlstm, chunk=0), *arrays)
    with pytest.raises(UsageError, match="sideways"):
        jax.eval_shape(functools.partial(mlstm, form="sideways"), *arrays)
    wrong = initial_state(BATCH + 1, HEADS, DIM, VDIM)
    with pytest.raises(UsageError, match="state"):
        jax.eval_shape(functools.partial(mlstm, state=wrong), *arrays)


def test_the_published_epsilon():
    """Added to the denominator in NX-AI/xlstm, "parallel_stabilized_simple" and "recurrent_step_stabilized_simple"."""
    assert arch_jax.MLSTM().epsilon == 1e-6
