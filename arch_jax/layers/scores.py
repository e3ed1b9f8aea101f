"""Attention of a decoder to an encoder's annotations, as recurrent translation models have it."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from arch_jax.errors import UsageError, unknown
from arch_jax.fields import DType, component
from arch_jax.ops import scores as ops

Reading = tuple[Float[Array, "batch time key_width"], Float[Array, "batch time source"]]


@component("additive_attention", kind="score")
class AdditiveAttention(nn.Module):
    """e_ij = v . tanh(W s_i + U h_j), weights softmax_j(e_ij), context sum_j weights_ij h_j (Bahdanau et al. 2014).

    1409.0473, section 3.1 and appendix A.1.2.

    Attributes:
      hidden: the paper's n', the width of the tanh layer; None is that of the keys.
      initial_std: standard deviation of the initial W and U (appendix B.1: 0.001, and v from 0, which here is as wide).
      dtype: of the computation; scores and softmax are at least float32.
      parameter_dtype: of the parameters.
    """

    hidden: int | None = None
    initial_std: float = 0.001
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    def __post_init__(self) -> None:
        _check_hidden(self)
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        query: Float[Array, "batch time query_width"],
        keys: Float[Array, "batch source key_width"],
        mask: Bool[Array, "batch source"] | None = None,
    ) -> Reading:
        """Context "batch time key_width" and weights "batch time source"; `mask` is True where there is a key."""
        hidden = self.hidden or keys.shape[-1]
        normal = nn.initializers.normal(self.initial_std)
        parameter = lambda name, *shape: self.param(name, normal, shape, self.parameter_dtype).astype(self.dtype)
        w, u = parameter("query", query.shape[-1], hidden), parameter("key", keys.shape[-1], hidden)
        query, keys = query.astype(self.dtype), keys.astype(self.dtype)
        return ops.attend(ops.additive_scores(query, keys, w, u, parameter("v", hidden)), keys, mask)


@component("luong_attention", kind="score")
class LuongAttention(nn.Module):
    """Global attention by a multiplicative score (Luong et al. 2015, 1508.04025, section 3.1).

    "dot" is s . h, "general" s W . h, and "concat" v . tanh([s; h] W) (equation 8); the weights are the softmax over
    the keys, and the context is the sum of the keys by them.

    Attributes:
      score: "dot", "general" or "concat".
      hidden: width of the tanh layer of "concat"; None is that of the keys.
      initial_scale: the parameters start uniform in [-initial_scale, initial_scale] (section 4.1).
      dtype: of the computation; scores and softmax are at least float32.
      parameter_dtype: of the parameters.
    """

    score: str = "general"
    hidden: int | None = None
    initial_scale: float = 0.1
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    def __post_init__(self) -> None:
        if self.score not in ("dot", "general", "concat"):
            raise unknown("score of luong_attention", self.score, ("dot", "general", "concat"))
        _check_hidden(self)
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        query: Float[Array, "batch time query_width"],
        keys: Float[Array, "batch source key_width"],
        mask: Bool[Array, "batch source"] | None = None,
    ) -> Reading:
        """Context "batch time key_width" and weights "batch time source"; `mask` is True where there is a key."""
        query_width, key_width = query.shape[-1], keys.shape[-1]
        query, keys = query.astype(self.dtype), keys.astype(self.dtype)

        def parameter(name, *shape):
            initial = lambda key, shape, dtype: nn.initializers.uniform(2 * self.initial_scale)(key, shape, dtype)
            shifted = lambda *arguments: initial(*arguments) - self.initial_scale
            return self.param(name, shifted, shape, self.parameter_dtype).astype(self.dtype)

        if self.score == "general":
            found = ops.general_scores(query, keys, parameter("kernel", query_width, key_width))
        elif self.score == "concat":
            hidden = self.hidden or key_width
            kernel = parameter("kernel", query_width + key_width, hidden)
            found = ops.concat_scores(query, keys, kernel, parameter("v", hidden))
        else:
            if query_width != key_width:
                raise UsageError(
                    f'luong_attention\'s score "dot" is given queries of width {query_width} and keys of {key_width}; '
                    'expected equal widths, or the score "general"'
                )
            found = ops.dot_scores(query, keys)
        return ops.attend(found, keys, mask)


def _check_hidden(module):
    if module.hidden is not None and module.hidden < 1:
        raise UsageError(f"hidden is {module.hidden}; expected at least 1, or none for the width of the keys")
