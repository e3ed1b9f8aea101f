"""Augmentation: what each step does, that runs can be repeated and sharded, and mixed images' losses."""

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

import arch_jax
from arch_jax.data.images.augmentation import OPERATIONS, Augmentation, randomly_operated
from arch_jax.ops.losses import cross_entropy

EVERYTHING = Augmentation(0.3, flip=0.5, operations=2, strength=12, crop=2, erase=0.5, mixup=0.4, cutmix=1.0)


def generator(seed=0):
    return np.random.default_rng(seed)


def random_image(height=12, width=10, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def data(augment, **fields):
    return arch_jax.Images(**({"batch": 8, "augment": augment} | fields)).load()


def test_nothing_is_what_there_was():
    plain, off = next(iter(data(Augmentation()).train(3))), next(iter(data(Augmentation(strength=30)).train(3)))
    assert plain.keys() == off.keys() == {"images", "labels", "weights"}
    np.testing.assert_allclose(off["images"], plain["images"], rtol=1e-6)
    np.testing.assert_array_equal(off["labels"], plain["labels"])


def test_the_seed_determines_everything_and_shards_are_parts():
    corpus = data(EVERYTHING)
    first, again, other = (iter(corpus.train(seed)) for seed in (0, 0, 1))
    for _ in range(3):
        a, b = next(first), next(again)
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
        assert {name: (value.shape, str(value.dtype)) for name, value in a.items()} == corpus.shapes
    assert not np.array_equal(a["images"], [next(other) for _ in range(3)][-1]["images"])
    halves = [iter(corpus.train(0, shard=(index, 2))) for index in (0, 1)]
    whole = next(iter(corpus.train(0)))
    parts = [next(half) for half in halves]
    for name in whole:
        np.testing.assert_array_equal(whole[name], np.concatenate([part[name] for part in parts]))


def test_it_goes_on_from_a_state():
    corpus = data(EVERYTHING)
    iterator = iter(corpus.train(0))
    next(iterator)
    state = iterator.get_state()
    expected = next(iterator)
    again = iter(corpus.train(0))
    again.set_state(state)
    np.testing.assert_array_equal(next(again)["images"], expected["images"])


def test_images_differ_from_epoch_to_epoch_and_validation_does_not_change():
    count = data(Augmentation()).facts["train_images"]
    corpus = data(Augmentation(crop=1), batch=count)
    labels, found = [], []
    iterator = iter(corpus.train(0))
    for _ in range(2):
        batch = next(iterator)
        labels.append(np.sort(batch["labels"]))
        found.append(batch["images"][np.lexsort(batch["images"].reshape(count, -1).T)])
    np.testing.assert_array_equal(*labels)
    assert not np.array_equal(*found)
    plain = next(iter(data(Augmentation()).validation()))
    np.testing.assert_array_equal(next(iter(data(EVERYTHING).validation()))["images"], plain["images"])


def test_flip_mirrors_the_share():
    x = random_image()
    flipped = [not np.array_equal(Augmentation(flip=0.3).pixels(x, generator(i), None, 255), x) for i in range(400)]
    assert 0.22 < np.mean(flipped) < 0.38
    np.testing.assert_array_equal(Augmentation(flip=1.0).pixels(x, generator(), None, 255), x[:, ::-1])


def test_crop_is_a_window_of_the_image_with_background():
    x = random_image().astype(np.float32)
    around = np.pad(x, [(3, 3), (3, 3), (0, 0)], constant_values=-7.0)
    windows = {(i, j): around[i : i + 12, j : j + 10] for i in range(7) for j in range(7)}
    places = set()
    for seed in range(300):
        y = Augmentation(crop=3).values(x, generator(seed), -7.0, 1.0)
        matching = [place for place, window in windows.items() if np.array_equal(window, y)]
        assert len(matching) == 1
        places.add(matching[0])
    assert len(places) == 49, "every window is drawn"


def test_a_resized_crop_has_the_area_that_was_asked_for():
    ramp = np.tile(np.arange(200, dtype=np.uint8)[None, :, None], (200, 1, 1))  # its spread tells the window's width
    widths = []
    for seed in range(300):
        y = Augmentation(resized_crop=0.25).pixels(ramp, generator(seed), 16, 255)
        assert y.shape == (16, 16, 1)
        widths.append(16 / 15 * (y.max() - y.min()) + 1)
    # Area 1/4 to 1 and sides of 3/4 to 4/3: widths from 200 sqrt(3/16) up.
    assert 80 < min(widths) < 110
    assert max(widths) > 190


def test_erasing_leaves_the_rest():
    x = np.full((20, 20, 3), 5.0, np.float32)
    shares = []
    for seed in range(200):
        y = Augmentation(erase=1.0).values(x, generator(seed), 0.0, 1.0)
        changed = (y != 5).all(-1)
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        assert changed.sum() == len(rows) * len(columns), "a rectangle"
        assert y[changed].min() >= 0
        assert y[changed].max() <= 1
        shares.append(changed.mean())
    assert 0.01 < min(shares) < 0.06
    assert 0.35 < max(shares) < 0.45
    assert (x == 5).all(), "the image given is left as it is"


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_operations(name, mode):
    image = PIL.Image.fromarray(random_image(32, 24)).convert(mode)
    strong = [np.asarray(OPERATIONS[name](image, 1.0, sign)) for sign in (1, -1)]
    assert all(y.shape == np.asarray(image).shape for y in strong)
    if name not in ("auto_contrast", "equalize"):
        np.testing.assert_array_equal(OPERATIONS[name](image, 0.0, 1), image)
    if name not in ("identity", "auto_contrast") and not (name == "color" and mode == "L"):
        assert not np.array_equal(strong[0], image)


def test_randaugment_draws_all_operations():
    x = random_image(32, 32).astype(np.float32)
    found = {randomly_operated(x, 1, 15, generator(seed)).tobytes() for seed in range(400)}
    # Seven of the 14 have two directions; of an image of noise, auto_contrast is the identity.
    assert len(found) >= 20
    assert randomly_operated(x[..., :1], 3, 30, generator()).shape == (32, 32, 1)


def test_mixup_and_cutmix():
    a, b = np.zeros((4, 16, 16, 1), np.float32), np.ones((4, 16, 16, 1), np.float32)
    mixed, share = Augmentation(mixup=1.0).mixed(a, b, generator())
    np.testing.assert_allclose(mixed, 1 - share, rtol=1e-6)
    shares = []
    for seed in range(200):
        mixed, share = Augmentation(cutmix=1.0).mixed(a, b, generator(seed))
        np.testing.assert_allclose(mixed.mean(), 1 - share, atol=1e-6)
        assert set(np.unique(mixed)) <= {0.0, 1.0}
        shares.append(share)
    assert 0.5 < np.mean(shares) < 0.75, "rectangles beyond the edges are cut off, so more than half is kept"
    both = [Augmentation(mixup=1.0, cutmix=1.0).mixed(a, b, generator(seed))[0] for seed in range(200)]
    assert 0.4 < np.mean([len(np.unique(x)) == 1 and 0 < x.flat[0] < 1 for x in both]) < 0.6


def test_labels_are_mixed_as_images_are():
    corpus = data(Augmentation(mixup=1.0))
    batch, plain = next(iter(corpus.train(5))), next(iter(data(Augmentation()).train(5)))
    share = batch["shares"][0]
    np.testing.assert_array_equal(batch["other_labels"], batch["labels"][::-1])
    expected = share * plain["images"] + (1 - share) * plain["images"][::-1]
    np.testing.assert_allclose(batch["images"], expected, atol=1e-6)


def test_the_loss_of_mixed_images():
    model = arch_jax.create("mlp", hidden=(4,))
    batch = {name: jnp.asarray(value) for name, value in next(iter(data(Augmentation(cutmix=1.0)).train(0))).items()}
    it = arch_jax.objective("classify").with_model(model)
    variables = jax.jit(it.init)(jax.random.key(0), batch)
    (total, _), _ = jax.jit(it.loss, static_argnums=(0, 1))("model", "main", variables, batch, jax.random.key(0), 0)
    logits = jax.jit(model.apply)(variables, batch["images"])
    one, other = (np.asarray(cross_entropy(logits, batch[name])) for name in ("labels", "other_labels"))
    shares = np.asarray(batch["shares"])
    np.testing.assert_allclose(total, (shares * one + (1 - shares) * other).sum(), rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"flip": 1.5}, r"flip is 1.5; expected a fraction from 0 to 1"),
        ({"mixup": -1.0}, r"mixup is -1.0; expected 0, or a positive number"),
        ({"operations": 15}, r"operations is 15; expected a whole number from 0 to 14"),
        ({"strength": 31}, r"strength is 31; expected a whole number from 0 to 30"),
        ({"crop": -1}, r"crop is -1; expected a whole number from 0 to 4096"),
    ],
)
def test_what_is_refused(fields, said):
    with pytest.raises(arch_jax.UsageError, match=said):
        Augmentation(**fields)
