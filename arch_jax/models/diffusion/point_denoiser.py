"""A denoiser of points: a residual network on a few coordinates, for diffusions whose densities can be looked at.

Diffusion began on such data, with a swiss roll in the plane (Sohl-Dickstein et al. 2015, 1503.03585, section 3.1.1).
With x the point, t its time, s(t) sines and cosines and LN a layer norm,

    e = W_2 silu(W_1 s(k t) + b_1) + b_2 + E[label]
    h_0 = A x + a,   h_i = h_{i-1} + C_i silu(B_i LN(h_{i-1}) + b_i + U_i e) + c_i
    prediction = D silu(LN(h_n)) + d
"""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from arch_jax.errors import UsageError
from arch_jax.fields import DType, component
from arch_jax.inputs import noisy_points
from arch_jax.layers.denoiser import TimeEmbedding, check_classes, label_embedding, labels_of
from arch_jax.layers.dense import Dense
from arch_jax.layers.norms import LayerNorm
from arch_jax.ops.diffusion.condition import Condition
from arch_jax.ranges import Positive
from arch_jax.registry import Paper, register


class ResidualLayer(nn.Module):
    """h + C silu(B LN(h) + b + U e) + c.

    Attributes:
      dtype: of the computation.
      parameter_dtype: of the parameters.
    """

    dtype: DType
    parameter_dtype: DType

    @nn.compact
    def __call__(self, h: Float[Array, "batch width"], e: Float[Array, "batch width"]) -> Float[Array, "batch width"]:
        dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        dense = functools.partial(Dense, h.shape[-1], initial_std=None, **dtypes)
        y = dense(name="hidden")(LayerNorm(**dtypes, name="norm")(h))
        return h + dense(name="output")(nn.silu(y + dense(bias=False, name="embedding")(e)))


@component("point_denoiser", kind="model")
class PointDenoiser(nn.Module):
    """A residual perceptron that denoises points, "batch features".

    Attributes:
      features: coordinates of a point.
      classes: number of classes; None for an unconditional network.
      null_class: whether there is a further class that stands for none, for guidance.
      learned_variance: whether the output has as many numbers more, for the variance.
      width: of the hidden layers.
      depth: residual blocks.
      frequencies: sines and cosines of time.
      time_scale: time is multiplied by it first, such as 1000 for times from 0 to 1.
      dtype: of the computation; norms, and the sines and cosines of time are at least float32.
      parameter_dtype: of the parameters.
    """

    features: int = 2
    classes: int | None = None
    null_class: bool = False
    learned_variance: bool = False
    width: int = 128
    depth: int = 4
    frequencies: int = 128
    time_scale: Positive = 1.0
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    def __post_init__(self) -> None:
        check_classes(self)
        super().__post_init__()

    def check(self, shape: Any) -> None:
        """Refuses points that the network can't take.

        Raises:
          UsageError: `shape` isn't (features,).
        """
        if tuple(shape) != (self.features,):
            raise UsageError(
                f"the points have the shape {' x '.join(map(str, shape))}, and the model takes {self.features} "
                f"coordinates; expected the shape {self.features}, or a model with other features"
            )

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch features"],
        time: Float[Array, "batch"],
        condition: Condition | None = None,
        train: bool = False,
    ) -> Float[Array, "batch outputs"]:
        """The prediction, such as the noise in x; with a learned variance, its numbers come after it.

        Args:
          x: noisy points.
          time: of each, such as 0 to 999, or 0 to 999 / `time_scale`.
          condition: a `label` for each where the network has classes; without one it is the null class.
          train: without effect: there is no dropout.

        Raises:
          UsageError: points of another number of coordinates; a condition that the network would ignore, or a missing
            one.
        """
        self.check(x.shape[1:])
        dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        wide = time.astype(jnp.promote_types(time.dtype, jnp.float32))
        draw = nn.initializers.lecun_normal()
        e = TimeEmbedding(self.width, self.frequencies, initial=draw, **dtypes, name="time")(wide * self.time_scale)
        labels = labels_of(self, condition, len(x))
        if labels is not None:
            e = e + label_embedding(self, self.width, initial_std=1.0)(labels)
        h = Dense(self.width, initial_std=None, **dtypes, name="inputs")(x)
        for i in range(self.depth):
            h = ResidualLayer(**dtypes, name=f"layer_{i}")(h, e)
        outputs = self.features * (1 + self.learned_variance)
        h = nn.silu(LayerNorm(**dtypes, name="norm")(h))
        return Dense(outputs, initial=nn.initializers.zeros, **dtypes, name="outputs")(h)


@register(
    "point-denoiser",
    family="diffusion",
    objective="diffusion",
    paper=Paper(
        "Deep Unsupervised Learning using Nonequilibrium Thermodynamics", "Sohl-Dickstein et al.", 2015, "1503.03585"
    ),
    inputs=noisy_points(2),
    shrink={"width": 16, "depth": 2, "frequencies": 8},
    reference="its formulas restated in NumPy: outputs within 1e-5",
    departures=(
        "The paper shows diffusion of points in the plane with a network of radial basis functions; this is a residual "
        "perceptron with time embedded as in DDPM, of no paper.",
    ),
)
def point_denoiser() -> PointDenoiser:
    """Points of the plane, four residual blocks of width 128, times from 0 to 999."""
    return PointDenoiser()
