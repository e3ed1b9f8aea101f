import dataclasses
import itertools
import json

import jax
import jaxtyping
import numpy as np
import pytest

from arch_jax.data import Images
from arch_jax.data.images import sources
from arch_jax.data.images.augmentation import Augmentation
from arch_jax.errors import UsageError
from arch_jax.fields import from_json, to_json

# A value of a wrong type is refused by a sentence, or before that by the type checker where it is on.
REFUSED = (UsageError, jaxtyping.TypeCheckError)


def encoded(array: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def equal(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def take(iterator, n):
    return list(itertools.islice(iterator, n))


def facts_of(batch):
    return {name: (array.shape, array.dtype.name) for name, array in batch.items()}


@pytest.fixture(scope="module")
def digits():
    return Images().load()


@pytest.fixture
def folder(write, tmp_path):
    """Writes MNIST-like files: image i is of the value i, and its label i % classes."""

    def folder(train=50, test=11, size=(3, 4), classes=5, test_labels=None):
        for part, count, first in (("train", train, 0), ("t10k", test, 100)):
            if not count:
                continue
            values = np.arange(first, first + count)
            labels = values % classes if part == "train" or test_labels is None else np.array(test_labels)
            images = np.broadcast_to(values[:, None, None], (count, *size))
            write(f"mnist/{part}-images-idx3-ubyte", encoded(images))
            write(f"mnist/{part}-labels-idx1-ubyte", encoded(labels))
        return f"idx:{tmp_path / 'mnist'}"

    return folder


def test_the_defaults_are_the_digits(digits):
    facts = json.loads(json.dumps(digits.facts))
    assert facts["source"] == "digits"
    assert len(facts["sha256"]) == 64
    assert facts["train_images"] + facts["validation_images"] == 1797
    assert facts["validation_images"] == 359
    assert (digits.classes, digits.class_names) == (10, tuple("0123456789"))
    assert (digits.unit, digits.units_per_batch) == ("images", 64)
    assert (digits.low, digits.high) == (0.0, 1.0)
    assert Images() == Images("digits", 64, None, 0, 0.0, 1.0, 0.2, 0)
    assert from_json(to_json(Images(resize=16))) == Images(resize=16)


def test_the_images_and_labels_are_scikit_learns(digits):
    from sklearn.datasets import load_digits

    known = {}
    for image, label in zip(load_digits().images, load_digits().target):
        known.setdefault((image / 16).astype(np.float32).tobytes(), set()).add(int(label))
    batches = [*take(digits.train(0), 23), *digits.validation()]
    for batch in batches:
        for image, label, weight in zip(batch["images"], batch["labels"], batch["weights"]):
            assert not weight or int(label) in known[image.tobytes()]


def test_shapes_are_known_before_there_is_a_batch(folder):
    for images in (Images(batch=6), Images(folder(), 6, pad=2), Images(folder(), 6, resize=7, pad=1)):
        corpus = images.load()
        assert facts_of(next(corpus.train(0))) == corpus.shapes
        assert all(facts_of(batch) == corpus.shapes for batch in corpus.validation())


def test_an_epoch_has_each_training_image_once_in_its_own_order(folder):
    corpus = Images(folder(), batch=20).load()
    values = np.concatenate([batch["images"][:, 0, 0, 0] for batch in take(corpus.train(3), 10)]) * 255
    epochs = np.rint(values).astype(int).reshape(4, 50)  # 2.5 batches an epoch
    for number, epoch in enumerate(epochs):
        assert epoch.tolist() == np.random.default_rng([3, number]).permutation(50).tolist()
    labels = np.concatenate([batch["labels"] for batch in take(corpus.train(3), 10)])
    assert np.array_equal(labels, epochs.ravel() % 5)


def test_the_seed_determines_the_batches(digits):
    once, again, other = (take(digits.train(seed), 30) for seed in (3, 3, 4))
    assert all(map(equal, once, again))
    assert not any(map(equal, once, other))


@pytest.mark.parametrize("through", [lambda state: state, lambda state: json.loads(json.dumps(state))])
def test_a_restored_iterator_goes_on_exactly(digits, through):
    for stop in (0, 1, 30):
        iterator = digits.train(5)
        take(iterator, stop)
        state = through(iterator.get_state())
        expected = take(iterator, 6)
        restored = Images().load().train(5)
        restored.set_state(state)
        assert all(map(equal, take(restored, 6), expected))


@pytest.mark.parametrize("count", [2, 4])
def test_the_shards_together_are_the_batch(digits, count):
    whole = take(digits.train(2), 40)
    shards = [take(digits.train(2, shard=(i, count)), 40) for i in range(count)]
    for batch, *parts in zip(whole, *shards):
        assert len(parts[0]["labels"]) == 64 // count
        assert equal(batch, {name: np.concatenate([part[name] for part in parts]) for name in batch})


@pytest.mark.parametrize(
    ("shard", "says"),
    [
        ((0, 3), "batch 64 cannot be divided among 3 shards; the nearest number that can is 2"),
        ((2, 2), "shard's index is 2; expected a whole number from 0 to 1"),
        ((0, 0), "shard's count is 0"),
        (3, "shard is 3; expected (index, count)"),
    ],
)
def test_a_wrong_shard_is_one_sentence(digits, shard, says):
    with pytest.raises(REFUSED) as caught:
        digits.train(0, shard=shard)
    assert says in str(caught.value) or not isinstance(caught.value, UsageError)


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5])
def test_a_wrong_seed_is_refused(digits, seed):
    with pytest.raises(REFUSED):
        digits.train(seed)


