"""Example inputs of image models."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from arch_jax.inputs import calls
from arch_jax.inputs.base import Rows
from arch_jax.protocols import class_count, resolution


@dataclasses.dataclass(frozen=True)
class ImageInputs(Rows):
    """Random images with labels: `images` "batch size size channels" in [0, 1], `labels` and `weights` "batch".

    Attributes:
      size: resolution.
      channels: 1 for grey, 3 for colour.
    """

    size: int
    channels: int = 3
    names = ("images",)
    arguments = staticmethod(calls.image_model)

    def batch(self, module: nn.Module, size: int, key: jax.Array) -> dict[str, jax.Array]:
        """Uniform pixels; labels among the module's classes, or among 10 where it has none."""
        pixels, classes = jax.random.split(key)
        return {
            "images": jax.random.uniform(pixels, (size, self.size, self.size, self.channels)),
            "labels": jax.random.randint(classes, (size,), 0, class_count(module) or 10, dtype=jnp.int32),
            "weights": jnp.ones((size,)),
        }

    def resized(self, module: nn.Module) -> "ImageInputs":
        """At most 64 x 64 pixels, or the resolution that the module declares."""
        return dataclasses.replace(self, size=resolution(module) or min(self.size, 64))


@dataclasses.dataclass(frozen=True)
class LabelledImageInputs(ImageInputs):
    """Random images for a model that is given their classes too."""

    names = ("images", "labels")
    arguments = staticmethod(calls.conditional_image_model)


def images(size: int, channels: int = 3) -> ImageInputs:
    """Example inputs of an image model: images of `size` x `size` pixels."""
    return ImageInputs(size, channels)


def labelled_images(size: int, channels: int = 3) -> LabelledImageInputs:
    """Example inputs of an image model that is given each image's class."""
    return LabelledImageInputs(size, channels)
