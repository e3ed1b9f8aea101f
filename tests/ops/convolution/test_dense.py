"""Convolution against its definition, values and gradients, in every implementation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax.errors import UsageError
from arch_jax.ops.convolution.dense import IMPLEMENTATIONS, choose, convolve, convolve_reference, padded

DENSE = [name for name in IMPLEMENTATIONS if name != "shifts"]


def check(fast, slow, x, k):
    """Values and gradients of two functions of pictures and kernels are equal."""
    with jax.enable_x64(True):
        x, k = jnp.asarray(x, jnp.float64), jnp.asarray(k, jnp.float64)
        np.testing.assert_allclose(jax.jit(fast)(x, k), jax.jit(slow)(x, k), atol=1e-12)
        for ours, theirs in zip(
            *(jax.jit(jax.grad(lambda x, k, f=f: jnp.sum(jnp.sin(f(x, k))), (0, 1)))(x, k) for f in (fast, slow))
        ):
            np.testing.assert_allclose(ours, theirs, atol=1e-11)


@pytest.mark.parametrize("implementation", DENSE)
@pytest.mark.parametrize(
    ("side", "size", "stride", "padding"),
    [(8, 3, 1, None), (9, 5, 1, 0), (8, 3, 2, 1), (7, 2, 1, None), (5, 5, 1, 0), (11, 7, 3, 3), (6, 1, 2, 0)],
)
def test_values_and_gradients(implementation, side, size, stride, padding):
    draw = np.random.default_rng(size)
    check(
        lambda x, k: convolve(x, k, stride, padding, implementation),
        lambda x, k: convolve_reference(x, k, stride, padding),
        draw.normal(size=(2, side, side, 3)),
        draw.normal(size=(size, size, 3, 4)),
    )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("height", "width", "size", "stride", "padding", "groups", "dilation", "multiple"),
    [
        (8, 7, 3, 1, None, 6, 1, 1),
        (9, 9, 3, 2, 1, 6, 1, 2),
        (7, 8, 5, 2, "same", 6, 1, 1),
        (8, 9, 3, 1, None, 2, 2, 1),
        (8, 8, 3, 2, (0, 1), 3, 1, 2),
        (9, 8, 2, 1, "same", 1, 2, 1),
    ],
)
def test_groups_dilation_and_padding(implementation, height, width, size, stride, padding, groups, dilation, multiple):
    if implementation == "shifts" and groups != 6:
        pytest.skip("shifts are for depthwise convolutions")
    draw = np.random.default_rng(size)
    settings = {"groups": groups, "dilation": dilation}
    check(
        lambda x, k: convolve(x, k, stride, padding, implementation, **settings),
        lambda x, k: convolve_reference(x, k, stride, padding, **settings),
        draw.normal(size=(2, height, width, 6)),
        draw.normal(size=(size, size, 6 // groups, 6 * multiple)),
    )


def test_groups_are_convolutions_side_by_side():
    draw = np.random.default_rng(0)
    x, k = jnp.asarray(draw.normal(size=(2, 6, 6, 4))), jnp.asarray(draw.normal(size=(3, 3, 2, 6)))
    parts = [convolve_reference(x[..., :2], k[..., :3]), convolve_reference(x[..., 2:], k[..., 3:])]
    np.testing.assert_allclose(convolve(x, k, groups=2), jnp.concatenate(parts, -1), atol=1e-5)


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
        ({"groups": 3}, "the kernel is for 9 channels, and the pictures have 6"),
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
