"""Sequences said twice: what is drawn, what counts, and what is refused."""

import numpy as np
import pytest

from arch_jax.data import Repeats
from arch_jax.errors import UsageError


def test_the_second_time_follows_from_the_first():
    corpus = Repeats(symbols=7, stretch=5, batch=40, validation=6).load()
    batch = next(corpus.train(0))
    assert {name: (x.shape, x.dtype.name) for name, x in batch.items()} == corpus.shapes
    whole = np.concatenate([batch["tokens"], batch["targets"][:, -1:]], axis=1)
    np.testing.assert_array_equal(batch["tokens"][:, 1:], batch["targets"][:, :-1])
    begins = set()
    for row, targets, weights in zip(whole.tolist(), batch["targets"], batch["weights"]):
        first, second = row[:5], row[5:]
        assert len(set(first)) == 5
        begin = first.index(second[0])
        assert second == first[begin:] + first[:begin]
        begins.add(begin)
        for t in range(9):
            after = first[first.index(row[t]) + 1 :][:1] if t >= 5 else []
            # Counted is what stood after the same token the first time, and all that did.
            assert bool(weights[t]) == bool(after)
            assert not weights[t] or targets[t] == after[0]
    assert begins == set(range(5)), "no fixed distance would do"


def test_batches_by_number_and_by_shard():
    corpus = Repeats(batch=6).load()
    first, second = (next(corpus.train(3)) for _ in range(2))
    np.testing.assert_array_equal(first["tokens"], second["tokens"])
    assert (next(corpus.train(4))["tokens"] != first["tokens"]).any()
    parts = [next(corpus.train(3, (i, 2)))["tokens"] for i in range(2)]
    np.testing.assert_array_equal(np.concatenate(parts), first["tokens"])
    held_out = np.concatenate([batch["tokens"] for batch in corpus.validation()])
    weights = np.concatenate([batch["weights"] for batch in corpus.validation()])
    assert 512 * 14 < weights.sum() < 512 * 15
    assert len(held_out) == 516  # filled up with rows of weight 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"symbols": 8, "stretch": 9}, "stretch is 9, and there are 8 symbols; expected at most as many"),
        ({"symbols": 95}, "symbols is 95; expected a whole number from 2 to 94"),
        ({"stretch": 1}, "stretch is 1; expected a whole number of at least 2"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(UsageError, match=message):
        Repeats(**fields)
