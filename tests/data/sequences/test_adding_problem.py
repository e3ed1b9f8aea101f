"""The adding problem: what is drawn, and that its answer is the sum of what is marked."""

import itertools
import json

import jaxtyping
import numpy as np
import pytest

import arch_jax
from arch_jax.data.sequences.adding_problem import AddingProblem
from arch_jax.errors import UsageError
from arch_jax.fields import from_json, to_json

REFUSED = (UsageError, jaxtyping.TypeCheckError)


def take(iterator, n):
    return list(itertools.islice(iterator, n))


def solved(x):
    """By brute force: goes over the sequence and adds up what is marked."""
    answers = []
    for sequence in x:
        total = 0.0
        for number, mark in sequence:
            if mark == 1:
                total += float(number)
        answers.append(total)
    return np.array(answers)


def places(batch):
    """Where the two marks of each sequence stand."""
    marks = batch["x"][:, :, 1]
    assert set(np.unique(marks)) <= {0, 1}
    assert np.all(marks.sum(axis=1) == 2)
    return np.argwhere(marks)[:, 1].reshape(-1, 2)


def test_the_corpus_says_what_it_holds():
    assert arch_jax.AddingProblem is AddingProblem
    corpus = AddingProblem(length=9, batch=4).load()
    (batch,) = take(corpus.train(0), 1)
    assert {name: (array.shape, str(array.dtype)) for name, array in batch.items()} == corpus.shapes
    assert corpus.shapes["x"] == ((4, 9, 2), "float32")
    assert (corpus.unit, corpus.units_per_batch) == ("sequences", 4)
    facts = json.loads(json.dumps(corpus.facts))
    assert (facts["source"], facts["length"], facts["validation_sequences"]) == ("adding_problem", 9, 1000)
    assert facts["sha256"] == AddingProblem(length=9, batch=7).load().facts["sha256"]
    assert facts["sha256"] != AddingProblem(length=9, markers="anywhere").load().facts["sha256"]
    assert from_json(to_json(AddingProblem(length=5))) == AddingProblem(length=5)


@pytest.mark.parametrize("markers", ["halves", "anywhere"])
@pytest.mark.parametrize("length", [2, 7, 20])
def test_the_target_is_the_sum_of_what_is_marked(markers, length):
    corpus = AddingProblem(length=length, markers=markers, batch=500).load()
    (batch,) = take(corpus.train(3), 1)
    np.testing.assert_allclose(batch["targets"], solved(batch["x"]), rtol=1e-6)
    first, second = places(batch).T
    if markers == "halves":
        assert set(first) == set(range(length // 2))
        assert set(second) == set(range(length // 2, length))
    else:
        assert set(first) | set(second) == set(range(length))
    assert np.all(batch["weights"] == 1)


def test_marks_anywhere_are_even_over_pairs():
    (batch,) = take(AddingProblem(length=4, markers="anywhere", batch=12_000).load().train(0), 1)
    pairs, counts = np.unique(places(batch), axis=0, return_counts=True)
    assert len(pairs) == 6
    assert counts == pytest.approx(np.full(6, 2000), abs=200)


def test_answering_one_has_the_error_of_a_sixth():
    (batch,) = take(AddingProblem(length=10, batch=20_000).load().train(0), 1)
    assert np.mean(np.square(batch["targets"] - 1)) == pytest.approx(1 / 6, rel=0.03)
    numbers = batch["x"][:, :, 0]
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert numbers.mean() == pytest.approx(0.5, abs=0.005)


def test_a_restored_iterator_goes_on_exactly():
    problem = AddingProblem(length=6, batch=5)
    iterator = problem.load().train(5)
    take(iterator, 7)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = take(iterator, 3)
    restored = problem.load().train(5)
    restored.set_state(state)
    for one, other in zip(take(restored, 3), expected):
        for name in expected[0]:
            np.testing.assert_array_equal(one[name], other[name])


def test_the_shards_together_are_the_batch():
    corpus = AddingProblem(length=6, batch=20).load()
    shards = [np.stack([batch["x"] for batch in take(corpus.train(3, (i, 4)), 3)]) for i in range(4)]
    np.testing.assert_array_equal(np.concatenate(shards, axis=1), [batch["x"] for batch in take(corpus.train(3), 3)])
    with pytest.raises(UsageError, match="batch 20 cannot be divided among 3 shards"):
        corpus.train(0, (0, 3))


def test_no_sequence_is_drawn_twice_nor_for_validation_and_training():
    corpus = AddingProblem(length=3, batch=8, validation=20).load()
    batches = list(corpus.validation())
    assert [float(batch["weights"].sum()) for batch in batches] == [8, 8, 4]
    held_out = np.concatenate([batch["x"][batch["weights"] > 0] for batch in batches])
    np.testing.assert_allclose(
        np.concatenate([batch["targets"][batch["weights"] > 0] for batch in batches]), solved(held_out), rtol=1e-6
    )
    trained = [row.tobytes() for seed in range(5) for batch in take(corpus.train(seed), 10) for row in batch["x"]]
    assert len(set(trained)) == 400
    assert not set(trained) & {row.tobytes() for row in held_out}
    again = np.concatenate(
        [batch["x"] for batch in AddingProblem(length=3, batch=8, validation=20).load().validation()]
    )
    np.testing.assert_array_equal(again[:20], held_out)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"length": 1}, "length is 1; expected a whole number of at least 2"),
        ({"batch": 0}, "batch is 0"),
        ({"validation": 0}, "validation is 0"),
        ({"markers": "half"}, "'halves'"),
    ],
)
def test_a_wrong_field_is_one_sentence(fields, says):
    with pytest.raises(REFUSED) as caught:
        AddingProblem(**fields)
    assert says in str(caught.value) or not isinstance(caught.value, UsageError)
