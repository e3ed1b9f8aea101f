"""Sequence to sequence: what counts, what beam search is given, exact sequences, BLEU."""

import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import arch_jax
from arch_jax import decoding
from arch_jax.data import RandomPairs
from arch_jax.data.pairs import PairCorpus, Pairs
from arch_jax.objectives.sequence_to_sequence import bleu


class Oracle(nn.Module):
    """Stands in for an encoder-decoder: it copies, and says `wrong` in place of the symbol 1."""

    vocabulary: int = 8
    wrong: int = 1

    @nn.compact
    def __call__(self, source, target, source_mask=None, train=False):
        scale = self.param("scale", nn.initializers.constant(20.0), ())
        width = target.shape[1]
        source = jnp.pad(source, ((0, 0), (0, max(0, width - source.shape[1]))))[:, :width]
        said = jnp.where(source == 1, self.wrong, source)
        return scale * jax.nn.one_hot(said, self.vocabulary)


def greedy(module, variables, source, length, *, source_mask=None, start, stop, beams=1, length_penalty=0.0):
    """Beam search's stand-in: one beam, by recomputing everything at each step."""
    tokens = jnp.full((len(source), length + 1), start)
    done = jnp.zeros(len(source), bool)
    for t in range(length):
        logits = module.apply(variables, source, tokens[:, :-1], source_mask)
        new = jnp.where(done, stop, jnp.argmax(logits[:, t], axis=-1))
        tokens, done = tokens.at[:, t + 1].set(new), done | (new == stop)
    return tokens[:, 1:].astype(jnp.int32), jnp.zeros(len(source))


@pytest.fixture
def search(monkeypatch):
    monkeypatch.setattr(decoding, "beam_search", greedy, raising=False)


def task(model=None, **fields):
    return arch_jax.objective("sequence_to_sequence", **fields).with_model(model or Oracle())


@pytest.fixture(scope="module")
def corpus():
    return RandomPairs(symbols=6, shortest=2, length=5, batch=16, validation=40).load()


def test_only_real_tokens_count(corpus):
    it, given = task(), jax.tree.map(jnp.asarray, next(corpus.train(0)))
    variables = {"params": {"scale": jnp.float32(1.0)}}
    (total, weight), (metrics, _) = it.loss("model", variables, given, jax.random.key(0))
    logits = it.model.apply(variables, given["source"], given["target"])
    nats = -jnp.take_along_axis(jax.nn.log_softmax(logits), given["labels"][..., None], -1)[..., 0]
    assert float(total) == pytest.approx(float(jnp.sum(nats * given["weights"])), rel=1e-5)
    assert float(weight) == float(given["source_mask"].sum())
    assert metrics["loss"][0] == total
    given["labels"] = jnp.where(given["weights"] > 0, given["labels"], -1)  # gives NaN where it is looked at
    again, _ = it.loss("model", variables, given, jax.random.key(0))
    assert float(again[0]) == float(total)


def test_smoothing_is_for_training_alone(corpus):
    variables = {"params": {"scale": jnp.float32(1.0)}}
    given = next(corpus.train(0))
    plain, smooth = (task(label_smoothing=s) for s in (0.0, 0.1))
    losses = [float(it.loss("model", variables, given, jax.random.key(0))[0][0]) for it in (plain, smooth)]
    logits = plain.model.apply(variables, given["source"], given["target"])
    even = jnp.sum(-jnp.mean(jax.nn.log_softmax(logits), axis=-1) * given["weights"])
    assert losses[1] == pytest.approx(0.9 * losses[0] + 0.1 * float(even), rel=1e-5)
    assert len({float(it.evaluate(variables, given)["loss"][0]) for it in (plain, smooth)}) == 1


def test_exact_sequences_are_counted(corpus, search):
    """A model that writes 5 in place of 1: of the sequences, those without a 1 are right."""
    it = task(Oracle(wrong=5))
    it.check(corpus)
    variables = {"params": {"scale": jnp.float32(20.0)}}
    totals = [it.evaluate(variables, batch) for batch in corpus.validation()]
    exact = sum(float(m["exact"][0]) for m in totals) / sum(float(m["exact"][1]) for m in totals)
    real = [row[mask] for batch in corpus.validation() for row, mask in zip(batch["source"], batch["source_mask"])]
    real = [row for row in real if len(row)]
    assert len(real) == 40
    assert exact == pytest.approx(np.mean([1 not in row for row in real]))
    assert 0.1 < exact < 0.9
    accuracy = sum(float(m["accuracy"][0]) for m in totals) / sum(float(m["accuracy"][1]) for m in totals)
    assert accuracy == pytest.approx(np.mean(np.concatenate(real) != 1))
    assert it.score(variables, corpus) == {"exact_beam": pytest.approx(exact)}


