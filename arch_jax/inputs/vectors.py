"""Example inputs of models of vectors and points."""

import dataclasses

import flax.linen as nn
import jax

from arch_jax.inputs import calls
from arch_jax.inputs.base import Rows


@dataclasses.dataclass(frozen=True)
class PointInputs(Rows):
    """Random points for a generative adversarial pair: the real `x` "batch features" and a `latent` "batch latent".

    Attributes:
      features: coordinates of a point.
    """

    features: int
    names = ("latent",)

    def batch(self, module: nn.Module, size: int, key: jax.Array) -> dict[str, jax.Array]:
        """Normal points and latents."""
        real, latent = jax.random.split(key)
        return {
            "x": jax.random.normal(real, (size, self.features)),
            "latent": jax.random.normal(latent, (size, module.generator.latent)),
        }


@dataclasses.dataclass(frozen=True)
class VectorInputs(Rows):
    """Random vectors for an autoencoder: `x` "batch features".

    Attributes:
      features: coordinates of a vector.
    """

    features: int
    names = ("x",)
    arguments = staticmethod(calls.vector_model)

    def batch(self, module: nn.Module, size: int, key: jax.Array) -> dict[str, jax.Array]:
        """Normal numbers."""
        return {"x": jax.random.normal(key, (size, self.features))}

    def resized(self, module: nn.Module) -> "VectorInputs":
        """As many coordinates as the module takes."""
        return VectorInputs(module.features)


def points(features: int) -> PointInputs:
    """Example inputs of an adversarial pair on points."""
    return PointInputs(features)


def vectors(features: int) -> VectorInputs:
    """Example inputs of an autoencoder of vectors."""
    return VectorInputs(features)
