"""Inverted residuals: a block that is wide inside and narrow outside (Sandler et al. 2018, 1801.04381, section 3.3)."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from arch_jax.fields import DType
from arch_jax.layers.mixers.contract import Norm
from arch_jax.layers.norms import BatchNorm
from arch_jax.layers.vision.convolution_norm import ConvolutionNorm
from arch_jax.layers.vision.squeeze_excitation import SqueezeExcitation
from arch_jax.layers.vision.stochastic_depth import StochasticDepth
from arch_jax.ops.convolution.dense import Padding


class InvertedResidual(nn.Module):
    """1 x 1 to more channels, a depthwise convolution, 1 x 1 to few channels without activation; plus x if it fits.

    Attributes:
      features: channels of the output.
      expansion: ratio of the inner channels to x's; 1 omits the first convolution.
      size: pixels of the depthwise kernel on a side.
      stride: of the depthwise convolution.
      padding: of the depthwise convolution.
      activation: after the first two convolutions.
      squeeze: bottleneck of squeeze and excitation as a fraction of x's channels; None omits it.
      stochastic_depth: probability of dropping the branch of an example in training, if x is added.
      normalise: after each convolution.
      dtype: of the computation.
      parameter_dtype: of the parameters.
    """

    features: int
    expansion: int | float = 6
    size: int = 3
    stride: int = 1
    padding: Padding = None
    activation: str = "relu6"
    squeeze: float | None = None
    stochastic_depth: float = 0.0
    normalise: Norm = BatchNorm()
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch new_height new_width features"]:
        dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        shared = dtypes | {"normalise": self.normalise}
        channels, f = x.shape[-1], self.activation
        wide, y = round(channels * self.expansion), x
        if self.expansion != 1:
            y = ConvolutionNorm(wide, 1, activation=f, **shared, name="expand")(y, train)
        depthwise = ConvolutionNorm(
            wide, self.size, self.stride, self.padding, groups=None, activation=f, **shared, name="depthwise"
        )
        y = depthwise(y, train)
        if self.squeeze is not None:
            y = SqueezeExcitation(max(1, int(channels * self.squeeze)), f, **dtypes, name="squeeze")(y)
        y = ConvolutionNorm(self.features, 1, activation=None, **shared, name="project")(y, train)
        if self.stride > 1 or self.features != channels:
            return y
        return x.astype(y.dtype) + StochasticDepth(self.stochastic_depth)(y, train)


def divisible(channels: int | float, by: int = 8, least: int | None = None) -> int:
    """The nearest multiple of `by`, at least `least` (or `by`), that is not below 0.9 of `channels`.

    As the reference implementations of MobileNet and EfficientNet round their widths.
    """
    rounded = max(by if least is None else least, int(channels + by / 2) // by * by)
    return rounded + by if rounded < 0.9 * channels else rounded
