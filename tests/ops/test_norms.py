"""Norms against their definitions, values and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax.errors import UsageError
from arch_jax.ops.norms import (
    batch_norm,
    batch_statistics,
    group_norm,
    group_norm_reference,
    layer_norm,
    layer_norm_reference,
    rms_norm,
    rms_norm_reference,
)

EPSILON = 1e-3
WIDTH = 6
FORMS = {
    "layer_norm": (
        lambda x, s, b: layer_norm(x, s, b, EPSILON),
        lambda x, s, b: layer_norm_reference(x, s, b, EPSILON),
        3,
    ),
    "layer_norm without bias": (
        lambda x, s: layer_norm(x, s, None, EPSILON),
        lambda x, s: layer_norm_reference(x, s, None, EPSILON),
        2,
    ),
    "rms_norm": (lambda x, s: rms_norm(x, s, EPSILON), lambda x, s: rms_norm_reference(x, s, EPSILON), 2),
}


def arrays(count, dtype=np.float32, offset=1.0):
    rng = np.random.default_rng(0)
    shapes = [(3, 4, WIDTH), (WIDTH,), (WIDTH,)][:count]
    return tuple((rng.normal(size=s) + offset).astype(dtype) for s in shapes)


@functools.partial(jax.jit, static_argnums=0)
def values_and_gradients(form, given):
    weights = np.random.default_rng(1).normal(size=given[0].shape).astype(given[0].dtype)
    out, pull = jax.vjp(form, *given)
    return out, *pull(weights)


@pytest.mark.parametrize("name", FORMS)
def test_equals_the_definition(name):
    form, reference, count = FORMS[name]
    for a, b in zip(values_and_gradients(form, arrays(count)), values_and_gradients(reference, arrays(count))):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=5e-6)
    with jax.enable_x64(True):
        given = arrays(count, np.float64)
        for a, b in zip(values_and_gradients(form, given), values_and_gradients(reference, given)):
            assert a.dtype == jnp.float64
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", FORMS)
def test_bfloat16_stays_near_float32_under_float32_parameters(name):
    form, reference, count = FORMS[name]
    x, *parameters = arrays(count)
    low = x.astype(jnp.bfloat16)
    got = values_and_gradients(form, (low, *parameters))
    expected = values_and_gradients(reference, (low.astype(np.float32), *parameters))
    assert [a.dtype for a in got] == [jnp.bfloat16, jnp.bfloat16] + [jnp.float32] * (count - 1)
    for a, b in zip(got, expected):
        np.testing.assert_allclose(np.asarray(a, np.float32), b, rtol=2e-2, atol=3e-2)


@pytest.mark.parametrize("name", FORMS)
def test_vmap_over_parameters_too(name):
    form, _, count = FORMS[name]
    given = arrays(count)
    seeds = tuple(np.stack([x, 2 * x]) for x in given)
    loss = lambda *given: jnp.sum(form(*given) ** 3)
    gradient = jax.grad(loss, tuple(range(count)))
    mapped, single = jax.jit(jax.vmap(gradient))(*seeds), jax.jit(gradient)
    for i, scale in enumerate((1, 2)):
        one = single(*(scale * x for x in given))
        for a, b in zip(mapped, one):
            np.testing.assert_allclose(np.asarray(a)[i], b, rtol=2e-4, atol=1e-4)


def test_statistics_of_the_result():
    x = arrays(1)[0]
    ones = np.ones(WIDTH, np.float32)
    y, rms = map(np.asarray, jax.jit(lambda x, s: (layer_norm(x, s, None, 0.0), rms_norm(x, s, 0.0)))(x, ones))
    np.testing.assert_allclose(y.mean(-1), 0, atol=1e-6)
    np.testing.assert_allclose(y.std(-1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.mean(rms**2, -1), 1, rtol=1e-5)


def test_a_large_mean_does_not_swallow_the_variance():
    """The variance as mean of squares less square of the mean would be 0 or negative here."""
    x, ones = arrays(1)[0] + np.float32(3e3), np.ones(WIDTH)
    with jax.enable_x64(True):
        expected = jax.jit(lambda x: layer_norm_reference(x, ones, None, 0.0))(x.astype(np.float64))
    found = jax.jit(lambda x, scale: layer_norm(x, scale, None, 0.0))(x, ones.astype(np.float32))
    np.testing.assert_allclose(found, expected, atol=2e-3)


@pytest.mark.parametrize("value", [-1e-6, float("nan")])
def test_mistakes_are_named(value):
    x = jnp.asarray(arrays(1)[0])
    for form in (functools.partial(layer_norm, bias=None), rms_norm):
        with pytest.raises(UsageError, match=f"epsilon is {value}; expected"):
            form(x, jnp.ones(WIDTH), epsilon=value)


# -- batch norm --------------------------------------------------------------------------------------------------------


def test_batch_statistics_over_devices_are_those_of_the_whole_batch():
    """Under a mapped axis the parts of a batch count as one (not the mean of their variances)."""
    x = (np.random.default_rng(0).normal(size=(4, 6, 3)) + np.arange(4)[:, None, None]).astype(np.float32)
    whole = jax.jit(batch_statistics)(x.reshape(24, 3))
    parts = jax.jit(jax.vmap(lambda part: batch_statistics(part, "parts"), axis_name="parts"))(x)
    for a, b in zip(whole, parts):
        np.testing.assert_allclose(b, np.broadcast_to(a, b.shape), rtol=1e-5)
    assert not np.allclose(x.var(axis=1).mean(0), whole[1], rtol=0.1)


def test_batch_norm_gives_mean_bias_and_deviation_scale():
    x = jnp.asarray(3 * np.random.default_rng(1).normal(size=(50, 7, 4)) + 5, jnp.float32)
    mean, variance, count = jax.jit(batch_statistics)(x)
    assert float(count) == 350
    scale, bias = np.arange(1, 5, dtype=np.float32), np.arange(4, dtype=np.float32)
    y = np.asarray(jax.jit(lambda *given: batch_norm(*given, 0.0))(x, mean, variance, scale, bias))
    np.testing.assert_allclose(y.mean((0, 1)), bias, atol=1e-5)
    np.testing.assert_allclose(y.std((0, 1)), scale, rtol=1e-5)
    with pytest.raises(UsageError, match="epsilon is -1"):
        batch_norm(x, mean, variance, jnp.ones(4), jnp.ones(4), -1.0)


# -- group norm --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 3, *(pytest.param(n, marks=pytest.mark.thorough) for n in (2, 6))])
def test_group_norm_is_its_definition_group_after_group(groups):
    with jax.enable_x64(True):
        draw = np.random.default_rng(0)
        shapes = ((2, 3, 5, WIDTH), (WIDTH,), (WIDTH,))
        given = tuple(draw.normal(size=shape) + 1 for shape in shapes)
        for a, b in zip(
            values_and_gradients(lambda *g: group_norm(*g, groups, EPSILON), given),
            values_and_gradients(lambda *g: group_norm_reference(*g, groups, EPSILON), given),
        ):
            assert a.dtype == jnp.float64
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)


def test_group_norm_statistics_and_neighbours():
    """Scale 2 and bias 3 are deviation and mean of each group; other examples and groups change nothing."""
    x = (5 * np.random.default_rng(0).normal(size=(2, 40, 6)) + 7).astype(np.float32)
    norm = jax.jit(lambda x: group_norm(x, jnp.full(6, 2.0), jnp.full(6, 3.0), 3, 0.0))
    y = np.asarray(norm(x))
    grouped = y.reshape(2, 40, 3, 2)
    np.testing.assert_allclose(grouped.mean((1, 3)), 3, atol=1e-5)
    np.testing.assert_allclose(grouped.std((1, 3)), 2, rtol=1e-5)
    other = x.copy()
    other[1] *= 3
    other[0, :, 4:] += np.arange(40)[:, None]
    of_other = np.asarray(norm(other))
    np.testing.assert_array_equal(of_other[0, :, :4], y[0, :, :4])
    assert not np.allclose(of_other[0, :, 4:], y[0, :, 4:])


def test_group_norm_keeps_float32_statistics_of_bfloat16():
    x = (np.random.default_rng(1).normal(size=(2, 500, 4)) + 30).astype(jnp.bfloat16)
    norm = jax.jit(lambda x: group_norm(x, jnp.ones(4), jnp.zeros(4), 2))
    y = norm(x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(y, np.float32), norm(x.astype(np.float32)), atol=2e-2)


@pytest.mark.parametrize("groups", [0, 4, 7])
def test_groups_that_do_not_divide_the_channels(groups):
    with pytest.raises(UsageError, match=rf"groups is {groups}; expected a divisor of the 6 channels"):
        group_norm(jnp.ones((1, 2, 6)), jnp.ones(6), jnp.zeros(6), groups)
