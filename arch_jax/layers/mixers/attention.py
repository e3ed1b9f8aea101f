"""Self-attention as a sequence mixer: multi-head, grouped-query and multi-query, with a cache for decoding."""

import math
from typing import Annotated

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from arch_jax.errors import UsageError
from arch_jax.fields import DType, Kind, component
from arch_jax.layers.dense import Dense, Initial, joint, xavier
from arch_jax.layers.mixers.contract import Norm, Place, adapted
from arch_jax.layers.transformer import cache
from arch_jax.layers.transformer.cache import Cache
from arch_jax.layers.transformer.patterns import Pattern
from arch_jax.layers.transformer.positions import ALiBi, RoPE, ShawPositions
from arch_jax.ops.attention.dot_product import attention
from arch_jax.ops.attention.relative import relative_attention
from arch_jax.ops.segments import read_where_real, runs_and_positions

Relative = Annotated[nn.Module, Kind("relative")]


def check_sharing(heads: int, kv_heads: int | None) -> None:
    """Refuses heads that can't be divided among the key-value heads.

    Raises:
      UsageError: with the nearest number of key-value heads.
    """
    if heads < 1:
        raise UsageError(f"heads is {heads}; expected at least 1")
    if kv_heads is not None and (kv_heads < 1 or heads % kv_heads):
        small = [h for h in range(1, math.isqrt(heads) + 1) if heads % h == 0]
        best = min((h for one in small for h in (one, heads // one)), key=lambda h: (abs(h - kv_heads), h))
        raise UsageError(f"kv_heads {kv_heads} does not divide heads {heads}; the nearest that does is {best}")


@component("attention", kind="mixer")
class Attention(nn.Module):
    """softmax(Q K^T / sqrt(d)) V over several heads (Vaswani et al. 2017, 1706.03762, equation 1 and section 3.2.2).

    With fewer key-value heads than query heads it is grouped-query attention (Ainslie et al. 2023, 2305.13245).

    Attributes:
      heads: query heads.
      kv_heads: key and value heads, a divisor of `heads`; None is as many as `heads`, 1 is multi-query attention.
      head_size: dimensions of a head; None is width / heads.
      rope: rotary positions, or None.
      bias: whether the projections have biases.
      causal: whether a token sees only itself and earlier ones.
      pattern: a sparse pattern (strided, fixed, Longformer, BigBird) of the visible pairs; None is all.
        BigBird's depends on the length, so it neither decodes nor takes packed segments.
      window: the number of latest tokens, itself included, that a token sees; None is all.
      softcap: scores are squashed to (-softcap, softcap) by softcap * tanh(scores / softcap); None disables it.
      scale: factor of the scores; None is head_size^-0.5.
      scale_by_layer: whether the scores of layer i, counted from 1, are also divided by i (Mistral's GPT-2, as
        transformers' scale_attn_by_inverse_layer_idx); in a pattern of several mixers i counts the turns.
      qk_norm: norm of each head's query and key, before the rotation (Henry et al. 2020, 2010.04245; Qwen 3), or None.
      relative: the term for the distance of two tokens: "alibi", "relative_buckets" (T5), "shaw", or None.
      output_bias: whether the output has a bias; None is as `bias` says.
      query_gain: factor on the initial weights of the queries: T5 has head_size^-0.5 there, and a scale of 1.
      initial_std: standard deviation of the initial weights; None is that of fan-in scaling.
      initial: "normal" with that deviation, or "xavier": uniform with variance 2 / (fan-in + fan-out), for which query,
        key and value count as one matrix, as in timm and DiT; then `query_gain` and `residual_scale` have no effect.
      residual_scale: factor on the initial weights of the output, set by a decoder that scales them with its depth.
      implementation: of `ops.attention`: "auto", "reference", "xla", "pallas" or "cudnn".
      dtype: of the computation.
      parameter_dtype: of the parameters.
    """

    heads: int = 8
    kv_heads: int | None = None
    head_size: int | None = None
    rope: RoPE | None = None
    bias: bool = False
    causal: bool = True
    window: int | None = None
    softcap: float | None = None
    scale: float | None = None
    qk_norm: Norm | None = None
    relative: Relative | None = None
    output_bias: bool | None = None
    pattern: Pattern | None = None
    query_gain: float = 1.0
    initial_std: float | None = 0.02
    initial: Initial = "normal"
    residual_scale: float = 1.0
    scale_by_layer: bool = False
    implementation: str = "auto"
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 1:
            raise UsageError(f"window is {self.window}; expected at least 1 token, which sees only itself, or none")
        check_sharing(self.heads, self.kv_heads)
        super().__post_init__()

    @property
    def placed(self) -> bool:
        """True if the layer's place in the stack is an argument of it."""
        return self.scale_by_layer

    def sizes(self, width: int) -> tuple[int, int, int]:
        """(heads, kv_heads, head_size) for inputs of `width`.

        Raises:
          UsageError: `width` can't be divided among the heads.
        """
        head_size = self.head_size
        if head_size is None:
            if width % self.heads:
                near = [h for h in range(1, width + 1) if width % h == 0]
                best = min(near, key=lambda h: abs(h - self.heads))
                raise UsageError(
                    f"width {width} is not divisible by heads {self.heads}; the nearest that divides it is heads={best}"
                )
            head_size = width // self.heads
        return self.heads, self.heads if self.kv_heads is None else self.kv_heads, head_size

    def initial_state(self, batch: int, length: int, width: int, dtype: DType = jnp.float32) -> Cache:
        """An empty cache of keys and values with room for `length` tokens a row, or for the window if that is less.

        Raises:
          UsageError: the layer is not causal, so nothing can be decoded token by token.
        """
        if not self.causal:
            raise UsageError("attention with causal=False has no state; expected causal=True for decoding")
        _, kv_heads, head_size = self.sizes(width)
        return cache.empty(batch, length, ((kv_heads, head_size),) * 2, dtype, self.window)

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch time width"],
        segment_ids: Int[Array, "batch time"] | None = None,
        state: Cache | None = None,
        train: bool = False,
        bias: Float[Array, "#batch #heads #time source"] | None = None,
        place: Place | None = None,
    ) -> tuple[Float[Array, "batch time width"], Cache | None]:
        """As every mixer; `bias` is added to the scores (a term that layers share; "source" is the cache's places).
        `place` is the layer's place, where the scores are scaled by it."""
        x = read_where_real(x, segment_ids)
        batch, time, width = x.shape
        heads, kv_heads, head_size = self.sizes(width)

        counts = {"query": heads, "key": kv_heads, "value": kv_heads}
        settings = (self.bias, self.initial_std, self.dtype, self.parameter_dtype)
        gains = {"query": self.query_gain}
        uniform = self.initial == "xavier"
        initial = xavier(width, sum(counts.values()) * head_size) if uniform else None
        layers = [
            Dense(n * head_size, *settings, initial, gains.get(name, 1.0), parent=self, name=name)
            for name, n in counts.items()
        ]
        # Decoding reads every weight for one token: putting them side by side first would cost more than it saves.
        projected = joint(x, layers) if state is None else [layer(x) for layer in layers]
        q, k, v = (y.reshape(batch, time, n, head_size) for y, n in zip(projected, counts.values()))
        if self.qk_norm is not None:
            dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
            norm = adapted(self.qk_norm, **dtypes)
            q, k = (norm.clone(parent=self, name=f"{n}_norm")(y) for n, y in (("query", q), ("key", k)))

        run, position, seen = None, jnp.arange(time), None
        if state is not None:
            run, position, state = cache.follow(state, segment_ids, time)
        elif segment_ids is not None:
            run, position, _ = runs_and_positions(segment_ids)
        if self.rope is not None:
            q, k = self.rope(q, position), self.rope(k, position)
        if self.scale_by_layer and place is not None:
            q = q / jnp.asarray(place[0] + 1, q.dtype)
        if state is not None:
            state, seen = cache.store(state, (k, v), run, self.window)
            k, v = (entry.astype(q.dtype) for entry in seen.entries)
        y = self._attend(q, k, v, run, position, seen, bias)

        y = y.reshape(batch, time, heads * head_size)
        output_bias = self.bias if self.output_bias is None else self.output_bias
        settings = (output_bias, *settings[1:], xavier(heads * head_size, width) if uniform else None)
        y = Dense(width, *settings, gain=self.residual_scale, parent=self, name="output", to_stream=True)(y)
        if run is not None:  # with a bias, the output at padding would not be 0
            y = jnp.where(run[:, :, None] > 0, y, jnp.zeros((), y.dtype))
        return y, state

    def _attend(self, q, k, v, run, position, seen, bias):
        """The attended values; visible pairs and their distances are given in the cheapest form there is."""
        time, heads = q.shape[1:3]
        options = {"scale": self.scale, "softcap": self.softcap}
        relative = None if self.relative is None else adapted(self.relative, parameter_dtype=self.parameter_dtype)
        if relative is not None:
            relative = relative.clone(parent=self, name="by_distance")
        plain = seen is None and run is None
        if plain and (relative is None or isinstance(relative, ALiBi)):
            options |= {"causal": self.causal, "window": self.window, "bias": bias}
            options |= {"pattern": self.pattern, "alibi": None if relative is None else relative.slopes(heads)}
            return attention(q, k, v, **options, implementation=self.implementation)

        # Distances are counted in tokens that are not padding, so the window's mask and the terms are built from them.
        if seen is not None:
            distance, visible = seen.distance, seen.visible
        else:
            place = position if position.ndim == 2 else position[None]
            distance = place[:, :, None] - place[:, None, :]
            visible = jnp.ones_like(distance, bool) if self.window is None else jnp.abs(distance) < self.window
        if self.pattern is not None:
            place = position if position.ndim == 2 else position[None]
            visible = visible & self.pattern.visible(place[:, :, None], place[:, :, None] - distance)
        if isinstance(relative, ShawPositions):
            if seen is None:
                index = jnp.arange(time)
                visible &= (index[:, None] >= index)[None] if self.causal else True
                visible &= True if run is None else (run[:, :, None] == run[:, None, :]) & (run[:, :, None] > 0)
            tables = relative(q.shape[-1])
            return relative_attention(q, k, v, *tables, distance, visible, **options)
        if relative is not None:
            term = relative(distance, heads)
            bias = term if bias is None else bias + term
        if seen is not None:
            options |= {"mask": visible[:, None], "bias": bias}
        elif run is None:
            options |= {"causal": self.causal, "window": self.window, "pattern": self.pattern, "bias": bias}
        else:
            mask = None if self.window is None and self.pattern is None else visible[:, None]
            options |= {"causal": self.causal, "segment_ids": run, "mask": mask, "bias": bias}
        return attention(q, k, v, **options, implementation=self.implementation)
