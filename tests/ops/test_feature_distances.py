"""Distances of sets of features: closed forms, references, and what must change nothing."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax.errors import UsageError
from arch_jax.ops import feature_distances as module
from arch_jax.ops.feature_distances import (
    frechet_distance,
    frechet_distance_reference,
    kernel_distance,
    kernel_distance_reference,
    nearest_distances,
    nearest_distances_reference,
    precision_recall,
    precision_recall_reference,
)

FRECHET, NEAREST = jax.jit(frechet_distance), jax.jit(nearest_distances)
MANIFOLDS = jax.jit(precision_recall, static_argnames="neighbours")
KERNEL = jax.jit(kernel_distance, static_argnames=("subsets", "size"))


def drawn(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def correlated(seed, count, features, offset=0.0):
    """Features with a few large directions and many small ones, as a network's are; always the same directions."""
    scales = 3.0 * 0.7 ** np.arange(features) + 0.03
    return drawn(seed, count, features) * scales @ drawn(100, features, features) + offset


# -- Fréchet -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "m", "features"), [(50, 70, 8), (9, 40, 12), (6, 5, 12), (30, 7, 12)])
def test_frechet_is_its_definition(n, m, features):
    """More examples than features, fewer in one set, in both: in float64 to rounding, in float32 to four digits."""
    x, y = correlated(0, n, features), correlated(1, m, features, offset=0.5)
    expected = frechet_distance_reference(x, y)
    with jax.enable_x64(True):
        found = FRECHET(jnp.asarray(x), jnp.asarray(y))
    # The reference is the less exact of the two where the product of covariances is singular.
    np.testing.assert_allclose(found, expected, rtol=1e-9 if min(n, m) > features else 1e-6)
    np.testing.assert_allclose(FRECHET(jnp.asarray(x, "f4"), jnp.asarray(y, "f4")), expected, rtol=1e-4)


def test_frechet_where_covariances_in_float32_go_wrong():
    """Small directions beside large traces: by covariances it is off by a tenth, of which 1e-4 is allowed."""
    x, y = correlated(2, 400, 64, offset=2.0), correlated(3, 500, 64, offset=2.0) * 1.01
    expected = frechet_distance_reference(x, y)
    with jax.enable_x64(True):
        np.testing.assert_allclose(FRECHET(jnp.asarray(x), jnp.asarray(y)), expected, rtol=1e-6)
    x, y = x.astype("f4"), y.astype("f4")
    c_x, c_y = np.cov(x, rowvar=False, dtype="f4"), np.cov(y, rowvar=False, dtype="f4")
    roots = np.sqrt(np.maximum(np.linalg.eigvals(c_x @ c_y).real, 0))
    by_covariances = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(c_x) + np.trace(c_y) - 2 * roots.sum()
    assert abs(by_covariances / expected - 1) > 0.02
    np.testing.assert_allclose(FRECHET(x, y), expected, rtol=1e-4)


def test_frechet_of_gaussians_tends_to_the_closed_form():
    """Diagonal covariances: |m|^2 + sum (s - t)^2; from finite sets more, and the less the more examples there are."""
    s, t, m = np.array([1.0, 2.0, 0.5]), np.array([1.5, 1.0, 0.5]), np.array([1.0, 0.0, -0.5])
    expected = np.sum(m**2) + np.sum((s - t) ** 2)
    far = [abs(float(FRECHET(drawn(3, n, 3) * s, drawn(4, n, 3) * t + m)) - expected) for n in (100, 100_000)]
    assert far[1] < 0.03 < far[0]


