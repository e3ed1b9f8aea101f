"""The linear recurrence: its three forms against the definition, their gradients, and the scan that keeps little."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax.errors import UsageError
from arch_jax.ops.recurrence import linear as ops
from arch_jax.ops.recurrence.linear import FORMS, linear_recurrence_reference, resets, scan_in_chunks
from arch_jax.ops.segments import runs_and_positions

#: Those that take any dtype; the kernel is in tests/ops/pallas.
EXACT = tuple(form for form in FORMS if form != "pallas")

# Compiled whole: op by op, every small operation would be compiled on its own.
linear_recurrence = jax.jit(ops.linear_recurrence, static_argnames=("form", "chunk"))


def draw(time, dtype=np.float64, seed=0):
    """Factors of at most 1, what is added, and where it begins."""
    generator = np.random.default_rng(seed)
    shape = (2, time, 3, 2)
    real = lambda *shape: generator.normal(size=shape)
    values = (real(*shape), real(*shape), real(2, 3, 2))
    if np.issubdtype(dtype, np.complexfloating):
        values = tuple(x + 1j * real(*x.shape) for x in values)
    a, b, before = values
    return (a / np.maximum(np.abs(a), 1)).astype(dtype), b.astype(dtype), before.astype(dtype)


@pytest.mark.parametrize(
    ("time", "chunk", "dtype"),
    [
        *((time, chunk, np.float64) for time, chunk in ((0, 4), (1, 4), (7, 20))),
        (13, 4, np.complex128),
        pytest.param(13, 4, np.float64, marks=pytest.mark.thorough),
        *(pytest.param(*case, np.complex128, marks=pytest.mark.thorough) for case in ((0, 4), (1, 4), (7, 20))),
    ],
)
def test_all_forms_are_the_definition(dtype, time, chunk):
    with jax.enable_x64(True):
        a, b, before = draw(time, dtype)
        expected = linear_recurrence_reference(a, b, before)
        for form in EXACT:
            h = linear_recurrence(jnp.asarray(a), jnp.asarray(b), jnp.asarray(before), form=form, chunk=chunk)
            assert h.dtype == dtype
            np.testing.assert_allclose(h, expected, atol=1e-12)
        if time:
            np.testing.assert_allclose(linear_recurrence(jnp.asarray(a), jnp.asarray(b))[:, 0], b[:, 0])


@pytest.mark.parametrize("dtype", [pytest.param(np.float64, marks=pytest.mark.thorough), np.complex128])
def test_the_gradient_is_that_of_a_plain_loop(dtype):
    """Also of factors that all channels share, whose gradients are sums."""
    with jax.enable_x64(True):
        a, b, before = map(jnp.asarray, draw(9, dtype))
        a = a[:, :, :1]
        weights = jnp.asarray(draw(9, dtype, seed=1)[1])

        def loop(a, b, before):
            h, out = before, []
            for t in range(b.shape[1]):
                h = a[:, t] * h + b[:, t]
                out.append(h)
            return jnp.stack(out, axis=1)

        def loss(form, a, b, before):
            return jnp.sum(jnp.abs(form(a, b, before) * weights) ** 2)

        expected = jax.jit(jax.grad(functools.partial(loss, loop), argnums=(0, 1, 2)))(a, b, before)
        for form in EXACT[1:]:
            ours = functools.partial(linear_recurrence, form=form, chunk=4)
            found = jax.jit(jax.grad(functools.partial(loss, ours), argnums=(0, 1, 2)))(a, b, before)
            chex.assert_trees_all_close(found, expected, atol=1e-10, rtol=1e-10)


def test_the_gradient_has_a_gradient():
    with jax.enable_x64(True):
        a, b, before = map(jnp.asarray, draw(5))
        loss = lambda a: jnp.sum(linear_recurrence(a, b, before, form="chunked", chunk=2) ** 2)
        slope = lambda a: jnp.sum(jnp.sin(jax.grad(loss)(a)))
        step = 1e-6 * jnp.asarray(draw(5, seed=3)[0])
        slope, rise = jax.jit(slope), jax.jit(jax.grad(slope))
        found = jnp.sum(rise(a) * step)
        np.testing.assert_allclose(found, (slope(a + step) - slope(a - step)) / 2, rtol=1e-6)


def test_bad_input_is_named():
    a = jnp.ones((1, 3, 2))
    with pytest.raises(UsageError, match=r"form of a linear recurrence 'sequentiel'.*sequential"):
        linear_recurrence(a, a, form="sequentiel")
    with pytest.raises(UsageError, match="chunk of a linear recurrence is 0; expected at least 1"):
        linear_recurrence(a, a, chunk=0)
    with pytest.raises(UsageError, match="chunk of a scan is -1"):
        scan_in_chunks(lambda c, x: (c, x), 0.0, jnp.ones(3), chunk=-1)


@pytest.mark.parametrize("chunk", [4, 50, *(pytest.param(n, marks=pytest.mark.thorough) for n in (1, 6))])
def test_a_scan_in_chunks_is_a_scan(chunk):
    with jax.enable_x64(True):
        xs = {"x": jnp.asarray(draw(11)[1].swapaxes(0, 1)), "n": jnp.arange(11)}

        def body(carry, x):
            carry = jnp.tanh(carry * 0.9 + x["x"])
            return carry, (carry * x["n"], jnp.sum(carry))

        def loss(scan, begin, xs):
            carry, ys = scan(body, begin, xs)
            return jnp.sum(carry**2) + jnp.sum(ys[0]) + jnp.sum(ys[1] ** 2)

        begin = jnp.zeros_like(xs["x"][0])
        ours = functools.partial(scan_in_chunks, chunk=chunk)
        chex.assert_trees_all_close(ours(body, begin, xs), jax.lax.scan(body, begin, xs), atol=1e-12)
        grads = [
            jax.jit(jax.grad(functools.partial(loss, scan), 1, allow_int=True))(begin, xs)
            for scan in (ours, jax.lax.scan)
        ]
        chex.assert_trees_all_close(grads[0]["x"], grads[1]["x"], atol=1e-12)


def test_a_scan_in_chunks_keeps_only_the_borders():
    """Of 256 steps with a state of 4 kB, the gradient keeps 16 + 16 at a time, and not 256."""
    xs = jnp.ones((256, 1024))

    def body(carry, x):
        carry = jnp.sin(carry * x)
        return carry, carry[0]

    def memory(scan):
        grad = jax.jit(jax.grad(lambda c, xs: jnp.sum(scan(body, c, xs)[1])))
        return grad.lower(xs[0], xs).compile().memory_analysis().temp_size_in_bytes

    assert memory(functools.partial(scan_in_chunks, chunk=16)) < 0.4 * memory(jax.lax.scan)


def test_resets():
    run, position, _ = runs_and_positions(jnp.array([[0, 5, 5, 0, 5, 7]]))
    starts, real = resets(run, position)
    np.testing.assert_array_equal(starts[0], [False, True, False, False, False, True])
    np.testing.assert_array_equal(real[0], [False, True, True, False, True, True])
