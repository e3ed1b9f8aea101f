"""One tensor of a checkpoint, read into a dtype, and the errors it may cause."""

from typing import Any

import numpy as np

from arch_jax.errors import RunError, UsageError
from arch_jax.interop.row import Shape
from arch_jax.interop.strict_json import shown


def read_tensor(name: str, tensor: Any, dtype: np.dtype) -> np.ndarray:
    """The numbers of a tensor in `dtype`.

    Args:
      name: of the tensor.
      tensor: an array, or what becomes one.
      dtype: of the result.

    Raises:
      UsageError: numbers that the dtype can't hold.
      RunError: NaN or infinity, or the tensor can't be read.
    """
    array = np.asarray(tensor)
    check_finite(name, array)
    with np.errstate(over="ignore"):
        cast = array.astype(dtype)
    if cast.dtype.itemsize < array.dtype.itemsize and not np.isfinite(cast).all():
        wider = "'bfloat16'" if dtype == np.float16 else "'float64'"
        raise UsageError(f"the tensor {shown(name)} holds numbers beyond {dtype.name}; expected dtype={wider}")
    return cast


def check_finite(name: str, tensor: np.ndarray) -> None:
    """Raises RunError where a tensor holds NaN or infinity."""
    if not np.isfinite(tensor).all():
        raise RunError(f"the tensor {shown(name)} holds NaN or infinity; expected finite numbers")


def wrong_shape(name: str, shape: Any, expected: Shape) -> UsageError:
    """The error of a tensor of another shape than expected."""
    return UsageError(f"the tensor {shown(name)} has shape {shown(tuple(shape))}; expected {expected}")
