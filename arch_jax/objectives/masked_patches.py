"""Reconstruction of masked patches, the pre-training of masked autoencoders; judged by a linear probe."""

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from arch_jax.errors import UsageError
from arch_jax.evaluation.base import Measure
from arch_jax.evaluation.linear_probe import LinearProbe
from arch_jax.fields import component
from arch_jax.figures.base import Figure
from arch_jax.figures.reconstructions import Reconstructions
from arch_jax.inputs import calls
from arch_jax.objectives.autoencode import check_images
from arch_jax.objectives.base import Batch, ObjectiveBase, Pair
from arch_jax.ops.convolution.patches import normalised, patch_statistics, patches, unpatchify
from arch_jax.ops.losses import weighted
from arch_jax.ranges import Count
from arch_jax.sampling.reconstruct import Reconstruct


@component(
    "masked_patches", kind="objective", renamed={"show_pictures": "show_images", "probe_pictures": "probe_images"}
)
@dataclasses.dataclass(frozen=True)
class MaskedPatches(ObjectiveBase):
    """The mean squared error of the masked patches' pixels (He et al. 2021, 2111.06377, section 3).

    Masks are drawn anew in each step, and are the same in every validation. Where the model says so
    (`normalised_pixels`), the pixels are those of each patch normalised by its own mean and variance.

    At the end, a linear probe says what the encoder's features are good for (section 4.1): a multinomial logistic
    regression on features of whole training images, each scaled to variance 1, is tested on the validation images.

    Attributes:
      model: the masked autoencoder; filled in by the experiment.
      probe_images, probe_features: defaults of the linear probe's images and features; None for no probe.
      show_images: validation images in the default figure.
    """

    probe_images: int | None = 10_000
    probe_features: Literal["token", "mean"] = "token"
    show_images: Count = 12

    unit: ClassVar[str] = "squared error a masked pixel"

    def __post_init__(self) -> None:
        if self.probe_images is not None and self.probe_images < 2:
            raise UsageError(f"probe_images is {self.probe_images}; expected at least 2, or none for no probe")

    @property
    def sampler(self) -> Reconstruct:
        """Reconstructions of validation images."""
        return Reconstruct()

    @property
    def measures(self) -> tuple[Measure, ...]:
        """A linear probe, unless `probe_images` is None."""
        if self.probe_images is None:
            return ()
        return (LinearProbe(images=self.probe_images, features=self.probe_features),)

    @property
    def figures(self) -> tuple[Figure, ...]:
        """Images, what is visible of them, and the reconstructions."""
        return (Reconstructions(self.show_images),)

    def arguments(self, batch: Batch) -> tuple:
        return calls.image_model(batch)

    def loss(
        self, player: str, phase: str, variables: Any, batch: Batch, key: jax.Array, step: Any
    ) -> tuple[Pair, tuple[dict, dict]]:
        pair = self._error(variables, batch, key)
        return pair, ({"loss": pair}, {})

    def evaluate(self, variables: Any, batch: Batch) -> dict[str, Pair]:
        """The error of a masked pixel ("loss"); the same places are masked each time."""
        return {"loss": self._error(variables, batch, jax.random.key(0))}

    def _error(self, variables: Any, batch: Batch, key: jax.Array) -> Pair:
        images = batch["images"]
        predicted, masking = self.model.apply(variables, images, self.noise(images, key), method="masked")
        target = patches(images, self.model.patch)
        target = normalised(target) if self.model.normalised_pixels else target
        wide = jnp.promote_types(predicted.dtype, jnp.float32)
        of_patch = jnp.mean(jnp.square(predicted.astype(wide) - target.astype(wide)), axis=-1)
        # As many are masked in each image, so the mean over images is the one over all masked patches.
        each = jnp.sum(of_patch * masking.mask, axis=1) / jnp.sum(masking.mask, axis=1)
        return weighted(each, batch["weights"])

    def noise(self, images: jax.Array, key: jax.Array) -> jax.Array:
        """A uniform number for each patch of the images, "batch patches"."""
        down, across = self.model.grid(*images.shape[1:3])
        return jax.random.uniform(key, (len(images), down * across))

    def check(self, data: Any) -> None:
        """The images must be of the shape that the model takes."""
        check_images(data, self.model, "masked_patches")

    @property
    def reconstruction_title(self) -> str:
        """Above the figure of reconstructions."""
        return f"{self.model.masking_ratio:.0%} of the patches are masked"

    def reconstructions(self, variables: Any, examples: Any, labels: Any, data: Any, key: jax.Array) -> dict[str, Any]:
        """Images, their visible patches, the predictions, and those with the visible patches pasted in.

        The masks are the same at every call. Predictions of normalised pixels get the true mean and variance of each
        patch, which the model does not know.
        """
        images = jnp.asarray(examples)
        predicted, masking = self.outputs(variables, images, self.noise(images, jax.random.key(0)), method="masked")
        real, hidden = patches(images, self.model.patch), masking.mask[..., None]
        if self.model.normalised_pixels:
            mean, deviation = patch_statistics(real)
            predicted = predicted * deviation + mean
        grey = (data.low + data.high) / 2
        rows = {
            "original": real,
            "visible": jnp.where(hidden, grey, real),
            "predicted": predicted,
            "pasted": jnp.where(hidden, predicted, real),
        }
        whole = lambda x: unpatchify(x.astype(images.dtype), self.model.patch, *images.shape[1:3])
        return {name: whole(x) for name, x in rows.items()}
