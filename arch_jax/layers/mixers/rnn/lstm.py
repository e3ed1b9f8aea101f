"""Long short-term memory as a sequence mixer."""

from typing import ClassVar

import jax.numpy as jnp

from arch_jax.fields import component
from arch_jax.layers.mixers.rnn.recurrent_mixer import LSTMState, RecurrentMixer
from arch_jax.ops.recurrence.cells import lstm_update
from arch_jax.ranges import Signed


@component("lstm", kind="mixer")
class LSTM(RecurrentMixer):
    """Long short-term memory (Hochreiter & Schmidhuber 1997) with forget gates (Gers et al. 2000), with y_t = h_t:

        i, f, g, o = x_t W + h_{t-1} U + b
        c_t = sigmoid(f) * c_{t-1} + sigmoid(i) * tanh(g)
        h_t = sigmoid(o) * tanh(c_t)

    as in `torch.nn.LSTM` (whose two biases add up to b). h_0 and c_0 are 0. With peepholes (Gers et al. 2002, "Learning
    precise timing with LSTM recurrent networks", section 3) the gates see the cells too: i and f have p * c_{t-1}
    added, o has p * c_t, with p_i, p_f, p_o of one number a cell that start at 0.

    Attributes:
      hidden: cells; None is as many as the width. Where it is not the width, a matrix V follows.
      residual_scale: factor on the initial V, set by a decoder that scales such weights with its depth.
      dtype: of the computation; gates, h and c are at least float32.
      parameter_dtype: of the parameters.
      forget_bias: initial bias of the forget gates: 1 remembers at first (Jozefowicz et al. 2015).
      peepholes: whether there are any.
    """

    forget_bias: Signed = 1.0
    peepholes: bool = False

    gates: ClassVar[int] = 4
    state_class: ClassVar[type] = LSTMState

    def cell(self, heard, u):
        hidden = u.shape[0]
        starts = {"bias_i": 0.0, "bias_f": self.forget_bias, "bias_g": 0.0, "bias_o": 0.0}
        b = jnp.concatenate(self.biases(starts, hidden))
        peepholes = None
        if self.peepholes:
            peepholes = self.biases(dict.fromkeys(("peephole_i", "peephole_f", "peephole_o"), 0.0), hidden)
        return lstm_update, peepholes, u, heard + b, None
