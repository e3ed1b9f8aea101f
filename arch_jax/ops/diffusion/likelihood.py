"""Exact log densities by the probability-flow ODE (Song et al. 2021, 2011.13456, section 4.3 and appendix D.2).

With r = sigma / alpha the ODE is dx/dt = alpha' D + sigma' (x - alpha D) / sigma in any process. In the variables

    y = x / s, s = sqrt(alpha^2 + sigma^2)      phi = arctan(sigma / alpha)      u = log tan(phi / 2)

it is dy/du = cos(phi) y - D(s y), without a singular factor from the first time to noise alone (phi = pi / 2, u = 0):
at little noise u is log r, so that equal steps of u are as fine there as the data's own scale; at much it hardly moves.
By the change of variables of a flow (2011.13456, equation 39), in features d,

    log p(x at the first time) = log p(x at the last) + d log(s_last / s_first) + integral of div du,
    div = d cos(phi) - s tr(dD/dx).
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from arch_jax.errors import UsageError

Distribution = Literal["rademacher", "gaussian"]

#: Weights of explicit Runge-Kutta methods by order: of the earlier slopes in each call's point, and of all in the step.
#: Order 4 is Kutta's of 1901, order 6 Butcher's of 1964 in 7 calls.
TABLEAUS = {
    4: ([[], [1 / 2], [0, 1 / 2], [0, 0, 1]], [1 / 6, 1 / 3, 1 / 3, 1 / 6]),
    6: (
        [
            [],
            [1 / 3],
            [0, 2 / 3],
            [1 / 12, 1 / 3, -1 / 12],
            [-1 / 16, 9 / 8, -3 / 16, -3 / 8],
            [0, 9 / 8, -3 / 8, -3 / 4, 1 / 2],
            [9 / 44, -9 / 11, 63 / 44, 18 / 11, 0, -16 / 11],
        ],
        [11 / 120, 0, 27 / 40, 27 / 40, -4 / 15, -4 / 15, 11 / 120],
    ),
}


class FlowTable(NamedTuple):
    """A Runge-Kutta method on the flow from data to noise: one row a call of the denoiser.

    Attributes:
      time: of the process, "calls".
      cosine: cos(phi), "calls".
      size: s, "calls".
      before: weights of the slopes in the point of the call, "calls stages".
      after: weights of the slopes in the step that ends with the call, or 0, "calls stages".
      slot: which slope of its step the call gives, "calls".
      ends: s at the first and at the last time, "2".
    """

    time: Any
    cosine: Any
    size: Any
    before: Any
    after: Any
    slot: Any
    ends: Any


def flow_table(process: Any, steps: int, order: Literal[4, 6] = 6, dtype: Any = jnp.float32) -> FlowTable:
    """The table of equal steps in u from a process's first time to its last, computed in float64.

    A chain that ends in noise alone (zero terminal SNR) is followed up to the time before, as nothing lies between.

    Args:
      process: of `arch_jax.ops.diffusion.processes`.
      steps: of the method.
      order: of its error in their size: 4 takes 4 calls of the denoiser a step, 6 takes 7.
      dtype: of the integration.

    Raises:
      UsageError: no step.
    """
    if steps < 1:
        raise UsageError(f"steps is {steps}; expected at least 1")
    points, weights = TABLEAUS[order]
    stages = len(weights)
    inner = np.zeros((stages, stages))
    for i, row in enumerate(points):
        inner[i, : len(row)] = row
    span = np.array([process.first, process.last], np.float64)
    if process.discrete and process.coefficients(span, np)[0][1] == 0:
        span[1] -= 1
    alpha, sigma = process.coefficients(span, np)
    begin, end = np.log(np.tan(np.arctan2(sigma, alpha) / 2))
    width = (end - begin) / steps
    u = (begin + width * (np.arange(steps)[:, None] + inner.sum(1))).ravel()
    phi = np.minimum(2 * np.arctan(np.exp(u)), np.pi / 2)
    time = np.clip(process.time_of(np.tan(phi)), *span)
    after = np.zeros((steps, stages, stages))
    after[:, -1] = width * np.asarray(weights)
    parts = (time, np.cos(phi), np.hypot(*process.coefficients(time, np)))
    parts += (np.tile(width * inner, (steps, 1)), after.reshape(-1, stages))
    made = [jnp.asarray(part, dtype) for part in parts]
    return FlowTable(*made, jnp.tile(jnp.arange(stages), steps), jnp.asarray(np.hypot(alpha, sigma), dtype))


#: (x "batch ...", time "batch") -> D.
Denoise = Callable[[jax.Array, jax.Array], jax.Array]


def integrate(
    table: FlowTable, denoise: Denoise, x: jax.Array, probes: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Follows the flow from data to noise, with the change of the log density, in one scan.

    Args:
      table: of `flow_table`.
      denoise: D, of each row by itself.
      x: points at the first time, "batch ...".
      probes: for Hutchinson's estimate of the trace, "probes batch ..." with mean 0 and covariance 1, the same along
        the whole path; None takes the exact trace, by as many derivatives as there are features.

    Returns:
      x at the last time, and "batch" for each row log p(x at the first time) - log p(x at the last).
    """
    stages = table.before.shape[1]
    features = x[0].size

    def call(carry: tuple, row: FlowTable) -> tuple:
        y, change, slopes, rates = carry
        point = y + jnp.tensordot(row.before, slopes, 1)
        time = jnp.broadcast_to(row.time, x.shape[:1])
        clean, trace = denoised_and_trace(lambda x: denoise(x, time), row.size * point, probes)
        slopes = slopes.at[row.slot].set(row.cosine * point - clean)
        rates = rates.at[row.slot].set(features * row.cosine - row.size * trace)
        return (y + jnp.tensordot(row.after, slopes, 1), change + row.after @ rates, slopes, rates), None

    y = x / table.ends[0]
    begin = (y, jnp.zeros_like(y, shape=len(y)), jnp.zeros_like(y, shape=(stages, *y.shape)))
    begin += (jnp.zeros_like(y, shape=(stages, len(y))),)
    rows = table._replace(ends=jnp.zeros_like(table.time))
    (y, change, _, _), _ = jax.lax.scan(call, begin, rows)
    return table.ends[1] * y, change + features * jnp.log(table.ends[1] / table.ends[0])


