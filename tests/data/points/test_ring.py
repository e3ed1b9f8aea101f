import itertools
import json

import jaxtyping
import numpy as np
import pytest

from arch_jax.data import Ring
from arch_jax.errors import UsageError
from arch_jax.fields import from_json, to_json

REFUSED = (UsageError, jaxtyping.TypeCheckError)


def take(iterator, n):
    return [batch["x"] for batch in itertools.islice(iterator, n)]


def test_the_corpus_says_what_it_holds():
    corpus = Ring().load()
    assert corpus.shapes == {"x": ((100, 2), "float32")}
    assert (corpus.unit, corpus.units_per_batch) == ("points", 100)
    facts = json.loads(json.dumps(corpus.facts))
    assert facts["source"] == "ring"
    assert len(facts["sha256"]) == 64
    assert facts["sha256"] == Ring(batch=7).load().facts["sha256"]
    assert facts["sha256"] != Ring(std=0.02).load().facts["sha256"]
    assert from_json(to_json(Ring(modes=5))) == Ring(modes=5)


def test_the_centres_stand_on_the_circle():
    corpus = Ring(modes=4, radius=2.0, std=0.5).load()
    assert corpus.centres == pytest.approx(np.array([[2, 0], [0, 2], [-2, 0], [0, -2]]), abs=1e-6)
    assert corpus.centres.dtype == corpus.std.dtype == np.float32
    assert (corpus.std.shape, float(corpus.std)) == ((), 0.5)


def test_the_points_have_the_mixtures_moments():
    corpus = Ring(modes=8, radius=3.0, std=0.1, batch=20_000).load()
    (x,) = take(corpus.train(0), 1)
    distance = np.linalg.norm(x[:, None] - corpus.centres, axis=2)
    mode = distance.argmin(axis=1)
    assert np.bincount(mode) == pytest.approx(np.full(8, 2500), abs=200)
    offsets = x - corpus.centres[mode]
    assert offsets.mean(axis=0) == pytest.approx(np.zeros(2), abs=0.003)
    assert offsets.std(axis=0) == pytest.approx(np.full(2, 0.1), rel=0.02)
    assert np.corrcoef(offsets.T)[0, 1] == pytest.approx(0, abs=0.03)


def test_every_batch_is_new_and_determined_by_the_seed():
    corpus = Ring(batch=10).load()
    batches = take(corpus.train(1), 20)
    assert len({point.tobytes() for batch in batches for point in batch}) == 200
    assert np.array_equal(batches, take(corpus.train(1), 20))
    other = take(corpus.train(2), 20)
    assert not {point.tobytes() for point in np.concatenate(batches)} & {p.tobytes() for p in np.concatenate(other)}


def test_a_restored_iterator_goes_on_exactly():
    iterator = Ring().load().train(5)
    take(iterator, 7)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = take(iterator, 4)
    restored = Ring().load().train(5)
    restored.set_state(state)
    assert np.array_equal(take(restored, 4), expected)


@pytest.mark.parametrize("count", [2, 5])
def test_the_shards_together_are_the_batch(count):
    corpus = Ring(batch=20).load()
    shards = [take(corpus.train(3, (i, count)), 8) for i in range(count)]
    assert np.array_equal(np.concatenate(shards, axis=1), take(corpus.train(3), 8))
    with pytest.raises(UsageError, match="batch 20 cannot be divided among 3 shards"):
        corpus.train(0, (0, 3))


def test_validation_is_one_batch_with_the_truth_beside_it():
    corpus = Ring(validation=50).load()
    (batch,) = corpus.validation()
    assert len(corpus.validation()) == 1
    assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == {
        "x": ((50, 2), "float32"),
        "centres": ((8, 2), "float32"),
        "std": ((), "float32"),
    }
    (again,) = Ring(validation=50).load().validation()
    assert np.array_equal(batch["x"], again["x"])
    trained = {point.tobytes() for seed in range(20) for batch in take(corpus.train(seed), 3) for point in batch}
    assert not trained & {point.tobytes() for point in batch["x"]}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"modes": 0}, "modes is 0; expected a whole number of at least 1"),
        ({"batch": -1}, "batch is -1"),
        ({"validation": 0}, "validation is 0"),
        ({"std": 0.0}, "std is 0.0; expected a finite number above 0"),
        ({"radius": float("inf")}, "radius is inf; expected a finite number above 0"),
        ({"radius": "1"}, "radius is '1'"),
    ],
)
def test_a_wrong_field_is_one_sentence(fields, says):
    with pytest.raises(REFUSED) as caught:
        Ring(**fields)
    assert says in str(caught.value) or not isinstance(caught.value, UsageError)
