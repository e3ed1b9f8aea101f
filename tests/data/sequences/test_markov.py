"""Markov chains: entropies by enumeration, the ideal predictor by brute force, batches."""

import itertools
import json

import numpy as np
import pytest

from arch_jax.data import Markov
from arch_jax.data.sequences.markov_chain import MASKED, Chain, Corruption
from arch_jax.errors import UsageError

HOW = Corruption(share=0.3, masked=0.6, random=0.3)


def enumerated(chain, length, how):
    """Every (x, y) of a tiny chain: joint probability, and that joint with "t was chosen" for each t."""
    states = len(chain.stationary)
    for x in itertools.product(range(states), repeat=length):
        prior = chain.stationary[x[0]] * np.prod([chain.transition[a, b] for a, b in itertools.pairwise(x)])
        for y in itertools.product(range(MASKED, states), repeat=length):
            replaced = np.array(
                [how.masked if b == MASKED else how.random / states + how.kept * (a == b) for a, b in zip(x, y)]
            )
            stayed = np.array([float(a == b) for a, b in zip(x, y)])
            each = how.share * replaced + (1 - how.share) * stayed
            chosen = [prior * how.share * replaced[t] * np.prod(np.delete(each, t)) for t in range(length)]
            yield x, y, prior * each.prod(), chosen


@pytest.fixture(scope="module")
def tiny():
    chain = Chain.random(3, 0.7, 1)
    return chain, list(enumerated(chain, 4, HOW))


def test_the_ideal_predictor_is_the_posterior(tiny):
    chain, table = tiny
    assert sum(p for _, _, p, _ in table) == pytest.approx(1, abs=1e-12)
    expected = {}
    for x, y, _, chosen in table:
        found = expected.setdefault(y, np.zeros((4, 3)))
        for t in range(4):
            found[t, x[t]] += chosen[t]
    seen = np.array(list(expected))
    by_hand = np.array(list(expected.values()))
    by_hand /= by_hand.sum(-1, keepdims=True)
    np.testing.assert_allclose(chain.posterior(seen, HOW), by_hand, atol=1e-12)


def test_the_masked_entropy_is_its_expected_loss(tiny):
    chain, table = tiny
    expected, weight = 0.0, 0.0
    posterior = {y: chain.posterior(np.array([y]), HOW)[0] for y in {y for _, y, _, _ in table}}
    for x, y, _, chosen in table:
        for t in range(4):
            expected -= chosen[t] * np.log(posterior[y][t, x[t]])
            weight += chosen[t]
    # 20,000 draws of what the others show; what happens at t itself is summed over.
    assert chain.masked_entropy(4, HOW, count=20_000) == pytest.approx(expected / weight, rel=0.005)


def test_entropies_of_a_known_chain():
    """A symmetric chain that stays with probability 0.9: h = H(0.9), and two steps stay with 0.82."""
    chain = Chain.of(np.array([[0.9, 0.1], [0.1, 0.9]]))
    entropy = lambda p: -p * np.log(p) - (1 - p) * np.log(1 - p)
    assert chain.stationary == pytest.approx([0.5, 0.5])
    assert chain.entropy_rate == pytest.approx(entropy(0.9))
    assert chain.two_sided_entropy == pytest.approx(2 * entropy(0.9) - entropy(0.82))
    # One token hidden among known ones: inner tokens have two neighbours, those at the ends one.
    rare = Corruption(share=1e-9, masked=1.0, random=0.0)
    inner, ends = chain.two_sided_entropy, chain.entropy_rate
    assert chain.masked_entropy(10, rare, count=20_000) == pytest.approx((8 * inner + 2 * ends) / 10, rel=0.02)


def test_sequences_follow_the_chain():
    chain = Chain.random(4, 1.0, 3)
    assert chain.stationary @ chain.transition == pytest.approx(chain.stationary, abs=1e-12)
    x = chain.sample(np.random.default_rng(0), 4000, 20)
    assert np.bincount(x[:, 0], minlength=4) / 4000 == pytest.approx(chain.stationary, abs=0.03)
    counts = np.zeros((4, 4))
    np.add.at(counts, (x[:, :-1].ravel(), x[:, 1:].ravel()), 1)
    assert counts / counts.sum(1, keepdims=True) == pytest.approx(chain.transition, abs=0.02)
    seen = chain.corrupted(np.random.default_rng(1), x, Corruption())
    assert np.mean(seen == MASKED) == pytest.approx(0.12, abs=0.005)
    assert np.mean((seen != x) & (seen != MASKED)) == pytest.approx(0.015 * 3 / 4, abs=0.002)


def test_chains_that_are_none_are_refused():
    with pytest.raises(UsageError, match="rows that are no distributions"):
        Chain.of(np.array([[0.5, 0.6], [0.5, 0.5]]))
    with pytest.raises(UsageError, match="falls into parts that never meet"):
        Chain.of(np.eye(3))


def test_batches_are_new_resumable_and_sharded():
    corpus = Markov(states=5, length=7, batch=6, validation=10).load()
    batch = next(corpus.train(0))
    assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == corpus.shapes
    assert batch["tokens"].max() < 5
    assert corpus.vocabulary == 6
    take = lambda iterator, n: [batch["tokens"] for batch in itertools.islice(iterator, n)]
    whole = take(corpus.train(2), 4)
    assert len({row.tobytes() for rows in whole for row in rows}) > 20
    assert np.array_equal(np.concatenate([take(corpus.train(2, (i, 3)), 4) for i in range(3)], axis=1), whole)
    iterator = corpus.train(2)
    take(iterator, 3)
    restored = corpus.train(2)
    restored.set_state(json.loads(json.dumps(iterator.get_state())))
    assert np.array_equal(take(restored, 1), whole[3:])
    assert [float(batch["weights"].sum()) for batch in corpus.validation()] == [6, 4]


def test_the_corpus_says_what_it_holds():
    corpus = Markov().load()
    facts = json.loads(json.dumps(corpus.facts))
    assert facts["two_sided_entropy"] < facts["masked_entropy"] < facts["entropy_rate"] == corpus.entropy_rate
    assert facts["sha256"] != Markov(chain_seed=1).load().facts["sha256"]
    assert corpus.decode([0, 8, 3]) == "0 [MASK] 3"
    seen = np.array([[0, 8, 3, 8]])
    probabilities = np.exp(corpus.ideal(seen, 0.15, 0.8, 0.1))
    assert probabilities.sum(-1) == pytest.approx(np.ones((1, 4)))
    # Where nothing is corrupted, the last token's law is the row of the one before it.
    last = np.exp(corpus.ideal(seen, 0.0, 1.0, 0.0))[0, 3]
    assert last == pytest.approx(corpus.chain.transition[3], abs=1e-9)
    with pytest.raises(UsageError, match=r"concentration is 0.0; expected a finite number above 0"):
        Markov(concentration=0.0)
