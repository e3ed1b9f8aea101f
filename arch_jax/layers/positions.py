"""Where a token stands: learned and sinusoidal embeddings added to the input, and rotary settings for attention."""

import dataclasses
from typing import Annotated

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from arch_jax.errors import UsageError
from arch_jax.fields import DType, Kind, component
from arch_jax.layers.dense import Embedding
from arch_jax.ops import positions as ops

component("linear_scaling", kind="rope_scaling")(ops.LinearScaling)
component("llama3_scaling", kind="rope_scaling")(ops.Llama3Scaling)

RoPEScaling = Annotated[ops.LinearScaling | ops.Llama3Scaling, Kind("rope_scaling")]


@component("rope", kind="rope")
@dataclasses.dataclass(frozen=True)
class RoPE:
    """Rotary position embedding (Su et al. 2021, arXiv 2104.09864): settings that an attention layer carries.

    Attributes:
      theta: the base of the frequencies theta^(-2i/d).
      fraction: share of each head's dimensions that rotate; the rest pass unchanged.
      scaling: a stretching of the frequencies to longer contexts, or none.
    """

    theta: float = 10_000.0
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
        return ops.apply_rope(x, positions, ops.rope_frequencies(dim, self.theta, self.scaling))


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
                f"use at most {self.length} tokens, or a model with position.length={length}"
            )


@component("sinusoidal", kind="position")
class SinusoidalPosition(nn.Module):
    """Fixed sines and cosines added to the token's vector (Vaswani et al. 2017, 1706.03762, section 3.5).

    Attributes:
      dtype: of the computation.
      parameter_dtype: unused; every part takes it.
    """

    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self, positions: Int[Array, "batch time"] | Int[Array, "time"], width: int
    ) -> Float[Array, "*batch time width"]:
        # The same numbers as `ops.sinusoidal`, at positions that need not be 0, 1, 2, ...
        angles = positions[..., None] * ops.rope_frequencies(width)
        waves = jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1)
        return waves.reshape(*positions.shape, width).astype(self.dtype)

    def check(self, length: int) -> None:
        """Any length will do."""
