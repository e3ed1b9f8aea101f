"""Position encodings: embeddings added to the input, and terms inside attention.

Absolute: learned and sinusoidal vectors, added once. Rotary: queries and keys turned by their positions. Relative: a
term of the scores that depends on the distance (ALiBi, T5's buckets, Shaw's vectors).
"""

import dataclasses
from typing import Annotated

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from arch_jax.errors import UsageError
from arch_jax.fields import DType, Kind, component
from arch_jax.layers.dense import Embedding
from arch_jax.ops.attention import positions as ops
from arch_jax.ops.attention.rope_scaling import LinearScaling, Llama3Scaling, NTKScaling, YaRNScaling
from arch_jax.ops.precision import at_least_float32, look_up
from arch_jax.ranges import Positive

component("linear_scaling", kind="rope_scaling")(LinearScaling)
component("ntk_scaling", kind="rope_scaling")(NTKScaling)
component("yarn_scaling", kind="rope_scaling")(YaRNScaling)
component("llama3_scaling", kind="rope_scaling")(Llama3Scaling)

RoPEScaling = Annotated[LinearScaling | NTKScaling | YaRNScaling | Llama3Scaling, Kind("rope_scaling")]


@component("rope", kind="rope")
@dataclasses.dataclass(frozen=True)
class RoPE:
    """Rotary position embedding (Su et al. 2021, arXiv 2104.09864): settings of an attention layer.

    Attributes:
      theta: the base of the frequencies theta^(-2i/d).
      fraction: fraction of each head's dimensions that rotate; the rest pass unchanged.
      scaling: a stretching of the frequencies to longer contexts, or None.
    """

    theta: Positive = 10_000.0
    fraction: float = 1.0
    scaling: RoPEScaling | None = None

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise UsageError(f"fraction of rope is {self.fraction}; expected more than 0 and at most 1")

    def __call__(
        self, x: Float[Array, "batch time heads dim"], positions: Int[Array, "batch time"] | Int[Array, "time"]
    ) -> Float[Array, "batch time heads dim"]:
        """Queries or keys, rotated by their positions."""
        dim = int(x.shape[-1] * self.fraction)
        factor = 1.0 if self.scaling is None else self.scaling.attention_factor
        return ops.apply_rope(x, positions, ops.rope_frequencies(dim, self.theta, self.scaling), factor)


@component("alibi", kind="relative")
class ALiBi(nn.Module):
    """Attention with linear biases: head h adds -slope[h] * |i - j| to its scores (Press et al. 2021, 2108.12409).

    There are no parameters.
    """

    def slopes(self, heads: int) -> Float[Array, "heads"]:
        """The slope of each head."""
        return ops.alibi_slopes(heads)

    @nn.compact
    def __call__(
        self, distance: Int[Array, "*batch time source"], heads: int
    ) -> Float[Array, "*batch heads time source"]:
        """The term of the scores, in at least float32; `distance` is the query's position less the key's."""
        return -self.slopes(heads)[:, None, None] * jnp.abs(distance)[..., None, :, :]


@component("relative_buckets", kind="relative")
class RelativeBuckets(nn.Module):
    """A learned term for each head and each bucket of distances (Raffel et al. 2020, T5, 1910.10683, section 2.1).

    Attributes:
      buckets: number of buckets.
      longest: distances from here on share the last one.
      bidirectional: whether keys after the query have buckets of their own.
      initial_std: standard deviation of the normal draw.
      parameter_dtype: of the table.
    """

    buckets: int = 32
    longest: int = 128
    bidirectional: bool = False
    initial_std: float = 0.02
    parameter_dtype: DType = jnp.float32

    def __post_init__(self) -> None:
        ops.relative_buckets(jnp.zeros((), jnp.int32), self.buckets, self.longest, self.bidirectional)  # checks them
        super().__post_init__()

    @nn.compact
    def __call__(
        self, distance: Int[Array, "*batch time source"], heads: int
    ) -> Float[Array, "*batch heads time source"]:
        """The term of the scores; `distance` is the query's position less the key's."""
        initial = nn.initializers.normal(self.initial_std)
        table = self.param("embedding", initial, (self.buckets, heads), self.parameter_dtype)
        bucket = ops.relative_buckets(distance, self.buckets, self.longest, self.bidirectional)
        # Wide, since layers may share it: so is the sum of their gradients.
        return jnp.moveaxis(at_least_float32(look_up(table, bucket)), -1, -3)


