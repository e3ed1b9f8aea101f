"""Losses on arrays, per element, in nats."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

__all__ = ["cross_entropy", "cross_entropy_reference"]


def cross_entropy(
    logits: Float[Array, "*batch vocabulary"],
    targets: Int[Array, "*batch"],
    *,
    label_smoothing: float | int = 0.0,
    z_loss: float | int = 0.0,
) -> Float[Array, "*batch"]:
    return cross_entropy_reference(logits, targets, label_smoothing=label_smoothing, z_loss=z_loss)


def cross_entropy_reference(logits, targets, *, label_smoothing=0.0, z_loss=0.0):
    """`cross_entropy` as it is defined: minus the expectation of the log-probabilities under the smoothed target."""
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    vocabulary = logits.shape[-1]
    target = (1 - label_smoothing) * jax.nn.one_hot(targets, vocabulary, dtype=logits.dtype)
    target = target + label_smoothing / vocabulary
    loss = -jnp.sum(target * jax.nn.log_softmax(logits), axis=-1)
    return loss + z_loss * jnp.square(jax.nn.logsumexp(logits, axis=-1))
