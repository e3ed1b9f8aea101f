"""The measure of likelihood: nats and bits of laws that are known, rows by themselves, what is refused."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import arch_jax
from arch_jax.errors import UsageError
from arch_jax.evaluation.likelihood import bits_per_dimension, dequantised
from arch_jax.models.diffusion.exact import RING, ExactDenoiser

FLOW = arch_jax.RectifiedFlow()
KEY = jax.random.key(3)


def exact(process=FLOW, **fields):
    model = ExactDenoiser(process=process, prediction=arch_jax.VelocityPrediction(), **fields)
    return arch_jax.objective("diffusion", process=process, prediction=model.prediction).with_model(model)


class Images:
    """A corpus of one validation batch whose last row only fills it up."""

    def __init__(self, images):
        self.images, self.facts = images, {}
        self.shapes = {"images": (images[:4].shape, "float32")}

    def validation(self):
        filler = np.full_like(self.images[:1], 7)
        yield {
            "images": np.concatenate([self.images, filler]),
            "weights": np.append(np.ones(len(self.images), np.float32), 0),
        }


@dataclasses.dataclass(frozen=True)
class Blank:
    """D = E[x_0 | x_t] of pixels that are independent N(mean, std^2), as an objective of images has it."""

    model: object = dataclasses.field(default_factory=lambda: type("Model", (), {"classes": None})())
    process: object = FLOW
    prediction: object = arch_jax.VelocityPrediction()
    mean: float = 0.1
    std: float = 0.4

    def denoised(self, variables, x, time, condition=None):
        alpha, sigma = self.process.coefficients(time[:, None, None, None])
        gain = alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2)
        return self.mean + gain * (x - alpha * self.mean)


@pytest.mark.parametrize("process", [FLOW, arch_jax.NoiseLevel()], ids=["flow", "noise level"])
def test_the_truth_itself_takes_as_many_nats_as_the_law(process):
    """With N(0, 1) at the end of the one, and N(0, 80^2) at that of the other."""
    data = arch_jax.Ring(std=0.1, validation=400).load()
    found = arch_jax.Likelihood(count=300)(exact(process), {}, None, data, KEY)
    # Log p is that at the first time, whose noise of 1e-3 widens a mode of .1 by a 20,000th part of a nat.
    assert abs(found["nats_above_truth"]) < 2e-3
    some = np.sort(np.random.default_rng(0).permutation(400)[:300])
    truth = -RING.log_density(next(iter(data.validation()))["x"][some])
    assert found["nats"] == pytest.approx(truth.mean(), abs=2e-3)
    assert found["nats_error"] == pytest.approx(truth.std() / np.sqrt(300), rel=1e-2)
    assert found.keys() == {"nats", "nats_error", "nats_above_truth"}


@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_example_i_does_not_depend_on_those_beside_it(divergence):
    measure = arch_jax.Likelihood(steps=4, divergence=divergence, probes=2, batch=4)
    x = RING.draw(np.random.default_rng(0), 7).astype(np.float32)
    whole = measure.log_density(exact(), {}, x, KEY)
    assert whole.shape == (7,)
    np.testing.assert_allclose(measure.log_density(exact(), {}, x[:3], KEY), whole[:3], rtol=1e-4, atol=1e-4)
    other = measure.log_density(exact(), {}, x, jax.random.key(4))
    assert (np.abs(other - whole).max() > 1e-3) == (divergence == "hutchinson")


def test_of_a_model_with_classes_it_is_given_the_label():
    task, labels = exact(classes=8), np.arange(8)
    x = RING.means.astype(np.float32)
    found = arch_jax.Likelihood(order=4).log_density(task, {}, x, KEY, labels)
    each = [RING.component(k).log_density(x[k : k + 1])[0] for k in range(8)]
    np.testing.assert_allclose(found, each, atol=5e-3)


def test_bits_a_dimension_of_images_in_closed_form():
    """Of N(m, s^2) pixels: the cross entropy of the dequantised pixels, in bits, and log2 of a level's width."""
    levels = np.random.default_rng(0).integers(0, 256, (200, 4, 4, 1))
    images = (levels / 127.5 - 1).astype(np.float32)
    task = Blank()
    measure = arch_jax.Likelihood(divergence="hutchinson", probes=1, steps=16)  # a diagonal Jacobian: signs are exact
    found = measure(task, {}, None, Images(images), KEY)
    # E (z - m)^2 of z uniform within a level is (level - m)^2 + width^2 / 12
    square = ((images.astype(np.float64) - task.mean) ** 2 + (2 / 255) ** 2 / 12).mean()
    nats = 0.5 * np.log(2 * np.pi * task.std**2) + square / (2 * task.std**2)
    expected = nats / np.log(2) - np.log2(2 / 255)
    assert found["bits_per_dimension"] == pytest.approx(expected, abs=5e-3)
    assert found["nats"] == pytest.approx(16 * nats, rel=2e-3)
    assert found.keys() == {"nats", "nats_error", "bits_per_dimension"}


def test_uniform_images_take_eight_bits():
    """A density that is uniform over all 256 levels, of width 256 * 2 / 255."""
    assert bits_per_dimension(12 * np.log(256 * 2 / 255), 12) == pytest.approx(8)


def test_dequantised_pixels_stay_within_half_a_level():
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (50, 4, 4, 3)) / 127.5 - 1, jnp.float32)
    keys = jax.random.split(KEY, 50)
    moved = np.asarray(dequantised(images, keys) - images) * 255 / 2
    assert -0.501 < moved.min() < -0.49
    assert 0.49 < moved.max() < 0.501
    assert abs(moved.mean()) < 0.03
    np.testing.assert_allclose(moved.var(), 1 / 12, rtol=0.05)
    np.testing.assert_array_equal(dequantised(images[:3], keys[:3]), dequantised(images, keys)[:3])


def test_data_that_is_neither_points_nor_images_has_none():
    data = types.SimpleNamespace(shapes={"tokens": ((2, 3), "int32")})
    assert arch_jax.Likelihood()(exact(), {}, None, data, KEY) == {}


def test_what_has_no_likelihood_is_refused():
    data = arch_jax.Ring(validation=10).load()
    with pytest.raises(UsageError, match="the data has none; expected data with labels"):
        arch_jax.Likelihood().check(exact(classes=8), None, data)
    with pytest.raises(UsageError, match="Likelihood needs `process` of the objective"):
        arch_jax.Likelihood().check(arch_jax.objective("autoencode").with_model(exact().model), None, data)
