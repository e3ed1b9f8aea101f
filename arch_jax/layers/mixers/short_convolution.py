"""The short causal convolution of Mamba, Hyena, xLSTM and delta networks, as a layer."""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from arch_jax.errors import UsageError
from arch_jax.fields import DType
from arch_jax.ops.convolution import causal as ops


class ShortConvolution(nn.Module):
    """Each channel convolved over the latest `size` tokens of its run: `ops.causal_convolution`.

    Parameters start uniform in +- size^-1/2, as those of a depthwise `torch.nn.Conv1d` do.

    Attributes:
      size: tokens that an output depends on, its own among them.
      bias: whether there is one.
      dtype: of the computation.
      parameter_dtype: of the parameters.
    """

    size: int = 4
    bias: bool = True
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UsageError(f"size of the short convolution is {self.size}; expected at least 1 token, such as 4")
        super().__post_init__()

    def initial_state(self, batch: int, channels: int, dtype: DType | None = None) -> ops.ConvolutionState:
        """The state before the first token."""
        return ops.initial_state(batch, self.size, channels, self.dtype if dtype is None else dtype)

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch time channels"],
        run: Int[Array, "batch time"] | None = None,
        before: Any = None,
    ) -> tuple[Float[Array, "batch time channels"], Any]:
        """y, and what to pass as `before` with the next tokens (None where `before` is)."""
        limit = 1 / math.sqrt(self.size)
        uniform = lambda key, shape, dtype: nn.initializers.uniform(2 * limit)(key, shape, dtype) - limit
        channels = x.shape[-1]
        kernel = self.param("kernel", uniform, (self.size, channels), self.parameter_dtype).astype(self.dtype)
        bias = self.param("bias", uniform, (channels,), self.parameter_dtype).astype(self.dtype) if self.bias else None
        return ops.causal_convolution(x.astype(self.dtype), kernel, bias, run=run, before=before)
