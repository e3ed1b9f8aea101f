"""A convolution, its norm and its activation: the unit of convolutional networks since 2015."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from arch_jax.fields import DType
from arch_jax.layers.mixers.contract import Norm, adapted
from arch_jax.layers.norms import BatchNorm
from arch_jax.layers.transformer.feed_forward import activation
from arch_jax.layers.vision.convolution import Convolution
from arch_jax.ops.convolution.dense import Padding

#: Normal with variance 2 / (features size^2), which preserves the gradients' variance (He et al. 2015, 1502.01852,
#: equation 14), as the reference residual networks draw their kernels.
HE_FAN_OUT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class ConvolutionNorm(nn.Module):
    """f(norm(K * x)): the order of Ioffe & Szegedy (2015, 1502.03167, section 3.2).

    Attributes:
      features: channels of the output.
      size: pixels of the kernel on a side.
      stride: pixels between windows.
      padding: zeros around the image, as `Convolution` takes it.
      groups: equal parts of the channels; None is one for each channel.
      normalise: norm after the convolution, which then has no bias; None omits it. (Flax would take a field of the
        name "norm" for the submodule of that name.)
      activation: f; None omits it.
      bias: whether the convolution has one; None is where no norm follows.
      initial: initializer of K.
      dtype: of the computation.
      parameter_dtype: of the parameters.
    """

    features: int
    size: int = 3
    stride: int = 1
    padding: Padding = None
    groups: int | None = 1
    normalise: Norm | None = BatchNorm()
    activation: str | None = "relu"
    bias: bool | None = None
    initial: Callable = HE_FAN_OUT
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch new_height new_width features"]:
        dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        bias = self.normalise is None if self.bias is None else self.bias
        convolution = Convolution(
            self.features,
            self.size,
            self.stride,
            self.padding,
            bias=bias,
            initial=self.initial,
            groups=self.groups,
            **dtypes,
            name="convolution",
        )
        y = convolution(x)
        if self.normalise is not None:
            y = adapted(self.normalise, **dtypes).clone(parent=self, name="norm")(y, train)
        return y if self.activation is None else activation(self.activation)(y)
