"""The first attention scores, additive (Bahdanau) and multiplicative (Luong), and the weighted sums over them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from arch_jax.errors import UsageError

__all__ = [
    "additive_scores",
    "attend",
    "attend_locally",
    "concat_scores",
    "dot_scores",
    "general_scores",
    "tanh_scores",
]


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
    return tanh_scores(query @ w, keys @ u, v)


def tanh_scores(
    query_part: Float[Array, "batch time hidden"],
    key_part: Float[Array, "batch source hidden"],
    v: Float[Array, "hidden"],
) -> Float[Array, "batch time source"]:
    """v . tanh(query_part + key_part), for each query and key: the keys' part is the same for all queries.

    Returns:
      Scores in at least float32.
    """
    hidden = jnp.tanh(query_part[:, :, None] + key_part[:, None])
    return jnp.einsum("btsh,h->bts", hidden, v, preferred_element_type=_precise(hidden))


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
      values: the values to be averaged.
      mask: True where a value may be read, for all queries alike or for each.

    Returns:
      The weighted sums in the values' dtype, and the weights in at least float32: they sum to 1, or are all 0 (and so
      is the sum, and every gradient) for a query that sees nothing.

    Raises:
      UsageError: the mask's shape is not that of the scores.
    """
    weights = _weights(scores, mask)
    return _read(weights, values), weights


def attend_locally(
    scores: Float[Array, "batch time source"],
    values: Float[Array, "batch source width"],
    centre: Float[Array, "batch time"] | Int[Array, "batch time"],
    window: int,
    mask: Bool[Array, "batch source"] | None = None,
    gaussian: bool = True,
) -> tuple[Float[Array, "batch time width"], Float[Array, "batch time source"]]:
    """`attend` within `window` places of a centre for each query, weighted down with the distance from it:

        weight(s) = softmax(scores over [centre - D, centre + D]) exp(-(s - centre)^2 / (2 (D/2)^2))

    Args:
      scores: of each query and key.
      values: the values to be averaged.
      centre: of each query's window, as a place in the source; differentiable.
      window: D, at least 1.
      mask: True at real places of the source.
      gaussian: whether there is the second factor. The weights then sum to less than 1.

    Returns:
      The weighted sums in the values' dtype, and the weights in at least float32.

    Raises:
      UsageError: a window below 1.

    Source: Luong et al. 2015, arXiv 1508.04025, section 3.2, equations 7 and 10.
    """
    if window < 1:
        raise UsageError(f"window is {window}; expected at least 1 place on each side of the centre, such as 10")
    distance = jnp.arange(scores.shape[-1]) - centre[:, :, None].astype(_precise(scores))
    visible = jnp.abs(distance) <= window
    if mask is not None:
        visible = visible & mask[:, None]
    weights = _weights(scores, visible)
    if gaussian:
        weights = weights * jnp.exp(-jnp.square(distance) / (2 * (window / 2) ** 2))
    return _read(weights, values), weights


def _weights(scores, mask):
    """softmax(scores) over what is visible, 0 elsewhere."""
    scores = scores.astype(_precise(scores))
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
    return weights / jnp.where(total == 0, 1, total)


def _read(weights, values):
    return jnp.einsum("bts,bsd->btd", weights, values.astype(weights.dtype)).astype(values.dtype)


def _precise(x):
    return jnp.promote_types(x.dtype, jnp.float32)
