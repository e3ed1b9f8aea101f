"""Long convolutions: transform, Toeplitz matrix and token by token against the sum that they are."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax.errors import UsageError
from arch_jax.ops import segments
from arch_jax.ops.convolution import long as ops
from arch_jax.ops.convolution.long import initial_cache, long_convolution_reference

# Compiled whole: op by op, every small operation would be compiled on its own.
long_convolution = jax.jit(ops.long_convolution, static_argnames="form")
streamed = jax.jit(ops.streamed, static_argnames="form")
runs_and_positions = jax.jit(segments.runs_and_positions)
IDS = np.array([[1, 1, 1, 2, 2, 2, 2, 3, 3], [0, 4, 0, 0, 4, 7, 4, 4, 0]], np.int32)


def inputs(time=9, lags=9, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(2, time, channels)), rng.normal(size=(lags, channels))


@functools.partial(jax.jit, static_argnames="form")
def value_and_gradients(u, h, run, position, form):
    def loss(u, h):
        y = long_convolution(u, h, run=run, position=position, form=form)
        return jnp.sum(jnp.sin(y)), y

    (_, y), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(u, h)
    return y, *gradients


@pytest.mark.parametrize("packed", [False, True])
def test_all_forms_are_the_sum(packed):
    with jax.enable_x64(True):
        u, h = inputs(lags=11)
        run, position = runs_and_positions(IDS)[:2] if packed else (None, None)
        direct, fft = (value_and_gradients(u, h, run, position, form=form) for form in ("direct", "fft"))
        np.testing.assert_allclose(direct[0], long_convolution_reference(u, h, run), atol=1e-10)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), direct, fft)
        assert np.abs(direct[2]).max() > 0.1


def test_packed_runs_are_apart_exactly():
    """Not to rounding: a transform of the whole row would let a little of the neighbours in."""
    u, h = (a.astype(np.float32) for a in inputs())
    run, position, _ = runs_and_positions(IDS)
    first = lambda u: long_convolution(u, h, run=run, position=position, form="fft")[:, :, 0]
    influence = np.abs(
        np.asarray(jax.jit(jax.jacobian(first))(u))[0, :, 0, :, 0]
    )  # "time of y, time of u" of the first row
    assert np.all(influence[IDS[0][:, None] != IDS[0]] == 0)
    assert np.all(np.diag(influence) > 0)


@pytest.mark.parametrize("time", [0, 1, 97, *(pytest.param(n, marks=pytest.mark.thorough) for n in (2, 65, 128))])
def test_lengths(time):
    u, h = (a.astype(np.float32) for a in inputs(time, max(time, 1), 2))
    for form in ("auto", "direct", "fft"):
        np.testing.assert_allclose(long_convolution(u, h, form=form), long_convolution_reference(u, h), atol=2e-5)


@pytest.mark.parametrize("form", ["direct", "fft"])
@pytest.mark.parametrize("lengths", [[9], [1] * 9, [4, 0, 5], [2, 1, 3, 3]])
def test_in_parts(lengths, form):
    with jax.enable_x64(True):
        u, h = inputs(lags=12)
        run, position = map(np.asarray, runs_and_positions(IDS)[:2])
        cache, out, at = initial_cache(2, 10, 3, jnp.float64), [], 0
        for length in lengths:
            part = slice(at, at + length)
            y, cache = streamed(u[:, part], h, cache, run[:, part], position[:, part], form)
            out.append(y)
            at += length
        np.testing.assert_allclose(np.concatenate(out, axis=1), long_convolution_reference(u, h, run), atol=1e-10)
        assert np.asarray(cache.last_run).tolist() == [3, 3]
        assert np.asarray(cache.last_position).tolist() == [1, 1]
        kept = np.asarray(cache.u)
        np.testing.assert_array_equal(kept[0, :2], u[0, 7:])
        np.testing.assert_array_equal(kept[:, 2:], 0)


def test_beyond_the_room_is_not_a_number():
    u, h = (a.astype(np.float32) for a in inputs(time=4))
    run, position, _ = runs_and_positions(np.ones((2, 4), np.int32))
    y, _ = streamed(u, h, initial_cache(2, 3, 3), run, position)
    assert np.isnan(y).any(axis=(0, 2)).tolist() == [False, False, False, True]


def test_bad_input():
    u, h = inputs()
    with pytest.raises(UsageError, match="fft"):
        long_convolution(u, h, form="ftt")
    with pytest.raises(UsageError, match="was given 9 tokens; expected at most 4"):
        long_convolution(u, h[:4])
    with pytest.raises(UsageError, match="one of run and position"):
        long_convolution(u, h, run=np.ones((2, 9), np.int32))
    run, position, _ = runs_and_positions(np.ones((2, 9), np.int32))
    with pytest.raises(UsageError, match="room for 10 tokens; expected at most 9"):
        streamed(u, h, initial_cache(2, 10, 3), run, position)
    with pytest.raises(UsageError, match=r"cache has the shape \(1, 9, 3\)"):
        streamed(u, h, initial_cache(1, 9, 3), run, position)
