"""Pairs of passages: where they come from, how they are marked, that half of them follow each other."""

import numpy as np
import pytest

from arch_jax.data import SentencePairs
from arch_jax.errors import UsageError


@pytest.fixture(scope="module")
def corpus():
    return SentencePairs(tokenizer="bytes", length=24, batch=400).load()


def passages(corpus, row):
    first, second = np.flatnonzero(row == corpus.sep)
    return row[1:first], row[first + 1 : second]


def test_rows_are_marked(corpus):
    batch = next(corpus.train(0))
    assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == corpus.shapes
    assert (corpus.cls, corpus.sep, corpus.mask_token, corpus.vocabulary) == (256, 257, 258, 259)
    for row, types in zip(batch["tokens"][:50], batch["types"]):
        assert row[0] == corpus.cls
        assert row[-1] == corpus.sep
        border = int(np.flatnonzero(row == corpus.sep)[0])
        assert types.tolist() == [0] * (border + 1) + [1] * (len(row) - border - 1)
    assert batch["mask"].all()


def test_half_follow_and_half_come_from_another_document(corpus):
    batch = next(corpus.train(0))
    side = corpus.text.train_stream
    data, document = side.tokens.astype(np.uint8).tobytes(), side.document
    assert batch["next"].mean() == pytest.approx(0.5, abs=0.1)
    elsewhere = 0
    for row, label in zip(batch["tokens"], batch["next"]):
        a, b = (part.astype(np.uint8).tobytes() for part in passages(corpus, row))
        if label == 0:
            assert a + b in data
        elif len(a) > 8 and len(b) > 8:  # shorter ones stand in many places
            elsewhere += a + b not in data
            found = data.find(a), data.find(b)
            assert min(found) >= 0
            if data.count(a) == data.count(b) == 1:
                assert document[found[0]] != document[found[1]]
    assert elsewhere > 20


def test_validation_is_the_same_however_it_is_cut(corpus):
    large = [row for batch in corpus.validation() for row in batch["tokens"]]
    small = SentencePairs(tokenizer="bytes", length=24, batch=7).load()
    again = [row for batch in small.validation() for row in batch["tokens"]]
    real = sum(int(batch["weights"].sum()) for batch in small.validation())
    assert np.array_equal(large[:real], again[:real])
    assert real > 1000
    assert {int(label) for batch in small.validation() for label in batch["next"]} == {0, 1}


def test_validation_takes_each_passage_once(corpus):
    """Passages one behind the other: of each document all but what is too short for one more."""
    side, room = corpus.text.validation_stream, corpus.length - 3
    places = [start for start in range(len(side) - room + 1) if len(set(side.document[start : start + room])) == 1]
    rows = [row for batch in corpus.validation() for row, w in zip(batch["tokens"], batch["weights"]) if w]
    assert len(rows) == len(places[::room])
    for start, row in zip(places[::room], rows):
        first, _ = passages(corpus, row)
        assert np.array_equal(first, side.tokens[start : start + len(first)])


def test_special_tokens_are_shown_by_name(corpus):
    assert corpus.decode([256, 72, 105, 257, 258, 33]) == "[CLS]Hi[SEP][MASK]!"
    with pytest.raises(UsageError, match="length is 4; expected a whole number of at least 5"):
        SentencePairs(length=4)
