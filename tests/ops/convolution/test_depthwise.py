"""Depthwise convolution as shifted images: its own gradient against the automatic one and against XLA's operation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from arch_jax.ops.convolution.dense import padded
from arch_jax.ops.convolution.depthwise import COLUMNS, shifts, shifts_reference


def xla(x, kernel, stride, pads, dilation=1):
    """XLA's convolution in groups of one channel."""
    return lax.conv_general_dilated(
        x,
        kernel[:, :, None],
        (stride, stride),
        pads,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def value_and_gradients(f, x, kernel, *settings):
    """The result, and the gradients of a function of it that weighs every pixel differently."""
    result, back = jax.vjp(lambda x, k: f(x, k, *settings), x, kernel)
    weights = np.cos(np.arange(result.size)).reshape(result.shape).astype(result.dtype)
    return result, *back(weights)


def arrays(height, width, channels, size, batch=2):
    draw = np.random.default_rng(size)
    return draw.normal(size=(batch, height, width, channels)), draw.normal(size=(size, size, channels))


@pytest.mark.parametrize(
    ("height", "width", "channels", "size", "stride", "padding", "dilation"),
    [
        (5, 6, 3, 3, 1, None, 1),
        pytest.param(6, 5, 3, 5, 1, None, 1, marks=pytest.mark.thorough),
        pytest.param(9, 8, 2, 7, 1, None, 1, marks=pytest.mark.thorough),
        (8, 8, 3, 3, 2, "same", 1),  # uneven: (0, 1) zeros
        pytest.param(8, 7, 3, 5, 2, "same", 1, marks=pytest.mark.thorough),
        pytest.param(9, 10, 2, 7, 2, "same", 1, marks=pytest.mark.thorough),
        (8, 8, 3, 3, 2, 0, 1),  # the last row and column meet no window
        (9, 8, 2, 3, 1, None, 2),
        (9, 11, 2, 3, 2, "same", 3),
        (4, COLUMNS - 1, 2, 3, 1, None, 1),
        (3, COLUMNS + 1, 2, 3, 1, None, 1),
        pytest.param(3, 2 * COLUMNS + 5, 2, 3, 2, "same", 1, marks=pytest.mark.thorough),
        (2, 4 * COLUMNS + 3, 2, 3, 2, "same", 1),
        (6, 6, 1, 3, 1, None, 1),
        pytest.param(6, 7, 1, 5, 2, "same", 1, marks=pytest.mark.thorough),
        (1, 1, 3, 7, 1, None, 1),  # nearly all of the kernel meets zeros
        pytest.param(1, 1, 1, 7, 2, "same", 1, marks=pytest.mark.thorough),
        (5, 5, 2, 3, 1, (4, 3), 1),  # more zeros than the kernel reaches
        (4, 6, 2, 1, 1, 0, 1),
    ],
)
def test_values_and_gradients(height, width, channels, size, stride, padding, dilation):
    with jax.enable_x64(True):
        x, kernel = arrays(height, width, channels, size)
        pads = padded(padding, (height, width), size, stride, dilation)
        forms = shifts, shifts_reference, xla
        of = jax.jit(lambda x, kernel: [value_and_gradients(f, x, kernel, stride, pads, dilation) for f in forms])
        for ours, reference, library in zip(*of(x, kernel)):
            np.testing.assert_allclose(ours, reference, atol=1e-11)
            np.testing.assert_allclose(ours, library, atol=1e-11)


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (5, 2)])
def test_bfloat16_sums_in_float32(size, stride):
    """Each result is what float32 gives for the same numbers, rounded once, not at every place of the kernel."""
    height, width, pads = 24, COLUMNS + 8, ((size // 2,) * 2,) * 2
    x, kernel = (abs(a).astype(jnp.bfloat16) for a in arrays(height, width, 3, size))

    @functools.partial(jax.jit, static_argnums=0)
    def both(f, x, kernel):
        value, back = jax.vjp(lambda *a: f(*a, stride, pads), x, kernel)
        return value, *back(jnp.ones_like(value))

    exact = both(shifts_reference, x.astype(np.float32), kernel.astype(np.float32))
    for value, expected in zip(both(shifts, x, kernel), exact):
        assert value.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(value, np.float32), expected, rtol=1.01 * 2**-8)


def test_transformations():
    x, kernel = (a.astype(np.float32) for a in arrays(6, 5, 3, 3))
    pads = padded("same", (6, 5), 3, 2)
    loss = lambda f: lambda x, kernel: jnp.sum(jnp.sin(f(x, kernel, 2, pads)))
    gradient = jax.grad(loss(shifts), (0, 1))
    expected = jax.grad(loss(shifts_reference), (0, 1))

    shape = jax.eval_shape(lambda x, k: shifts(x, k, 2, pads), x, kernel)
    assert (shape.shape, shape.dtype) == ((2, 3, 3, 3), jnp.float32)
    # A gradient's gradient, as a penalty on it needs.
    twice = lambda g: jax.grad(lambda x, k: sum(jnp.sum(part**2) for part in g(x, k)), (0, 1))
    recomputed = jax.grad(jax.checkpoint(loss(shifts)), (0, 1))
    several = lambda g, x, kernel: jax.vmap(g, (None, 0))(x, jnp.stack([kernel, 2 * kernel]))
    found, sought, *others = jax.jit(
        lambda x, kernel: (
            *(several(g, x, kernel) for g in (gradient, expected)),
            recomputed(x, kernel),
            expected(x, kernel),
            twice(gradient)(x, kernel),
            twice(expected)(x, kernel),
        )
    )(x, kernel)
    for (ours, theirs), atol in zip(((found, sought), others[:2], others[2:]), (1e-5, 1e-5, 1e-4)):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, atol=atol)
