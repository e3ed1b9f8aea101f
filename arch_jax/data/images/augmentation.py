"""Random image augmentation for training, one generator an image, so that a run can be repeated."""

import dataclasses
import math
import numbers
from collections.abc import Callable
from typing import Any

import numpy as np

from arch_jax.data.images.sources import resized
from arch_jax.errors import UsageError
from arch_jax.fields import component
from arch_jax.ranges import Count

# Strengths from 0 to 30, as torchvision has them and Cubuk et al. use them on ImageNet.
_STRENGTHS = 30


@component("augmentation", kind="augmentation")
@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Augmentations of the training images, applied in this order; the default applies none.

    Attributes:
      resized_crop: least fraction of the image's area in a random window, of aspect ratio up to 4:3, that is scaled to
        the batch's size (Szegedy et al. 2015, 1409.4842, section 6: 0.08); 0 takes the whole image.
      flip: fraction of the images that are mirrored, left to right.
      operations: the number of RandAugment's 14 operations applied to each image (Cubuk et al. 2020, 1909.13719).
      strength: of these, from 0 to 30.
      crop: pixels of background put on every side, before a window of the batch's size is cut out at random (He et al.
        2016, 1512.03385, section 4.2: 4).
      erase: fraction of the images of which a rectangle, of 2 to 40 % of the area, becomes noise (Zhong et al. 2020,
        1708.04896).
      mixup: alpha; above 0, images are averaged in pairs, weighted by a draw from Beta(alpha, alpha), and so are
        their losses (Zhang et al. 2018, 1710.09412). One draw a batch.
      cutmix: alpha; above 0, a rectangle of each image is its partner's, and its share is drawn as above (Yun et al.
        2019, 1905.04899). With both, each batch is mixed in one of the two ways, as often in either.

    Raises:
      UsageError: if a field is invalid.
    """

    resized_crop: float = 0.0
    flip: float = 0.0
    operations: Count = 0
    strength: Count = 9
    crop: Count = 0
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        for name in ("resized_crop", "flip", "erase"):
            if not _is_number(getattr(self, name)) or not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} is {getattr(self, name)!r}; expected a fraction from 0 to 1")
        for name in ("mixup", "cutmix"):
            value = getattr(self, name)
            if not _is_number(value) or not 0 <= value < math.inf:
                raise UsageError(f"{name} is {value!r}; expected 0, or a positive number such as 0.2")
        for name, most in (("operations", 14), ("strength", _STRENGTHS), ("crop", 4096)):
            value = getattr(self, name)
            if not isinstance(value, numbers.Integral) or isinstance(value, bool) or not 0 <= value <= most:
                raise UsageError(f"{name} is {value!r}; expected a whole number from 0 to {most}")

    @property
    def mixes(self) -> bool:
        """True if images are mixed in pairs."""
        return self.mixup > 0 or self.cutmix > 0

    def pixels(self, image: np.ndarray, generator: np.random.Generator, side: int | None, top: int) -> np.ndarray:
        """The first three steps: an image as it is stored -> float32 of the batch's size, its values unscaled.

        Args:
          image: uint8 "height width channels".
          generator: source of randomness.
          side: resolution of the result; None keeps the image's size.
          top: the brightest value of the source's range.
        """
        height, width = image.shape[:2] if side is None else (side, side)
        if self.resized_crop:
            image = _window(image, self.resized_crop, generator)
        if image.shape[:2] != (height, width):
            image = resized(image[None], height, width)[0]
        if self.flip and generator.random() < self.flip:
            image = image[:, ::-1]
        if self.operations:
            image = randomly_operated(image * (255 / top), self.operations, self.strength, generator) * (top / 255)
        return image.astype(np.float32)

    def values(self, image: np.ndarray, generator: np.random.Generator, low: float, high: float) -> np.ndarray:
        """An image with its values scaled to [low, high], after the two steps that follow: crop and erase.

        Args:
          image: float32 "height width channels".
          generator: source of randomness.
          low: of the background.
          high: the brightest value; noise is uniform between the two.
        """
        if self.crop:
            height, width = image.shape[:2]
            room = [(self.crop, self.crop), (self.crop, self.crop), (0, 0)]
            top, left = generator.integers(0, 2 * self.crop + 1, 2)
            image = np.pad(image, room, constant_values=low)[top : top + height, left : left + width]
        if self.erase and generator.random() < self.erase:
            image = _erased(image, generator, low, high)
        return image

    def mixed(
        self, images: np.ndarray, partners: np.ndarray, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.float32]:
        """Images mixed with their partners, "batch height width channels" each, and each image's own fraction.

        Args:
          images: the images.
          partners: of each.
          generator: of the batch: all of it is mixed alike.
        """
        both = self.mixup > 0 and self.cutmix > 0
        cut = self.cutmix > 0 and not (both and generator.random() < 0.5)
        alpha = self.cutmix if cut else self.mixup
        share = generator.beta(alpha, alpha)
        if not cut:
            return (share * images + (1 - share) * partners).astype(np.float32), np.float32(share)
        height, width = images.shape[1:3]
        rows, columns = (_span(side, math.sqrt(1 - share), generator) for side in (height, width))
        images = images.copy()
        images[:, rows, columns] = partners[:, rows, columns]
        # What was cut off at the image's edges remains its own.
        return images, np.float32(1 - (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width))


def randomly_operated(image: np.ndarray, count: int, strength: int, generator: np.random.Generator) -> np.ndarray:
    """RandAugment (Cubuk et al. 2020, section 3): `count` operations, each drawn from all 14, one after another.

    Args:
      image: "height width channels", one or three channels, in [0, 255]; rounded first.
      count: the number of operations.
      strength: of each, from 0 (nothing) to 30.
      generator: draws the operations, and the direction of those that have two.

    Returns:
      uint8, of the same shape.
    """
    import PIL.Image

    pixels = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    image = PIL.Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    for _ in range(count):
        operation = tuple(OPERATIONS)[generator.integers(len(OPERATIONS))]
        sign = 1 if generator.random() < 0.5 else -1
        image = OPERATIONS[operation](image, strength / _STRENGTHS, sign)
    return np.asarray(image, np.uint8).reshape(pixels.shape)


def _affine(a: float = 1.0, b: float = 0.0, c: float = 0.0, d: float = 0.0, e: float = 1.0, f: float = 0.0) -> Callable:
    return lambda image: image.transform(image.size, 0, (a, b, c, d, e, f))  # 0: PIL.Image.Transform.AFFINE


def _enhanced(name: str) -> Callable:
    def operation(image: Any, amount: float, sign: int) -> Any:
        import PIL.ImageEnhance

        return getattr(PIL.ImageEnhance, name)(image).enhance(1 + 0.9 * sign * amount)

    return operation


def _plain(name: str, argument: Callable[[float], tuple]) -> Callable:
    def operation(image: Any, amount: float, sign: int) -> Any:
        import PIL.ImageOps

        return getattr(PIL.ImageOps, name)(image, *argument(amount))

    return operation


#: Name -> (image, strength from 0 to 1, sign) -> image: those of the paper's table 6, in the ranges of torchvision.
OPERATIONS: dict[str, Callable] = {
    "identity": lambda image, amount, sign: image,
    "shear_x": lambda image, amount, sign: _affine(b=0.3 * amount * sign)(image),
    "shear_y": lambda image, amount, sign: _affine(d=0.3 * amount * sign)(image),
    "translate_x": lambda image, amount, sign: _affine(c=1.0 * sign * round(150 / 331 * image.width * amount))(image),
    "translate_y": lambda image, amount, sign: _affine(f=1.0 * sign * round(150 / 331 * image.height * amount))(image),
    "rotate": lambda image, amount, sign: image.rotate(30 * amount * sign),
    "brightness": _enhanced("Brightness"),
    "color": _enhanced("Color"),
    "contrast": _enhanced("Contrast"),
    "sharpness": _enhanced("Sharpness"),
    "posterize": _plain("posterize", lambda amount: (8 - round(4 * amount),)),
    "solarize": _plain("solarize", lambda amount: (256 - round(256 * amount),)),
    "auto_contrast": _plain("autocontrast", lambda amount: ()),
    "equalize": _plain("equalize", lambda amount: ()),
}


def _window(image: np.ndarray, least: float, generator: np.random.Generator) -> np.ndarray:
    height, width = image.shape[:2]
    for _ in range(10):
        area = height * width * generator.uniform(least, 1)
        ratio = math.exp(generator.uniform(math.log(3 / 4), math.log(4 / 3)))
        h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < h <= height and 0 < w <= width:
            top, left = generator.integers(0, height - h + 1), generator.integers(0, width - w + 1)
            return image[top : top + h, left : left + w]
    return image


def _erased(image: np.ndarray, generator: np.random.Generator, low: float, high: float) -> np.ndarray:
    height, width, channels = image.shape
    for _ in range(100):
        area = height * width * generator.uniform(0.02, 0.4)
        ratio = generator.uniform(0.3, 1 / 0.3)
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < h < height and 0 < w < width:
            top, left = generator.integers(0, height - h + 1), generator.integers(0, width - w + 1)
            image = image.copy()
            image[top : top + h, left : left + w] = generator.uniform(low, high, (h, w, channels))
            return image
    return image


def _span(side: int, share: float, generator: np.random.Generator) -> slice:
    """A share of a side around a place drawn from it, as much of it as there is."""
    centre, half = generator.integers(side), int(side * share) // 2
    return slice(max(0, int(centre) - half), min(side, int(centre) + half))


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