@component("shaw", kind="relative")
class ShawPositions(nn.Module):
    """Learned vectors for clipped distances, added to keys and values (Shaw et al. 2018, 1803.02155, equations 3, 4).

    The tables are shared by all heads of a layer (section 3.3).

    Attributes:
      longest: distances are clipped to [-longest, longest].
      values: whether values get vectors too (a^V); keys alone do nearly as well (section 4.3).
      initial_std: standard deviation of the normal draw.
      parameter_dtype: of the tables.
    """

    longest: int = 16
    values: bool = True
    initial_std: float = 0.02
    parameter_dtype: DType = jnp.float32

    def __post_init__(self) -> None:
        if self.longest < 1:
            raise UsageError(f"longest of shaw is {self.longest}; expected a distance of at least 1")
        super().__post_init__()

    @nn.compact
    def __call__(self, dim: int) -> tuple[Float[Array, "distances dim"], Float[Array, "distances dim"] | None]:
        """a^K, and a^V or None: row `longest + clip(i - j)` for the query's position less the key's."""
        initial = nn.initializers.normal(self.initial_std)
        shape = (2 * self.longest + 1, dim)
        keys = self.param("key_embedding", initial, shape, self.parameter_dtype)
        return keys, self.param("value_embedding", initial, shape, self.parameter_dtype) if self.values else None


@component("learned", kind="position")
class LearnedPosition(nn.Module):
    """A learned vector for each position, added to the token's (Gehring et al. 2017, 1705.03122; GPT-2).

    Attributes:
      length: positions in the table; a longer sequence is an error.
      initial_std: standard deviation of the normal draw.
      dtype: of the computation.
      parameter_dtype: of the table.
    """

    length: int = 1024
    initial_std: float = 0.02
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self, positions: Int[Array, "batch time"] | Int[Array, "time"], width: int
    ) -> Float[Array, "*batch time width"]:
        self.check(positions.shape[-1])
        table = Embedding(
            self.length, width, self.initial_std, self.dtype, self.parameter_dtype, parent=self, name="table"
        )
        return table(positions)

    def check(self, length: int) -> None:
        """Refuses sequences that the table can't hold.

        Raises:
          UsageError: `length` positions are asked for and there are fewer.
        """
        if length > self.length:
            raise UsageError(
                f"a sequence of {length} tokens is longer than the table of {self.length} learned positions; "
                f"use at most {self.length} tokens, or a model whose position.length is {length}"
            )


@component("sinusoidal", kind="position")
class SinusoidalPosition(nn.Module):
    """Fixed sines and cosines added to the token's vector (Vaswani et al. 2017, 1706.03762, section 3.5).

    Attributes:
      interleaved: whether sines and cosines take turns, as in the paper; else all sines come first, as in Marian.
      dtype: of the computation.
      parameter_dtype: unused; every part takes it.
    """

    interleaved: bool = True
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self, positions: Int[Array, "batch time"] | Int[Array, "time"], width: int
    ) -> Float[Array, "*batch time width"]:
        # The same numbers as `ops.sinusoidal`, at positions that need not be 0, 1, 2, ...
        angles = positions[..., None] * ops.rope_frequencies(width)
        waves = jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1 if self.interleaved else -2)
        return waves.reshape(*positions.shape, width).astype(self.dtype)

    def check(self, length: int) -> None:
        """Accepts any length."""