def denoised_and_trace(
    denoise: Callable[[jax.Array], jax.Array], x: jax.Array, probes: jax.Array | None = None, chunk: int = 32
) -> tuple[jax.Array, jax.Array]:
    """D(x) and the trace of its Jacobian for each row, "batch".

    Args:
      denoise: of each row by itself.
      x: "batch ...".
      probes: "probes batch ...": the mean of v^T J v over them (Hutchinson 1990; 2011.13456, equation 40); None is the
        sum over the unit vectors, which is the trace itself.
      chunk: vectors that are taken at a time.
    """
    clean, pull = jax.vjp(denoise, x)
    count = x[0].size if probes is None else len(probes)

    def product(number: jax.Array) -> jax.Array:
        if probes is None:
            vector = jax.nn.one_hot(number, count, dtype=x.dtype).reshape(x.shape[1:])
            vector = jnp.broadcast_to(vector, x.shape)
        else:
            vector = probes[number]
        return (vector * pull(vector.astype(clean.dtype))[0]).reshape(len(x), -1).sum(1)

    products = jax.lax.map(product, jnp.arange(count), batch_size=min(chunk, count))
    return clean, products.sum(0) if probes is None else products.mean(0)


def draw_probes(
    keys: jax.Array, count: int, shape: tuple[int, ...], distribution: Distribution = "rademacher", dtype: Any = None
) -> jax.Array:
    """Vectors of mean 0 and covariance 1 for Hutchinson's estimate, "probes batch ...", row i by key i alone.

    Args:
      keys: of the rows.
      count: vectors of each row.
      shape: of an example.
      distribution: signs, which have the least variance (a diagonal Jacobian's trace is exact), or normal numbers.
      dtype: of the vectors.
    """
    draw = jax.random.rademacher if distribution == "rademacher" else jax.random.normal
    return jax.vmap(lambda key: draw(key, (count, *shape), dtype or jnp.float32), out_axes=1)(keys)


def normal_log_density(x: Float[Array, "batch ..."], std: float | int) -> Float[Array, "batch"]:
    """log density in nats of N(0, std^2) in every feature."""
    square = jnp.square(x / std).reshape(len(x), -1).sum(1)
    return -0.5 * square - x[0].size * np.log(std * np.sqrt(2 * np.pi))
