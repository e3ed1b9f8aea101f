"""Attention in linear time as sequence mixers: feature maps (Katharopoulos, Performer) and low rank (Linformer)."""

import math
from typing import Any, ClassVar

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from arch_jax.errors import UsageError, unknown
from arch_jax.fields import DType, component
from arch_jax.layers.dense import Dense, joint
from arch_jax.layers.mixers.attention import Attention, check_sharing
from arch_jax.layers.mixers.contract import check_state, runs
from arch_jax.layers.sequence_position import at_start
from arch_jax.ops.attention import linear as ops
from arch_jax.ops.attention.random_features import orthogonal_projection, positive_features
from arch_jax.ops.segments import read_where_real
from arch_jax.ranges import Count

FEATURE_MAPS = {"elu": ops.elu_features}


@flax.struct.dataclass
class LinearAttentionState:
    """Recurrent state; its size does not depend on the sequence length.

    Attributes:
      s: sum of phi(k) v^T over the current run, "batch kv_heads features head_size".
      z: sum of phi(k), "batch kv_heads features".
      at: position of each row, a `SequencePosition`.
    """

    # No shape annotations: JAX rebuilds these containers with placeholders that are not arrays.
    s: Any
    z: Any
    at: Any


class _HeadsMixer(nn.Module):
    """Queries, keys and values of several heads, mixed by a subclass's `mix`, and the output's projection.

    Attributes:
      heads: query heads.
      kv_heads: key and value heads, a divisor of `heads`; None is as many as `heads`.
      head_size: dimensions of a head; None is width / heads.
      bias: whether the projections have biases.
      initial_std: standard deviation of the initial weights; None is that of fan-in scaling.
      residual_scale: factor on the initial weights of the output, set by a decoder that scales them with its depth.
      dtype: of the computation; sums are at least float32.
      parameter_dtype: of the parameters.
    """

    heads: int = 8
    kv_heads: int | None = None
    head_size: int | None = None
    bias: bool = False
    initial_std: float | None = 0.02
    residual_scale: float = 1.0
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    def __post_init__(self) -> None:
        check_sharing(self.heads, self.kv_heads)
        super().__post_init__()

    def sizes(self, width: int) -> tuple[int, int, int]:
        """(heads, kv_heads, head_size) for inputs of `width`; refuses what `Attention.sizes` refuses."""
        return Attention(self.heads, self.kv_heads, self.head_size, parent=None).sizes(width)

    def mix(self, q, k, v, run, position, state):
        """The heads' outputs "batch time heads head_size", and (s, z) where a state is carried."""
        raise TypeError(f"{type(self).__name__} must say how it mixes queries, keys and values")

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch time width"],
        segment_ids: Int[Array, "batch time"] | None = None,
        state: LinearAttentionState | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "batch time width"], LinearAttentionState | None]:
        x = read_where_real(x, segment_ids)
        batch, time, width = x.shape
        heads, kv_heads, head_size = self.sizes(width)
        settings = (self.bias, self.initial_std, self.dtype, self.parameter_dtype)
        counts = {"query": heads, "key": kv_heads, "value": kv_heads}
        layers = [Dense(n * head_size, *settings, parent=self, name=name) for name, n in counts.items()]
        projected = joint(x, layers) if state is None else [layer(x) for layer in layers]
        q, k, v = (y.reshape(batch, time, n, head_size) for y, n in zip(projected, counts.values()))

        check_state(state, LinearAttentionState, batch, type(self).__name__)
        run, position, after = runs(x, segment_ids, state)
        y, sums = self.mix(q, k, v, run, position, state)
        y = y.reshape(batch, time, heads * head_size).astype(self.dtype)
        y = Dense(width, *settings, gain=self.residual_scale, parent=self, name="output", to_stream=True)(y)
        if run is not None:  # with a bias, the output at padding would not be 0
            y = jnp.where(run[:, :, None] > 0, y, jnp.zeros((), y.dtype))
        return y, None if state is None else LinearAttentionState(*sums, after)


class _FeatureAttention(_HeadsMixer):
    """Base of the mixers with a feature map; a subclass gives `features` and `feature_size`.

    Attributes:
      causal: whether a token sees only itself and earlier ones.
      form: algorithm, all with the same result: "auto", "parallel", "chunked" or "recurrent".
      chunk: tokens in a chunk of the chunked form.
    """

    causal: bool = True
    form: str = "auto"
    chunk: int = 64

    def feature_size(self, head_size: int) -> int:
        """The number of features of a head."""
        raise TypeError(f"{type(self).__name__} must define the number of its features")

    def features(self, q, k):
        """phi of the queries and of the keys."""
        raise TypeError(f"{type(self).__name__} must define its features")

    def initial_state(self, batch: int, length: int, width: int, dtype: DType = jnp.float32) -> LinearAttentionState:
        """The state before the first token; it has the same size for every `length`.

        Raises:
          UsageError: the layer is not causal, so nothing can be decoded token by token.
        """
        if not self.causal:
            raise UsageError("linear attention with causal=False has no state; expected causal=True for decoding")
        _, kv_heads, head_size = self.sizes(width)
        begin = ops.initial_state(batch, kv_heads, self.feature_size(head_size), head_size, dtype)
        return LinearAttentionState(begin.s, begin.z, at_start(batch))

    def mix(self, q, k, v, run, position, state):
        """Linear attention of the features."""
        carried = None if state is None else ops.LinearState(state.s, state.z, state.at.last_run)
        settings = {"causal": self.causal, "form": self.form, "chunk": self.chunk}
        y, after = ops.linear_attention(q, k, v, feature_map=self.features, run=run, state=carried, **settings)
        return y, None if after is None else (after.s, after.z)


