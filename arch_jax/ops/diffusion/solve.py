"""Reverse steps as one table of numbers, and the one scan that takes them.

A sampler of a diffusion calls the network at a few times, and between two calls combines what it has linearly: the
point it set out from, the point of the call, what the last calls gave, and fresh noise. So a sampler *is* a table of
coefficients. They are computed on the host in float64 from alpha and sigma (where differences of nearly equal numbers
occur), and one compiled scan takes all of them: another sampler of as many calls compiles nothing new.

The columns of a row's weights are

    anchor    the point that the step set out from; of a sampler of one call a step, the point of the call
    current   x, the point of the call
    raw       D, the denoised estimate there, before any threshold
    history   what was stored at this call, at the one before, ...: D unless the sampler says otherwise
    noise     standard normal
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from arch_jax.ops.diffusion.guidance import classifier_weights
from arch_jax.ops.diffusion.predictions import Prediction

#: Columns before the history.
ANCHOR, CURRENT, RAW, HISTORY = 0, 1, 2, 3


@dataclasses.dataclass
class StepCoefficients:
    """The coefficients of a sampler, in float64: one row a call of the network.

    Attributes:
      times: of the calls, in the process's units.
      point: weights of the next point, "calls columns".
      anchor: weights of the next anchor.
      stored: what goes into the history, as weights of (x, D), "calls 2".
      bounds: log variance of the noise at least and at most, "calls 2", of a network that says where between them; its
        square root then replaces the weight of the noise.
      adaptive: of Langevin steps whose size is that of each example's norms, "calls": their factor, 2 (snr)^2 in
        2011.13456, algorithms 4 and 5; 0 for the other steps, and None without any such.
    """

    times: np.ndarray
    point: np.ndarray
    anchor: np.ndarray
    stored: np.ndarray
    bounds: np.ndarray | None = None
    adaptive: np.ndarray | None = None

    @property
    def noisy(self) -> bool:
        """True if any call adds noise."""
        return bool(self.point[:, -1].any() or self.anchor[:, -1].any() or self.bounds is not None)

    @property
    def history(self) -> int:
        """Calls that are remembered, this one included."""
        return self.point.shape[1] - HISTORY - 1

    @staticmethod
    def empty(times: np.ndarray, history: int = 1) -> "StepCoefficients":
        """Rows of weights 0, which store D."""
        columns = HISTORY + history + 1
        zeros = np.zeros((len(times), columns))
        return StepCoefficients(np.asarray(times), zeros, zeros.copy(), np.tile([0.0, 1.0], (len(times), 1)))

    def single(self) -> "StepCoefficients":
        """The same of a sampler whose every call is a step: the next anchor is the next point."""
        self.anchor = self.point.copy()
        return self


class StepTable(NamedTuple):
    """`StepCoefficients` as the scan takes them, with what makes D of the network's output."""

    time: Any
    scale: Any
    skip: Any
    out: Any
    point: Any
    anchor: Any
    stored: Any
    guidance: Any
    bounds: Any = None
    alpha: Any = None
    sigma: Any = None
    adaptive: Any = None
    classifier: Any = None


def step_table(
    rows: StepCoefficients,
    process: Any,
    prediction: Prediction,
    guidance: Any = 1.0,
    dtype: Any = jnp.float32,
    classifier: Any = None,
) -> StepTable:
    """The table of a sampler for one process and prediction.

    Args:
      rows: of the sampler.
      process: that the network was trained with.
      prediction: of the network.
      guidance: scale of each call, or one for all.
      dtype: of the scan.
      classifier: scale of a classifier's guidance at each call, or one for all; None without one.
    """
    alpha, sigma = process.coefficients(rows.times, np)
    rates = _rates(process, rows.times) if prediction.uses_rates else None
    made = prediction.preconditioning(alpha, sigma, rates, np)
    parts = (process.conditioning(rows.times), *made, rows.point, rows.anchor, rows.stored)
    parts += (np.broadcast_to(guidance, len(rows.times)), rows.bounds, alpha, sigma, rows.adaptive)
    parts += (None if classifier is None else classifier_weights(alpha, sigma, classifier),)
    return StepTable(*(None if part is None else jnp.asarray(np.asarray(part), dtype) for part in parts))


