"""Distances of generated from real examples in a space of features, such as a classifier's last hidden layer.

All of them are estimates from finite sets. The Fréchet distance of two sets of one law is above 0, about in proportion
to 1 / n; precision and recall depend on n, too; the kernel distance alone is unbiased. Sums are in at least float32,
and products of matrices in full precision on every device.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from arch_jax.errors import UsageError
from arch_jax.ops.precision import at_least_float32

__all__ = [
    "frechet_distance",
    "frechet_distance_reference",
    "kernel_distance",
    "kernel_distance_reference",
    "nearest_distances",
    "nearest_distances_reference",
    "precision_recall",
    "precision_recall_reference",
]

#: Entries of a block of distances, 16 MiB in float32: 400 rows of 10,000, say.
_BLOCK = 2**22
_PRECISE = lax.Precision.HIGHEST


def frechet_distance(x: Float[Array, "n features"], y: Float[Array, "m features"]) -> Float[Array, ""]:
    """|m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2)): the squared Wasserstein-2 distance of the fitted Gaussians.

    With A^T A = C_x and B^T B = C_y the trace of the root is the nuclear norm of A B^T, and the whole second term is
    min |A - Q B|^2 over orthogonal Q (Procrustes), at Q = U V^T of the singular value decomposition A B^T = U S V^T. It
    is computed in this form: no covariance is made, whose entries would lose half of the digits, and no large traces
    are subtracted. In float32 it was within 1e-6 of the traces where covariances were off by 1e-3 of them.

    Source: Heusel et al. 2017, 1706.08500, section 3 ("FID"); Dowson & Landau 1982 for the formula.

    Args:
      x, y: features, at least two of each; there may be fewer examples than features.

    Returns:
      The distance in units of the features squared, at least 0. Covariances are unbiased (over n - 1). For n examples
      of each, two sets of one law have one of about tr(C) features / n, so that only equal n compare.

    Raises:
      UsageError: a set of fewer than two examples.
    """
    _check(x, y, 2)
    x, y = at_least_float32((x, y))
    a, b = _root(x), _root(y)
    rows = max(len(a), len(b))
    a, b = (jnp.pad(one, ((0, rows - len(one)), (0, 0))) for one in (a, b))
    u, _, v = jnp.linalg.svd(jnp.matmul(a, b.T, precision=_PRECISE))
    turned = jnp.matmul(u, jnp.matmul(v, b, precision=_PRECISE), precision=_PRECISE)
    return jnp.sum(jnp.square(x.mean(0) - y.mean(0))) + jnp.sum(jnp.square(a - turned))


def _root(x: Float[Array, "n features"]) -> Float[Array, "rows features"]:
    """A with A^T A = the covariance of x, of at most as many rows as there are examples or features."""
    centred = x - x.mean(0)
    centred = jnp.linalg.qr(centred, mode="r") if len(x) > x.shape[1] else centred
    return centred / np.sqrt(len(x) - 1)


def frechet_distance_reference(x, y):
    """`frechet_distance` by covariances and the root of their product, in float64 (as pytorch-fid computes it)."""
    import scipy.linalg

    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    c_x, c_y = (np.atleast_2d(np.cov(one, rowvar=False)) for one in (x, y))
    root = scipy.linalg.sqrtm(c_x @ c_y)
    return float(np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(c_x) + np.trace(c_y) - 2 * np.trace(np.real(root)))


def kernel_distance(
    x: Float[Array, "n features"],
    y: Float[Array, "m features"],
    key: jax.Array,
    subsets: int = 100,
    size: int = 1000,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The unbiased estimate of the squared maximum mean discrepancy, k(a, b) = (a . b / features + 1)^3: "KID".

    The mean over random subsets of both sets, drawn without repetition, as the paper takes it: each costs size^2.

    Source: Binkowski et al. 2018, 1801.01401, section 4; the estimate is Gretton et al. 2012, equation 3.

    Args:
      x, y: features, at least two of each.
      key: of the subsets.
      subsets: how many.
      size: examples of each set in a subset; of a set that has fewer, all.

    Returns:
      (distance, its standard error). The distance may be negative. The error is the deviation of the subsets' values
      over the root of their number: how far other subsets of these examples would lead. It is NaN of one subset, and
      too small where subsets share most of their examples: 0 where `size` takes all.

    Raises:
      UsageError: a set or a size of fewer than two examples, or no subset.
    """
    _check(x, y, 2)
    if size < 2 or subsets < 1:
        raise UsageError(f"size is {size} and subsets is {subsets}; expected at least 2 examples in at least 1 subset")
    x, y = at_least_float32((x, y))

    def some(key: jax.Array, of: Array) -> Array:
        return of[jax.random.choice(key, len(of), (min(size, len(of)),), replace=False)]

    def one(key: jax.Array) -> Array:
        of_x, of_y = jax.random.split(key)
        return _discrepancy(some(of_x, x), some(of_y, y))

    found = lax.map(one, jax.random.split(key, subsets))
    return found.mean(), found.std(ddof=1) / np.sqrt(subsets)


def _discrepancy(x: Float[Array, "n features"], y: Float[Array, "m features"]) -> Float[Array, ""]:
    k = lambda a, b: (jnp.matmul(a, b.T, precision=_PRECISE) / x.shape[1] + 1) ** 3
    within_x, within_y, across = k(x, x), k(y, y), k(x, y)
    # A constant added to k changes nothing, and sums near 0 lose no digits.
    middle = across.mean()

    def mean(within: Array) -> Array:
        others = jnp.where(jnp.eye(len(within), dtype=bool), 0, within - middle)
        return others.sum() / (len(within) * (len(within) - 1))

    return mean(within_x) + mean(within_y) - 2 * (across - middle).mean()


