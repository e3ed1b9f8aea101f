"""Sequence to sequence: what counts, what beam search is given, exact sequences, BLEU."""

import functools
import importlib
import math
import sys

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import arch_jax
from arch_jax import registry
from arch_jax.data import RandomPairs
from arch_jax.data.sequences.pairs import PairCorpus, Pairs
from arch_jax.evaluation.bleu import Translation, bleu
from arch_jax.objectives.scheduled_sampling import truth_share, written_with_own_words
from arch_jax.ops.losses import coverage_loss

#: The module, not the function of the same name that the package gives.
SEARCHING = importlib.import_module("arch_jax.sampling.beam_search")


def loss_of(it, *given):
    """The loss, compiled whole: op by op, every small operation would be compiled on its own."""
    player, *rest = given
    return jax.jit(it.loss, static_argnums=(0, 1))(player, "main", *rest, 0)


def evaluated(it, *given):
    """The evaluation, compiled whole."""
    return jax.jit(it.evaluate)(*given)


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
    monkeypatch.setattr(SEARCHING, "beam_search", greedy)


def task(model=None, **fields):
    return arch_jax.objective("sequence_to_sequence", **fields).with_model(model or Oracle())


@pytest.fixture(scope="module")
def corpus():
    return RandomPairs(symbols=6, shortest=2, length=5, batch=16, validation=40).load()


def test_only_real_tokens_count(corpus):
    it, given = task(), jax.tree.map(jnp.asarray, next(corpus.train(0)))
    variables = {"params": {"scale": jnp.float32(1.0)}}
    (total, weight), (metrics, _) = loss_of(it, "model", variables, given, jax.random.key(0))
    logits = jax.jit(it.model.apply)(variables, given["source"], given["target"])
    nats = -jnp.take_along_axis(jax.nn.log_softmax(logits), given["labels"][..., None], -1)[..., 0]
    assert float(total) == pytest.approx(float(jnp.sum(nats * given["weights"])), rel=1e-5)
    assert float(weight) == float(given["source_mask"].sum())
    assert metrics["loss"][0] == total
    given["labels"] = jnp.where(given["weights"] > 0, given["labels"], -1)  # gives NaN where it is looked at
    again, _ = loss_of(it, "model", variables, given, jax.random.key(0))
    assert float(again[0]) == float(total)


def test_smoothing_is_for_training_alone(corpus):
    variables = {"params": {"scale": jnp.float32(1.0)}}
    given = next(corpus.train(0))
    plain, smooth = (task(label_smoothing=s) for s in (0.0, 0.1))
    losses = [float(loss_of(it, "model", variables, given, jax.random.key(0))[0][0]) for it in (plain, smooth)]
    logits = plain.model.apply(variables, given["source"], given["target"])
    even = jnp.sum(-jnp.mean(jax.nn.log_softmax(logits), axis=-1) * given["weights"])
    assert losses[1] == pytest.approx(0.9 * losses[0] + 0.1 * float(even), rel=1e-5)
    assert len({float(evaluated(it, variables, given)["loss"][0]) for it in (plain, smooth)}) == 1


def test_exact_sequences_are_counted(corpus, search):
    """A model that writes 5 in place of 1: of the sequences, those without a 1 are right."""
    it = task(Oracle(wrong=5))
    it.check(corpus)
    variables = {"params": {"scale": jnp.float32(20.0)}}
    totals = [evaluated(it, variables, batch) for batch in corpus.validation()]
    exact = sum(float(m["exact"][0]) for m in totals) / sum(float(m["exact"][1]) for m in totals)
    real = [row[mask] for batch in corpus.validation() for row, mask in zip(batch["source"], batch["source_mask"])]
    real = [row for row in real if len(row)]
    assert len(real) == 40
    assert exact == pytest.approx(np.mean([1 not in row for row in real]))
    assert 0.1 < exact < 0.9
    accuracy = sum(float(m["accuracy"][0]) for m in totals) / sum(float(m["accuracy"][1]) for m in totals)
    assert accuracy == pytest.approx(np.mean(np.concatenate(real) != 1))
    assert it.measure(variables, corpus) == {"exact_beam": pytest.approx(exact)}


def test_what_beam_search_is_given(corpus, monkeypatch):
    calls = []

    def search(module, variables, source, length, **options):
        calls.append((source.shape, length, {k: v for k, v in options.items() if k != "source_mask"}))
        assert options["source_mask"].dtype == bool
        return greedy(module, variables, source, length, **options)

    monkeypatch.setattr(SEARCHING, "beam_search", search)
    task(beams=3, length_penalty=0.7, longest=2.0).measure({"params": {"scale": jnp.float32(20.0)}}, corpus)
    options = {"start": 6, "stop": 7, "beams": 3, "length_penalty": 0.7}
    assert calls == [((16, 6), 12, options)] * 3


