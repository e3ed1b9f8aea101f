"""A decoder's attention to an encoder's annotations, in recurrent translation models."""

from collections.abc import Callable
from typing import Annotated, Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from arch_jax.errors import UsageError, unknown
from arch_jax.fields import DType, Kind, component
from arch_jax.layers.dense import affine
from arch_jax.layers.seq2seq.cells import uniform
from arch_jax.ops.attention import scores as ops

Reading = tuple[Float[Array, "batch time key_width"], Float[Array, "batch time source"]]
#: A field that takes any of these.
Score = Annotated[nn.Module, Kind("score")]


class ScoreBase(nn.Module):
    """Base of the scores: parameters, and attention that a decoder's loop can compute at each of its steps.

    Each has the fields `hidden`, `dtype` and `parameter_dtype`.
    """

    def __post_init__(self) -> None:
        if self.hidden is not None and self.hidden < 1:
            raise UsageError(f"hidden is {self.hidden}; expected at least 1, or none for the width of the keys")
        super().__post_init__()

    @property
    def initial(self) -> Callable:
        """The draw for all parameters."""
        return nn.initializers.normal(0.02)

    def shapes(self, query_width: int, key_width: int) -> dict[str, tuple[int, ...]]:
        """Parameters by name, for queries and keys of these widths."""
        raise TypeError(f"{type(self).__name__} must define its parameters")

    def of_keys(self, parameters: dict[str, Array], keys: Array) -> Array | None:
        """The part of the scores that depends on no query; None is the keys themselves."""
        return None

    def scores(self, parameters: dict[str, Array], query: Array, prepared: Array) -> Array:
        """Scores "batch time source" from queries and `of_keys`."""
        raise TypeError(f"{type(self).__name__} must define its score")

    def attend(
        self, parameters: dict[str, Array], scores: Array, query: Array, keys: Array, mask: Array | None, place: Array
    ) -> Reading:
        """The weighted sum of the keys by the scores, and the weights."""
        return ops.attend(scores, keys, mask)

    @nn.compact
    def parameters(self, query_width: int, key_width: int) -> dict[str, Array]:
        """All parameters, in the dtype of the computation."""
        return {
            name: self.param(name, self.initial, shape, self.parameter_dtype).astype(self.dtype)
            for name, shape in self.shapes(query_width, key_width).items()
        }

    def prepared(self, keys: Float[Array, "batch source key_width"], query_width: int) -> Array | None:
        """The part of the scores that depends on no query, for `reader`'s function; None if there is none."""
        return self.of_keys(self.parameters(query_width, keys.shape[-1]), keys.astype(self.dtype))

    def reader(self, query_width: int, key_width: int) -> Callable[..., Reading]:
        """A function (query, keys, prepared, mask, place) -> (context, weights), for use inside a loop.

        `place` is the number of each query, "batch time", which only local attention looks at. The function holds
        arrays alone: no parameter is made when it is called.
        """
        parameters = self.parameters(query_width, key_width)

        def read(query: Array, keys: Array, prepared: Any = None, mask: Any = None, place: Any = None) -> Reading:
            query, keys = query.astype(self.dtype), keys.astype(self.dtype)
            if prepared is None:
                prepared = self.of_keys(parameters, keys)
            if place is None:
                place = jnp.broadcast_to(jnp.arange(query.shape[1]), query.shape[:2])
            scores = self.scores(parameters, query, keys if prepared is None else prepared)
            return self.attend(parameters, scores, query, keys, mask, place)

        return read

    def __call__(
        self,
        query: Float[Array, "batch time query_width"],
        keys: Float[Array, "batch source key_width"],
        mask: Bool[Array, "batch source"] | None = None,
    ) -> Reading:
        """Context "batch time key_width" and weights "batch time source"; `mask` is True where there is a key."""
        return self.reader(query.shape[-1], keys.shape[-1])(query, keys, None, mask)


