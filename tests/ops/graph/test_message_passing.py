"""Sums over edges against the dense matrix, and the spectrum of the normalised adjacency."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax.ops.graph import message_passing


def example(seed=0, nodes=9, edges=20, dtype=np.float64):
    draw = np.random.default_rng(seed)
    senders, receivers = draw.integers(0, nodes, (2, edges)).astype(np.int32)
    return draw.normal(size=(nodes, 4)).astype(dtype), senders, receivers, draw.uniform(0.1, 2, edges).astype(dtype)


@pytest.mark.parametrize("seed", range(3))
def test_propagation_is_the_product_with_the_matrix(seed):
    with jax.enable_x64(True):
        x, senders, receivers, weights = map(jnp.asarray, example(seed))
        loss = lambda f: lambda x, w: jnp.sum(jnp.sin(f(x, senders, receivers, w)))
        np.testing.assert_allclose(
            message_passing.propagate(x, senders, receivers, weights),
            message_passing.propagate_reference(x, senders, receivers, weights),
            atol=1e-12,
        )
        both = (message_passing.propagate, message_passing.propagate_reference)
        fast, slow = (jax.grad(loss(f), (0, 1))(x, weights) for f in both)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), fast, slow)


def test_normalised_weights_are_those_of_the_matrix():
    with jax.enable_x64(True):
        _, senders, receivers, weights = map(jnp.asarray, example())
        loops = jnp.ones(9).at[4].set(0.0)
        fast = message_passing.symmetric_weights(senders, receivers, weights, loops)
        slow = message_passing.symmetric_weights_reference(senders, receivers, weights, loops)
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
        senders, receivers = jnp.asarray(np.concatenate([half, half[::-1]], axis=1).astype(np.int32))
        weights = jnp.ones(senders.shape)
        between, loops = message_passing.symmetric_weights(senders, receivers, weights, jnp.ones(12))
        matrix = jnp.diag(loops).at[receivers, senders].add(between)
        np.testing.assert_allclose(matrix, matrix.T, atol=1e-12)
        values = np.linalg.eigvalsh(matrix)
        assert values.min() > -1 + 1e-6
        assert values.max() == pytest.approx(1)
