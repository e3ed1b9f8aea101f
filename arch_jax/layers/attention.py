"""Self-attention as a sequence mixer: multi-head, grouped-query and multi-query, with a cache for decoding."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from arch_jax.errors import UsageError
from arch_jax.fields import DType, component
from arch_jax.layers.dense import Dense, joint
from arch_jax.layers.positions import RoPE
from arch_jax.ops.attention import attention
from arch_jax.ops.segments import runs_and_positions


@flax.struct.dataclass
class AttentionState:
    """Keys and values seen so far.

    A slot belongs to a run (1, 2, ...; 0 is an empty slot), and only equal runs see each other.

    Attributes:
      key: rotated keys, one a slot, "batch length kv_heads head_size".
      value: values, one a slot, "batch length kv_heads head_size".
      slot_run: which run a slot's token belongs to, "batch length".
      used: how many slots are filled, "batch".
      last_id: the last segment id, "batch".
      last_run: how many runs there were, "batch".
      last_position: the position of the last token in its run, -1 before the first, "batch".
    """

    # No shape annotations: JAX rebuilds these containers with placeholders that are not arrays.
    key: Any
    value: Any
    slot_run: Any
    used: Any
    last_id: Any
    last_run: Any
    last_position: Any


@component("attention", kind="mixer")
class Attention(nn.Module):
    """softmax(Q K^T / sqrt(d)) V over several heads (Vaswani et al. 2017, 1706.03762, equation 1 and section 3.2.2).

    With fewer key-value heads than query heads it is grouped-query attention (Ainslie et al. 2023, 2305.13245).

    Attributes:
      heads: query heads.
      kv_heads: key and value heads, a divisor of `heads`; None is as many as `heads`, 1 is multi-query attention.
      head_size: dimensions of a head; None is width / heads.
      rope: rotary positions, or none.
      bias: whether the projections have biases.
      causal: whether a token sees only itself and what came before.
      window: how many of the latest tokens, itself included, a token sees; None is all.
      softcap: scores are squashed to (-softcap, softcap) by softcap * tanh(scores / softcap); None is not at all.
      initial_std: standard deviation of the initial weights.
      residual_scale: factor on the initial weights of the output, set by a decoder that scales them with its depth.
      implementation: of `ops.attention`: "auto", "reference" or "xla".
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
    initial_std: float = 0.02
    residual_scale: float = 1.0
    implementation: str = "auto"
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    def sizes(self, width: int) -> tuple[int, int, int]:
        """(heads, kv_heads, head_size) for inputs of `width`.

        Raises:
          UsageError: `width` can't be divided among the heads, or the heads among the key-value heads.
        """
        if self.heads < 1:
            raise UsageError(f"heads is {self.heads}; expected at least 1")
        head_size = self.head_size
        if head_size is None:
            if width % self.heads:
                near = [h for h in range(1, width + 1) if width % h == 0]
                best = min(near, key=lambda h: abs(h - self.heads))
                raise UsageError(
                    f"width {width} is not divisible by heads {self.heads}; the nearest that divides it is heads={best}"
                )
            head_size = width // self.heads
        kv_heads = self.heads if self.kv_heads is None else self.kv_heads
        if kv_heads < 1 or self.heads % kv_heads:
            near = [h for h in range(1, self.heads + 1) if self.heads % h == 0]
            best = min(near, key=lambda h: abs(h - kv_heads))
            raise UsageError(f"kv_heads {kv_heads} does not divide heads {self.heads}; the nearest that does is {best}")
        return self.heads, kv_heads, head_size

    def initial_state(self, batch: int, length: int, width: int, dtype: DType = jnp.float32) -> AttentionState:
        """An empty cache with room for `length` tokens a row.

        Raises:
          UsageError: the layer is not causal, so nothing can be decoded token by token.
        """
        if not self.causal:
            raise UsageError("attention with causal=False has no state; expected causal=True for decoding")
        _, kv_heads, head_size = self.sizes(width)
        zeros = jnp.zeros((batch,), jnp.int32)
        return AttentionState(
            key=jnp.zeros((batch, length, kv_heads, head_size), dtype),
            value=jnp.zeros((batch, length, kv_heads, head_size), dtype),
            slot_run=jnp.zeros((batch, length), jnp.int32),
            used=zeros,
            last_id=zeros,
            last_run=zeros,
            last_position=zeros - 1,
        )

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch time width"],
        segment_ids: Int[Array, "batch time"] | None = None,
        state: AttentionState | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "batch time width"], AttentionState | None]:
        batch, time, width = x.shape
        heads, kv_heads, head_size = self.sizes(width)

        counts = {"query": heads, "key": kv_heads, "value": kv_heads}
        settings = (self.bias, self.initial_std, self.dtype, self.parameter_dtype)
        layers = [Dense(n * head_size, *settings, parent=self, name=name) for name, n in counts.items()]
        # Decoding reads every weight for one token: putting them side by side first would cost more than it saves.
        projected = joint(x, layers) if state is None else [layer(x) for layer in layers]
        q, k, v = (y.reshape(batch, time, n, head_size) for y, n in zip(projected, counts.values()))

        run, position, seen = None, jnp.arange(time), None
        if state is not None:
            ids = jnp.ones((batch, time), jnp.int32) if segment_ids is None else segment_ids
            run, position, seen = runs_and_positions(ids, state.last_id, state.last_run, state.last_position)
        elif segment_ids is not None:
            run, position, _ = runs_and_positions(segment_ids)
        if self.rope is not None:
            q, k = self.rope(q, position), self.rope(k, position)

        if state is None:
            options = {"causal": self.causal, "segment_ids": run, "window": self.window, "mask": None}
            if self.window is not None and run is not None:  # padding between two tokens does not count as distance
                distance = position[:, :, None] - position[:, None, :]
                within = jnp.abs(distance) < self.window
                options |= {"window": None, "mask": within[:, None]}
            y = attention(q, k, v, **options, softcap=self.softcap, implementation=self.implementation)
        else:
            state, mask = self._remember(state, k, v, run, seen)
            cached = (state.key.astype(q.dtype), state.value.astype(q.dtype))
            y = attention(q, *cached, mask=mask, softcap=self.softcap, implementation=self.implementation)

        y = y.reshape(batch, time, heads * head_size)
        std = self.initial_std * self.residual_scale
        y = Dense(width, self.bias, std, self.dtype, self.parameter_dtype, parent=self, name="output")(y)
        if run is not None:  # with a bias, the output at padding would not be 0
            y = jnp.where(run[:, :, None] > 0, y, jnp.zeros((), y.dtype))
        return y, state

    def _remember(self, state, k, v, run, seen):
        """Writes the real tokens of a chunk behind those in the cache; says which slots each query may see."""
        valid = run > 0
        slot = state.used[:, None] + jnp.cumsum(valid, axis=1) - 1
        length = state.key.shape[1]
        target = jnp.where(valid, slot, length)  # outside the cache: dropped, so padding leaves no trace
        row = jnp.arange(k.shape[0])[:, None]
        slot_run = state.slot_run.at[row, target].set(run, mode="drop")
        new = state.replace(
            key=state.key.at[row, target].set(k.astype(state.key.dtype), mode="drop"),
            value=state.value.at[row, target].set(v.astype(state.value.dtype), mode="drop"),
            slot_run=slot_run,
            used=state.used + valid.sum(axis=1, dtype=state.used.dtype),
            last_id=seen[0],
            last_run=seen[1],
            last_position=seen[2],
        )
        distance = slot[:, :, None] - jnp.arange(length)[None, None, :]
        mask = (distance >= 0) & (slot_run[:, None, :] == run[:, :, None]) & valid[:, :, None]
        if self.window is not None:
            mask &= distance < self.window
        return new, mask[:, None]
