"""Elman's simple recurrent network as a sequence mixer."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from arch_jax.errors import unknown
from arch_jax.fields import component
from arch_jax.layers.mixers.rnn.recurrent_mixer import RecurrentMixer, orthogonal_gates


@component("rnn", kind="mixer")
class RNN(RecurrentMixer):
    """Elman's simple recurrent network (1990), with y_t = h_t:

        h_t = f(x_t W + h_{t-1} U + b)

    as in `torch.nn.RNN` (whose two biases add up to b). h_0 is 0. With f = relu, U = 1 and b = 0 it starts as an
    accumulator, whose gradient neither grows nor vanishes (the IRNN of Le et al. 2015, 1504.00941).

    Attributes:
      hidden: units; None is as many as the width. Where it is not the width, a matrix V follows.
      residual_scale: factor on the initial V, set by a decoder that scales such weights with its depth.
      dtype: of the computation; h is at least float32.
      parameter_dtype: of the parameters.
      activation: f: "tanh" or "relu".
      initial: the initial U: "orthogonal" (Saxe et al. 2014, 1312.6120) or "identity" (1504.00941).
      scale: factor on the initial U: below 1 forgets sooner (1504.00941, section 4.4: 0.01).
    """

    activation: str = "tanh"
    initial: str = "orthogonal"
    scale: float = 1.0

    def recurrent_initial(self) -> Callable:
        """Orthogonal, or the identity."""
        draws = {"orthogonal": orthogonal_gates, "identity": lambda key, shape, dtype: jnp.eye(*shape, dtype=dtype)}
        if self.initial not in draws:
            raise unknown("initial recurrent matrix", self.initial, draws)
        return lambda *arguments: draws[self.initial](*arguments) * self.scale

    def cell(self, heard, u):
        if self.activation not in _RNN_STEPS:
            raise unknown("activation of rnn", self.activation, _RNN_STEPS)
        (b,) = self.biases({"bias": 0.0}, heard.shape[-1])
        return _RNN_STEPS[self.activation], None, u, heard + b, None


_RNN_STEPS = {
    "tanh": lambda _, carry, heard, __: (jnp.tanh(heard),),
    "relu": lambda _, carry, heard, __: (nn.relu(heard),),
}
