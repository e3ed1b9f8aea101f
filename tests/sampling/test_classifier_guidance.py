"""Classifier guidance, by an exact denoiser and an exact classifier; and which classifiers are refused."""

import dataclasses
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import arch_jax
from arch_jax.errors import UsageError
from arch_jax.models.diffusion.exact import RING, ExactDenoiser
from arch_jax.models.diffusion.noisy_classifier import NoisyClassifier
from arch_jax.ops.diffusion.guidance import class_gradient, classifier_weights
from arch_jax.train import train
from arch_jax.train.given import open_parts
from arch_jax.trained import Frozen

CHAIN = arch_jax.VariancePreserving()
KEY, LABELS = jax.random.key(7), np.array([0, 3, 3, 5])


class ExactClassifier(nn.Module):
    """log p(component | x_t) of the ring of 8 Gaussians, up to what all classes have in common."""

    process: object = CHAIN
    classes: int = 8

    def __call__(self, x, time, train=False):
        alpha, sigma = (part[:, None] for part in self.process.coefficients(self.process.told(time)))
        means, variance = jnp.asarray(RING.means, x.dtype), jnp.asarray(RING.variances[:, 0], x.dtype)
        away = jnp.square(x[:, None] - alpha[..., None] * means).sum(-1)
        return -0.5 * away / (alpha**2 * variance + sigma**2)


class Half(nn.Module):
    """A denoiser of images of 8 x 8, without parameters."""

    resolution: int = 8
    channels: int = 1

    def __call__(self, x, time, condition=None, train=False):
        return 0.5 * x


def part(model, **fields):
    """An opened classifier, and the variables that hold it."""
    return Frozen("here", model=model, sha256="0", **fields), {"frozen": {"0": {}}}


def task(process=CHAIN, prediction=None, **fields):
    prediction = prediction or arch_jax.NoisePrediction()
    model = ExactDenoiser(process=process, prediction=prediction, **fields)
    return arch_jax.objective("diffusion", process=process, prediction=prediction).with_model(model)


FLOW = (arch_jax.RectifiedFlow(), arch_jax.FlowPrediction())
VP = (CHAIN, None)


@pytest.mark.parametrize(
    ("sampler", "scale", "kind"),
    [
        (arch_jax.DDIM(steps=12), 3.0, VP),
        (arch_jax.DPMSolver(steps=12), 2.0, FLOW),
        pytest.param(arch_jax.DDPM(steps=12), 2.0, VP, marks=pytest.mark.thorough),
        pytest.param(arch_jax.Heun(steps=6), 1.0, VP, marks=pytest.mark.thorough),
        pytest.param(arch_jax.DPMSolver(steps=12, stochastic=True), 2.0, VP, marks=pytest.mark.thorough),
    ],
)
def test_without_error_it_is_classifier_free_guidance(sampler, scale, kind):
    """sigma^2 / alpha times the gradient of log p(y | x_t) is then exactly D of the class less D of all of them.

    So a model without classes and a classifier draw what a model with classes and guidance of the same scale draws. A
    flow sets out from a part of the way, as its first call is of noise alone.
    """

    def drawn(sampler, task, variables, labels=LABELS):
        if kind is FLOW:
            return sampler.edit(task, variables, KEY, np.zeros((4, 2)), 0.75, labels)
        return sampler.draw(task, variables, KEY, 4, labels)

    classifier, variables = part(ExactClassifier(kind[0]))
    found = drawn(dataclasses.replace(sampler, classifier=classifier, classifier_scale=scale), task(*kind), variables)
    expected = drawn(dataclasses.replace(sampler, guidance=scale), task(*kind, classes=8), {})
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert np.abs(found - drawn(sampler, task(*kind), {}, None)).max() > 0.3


def test_both_guidances_add_up():
    """Of a model with classes the classifier moves the guided D further: here as twice the scale less 1 without it."""
    classifier, variables = part(ExactClassifier())
    sampler = arch_jax.DDIM(steps=12, guidance=2.0, classifier=classifier, classifier_scale=1.0)
    found = sampler.draw(task(classes=8), variables, KEY, 4, LABELS)
    expected = arch_jax.DDIM(steps=12, guidance=3.0).draw(task(classes=8), {}, KEY, 4, LABELS)
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_a_scale_of_0_and_a_level_outside_of_the_interval_guide_nowhere():
    classifier, variables = part(ExactClassifier())
    plain = arch_jax.DDIM(steps=12).draw(task(), {}, KEY, 4)
    for settings in ({"classifier_scale": 0.0}, {"guidance_interval": (1e-6, 1e-5)}):
        sampler = arch_jax.DDIM(steps=12, classifier=classifier, **settings)
        np.testing.assert_array_equal(sampler.draw(task(), variables, KEY, 4, LABELS), plain)


def test_gradients_are_of_each_example_and_of_its_own_label():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32)
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(4, 5)), jnp.float32)
    labels = jnp.array([0, 4, 2])
    found = class_gradient(lambda x: (x @ weights).astype(jnp.bfloat16), x, labels)
    p = jax.nn.softmax(x @ weights)
    np.testing.assert_allclose(found, weights.T[labels] - p @ weights.T, atol=2e-2)


