"""Tasks with one answer: each found again by a solver that reads the sequence, and none shared with validation."""

import numpy as np
import pytest

from arch_jax.data import CopyMemory, InductionHeads, MultiQueryRecall, Parity, SelectiveCopying
from arch_jax.errors import UsageError

SMALL = {"batch": 40, "validation": 9}


def solve_copy(rule, row, ids):
    return [rule.symbols] * (rule.delay + rule.copied) + row[: rule.copied]


def solve_selective(rule, row, ids):
    said = [token for token in row if token < rule.symbols]
    begin = row.index(rule.symbols + 1)
    assert (rule.shortest or rule.length) <= begin <= rule.length
    assert all(token >= rule.symbols for token in row[begin:])
    return [None] * begin + said + [None] * (len(row) - begin - len(said))


def solve_induction(rule, row, ids):
    special = rule.symbols - 1
    assert row.count(special) == rule.asked + 1
    first = row.index(special)
    assert row[first + 1] != special
    return [row[first + 1] if token == special and t > first else None for t, token in enumerate(row)]


def solve_recall(rule, row, ids):
    said = dict(zip(row[: 2 * rule.pairs : 2], row[1 : 2 * rule.pairs : 2]))
    assert len(said) == rule.pairs
    return [None if t < 2 * rule.pairs else said.get(token) for t, token in enumerate(row)]


def solve_parity(rule, row, ids):
    length = sum(ids)
    assert rule.shortest <= length <= rule.longest
    sums = [sum(row[: i + 1]) % 2 for i in range(length)]
    asked = sums if rule.asked == "every" else [None] * (length - 1) + sums[-1:]
    return asked + [None] * (rule.longest - length)


TASKS = [
    (CopyMemory(delay=7, copied=3, symbols=4, **SMALL), solve_copy),
    (SelectiveCopying(length=12, copied=4, symbols=5, **SMALL), solve_selective),
    (SelectiveCopying(length=20, copied=3, symbols=5, shortest=4, **SMALL), solve_selective),
    (InductionHeads(length=9, symbols=6, **SMALL), solve_induction),
    (InductionHeads(length=12, symbols=6, asked=4, **SMALL), solve_induction),
    (MultiQueryRecall(length=24, pairs=3, vocabulary=20, power=0.5, **SMALL), solve_recall),
    (Parity(shortest=5, longest=11, **SMALL), solve_parity),
    (Parity(shortest=5, longest=11, asked="every", **SMALL), solve_parity),
]
every_task = pytest.mark.parametrize(("rule", "solve"), TASKS, ids=[type(rule).__name__ for rule, _ in TASKS])


@every_task
def test_the_answers_are_those_of_the_solver(rule, solve):
    corpus = rule.load()
    batch = next(corpus.train(0))
    assert {name: (x.shape, x.dtype.name) for name, x in batch.items()} == corpus.shapes
    ids = batch.get("segment_ids", np.ones_like(batch["tokens"]))
    assert batch["weights"].sum() > 0
    for row, targets, weights, real in zip(batch["tokens"].tolist(), batch["targets"].tolist(), batch["weights"], ids):
        answers = solve(rule, row, real.tolist())
        assert [a is not None for a in answers] == (weights > 0).tolist()
        assert all(a in (None, target) for a, target in zip(answers, targets))
    assert batch["tokens"].max() < corpus.facts["vocabulary"] == corpus.tokenizer.vocabulary


@every_task
def test_batches_are_new_and_none_is_held_out(rule, solve):
    corpus = rule.load()
    iterator = corpus.train(3)
    batches = [next(iterator)["tokens"] for _ in range(20)]
    assert (batches[0] != batches[1]).any()
    np.testing.assert_array_equal(next(corpus.train(3))["tokens"], batches[0])
    parts = [next(corpus.train(3, (i, 2)))["tokens"] for i in range(2)]
    np.testing.assert_array_equal(np.concatenate(parts), batches[0])
    held_out = np.concatenate([batch["tokens"][batch["weights"].any(axis=1)] for batch in corpus.validation()])
    assert len(held_out) == 9
    known = {row.tobytes() for row in held_out}
    assert not known & {row.tobytes() for batch in batches for row in batch}
    assert rule.load().facts == corpus.facts


