"""Encoder and decoder between an image and its code: convolutions that halve it, then dense layers; and back."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from arch_jax.errors import UsageError
from arch_jax.fields import DType
from arch_jax.layers.dense import Dense
from arch_jax.layers.transformer.feed_forward import activation
from arch_jax.layers.vision.convolution import Convolution, TransposedConvolution

#: Preserves the variance forward and backward (Glorot & Bengio 2010, equation 16).
GLOROT = nn.initializers.glorot_uniform()


def check_shape(resolution: int, channels: int, widths: tuple[int, ...]) -> None:
    """Refuses images that the convolutions can't halve.

    Raises:
      UsageError: a size is below 1, or 2 to the number of convolutions does not divide the side.
    """
    if resolution < 1 or channels < 1:
        raise UsageError(f"resolution is {resolution} and channels is {channels}; expected at least 1 of each")
    if resolution % 2 ** len(widths):
        factor = 2 ** len(widths)
        near = max(factor, round(resolution / factor) * factor)
        raise UsageError(
            f"resolution is {resolution}, which {len(widths)} convolutions can't halve; expected a multiple of "
            f"{factor}, such as {near}"
        )


def check_resolution(resolution: int, channels: int, shape: tuple[int, ...]) -> None:
    """Refuses images of another shape than the model's.

    Raises:
      UsageError: `shape` ("height width channels") is another.
    """
    if tuple(shape) != (resolution, resolution, channels):
        raise UsageError(
            f"the images have the shape {' x '.join(map(str, shape))}, and the model takes {resolution} x {resolution} "
            f"x {channels}; set model.resolution={shape[0]} and model.channels={shape[2]}, or data.resize={resolution}"
        )


def with_classes(x: Float[Array, "*batch size"], condition: Any, classes: int | None) -> Float[Array, "*batch more"]:
    """x concatenated with the one-hot class of each example, if there are classes.

    Raises:
      UsageError: a condition without classes, or classes without a condition.
    """
    if (condition is None) != (classes is None):
        said = "a condition was given" if classes is None else "no condition was given"
        raise UsageError(f"{said}, and classes is {classes}; expected classes of images where there are classes only")
    if classes is None:
        return x
    marks = (condition[..., None] == jnp.arange(classes)).astype(x.dtype)
    return jnp.concatenate([x, jnp.broadcast_to(marks, (*x.shape[:-1], classes))], axis=-1)


class ConvolutionalEncoder(nn.Module):
    """An image encoder: convolutions of 4 x 4 and stride 2, dense layers, and a linear layer.

    Attributes:
      outputs: number of outputs.
      widths: channels of each convolution.
      hidden: width of each dense layer.
      activation: after each layer but the last.
      classes: number of classes of the condition; None for no condition.
      dtype: of the computation.
      parameter_dtype: of the parameters.
    """

    outputs: int
    widths: tuple[int, ...] = ()
    hidden: tuple[int, ...] = ()
    activation: str = "relu"
    classes: int | None = None
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], condition: Any = None
    ) -> Float[Array, "batch outputs"]:
        f, dtypes = activation(self.activation), {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        for number, width in enumerate(self.widths):
            x = f(Convolution(width, 4, 2, 1, **dtypes, name=f"convolution_{number}")(x))
        x = with_classes(x.reshape(len(x), -1).astype(self.dtype), condition, self.classes)
        for number, width in enumerate(self.hidden):
            x = f(Dense(width, initial=GLOROT, **dtypes, name=f"hidden_{number}")(x))
        return Dense(self.outputs, initial=GLOROT, **dtypes, name="outputs")(x)


class ConvolutionalDecoder(nn.Module):
    """An image decoder: a `ConvolutionalEncoder` in reverse, with transposed convolutions, linear at the end.

    Attributes:
      resolution: resolution.
      channels: of the image.
      widths: channels of the encoder's convolutions; here they stand in reverse order.
      hidden: width of the encoder's dense layers, in its order.
      activation: after each layer but the last.
      classes: number of classes of the condition; None for no condition.
      dtype: of the computation.
      parameter_dtype: of the parameters.
    """

    resolution: int
    channels: int
    widths: tuple[int, ...] = ()
    hidden: tuple[int, ...] = ()
    activation: str = "relu"
    classes: int | None = None
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self, code: Float[Array, "*batch latent"], condition: Any = None
    ) -> Float[Array, "*batch height width channels"]:
        f, dtypes = activation(self.activation), {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        x = with_classes(code.astype(self.dtype), condition, self.classes)
        for number, width in enumerate(reversed(self.hidden)):
            x = f(Dense(width, initial=GLOROT, **dtypes, name=f"hidden_{number}")(x))
        side = self.resolution // 2 ** len(self.widths)
        shape = (side, side, self.widths[-1] if self.widths else self.channels)
        x = Dense(int(np.prod(shape)), initial=GLOROT, **dtypes, name="outputs")(x).reshape(*x.shape[:-1], *shape)
        if not self.widths:
            return x
        x = f(x).reshape(-1, *shape)
        for number, width in enumerate([*self.widths[-2::-1], self.channels]):
            x = TransposedConvolution(width, **dtypes, name=f"convolution_{number}")(x)
            x = f(x) if number < len(self.widths) - 1 else x
        return x.reshape(*code.shape[:-1], self.resolution, self.resolution, self.channels)