def test_noise_alone_is_not_guided():
    alpha, sigma = np.array([0.0, 0.6, 1.0]), np.array([1.0, 0.8, 0.0])
    np.testing.assert_allclose(classifier_weights(alpha, sigma, 3.0), [0.0, 3 * 0.64 / 0.6, 0.0])
    np.testing.assert_allclose(classifier_weights(alpha, sigma, np.array([1.0, 0.0, 1.0])), 0)


def test_labels_of_a_model_without_classes_are_the_classifier_s():
    classifier, variables = part(ExactClassifier())
    data = arch_jax.Ring(std=0.1, batch=8, validation=40).load()
    sampler = arch_jax.DDIM(steps=4, classifier=classifier, labels=(6, 1))
    sampler.check(task(), data)
    made = sampler(task(), variables, data, KEY, 3)
    np.testing.assert_array_equal(made["labels"], [6, 1, 6])
    np.testing.assert_array_equal(dataclasses.replace(sampler, labels=None).labels_of(task(), 10)[-3:], [7, 0, 1])
    unopened = dataclasses.replace(sampler, classifier=Frozen("here"))
    unopened.check(task(), data)  # train asks again when it is open


SMALL = {"resolution": 4, "widths": (4,), "units": 1, "attention": (), "groups": 2, "head_size": 2}
IMAGES = types.SimpleNamespace(
    process=CHAIN,
    prediction=arch_jax.NoisePrediction(),
    model=arch_jax.create("ddpm-cifar10", resolution=4, widths=(4,), groups=2, attention=(), classes=3),
)
PIXELS = types.SimpleNamespace(low=-1, high=1)


@pytest.mark.parametrize(
    ("model", "fields", "message"),
    [
        (
            NoisyClassifier(**SMALL, classes=2),
            {},
            "'here' knows 2 classes, and the model has 3; expected at least as m",
        ),
        (NoisyClassifier(**SMALL | {"resolution": 8}), {}, "the images have the shape 4 x 4 x 3, .* 8 x 8 x 3 alone"),
        (
            NoisyClassifier(**SMALL),
            {"low": 0.0, "high": 1.0},
            "trained on pixels from 0 to 1, and the data's go from -1",
        ),
        (arch_jax.create("lenet5"), {}, "'here' is a LeNet5, which is no classifier of noisy examples; expected a run"),
        (IMAGES.model, {}, "is a DDPMUNet, which is no classifier of noisy examples"),
    ],
)
def test_classifiers_that_are_refused(model, fields, message):
    arch_jax.DDIM(classifier=part(NoisyClassifier(**SMALL), low=-1.0, high=1.0)[0]).check(IMAGES, PIXELS)
    with pytest.raises(UsageError, match=message):
        arch_jax.DDIM(classifier=part(model, **fields)[0]).check(IMAGES, PIXELS)


def test_settings_that_are_refused():
    classifier, variables = part(ExactClassifier())
    with pytest.raises(UsageError, match=r"classifier_scale is 2\.0 without classifier; expected the folder of a run"):
        arch_jax.DDIM(classifier_scale=2.0)
    with pytest.raises(UsageError, match="there is a classifier and no label to guide to; expected labels, one for ea"):
        arch_jax.DDIM(steps=4, classifier=classifier).draw(task(), variables, KEY, 4)
    data = arch_jax.Ring(std=0.1, batch=8, validation=40).load()
    with pytest.raises(UsageError, match=r"sampler\.labels has 8; expected classes from 0 to 7"):
        arch_jax.DDIM(classifier=classifier, labels=(8,)).check(task(), data)


@pytest.mark.thorough
def test_the_classifier_of_a_run_guides_another_model(tmp_path):
    """It is opened by its folder, knows the images it was trained on, and draws the class asked for of each sample."""
    data = arch_jax.Images(source="digits", batch=8, low=-1.0, high=1.0)
    small = {"resolution": 8, "channels": 1, "widths": (4,), "units": 1, "attention": (), "groups": 2}
    model = NoisyClassifier(**small, head_size=2, classes=10)
    run = arch_jax.Experiment(model, arch_jax.objective("noisy_classification"), data, steps=2)
    train(run.overridden({"evaluate_every": 2, "figures": "[]"}), tmp_path)
    sampler = arch_jax.DDIM(steps=3, labels=(2, 7), classifier=Frozen(str(tmp_path)), classifier_scale=5.0)
    sampler, held = open_parts(sampler, "sampler.")
    assert (sampler.classifier.low, sampler.classifier.high, sampler.classifier.shape) == (-1.0, 1.0, (8, 8, 1))
    images = arch_jax.objective("diffusion").with_model(Half())
    corpus = data.load()
    sampler.check(images, corpus)
    made = sampler(images, {"frozen": held}, corpus, KEY, 4)
    np.testing.assert_array_equal(made["labels"], [2, 7, 2, 7])
    unguided = dataclasses.replace(sampler, classifier_scale=0.0)(images, {"frozen": held}, corpus, KEY, 4)
    assert np.abs(unguided["images"] - made["images"]).max() > 1e-4
