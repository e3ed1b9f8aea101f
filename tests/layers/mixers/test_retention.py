"""Retention: its decays, its three forms, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax.errors import UsageError
from arch_jax.layers.mixers.retention import Retention
from arch_jax.layers.mixers.rnn.lstm import LSTM
from arch_jax.layers.sequence_position import SequencePosition


def test_decays():
    """Equation 8, and what the paper's models have instead (section 3.1)."""
    gamma = lambda **settings: np.exp(Retention(**settings, parent=None).log_gamma())
    np.testing.assert_allclose(gamma(heads=4), 1 - 2.0 ** (-5 - np.arange(4)), rtol=1e-6)
    published = 1 - np.exp(np.linspace(np.log(1 / 32), np.log(1 / 512), 8))
    np.testing.assert_allclose(gamma(heads=8, longest=512.0), published, rtol=1e-6)
    np.testing.assert_allclose(gamma(heads=1), 1 - 1 / 32, rtol=1e-6)


@pytest.mark.thorough
def test_parallel_recurrent_and_chunkwise_are_the_same():
    """Section 2.1, in values and gradients."""
    with jax.enable_x64(True):
        x = np.random.default_rng(0).normal(size=(2, 21, 8))
        ids = jnp.asarray([[1] * 9 + [2] * 12, [1] * 5 + [0] * 2 + [1] * 9 + [3] * 5], jnp.int32)
        results = []
        for form in ("parallel", "recurrent", "chunked"):
            mixer = Retention(heads=2, form=form, chunk=4, dtype=jnp.float64, parameter_dtype=jnp.float64)
            params = jax.jit(mixer.init)(jax.random.key(1), x)
            loss = lambda p, x, mixer=mixer: jnp.sum(jnp.sin(mixer.apply(p, x, ids)[0]))
            results.append(jax.jit(jax.value_and_grad(loss, (0, 1)))(params, x))
        for other in results[1:]:
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10), other, results[0])


def test_only_differences_of_positions_count():
    """Moved along by padding in front, and fed token by token far from the beginning, it gives the same."""
    mixer = Retention(heads=2)
    x = np.random.default_rng(0).normal(size=(1, 6, 8)).astype(np.float32)
    params, apply = jax.jit(mixer.init)(jax.random.key(1), x), jax.jit(mixer.apply)
    whole = apply(params, x)[0]
    padded = np.pad(x, ((0, 0), (3, 0), (0, 0)), constant_values=1.0)
    moved = np.asarray(apply(params, padded, jnp.asarray([[0] * 3 + [1] * 6]))[0])
    np.testing.assert_allclose(moved[:, 3:], whole, atol=1e-5)
    one = jnp.ones((1,), jnp.int32)
    late = mixer.initial_state(1, 0, 8).replace(at=SequencePosition(one, one, 100 * one))
    np.testing.assert_allclose(apply(params, x, None, late)[0], whole, atol=1e-4)


@pytest.mark.parametrize("length", [0, 1])
def test_hardly_any_tokens(length):
    mixer = Retention(heads=2)
    params, apply = jax.jit(mixer.init)(jax.random.key(1), jnp.ones((2, 3, 8))), jax.jit(mixer.apply)
    y, after = apply(params, jnp.ones((2, length, 8)), None, mixer.initial_state(2, 0, 8))
    assert y.shape == (2, length, 8)
    np.testing.assert_array_equal(after.at.last_position, length - 1)
    assert apply(params, jnp.ones((2, length, 8)))[0].shape == y.shape


def test_bad_input():
    x = jnp.ones((2, 3, 8))
    with pytest.raises(UsageError, match=r"heads of retention is 3.*nearest is"):
        jax.eval_shape(Retention(heads=3).init, jax.random.key(0), x)
    with pytest.raises(UsageError, match="pairs"):
        jax.eval_shape(Retention(heads=8).init, jax.random.key(0), x)
    with pytest.raises(UsageError, match="longest"):
        Retention(longest=1.0)
    with pytest.raises(UsageError, match="value_size of retention is 0"):
        Retention(value_size=0)
    with pytest.raises(UsageError, match=r"chunk .*0"):
        jax.eval_shape(Retention(heads=2, chunk=0).init, jax.random.key(0), x)
    mixer = Retention(heads=2)
    params = jax.jit(mixer.init)(jax.random.key(0), x)
    with pytest.raises(UsageError, match="3 rows; expected 2"):
        jax.eval_shape(mixer.apply, params, x, None, mixer.initial_state(3, 0, 8))
    with pytest.raises(UsageError, match="LSTMState as its state; expected a RetentionState"):
        jax.eval_shape(mixer.apply, params, x, None, LSTM().initial_state(2, 0, 8))
