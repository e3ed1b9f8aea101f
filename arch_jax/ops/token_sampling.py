"""Choosing the next token: temperature, top-k and top-p (nucleus) sampling on logits."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key, UInt32

from arch_jax.errors import UsageError
from arch_jax.scalars import real, whole

__all__ = ["filter_logits", "sample"]


def filter_logits(
    logits: Float[Array, "batch vocabulary"],
    *,
    temperature: float | int = 1.0,
    top_k: int | None = None,
    top_p: float | int | None = None,
) -> Float[Array, "batch vocabulary"]:
    """Divides logits by the temperature and sets those excluded from sampling to -inf.

    First the temperature, then top-k, then top-p on what top-k has left (the order of Hugging Face's `generate`).

    Args:
      logits: unnormalised log-probabilities, in nats; -inf excludes a token.
      temperature: above 0; below 1 sharpens, above 1 flattens. 0, the limit, keeps the largest logit alone (where
        several are largest, the first of them).
      top_k: keeps the k largest logits, at least 1, and those equal to the k-th (Fan et al., arXiv 1805.04833); a k
        above the vocabulary keeps all.
      top_p: keeps the smallest set of most likely tokens whose probability reaches p, in (0, 1], and at least one
        (Holtzman et al., The Curious Case of Neural Text Degeneration, arXiv 1904.09751, section 3.1). Of tokens
        equally likely at the edge of the set, those with the higher index stay.

    Returns:
      The filtered logits, in at least float32. A row that dividing would take beyond the largest number is shifted
      first, so that its largest logit is 0.

    Raises:
      UsageError: `temperature` is negative or not finite, `top_k` below 1, or `top_p` outside (0, 1].
    """
    temperature, top_k, top_p = check_sampling(temperature, top_k, top_p)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    vocabulary = logits.shape[-1]
    if temperature == 0:
        largest = jnp.argmax(logits, axis=-1, keepdims=True)
        return jnp.where(jnp.arange(vocabulary) == largest, logits, -jnp.inf)
    logits = _divided(logits, temperature)
    if top_k is not None and top_k < vocabulary:
        kth = lax.top_k(logits, top_k)[0][..., -1:]
        logits = jnp.where(logits < kth, -jnp.inf, logits)
    if top_p is not None and top_p < 1:
        # Summed from the least likely token up, as Hugging Face does: a token is dropped when it and all that are less
        # likely hold no more than 1 - p. Summing from the top would round otherwise exactly at the edge.
        order = jnp.argsort(logits, axis=-1, stable=True)
        cumulative = jnp.cumsum(jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1), axis=-1), axis=-1)
        dropped = (cumulative <= 1 - top_p).at[..., -1].set(False)
        rank = jnp.argsort(order, axis=-1)
        logits = jnp.where(jnp.take_along_axis(dropped, rank, axis=-1), -jnp.inf, logits)
    return logits


def _divided(logits: jax.Array, temperature: float | int) -> jax.Array:
    """Logits by temperature, each row up to a constant: however low the temperature is, order and ties stay."""
    temperature = max(temperature, float(jnp.finfo(logits.dtype).tiny))  # below it, processors may take it for 0
    largest = jnp.max(logits, axis=-1, keepdims=True)
    shift = jnp.where(jnp.isfinite(largest), largest, 0)
    return jnp.where(jnp.isfinite(largest / temperature), logits / temperature, (logits - shift) / temperature)


def sample(
    key: Key[Array, ""] | UInt32[Array, "2"],
    logits: Float[Array, "batch vocabulary"],
    *,
    temperature: float | int = 1.0,
    top_k: int | None = None,
    top_p: float | int | None = None,
) -> Int[Array, "batch"]:
    """Samples one token a row from the softmax of the logits that `filter_logits` leaves.

    Args:
      key: a jax random key; not used at temperature 0.
      logits, temperature, top_k, top_p: as for `filter_logits`; temperature 0 is greedy (argmax, the first of equals).

    Returns:
      Token ids, int32, in [0, vocabulary).

    Raises:
      UsageError: as for `filter_logits`.
    """
    temperature, top_k, top_p = check_sampling(temperature, top_k, top_p)
    if temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    filtered = filter_logits(logits, temperature=temperature, top_k=top_k, top_p=top_p)
    return jax.random.categorical(key, filtered, axis=-1).astype(jnp.int32)


def check_sampling(temperature: Any, top_k: Any, top_p: Any) -> tuple[float, int | None, float | None]:
    """The three settings as Python's numbers, so that callers can refuse early and compile a program for them.

    Raises:
      UsageError: the first that is no number, or out of its range.
    """
    expected = "a finite number of at least 0, such as 0 (greedy) or 1.0"
    temperature = real("temperature", temperature, expected)
    if not 0 <= temperature < math.inf:
        raise UsageError(f"temperature is {temperature}; expected {expected}")
    if top_k is not None:
        expected = "an integer of at least 1, or None to keep every token"
        top_k = whole("top_k", top_k, expected)
        if top_k < 1:
            raise UsageError(f"top_k is {top_k}; expected {expected}")
    if top_p is not None:
        expected = "a number in (0, 1], such as 0.95, or None to keep every token"
        top_p = real("top_p", top_p, expected)
        if not 0 < top_p <= 1:
            raise UsageError(f"top_p is {top_p}; expected {expected}")
    return temperature, top_k, top_p