def test_frechet_of_equal_moments_is_the_mean_alone():
    """Exact: a set moved by m has the distance |m|^2 from itself, in float32 without a remainder of the traces."""
    x, m = correlated(5, 60, 10).astype("f4"), drawn(6, 10).astype("f4")
    np.testing.assert_allclose(FRECHET(x, x + m), np.sum(m**2), rtol=1e-4)
    assert FRECHET(x, x) < 1e-6 * x.var(0).sum()
    few = correlated(7, 4, 10).astype("f4")
    assert FRECHET(few, few) < 1e-6 * few.var(0).sum()
    # Twice as wide about the same mean: C_y = 4 C_x, and tr(C_x + 4 C_x - 2 * 2 C_x) = tr C_x.
    wide = 2 * (x - x.mean(0)) + x.mean(0)
    np.testing.assert_allclose(FRECHET(x, wide), x.var(0, ddof=1).sum(), rtol=1e-4)


def test_translation_and_rotation_change_no_distance():
    x, y = correlated(8, 40, 6), correlated(9, 50, 6)
    turn, move = np.linalg.qr(drawn(10, 6, 6))[0], 10 * drawn(11, 6)
    for function in (FRECHET, MANIFOLDS, NEAREST):
        before = function(x.astype("f4"), y.astype("f4"))
        after = function((x @ turn + move).astype("f4"), (y @ turn + move).astype("f4"))
        for one, other in zip(jax.tree.leaves(before), jax.tree.leaves(after)):
            np.testing.assert_allclose(one, other, rtol=1e-3)
    # The kernel has an origin: rotations alone leave it. (Whole sets: the same pairs.)
    kernel = lambda x, y: KERNEL(x, y, jax.random.key(0), subsets=1)[0]
    np.testing.assert_allclose(kernel(x, y), kernel(x @ turn, y @ turn), rtol=1e-3)
    assert abs(kernel(x, y) / kernel(x + move, y + move) - 1) > 0.1


# -- kernel ------------------------------------------------------------------------------------------------------------


def test_kernel_distance_is_its_definition():
    x, y = drawn(12, 13, 5), drawn(13, 9, 5) * 1.5 + 0.5
    expected = kernel_distance_reference(x, y)
    whole = lambda x, y: KERNEL(x, y, jax.random.key(0), subsets=1)
    with jax.enable_x64(True):
        np.testing.assert_allclose(whole(jnp.asarray(x), jnp.asarray(y))[0], expected, rtol=1e-9)
    np.testing.assert_allclose(whole(x.astype("f4"), y.astype("f4"))[0], expected, rtol=1e-4)
    # The third power is worked out by hand: features of 1 dimension, (ab + 1)^3.
    np.testing.assert_allclose(kernel_distance_reference([[0], [1]], [[2], [0]]), 1 + 1 - 2 * (1 + 1 + 27 + 1) / 4)


def test_kernel_distance_is_unbiased():
    """Over all samples of three from laws on two points, its mean is the exact distance, also 0 of equal laws."""
    points = np.array([[0.0, 1.0], [2.0, -1.0]])
    k = (points @ points.T / 2 + 1) ** 3
    samples = np.array(list(itertools.product((0, 1), repeat=3)))
    whole = lambda x, y: kernel_distance(x, y, jax.random.key(0), subsets=1)[0]
    with jax.enable_x64(True):
        every = jax.jit(jax.vmap(jax.vmap(whole, (None, 0)), (0, None)))(points[samples], points[samples])
        for p, q in [((0.3, 0.7), (0.6, 0.4)), ((0.5, 0.5), (0.5, 0.5))]:
            p, q = np.array(p), np.array(q)
            mean = np.prod(p[samples], axis=1) @ np.asarray(every) @ np.prod(q[samples], axis=1)
            np.testing.assert_allclose(mean, p @ k @ p + q @ k @ q - 2 * p @ k @ q, atol=1e-12)


