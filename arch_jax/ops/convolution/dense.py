"""2-D convolution, by XLA's own operation, as patches times a matrix, or by Winograd's minimal filtering.

On a CPU, XLA's convolution runs on one thread inside a loop, and the train program is one: a LeNet-5 step (batch norm,
64 images) takes 41 ms there, 12 as patches, and 10 in PyTorch (`experiments/benchmarks/convolution.py`). Kernels of
3 x 3 at stride 1 are by Winograd's where images and channels are large enough: a training step of DDPM's U-Net takes
three quarters of the time then (`experiments/benchmarks/diffusion.py`). On other platforms XLA's own is taken.
"""

import math

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from arch_jax.errors import UsageError, unknown
from arch_jax.ops.convolution.depthwise import Pads, shifts
from arch_jax.ops.convolution.winograd import winograd
from arch_jax.ops.platform import platform

__all__ = [
    "IMPLEMENTATIONS",
    "Padding",
    "choose",
    "convolve",
    "convolve_reference",
    "convolve_transposed",
    "padded",
]

#: Zeros around an image: a number for every side, (before, after) for both axes, "same", or None; see `padded`.
Padding = int | tuple[int, int] | str | None


#: Products of a pixel's channels and features, over an image's pixels, from which Winograd's form is the faster one.
_WORTHWHILE = 2**17


def choose(on: str | None = None, depthwise: bool = False, products: int = 0) -> str:
    """The implementation that "auto" picks.

    Args:
      on: "cpu", "gpu" or "tpu"; None for the platform that is compiled for.
      depthwise: every channel is a group of its own.
      products: of a convolution that "winograd" is for (even sides, 8 channels and more), height width channels
        features of one image: not of the batch, so that an example has the same result in any.
    """
    if (on or platform()) != "cpu":
        return "xla"
    if products >= _WORTHWHILE:
        return "winograd"
    return "shifts" if depthwise else "patches"


