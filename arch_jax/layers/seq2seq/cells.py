"""LSTM and GRU cells for encoders and decoders: from any state to any state, whole sequences or step by step.

The mixers of `layers.mixers.rnn` are the same recurrences for a stack of residual blocks. Here the initializer
of the weights is the paper's, several inputs have a matrix each, and a decoder may put its own step around the gates.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from arch_jax.fields import DType
from arch_jax.layers.dense import Dense, affine
from arch_jax.layers.mixers.rnn.recurrent_mixer import orthogonal_gates
from arch_jax.ops.recurrence.cells import lstm_update, recurrent_loop, reset_before

#: h of a GRU, (h, c) of an LSTM; each "batch hidden", in at least float32.
Carry = tuple[Array, ...]


def uniform(scale: float | int) -> Callable:
    """Uniform initializer on [-scale, scale], called with (key, shape, dtype)."""
    draw = nn.initializers.uniform(2 * scale)
    return lambda *arguments: draw(*arguments) - scale


def lstm_step(carry: Carry, gates: Float[Array, "batch gates"]) -> Carry:
    """(h, c) after one step, from the pre-activations of the gates i, f, g, o; see `layers.mixers.rnn.lstm.LSTM`."""
    return lstm_update(None, carry, gates, None)


class Cells(nn.Module):
    """Base of both kinds of cells: x_t W for each input, h_{t-1} U, and b.

    Attributes:
      hidden: number of cells.
      initial: initializer of W.
      recurrent_initial: initializer of U, "hidden gates".
      bias_initial: initializer of b.
      dtype: of the products; gates and states are at least float32.
      parameter_dtype: of the parameters.
    """

    hidden: int
    initial: Callable = nn.initializers.lecun_normal()
    recurrent_initial: Callable = orthogonal_gates
    bias_initial: Callable = nn.initializers.zeros
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    gates: ClassVar[int] = 1
    parts: ClassVar[int] = 1

    @nn.compact
    def weights(self, width: int, **others: int) -> tuple[list[Array], Array, Array]:
        """(W for x and for each input beside it, U, b), b in at least float32: arrays for use inside a loop.

        Args:
          width: of x.
          **others: names of further inputs and their widths; their matrices have these names.
        """
        dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        size = self.gates * self.hidden
        w = [
            Dense(size, False, initial=self.initial, **dtypes, name=name).weights(wide)[0]
            for name, wide in ({"input": width} | others).items()
        ]
        u, _ = Dense(size, False, initial=self.recurrent_initial, **dtypes, name="recurrent").weights(self.hidden)
        b = self.param("bias", self.bias_initial, (size,), self.parameter_dtype)
        return w, u, b.astype(self.precise)

    @property
    def precise(self) -> Any:
        """The dtype of gates and states."""
        return jnp.promote_types(self.dtype, jnp.float32)

    def __call__(
        self,
        x: Float[Array, "batch time width"],
        carry: Carry | None = None,
        mask: Bool[Array, "batch time"] | None = None,
        reverse: bool = False,
    ) -> tuple[Float[Array, "batch time hidden"], Carry]:
        """Reads a sequence, forwards or from its end.

        Args:
          x: the sequence.
          carry: the state before it; None is 0.
          mask: True where a token is real; the others leave the state as it is, and output 0.
          reverse: whether the last token is read first. The outputs stand where their tokens do.

        Returns:
          (h of every token in the dtype of the computation, the state after the last one that was read).
        """
        (w,), u, b = self.weights(x.shape[-1])
        if carry is None:
            carry = (jnp.zeros((x.shape[0], self.hidden), self.precise),) * self.parts
        heard = affine(x.astype(self.dtype), w).astype(self.precise) + b
        carry, out = self.loop(u, heard, carry, mask, reverse)
        return out.astype(self.dtype), carry

    def loop(self, u: Array, heard: Array, carry: Carry, mask: Array | None, reverse: bool) -> tuple[Carry, Array]:
        """(the state after the last token read, h of every token), from x W + b of every token."""
        raise TypeError(f"{type(self).__name__} must define how it reads a sequence")


class LSTMCells(Cells):
    """i, f, g, o = x_t W + h_{t-1} U + b; c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g); h_t = sigmoid(o) tanh(c_t).

    Attributes:
      hidden: number of cells.
      initial: initializer of W.
      recurrent_initial: initializer of U.
      bias_initial: initializer of b.
      dtype: of the products; gates and states are at least float32.
      parameter_dtype: of the parameters.
    """

    gates: ClassVar[int] = 4
    parts: ClassVar[int] = 2

    def loop(self, u, heard, carry, mask, reverse):
        return over_time(lstm_update, u, None, carry, heard, None, mask, reverse)


class GRUCells(Cells):
    """The gated unit of Cho et al. (1406.1078, equations 5 to 8) with its reset gate before the product:

        r, z = sigmoid(x_t W_rz + h_{t-1} U_rz + b_rz)
        n = tanh(x_t W_n + (r * h_{t-1}) U_n + b_n),    h_t = z * h_{t-1} + (1 - z) * n

    r, z and n lie side by side in W, U and b.

    Attributes:
      hidden: number of units.
      initial: initializer of W.
      recurrent_initial: initializer of U.
      bias_initial: initializer of b.
      dtype: of the products; gates and states are at least float32.
      parameter_dtype: of the parameters.
    """

    gates: ClassVar[int] = 3

    def loop(self, u, heard, carry, mask, reverse):
        both = 2 * self.hidden
        return over_time(
            reset_before, u[:, :both], u[:, both:], carry, heard[..., :both], heard[..., both:], mask, reverse
        )


class LSTMStack(nn.Module):
    """Layers of LSTM cells, each reading the outputs of the one below.

    Attributes:
      depth: number of layers.
      hidden: cells of each.
      initial: initializer of all matrices.
      bias_initial: initializer of the biases.
      dropout: dropout rate of what passes from one layer to the next (Zaremba et al. 2014, 1409.2329).
      dtype: of the products; gates and states are at least float32.
      parameter_dtype: of the parameters.
    """

    depth: int
    hidden: int
    initial: Callable
    bias_initial: Callable = nn.initializers.zeros
    dropout: float = 0.0
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    def setup(self) -> None:
        for i in range(self.depth):
            cells = LSTMCells(
                self.hidden, self.initial, self.initial, self.bias_initial, self.dtype, self.parameter_dtype
            )
            setattr(self, f"layer_{i}", cells)
        self.drop = nn.Dropout(self.dropout)

    @property
    def layers(self) -> list[LSTMCells]:
        """From the lowest to the highest."""
        return [getattr(self, f"layer_{i}") for i in range(self.depth)]

    def __call__(
        self,
        x: Float[Array, "batch time width"],
        carry: tuple[Carry, ...] | None = None,
        mask: Bool[Array, "batch time"] | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "batch time hidden"], tuple[Carry, ...]]:
        """(the highest layer's outputs, the state of each layer); see `Cells.__call__`."""
        after = []
        for i, layer in enumerate(self.layers):
            x = self.drop(x, deterministic=not train) if i else x
            x, state = layer(x, None if carry is None else carry[i], mask)
            after.append(state)
        return x, tuple(after)

    def weights(self, width: int, **others: int) -> list[tuple[list[Array], Array, Array]]:
        """`Cells.weights` of each layer, the lowest of which has these inputs."""
        lowest, *higher = self.layers
        return [lowest.weights(width, **others), *(layer.weights(self.hidden) for layer in higher)]


def over_time(
    step: Callable,
    u: Array,
    parameters: Any,
    carry: Carry,
    added: Float[Array, "batch time gates"],
    rest: Any,
    mask: Bool[Array, "batch time"] | None = None,
    reverse: bool = False,
) -> tuple[Carry, Float[Array, "batch time hidden"]]:
    """`ops.recurrence.cells.recurrent_loop` on arrays whose first axis is the batch, forwards or from the end."""
    turned = (lambda a: jnp.flip(a.swapaxes(0, 1), 0)) if reverse else (lambda a: a.swapaxes(0, 1))
    masks = None
    if mask is not None:
        real = turned(mask)[:, :, None]
        masks = (jnp.zeros_like(real), real)
    rest = None if rest is None else turned(rest)
    carry, out = recurrent_loop(step, u, parameters, carry, turned(added), rest, masks)
    return carry, (jnp.flip(out, 0) if reverse else out).swapaxes(0, 1)
