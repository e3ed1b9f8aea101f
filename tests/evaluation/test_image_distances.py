"""Distances of images in a classifier's features: what each number says of samples that are known to be good or bad."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import arch_jax
from arch_jax import fields
from arch_jax.errors import UsageError
from arch_jax.evaluation import image_distances as module
from arch_jax.evaluation.image_distances import ImageDistances
from arch_jax.train import open_run, train
from arch_jax.train.given import open_parts
from arch_jax.train.workdir import read_config
from arch_jax.trained import Frozen

#: The classifier's pixels go from -0.1 to 1.175, as in the paper, and the samples' from -1 to 1.
SEEN = arch_jax.Images(source="digits", batch=64, resize=28, pad=2, low=-0.1, high=1.175)
DATA = dataclasses.replace(SEEN, low=-1.0, high=1.0, validation=0.4)
COUNT = 200
TASK = arch_jax.objective("classify").with_model(arch_jax.create("mlp", hidden=(8,)))


@fields.component("test_fake_images", kind="sampler")
@dataclasses.dataclass(frozen=True)
class Fake(arch_jax.Sampler):
    """Whatever it is given, or noise."""

    given: Any = None
    uses_data = False

    def __call__(self, task, variables, data, key, count=1):
        if self.given is None:
            return {"images": jax.random.uniform(key, (count, *data.shapes["images"][0][1:]), minval=-1)}
        return self.given(count)


@pytest.fixture(scope="module")
def lenet():
    """(the opened extractor, variables that hold it): LeNet-5 after 60 steps of Adam, 95 % of the digits right."""
    model, corpus = arch_jax.create("lenet5"), SEEN.load()
    stream = corpus.train(0)
    batches = [next(stream) for _ in range(60)]
    variables = jax.jit(model.init)(jax.random.key(0), batches[0]["images"])
    optimizer = optax.adam(1e-2)

    def loss(params, others, batch):
        logits, others = model.apply({"params": params, **others}, batch["images"], train=True, mutable=[*others])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"]).mean(), others

    @jax.jit
    def step(params, others, state, batch):
        slope, others = jax.grad(loss, has_aux=True)(params, others, batch)
        change, state = optimizer.update(slope, state)
        return optax.apply_updates(params, change), others, state

    variables = dict(variables)
    params, state = variables.pop("params"), None
    state = optimizer.init(params)
    for batch in batches:
        params, variables, state = step(params, variables, state, batch)
    part = Frozen("here", model=model, sha256="0", low=-0.1, high=1.175, shape=(32, 32, 1))
    return part, {"frozen": {"0": {"params": params, **variables}}}


@pytest.fixture(scope="module")
def images():
    """The corpus; validation images that the measure does not compare with; and training images."""
    corpus = DATA.load()
    whole = next(iter(corpus.validation(10_000)))
    rest = np.random.default_rng(0).permutation(int(whole["weights"].sum()))[2 * COUNT :]
    pick = lambda batch, rows: {name: batch[name][rows] for name in ("images", "labels")}
    training = next(iter(corpus.training_sample(10_000, 2_000)))
    return corpus, pick(whole, rest), pick(training, np.flatnonzero(training["weights"]))


@pytest.fixture(scope="module")
def measured(lenet, images):
    part, variables = lenet

    def measure(given):
        it = ImageDistances(extractor=part, count=COUNT, training_images=500)
        return it(TASK, variables, Fake(given), images[0], jax.random.key(0))

    return measure


def repeated(batch, chosen=slice(None)):
    """A sampler's images and labels: some of a batch, again and again."""
    places = np.arange(len(batch["labels"]))[chosen]
    return lambda count: {name: array[np.resize(places, count)] for name, array in batch.items()}


@pytest.fixture(scope="module")
def of_real(measured, images):
    """The numbers of real images."""
    return measured(repeated(images[1]))