def test_what_is_held_out_is_never_drawn_even_where_it_is_common():
    """Of 8 sequences of 3 bits some are held out: every training row is one of the others."""
    corpus = Parity(shortest=3, longest=3, batch=50, validation=4).load()
    held_out = {tuple(row) for batch in corpus.validation() for row in batch["tokens"][:4].tolist()}
    drawn = {tuple(row) for row in next(corpus.train(0))["tokens"].tolist()}
    assert drawn
    assert not drawn & held_out
    corpus = Parity(shortest=2, longest=2, batch=5, validation=500).load()
    with pytest.raises(UsageError, match="parity has hardly any sequence that is not among the 500 for validation"):
        next(corpus.train(0))


def test_most_queries_stand_near_the_keys():
    """As the power law says, with a small exponent."""
    rule = MultiQueryRecall(batch=400)
    weights = next(rule.load().train(0))["weights"]
    assert weights.sum() == 400 * rule.pairs
    first, second = weights[:, 8:36].sum(), weights[:, 36:].sum()
    assert first > 1.8 * second


@pytest.mark.parametrize(
    ("rule", "fields", "message"),
    [
        (SelectiveCopying, {"shortest": 300}, "shortest is 300; expected a whole number from 16 to 256"),
        (SelectiveCopying, {"length": 8}, "length is 8; expected a whole number of at least 16"),
        (InductionHeads, {"symbols": 2}, "symbols is 2; expected a whole number of at least 3"),
        (InductionHeads, {"length": 9, "asked": 4}, "asked is 4; expected at most 3 times in 9 tokens"),
        (MultiQueryRecall, {"pairs": 17}, "pairs is 17; expected at most 16, a quarter of the length"),
        (MultiQueryRecall, {"length": 65}, "length is 65; expected an even number"),
        (MultiQueryRecall, {"power": 0.0}, "power is 0.0; expected a number above 0"),
        (MultiQueryRecall, {"vocabulary": 8}, "pairs is 4, and there are 3 keys"),
        (Parity, {"longest": 2}, "longest is 2; expected a whole number of at least 3"),
        (CopyMemory, {"batch": 0}, "batch is 0; expected a whole number of at least 1"),
    ],
)
def test_bad_fields(rule, fields, message):
    with pytest.raises(UsageError, match=message):
        rule(**fields)


def test_longer_sequences_to_be_tested_on_are_those_of_the_same_rule():
    corpus = InductionHeads(length=9, symbols=6, tested=(9, 40), tested_sequences=5, **SMALL).load()
    assert {name: other.length for name, other in corpus.elsewhere.items()} == {"at_9": 9, "at_40": 40}
    assert corpus.elsewhere["at_40"].facts["validation_sequences"] == 5
    # Nine of them would have as many tokens as a training batch, but there are five.
    assert corpus.elsewhere["at_40"].rule.batch == 5
    (whole,) = SelectiveCopying(length=20, copied=3, shortest=4, **SMALL).load().elsewhere.values()
    assert (whole.rule.length, whole.rule.shortest) == (20, None)
    (longer,) = Parity(shortest=3, longest=8, tested=20, **SMALL).load().elsewhere.values()
    (batch,) = longer.validation()
    lengths = batch["segment_ids"].sum(axis=1)[:9]
    assert lengths.min() >= 8
    assert lengths.max() > 8
    assert InductionHeads(length=9, symbols=6, **SMALL).load().elsewhere == {}
    with pytest.raises(UsageError, match="tested is 7; expected a whole number of at least 8"):
        Parity(shortest=3, longest=8, tested=7, **SMALL)
    with pytest.raises(UsageError, match="a length of tested is 2"):
        InductionHeads(length=9, symbols=6, tested=(2,), **SMALL)
