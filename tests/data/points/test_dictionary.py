"""Sums of planted atoms."""

import itertools
import json

import jaxtyping
import numpy as np
import pytest

from arch_jax.data import PlantedDictionary
from arch_jax.errors import UsageError
from arch_jax.fields import from_json, to_json

REFUSED = (UsageError, jaxtyping.TypeCheckError)


def take(iterator, n):
    return [batch["x"] for batch in itertools.islice(iterator, n)]


def test_the_corpus_says_what_it_holds():
    corpus = PlantedDictionary(atoms=9, features=5, batch=4).load()
    assert corpus.shapes == {"x": ((4, 5), "float32")}
    facts = json.loads(json.dumps(corpus.facts))
    assert (facts["source"], facts["atoms"], len(facts["sha256"])) == ("planted_dictionary", 9, 64)
    assert facts["sha256"] != PlantedDictionary(atoms=9, features=5, dictionary_seed=1).load().facts["sha256"]
    assert from_json(to_json(PlantedDictionary(active=2))) == PlantedDictionary(active=2)
    np.testing.assert_allclose(np.linalg.norm(corpus.atoms, axis=1), 1, rtol=1e-6)


def test_every_vector_is_a_sum_of_as_many_atoms_as_asked():
    """With no more atoms than coordinates the shares follow from the vector."""
    corpus = PlantedDictionary(atoms=6, features=8, active=2, batch=5000).load()
    (x,) = take(corpus.train(0), 1)
    shares = np.linalg.lstsq(corpus.atoms.T.astype(float), x.T.astype(float), rcond=None)[0].T
    active = np.abs(shares) > 1e-4
    assert set(active.sum(axis=1)) == {2}
    np.testing.assert_allclose(active.mean(axis=0), 2 / 6, atol=0.03)
    np.testing.assert_allclose(np.quantile(shares[active], [0, 0.5, 1]), [0.5, 1.0, 1.5], atol=0.02)


def test_noise_has_its_deviation():
    clean, noisy = (PlantedDictionary(noise=noise, batch=2000).load().train(3) for noise in (0.0, 0.1))
    # Drawn after the atoms and the shares, which are therefore the same.
    np.testing.assert_allclose(np.std(take(noisy, 1)[0] - take(clean, 1)[0]), 0.1, rtol=0.02)


def test_batches_are_new_determined_by_the_seed_and_resumed():
    corpus = PlantedDictionary(atoms=9, features=5, batch=6).load()
    batches = take(corpus.train(1), 8)
    assert len({row.tobytes() for batch in batches for row in batch}) == 48
    iterator = corpus.train(1)
    assert np.array_equal(take(iterator, 5), batches[:5])
    state = json.loads(json.dumps(iterator.get_state()))
    restored = corpus.train(1)
    restored.set_state(state)
    assert np.array_equal(take(restored, 3), batches[5:])
    shards = [take(corpus.train(1, (i, 3)), 8) for i in range(3)]
    assert np.array_equal(np.concatenate(shards, axis=1), batches)
    assert not np.array_equal(take(corpus.train(2), 1)[0], batches[0])


def test_validation_has_the_truth_beside_it():
    corpus = PlantedDictionary(atoms=9, features=5, validation=7).load()
    (batch,) = corpus.validation()
    assert batch["x"].shape == (7, 5)
    assert np.array_equal(batch["atoms"], corpus.atoms)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"atoms": 0}, "atoms is 0; expected a whole number of at least 1"),
        ({"active": 200}, "active is 200; expected at most atoms, 128"),
        ({"noise": -1.0}, "noise is -1.0; expected a finite number of at least 0"),
        ({"noise": "1"}, "noise is '1'"),
    ],
)
def test_a_wrong_field_is_one_sentence(settings, says):
    with pytest.raises(REFUSED) as caught:
        PlantedDictionary(**settings)
    assert says in str(caught.value) or not isinstance(caught.value, UsageError)