def _rates(process: Any, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """d alpha / dt and d sigma / dt on the host in float64, of the functions as they are written."""
    with jax.enable_x64(True):
        return tuple(np.asarray(rate) for rate in process.rates(jnp.asarray(times, jnp.float64)))


#: (x scaled, time "batch", scale of guidance) -> the network's output.
Network = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def solve(
    table: StepTable,
    network: Network,
    x: jax.Array,
    keys: jax.Array,
    *,
    noisy: bool,
    threshold: Callable[[jax.Array], jax.Array] | None = None,
    path: bool = False,
    known: tuple[jax.Array, jax.Array] | None = None,
    towards: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
) -> tuple[jax.Array, jax.Array | None]:
    """Takes all rows of a table, from noise to data.

    Args:
      table: of a sampler.
      network: gives F; with `table.bounds`, twice the channels, the second half of which says where between the bounds
        the log variance lies (improved DDPM, Nichol & Dhariwal 2021, 2102.09672, equation 15).
      x: where it begins, "batch ...".
      keys: one for each row of the batch; call n draws with fold_in(key, n), so that no row depends on the others.
      noisy: whether the table has noise at all.
      threshold: applied to every D (static or dynamic thresholding).
      path: whether the points of all calls are given back.
      known: (examples, mask) of parts that are given: where the mask is 1, every call sees the example with noise of
        its level (Song et al. 2021, 2011.13456, appendix I.2), and the end is the example itself. Of samplers of one
        call a step.
      towards: (x, time "batch") -> the gradient of log p(class | x), which moves every D by `table.classifier` times
        itself, before any threshold (2105.05233, equation 14).

    Returns:
      The sample, and x at every call, "calls batch ...", where asked for.
    """
    history = table.point.shape[1] - HISTORY - 1

    def call(carry: tuple, row: tuple) -> tuple:
        current, anchor, past = carry
        number, t = row
        if known is not None:
            fresh = lambda key: jax.random.normal(
                jax.random.fold_in(key, -1 - number), current.shape[1:], current.dtype
            )
            given = t.alpha * known[0] + t.sigma * jax.vmap(fresh)(keys)
            current = anchor = jnp.where(known[1] > 0, given, current)
        output = network(t.scale * current, jnp.broadcast_to(t.time, current.shape[:1]), t.guidance)
        spread = None
        if t.bounds is not None:
            output, where = jnp.split(output, 2, axis=-1)
            part = (where + 1) / 2
            spread = jnp.exp(0.5 * (part * t.bounds[1] + (1 - part) * t.bounds[0]))
        raw = t.skip * current + t.out * output.astype(current.dtype)
        if towards is not None:
            slope = towards(current, jnp.broadcast_to(t.time, current.shape[:1]))
            raw = raw + t.classifier * slope.astype(current.dtype)
        clean = raw if threshold is None else threshold(raw)
        past = (t.stored[0] * current + t.stored[1] * clean, *past[:-1])
        terms = (anchor, current, raw, *past)
        combined = [sum(w[i] * term for i, term in enumerate(terms)) for w in (t.point, t.anchor)]
        if noisy:
            draw = lambda key: jax.random.normal(jax.random.fold_in(key, number), current.shape[1:], current.dtype)
            z = jax.vmap(draw)(keys)
            weights = (t.point[-1], t.anchor[-1])
            # A learned spread stands in for the weight, but for the last step's, which is 0.
            weights = weights if spread is None else tuple(jnp.where(w > 0, spread, 0) for w in weights)
            combined = [one + w * z for one, w in zip(combined, weights)]
            if t.adaptive is not None:
                own = _own_langevin_step(current, clean, z, t)
                combined = [jnp.where(t.adaptive > 0, own, one) for one in combined]
        return (*combined, past), (current if path else None)

    begin = (x, x, (jnp.zeros_like(x),) * history)
    (x, _, _), points = jax.lax.scan(call, begin, (jnp.arange(len(table.time)), table))
    return x if known is None else jnp.where(known[1] > 0, known[0], x), points


def _own_langevin_step(x: jax.Array, clean: jax.Array, z: jax.Array, t: StepTable) -> jax.Array:
    """x + e s + sqrt(2 e) z with e = adaptive (|z| / |s|)^2 of each example, at most sigma^2: beyond, x overshoots."""
    pull = t.alpha * clean - x  # sigma^2 s
    square = lambda part: jnp.square(part).sum(tuple(range(1, x.ndim)), keepdims=True)
    # e / sigma^2, as a quotient only where it is below 1.
    most, least = t.adaptive * t.sigma**2 * square(z), square(pull)
    size = jnp.where(most < least, most / jnp.where(most < least, least, 1), 1)
    return x + size * pull + jnp.sqrt(2 * size) * t.sigma * z


def solve_reference(rows: StepCoefficients, denoise: Callable[[Any, float], Any], x: Any, noises: Any = None) -> Any:
    """`solve` in NumPy, one call after another, for a function that gives D itself at a time of the process.

    Args:
      rows: of a sampler.
      denoise: (x, time) -> D.
      x: where it begins.
      noises: standard normal numbers of each call, "calls ...", where there is noise.
    """
    anchor, past = x, [np.zeros_like(x)] * rows.history
    for i, time in enumerate(rows.times):
        clean = denoise(x, time)
        past = [rows.stored[i, 0] * x + rows.stored[i, 1] * clean, *past[:-1]]
        terms = [anchor, x, clean, *past, 0.0 if noises is None else noises[i]]
        x, anchor = (sum(w * term for w, term in zip(weights[i], terms)) for weights in (rows.point, rows.anchor))
    return x