def test_real_images_are_about_as_far_as_the_floor(of_real):
    found = of_real
    assert 0.5 < found["fid_ratio"] < 2
    assert found["fid_ratio"] == pytest.approx(found["fid"] / found["fid_floor"])
    assert found["recall_ratio"] == pytest.approx(found["recall"] / found["recall_floor"])
    assert abs(found["kid"]) < 0.003
    assert found["precision"] > 0.8
    assert abs(found["recall"] - found["recall_floor"]) < 0.1 < 0.8 < found["recall_floor"]
    assert found["class_read"] > 0.85
    assert 0.6 < found["nearest_ratio"] < 1.7
    # Pairs of pixels alone are less.
    assert found["fid_pixel_gaussian"] > 1.7 * max(found["fid"], found["fid_floor"])
    assert set(found) == {
        *("fid", "fid_floor", "fid_pixel_gaussian", "kid", "precision", "recall", "recall_floor", "class_read"),
        *("fid_ratio", "recall_ratio"),
        "nearest_ratio",
    }


def test_noise_is_far(measured):
    found = measured(None)
    assert found["fid"] > 10 * found["fid_floor"]
    assert found["kid"] > 0.01
    assert found["precision"] < 0.5
    assert found["recall"] < 0.2 < found["recall_floor"]
    assert found["nearest_ratio"] > 2
    assert "class_read" not in found


def test_one_class_is_precise_and_recalls_little(measured, images):
    _, rest, _ = images
    found = measured(repeated(rest, rest["labels"] == 3))
    assert found["precision"] > 0.8
    assert found["recall"] < 0.3
    assert found["fid"] > 5 * found["fid_floor"]


