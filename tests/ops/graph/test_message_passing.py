"""Sums over edges against the dense matrix, and the spectrum of the normalised adjacency."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax.ops.graph import message_passing


def example(seed=0, nodes=9, edges=20, dtype=np.float64):
    draw = np.random.default_rng(seed)
    senders, receivers = draw.integers(0, nodes, (2, edges)).astype(np.int32)
    return draw.normal(size=(nodes, 4)).astype(dtype), senders, receivers, draw.uniform(0.1, 2, edges).astype(dtype)


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradients(form, x, senders, receivers, weights):
    def loss(x, weights):
        y = form(x, senders, receivers, weights)
        return jnp.sum(jnp.sin(y)), y

    return jax.value_and_grad(loss, (0, 1), has_aux=True)(x, weights)


@pytest.mark.parametrize("seed", range(3))
def test_propagation_is_the_product_with_the_matrix(seed):
    with jax.enable_x64(True):
        both = (message_passing.propagate, message_passing.propagate_reference)
        fast, slow = (value_and_gradients(f, *example(seed)) for f in both)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), fast, slow)


def test_normalised_weights_are_those_of_the_matrix():
    with jax.enable_x64(True):
        _, senders, receivers, weights = map(jnp.asarray, example())
        loops = jnp.asarray(np.where(np.arange(9) == 4, 0.0, 1.0))
        forms = message_passing.symmetric_weights, message_passing.symmetric_weights_reference
        fast, slow = (jax.jit(form)(senders, receivers, weights, loops) for form in forms)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), fast, slow)


def test_a_node_without_any_weight_gets_none():
    empty = jnp.zeros((0,), jnp.int32)
    edges, loops = message_passing.symmetric_weights(empty, empty, jnp.zeros((0,)), jnp.array([1.0, 0.0]))
    assert edges.shape == (0,)
    np.testing.assert_array_equal(loops, [1, 0])


@pytest.mark.parametrize("seed", range(3))
def test_spectrum(seed):
    """The eigenvalues of A^ lie in (-1, 1], and 1 is one of them (Wu et al. 2019, theorem 1)."""
    with jax.enable_x64(True):
        draw = np.random.default_rng(seed)
        half = np.unique(np.sort(draw.integers(0, 12, (2, 25)), axis=0), axis=1)
        half = half[:, half[0] != half[1]]
        senders, receivers = np.concatenate([half, half[::-1]], axis=1).astype(np.int32)
        weights = np.ones(senders.shape)
        between, loops = jax.jit(message_passing.symmetric_weights)(senders, receivers, weights, np.ones(12))
        matrix = np.diag(loops)
        np.add.at(matrix, (receivers, senders), between)
        np.testing.assert_allclose(matrix, matrix.T, atol=1e-12)
        values = np.linalg.eigvalsh(matrix)
        assert values.min() > -1 + 1e-6
        assert values.max() == pytest.approx(1)


def test_nodes_that_do_not_exist():
    """A sender of -1 is not the last node: what it sends is no number. A receiver that is none receives nothing."""
    x, weights = jnp.arange(6.0).reshape(3, 2), jnp.ones(3)
    for wrong in (-1, 3):
        y = message_passing.propagate(x, jnp.array([0, 1, wrong]), jnp.array([1, 1, 2]), weights)
        np.testing.assert_array_equal(y, [[0, 0], [2, 4], [np.nan, np.nan]])
        y = message_passing.propagate(x, jnp.array([0, 1, 2]), jnp.array([1, 1, wrong]), weights)
        np.testing.assert_array_equal(y, [[0, 0], [2, 4], [0, 0]])
        between, _ = message_passing.symmetric_weights(
            jnp.array([0, 1, wrong]), jnp.array([1, 0, 2]), weights, jnp.ones(3)
        )
        np.testing.assert_array_equal(np.isnan(between), [False, False, True])
