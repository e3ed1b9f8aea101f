"""Multi-head latent attention: keys and values of all heads are read out of one small vector a token."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from arch_jax.errors import UsageError
from arch_jax.fields import DType, component
from arch_jax.layers.dense import Dense
from arch_jax.layers.mixers.contract import Norm, adapted
from arch_jax.layers.norms import RMSNorm
from arch_jax.layers.transformer import cache
from arch_jax.layers.transformer.cache import Cache
from arch_jax.layers.transformer.positions import RoPE
from arch_jax.ops.attention.dot_product import attention
from arch_jax.ops.segments import read_where_real, runs_and_positions


@component("latent_attention", kind="mixer")
class LatentAttention(nn.Module):
    """Multi-head latent attention (DeepSeek-V2, 2405.04434, sections 2.1.2 and 2.1.3, equations 9 to 19).

        c^Q = norm(W^DQ h),    [q^C; q^R] = W^UQ c^Q for each head,    q = [q^C; RoPE(q^R)]
        c^KV = norm(W^DKV h),  k^R = RoPE(W^KR h),  k = [W^UK c^KV; k^R],  v = W^UV c^KV
        y = W^O softmax(q k^T / sqrt(head_size + rope_size)) v

    The rotated key k^R is shared by all heads. Decoding keeps c^KV and k^R alone, kv_rank + rope_size numbers a token,
    and never makes keys or values of them: (q^C)^T W^UK c^KV is a product with c^KV of the query (W^UK)^T q^C, and
    W^UV can wait until the latents are summed.

    Attributes:
      heads: heads.
      query_rank: the size of c^Q; None projects queries directly, without a norm.
      kv_rank: the size of c^KV.
      head_size: dimensions of a head's query and key that have no position.
      rope_size: dimensions of a head's query and key that rotate.
      value_size: dimensions of a head's value; None is head_size.
      rope: the rotation.
      norm: of the two latent vectors.
      bias: whether the projections down and the output have biases.
      causal: whether a token sees only itself and earlier ones.
      scale: factor of the scores; None is (head_size + rope_size)^-0.5.
      initial_std: standard deviation of the initial weights; None is that of fan-in scaling.
      residual_scale: factor on the initial weights of the output, set by a decoder that scales them with its depth.
      implementation: of `ops.attention`.
      dtype: of the computation.
      parameter_dtype: of the parameters.
    """

    heads: int = 8
    query_rank: int | None = None
    kv_rank: int = 64
    head_size: int = 32
    rope_size: int = 16
    value_size: int | None = None
    rope: RoPE = RoPE()
    norm: Norm = RMSNorm()
    bias: bool = False
    causal: bool = True
    scale: float | None = None
    initial_std: float | None = 0.02
    residual_scale: float = 1.0
    implementation: str = "auto"
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    def __post_init__(self) -> None:
        for name in ("heads", "query_rank", "kv_rank", "head_size", "value_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} of latent_attention is {value}; expected an integer of at least 1")
        if self.rope_size < 2 or self.rope_size % 2:
            raise UsageError(
                f"rope_size of latent_attention is {self.rope_size}; expected an even number of at least 2 (the "
                f"nearest is {max(2, self.rope_size + self.rope_size % 2)})"
            )
        super().__post_init__()

    def initial_state(self, batch: int, length: int, width: int, dtype: DType = jnp.float32) -> Cache:
        """An empty cache of latents and rotated keys, with room for `length` tokens a row.

        Raises:
          UsageError: the layer is not causal, so nothing can be decoded token by token.
        """
        if not self.causal:
            raise UsageError("latent_attention with causal=False has no state; expected causal=True for decoding")
        return cache.empty(batch, length, ((self.kv_rank,), (self.rope_size,)), dtype)

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch time width"],
        segment_ids: Int[Array, "batch time"] | None = None,
        state: Cache | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "batch time width"], Cache | None]:
        x = read_where_real(x, segment_ids)
        batch, time, width = x.shape
        heads, value_size = self.heads, self.value_size or self.head_size
        settings = (self.initial_std, self.dtype, self.parameter_dtype)
        dense = lambda n, bias, name: Dense(n, bias, *settings, parent=self, name=name)
        norm = adapted(self.norm, dtype=self.dtype, parameter_dtype=self.parameter_dtype)

        q = x
        if self.query_rank is not None:
            q = norm.clone(parent=self, name="query_norm")(dense(self.query_rank, self.bias, "query_down")(x))
        q = dense(heads * (self.head_size + self.rope_size), False, "query")(q)
        q = q.reshape(batch, time, heads, -1)
        q_c, q_r = q[..., : self.head_size], q[..., self.head_size :]
        down = dense(self.kv_rank + self.rope_size, self.bias, "key_value_down")(x)
        c = norm.clone(parent=self, name="key_value_norm")(down[..., : self.kv_rank])
        k_r = down[..., self.kv_rank :]
        up = [dense(heads * n, False, name) for n, name in ((self.head_size, "key"), (value_size, "value"))]
        w_uk, w_uv = (layer.weights(self.kv_rank)[0].reshape(self.kv_rank, heads, -1) for layer in up)

        run, position = None, jnp.arange(time)
        if state is not None:
            run, position, state = cache.follow(state, segment_ids, time)
        elif segment_ids is not None:
            run, position, _ = runs_and_positions(segment_ids)
        q_r, k_r = self.rope(q_r, position), self.rope(k_r[:, :, None], position)
        scale = (self.head_size + self.rope_size) ** -0.5 if self.scale is None else self.scale
        options = {"scale": scale, "implementation": self.implementation}

        if state is None:
            k_c, v = (jnp.einsum("bsc,chd->bshd", c, w) for w in (w_uk, w_uv))
            k_r = jnp.broadcast_to(k_r, (*k_c.shape[:3], self.rope_size))
            q, k = jnp.concatenate([q_c, q_r], axis=-1), jnp.concatenate([k_c, k_r], axis=-1)
            y = attention(q, k, v, causal=self.causal, segment_ids=run, **options)
        else:
            state, seen = cache.store(state, (c, k_r[:, :, 0]), run)
            c, k_r = (entry.astype(q.dtype) for entry in seen.entries)
            q_latent = jnp.einsum("bthd,chd->bthc", q_c, w_uk)
            # One key a token for all heads: the latent and the rotated key, side by side.
            q, k = jnp.concatenate([q_latent, q_r], axis=-1), jnp.concatenate([c, k_r], axis=-1)
            y = attention(q, k[:, :, None], c[:, :, None], mask=seen.visible[:, None], **options)
            y = jnp.einsum("bthc,chd->bthd", y, w_uv)

        output = Dense(
            width, self.bias, *settings, gain=self.residual_scale, parent=self, name="output", to_stream=True
        )
        y = output(y.reshape(batch, time, heads * value_size))
        if run is not None:  # with a bias, the output at padding would not be 0
            y = jnp.where(run[:, :, None] > 0, y, jnp.zeros((), y.dtype))
        return y, state
