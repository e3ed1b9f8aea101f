"""Example inputs of denoisers, and of classifiers that guide them: noisy examples and their times."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from arch_jax.inputs import calls
from arch_jax.inputs.base import Batch, Rows
from arch_jax.protocols import class_count, point_features, resolution


@dataclasses.dataclass(frozen=True)
class NoisyInputs(Rows):
    """Normal numbers with times, and labels where the denoiser has classes.

    Attributes:
      shape: of an example: "height width channels" of images, "features" of points.
      times: they are drawn from 0 to this.
      classes: of the denoiser; None for an unconditional one.
    """

    shape: tuple[int, ...]
    times: float = 999.0
    classes: int | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The arrays that the model sees."""
        labels = () if self.classes is None else ("labels",)
        return ("images" if len(self.shape) == 3 else "x", "time", *labels)

    def batch(self, module: nn.Module, size: int, key: jax.Array) -> dict[str, jax.Array]:
        """Examples in [-1, 1], which is what images are scaled to; `weights` for the objective."""
        values, times, labels = jax.random.split(key, 3)
        batch = {
            self.names[0]: jax.random.uniform(values, (size, *self.shape), minval=-1.0),
            "time": jax.random.uniform(times, (size,), maxval=self.times),
            "weights": jnp.ones((size,)),
        }
        if self.classes is not None:
            count = class_count(module) or self.classes
            batch["labels"] = jax.random.randint(labels, (size,), 0, count, dtype=jnp.int32)
        return batch

    def resized(self, module: nn.Module) -> "NoisyInputs":
        """The size, channels and classes of a tiny module; images of at most 16 x 16 where it does not say."""
        if len(self.shape) == 1:
            shape = (point_features(module) or self.shape[0],)
        else:
            side = resolution(module) or min(self.shape[0], 16)
            shape = (side, side, getattr(module, "channels", self.shape[2]))
        return dataclasses.replace(self, shape=shape, classes=self.classes and class_count(module))

    def arguments(self, batch: Batch) -> tuple:
        """Noisy examples, times, and the condition."""
        return calls.denoiser(batch, self.classes)


@dataclasses.dataclass(frozen=True)
class NoisyLabelledInputs(NoisyInputs):
    """Images in [-1, 1] with times, for a classifier of noisy ones; labels for its objective."""

    names = ("images", "time")

    def batch(self, module: nn.Module, size: int, key: jax.Array) -> dict[str, jax.Array]:
        """As for a denoiser, and labels among the module's classes."""
        labels = jax.random.randint(jax.random.fold_in(key, 3), (size,), 0, class_count(module), dtype=jnp.int32)
        return super().batch(module, size, key) | {"labels": labels}

    def arguments(self, batch: Batch) -> tuple:
        """Noisy images and times."""
        return calls.noisy_classifier(batch)


def noisy_images(size: int, channels: int = 3, classes: int | None = None, times: float = 999.0) -> NoisyInputs:
    """Example inputs of a denoiser of images of `size` x `size` pixels, of `classes` classes where it is told them."""
    return NoisyInputs((size, size, channels), times, classes)


def noisy_points(features: int, classes: int | None = None, times: float = 999.0) -> NoisyInputs:
    """Example inputs of a denoiser of points."""
    return NoisyInputs((features,), times, classes)


def noisy_labelled_images(size: int, channels: int = 3, times: float = 999.0) -> NoisyLabelledInputs:
    """Example inputs of a classifier of noisy images of `size` x `size` pixels."""
    return NoisyLabelledInputs((size, size, channels), times)