def test_kernel_distance_of_subsets():
    """Of other subsets another number, about that of all pairs, as far off as the standard error says."""
    x, y = drawn(14, 200, 4).astype("f4"), (drawn(15, 150, 4) + 0.5).astype("f4")
    found, errors = zip(*(KERNEL(x, y, jax.random.key(i), subsets=50, size=30) for i in range(8)))
    whole, none = KERNEL(x, y, jax.random.key(0), subsets=2, size=200)
    assert none == 0  # all examples in both subsets
    assert len(set(map(float, found))) == 8
    np.testing.assert_allclose(np.std(found, ddof=1), np.mean(errors), rtol=0.8)
    assert abs(np.mean(found) - whole) < 4 * np.mean(errors)


# -- manifolds ---------------------------------------------------------------------------------------------------------


def test_precision_and_recall_are_their_definitions(monkeypatch):
    x, y = drawn(16, 41, 3), drawn(17, 30, 3) * 0.9 + 0.7
    for k in (1, 3):
        expected = precision_recall_reference(x, y, k)
        assert 0.1 < min(expected) < max(expected) <= 1
        np.testing.assert_allclose(MANIFOLDS(x.astype("f4"), y.astype("f4"), neighbours=k), expected)
    monkeypatch.setattr(module, "_BLOCK", 100)  # 2 or 3 rows at a time
    x, y = jnp.asarray(x, "f4"), jnp.asarray(y, "f4")
    np.testing.assert_allclose(precision_recall(x, y), precision_recall_reference(x, y))
    np.testing.assert_allclose(nearest_distances(x, y), nearest_distances_reference(x, y), rtol=1e-5)


def test_precision_and_recall_of_equal_disjoint_and_nested_sets():
    x = drawn(18, 60, 4).astype("f4")
    assert MANIFOLDS(x, x) == (1, 1)
    assert MANIFOLDS(x, x + 100) == (0, 0)
    # In the middle of a wide set: all of it is real, and little of what is real is in it.
    precision, recall = MANIFOLDS(10 * x, x)
    assert precision == 1
    assert recall < 0.2
    assert MANIFOLDS(x, 10 * x) == (recall, precision)


def test_an_example_is_no_neighbour_of_itself():
    """On a line 0, 1, 2, ... the nearest neighbour is at 1, the second at 1 and at the ends at 2."""
    line = jnp.arange(8.0)[:, None]
    far = jnp.array([[-1.5], [8.5], [8.9], [50.0], [60.0]])
    assert MANIFOLDS(line, far, neighbours=1)[0] == 0
    np.testing.assert_allclose(MANIFOLDS(line, far, neighbours=2)[0], 3 / 5)


def test_copies_are_found_far_from_the_origin():
    """In float32 a product of matrices alone would leave about 0.1 of a distance of 0, and balls without room empty."""
    to = (drawn(19, 500, 64) + 100).astype("f4")
    found = np.asarray(NEAREST(jnp.concatenate([to[:20], to[:20] + 1]), to))
    assert (found[:20] == 0).all()
    np.testing.assert_allclose(found[20:], 8, rtol=1e-4)
    copies = jnp.repeat(to[:10], 4, axis=0)
    assert MANIFOLDS(copies, copies) == (1, 1)


def test_sets_that_are_too_small():
    one, four = jnp.ones((1, 2)), jnp.ones((4, 2))
    with pytest.raises(UsageError, match="the sets have 4 and 1 examples; expected at least 2 in each"):
        frechet_distance(four, one)
    with pytest.raises(UsageError, match="the sets have 4 and 4 examples; expected at least 5 in each"):
        precision_recall(four, four, 4)
    with pytest.raises(UsageError, match="neighbours is 0; expected at least 1"):
        precision_recall(four, four, 0)
    with pytest.raises(UsageError, match="size is 1 and subsets is 100; expected at least 2 examples"):
        kernel_distance(four, four, jax.random.key(0), size=1)


@pytest.mark.thorough
def test_ten_thousand_by_ten_thousand_fit():
    """The largest array of the compiled program is a block, not the 400 MB of all pairs."""
    x = jax.ShapeDtypeStruct((10_000, 64), jnp.float32)
    memory = jax.jit(precision_recall).lower(x, x).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 200e6
