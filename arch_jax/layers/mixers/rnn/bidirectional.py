"""Two copies of a causal mixer, one of which reads from the end."""

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from arch_jax.errors import UsageError, unknown
from arch_jax.fields import DType, component
from arch_jax.layers.dense import Dense
from arch_jax.layers.mixers.contract import Mixer, adapted
from arch_jax.layers.mixers.rnn.lstm import LSTM
from arch_jax.ops.segments import read_where_real


@component("bidirectional", kind="mixer")
class Bidirectional(nn.Module):
    """A mixer read forwards, and a second one read backwards (Schuster & Paliwal 1997), for tasks that are not causal:

        y = [m(x) ; reverse(m'(reverse(x)))] V          "concatenate"
        y = m(x) + reverse(m'(reverse(x)))              "sum"

    V brings both halves back to the width of the residual stream. Reversing a row reverses each of its packed
    segments; that their order is reversed too makes no difference, since they don't see each other.

    Attributes:
      mixer: the mixer, of which there are two copies with parameters of their own.
      combine: "concatenate" or "sum".
      residual_scale: factor on the initial weights of the output, set by a decoder that scales them with its depth.
      dtype: of the computation.
      parameter_dtype: of the parameters.
    """

    causal: ClassVar[bool] = False

    mixer: Mixer = LSTM()
    combine: str = "concatenate"
    residual_scale: float = 1.0
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    def initial_state(self, batch: int, length: int, width: int, dtype: DType = jnp.float32) -> None:
        """Refuses: a bidirectional mixer has no state.

        Raises:
          UsageError: always, since the end of a sequence has to be known before its first output.
        """
        raise UsageError("bidirectional is not causal and has no state; expected another mixer for decoding")

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch time width"],
        segment_ids: Int[Array, "batch time"] | None = None,
        state: Any = None,
        train: bool = False,
    ) -> tuple[Float[Array, "batch time width"], None]:
        x = read_where_real(x, segment_ids)
        if state is not None:
            self.initial_state(*x.shape)
        if self.combine not in ("concatenate", "sum"):
            raise unknown("combination of bidirectional", self.combine, ("concatenate", "sum"))
        dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        inner = {} if self.combine == "concatenate" else {"residual_scale": self.residual_scale}
        copy = lambda name: adapted(self.mixer, **dtypes, **inner).clone(parent=self, name=name)
        forward, _ = copy("forward")(x, segment_ids, None, train)
        turned = None if segment_ids is None else jnp.flip(segment_ids, 1)
        backward, _ = copy("backward")(jnp.flip(x, 1), turned, None, train)
        backward = jnp.flip(backward, 1)
        if self.combine == "sum":
            return forward + backward, None
        both = jnp.concatenate([forward, backward], axis=-1)
        initial = nn.initializers.lecun_normal()
        scaled = lambda *arguments: initial(*arguments) * self.residual_scale
        output = Dense(x.shape[-1], False, initial=scaled, to_stream=True, **dtypes, parent=self, name="output")
        return output(both), None
