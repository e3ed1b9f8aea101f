"""The maximum of several arrays, with a gradient that does not depend on how the compiler rounds."""

import functools
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["largest", "largest_reference"]


def largest(parts: Sequence[Float[Array, "*shape"]]) -> Float[Array, "*shape"]:
    """The element-wise maximum; its gradient goes to the first of the largest, as in PyTorch's pooling.

    JAX's own gradient of a maximum looks for the elements that equal it. Where the compiler computes those again, fused
    with other operations and rounded otherwise, none does: the gradient is then 0, or NaN (seen on a CPU, compiled
    without optimisation). Here it follows from which of two is larger, and always arrives somewhere.

    Args:
      parts: at least one array. NaN in any of them is NaN in the maximum.
    """
    return functools.reduce(lambda a, b: jnp.where((a >= b) | jnp.isnan(a), a, b), parts)


def largest_reference(parts):
    """`largest` by JAX's maximum; its gradient is the same where no two are equal."""
    return jnp.max(jnp.stack(parts), axis=0)
