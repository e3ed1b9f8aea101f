"""Cross-entropy against its definition, values and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax.errors import UsageError
from arch_jax.ops.losses import cross_entropy, cross_entropy_reference, perceptron

VARIANTS = [{}, {"label_smoothing": 0.1}, {"label_smoothing": 1, "z_loss": 1e-2}]


def examples(dtype=jnp.float32, spread=3.0):
    rng = np.random.default_rng(0)
    return (spread * rng.normal(size=(2, 5, 11))).astype(dtype), rng.integers(0, 11, (2, 5))


def both(logits, targets, **settings):
    """(loss, gradient of a weighted sum) of the op and of its oracle."""

    def weighted(f, logits):
        loss = f(logits, jnp.asarray(targets), **settings)
        return jnp.sum(loss * np.arange(1, 11, dtype=loss.dtype).reshape(2, 5)), loss

    for f in (cross_entropy, cross_entropy_reference):
        (_, loss), gradient = jax.jit(jax.value_and_grad(functools.partial(weighted, f), has_aux=True))(logits)
        yield loss, gradient


@pytest.mark.parametrize("settings", VARIANTS)
def test_equals_the_definition(settings):
    (loss, gradient), (expected, expected_gradient) = both(*examples(), **settings)
    np.testing.assert_allclose(loss, expected, rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-6)
    with jax.enable_x64(True):
        (loss, gradient), (expected, expected_gradient) = both(*examples(np.float64), **settings)
        assert loss.dtype == gradient.dtype == jnp.float64
        np.testing.assert_allclose(loss, expected, rtol=1e-13)
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-12, atol=1e-13)


def test_bfloat16_logits_give_float32_losses():
    logits, targets = examples(jnp.bfloat16)
    (loss, gradient), _ = both(logits, targets)
    assert loss.dtype == jnp.float32
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(loss, jax.jit(cross_entropy_reference)(logits.astype(np.float32), targets), rtol=1e-5)


def test_uniform_logits_cost_the_log_of_the_vocabulary():
    np.testing.assert_allclose(cross_entropy(jnp.zeros((3, 256)), jnp.arange(3)), np.log(256), rtol=1e-6)


def test_large_logits_are_stable():
    logits, targets = examples(spread=1e4)
    (loss, gradient), _ = both(logits, targets)
    assert np.isfinite(loss).all()
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("target", [-1, 11])
def test_a_target_outside_the_vocabulary_is_nan_and_alone(target):
    logits, targets = examples()
    targets[0, 0] = target
    for f in (cross_entropy, cross_entropy_reference):
        loss = np.asarray(jax.jit(f)(logits, targets))
        assert np.isnan(loss[0, 0])
        assert np.isfinite(loss.ravel()[1:]).all()


def test_vmap_and_no_batch():
    logits, targets = examples()
    mapped, whole = (jax.jit(f)(logits, targets) for f in (jax.vmap(cross_entropy), cross_entropy))
    np.testing.assert_allclose(mapped, whole, rtol=1e-6)
    assert jax.eval_shape(cross_entropy, logits[0, 0], targets[0, 0]).shape == ()


@pytest.mark.parametrize("settings", [{"label_smoothing": -0.1}, {"label_smoothing": 1.5}, {"z_loss": -1.0}])
def test_mistakes_are_named(settings):
    ((name, value),) = settings.items()
    with pytest.raises(UsageError, match=f"{name} is {value}; expected"):
        cross_entropy(*map(jnp.asarray, examples()), **settings)


@pytest.mark.parametrize("loss", [cross_entropy, perceptron])
def test_classes_that_do_not_exist(loss):
    """A class of -1 is not the last one."""
    found = loss(jnp.array([[0.0, 1.0, 3.0]] * 4), jnp.array([-1, 3, -100, 2]))
    np.testing.assert_array_equal(np.isnan(found), [True, True, True, False])
