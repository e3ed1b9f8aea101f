"""Distances of generated images from real ones, in the features of a classifier that was trained on the same data."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from arch_jax.errors import UsageError
from arch_jax.evaluation.base import Measure
from arch_jax.evaluation.last_hidden import logits_and_features
from arch_jax.fields import Kind, component
from arch_jax.ops.feature_distances import frechet_distance, kernel_distance, nearest_distances, precision_recall
from arch_jax.protocols import class_count, require, require_arrays
from arch_jax.ranges import Range

#: k of precision and recall (1904.06991, section 3.1).
_NEIGHBOURS = 3
#: Images of a subset of the kernel distance (1801.01401, section 4).
_SUBSET = 1000
#: Images that the classifier reads at a time.
_ROWS = 256
#: The quantile of the distances to the nearest training images.
_QUANTILE = 0.05


@component("image_distances", kind="measure")
@dataclasses.dataclass(frozen=True)
class ImageDistances(Measure):
    """Distances of the sampler's images from the validation images, in a trained classifier's last hidden layer.

    n = `count` samples are compared with n validation images, chosen at random, the same in every run. The floors
    compare these with another n real images: further validation images where there are 2 n of them, otherwise training
    images (as many as there are, up to n), which the classifier has seen, so that they may lie a little further away.
    Gives, always together:

        fid                 Fréchet distance (Heusel et al. 2017, 1706.08500), in squared units of the features; depends
                            on n: compare it with the floor of the same n, and with no other classifier's
        fid_floor           the same of real images and real images
        fid_ratio           fid over its floor
        fid_pixel_gaussian  the same of a Gaussian with the real pixels' mean and covariance, drawn n times: an image
                            model that knows no more than pairs of pixels
        kid                 kernel distance (Binkowski et al. 2018, 1801.01401), unbiased: about 0 at the best whatever
                            n is, also below; 100 subsets of at most 1,000
        precision, recall   of manifolds of 3 nearest neighbours (Kynkäänniemi et al. 2019, 1904.06991); they depend on
                            n and are below 1 also for real images. To a classifier noise may look like an image, so
                            that its precision is high: read it beside fid
        recall_floor        the recall of real images by real images
        recall_ratio        recall over its floor: far below 1 where the samples lack what the real images have, as with
                            strong guidance
        class_read          the share of the samples that the classifier reads as the class they were drawn for; only of
                            a sampler that gives "labels". It does not depend on n
        nearest_ratio       the 5 % quantile of the samples' distances to their nearest training images, over that of
                            the validation images: about 1 at the best, near 0 if a twentieth or more are copies. It
                            depends on the number of training images, not on n

    The classifier may have been trained on other values of pixels than the run's, such as -0.1 to 1.175 where a
    diffusion has -1 to 1: images go from [data.low, data.high] linearly to [extractor.low, extractor.high], which are
    those of the data that it was trained on. Samples, and the Gaussian's, are first clipped to the former, as an
    image's file would.

    Attributes:
      extractor: the classifier, of images of the same size; a run's folder, an experiment's name (lenet_fashion), or a
        checkpoint's folder with `low` and `high`.
      count: n, at most the number of validation images.
      training_images: training images, at most, among which the nearest are looked for.
    """

    extractor: Annotated[Any, Kind("frozen")] | None = None
    count: Annotated[int, Range(at_least=_NEIGHBOURS + 1)] = 5_000
    training_images: int = 60_000

    def check(self, task: Any, sampler: Any, data: Any) -> None:
        """Refuses data without images, too few of them, and an extractor that is no classifier of such images.

        Of the extractor only its name is known until it is opened: `train` asks again then.
        """
        super().check(task, sampler, data)
        require_arrays(self, data, ("images",))
        require(self, "data", data, ("training_sample",))
        if self.extractor is None:
            raise UsageError(
                "extractor is none; expected a trained classifier of such images: a run's folder, or the name of an "
                "experiment, such as extractor=lenet_fashion"
            )
        total = _validation_count(data)
        if self.count > total:
            raise UsageError(
                f"count is {self.count}, and the data has {total} validation images; expected at most {total}"
            )
        if self.extractor.model is not None:
            self._check_extractor(data)

    def _check_extractor(self, data: Any) -> None:
        extractor, shape = self.extractor, tuple(data.shapes["images"][0][1:])
        classes = class_count(extractor.model)
        if classes is None:
            raise self._no_classifier("has no classes")
        if extractor.low is None or extractor.high is None:
            raise UsageError(
                f"nothing says which values of pixels the extractor {extractor.source!r} was trained on; expected a "
                "run's folder or an experiment on images, or extractor.low and extractor.high, such as 0 and 1"
            )
        if not extractor.low < extractor.high:
            raise UsageError(
                f"extractor.low is {extractor.low} and extractor.high is {extractor.high}; expected low below high"
            )
        if extractor.shape not in (None, shape):
            raise UsageError(
                f"the extractor {extractor.source!r} was trained on images of {_by(extractor.shape)}, and the data has "
                f"{_by(shape)}; expected the same: data.resize and data.pad as in the extractor's run, or another one"
            )
        if data.classes is not None and data.classes > classes:
            raise UsageError(
                f"the extractor {extractor.source!r} knows {classes} classes, and the data has {data.classes}; "
                f"expected a classifier of at least {data.classes}, trained on the same data"
            )

    def _no_classifier(self, reason: str) -> UsageError:
        extractor = self.extractor
        return UsageError(
            f"the extractor {extractor.source!r} is a {type(extractor.model).__name__}, which {reason}; expected a "
            "classifier of images, such as extractor=lenet_fashion"
        )

    def __call__(self, task: Any, variables: Any, sampler: Any, data: Any, key: jax.Array) -> dict[str, float]:
        self.check(task, sampler, data)
        held = {"frozen": variables.get("frozen", {})}
        self._check_outputs(held, data)
        drawing, gaussian, subsets = jax.random.split(key, 3)
        read = functools.partial(self._read, held, data)

        pixels, more = _chosen(data, self.count)
        real = read([pixels])[1]
        training = read(_real(data.training_sample(self.training_images)))[1]
        other = training[: self.count] if more is None else read([more])[1]
        images, labels = self._drawn(task, variables, sampler, data, drawing)
        logits, made = read([np.clip(images, data.low, data.high)])
        normal = read([np.clip(_normal_like(pixels, gaussian), data.low, data.high)])[1]

        precision, recall = _precision_recall(real, made)
        of_real, of_made = (
            np.quantile(np.asarray(_nearest(one, training), np.float64), _QUANTILE) for one in (real, made)
        )
        if of_real == 0:
            raise UsageError(
                f"{_QUANTILE:.0%} of the validation images or more have the features of training images, so that "
                "nearest_ratio has nothing to compare copies with; expected validation images of their own"
            )
        told = {
            "fid": _frechet_distance(made, real),
            "fid_floor": _frechet_distance(other, real),
            "fid_pixel_gaussian": _frechet_distance(normal, real),
            "kid": _kernel_distance(made, real, subsets),
            "precision": precision,
            "recall": recall,
            "recall_floor": _precision_recall(real, other)[1],
            "nearest_ratio": of_made / of_real,
        }
        for name in ("fid", "recall"):
            if told[f"{name}_floor"] > 0:
                told[f"{name}_ratio"] = told[name] / told[f"{name}_floor"]
        if labels is not None:
            told["class_read"] = np.mean(np.asarray(logits).argmax(-1) == labels)
        return {name: float(value) for name, value in told.items()}

    def _check_outputs(self, held: Any, data: Any) -> None:
        """Refuses an extractor that can't take the images, or gives no logits of them."""
        shape, classes = data.shapes["images"][0][1:], class_count(self.extractor.model)
        one = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
        try:
            found = jax.eval_shape(lambda held, images: self.extractor.apply(held, images), held, one)
        except UsageError:
            raise
        except Exception as problem:  # whatever a model says to images that it is not for
            reason = " ".join(str(problem).split())[:120]
            raise self._no_classifier(f"can't take images of {_by(shape)} ({reason})") from problem
        if getattr(found, "shape", None) != (1, classes):
            raise self._no_classifier(f"gives no scores of {classes} classes for images of {_by(shape)}")

    def _drawn(
        self, task: Any, variables: Any, sampler: Any, data: Any, key: jax.Array
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """`count` images of the sampler, "count height width channels", and the classes they were drawn for."""
        found = sampler(task, variables, data, key, self.count)
        name, shape = type(sampler).__name__, tuple(data.shapes["images"][0][1:])
        if found.get("images") is None:
            raise UsageError(
                f"ImageDistances needs a sampler that gives `images`, which {name} does not: it gives "
                f"{', '.join(found)}"
            )
        images, labels = np.asarray(found["images"], np.float32), found.get("labels")
        if images.shape[1:] != shape or len(images) < self.count:
            raise UsageError(
                f"the sampler {name} gives {len(images)} images of {_by(images.shape[1:])}; expected {self.count} of "
                f"{_by(shape)}, as the data has them"
            )
        if not np.isfinite(images).all():
            raise UsageError(f"the sampler {name} gives images with values that are not finite; expected numbers")
        # Some samplers give `count` of every class, in order: as many of each.
        places = np.arange(self.count) * len(images) // self.count
        labels = None if labels is None else np.asarray(labels)[places]
        return images[places], labels

    def _read(self, held: Any, data: Any, batches: Iterable[np.ndarray]) -> tuple[jax.Array, jax.Array]:
        """Logits and features of images in the data's range, from batches of any sizes."""
        low, high = self.extractor.low, self.extractor.high
        found = []
        for images in _blocks(batches):
            # The last block is filled up, so that all of them are one program.
            rows = np.pad(images, [(0, _ROWS - len(images)), (0, 0), (0, 0), (0, 0)], mode="edge")
            rows = (low + data.unit_range(rows) * (high - low)).astype(np.float32)
            found.append([made[: len(images)] for made in _classified(self.extractor, held, rows)])
        logits, features = zip(*found)
        return jnp.concatenate(logits), jnp.concatenate(features)


@functools.partial(jax.jit, static_argnums=0)
def _classified(extractor: Any, held: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Logits "batch classes" and features "batch features"."""
    return logits_and_features(lambda: extractor.apply(held, images))


@jax.jit
def _frechet_distance(x: jax.Array, y: jax.Array) -> jax.Array:
    return frechet_distance(x, y)


@jax.jit
def _precision_recall(real: jax.Array, made: jax.Array) -> tuple[jax.Array, jax.Array]:
    return precision_recall(real, made, _NEIGHBOURS)


@jax.jit
def _kernel_distance(x: jax.Array, y: jax.Array, key: jax.Array) -> jax.Array:
    return kernel_distance(x, y, key, size=_SUBSET)[0]


@jax.jit
def _nearest(x: jax.Array, to: jax.Array) -> jax.Array:
    return nearest_distances(x, to)


def _by(shape: tuple[int, ...]) -> str:
    """A shape in a sentence: 32 x 32 x 1."""
    return " x ".join(map(str, shape))


def _real(batches: Iterable[Mapping[str, Any]]) -> Iterator[np.ndarray]:
    """The images of each batch, without what fills up the last."""
    for batch in batches:
        yield np.asarray(batch["images"])[np.flatnonzero(batch["weights"])]


def _blocks(batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The images in blocks of `_ROWS`; the last is smaller."""
    held: list[np.ndarray] = []
    for batch in batches:
        for start in range(0, len(batch), _ROWS):
            held.append(batch[start : start + _ROWS])
            if sum(map(len, held)) >= _ROWS:
                whole = np.concatenate(held)
                yield whole[:_ROWS]
                held = [whole[_ROWS:]]
    if sum(map(len, held)):
        yield np.concatenate(held)


def _validation_count(data: Any) -> int:
    """The number of validation images: as the data says, or counted."""
    told = data.facts.get("validation_images")
    return sum(map(len, _real(data.validation()))) if told is None else int(told)


def _chosen(data: Any, count: int) -> tuple[np.ndarray, np.ndarray | None]:
    """`count` validation images at random, and another `count`, or None where there are not as many.

    Raises:
      UsageError: values of pixels beyond those that the data declares.
    """
    total = _validation_count(data)
    # Not the first: an image folder is in the order of its classes.
    place = np.empty(total, np.int64)
    place[np.random.default_rng(0).permutation(total)] = np.arange(total)
    kept = 2 * count if 2 * count <= total else count
    found = np.empty((kept, *data.shapes["images"][0][1:]), np.float32)
    start = 0
    for images in _real(data.validation()):
        places = place[start : start + len(images)]
        found[places[places < kept]] = images[places < kept]
        start += len(images)
    least, most, slack = found.min(), found.max(), 1e-3 * (data.high - data.low)
    if least < data.low - slack or most > data.high + slack:
        raise UsageError(
            f"the data's pixels go from {least:g} to {most:g}, and it says that the darkest is {data.low:g} and the "
            f"brightest {data.high:g}; expected `low` and `high` of the corpus as its images have them"
        )
    return found[:count], found[count:] if kept > count else None


def _normal_like(images: np.ndarray, key: jax.Array) -> np.ndarray:
    """As many draws from the Gaussian with the images' mean and covariance."""
    x = images.reshape(len(images), -1)
    centred = x - x.mean(0)
    # A root of the covariance from the images themselves: it may be singular, as with pixels that are always black.
    root = np.linalg.qr(centred, mode="r") if len(x) > x.shape[1] else centred
    noise = np.asarray(jax.random.normal(key, (len(x), len(root))))
    return (x.mean(0) + noise @ root / np.sqrt(len(x) - 1)).astype(np.float32).reshape(images.shape)