def padded(padding: Padding, sides: tuple[int, int], size: int, stride: int = 1, dilation: int = 1) -> Pads:
    """Zeros (before, after) the rows and the columns of an image.

    Args:
      padding: zeros on every side; (before, after) for rows and columns alike; None for as many as keep the size at
        stride 1, whatever the stride is; "same" for as few as give ceil(side / stride) windows, the odd one after, as
        TensorFlow has it.
      sides: height and width of the image.
      size, stride, dilation: of the windows.

    Raises:
      UsageError: a negative number, or another name than "same".
    """
    reach = (size - 1) * dilation
    if padding is None:
        return ((reach // 2, reach - reach // 2),) * 2
    if isinstance(padding, str):
        if padding != "same":
            raise unknown("padding", padding, ["same"])
        missing = [max((-(-side // stride) - 1) * stride + reach + 1 - side, 0) for side in sides]
        return tuple((n // 2, n - n // 2) for n in missing)
    before, after = (padding, padding) if isinstance(padding, int) else padding
    if before < 0 or after < 0:
        raise UsageError(f"padding is {padding}; expected zeros to be added, at least 0")
    return ((before, after),) * 2


def convolve(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "size size channels_of_group features"],
    stride: int = 1,
    padding: Padding = None,
    implementation: str = "auto",
    groups: int = 1,
    dilation: int = 1,
) -> Float[Array, "batch new_height new_width features"]:
    """Cross-correlation with a square kernel: y_hwf = sum_ijc x_{h+i, w+j, c} k_ijcf.

    Args:
      x: images.
      kernel: its windows' weights. With groups, a kernel sees channels / groups of the channels.
      stride: pixels between windows.
      padding: zeros around the image, as `padded` has it.
      implementation: "xla", "patches", "shifts" (depthwise only), "winograd" (3 x 3 kernels at stride and dilation 1,
        one group), or "auto", which `choose` decides.
      groups: the g-th of so many equal parts of the features sees the g-th part of the channels only; as many as there
        are channels is a depthwise convolution.
      dilation: pixels from one place of the kernel to the next.

    Raises:
      UsageError: unknown implementation, with the nearest names; groups that don't divide channels and features, or a
        kernel for another number of channels; "shifts" where the convolution is not depthwise; "winograd" of another
        kernel, stride, dilation or groups.
    """
    channels, (size, _, inner, features) = x.shape[-1], kernel.shape
    if groups < 1 or channels % groups or features % groups:
        raise UsageError(f"groups is {groups}; expected a divisor of {channels} channels and of {features} features")
    if inner * groups != channels:
        raise UsageError(
            f"the kernel is for {inner * groups} channels, and the images have {channels}; expected as many"
        )
    depthwise = groups == channels and groups > 1
    minimal = (size, stride, groups, dilation) == (3, 1, 1, 1)
    pads = padded(padding, x.shape[1:3], size, stride, dilation)
    name = implementation
    if name == "auto":
        name = choose(depthwise=depthwise, products=_products(x, kernel, pads) if minimal else 0)
    if name not in IMPLEMENTATIONS:
        raise unknown("implementation", name, [*IMPLEMENTATIONS, "auto"])
    if name == "shifts" and inner > 1:
        raise UsageError(f"groups is {groups}; 'shifts' expects one for each of the {channels} channels")
    if name == "winograd" and not minimal:
        raise UsageError(
            f"the kernel is {size} x {size} with stride {stride}, dilation {dilation} and {groups} groups; 'winograd' "
            "expects 3 x 3 with 1 of each, 'patches' takes any"
        )
    return IMPLEMENTATIONS[name](x, kernel, stride, pads, groups, dilation)


def _products(x: Array, kernel: Array, pads: Pads) -> int:
    """Of one image, of a 3 x 3 convolution that Winograd's form is for; 0 if it is not."""
    height, width = (side + sum(pad) - 2 for side, pad in zip(x.shape[1:3], pads))
    if height % 2 or width % 2 or min(height, width, *kernel.shape[2:]) < 8:
        return 0
    # Half precision would lose in products of sums what it keeps in sums of products.
    halved = jnp.promote_types(x.dtype, kernel.dtype).itemsize < 4
    return 0 if halved else math.prod([height, width, *kernel.shape[2:]])


def convolve_transposed(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "size size channels features"],
    stride: int = 2,
    padding: int = 1,
    implementation: str = "auto",
) -> Float[Array, "batch new_height new_width features"]:
    """The transpose of `convolve` as a linear map of images: every pixel adds its kernel, times itself, around it.

    With zeros between the pixels and the kernel turned around it is a convolution of stride 1. A side of n pixels
    becomes (n - 1) stride + size - 2 padding.

    Args:
      x: images.
      kernel: weights from each channel to each feature.
      stride: pixels of the result between two pixels of x.
      padding: pixels cut off on every side, at most size - 1.
      implementation: as in `convolve`.

    Raises:
      UsageError: padding is not from 0 to size - 1.
    """
    size = kernel.shape[0]
    if not 0 <= padding < size:
        raise UsageError(f"padding is {padding}; expected 0 to {size - 1}, for a kernel of {size}")
    zero = jnp.zeros((), x.dtype)
    x = lax.pad(x, zero, ((0, 0, 0), (0, 0, stride - 1), (0, 0, stride - 1), (0, 0, 0)))
    return convolve(x, kernel[::-1, ::-1], 1, size - 1 - padding, implementation)


def _xla(x: Array, kernel: Array, stride: int, pads: Pads, groups: int, dilation: int) -> Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        pads,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _patches(x: Array, kernel: Array, stride: int, pads: Pads, groups: int, dilation: int) -> Array:
    """Every window side by side in a row, times the kernel as a matrix.

    First the rows of the windows, then their columns: 2 size slices instead of size^2, which compile in a third of the
    time. A 1 x 1 kernel leaves one slice and the product.
    """
    size, _, inner, features = kernel.shape
    if groups > 1:  # the groups on an axis of their own, so that a window's values of one group are together
        x = x.reshape(*x.shape[:3], groups, inner)
    rows = jnp.concatenate(_along(_zeros_around(x, pads), 1, size, stride, dilation), axis=-1)
    windows = jnp.concatenate(_along(rows, 2, size, stride, dilation), axis=-1)
    matrix = kernel.transpose(1, 0, 2, 3).reshape(size * size * inner, features)
    if groups == 1:
        return windows @ matrix
    y = jnp.einsum("bhwgk,kgf->bhwgf", windows, matrix.reshape(len(matrix), groups, features // groups))
    return y.reshape(*y.shape[:3], features)


def _shifts(x: Array, kernel: Array, stride: int, pads: Pads, groups: int, dilation: int) -> Array:
    """A depthwise convolution as a sum of shifted images, each times its place of the kernel."""
    x = jnp.repeat(x, kernel.shape[-1] // groups, axis=-1)
    return shifts(x, kernel[:, :, 0], stride, pads, dilation)


def _winograd(x: Array, kernel: Array, stride: int, pads: Pads, groups: int, dilation: int) -> Array:
    return winograd(_zeros_around(x, pads), kernel)


def _along(x: Array, axis: int, size: int, stride: int, dilation: int) -> list[Array]:
    """The rows (axis 1) or columns (axis 2) that each row or column of the kernel meets."""
    last = (x.shape[axis] - (size - 1) * dilation - 1) // stride * stride + 1
    return [lax.slice_in_dim(x, i * dilation, i * dilation + last, stride, axis) for i in range(size)]


def _zeros_around(x: Array, pads: Pads) -> Array:
    """The image with its zeros."""
    return jnp.pad(x, ((0, 0), *pads, *((0, 0),) * (x.ndim - 3)))


IMPLEMENTATIONS = {"xla": _xla, "patches": _patches, "shifts": _shifts, "winograd": _winograd}


def convolve_reference(x, kernel, stride=1, padding=None, groups=1, dilation=1):
    """`convolve` as it is defined, one place of the kernel and one group after another."""
    size, _, inner, _ = kernel.shape
    x = jnp.pad(x, ((0, 0), *padded(padding, x.shape[1:3], size, stride, dilation), (0, 0)))
    height, width = ((n - (size - 1) * dilation - 1) // stride + 1 for n in x.shape[1:3])
    parts = []
    for g in range(groups):
        channels, kernels = x[..., g * inner : (g + 1) * inner], jnp.split(kernel, groups, axis=-1)[g]
        y = 0
        for i in range(size):
            for j in range(size):
                rows = i * dilation + stride * jnp.arange(height)
                columns = j * dilation + stride * jnp.arange(width)
                y = y + jnp.einsum("bhwc,cf->bhwf", channels[:, rows][:, :, columns], kernels[i, j])
        parts.append(y)
    return jnp.concatenate(parts, axis=-1)
