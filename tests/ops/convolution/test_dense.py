"""Convolution against its definition, values and gradients, in every implementation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax.errors import UsageError
from arch_jax.flops import count_flops
from arch_jax.ops.convolution.dense import IMPLEMENTATIONS, choose, convolve, convolve_reference, padded

DENSE = [name for name in IMPLEMENTATIONS if name not in ("shifts", "winograd")]


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


@pytest.mark.parametrize("implementation", [*DENSE, "shifts"])
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
    ("height", "width", "padding"), [(8, 8, None), (7, 10, (0, 1)), (3, 4, 0), (9, 5, 2), (1, 2, 1), (6, 7, "same")]
)
def test_minimal_filtering_is_the_convolution(height, width, padding):
    check("winograd", height, width, 3, 1, padding)


def test_minimal_filtering_is_as_exact_as_it_says():
    draw = np.random.default_rng(0)
    x, k = (draw.normal(size=shape) for shape in ((2, 8, 8, 64), (3, 3, 64, 32)))
    with jax.enable_x64(True):
        exact = np.asarray(convolve(jnp.asarray(x), jnp.asarray(k), implementation="patches"))
    y = convolve(jnp.asarray(x, jnp.float32), jnp.asarray(k, jnp.float32), implementation="winograd")
    assert np.sqrt(np.mean((y - exact) ** 2) / np.mean(exact**2)) < 1e-6


def taken(height, width, channels, features, dtype=jnp.float32, **settings):
    """Whether a convolution on a CPU is by minimal filtering."""
    x, k = (jax.ShapeDtypeStruct(s, dtype) for s in ((2, height, width, channels), (3, 3, channels, features)))
    return "winograd" in str(jax.make_jaxpr(functools.partial(convolve, **settings))(x, k))


def test_minimal_filtering_is_taken_where_it_pays():
    assert taken(16, 16, 64, 64)
    assert taken(17, 15, 64, 64, padding=(0, 1))
    for others in ({"stride": 2}, {"dilation": 2}, {"dtype": jnp.bfloat16}):
        assert not taken(16, 16, 64, 64, **others)
    for sizes in ((17, 16, 64, 64), (64, 64, 3, 64), (64, 64, 64, 3), (8, 8, 16, 16), (4, 4, 512, 512)):
        assert not taken(*sizes)


@pytest.mark.parametrize("batch", [1, 3])
def test_its_products_are_counted_as_the_convolutions(batch):
    x, k = jax.ShapeDtypeStruct((batch, 16, 16, 64), jnp.float32), jax.ShapeDtypeStruct((3, 3, 64, 32), jnp.float32)
    by = lambda name: functools.partial(convolve, implementation=name)
    slope = lambda form: jax.grad(lambda x, k: form(x, k).sum(), (0, 1))
    assert count_flops(by("winograd"), x, k) == count_flops(by("patches"), x, k)
    assert count_flops(slope(by("winograd")), x, k).products == count_flops(slope(by("patches")), x, k).products


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"groups": 4}, "groups is 4; expected a divisor of 6 channels"),
        ({"groups": 0}, "groups is 0; expected a divisor of 6 channels"),
        ({"groups": 3}, "the kernel is for 9 channels, and the images have 6"),
        ({"groups": 2, "implementation": "shifts"}, "groups is 2; 'shifts' expects one for each of the 6 channels"),
        ({"groups": 2, "implementation": "winograd"}, "'winograd' expects 3 x 3 with 1 of each"),
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
    assert (choose("cpu", products=10**6), choose("gpu", products=10**6)) == ("winograd", "xla")
    with pytest.raises(UsageError, match="patchs"):
        convolve(jnp.zeros((1, 3, 3, 1)), jnp.zeros((3, 3, 1, 1)), implementation="patchs")
