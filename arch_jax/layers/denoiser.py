"""Parts that denoisers share: the embedding of time and label, and the rules for what a condition may hold.

    prediction = module.apply(variables, x, time, condition=None, train=False)

Labels are integers from 0; `classes` itself is the null class of classifier-free guidance (Ho & Salimans 2022,
2207.12598), where the network has one.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from arch_jax.errors import UsageError
from arch_jax.fields import DType
from arch_jax.layers.dense import Dense, Embedding
from arch_jax.layers.vision.unet_blocks import uniform_draw
from arch_jax.ops.diffusion.condition import Condition
from arch_jax.ops.diffusion.time_embedding import fourier_features, time_embedding


class TimeEmbedding(nn.Module):
    """W_2 silu(W_1 s(t) + b_1) + b_2 of the sines and cosines s(t) of `ops.diffusion.time_embedding`.

    Or of random Fourier features, sin(2 pi w t) and cos(2 pi w t) (Tancik et al. 2020, 2006.10739), whose frequencies w
    are drawn once and not trained; they are the parameter "frequencies", without gradient.

    Attributes:
      width: of the output and of the hidden layer.
      features: sines and cosines.
      shift: of the frequencies.
      cosine_first: whether the cosines precede the sines.
      initial: initializer of W_1 and W_2.
      fourier: standard deviation of w; None is the fixed frequencies of `time_embedding`.
      uniform_bias: whether b_1 and b_2 start uniform on +-1 / sqrt(fan-in), PyTorch's default, rather than at 0.
      dtype: of the computation; sines and cosines are computed in at least float32.
      parameter_dtype: of the parameters.
    """

    width: int
    features: int = 256
    shift: float = 0.0
    cosine_first: bool = False
    initial: Callable = nn.initializers.normal(0.02)
    fourier: float | None = None
    uniform_bias: bool = False
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self, time: Float[Array, "batch"], added: Float[Array, "batch features"] | None = None
    ) -> Float[Array, "batch width"]:
        """The embedding; `added` is added to s(t)."""
        settings = {"initial": self.initial, "dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        if self.fourier is None:
            y = time_embedding(time, self.features, self.shift, self.cosine_first)
        else:
            precise = jnp.promote_types(self.parameter_dtype, jnp.float32)
            drawn = nn.initializers.normal(self.fourier)
            frequencies = self.param("frequencies", drawn, (self.features // 2,), precise)
            y = fourier_features(time, lax.stop_gradient(frequencies), self.cosine_first)
        y = y.astype(self.dtype)
        y = y if added is None else y + added
        y = nn.silu(Dense(self.width, initial_bias=self._bias(self.features), **settings, name="hidden")(y))
        return Dense(self.width, initial_bias=self._bias(self.width), **settings, name="output")(y)

    def _bias(self, fan_in: int) -> Callable:
        return uniform_draw(fan_in) if self.uniform_bias else nn.initializers.zeros


def label_embedding(owner: nn.Module, width: int, initial_std: float) -> Embedding:
    """The table of the owner's classes, with a row more for the null class where it has one; named "label"."""
    dtypes = {"dtype": owner.dtype, "parameter_dtype": owner.parameter_dtype}
    rows = owner.classes + owner.null_class
    return Embedding(rows, width, initial_std=initial_std, **dtypes, parent=owner, name="label")


def labels_of(
    owner: nn.Module, condition: Condition | None, batch: int, others: tuple[str, ...] = ()
) -> Int[Array, "batch"] | None:
    """The label of each example; the null class without a condition; None for a network without classes.

    Args:
      owner: has `classes` (None without) and `null_class`.
      condition: as the network was given it.
      batch: number of examples.
      others: fields of the condition, besides the label, that the network reads by itself.

    Raises:
      UsageError: a condition that the network would ignore; none, and the network has no null class; labels of another
        shape.
    """
    name = type(owner).__name__
    given = {} if condition is None else {field.name: getattr(condition, field.name) for field in _FIELDS}
    given = {field: value for field, value in given.items() if value is not None and field not in others}
    if owner.classes is None:
        if given:
            raise UsageError(
                f"the condition has {', '.join(given)}, and this {name} has no classes; expected no condition, or a "
                "network with classes"
            )
        return None
    if unread := [field for field in given if field != "label"]:
        raise UsageError(f"the condition has {', '.join(unread)}, which {name} does not use; expected a label alone")
    if "label" in given:
        if jnp.shape(given["label"]) != (batch,):
            raise UsageError(
                f"the labels have the shape {jnp.shape(given['label'])}; expected ({batch},), one for each example"
            )
        return given["label"]
    if not owner.null_class:
        raise UsageError(
            f"this {name} has {owner.classes} classes, no null class and was given no label; expected "
            "condition=Condition(label=...)"
        )
    return jnp.full((batch,), owner.classes, jnp.int32)


_FIELDS = dataclasses.fields(Condition)


def check_classes(owner: Any) -> None:
    """Refuses a null class without classes.

    Raises:
      UsageError: if `null_class` is true and `classes` None.
    """
    if owner.null_class and owner.classes is None:
        raise UsageError("null_class is true and classes is none; expected null_class=false, or a number of classes")