def test_what_beam_search_is_given(corpus, monkeypatch):
    calls = []

    def search(module, variables, source, length, **options):
        calls.append((source.shape, length, {k: v for k, v in options.items() if k != "source_mask"}))
        assert options["source_mask"].dtype == bool
        return greedy(module, variables, source, length, **options)

    monkeypatch.setattr(decoding, "beam_search", search, raising=False)
    task(beams=3, length_penalty=0.7, longest=2.0).score({"params": {"scale": jnp.float32(20.0)}}, corpus)
    options = {"start": 6, "stop": 7, "beams": 3, "length_penalty": 0.7}
    assert calls == [((16, 6), 12, options)] * 3


def test_pairs_are_shown(corpus, search):
    text = task(Oracle(wrong=5), show_pairs=4).show(
        {"params": {"scale": jnp.float32(20.0)}}, corpus, jax.random.key(0)
    )["text"]
    assert text.count("source ") == text.count("reference ") == text.count("model ") == 4
    batch = next(iter(corpus.validation()))
    differs = sum(1 in row[mask] for row, mask in zip(batch["source"][:4], batch["source_mask"]))
    assert text.count("[differs]") == differs


def translations(lowercase=False):
    words = ["a", "Man", "with", "the", "hat", "."]
    sentences = [np.array(row, np.int32) for row in ([0, 1, 2, 3, 4, 5], [3, 1, 2, 0, 4, 5])]
    pairs = Pairs.of(sentences, sentences, None, 6, 7)
    texts = tuple(" ".join(words[i] for i in row) for row in sentences)
    decode = lambda ids: " ".join(words[i] for i in np.asarray(ids).tolist()).lower()
    return PairCorpus(
        data=None, batch=2, lengths=(7, 7), draw=lambda seed, number: pairs.rows(np.arange(2)), held_out=pairs,
        start=6, stop=7, vocabulary=8, facts={}, decode=decode, tests=pairs, references=texts, lowercase=lowercase,
    )  # fmt: skip


def test_translations_are_scored_by_bleu(search):
    pytest.importorskip("sacrebleu")
    variables = {"params": {"scale": jnp.float32(20.0)}}
    right = task().score(variables, translations(lowercase=True))
    assert right == {"exact_beam": 1.0, "bleu": pytest.approx(100)}
    # The same in lower case, held against references that are not.
    assert task().score(variables, translations())["bleu"] < 60
    assert task(Oracle(wrong=2)).score(variables, translations(lowercase=True))["bleu"] < 60


def test_bleu_is_sacrebleus():
    sacrebleu = pytest.importorskip("sacrebleu")
    said = ["The dog bit the man .", "It was not unexpected ."]
    references = ["The dog bit the man.", "It was no surprise."]
    assert bleu(said, references) == pytest.approx(sacrebleu.BLEU().corpus_score(said, [references]).score)
    with pytest.raises(arch_jax.UsageError, match="there are 1 translations of 2 references"):
        bleu(said[:1], references)


def test_without_sacrebleu_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(arch_jax.UsageError, match=r"install it with pip install 'arch-jax\[translation\]'"):
        bleu(["a"], ["a"])
    with pytest.raises(arch_jax.UsageError, match="BLEU needs sacrebleu, which is not installed"):
        task().check(translations())


def test_wrong_settings_and_data_that_does_not_fit(corpus):
    with pytest.raises(arch_jax.UsageError, match="beams is 0; expected at least 1"):
        task(beams=0)
    with pytest.raises(arch_jax.UsageError, match="length_penalty is -1"):
        task(length_penalty=-1.0)
    with pytest.raises(arch_jax.UsageError, match=r"model.vocabulary is 7, but the data has 8 tokens; set"):
        task(Oracle(7)).check(corpus)
    with pytest.raises(arch_jax.UsageError, match="takes pairs of sequences, and the data has x"):
        task().check(arch_jax.Ring().load())