def test_validation_is_the_test_part_in_order_and_padding_has_no_weight(folder):
    corpus = Images(folder(), batch=4, low=-1.0).load()
    batches = list(corpus.validation())
    assert len(batches) == len(corpus.validation()) == 3
    weights = np.concatenate([batch["weights"] for batch in batches])
    assert weights.tolist() == [1] * 11 + [0]
    labels = np.concatenate([batch["labels"] for batch in batches])
    assert labels.tolist() == [(100 + i) % 5 for i in range(11)] + [0]
    pixels = np.concatenate([batch["images"] for batch in batches])
    assert pixels[:11, 0, 0, 0] == pytest.approx(np.arange(100, 111) / 255 * 2 - 1, abs=1e-6)
    assert not pixels[11].any()
    assert all(map(equal, batches, corpus.validation()))  # any number of times
    assert [len(batch["labels"]) for batch in corpus.validation(batch=11)] == [11]
    with pytest.raises(UsageError, match="batch is 0"):
        corpus.validation(batch=0)


def test_a_sample_of_the_training_images_is_plain_and_always_the_same():
    data = Images(batch=64, augment=Augmentation(flip=1.0, erase=1.0)).load()
    batches = list(data.training_sample(100))
    assert [len(batch["images"]) for batch in batches] == [64, 64]
    assert sum(batch["weights"].sum() for batch in batches) == 100
    whole = Images(batch=64).load()
    known = {image.tobytes(): label for image, label in zip(*rows_of(whole.training_sample(10_000)))}
    held = {image.tobytes() for image in rows_of(whole.validation())[0]}
    images, labels = rows_of(batches)
    assert len(rows_of(whole.training_sample(10_000))[0]) == whole.facts["train_images"]
    assert all(known[image.tobytes()] == label for image, label in zip(images, labels))
    assert not {image.tobytes() for image in images} & held
    assert len(set(labels)) == 10  # from all over the source, not its first images
    assert all(equal(a, b) for a, b in zip(batches, data.training_sample(100)))
    other = Images(batch=64, split_seed=1).load().training_sample(100)
    assert not equal(batches[0], next(iter(other)))
    with pytest.raises(UsageError, match="count is 0; expected a whole number of at least 1"):
        data.training_sample(0)


def rows_of(batches):
    """Images and labels of weight 1."""
    real = [(batch, batch["weights"] > 0) for batch in batches]
    return tuple(np.concatenate([batch[name][kept] for batch, kept in real]) for name in ("images", "labels"))


