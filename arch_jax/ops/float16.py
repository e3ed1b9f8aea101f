"""float16, whose largest number is 65,504: what stays wider, so that the sum of many layers does not overflow.

A residual stream adds up what all layers give, and in large models it leaves float16's range long before anything else
does. Each reference implementation has its own guard: T5 keeps the last matrix of a feed-forward layer in float32, and
its stream with it; RWKV-4 halves the stream every so many layers; Mamba's is float32 by a setting. Here there is one:
where the computation is float16, the stream is float32, and so is what is added to it; the norm that reads it returns
to float16.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["not_narrowed", "stream_dtype"]


def stream_dtype(dtype: Any) -> Any:
    """The dtype of a residual stream: float32 for a computation in float16, else that of the computation."""
    return jnp.float32 if jnp.dtype(dtype) == jnp.float16 else dtype


def not_narrowed(x: Float[Array, "*shape"], dtype: Any) -> Float[Array, "*shape"]:
    """x in `dtype`; where that is float16, in at least float32, for a norm that computes in no less anyway."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32) if stream_dtype(dtype) != dtype else dtype)
