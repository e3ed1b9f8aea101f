"""The gated recurrent unit as a sequence mixer, with its reset gate before or after the product."""

from typing import ClassVar

import jax.numpy as jnp

from arch_jax.errors import unknown
from arch_jax.fields import component
from arch_jax.layers.mixers.rnn.recurrent_mixer import RecurrentMixer
from arch_jax.ops.recurrence.cells import reset_after, reset_before


@component("gru", kind="mixer")
class GRU(RecurrentMixer):
    """Gated recurrent unit (Cho et al. 2014, 1406.1078, equations 5 to 8), with y_t = h_t and h_0 = 0:

        r, z = sigmoid(x_t W_rz + h_{t-1} U_rz + b_rz)
        n = tanh(x_t W_n + (r * h_{t-1}) U_n + b_n)             reset "before" the product, as published
        n = tanh(x_t W_n + b_n + r * (h_{t-1} U_n + b_u))       reset "after" it, as in cuDNN and `torch.nn.GRU`
        h_t = (1 - z) * n + z * h_{t-1}

    Behind the product, one product a step serves all three. PyTorch's two biases of r and z add up to b_rz.

    Attributes:
      hidden: units; None is as many as the width. Where it is not the width, a matrix V follows.
      residual_scale: factor on the initial V, set by a decoder that scales such weights with its depth.
      dtype: of the computation; gates and h are at least float32.
      parameter_dtype: of the parameters.
      reset: place of the reset gate: "after" or "before" the recurrent product.
    """

    reset: str = "after"

    gates: ClassVar[int] = 3

    def cell(self, heard, u):
        if self.reset not in ("after", "before"):
            raise unknown("reset of gru", self.reset, ("after", "before"))
        hidden = u.shape[0]
        *b, b_n = self.biases(dict.fromkeys(("bias_r", "bias_z", "bias_n"), 0.0), hidden)
        heard_rz, heard_n = heard[..., : 2 * hidden] + jnp.concatenate(b), heard[..., 2 * hidden :] + b_n
        if self.reset == "before":
            return reset_before, u[:, 2 * hidden :], u[:, : 2 * hidden], heard_rz, heard_n
        (b_u,) = self.biases({"bias_u": 0.0}, hidden)
        added = jnp.concatenate([heard_rz, jnp.broadcast_to(b_u, heard_n.shape)], axis=-1)
        return reset_after, None, u, added, heard_n
