"""Beam search against every target there is, and against greedy search by hand."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax import registry
from arch_jax.errors import UsageError
from arch_jax.sampling import beam_search
from arch_jax.sampling.beam_search import BeamSearch

VOCABULARY, LENGTH, START, STOP = 5, 4, 0, 1


@functools.cache
def made():
    module = registry.entry("transformer-base").tiny().clone(vocabulary=VOCABULARY, dropout=0.0, tied=False)
    source = np.random.default_rng(0).integers(0, VOCABULARY, (12, 5)).astype(np.int32)
    params = jax.jit(module.init)(jax.random.key(3), jnp.asarray(source), jnp.asarray(source))["params"]
    # Tokens far apart and random scores of what follows each: the likeliest first token is often not the beginning of
    # the likeliest target.
    embedding = jax.random.normal(jax.random.key(56), (VOCABULARY, 16))
    kernel = 0.3 * jax.random.normal(jax.random.key(106), (16, VOCABULARY))
    return module, {"params": params | {"embedding": {"embedding": embedding}, "logits": {"kernel": kernel}}}, source


@functools.cache
def every_target():
    """All targets that end, and all open ones of full length: tokens, lengths, and log p "source target place"."""
    module, variables, source = made()
    targets = []
    for n in range(1, LENGTH + 1):
        for tokens in itertools.product(range(VOCABULARY), repeat=n):
            if STOP not in tokens[:-1] and (tokens[-1] == STOP or n == LENGTH):
                targets.append(tokens)
    padded = np.array([tokens + (STOP,) * (LENGTH - len(tokens)) for tokens in targets])
    lengths = np.array([len(tokens) for tokens in targets])
    inputs = np.concatenate([np.full((len(padded), 1), START), padded[:, :-1]], axis=1).astype(np.int32)

    @jax.jit
    def log_p(variables, row):
        logits = module.apply(variables, jnp.repeat(row[None], len(padded), axis=0), jnp.asarray(inputs))
        return jnp.take_along_axis(jax.nn.log_softmax(logits), padded[..., None], axis=-1)[..., 0]

    found = []
    for row in source:
        nats = log_p(variables, row)
        found.append(np.where(np.arange(LENGTH) < lengths[:, None], nats, 0))
    return padded, lengths, np.stack(found)


@pytest.mark.thorough
def test_a_wide_beam_finds_the_best_of_all():
    """As many beams as there are tokens miss nothing here: the answer is the exhaustive search's."""
    module, variables, source = made()
    padded, _, log_p = every_target()
    scores = np.where((padded == STOP).any(axis=1), log_p.sum(axis=-1), -np.inf)
    tokens, score = beam_search(module, variables, source, LENGTH, start=START, stop=STOP, beams=VOCABULARY)
    np.testing.assert_array_equal(tokens, padded[scores.argmax(axis=1)])
    np.testing.assert_allclose(score, scores.max(axis=1), rtol=1e-4)


def slow_search(log_p, beams, penalty):
    """Beam search as it is told: a list of open hypotheses, of which each step keeps the best extensions.

    `log_p` is that of any prefix. Never ends early; ended ones count if they are among the `beams` best extensions.
    """
    opened, done = [()], []
    for n in range(1, LENGTH + 1):
        extensions = sorted(((*h, t) for h in opened for t in range(VOCABULARY)), key=log_p, reverse=True)
        ended = [h for h in extensions[:beams] if h[-1] == STOP]
        done += [(log_p(h) / ((5 + n) / 6) ** penalty, h) for h in ended]
        opened = [h for h in extensions if h[-1] != STOP][:beams]
    if done:
        return max(done)
    return log_p(opened[0]) / ((5 + LENGTH) / 6) ** penalty, opened[0]


def test_its_settings_are_those_of_the_transformer():
    """Vaswani et al. 2017, section 6.1: four beams, and alpha = 0.6."""
    assert (BeamSearch().beams, BeamSearch().length_penalty) == (4, 0.6)


@pytest.mark.parametrize(
    ("beams", "penalty"),
    [
        (2, 0.6),
        *(
            pytest.param(*case, marks=pytest.mark.thorough)
            for case in ((2, 0.0), (3, 0.0), (3, 0.6), (2, 2.0), (3, 2.0))
        ),
    ],
)
def test_it_is_the_slow_search(beams, penalty):
    module, variables, source = made()
    padded, _, log_p = every_target()
    tokens, scores = beam_search(
        module, variables, source, LENGTH, start=START, stop=STOP, beams=beams, length_penalty=penalty
    )
    for nats, found, score in zip(log_p, np.asarray(tokens), np.asarray(scores)):
        prefixes = {tuple(t[:n].tolist()): x[:n].sum() for t, x in zip(padded, nats) for n in range(1, LENGTH + 1)}
        best, hypothesis = slow_search(prefixes.__getitem__, beams, penalty)
        assert list(hypothesis) + [STOP] * (LENGTH - len(hypothesis)) == found.tolist()
        np.testing.assert_allclose(score, best, rtol=1e-4)


@pytest.mark.thorough
def test_more_beams_find_likelier_targets():
    module, variables, source = made()
    options = {"start": START, "stop": None}
    scores = [beam_search(module, variables, source, LENGTH, beams=b, **options)[1] for b in (1, 2, 5)]
    assert np.all(np.diff(scores, axis=0) >= -1e-5)
    assert np.any(scores[2] > scores[0] + 1e-3), "greedy finds everything: the test tells nothing"


def test_one_beam_is_greedy():
    module, variables, source = made()
    tokens, score = beam_search(module, variables, source, LENGTH, start=START, stop=STOP, beams=1, length_penalty=0.6)
    apply = jax.jit(module.apply)
    for row, found, total in zip(source[:4], np.asarray(tokens), np.asarray(score)):
        written, log_p = [START], 0.0
        for _ in range(LENGTH):
            # What is filled in behind changes nothing before it: one length is compiled, not four.
            seen = np.array([written + [START] * (LENGTH - len(written))], np.int32)
            nats = jax.nn.log_softmax(apply(variables, jnp.asarray(row)[None], seen)[0, len(written) - 1])
            written.append(int(nats.argmax()))
            log_p += float(nats.max())
            if written[-1] == STOP:
                break
        written = written[1:] + [STOP] * (LENGTH + 1 - len(written))
        assert written == found.tolist()
        np.testing.assert_allclose(log_p, total, rtol=1e-4)


@pytest.mark.thorough
def test_sources_of_different_lengths():
    module, variables, source = made()
    rows = [row[:n].tolist() for row, n in zip(source[:3], (2, 5, 2))]
    options = {"start": START, "stop": STOP, "beams": 3}
    together = beam_search(module, variables, rows, LENGTH, **options)
    for i, row in enumerate(rows):
        alone = beam_search(module, variables, [row], LENGTH, **options)
        np.testing.assert_array_equal(together[0][i], alone[0][0])
        np.testing.assert_allclose(together[1][i], alone[1][0], rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beams": 0}, "beams is 0; expected 1 to 5"),
        ({"beams": 6}, "beams is 6; expected 1 to 5"),
        ({"length": 0}, "length is 0; expected at least 1"),
        ({"stop": 5}, "stop is token 5, outside the vocabulary; expected 0 to 4"),
        ({"length_penalty": -1.0}, "length_penalty is -1.0; expected at least 0"),
        ({"source": [[1], []]}, "a source is empty"),
    ],
)
def test_bad_input(changes, message):
    module, variables, source = made()
    options = {"source": source, "length": 3, "start": START, "stop": STOP} | changes
    with pytest.raises(UsageError, match=message):
        beam_search(module, variables, **options)