def test_the_held_out_share_is_of_every_class_and_disjoint(folder):
    corpus = Images(folder(train=200, test=0), batch=10, validation=0.25).load()
    (held,) = corpus.validation(batch=50)
    assert np.bincount(held["labels"]).tolist() == [10] * 5
    trained = np.concatenate([batch["images"][:, 0, 0, 0] for batch in take(corpus.train(0), 15)])
    assert sorted([*trained, *held["images"][:, 0, 0, 0]]) == pytest.approx(np.arange(200) / 255, abs=1e-6)
    (other,) = Images(folder(train=200, test=0), batch=10, validation=0.25, split_seed=1).load().validation(batch=50)
    assert not equal(held, other)
    (same,) = Images(folder(train=200, test=0), batch=10, validation=0.25).load().validation(batch=50)
    assert equal(held, same)


def test_never_all_of_a_class_is_held_out():
    labels = np.array([0] * 100 + [1] * 2 + [2])
    train, held = sources.held_out("x", 0.9, 0, labels)
    assert set(labels[train]) == {0, 1, 2}
    assert sorted([*train, *held]) == list(range(103))
    with pytest.raises(UsageError, match=r"validation=0\.001 of source 'x' holds out none of its 103 images"):
        sources.held_out("x", 0.001, 0, labels)


def used(images):
    """The training images that are used, by their values in the files."""
    corpus = images.load()
    batches = take(corpus.train(0), corpus.facts["train_images"] // images.batch)
    return set(np.rint(np.concatenate([batch["images"][:, 0, 0, 0] for batch in batches]) * 255).astype(int).tolist())


@pytest.mark.parametrize("test", [0, 11], ids=["held out", "test part"])
def test_a_share_of_the_training_images_is_of_every_class_alike(folder, test):
    source = folder(train=200, test=test)
    whole, half, fifth = (Images(source, 2, validation=0.25, train_share=share) for share in (1.0, 0.5, 0.2))
    assert (half.load().facts["train_images"], fifth.load().facts["train_images"]) == ((100, 40) if test else (75, 30))
    assert np.bincount([value % 5 for value in used(fifth)]).tolist() == [8 if test else 6] * 5
    assert used(fifth) < used(half) < used(whole)
    assert used(fifth) == used(dataclasses.replace(fifth, batch=5))
    assert used(fifth) != used(dataclasses.replace(fifth, split_seed=1))
    assert all(map(equal, fifth.load().validation(), whole.load().validation()))


def test_smaller_shares_are_parts_of_larger_ones_whatever_the_classes():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(6), [1, 2, 3, 7, 20, 100]))
    before = set()
    for share in np.linspace(0.001, 1, 200):
        now = set(sources.kept(share, 0, labels).tolist())
        assert before <= now
        counts = np.bincount(labels[list(now)], minlength=6)
        assert (np.abs(counts - share * np.bincount(labels)) <= 1).all()
        assert counts.min() >= 1
        before = now
    assert before == set(range(133))


def test_low_and_high_are_where_the_sources_range_goes(folder, write):
    source = folder(train=2, size=(2, 2), classes=1)
    write("mnist/train-images-idx3-ubyte", encoded(np.array([[[0, 255], [51, 102]]] * 2)))
    batch = next(Images(source, 2, low=-1.0, high=3.0).load().train(0))
    assert batch["images"][0, :, :, 0] == pytest.approx(np.array([[-1, 3], [-0.2, 0.6]]), abs=1e-6)
    digits = next(Images(batch=1000, low=-1.0).load().train(0))["images"]
    assert (digits.min(), digits.max()) == (-1, 1)  # of the range 0 to 16, not of 0 to 255


def test_padding_is_background_on_every_side():
    plain, wide = (next(Images(batch=8, low=-1.0, pad=pad).load().train(0))["images"] for pad in (0, 3))
    assert wide.shape == (8, 14, 14, 1)
    assert np.array_equal(wide[:, 3:-3, 3:-3], plain)
    assert (np.delete(np.delete(wide, range(3, 11), 1), range(3, 11), 2) == -1).all()
    assert wide.sum() == pytest.approx(plain.sum() - 8 * (14 * 14 - 64), rel=1e-5)


