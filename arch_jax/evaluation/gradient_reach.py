"""Reach of an output's gradient back in a sequence: the vanishing gradient, measured."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from arch_jax.layers.dense import Embedding
from arch_jax.ops.losses import cross_entropy


def gradient_by_distance(function: Callable[[Array], Array], x: Float[Array, "batch time features"]) -> Array:
    """Norm of the outputs' gradient d y / d x_t against the distance T - t.

    Where it falls like a power of the distance, gradients vanish (Hochreiter 1991; Bengio et al. 1994; Pascanu et al.
    2013, 1211.5063): what was read that long ago can hardly be learned from.

    Args:
      function: x to answers "batch outputs", each row by itself.
      x: sequences without padding.

    Returns:
      At index d of "time" the Frobenius norm of the Jacobian of a row's answers in its x_{T - d}, T the last time; the
      mean over rows.
    """
    answers, pull = jax.vjp(function, x)
    # Rows don't see each other, so that one cotangent for each answer gives it for all rows.
    ones = jnp.broadcast_to(jnp.eye(answers.shape[1], dtype=answers.dtype)[:, None], (answers.shape[1], *answers.shape))
    # One after another: of a norm pulled back for all at once, some numbers are wrong on a CPU beyond 32,768 elements
    # (jaxlib 0.10.2, its fused reductions).
    (jacobian,) = jax.lax.map(pull, ones)
    # The largest is taken out: the squares of small numbers would be 0 sooner than the numbers.
    largest = jnp.max(jnp.abs(jacobian), axis=(0, 3), keepdims=True)
    scaled = jacobian / jnp.where(largest > 0, largest, 1)
    norms = jnp.sqrt(jnp.sum(jnp.square(scaled), axis=(0, 3))) * largest[0, :, :, 0]
    return jnp.mean(norms, axis=0)[::-1]


@functools.partial(jax.jit, static_argnums=0)
def of_tokens(model: nn.Module, variables: Any, tokens: Any, last: Any) -> jax.Array:
    """`gradient_by_distance` of the nats of each row's last target, in the embedded tokens of a language model.

    Args:
      model: a decoder that embeds by `Embedding`.
      variables: of it.
      tokens: "batch time".
      last: the last targets, "batch".
    """

    def nats(added: jax.Array) -> jax.Array:
        def add(call: Any, arguments: Any, options: Any, context: Any) -> Any:
            out = call(*arguments, **options)
            embeds = isinstance(context.module, Embedding) and context.method_name == "__call__"
            return out + added if embeds else out

        with nn.intercept_methods(add):
            logits = model.apply(variables, tokens)
        return cross_entropy(logits[:, -1], last)[:, None]

    return gradient_by_distance(nats, jnp.zeros((*tokens.shape, model.width)))


@functools.partial(jax.jit, static_argnums=0)
def of_sequences(model: nn.Module, variables: Any, x: Any) -> jax.Array:
    """`gradient_by_distance` of a regression's outputs in its inputs x, "batch time features"."""
    return gradient_by_distance(lambda x: model.apply(variables, x), x)
