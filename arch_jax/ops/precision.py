"""Sums in at least float32, whatever the arrays are stored in.

A bfloat16 number has 8 bits: 256 + 1 is 256 again. A long sum kept in it stands still, be it a moving average, a
micro-batch more, or the gradient of a row that was read 4,096 times.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Integer, Shaped

__all__ = ["at_least_float32", "like", "look_up", "picked", "scan"]


def at_least_float32(tree: Any) -> Any:
    """A tree of arrays, those of floating point numbers of fewer than 32 bits as float32, the others as they are."""

    def one(x: Any) -> Any:
        x = jnp.asarray(x)
        return x.astype(jnp.promote_types(x.dtype, jnp.float32)) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(one, tree)


def like(tree: Any, model: Any) -> Any:
    """A tree of arrays in the dtypes of another."""
    return jax.tree.map(lambda x, m: x.astype(m.dtype), tree, model)


def scan(body: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any) -> tuple[Any, Any]:
    """`jax.lax.scan(body, carry, xs)` for a body that closes over arrays, such as the weights of a cell.

    The gradient of such an array is a sum over all steps; here it is made in at least float32. The values are the same.
    """
    abstract = lambda drop: lambda x: jax.ShapeDtypeStruct(jnp.shape(x)[drop:], jnp.result_type(x))
    called, held = jax.closure_convert(body, jax.tree.map(abstract(0), carry), jax.tree.map(abstract(1), xs))
    wide = at_least_float32(held)
    return lax.scan(lambda carry, x: called(carry, x, *like(wide, held)), carry, xs)


@jax.custom_jvp
def look_up(
    table: Float[Array, "entries features"], index: Integer[Array, "*batch"]
) -> Float[Array, "*batch features"]:
    """Rows of a table by index; the gradient of a row is summed in at least float32.

    Args:
      table: one row an entry.
      index: an index outside the table gives NaN: a wrong token shows at once, where clipping would hide it and a
        negative one would count from the end.
    """
    return _read(table, index, outside=jnp.nan)


@look_up.defjvp
def _look_up_tangent(primals: tuple[Array, Array], tangents: tuple[Array, Any]) -> tuple[Array, Array]:
    # The transpose of "widen, read, narrow" is "widen, sum, narrow": no copy of the table is made going forwards.
    (table, index), (change, _) = primals, tangents
    return look_up(table, index), _read(at_least_float32(change), index, outside=0.0).astype(table.dtype)


def _read(table: Array, index: Array, outside: float) -> Array:
    index = index.astype(jnp.promote_types(index.dtype, jnp.int32))  # uint8 has no room for "outside" of 256 entries
    return jnp.take(table, jnp.where(index < 0, len(table), index), axis=0, mode="fill", fill_value=outside)


def picked(
    x: Shaped[Array, "batch time *features"], index: Int[Array, "batch some"]
) -> Shaped[Array, "batch some *features"]:
    """Entries of each row by index, in any order; the gradient of one that is read often is summed as by `look_up`."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return jax.vmap(lambda row, i: row[i])(x, index)
    flat = x.reshape(*x.shape[:2], math.prod(x.shape[2:]))
    return jax.vmap(look_up)(flat, index).reshape(*index.shape, *x.shape[2:])