@component("linear_attention", kind="mixer")
class LinearAttention(_FeatureAttention):
    """out_i = sum_j phi(q_i) . phi(k_j) v_j / sum_j phi(q_i) . phi(k_j) (Katharopoulos et al. 2020, 2006.16236).

    Attributes:
      heads: query heads.
      kv_heads: key and value heads, a divisor of `heads`; None is as many as `heads`.
      head_size: dimensions of a head; None is width / heads.
      bias: whether the projections have biases.
      initial_std: standard deviation of the initial weights; None is that of fan-in scaling.
      residual_scale: factor on the initial weights of the output, set by a decoder that scales them with its depth.
      dtype: of the computation; features and sums are at least float32.
      parameter_dtype: of the parameters.
      causal: whether a token sees only itself and earlier ones.
      form: algorithm, all with the same result: "auto", "parallel", "chunked" or "recurrent".
      chunk: tokens in a chunk of the chunked form.
      feature_map: phi: "elu", which is elu(x) + 1 (equation 7).
    """

    feature_map: str = "elu"

    def feature_size(self, head_size: int) -> int:
        """As many as the head has dimensions."""
        return head_size

    def features(self, q, k):
        """phi of the queries and of the keys."""
        if self.feature_map not in FEATURE_MAPS:
            raise unknown("feature map of linear attention", self.feature_map, FEATURE_MAPS)
        return tuple(map(FEATURE_MAPS[self.feature_map], (q, k)))


@component("performer", kind="mixer")
class Performer(_FeatureAttention):
    """Softmax attention, estimated by positive orthogonal random features (Choromanski et al. 2020, 2009.14794).

    The projection is drawn from `seed`, and neither trained nor redrawn.

    Attributes:
      heads: query heads.
      kv_heads: key and value heads, a divisor of `heads`; None is as many as `heads`.
      head_size: dimensions of a head; None is width / heads.
      bias: whether the projections have biases.
      initial_std: standard deviation of the initial weights; None is that of fan-in scaling.
      residual_scale: factor on the initial weights of the output, set by a decoder that scales them with its depth.
      dtype: of the computation; features and sums are at least float32.
      parameter_dtype: of the parameters.
      causal: whether a token sees only itself and earlier ones.
      form: algorithm, all with the same result: "auto", "parallel", "chunked" or "recurrent".
      chunk: tokens in a chunk of the chunked form.
      random_features: the paper's m; None is d ln d for heads of d dimensions (theorem 4).
      orthogonal: whether the features' directions are orthogonal, for less variance.
      seed: of the projection.
    """

    chunk: int = 128
    random_features: int | None = None
    orthogonal: bool = True
    seed: Count = 0

    def feature_size(self, head_size: int) -> int:
        """m."""
        if self.random_features is not None:
            return self.random_features
        return max(1, round(head_size * math.log(head_size))) if head_size > 1 else 1

    def features(self, q, k):
        """Random features of queries and keys that share the factor d^-1/2 of their product."""
        dim = q.shape[-1]
        projection = orthogonal_projection(self.feature_size(dim), dim, self.seed, self.orthogonal)
        shared = dim**-0.25
        return positive_features(q * shared, projection, query=True), positive_features(k * shared, projection)


@component("linformer", kind="mixer")
class Linformer(_HeadsMixer):
    """softmax(q (E k)^T / sqrt(d)) (F v): attention to mixtures of positions (Wang et al. 2020, 2006.04768).

    Not causal, and for sequences of at most `length`. E and F are shared among the heads ("headwise sharing", section
    4). Packed segments are each mixed on their own, in time of the length squared.

    Attributes:
      heads: query heads.
      kv_heads: key and value heads, a divisor of `heads`; None is as many as `heads`.
      head_size: dimensions of a head; None is width / heads.
      bias: whether the projections have biases.
      initial_std: standard deviation of the initial weights; None is that of fan-in scaling.
      residual_scale: factor on the initial weights of the output, set by a decoder that scales them with its depth.
      dtype: of the computation; sums are at least float32.
      parameter_dtype: of the parameters.
      length: positions that E and F mix; a longer sequence is an error.
      rank: the paper's k, the number of mixtures.
      shared: whether F is E ("key-value sharing").
    """

    causal: ClassVar[bool] = False

    length: int = 512
    rank: int = 128
    shared: bool = False

    def __post_init__(self) -> None:
        for name in ("length", "rank"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} of linformer is {getattr(self, name)}; expected an integer of at least 1")
        super().__post_init__()

    def initial_state(self, batch: int, length: int, width: int, dtype: DType = jnp.float32) -> None:
        """Refuses: Linformer has no state.

        Raises:
          UsageError: always, since each mixture depends on every position.
        """
        raise UsageError("linformer is not causal and has no state; expected another mixer for decoding")

    def mix(self, q, k, v, run, position, state):
        """Attention to the mixtures."""
        if state is not None:
            self.initial_state(1, 1, 1)
        initial = nn.initializers.normal(self.rank**-0.5)  # as in a Johnson-Lindenstrauss projection: theorem 2
        names = ("key_mixture",) if self.shared else ("key_mixture", "value_mixture")
        e, *f = (self.param(name, initial, (self.rank, self.length), self.parameter_dtype) for name in names)
        return ops.low_rank_attention(q, k, v, e, f[0] if f else e, run=run, position=position), None
