"""The scores that attention began with: additive (Bahdanau) and multiplicative (Luong), and what is read by them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from arch_jax.errors import UsageError

__all__ = ["additive_scores", "attend", "concat_scores", "dot_scores", "general_scores"]


def additive_scores(
    query: Float[Array, "batch time query_width"],
    keys: Float[Array, "batch source key_width"],
    w: Float[Array, "query_width hidden"],
    u: Float[Array, "key_width hidden"],
    v: Float[Array, "hidden"],
) -> Float[Array, "batch time source"]:
    """v . tanh(query W + keys U), for each query and key; memory goes with time x source x hidden.

    Returns:
      Scores in at least float32.

    Source: Bahdanau et al. 2014, arXiv 1409.0473, appendix A.1.2.
    """
    return _through_tanh((query @ w)[:, :, None] + (keys @ u)[:, None], v)


def dot_scores(
    query: Float[Array, "batch time width"], keys: Float[Array, "batch source width"]
) -> Float[Array, "batch time source"]:
    """query . key, for each query and key, without any scaling (Luong et al. 2015, arXiv 1508.04025, equation 8)."""
    return jnp.einsum("btd,bsd->bts", query, keys, preferred_element_type=_precise(query))


def general_scores(
    query: Float[Array, "batch time query_width"],
    keys: Float[Array, "batch source key_width"],
    w: Float[Array, "query_width key_width"],
) -> Float[Array, "batch time source"]:
    """query W . key (Luong et al. 2015, arXiv 1508.04025, equation 8); with W = 1 it is the dot score."""
    return dot_scores(query @ w, keys)


def concat_scores(
    query: Float[Array, "batch time query_width"],
    keys: Float[Array, "batch source key_width"],
    w: Float[Array, "both_widths hidden"],
    v: Float[Array, "hidden"],
) -> Float[Array, "batch time source"]:
    """v . tanh([query; key] W) (Luong et al. 2015, arXiv 1508.04025, equation 8), the query's rows of W first.

    Raises:
      UsageError: W has not as many rows as query and key together are wide.
    """
    width = query.shape[-1]
    if w.shape[0] != width + keys.shape[-1]:
        raise UsageError(
            f"the concat score's matrix has {w.shape[0]} rows; expected {width + keys.shape[-1]}, the widths of query "
            "and key together"
        )
    # A product with the two side by side is the sum of two products: [query; key] need not be made for every pair.
    return additive_scores(query, keys, w[:width], w[width:], v)


def attend(
    scores: Float[Array, "batch time source"],
    values: Float[Array, "batch source width"],
    mask: Bool[Array, "batch source"] | Bool[Array, "batch time source"] | None = None,
) -> tuple[Float[Array, "batch time width"], Float[Array, "batch time source"]]:
    """softmax(scores over what is visible) values.

    Args:
      scores: of each query and key.
      values: what is read.
      mask: True where a value may be read, for all queries alike or for each.

    Returns:
      The weighted sums in the values' dtype, and the weights in at least float32: they sum to 1, or are all 0 (and so
      is the sum, and every gradient) for a query that may read nothing.

    Raises:
      UsageError: the mask's shape is not that of the scores.
    """
    precise = _precise(scores)
    scores = scores.astype(precise)
    visible = jnp.ones((1, 1, 1), bool)
    if mask is not None:
        visible = mask[:, None] if mask.ndim == 2 else mask
        batch, time, source = scores.shape
        if visible.shape[0] != batch or visible.shape[1] not in (1, time) or visible.shape[2] != source:
            raise UsageError(
                f"the mask has the shape {mask.shape}; expected (batch, source) = {(batch, source)} or "
                f"(batch, time, source) = {(batch, time, source)}, as the scores have"
            )
    scores = jnp.where(visible, scores, -jnp.inf)
    largest = jnp.max(scores, axis=-1, keepdims=True, initial=-jnp.inf)
    weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.where(jnp.isfinite(largest), largest, 0)))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    weights = weights / jnp.where(total == 0, 1, total)
    return jnp.einsum("bts,bsd->btd", weights, values.astype(precise)).astype(values.dtype), weights


def _precise(x):
    return jnp.promote_types(x.dtype, jnp.float32)


def _through_tanh(hidden, v):
    return jnp.einsum("btsh,h->bts", jnp.tanh(hidden), v, preferred_element_type=_precise(hidden))
