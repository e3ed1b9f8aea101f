"""Pooling against its definition, values and gradients, and against PyTorch's rule for a last window."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax.errors import UsageError
from arch_jax.ops.convolution.pooling import average_pool, global_average, max_pool, max_pool_reference, windows_along

SHAPES = [(8, 8, 2, 2, 0), (9, 7, 3, 2, 1), (8, 11, 3, 1, 1), (7, 7, 7, 1, 0), (10, 9, 3, 3, 0), (6, 6, 2, 3, 0)]


def average_reference(x, size, stride, padding):
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    height, width = ((n - size) // stride + 1 for n in x.shape[1:3])
    window = lambda h, w: x[:, h * stride : h * stride + size, w * stride : w * stride + size].mean((1, 2))
    return np.stack([np.stack([window(h, w) for w in range(width)], 1) for h in range(height)], 1)


@pytest.mark.parametrize(
    ("height", "width", "size", "stride", "padding", "ceil"),
    [
        *(pytest.param(*s, False, marks=[pytest.mark.thorough] * (s in SHAPES[2:4])) for s in SHAPES),
        *(pytest.param(*s, True, marks=[pytest.mark.thorough] * (s not in (SHAPES[1], SHAPES[4]))) for s in SHAPES),
    ],
)
def test_max_pool(monkeypatch, height, width, size, stride, padding, ceil):
    x = np.random.default_rng(0).normal(size=(2, height, width, 3)).astype(np.float32)

    def value_and_gradient(form):
        loss = lambda x: (jnp.sum(jnp.sin(form(x, size, stride, padding, ceil))), form(x, size, stride, padding, ceil))
        (_, y), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(x)
        return y, gradient

    expected, slope = value_and_gradient(max_pool_reference)
    for on in ("cpu", "gpu"):
        monkeypatch.setattr("arch_jax.ops.convolution.pooling.platform", lambda on=on: on)
        y, gradient = value_and_gradient(max_pool)
        np.testing.assert_array_equal(y, expected, err_msg=on)
        np.testing.assert_allclose(gradient, slope, atol=1e-6, err_msg=on)


def test_of_equal_pixels_the_first_by_rows_gets_the_gradient():
    x, expected = np.zeros((2, 1, 3, 3, 1), np.float32)
    x[0, 0, 2] = x[0, 2, 0] = expected[0, 0, 2] = 1
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(max_pool(x, 3, 1))))(x)
    np.testing.assert_array_equal(gradient, expected)


@pytest.mark.parametrize(("height", "width", "size", "stride", "padding"), SHAPES)
def test_average_pool(height, width, size, stride, padding):
    x = np.random.default_rng(0).normal(size=(2, height, width, 3)).astype(np.float32)
    expected = average_reference(x, size, stride, padding)
    found = jax.jit(lambda x: average_pool(x, size, stride, padding))(x)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_mean_of_a_image_is_summed_in_float32():
    x = jnp.full((1, 64, 64, 1), 1.0078125, jnp.bfloat16)
    assert global_average(x).dtype == jnp.bfloat16
    assert float(global_average(x)[0, 0]) == 1.0078125


def test_a_last_window_that_is_not_whole():
    # torch.nn.MaxPool2d(3, stride=2, ceil_mode=True): 112 -> 56; padding 1 and size 2, stride 2: 5 -> 3, not 4.
    assert windows_along(112, 3, 2, 0, True) == (56, 1)
    assert windows_along(112, 3, 2, 0, False)[0] == 55
    assert windows_along(5, 2, 2, 1, True)[0] == 3
    with pytest.raises(UsageError, match="a side of 2 pixels has no window of 3"):
        max_pool(jnp.zeros((1, 2, 2, 1)), 3, 2)
