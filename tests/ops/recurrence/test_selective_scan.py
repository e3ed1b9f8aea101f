"""The selective scan and the layers made of it: forms against the definition, what the gradient keeps, identities."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax.errors import UsageError
from arch_jax.layers.mixers.ssm.mamba import S6, Mamba, MambaBlock
from arch_jax.layers.mixers.ssm.mamba2 import Mamba2
from arch_jax.layers.mixers.ssm.s4 import S4, S4D
from arch_jax.ops.recurrence.matrix import matrix_recurrence
from arch_jax.ops.recurrence.selective_scan import FORMS, initial_state, selective_scan, selective_scan_reference

BATCH, TIME, CHANNELS, STATE = 2, 21, 5, 3
RUNS = np.array([[1] * 7 + [2] * 8 + [0] * 3 + [3] * 3, [0, 0] + [4] * 6 + [0] + [4] * 12], np.int32)


def inputs(dtype=np.float64, time=TIME):
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.normal(size=shape)
    x, B, C = normal(BATCH, time, CHANNELS), normal(BATCH, time, STATE), normal(BATCH, time, STATE)
    delta = rng.uniform(0.01, 1.5, (BATCH, time, CHANNELS))
    A, D = -rng.uniform(0.1, 3, (CHANNELS, STATE)), normal(CHANNELS)
    return tuple(array.astype(dtype) for array in (x, delta, A, B, C, D))


@functools.cache
def values_and_gradients(form, runs, chunk=4):
    """y, the last state, and the gradients of both to every input and the first state, in float64."""
    weights = np.random.default_rng(9)
    run = jnp.asarray(RUNS) if runs else None
    with jax.enable_x64(True):
        first = weights.normal(size=(BATCH, STATE, CHANNELS))
        to_y, to_h = (weights.normal(size=s) for s in ((BATCH, TIME, CHANNELS), first.shape))

        def loss(first, *arrays):
            state = initial_state(BATCH, STATE, CHANNELS, jnp.float64)._replace(h=first)
            state = state._replace(last_run=jnp.asarray([1, 0], jnp.int32))  # the first row's goes on
            y, after = selective_scan(*arrays, run=run, state=state, form=form, chunk=chunk)
            return jnp.sum(y * to_y) + jnp.sum(after.h * to_h), (y, after)

        grad = jax.jit(jax.value_and_grad(loss, tuple(range(7)), has_aux=True))
        (_, (y, after)), gradients = grad(first, *inputs())
        return y, after, *gradients


@pytest.mark.parametrize("runs", [False, True])
@pytest.mark.parametrize("form", FORMS[1:])
def test_every_form_is_the_definition(form, runs):
    with jax.enable_x64(True):
        run = RUNS if runs else None
        y, after = jax.jit(functools.partial(selective_scan, form=form, chunk=4))(*inputs(), run=run)
        expected, states = selective_scan_reference(*inputs(), run)
        assert y.dtype == jnp.float64
        np.testing.assert_allclose(y, expected, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(after.h.swapaxes(1, 2), states, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("runs", [pytest.param(False, marks=pytest.mark.thorough), True])
@pytest.mark.parametrize(("form", "chunk"), [("chunked", 4), ("associative", 4), ("associative", 100)])
def test_gradients_are_those_of_automatic_differentiation(form, chunk, runs):
    got, expected = values_and_gradients(form, runs, chunk), values_and_gradients("recurrent", runs)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected)):
        assert np.abs(b).max() > 0
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", FORMS[1:])
def test_a_state_goes_on_where_the_tokens_stopped(form):
    with jax.enable_x64(True):
        x, delta, A, B, C, D = inputs()
        scan = jax.jit(functools.partial(selective_scan, form=form, chunk=3))
        whole, _ = selective_scan_reference(x, delta, A, B, C, D, RUNS)
        state, outs = initial_state(BATCH, STATE, CHANNELS, jnp.float64), []
        for start, stop in ((0, 1), (1, 9), (9, 9), (9, 17), (17, 21)):
            part = slice(start, stop)
            given = (x[:, part], delta[:, part], A, B[:, part], C[:, part], D)
            out, state = scan(*given, run=RUNS[:, part], state=state)
            outs.append(out)
        np.testing.assert_allclose(np.concatenate(outs, axis=1), whole, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("form", FORMS[1:])
def test_padding_and_the_future_have_no_influence(form):
    x, *others = map(jnp.asarray, inputs(np.float32))
    scan = lambda x: selective_scan(x, *others, run=jnp.asarray(RUNS), form=form, chunk=4)[0]
    jacobian = jax.jit(jax.jacrev(lambda x: jnp.sum(scan(x), axis=2)))(x)
    influence = np.abs(np.asarray(jacobian)).sum(axis=-1)  # "batch time batch time"
    for b in range(BATCH):
        seen = influence[b, :, b] > 0
        same = (RUNS[b][:, None] == RUNS[b]) & (RUNS[b] > 0)
        np.testing.assert_array_equal(seen, np.tril(same))


def test_constant_steps_make_it_a_convolution():
    """Linear and time-invariant: K_l = sum_n C_n exp(l Delta A_n) Delta B_n."""
    with jax.enable_x64(True):
        x, delta, A, B, C, _ = inputs()
        same = lambda array: np.broadcast_to(array[:1, :1], array.shape)
        y, _ = jax.jit(functools.partial(selective_scan, form="chunked", chunk=5))(x, same(delta), A, same(B), same(C))
        delta, B, C = delta[0, 0], B[0, 0], C[0, 0]
        powers = np.exp(np.arange(TIME)[:, None, None] * delta[:, None] * A)
        kernel = np.einsum("ldn,n,n,d->ld", powers, B, C, delta)
        for d in range(CHANNELS):
            np.testing.assert_allclose(y[0, :, d], np.convolve(x[0, :, d], kernel[:, d])[:TIME], atol=1e-12)


def test_duality_with_the_matrix_recurrence():
    """With one A and one step size a head it is attention with decays (Dao and Gu 2024, section 5)."""
    with jax.enable_x64(True):
        x, delta, A, B, C, _ = inputs()
        delta, A = delta[:, :, :1], A[:1, :1]
        wide = np.broadcast_to(delta, x.shape), np.broadcast_to(A, (CHANNELS, STATE))
        scan = jax.jit(functools.partial(selective_scan, form="chunked", chunk=4))
        y, after = scan(x, *wide, B, C, run=jnp.asarray(RUNS))
        values = (x * delta)[:, :, None]
        for form in ("parallel", "chunked", "recurrent"):
            product = jax.jit(functools.partial(matrix_recurrence, form=form, chunk=8))
            dual, end = product(C[:, :, None], B[:, :, None], values, delta * A[0, 0], run=jnp.asarray(RUNS))
            np.testing.assert_allclose(np.asarray(dual)[:, :, 0], y, rtol=1e-10, atol=1e-12)
            np.testing.assert_allclose(np.asarray(end.s)[:, 0], after.h, rtol=1e-10, atol=1e-12)


def test_the_gradient_keeps_no_state_of_every_token():
    """As the compiler counts it: one array "batch time channels state" would be 4 MB."""
    time, channels, state = 1024, 64, 16
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
    wide, long = shape(1, time, channels), shape(1, time, state)
    arguments = (wide, wide, shape(channels, state), long, long)

    def temporary(form):
        loss = lambda *arrays: jnp.sum(selective_scan(*arrays, form=form, chunk=32)[0] ** 2)
        compiled = jax.jit(jax.grad(loss, range(5))).lower(*arguments).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    full = 4 * time * channels * state
    assert temporary("chunked") < 0.7 * full < full < temporary("recurrent")


def test_bfloat16_is_summed_in_float32():
    given = inputs(jnp.bfloat16)
    y, after = jax.jit(functools.partial(selective_scan, form="chunked", chunk=4))(*given)
    assert y.dtype == jnp.bfloat16
    assert after.h.dtype == jnp.float32
    expected, _ = selective_scan_reference(*(array.astype(np.float32) for array in given))
    np.testing.assert_allclose(np.asarray(y, np.float32), expected, rtol=2**-8, atol=1e-5)  # y is rounded once


def test_mistakes_are_named():
    given = tuple(map(jnp.asarray, inputs(np.float32)))
    cases = [
        ({"form": "chunks"}, "unknown form of a selective scan 'chunks'; the nearest is 'chunked'"),
        ({"chunk": 0}, "chunk of a selective scan is 0; expected at least 1 token"),
        ({"state": initial_state(3, STATE, CHANNELS)}, r"shape \(3, 3, 5\); expected \(2, 3, 5\)"),
    ]
    for settings, message in cases:
        with pytest.raises(UsageError, match=message):
            selective_scan(*given, **settings)


def test_mamba_is_its_block_around_s6():
    mamba = Mamba(state=4, step_rank=2)
    block = MambaBlock(inner=S6(state=4, step_rank=2, glu=False))
    x = np.random.default_rng(0).normal(size=(2, 9, 8)).astype(np.float32)
    params = jax.jit(mamba.init)(jax.random.key(1), x)["params"]
    around = {name: leaf for name, leaf in params.items() if name != "ssm"} | {"mixer": {"ssm": params["ssm"]}}
    ids = jnp.asarray(RUNS[:, 3:12])
    expected, state = jax.jit(mamba.apply)({"params": params}, x, ids, mamba.initial_state(2, 9, 8))
    y, other = jax.jit(block.apply)({"params": around}, x, ids, block.initial_state(2, 9, 8))
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(other.inner.h, state.h, rtol=1e-5, atol=1e-7)


def test_where_the_parameters_start():
    """Section 3.6 of Mamba's paper and the published code; Mamba-2's A lies in [1, 16]."""
    x = jnp.zeros((1, 1, 64))
    steps = lambda bias: np.asarray(jax.nn.softplus(bias))
    found = jax.jit(Mamba(residual_scale=0.5).init)(jax.random.key(0), x)["params"]
    ssm = found["ssm"]
    assert 0.001 <= steps(ssm["delta_bias"]).min() < 0.003 < 0.03 < steps(ssm["delta_bias"]).max() <= 0.1
    np.testing.assert_allclose(np.exp(ssm["A_log"]), np.tile(np.arange(1, 17), (128, 1)), rtol=1e-6)
    np.testing.assert_array_equal(ssm["D"], 1)
    for kernel, limit in (
        (found["input"]["kernel"], 64**-0.5), (found["output"]["kernel"], 0.5 * 128**-0.5),
        (ssm["B"]["kernel"], 128**-0.5), (ssm["delta"]["kernel"], 4**-0.5), (found["convolution"]["kernel"], 0.5),
    ):  # fmt: skip
        assert 0.95 * limit < np.abs(kernel).max() <= limit
    found = jax.jit(Mamba2(head_size=2, state=4).init)(jax.random.key(0), x)["params"]
    A = np.exp(found["A_log"])
    assert 1 <= A.min() < 3 < 13 < A.max() <= 16
    assert 0.001 <= steps(found["delta_bias"]).min() < 0.003 < 0.03 < steps(found["delta_bias"]).max() <= 0.1


def test_mistakes_with_the_layers_are_named():
    x = jnp.zeros((2, 3, 8))
    apply = lambda mixer, state: jax.eval_shape(mixer.init, jax.random.key(0), x, None, state)
    cases = [
        (lambda: Mamba(chunk=0), "chunk of mamba is 0; expected at least 1"),
        (lambda: Mamba(state=0), "state of mamba is 0; expected an integer of at least 1"),
        (lambda: Mamba(form="scan"), "unknown form of mamba 'scan'"),
        (lambda: Mamba(step_min=0.2), "step_min and step_max of mamba are 0.2 and 0.1"),
        (lambda: Mamba2(A_min=0.0), "A_min and A_max of mamba2 are 0.0 and 16.0"),
        (lambda: Mamba2(head_size=5).initial_state(1, 1, 8), "head_size of mamba2 is 5, .* 16 inner channels; .* is 4"),
        (lambda: Mamba2(head_size=4, groups=3).initial_state(1, 1, 8), "groups of mamba2 is 3, .* 4 heads; .* is 2"),
        (lambda: S4(state=7), "size 7; expected an even number"),
        (lambda: S4D(initial="linear"), "unknown initial A of s4d 'linear'"),
        (lambda: S4(chunk=-1), "chunk of s4 is -1"),
        (lambda: apply(Mamba(), Mamba().initial_state(3, 3, 8)), "state of mamba has 3 rows; expected 2"),
        (lambda: apply(Mamba(), S4().initial_state(2, 3, 8)), "mamba was given a S4State .* expected a MambaState"),
        (lambda: apply(S4(), S4(state=8).initial_state(2, 3, 8)), r"shape \(2, 8, 4\); expected \(2, 8, 32\)"),
        (lambda: apply(Mamba(), Mamba(state=8).initial_state(2, 3, 8)), r"shape \(2, 8, 16\); expected \(2, 16, 16\)"),
        (
            lambda: apply(S4(form="convolution"), S4().initial_state(2, 3, 8)),
            "form='convolution'; expected form='auto'",
        ),
    ]
    for call, message in cases:
        with pytest.raises(UsageError, match=message):
            call()


@pytest.mark.parametrize(
    "mixer",
    [
        Mamba(),
        Mamba2(head_size=4),
        S4(),
        *(pytest.param(m, marks=pytest.mark.thorough) for m in (S4D(), S6(), MambaBlock())),
    ],
    ids=lambda mixer: type(mixer).__name__,
)
def test_short_sequences(mixer):
    """Of no token and of one: with a state and without they are the same."""

    @jax.jit
    def run(key):
        variables = mixer.init(key, jnp.ones((2, 1, 8)))
        rows = [jnp.ones((2, time, 8)) for time in (0, 1)]
        with_state = [mixer.apply(variables, x, None, mixer.initial_state(2, 4, 8)) for x in rows]
        return with_state, [mixer.apply(variables, x)[0] for x in rows]

    for time, ((y, state), without) in enumerate(zip(*run(jax.random.key(0)))):
        assert y.shape == (2, time, 8)
        np.testing.assert_allclose(y, without, atol=1e-5)
        np.testing.assert_array_equal(state.at.last_position, time - 1)