@component("additive_attention", kind="score")
class AdditiveAttention(ScoreBase):
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

    @property
    def initial(self):
        return nn.initializers.normal(self.initial_std)

    def shapes(self, query_width, key_width):
        hidden = self.hidden or key_width
        return {"query": (query_width, hidden), "key": (key_width, hidden), "v": (hidden,)}

    def of_keys(self, parameters, keys):
        return affine(keys, parameters["key"])

    def scores(self, parameters, query, prepared):
        return ops.tanh_scores(query @ parameters["query"], prepared, parameters["v"])


@component("luong_attention", kind="score")
class LuongAttention(ScoreBase):
    """Global attention by a multiplicative score (Luong et al. 2015, 1508.04025, section 3.1).

    "dot" is s . h, "general" s W . h, and "concat" v . tanh([s; h] W) (section 3.1); the weights are the softmax over
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
        super().__post_init__()

    @property
    def initial(self):
        return uniform(self.initial_scale)

    def shapes(self, query_width, key_width):
        if self.score == "general":
            return {"kernel": (query_width, key_width)}
        if self.score == "concat":
            hidden = self.hidden or key_width
            return {"kernel": (query_width + key_width, hidden), "v": (hidden,)}
        if query_width != key_width:
            raise UsageError(
                f'luong_attention\'s score "dot" is given queries of width {query_width} and keys of {key_width}; '
                'expected equal widths, or the score "general"'
            )
        return {}

    def of_keys(self, parameters, keys):
        # [s; h] W is the sum of two products, of which the keys' one is the same for all queries.
        return affine(keys, parameters["kernel"][-keys.shape[-1] :]) if self.score == "concat" else None

    def scores(self, parameters, query, prepared):
        if self.score == "general":
            return ops.general_scores(query, prepared, parameters["kernel"])
        if self.score == "concat":
            return ops.tanh_scores(query @ parameters["kernel"][: query.shape[-1]], prepared, parameters["v"])
        return ops.dot_scores(query, prepared)


@component("local_attention", kind="score")
class LocalAttention(LuongAttention):
    """Luong et al.'s local attention (2015, 1508.04025, section 3.2): a window of D words on each side of p_t.

    "monotonic" (local-m) has p_t = t, or the last word where the source is shorter; "predictive" (local-p) has

        p_t = S sigmoid(v_p . tanh(W_p h_t))                                                   (9)
        weight_t(s) = align(h_t, h_s) exp(-(s - p_t)^2 / (2 sigma^2)),  sigma = D / 2          (10)

    with S the length of the source and align the softmax over the window. Places count from 0.

    Attributes:
      score: "dot", "general" or "concat".
      hidden: width of the tanh layer of "concat"; None is that of the keys.
      initial_scale: the parameters start uniform in [-initial_scale, initial_scale] (section 4.1).
      alignment: where p_t is: "predictive" or "monotonic".
      window: D.
      dtype: of the computation; scores and softmax are at least float32.
      parameter_dtype: of the parameters.
    """

    alignment: str = "predictive"
    window: int = 10

    def __post_init__(self) -> None:
        if self.alignment not in ("predictive", "monotonic"):
            raise unknown("alignment of local_attention", self.alignment, ("predictive", "monotonic"))
        if self.window < 1:
            raise UsageError(f"window is {self.window}; expected at least 1 word on each side, such as 10")
        super().__post_init__()

    def shapes(self, query_width, key_width):
        predicting = {"place_kernel": (query_width, query_width), "place_v": (query_width,)}
        found = super().shapes(query_width, key_width)
        return found | predicting if self.alignment == "predictive" else found

    def attend(self, parameters, scores, query, keys, mask, place):
        precise = scores.dtype
        length = jnp.full((keys.shape[0], 1), keys.shape[1]) if mask is None else jnp.sum(mask, axis=1, keepdims=True)
        if self.alignment == "monotonic":
            centre = jnp.minimum(place, jnp.maximum(length - 1, 0))
        else:
            predicted = (jnp.tanh(query @ parameters["place_kernel"]) @ parameters["place_v"]).astype(precise)
            centre = length * nn.sigmoid(predicted)
        return ops.attend_locally(scores, keys, centre, self.window, mask, self.alignment == "predictive")