@pytest.mark.parametrize("shape", [(8, 8), (28, 14), (5, 9), (1, 1), (3, 20)])
def test_resizing_is_that_of_jax(shape):
    images = np.random.default_rng(0).integers(256, size=(3, 8, 11, 3), dtype=np.uint8)
    expected = jax.image.resize(images.astype(np.float32), (3, *shape, 3), "bilinear", precision="highest")
    assert sources.resized(images, *shape) == pytest.approx(np.asarray(expected), abs=1e-3)


def test_resizing_comes_before_padding_and_scaling():
    plain = next(Images(batch=8).load().train(0))["images"]
    batch = next(Images(batch=8, resize=12, pad=1, low=-2.0, high=2.0).load().train(0))
    assert batch["images"].shape == (8, 14, 14, 1)
    expected = np.asarray(jax.image.resize(plain, (8, 12, 12, 1), "bilinear", precision="highest")) * 4 - 2
    assert batch["images"][:, 1:-1, 1:-1] == pytest.approx(expected, abs=1e-5)
    assert (batch["images"][:, 0] == -2).all()


def test_the_hash_is_of_the_content(folder, write):
    source = folder()
    before = Images(source, 10).load().facts["sha256"]
    assert before == Images(source, 5, pad=1).load().facts["sha256"]
    write("mnist/t10k-labels-idx1-ubyte", encoded(np.zeros(11)))
    assert before != Images(source, 10).load().facts["sha256"]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"source": "digit"}, "unknown source 'digit'; the nearest is 'digits'"),
        ({"source": "idx:"}, "source 'idx:' names nothing to read; expected 'idx:DIR'"),
        ({"source": "tfds: "}, "names nothing to read; expected 'tfds:NAME'"),
        ({"source": 3}, "a source is a name"),
        ({"batch": 0}, "batch is 0; expected a whole number of at least 1"),
        ({"batch": True}, "batch is True"),
        ({"resize": 0}, "resize is 0; expected a whole number from 1 to 4096"),
        ({"resize": 10**9}, "resize is 1000000000; expected a whole number from 1 to 4096"),
        ({"pad": -1}, "pad is -1; expected a whole number from 0"),
        ({"low": float("nan")}, "low is nan; expected a finite number"),
        ({"high": float("inf")}, "high is inf; expected a finite number"),
        ({"low": 1.0}, "low is 1.0 and high is 1.0; expected low to be below high"),
        ({"validation": 1.0}, "validation is 1.0; expected a fraction between 0 and 1"),
        ({"split_seed": -1}, "split_seed is -1"),
        ({"train_share": 0.0}, "train_share is 0.0; expected a fraction above 0 and up to 1, such as 0.1"),
        ({"train_share": 1.1}, "train_share is 1.1; expected a fraction above 0"),
        ({"train_share": float("nan")}, "train_share is nan"),
        ({"train_share": True}, "train_share is True"),
        ({"train_share": "0.5"}, "train_share is '0.5'"),
    ],
)
def test_a_wrong_field_is_one_sentence(fields, says):
    with pytest.raises(REFUSED) as caught:
        Images(**fields)
    assert says in str(caught.value) or not isinstance(caught.value, UsageError)


def test_what_does_not_load_is_one_sentence(folder, tmp_path):
    def says(images):
        with pytest.raises(UsageError) as caught:
            images.load()
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "has 1,438 training images, and batch is 1439; expected at most batch 1438" in says(Images(batch=1439))
    assert "does not exist; expected a folder" in says(Images(f"idx:{tmp_path / 'none'}"))
    source = folder(test_labels=[0] * 10 + [7])
    assert "label 7 of test image 10 in source" in says(Images(source, 10))
    assert "expected the training part's labels, 0 to 4" in says(Images(source, 10))
    with pytest.raises(UsageError, match=r"to read the idx files in that folder, write 'idx:/"):
        Images(str(tmp_path))
    assert "has 3 training images, and batch is 10; expected at most batch 3" in says(
        Images(folder(train=3, classes=3), 10)
    )
    assert "with train_share=0.1, source 'digits' has 142 training images, and batch is 145" in says(
        Images(batch=145, train_share=0.1)
    )


def test_images_stay_bytes_in_memory(folder):
    corpus = Images(folder(train=150), 10).load()
    assert corpus._found.train.images.dtype == np.uint8