def kernel_distance_reference(x, y):
    """`kernel_distance` of whole sets, as sums over pairs, one after another in float64."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    k = lambda a, b: (float(a @ b) / x.shape[1] + 1) ** 3
    pairs = lambda a: sum(k(p, q) for i, p in enumerate(a) for j, q in enumerate(a) if i != j)
    across = sum(k(p, q) for p in x for q in y)
    return pairs(x) / (len(x) * (len(x) - 1)) + pairs(y) / (len(y) * (len(y) - 1)) - 2 * across / (len(x) * len(y))


def precision_recall(
    real: Float[Array, "n features"], made: Float[Array, "m features"], neighbours: int = 3
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The share of made examples that lie among the real ones, and of real ones that lie among the made ones.

    A set's manifold is the union of balls about its examples, each of the radius of its k-th nearest neighbour in the
    set, itself left out. Distances are taken in blocks: 10,000 by 10,000 never lie in memory at once. A product of
    matrices says which are the nearest, and differences how far they are, since rounding would be most of what the
    product gives for close ones.

    Source: Kynkäänniemi et al. 2019, 1904.06991, algorithm 1.

    Args:
      real, made: features, more than `neighbours` of each.
      neighbours: k; the paper has 3.

    Returns:
      (precision, recall), each from 0 to 1. Two sets of one law don't have 1: it depends on their sizes, the law and k.

    Raises:
      UsageError: fewer than 1 neighbour, or a set that has no more than that.
    """
    if neighbours < 1:
        raise UsageError(f"neighbours is {neighbours}; expected at least 1")
    _check(real, made, neighbours + 1)
    real, made = _about(*at_least_float32((real, made)))
    return _covered(made, real, neighbours).mean(), _covered(real, made, neighbours).mean()


def _covered(x: Float[Array, "n features"], by: Float[Array, "m features"], neighbours: int) -> Float[Array, "n"]:
    """1 of the examples in a ball of the other set, 0 of the others."""
    norms = jnp.square(by).sum(1)

    def radius(own: tuple[Array, Array]) -> Array:
        row, place = own
        near = (norms - 2 * jnp.matmul(by, row, precision=_PRECISE)).at[place].set(jnp.inf)
        _, nearest = lax.top_k(-near, neighbours)
        return jnp.square(by[nearest] - row).sum(1).max()

    radii = _by_blocks(radius, (by, jnp.arange(len(by))), len(by))

    def inside(row: Array) -> Array:
        # The ball that the example lies deepest in, if in any: |row - centre|^2 - radius^2 is the smallest.
        deepest = jnp.argmin(norms - 2 * jnp.matmul(by, row, precision=_PRECISE) - radii)
        return jnp.square(by[deepest] - row).sum() <= radii[deepest]

    return _by_blocks(inside, x, len(by)).astype(x.dtype)


def precision_recall_reference(real, made, neighbours=3):
    """`precision_recall` example by example, in float64."""
    real, made = np.asarray(real, np.float64), np.asarray(made, np.float64)

    def share(x, by):
        radii = [sorted(np.linalg.norm(p - q) for j, q in enumerate(by) if j != i) for i, p in enumerate(by)]
        inside = lambda p: any(np.linalg.norm(p - q) <= radius[neighbours - 1] for q, radius in zip(by, radii))
        return sum(map(inside, x)) / len(x)

    return share(made, real), share(real, made)


def nearest_distances(x: Float[Array, "n features"], to: Float[Array, "m features"]) -> Float[Array, "n"]:
    """The distance of each example to the nearest one of another set: near 0 for copies of it.

    In blocks, and from differences, as in `precision_recall`: the distance of a copy is 0, unless another example is so
    close that the product can't tell them apart.

    Args:
      x: features.
      to: those of the other set, such as the training set.
    """
    x, to = _about(*at_least_float32((x, to)))
    norms = jnp.square(to).sum(1)

    def nearest(row: Array) -> Array:
        found = to[jnp.argmin(norms - 2 * jnp.matmul(to, row, precision=_PRECISE))]
        return jnp.sqrt(jnp.square(found - row).sum())

    return _by_blocks(nearest, x, len(to))


def nearest_distances_reference(x, to):
    """`nearest_distances` pair by pair, in float64."""
    x, to = np.asarray(x, np.float64), np.asarray(to, np.float64)
    return np.array([min(np.linalg.norm(p - q) for q in to) for p in x])


def _about(x: Array, y: Array) -> tuple[Array, Array]:
    """Both about the mean of y: squared norms are then of the size of squared distances, and lose few digits."""
    middle = y.mean(0)
    return x - middle, y - middle


def _by_blocks(function, rows, others: int) -> Array:
    """A function of one row, which makes `others` numbers on its way, of all of them, a block at a time."""
    count = len(jax.tree.leaves(rows)[0])
    return lax.map(function, rows, batch_size=max(1, min(count, _BLOCK // others)))


def _check(x: Array, y: Array, least: int) -> None:
    if min(len(x), len(y)) < least:
        raise UsageError(f"the sets have {len(x)} and {len(y)} examples; expected at least {least} in each")