def test_copies_of_training_images_are_noticed(measured, images):
    """By this number alone: by the others copies are as good as real images, or nearly."""
    _, rest, training = images
    found = measured(repeated(training))
    assert found["nearest_ratio"] < 1e-3
    assert found["fid"] < 4 * found["fid_floor"]
    assert min(found["precision"], found["recall"]) > 0.8
    # A tenth of copies is enough.
    mixed = repeated(rest)(COUNT)
    mixed["images"][:: COUNT // 20] = training["images"][:20]
    assert measured(lambda count: mixed)["nearest_ratio"] < 1e-3


def test_labels_say_what_was_asked_for_and_samples_are_clipped(measured, images, of_real):
    """Other labels change one number; pixels beyond the brightest none, as in an image's file."""
    _, rest, _ = images
    bright = np.where(rest["images"] == rest["images"].max(), 50, rest["images"])
    swapped = measured(repeated({"images": bright, "labels": (rest["labels"] + 1) % 10}))
    assert swapped["class_read"] < 0.1 < 0.85 < of_real["class_read"]
    assert {**of_real, "class_read": 0} == {**swapped, "class_read": 0}


def test_pixels_of_two_ranges(images, lenet):
    """The classifier sees its own range: what it reads of -1 ... 1 is what it reads of -0.1 ... 1.175."""
    part, variables = lenet
    mine, own = (
        next(iter(one.validation()))["images"] for one in (images[0], dataclasses.replace(SEEN, validation=0.4).load())
    )
    logits, _ = ImageDistances(extractor=part, count=COUNT)._read(variables, images[0], [mine])
    scores = jax.jit(part.apply)
    np.testing.assert_allclose(logits, scores(variables, own), atol=1e-4)
    assert np.abs(scores(variables, mine) - logits).max() > 1


@pytest.mark.thorough
def test_a_sampler_that_gives_as_many_of_every_class(measured, images):
    """The samplers of conditional autoencoders do: an even choice of them is taken."""
    _, rest, _ = images
    order = np.argsort(rest["labels"], kind="stable")
    ordered = {name: np.repeat(array[order], 4, axis=0) for name, array in rest.items()}
    found = measured(lambda count: ordered)
    assert found["recall"] > 0.6
    assert found["fid"] < 3 * found["fid_floor"]


def test_real_images_are_chosen_once_each(images):
    """There are 719: of 360 there are no other 360 for the floor, which then takes training images."""
    corpus = images[0]
    pixels, more = module._chosen(corpus, 359)
    assert pixels.shape == more.shape == (359, 32, 32, 1)
    whole = next(iter(corpus.validation(719)))["images"]
    found = {image.tobytes() for image in [*pixels, *more]}
    assert len(found) > 700  # no image twice, but for a few that the data has twice
    assert found <= {image.tobytes() for image in whole}
    assert module._chosen(corpus, 360)[1] is None


@pytest.mark.thorough
def test_floors_of_training_images(lenet, images):
    part, variables = lenet
    found = ImageDistances(extractor=part, count=400)(TASK, variables, Fake(), images[0], jax.random.key(0))
    assert 0 < found["fid_floor"] < found["fid_pixel_gaussian"]
    assert found["recall_floor"] > 0.8


def test_the_pixels_gaussian_has_their_moments():
    """With more images than pixels, and with fewer; constant pixels stay constant."""
    for count, side in ((4000, 3), (40, 8)):
        images = (
            np.random.default_rng(0).normal(size=(count, side, side, 1)) * np.linspace(0, 2, side)[:, None, None] + 3
        )
        images = (images + images[:, :, ::-1]).astype("f4")
        drawn = np.concatenate([module._normal_like(images, jax.random.key(i)) for i in range(1 if side == 3 else 60)])
        x, y = images.reshape(count, -1), drawn.reshape(-1, side * side)
        np.testing.assert_allclose(y.mean(0), x.mean(0), atol=0.25)
        np.testing.assert_allclose(np.cov(y.T), np.cov(x.T), atol=0.15 * np.cov(x.T).max())
        np.testing.assert_allclose(y[:, 0], x[0, 0], rtol=1e-5)
        assert np.abs(y.std(0)[-1] / x.std(0)[-1] - 1) < 0.1


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"extractor": None}, "extractor is none; expected a trained classifier of such images: .*lenet_fashion"),
        ({"count": 720}, "count is 720, and the data has 719 validation images; expected at most 719"),
        ({"low": None}, r"which values of pixels the extractor 'here' was trained on; expected .*extractor\.low"),
        ({"low": 2.0}, "extractor.low is 2.* and extractor.high is 1.175; expected low below high"),
        ({"shape": (28, 28, 1)}, "trained on images of 28 x 28 x 1, and the data has 32 x 32 x 1; expected the same"),
        ({"shape": (32, 32, 3)}, "trained on images of 32 x 32 x 3, and the data has 32 x 32 x 1; expected the same"),
        ({"model": "gpt2"}, "'here' is a Decoder, which has no classes; expected a classifier of images, such as"),
        ({"model": "mlp"}, r"'here' is a MultilayerPerceptron, which can't take images of 32 x 32 x 1 \("),
        ({"model": "dit-s-8"}, "'here' is a .*, which can't take images of 32 x 32 x 1"),
    ],
)
def test_what_does_not_fit_is_refused(changes, sentence, lenet, images):
    part, variables = lenet
    if "model" in changes:
        changes = {"model": arch_jax.create(changes["model"])}
    own = {name: changes.pop(name) for name in ("extractor", "count") if name in changes}
    it = ImageDistances(**{"extractor": dataclasses.replace(part, **changes), "count": COUNT} | own)
    with pytest.raises(UsageError, match=sentence):
        it(TASK, variables, Fake(), images[0], jax.random.key(0))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (lambda n: {"text": "a"}, "needs a sampler that gives `images`, which Fake does not: it gives text"),
        (lambda n: {"images": np.zeros((n, 28, 28, 1))}, "Fake gives 200 images of 28 x 28 x 1; expected 200 of 32 x"),
        (lambda n: {"images": np.zeros((3, 32, 32, 1))}, "Fake gives 3 images of 32 x 32 x 1; expected 200 of 32 x 32"),
        (lambda n: {"images": np.full((n, 32, 32, 1), np.nan)}, "gives images with values that are not finite"),
    ],
)
def test_samplers_that_do_not_give_such_images(given, sentence, measured):
    with pytest.raises(UsageError, match=sentence):
        measured(given)


def test_data_that_can_not_be_compared(lenet, images):
    part, variables = lenet
    it = ImageDistances(extractor=part, count=COUNT)
    with pytest.raises(UsageError, match="ImageDistances needs 'images' in the data's batches, which have"):
        it.check(TASK, Fake(), arch_jax.Ring().load())

    class Corpus(type(images[0])):
        def __init__(self, **changes):
            vars(self).update(vars(images[0]), **changes)

    with pytest.raises(UsageError, match="ImageDistances needs `training_sample` of the data"):
        it.check(TASK, Fake(), Corpus(training_sample=None))
    with pytest.raises(UsageError, match="knows 10 classes, and the data has 12; expected a classifier of at least 12"):
        it.check(TASK, Fake(), Corpus(classes=12))
    with pytest.raises(UsageError, match="pixels go from -1 to 1, and it says that the darkest is 0"):
        it(TASK, variables, Fake(), Corpus(low=0.0), jax.random.key(0))
    copied = Corpus(training_sample=lambda count: images[0].validation())
    with pytest.raises(UsageError, match="5% of the validation images or more have the features of training images"):
        it(TASK, variables, Fake(), copied, jax.random.key(0))
    # A corpus that does not say how many it has: they are counted.
    bare = Corpus(facts={})
    with pytest.raises(UsageError, match="count is 720, and the data has 719 validation images"):
        dataclasses.replace(it, count=720).check(TASK, Fake(), bare)


