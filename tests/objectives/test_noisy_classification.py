"""Classification of noisy images: which images and times the classifier sees, what counts, what is refused."""

import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import arch_jax
from arch_jax.errors import UsageError
from arch_jax.models.diffusion.noisy_classifier import NoisyClassifier
from arch_jax.ops.diffusion.processes import RectifiedFlow, VariancePreserving

ROWS = 4096


class ReadsNoise(nn.Module):
    """Logits (0, z) of images of ones: z is the noise in the first pixel, if x_t and t belong together."""

    process: object
    classes: int = 2

    def __call__(self, x, time, train=False):
        alpha, sigma = self.process.coefficients(self.process.told(time))
        z = (x[:, 0, 0, 0] - alpha) / sigma
        return jnp.stack([jnp.zeros_like(z), z], axis=1)


def task(process):
    it = arch_jax.objective("noisy_classification").with_model(ReadsNoise(process))
    return arch_jax.fields.override(it, {"process": process})


def batch(rows=ROWS):
    return {"images": jnp.ones((rows, 2, 2, 1)), "labels": jnp.zeros(rows, jnp.int32), "weights": jnp.ones(rows)}


@pytest.mark.parametrize("process", [VariancePreserving(), RectifiedFlow()])
def test_images_have_the_noise_of_the_time_that_is_told(process):
    """Then the loss is E log(1 + e^z) = .806 of standard normal z, and half of the answers are right."""
    it, draw = task(process), np.random.default_rng(0).normal(size=10**6)
    expected = np.log1p(np.exp(draw)).mean()
    (total, weight), (metrics, _) = jax.jit(it.loss, static_argnums=(0, 1))(
        "model", "main", {}, batch(), jax.random.key(0), 0
    )
    for found in (metrics, jax.jit(it.evaluate)({}, batch())):
        assert float(found["loss"][0] / found["loss"][1]) == pytest.approx(expected, rel=0.03)
        assert float(found["accuracy"][0] / found["accuracy"][1]) == pytest.approx(0.5, abs=0.03)
    assert (float(total), float(weight)) == (float(metrics["loss"][0]), ROWS)


def test_times_and_noise_are_drawn_by_the_key():
    it = task(VariancePreserving())
    loss = jax.jit(lambda key: it.loss("model", "main", {}, batch(64), key, 0)[0][0])
    assert loss(jax.random.key(0)) == loss(jax.random.key(0)) != loss(jax.random.key(1))


def test_images_without_weight_do_not_count():
    it, given = task(VariancePreserving()), batch(4)
    evaluate = jax.jit(it.evaluate)
    given["weights"] = jnp.array([1.0, 1.0, 0.0, 1.0])
    metrics = evaluate({}, given)
    assert float(metrics["loss"][1]) == float(metrics["accuracy"][1]) == 3
    spoilt = given | {"images": given["images"].at[2].set(jnp.nan), "labels": given["labels"].at[2].set(-100)}
    jax.tree.map(np.testing.assert_array_equal, evaluate({}, spoilt), metrics)


def test_what_is_shown_is_as_clean_as_it_gets():
    """Predictions and figures are of the images as they are, told the first time; a batch may tell another."""
    it = task(VariancePreserving())
    images, time = it.arguments(batch(3))
    np.testing.assert_array_equal(time, 0)  # the first step of the chain, of 1 to 1000, is told as 0
    assert images.shape == (3, 2, 2, 1)
    np.testing.assert_array_equal(it.arguments(batch(3) | {"time": jnp.full(3, 7.0)})[1], 7)
    assert [type(one).__name__ for one in it.figures] == ["Predictions"]
    assert arch_jax.objective("noisy_classification", show_images=0).figures == ()


def data(**changes):
    shapes = {"images": ((8, 4, 4, 1), "float32"), "labels": ((8,), "int32")}
    return types.SimpleNamespace(**{"shapes": shapes, "classes": 3, "low": -1, "high": 1} | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": None}, "takes labelled images, and the data has images, labels; expected images and labels"),
        ({"low": 0}, "pixels go from 0 to 1, and a diffusion takes -1 to 1, .*set data.low=-1 and data.high=1"),
        ({"classes": 4}, "model.classes is 3, but the labels go up to 3; set model.classes=4"),
        ({"shapes": {"images": ((8, 8, 8, 1), "float32")}}, "the images have the shape 8 x 8 x 1, .*4 x 4 x 1 alone"),
    ],
)
def test_data_that_is_refused(changes, message):
    settings = {"resolution": 4, "channels": 1, "widths": (4,), "units": 1, "attention": (), "groups": 2}
    model = NoisyClassifier(**settings, head_size=2, classes=3)
    it = arch_jax.objective("noisy_classification").with_model(model)
    it.check(data())
    with pytest.raises(UsageError, match=message):
        it.check(data(**changes))
