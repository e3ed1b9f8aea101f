"""Pairs for an encoder-decoder: their layout, the order of an epoch, copying and reversing."""

import itertools
import json

import numpy as np
import pytest

from arch_jax.data import RandomPairs
from arch_jax.data.sequences.pairs import PairCorpus, Pairs, shuffled
from arch_jax.errors import UsageError
from arch_jax.fields import from_json, to_json


def ids(*values):
    return np.array(values, np.int32)


def test_pairs_are_laid_out_for_teacher_forcing():
    pairs = Pairs.of([ids(5, 6), ids(7)], [ids(1), ids(2, 3, 4)], None, 8, 9)
    batch = pairs.rows(np.array([0, 1]))
    assert batch["source"].tolist() == [[5, 6, 9], [7, 9, 0]]
    assert batch["source_mask"].tolist() == [[True, True, True], [True, True, False]]
    assert batch["target"].tolist() == [[8, 1, 0, 0], [8, 2, 3, 4]]
    assert batch["labels"].tolist() == [[1, 9, 0, 0], [2, 3, 4, 9]]
    assert batch["weights"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    with pytest.raises(UsageError, match="has 4 tokens with its stop token, and the array has 3 places"):
        Pairs.of([ids(5), ids(7)], [ids(1), ids(2, 3, 4)], (2, 3), 8, 9)


def test_what_fills_the_last_batch_has_no_weight():
    pairs = Pairs.of([ids(i) for i in range(5)], [ids(i) for i in range(5)], None, 8, 9)
    first, second, third = pairs.batches(2)
    assert first["labels"].shape == third["labels"].shape == (2, 2)
    assert [batch["weights"].sum() for batch in (first, second, third)] == [4, 4, 2]
    assert third["source_mask"][1].tolist() == [False, False]


def test_an_epoch_has_each_pair_once_and_an_order_of_its_own():
    pairs = Pairs.of([ids(i) for i in range(7)], [ids(i) for i in range(7)], None, 8, 9)
    draw = shuffled(pairs, 3)
    stream = np.concatenate([draw(4, n)["source"][:, 0] for n in range(14)])
    epochs = stream.reshape(-1, 7)
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs.tolist())
    assert len({tuple(epoch) for epoch in epochs.tolist()}) > 3
    assert not np.array_equal(stream, np.concatenate([draw(5, n)["source"][:, 0] for n in range(14)]))


@pytest.mark.parametrize(("task", "step"), [("copy", 1), ("reverse", -1)])
def test_targets_are_the_sources_forwards_or_backwards(task, step):
    corpus = RandomPairs(task=task, symbols=5, shortest=2, length=6, batch=40).load()
    batch = next(corpus.train(0))
    assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == corpus.shapes
    lengths = set()
    for source, mask, target, labels in zip(*(batch[n] for n in ("source", "source_mask", "target", "labels"))):
        symbols = source[mask][:-1]
        lengths.add(len(symbols))
        assert symbols.max() < 5
        assert source[mask][-1] == corpus.stop
        assert labels[: len(symbols)].tolist() == symbols[::step].tolist()
        assert labels[len(symbols)] == corpus.stop
        assert target[0] == corpus.start
        assert target[1 : len(symbols) + 1].tolist() == symbols[::step].tolist()
    assert lengths == {2, 3, 4, 5, 6}
    assert corpus.vocabulary == 7


def test_shards_restores_and_seeds():
    corpus = RandomPairs(batch=8).load()
    take = lambda iterator, n: [batch["source"] for batch in itertools.islice(iterator, n)]
    whole = take(corpus.train(3), 4)
    halves = [take(corpus.train(3, (i, 2)), 4) for i in range(2)]
    assert np.array_equal(np.concatenate(halves, axis=1), whole)
    assert not np.array_equal(take(corpus.train(4), 4), whole)
    iterator = corpus.train(3)
    take(iterator, 2)
    restored = RandomPairs(batch=8).load().train(3)
    restored.set_state(json.loads(json.dumps(iterator.get_state())))
    assert np.array_equal(take(restored, 2), whole[2:])


def test_the_corpus_says_what_it_holds():
    corpus = RandomPairs(task="reverse", validation=20).load()
    assert isinstance(corpus, PairCorpus)
    facts = json.loads(json.dumps(corpus.facts))
    assert facts["source"] == "random_pairs:reverse"
    assert facts["sha256"] != RandomPairs(validation=20).load().facts["sha256"]
    assert (corpus.unit, corpus.units_per_batch, corpus.length) == ("pairs", 64, 13)
    assert sum(int((batch["weights"].sum(1) > 0).sum()) for batch in corpus.test()) == 20
    assert corpus.decode([3, 11]) == "3 11"
    assert from_json(to_json(corpus.data)) == corpus.data


def test_wrong_fields():
    with pytest.raises(UsageError, match="shortest is 9; expected at most length, which is 8"):
        RandomPairs(shortest=9, length=8)
    with pytest.raises(UsageError, match="symbols is 1; expected a whole number of at least 2"):
        RandomPairs(symbols=1)
