"""Vector quantisation: nearest codes, the gradient through them, moving averages against k-means."""

import jax
import jax.numpy as jnp
import numpy as np

from arch_jax.ops.vector_quantisation import (
    moved_codes,
    nearest_code,
    nearest_code_reference,
    perplexity,
    revived,
    straight_through,
)


def drawn(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_nearest_is_nearest():
    x, codes = drawn(0, 6, 7, 5), drawn(1, 11, 5)
    nearest = jax.jit(nearest_code)
    np.testing.assert_array_equal(nearest(x, codes), nearest_code_reference(x, codes))
    np.testing.assert_array_equal(nearest(codes, codes), np.arange(11))


def test_the_gradient_goes_straight_through():
    x, codes = drawn(0, 6, 5), drawn(1, 11, 5)
    f = lambda x: jnp.sum(jnp.sin(straight_through(x, codes[nearest_code(x, codes)])))

    @jax.jit
    def run(x):
        replaced = codes[nearest_code(x, codes)]
        return replaced, straight_through(x, replaced), jax.grad(f)(x)

    replaced, passed, slope = run(x)
    np.testing.assert_allclose(passed, replaced, atol=1e-6)
    np.testing.assert_allclose(slope, np.cos(replaced), atol=1e-6)


def test_without_memory_it_is_k_means():
    """Lloyd's algorithm by scikit-learn, from the same codes, for as many steps."""
    from sklearn.cluster import KMeans

    x, codes = drawn(2, 400, 3), drawn(2, 400, 3)[:7]
    counts, sums = jnp.ones(7), codes
    move = jax.jit(lambda c, n, m: moved_codes(x, nearest_code(x, c), n, m, decay=0.0, epsilon=0.0))
    for _ in range(12):
        codes, counts, sums = move(codes, counts, sums)
    fit = KMeans(7, init=np.asarray(x[:7], np.float64), n_init=1, max_iter=12, tol=0, algorithm="lloyd")
    np.testing.assert_allclose(codes, fit.fit(np.asarray(x, np.float64)).cluster_centers_, atol=1e-4)


def test_the_moving_average_forgets():
    """With the same vectors at each step the codes end at their means, whatever they were."""
    x = drawn(3, 60, 2)
    chosen = jnp.arange(60, dtype=jnp.int32) % 3
    codes, counts, sums = drawn(4, 3, 2), jnp.ones(3), drawn(4, 3, 2)
    expected = 0.9 * np.asarray(counts) + 0.1 * 20
    _, once, _ = moved_codes(x, chosen, counts, sums, 0.9)
    np.testing.assert_allclose(once, expected, rtol=1e-6)
    move = jax.jit(lambda n, m: moved_codes(x, chosen, n, m, 0.9))
    for _ in range(200):
        codes, counts, sums = move(counts, sums)
    means = np.stack([np.asarray(x)[k::3].mean(0) for k in range(3)])
    np.testing.assert_allclose(codes, means, atol=1e-4)


def test_a_code_that_nothing_chooses_is_put_on_a_vector():
    x, codes, counts = *map(np.asarray, (drawn(5, 30, 2), drawn(6, 4, 2))), np.array([5, 0.01, 3, 0], np.float32)
    sums = codes * counts[:, None]
    revive = jax.jit(revived, static_argnames="least")
    moved, now, total = map(np.asarray, revive(jax.random.key(0), x, codes, counts, sums, least=0.1))
    for k in (0, 2):
        np.testing.assert_array_equal(moved[k], codes[k])
        np.testing.assert_array_equal(total[k], sums[k])
    for k in (1, 3):
        assert (np.abs(np.asarray(x) - np.asarray(moved[k])).max(-1) == 0).any()
        np.testing.assert_array_equal(total[k], moved[k])
        assert now[k] == 1
    unchanged = revive(jax.random.key(0), x, codes, counts, sums, least=0.0)
    np.testing.assert_array_equal(unchanged[0], codes)


def test_perplexity():
    of = jax.jit(perplexity, static_argnums=1)
    assert float(of(np.zeros((4, 5), np.int32), 9)) == 1
    np.testing.assert_allclose(of(np.arange(9), 9), 9, rtol=1e-6)
    np.testing.assert_allclose(of(np.array([0, 0, 0, 1]), 4), np.exp(0.75 * np.log(4 / 3) + 0.25 * np.log(4)))