def test_pairs_are_shown(corpus, search):
    text = task(Oracle(wrong=5), show_pairs=4).draw(
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
    right = task().measure(variables, translations(lowercase=True))
    assert right == {"exact_beam": 1.0, "bleu": pytest.approx(100)}
    # The same in lower case, held against references that are not.
    assert task().measure(variables, translations())["bleu"] < 60
    assert task(Oracle(wrong=2)).measure(variables, translations(lowercase=True))["bleu"] < 60


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
        Translation().check(task(), task().sampler, translations())


def test_wrong_settings_and_data_that_does_not_fit(corpus):
    with pytest.raises(arch_jax.UsageError, match="beams is 0; expected at least 1"):
        task(beams=0)
    with pytest.raises(arch_jax.UsageError, match="length_penalty is -1"):
        task(length_penalty=-1.0)
    with pytest.raises(arch_jax.UsageError, match=r"model.vocabulary is 7, but the data has 8 tokens; set"):
        task(Oracle(7)).check(corpus)
    with pytest.raises(arch_jax.UsageError, match="takes pairs of sequences, and the data has x"):
        task().check(arch_jax.Ring().load())


# Recurrent models: what the decoder is fed, what it looks at.


@functools.cache
def recurrent(name="bahdanau"):
    """(module, random variables, a batch of the tiny task)."""
    shrink = dict(registry.entry(name).shrink) | {"vocabulary": 8}
    module = arch_jax.create(name, **shrink | ({"extra": 0} if name == "pointer-generator" else {}))
    corpus = RandomPairs(symbols=6, shortest=2, length=5, batch=16, validation=40).load()
    batch = jax.tree.map(jnp.asarray, next(corpus.train(0)))
    shapes = jax.eval_shape(module.init, jax.random.key(0), batch["source"], batch["target"], batch["source_mask"])
    rng = np.random.default_rng(1)
    return module, jax.tree.map(lambda p: jnp.asarray(0.5 * rng.normal(size=p.shape), p.dtype), shapes), batch


def written(share, **options):
    module, variables, batch = recurrent()
    arguments = (batch["source"], batch["target"], batch["source_mask"])
    run = functools.partial(written_with_own_words, module, **options)
    return jax.jit(run)(variables, *arguments, share, jax.random.key(3))


def test_all_true_tokens_are_teacher_forcing():
    module, variables, batch = recurrent()
    logits, fed, weights = written(1.0)
    arguments = (batch["source"], batch["target"], batch["source_mask"])
    np.testing.assert_array_equal(fed, batch["target"])
    np.testing.assert_allclose(logits, jax.jit(module.apply)(variables, *arguments), atol=2e-6, rtol=1e-5)
    expected = jax.jit(functools.partial(module.apply, method="attention"))(variables, *arguments)
    np.testing.assert_allclose(weights, expected, atol=1e-5)
    # The share that is all of them takes the plain way, bit for bit: nothing is drawn.
    plain, forced = task(module), task(module, teacher_forcing=1.0, sampling="sample")
    losses = [loss_of(it, "model", variables, batch, jax.random.key(0))[0][0] for it in (plain, forced)]
    assert losses[0] == losses[1]


def test_no_true_tokens_are_greedy_decodings_own():
    module, variables, batch = recurrent()
    _, fed, _ = written(0.0)
    start = int(batch["target"][0, 0])
    tokens, _ = SEARCHING.beam_search(
        module, variables, batch["source"], fed.shape[1], source_mask=batch["source_mask"], start=start, stop=None
    )
    np.testing.assert_array_equal(fed[:, 0], start)
    np.testing.assert_array_equal(fed[:, 1:], tokens[:, :-1])


def test_a_share_of_true_tokens_is_drawn_for_each():
    """The tokens that differ from the truth are about a share of those that could; sampled ones vary with the key."""
    _, _, batch = recurrent()
    _, own, _ = written(0.0)
    _, fed, _ = written(0.5)
    true = batch["target"]
    honest = np.asarray(fed == true)[:, 1:][np.asarray(own != true)[:, 1:]]
    assert 0.3 < honest.mean() < 0.7
    _, sampled, _ = written(0.0, sample=True)
    assert (np.asarray(sampled) != np.asarray(own)).any()


@pytest.mark.thorough
def test_no_gradient_passes_through_a_chosen_token():
    """With the tokens that it chose given as true ones, loss and gradient are the same."""
    module, variables, batch = recurrent()
    _, fed, _ = written(0.0)
    own, true = task(module, teacher_forcing=0.0), task(module)
    slope = lambda it, batch: jax.jit(
        jax.grad(lambda v: it.loss("model", "main", v, batch, jax.random.key(3), 0)[0][0])
    )(variables)
    found, expected = slope(own, batch), slope(true, batch | {"target": fed})
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    chex.assert_trees_all_close(found, expected, atol=1e-5 * largest, rtol=0)


@pytest.mark.parametrize(
    ("decay", "rate", "expected"),
    [
        ("constant", 0.0, [0.9, 0.9, 0.9]),
        ("linear", 0.01, [0.9, 0.8, 0.2]),
        ("exponential", 0.99, [0.9, 0.9 * 0.99**10, 0.9 * 0.99**100]),
        ("inverse_sigmoid", 20.0, [0.9 * 20 / (20 + math.exp(i / 20)) for i in (0, 10, 100)]),
    ],
)
def test_the_share_falls_as_the_paper_has_it(decay, rate, expected):
    found = [float(truth_share(decay, 0.9, rate, 0.2, i)) for i in (0, 10, 100)]
    np.testing.assert_allclose(found, np.maximum(expected, 0.2), rtol=1e-5)


def test_updates_are_counted_in_training():
    module, _, batch = recurrent()
    it = task(module, decay="linear", decay_rate=0.25)
    variables = jax.jit(it.init)(jax.random.key(0), batch)
    loss = jax.jit(functools.partial(it.total_loss, "model", "main"))
    shares = []
    for i in range(3):
        _, (metrics, updates) = loss(variables, batch, jax.random.key(i), 0)
        variables |= updates
        shares.append(float(metrics["share"][0]))
    assert shares == [1.0, 0.75, 0.5]
    assert np.isfinite(evaluated(it, variables, batch)["loss"][0])


def test_coverage_counts_what_is_read_again():
    weights = jnp.array([[[0.5, 0.5, 0.0], [0.2, 0.3, 0.5], [1.0, 0.0, 0.0]]])
    np.testing.assert_allclose(coverage_loss(weights), [[0.0, 0.5, 0.7]], atol=1e-6)
    module, variables, batch = recurrent("pointer-generator")
    arguments = (batch["source"], batch["target"], batch["source_mask"])
    read = jax.jit(functools.partial(module.apply, method="attention"))(variables, *arguments)
    lost = float(jnp.sum(coverage_loss(read) * batch["weights"]))
    losses = {}
    for share in (1.0, 1 - 1e-7):  # by the plain way, and token by token
        for weight in (0.0, 2.0):
            it = task(module, coverage=weight, teacher_forcing=share)
            (total, _), (metrics, _) = loss_of(it, "model", variables, batch, jax.random.key(0))
            losses[share, weight] = float(total)
        assert float(metrics["coverage"][0]) == pytest.approx(lost, rel=1e-4)
        assert losses[share, 2.0] - losses[share, 0.0] == pytest.approx(2 * lost, rel=1e-3)


def test_where_a_model_looks_is_drawn(corpus):
    module, variables, _ = recurrent()
    shown = task(module, beams=1).draw(variables, corpus, jax.random.key(0))
    axes = shown["alignment"].get_axes()
    assert len(axes) == 4
    batch = next(iter(corpus.validation()))
    source = batch["source"][0][batch["source_mask"][0]]
    labels = [text.get_text() for text in axes[0].get_xticklabels()]
    assert labels == [*map(str, source[:-1]), "end"]
    drawn = axes[0].images[0].get_array()
    assert drawn.shape == (int(batch["weights"][0].sum()), len(source))
    np.testing.assert_allclose(drawn.sum(axis=1), 1, rtol=1e-6)
    assert "alignment" not in task(recurrent("cho")[0], beams=1).draw(recurrent("cho")[1], corpus, jax.random.key(0))


def test_wrong_settings_of_what_is_fed(corpus):
    cases = [
        (lambda: task(teacher_forcing=1.5), "teacher_forcing is 1.5; expected a share from 0 to 1"),
        (lambda: task(decay="linaer", decay_rate=0.1), "unknown decay 'linaer'; the nearest is 'linear'"),
        (lambda: task(decay="exponential", decay_rate=1.0), "decay_rate is 1.0; expected between 0 and 1"),
        (lambda: task(decay="inverse_sigmoid", decay_rate=0.5), "decay_rate is 0.5; expected at least 1"),
        (lambda: task(decay="linear"), "decay_rate is 0.0; expected more than 0"),
        (lambda: task(sampling="greedy"), "unknown sampling 'greedy'; valid are 'argmax', 'sample'"),
        (lambda: task(coverage=-1.0), "coverage is -1.0; expected at least 0"),
        (lambda: task(teacher_forcing=0.5).check(corpus), "feeds a decoder its own words, which Oracle is not"),
        (lambda: task(recurrent("cho")[0], coverage=1.0).check(corpus), "Cho gives no weights over the source"),
        (
            lambda: task(recurrent("cho")[0].clone(source_vocabulary=5)).check(corpus),
            "source_vocabulary is 5, but the data has 8 tokens; set model.source_vocabulary=8",
        ),
    ]
    for call, message in cases:
        with pytest.raises(arch_jax.UsageError, match=message):
            call()
