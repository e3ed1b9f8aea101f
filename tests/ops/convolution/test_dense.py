"""Convolution against its definition, values and gradients, in every implementation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax.errors import UsageError
from arch_jax.ops.convolution.dense import IMPLEMENTATIONS, choose, convolve, convolve_reference, padded

DENSE = [name for name in IMPLEMENTATIONS if name != "shifts"]


def found(form, height, width, size, stride, padding, groups=1, dilation=1, channels=3, features=4):
    """What a form gives, and its gradients in images and kernel, in one program."""
    draw = np.random.default_rng(size)
    x = draw.normal(size=(2, height, width, channels))
    kernel = draw.normal(size=(size, size, channels // groups, features))

    def loss(x, kernel):
        y = form(x, kernel, stride, padding, groups=groups, dilation=dilation)
        return jnp.sum(jnp.sin(y)), y

    (_, y), gradients = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(x, kernel)
    return y, *gradients


@functools.cache
def expected(*case):
    """What the definition gives, once for all implementations."""
    return found(convolve_reference, *case)


def check(implementation, *case):
    """Values and gradients are those of the definition."""
    with jax.enable_x64(True):
        y, *gradients = found(functools.partial(convolve, implementation=implementation), *case)
        value, *slopes = expected(*case)
        assert y.dtype == jnp.float64
        np.testing.assert_allclose(y, value, atol=1e-12)
        for ours, theirs in zip(gradients, slopes, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-11)


@pytest.mark.parametrize("implementation", DENSE)
@pytest.mark.parametrize(
    ("side", "size", "stride", "padding"),
    [
        (8, 3, 1, None),
        (8, 3, 2, 1),
        (7, 2, 1, None),
        (6, 1, 2, 0),
        # The same ways at sizes whose definition takes long to compile.
        *(pytest.param(*case, marks=pytest.mark.thorough) for case in ((9, 5, 1, 0), (5, 5, 1, 0), (11, 7, 3, 3))),
    ],
)
def test_values_and_gradients(implementation, side, size, stride, padding):
    check(implementation, side, side, size, stride, padding)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("height", "width", "size", "stride", "padding", "groups", "dilation", "multiple"),
    [
        (7, 8, 2, 2, "same", 6, 1, 2),
        pytest.param(9, 9, 3, 2, 1, 6, 1, 2, marks=pytest.mark.thorough),
        pytest.param(8, 7, 3, 1, None, 6, 1, 1, marks=pytest.mark.thorough),
        pytest.param(7, 8, 5, 2, "same", 6, 1, 1, marks=pytest.mark.thorough),
        (8, 9, 3, 1, None, 2, 2, 1),
        (8, 8, 3, 2, (0, 1), 3, 1, 2),
        (9, 8, 2, 1, "same", 1, 2, 1),
    ],
)
def test_groups_dilation_and_padding(implementation, height, width, size, stride, padding, groups, dilation, multiple):
    if implementation == "shifts" and groups != 6:
        pytest.skip("shifts are for depthwise convolutions")
    check(implementation, height, width, size, stride, padding, groups, dilation, 6, 6 * multiple)


def test_groups_are_convolutions_side_by_side():
    draw = np.random.default_rng(0)
    x, k = (draw.normal(size=shape).astype(np.float32) for shape in ((2, 6, 6, 4), (3, 3, 2, 6)))
    of_half = jax.jit(convolve_reference)
    parts = [of_half(x[..., :2], k[..., :3]), of_half(x[..., 2:], k[..., 3:])]
    whole = jax.jit(functools.partial(convolve, groups=2))(x, k)
    np.testing.assert_allclose(whole, np.concatenate(parts, -1), atol=1e-5)


def test_same_is_tensorflows():
    # https://www.tensorflow.org/api_docs/python/tf/nn, notes on padding: the odd zero comes after.
    assert padded("same", (224, 225), 3, 2) == ((0, 1), (1, 1))
    assert padded(None, (8, 8), 4) == ((1, 2), (1, 2))
    assert padded("same", (2, 3), 1, 5) == ((0, 0), (0, 0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"groups": 4}, "groups is 4; expected a divisor of 6 channels"),
        ({"groups": 0}, "groups is 0; expected a divisor of 6 channels"),
        ({"groups": 3}, "the kernel is for 9 channels, and the images have 6"),
        ({"groups": 2, "implementation": "shifts"}, "groups is 2; 'shifts' expects one for each of the 6 channels"),
        ({"groups": 2, "padding": "sane"}, "unknown padding 'sane'; the nearest is 'same'"),
        ({"groups": 2, "padding": -1}, "padding is -1"),
    ],
)
def test_what_is_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        convolve(jnp.zeros((1, 5, 5, 6)), jnp.zeros((3, 3, 3, 6)), **settings)


def test_the_choice_is_by_platform():
    assert (choose("cpu"), choose("gpu"), choose("tpu")) == ("patches", "xla", "xla")
    assert (choose("cpu", depthwise=True), choose("gpu", depthwise=True)) == ("shifts", "xla")
    with pytest.raises(UsageError, match="patchs"):
        convolve(jnp.zeros((1, 3, 3, 1)), jnp.zeros((3, 3, 1, 1)), implementation="patchs")
