"""An image model with data and a figure of one's own: discs and squares under noise.

arch-jax train examples/discs_and_squares.py
arch-jax sample runs/discs_and_squares-1 --count 5 --import examples/discs_and_squares.py
ARCH_JAX_IMPORT=examples/discs_and_squares.py python -m pytest tests/contract -m "" -k shape-classifier
"""

import dataclasses
import hashlib

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

import arch_jax


@arch_jax.component("discs_and_squares", kind="data")
@dataclasses.dataclass(frozen=True)
class DiscsAndSquares:
    """Images "size size 1" of a disc (class 0) or a square (class 1) of random place and size, under normal noise.

    Attributes:
      size: resolution.
      noise: standard deviation of the noise; the shape is 1 and the background 0.
      batch: images in a training batch.
      validation: validation images.
    """

    size: int = 16
    noise: float = 0.5
    batch: int = 32
    validation: int = 256

    def __post_init__(self):
        if self.size < 8:
            raise arch_jax.UsageError(f"size is {self.size}; expected at least 8, which a shape fits into")

    def load(self):
        """The corpus; nothing is read."""
        return DrawnShapes(self)


class DrawnShapes(arch_jax.Corpus):
    """The data of `DiscsAndSquares`, drawn batch by batch: batch i of a seed is a function of both alone."""

    unit = "images"
    classes = 2
    class_names = ("disc", "square")

    def __init__(self, data):
        self.data = data
        # No training batch is drawn from a spawned sequence.
        self.held_out = self.draw(np.random.default_rng(np.random.SeedSequence(0, spawn_key=(1,))), data.validation)
        digest = hashlib.sha256(self.held_out["images"].tobytes()).hexdigest()
        self.facts = {"source": "discs_and_squares", "sha256": digest}

    @property
    def shapes(self):
        """Shape and dtype of each array of a training batch."""
        batch, size = self.data.batch, self.data.size
        images = ((batch, size, size, 1), "float32")
        return {"images": images, "labels": ((batch,), "int32"), "weights": ((batch,), "float32")}

    def draw(self, generator, count):
        """`count` images with their labels."""
        size = self.data.size
        labels = generator.integers(2, size=count)
        radius = generator.uniform(2, size / 4, size=(count, 1, 1))
        y, x = generator.uniform(radius.ravel(), size - 1 - radius.ravel(), size=(2, count))[..., None, None]
        down, across = np.abs(np.arange(size)[:, None] - y), np.abs(np.arange(size)[None, :] - x)
        inside = np.where(labels[:, None, None] == 0, np.hypot(down, across), np.maximum(down, across)) <= radius
        images = inside + self.data.noise * generator.standard_normal((count, size, size))
        return {
            "images": images[..., None].astype(np.float32),
            "labels": labels.astype(np.int32),
            "weights": np.ones(count, np.float32),
        }

    def train(self, seed, shard=(0, 1)):
        """Endless training batches, as a Grain iterator that can be saved and restored."""

        def rows(number, first, last):
            batch = self.draw(np.random.default_rng([int(seed), number]), self.data.batch)
            return {name: array[first:last] for name, array in batch.items()}

        return arch_jax.stream(rows, self.data.batch, seed, shard)

    def validation(self):
        """The validation images, in batches of the training batch's size."""
        rows = lambda chosen: {name: array[chosen] for name, array in self.held_out.items()}
        return arch_jax.ValidationBatches(rows, self.data.validation, self.data.batch)


@arch_jax.component("shape_classifier", kind="model")
class ShapeClassifier(nn.Module):
    """A convolution, global maximum pooling, and a linear classifier.

    Attributes:
      classes: how many classes there are.
      filters: of the convolution, 5 x 5 each.
      dtype: of the computation.
    """

    classes: int = 2
    filters: int = 16
    dtype: arch_jax.DType = jnp.float32

    @nn.compact
    def __call__(self, images, train=False):
        """Logits "batch classes" of images "batch height width channels"."""
        x = nn.relu(nn.Conv(self.filters, (5, 5), dtype=self.dtype, name="filters_of_shapes")(images))
        return arch_jax.Dense(self.classes, dtype=self.dtype, name="classifier")(jnp.max(x, axis=(1, 2)))


@arch_jax.register(
    "shape-classifier",
    family="cnn",
    objective="classify",
    inputs=arch_jax.images(16, channels=1),
    paper=arch_jax.Paper(
        "Gradient-Based Learning Applied to Document Recognition", "LeCun et al.", 1998, url="doi:10.1109/5.726791"
    ),
    parameters=16 * 25 + 16 + 2 * 16 + 2,
    reference="none",
)
def shape_classifier():
    """16 filters, 450 parameters."""
    return ShapeClassifier()


@arch_jax.component("filters", kind="figure")
@dataclasses.dataclass(frozen=True)
class Filters(arch_jax.Figure):
    """The convolution's kernels as images, scaled to [0, 1] together."""

    def __call__(self, task, variables, sampler, data, key):
        kernels = np.moveaxis(np.asarray(variables["params"]["filters_of_shapes"]["kernel"]), -1, 0)
        low, high = kernels.min(), kernels.max()
        return {"filters": arch_jax.image_grid({"": (kernels - low) / (high - low)}, "kernels")}


def config():
    """Some 81 % of the validation images after 10 seconds on 2 CPU cores; the smallest shapes drown in the noise."""
    objective = arch_jax.objective("classify")
    return arch_jax.Experiment(
        model=arch_jax.create("shape-classifier"),
        objective=objective,
        data=DiscsAndSquares(),
        optimizer=arch_jax.Optimizer(learning_rate=3e-3),
        steps=600,
        evaluate_every=200,
        checkpoint_every=200,
        figures=(*objective.figures, Filters()),
    )