# -- as a part of a run ------------------------------------------------------------------------------------------------


def experiment(data=DATA, **changes):
    it = arch_jax.Experiment(
        arch_jax.create("mlp", hidden=(8,)), arch_jax.objective("classify"), data, steps=2, sampler=Fake()
    )
    return dataclasses.replace(it.overridden({"figures": "[]"}), **changes)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    train(experiment(SEEN), folder)
    return folder


@pytest.mark.thorough
def test_a_run_is_measured_and_knows_the_extractor_by_its_data(classifier, tmp_path):
    measure = ImageDistances(extractor=Frozen(str(classifier)), count=50, training_images=100)
    outcome = train(experiment(measures=(measure,)), tmp_path)
    assert {"fid", "fid_floor", "nearest_ratio"} <= outcome.validation.keys()
    stored = read_config(tmp_path)["experiment"]["measures"][0]["extractor"]
    assert (stored["low"], stored["high"], stored["shape"]) == (-0.1, 1.175, [32, 32, 1])
    # A run of before these were known is the same run.
    config = json.loads((tmp_path / "config.json").read_text())
    for name in ("low", "high", "shape"):
        del config["experiment"]["measures"][0]["extractor"][name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert train(experiment(measures=(measure,)), tmp_path).validation == pytest.approx(outcome.validation)
    assert open_run(tmp_path).experiment.measures[0].extractor.high == 1.175
    # On other data nothing is measured, so that it may have fewer images than a measure takes.
    assert "fid" not in open_run(tmp_path).evaluate(dataclasses.replace(DATA, validation=0.01))


@pytest.mark.thorough
def test_an_extractor_that_does_not_fit_is_refused_before_the_training(classifier, tmp_path):
    measure = ImageDistances(extractor=Frozen(str(classifier)), count=50)
    with pytest.raises(UsageError, match="was trained on images of 32 x 32 x 1, and the data has 28 x 28 x 1"):
        train(experiment(dataclasses.replace(DATA, pad=0), measures=(measure,)), tmp_path)
    assert not (tmp_path / "config.json").exists()
    told = dataclasses.replace(measure, extractor=Frozen(str(classifier), low=0.0))
    with pytest.raises(UsageError, match=r"measures\.0\.extractor\.low is 0.0, and .* was trained with -0.1; expected"):
        train(experiment(measures=(told,)), tmp_path)


def test_an_extractor_is_named_by_text():
    changes = {"measures.0.extractor": "lenet_fashion", "measures.0.count": 500}
    it = experiment(measures=(ImageDistances(),)).overridden(changes)
    assert it.measures == (ImageDistances(extractor=Frozen("lenet_fashion"), count=500),)


@pytest.mark.thorough
def test_a_checkpoint_s_pixels_can_be_given(tmp_path, images):
    """What a checkpoint does not know is asked for, and taken from the field."""
    model = arch_jax.create("resnet-18", classes=10, **{"blocks": "[1, 1]", "width": 4})
    variables = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    arch_jax.save_pretrained(model, variables, tmp_path)
    opened, held = open_parts(ImageDistances(extractor=Frozen(str(tmp_path)), count=50), "measures.0.")
    with pytest.raises(UsageError, match=r"which values of pixels the extractor .* was trained on"):
        opened.check(TASK, Fake(), images[0])
    told, _ = open_parts(ImageDistances(extractor=Frozen(str(tmp_path), low=0.0, high=1.0), count=50), "measures.0.")
    with pytest.raises(UsageError, match="is a ResNet, which can't take images of 32 x 32 x 1"):  # three channels
        told(TASK, {"frozen": held}, Fake(), images[0], jax.random.key(0))
