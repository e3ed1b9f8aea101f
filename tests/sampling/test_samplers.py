"""Samplers by their contract: settings, rows that don't depend on their number, what each gives."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import arch_jax
from arch_jax.discovery import import_components
from arch_jax.errors import UsageError
from arch_jax.fields import components, from_json, to_json
from arch_jax.sampling.autoregressive import Autoregressive
from arch_jax.sampling.beam_search import BeamSearch
from arch_jax.sampling.fill_mask import FillMask
from arch_jax.sampling.generator import GeneratorSampler
from arch_jax.sampling.latent_prior import LatentPrior
from arch_jax.sampling.predict import Predict
from arch_jax.sampling.reconstruct import Reconstruct


def ready(task, corpus):
    batch = jax.tree.map(jnp.asarray, next(iter(corpus.validation())))
    return jax.jit(task.init)(jax.random.key(0), batch)


@pytest.mark.parametrize("kind", ["sampler", "measure", "figure"])
def test_each_is_written_as_json_and_read_back(kind):
    import_components()
    named = components(kind)
    assert len(named) >= 4
    for name, cls in named.items():
        one = cls()
        assert to_json(one)["module"] == name
        assert from_json(to_json(one), kind) == one
        assert hash(one) == hash(cls())


@pytest.fixture(scope="module")
def text():
    data = arch_jax.Repeats(symbols=8, stretch=4, batch=2, validation=4)
    model = arch_jax.create("gpt", vocabulary=8, depth=1, width=16, mixer=arch_jax.Attention(heads=2))
    task, corpus = arch_jax.objective("next_token", prompt="!").with_model(model), data.load()
    return task, corpus, ready(task, corpus)


def test_continuations(text):
    task, corpus, variables = text
    sampler = Autoregressive(prompt='!"', length=5, temperature=1.0)
    one = sampler(task, variables, corpus, jax.random.key(0))
    assert one.keys() == {"text"}
    assert one["text"].startswith('!"')
    assert len(one["text"]) == 7
    several = sampler(task, variables, corpus, jax.random.key(0), 3)
    assert list(several) == ["sample_1", "sample_2", "sample_3"]
    tokens = arch_jax.generate(task.model, variables, [corpus.tokenizer.encode('!"')] * 3, 5, jax.random.key(0))
    assert list(several.values()) == ['!"' + corpus.tokenizer.decode(row) for row in np.asarray(tokens)]


def test_what_continuations_refuse(text):
    task, corpus, _ = text
    with pytest.raises(UsageError, match="the prompt is empty"):
        Autoregressive(prompt="").check(task, corpus)
    with pytest.raises(UsageError, match="is not among the"):
        Autoregressive(prompt="\n").check(task, corpus)
    wrong_ones = ({"length": 0}, "length is 0"), ({"temperature": -1.0}, "temperature is -1"), ({"top_k": 0}, "top_k")
    for wrong, sentence in wrong_ones:
        with pytest.raises(UsageError, match=sentence):
            Autoregressive(**wrong)
    with pytest.raises(UsageError, match="count is 0; expected at least 1"):
        Autoregressive(prompt="!")(task, {}, corpus, jax.random.key(0), 0)


def test_an_experiment_checks_its_sampler_before_training(text, tmp_path):
    task, _, _ = text
    data = arch_jax.Repeats(symbols=8, stretch=4, batch=2, validation=4)
    it = arch_jax.Experiment(task.model, arch_jax.objective("next_token", prompt="!"), data, steps=1, log_every=1)
    with pytest.raises(UsageError, match="the prompt is empty"):
        arch_jax.train(it.overridden({"sampler.prompt": ""}), tmp_path)
    assert not (tmp_path / "config.json").exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"sampler": "beam_search"}, "BeamSearch needs `start` of the data, which DrawnCorpus does not have"),
        (
            {"sampler": "reconstruct"},
            "Reconstruct needs `reconstructions` of the objective, which NextToken does not have",
        ),
        ({"sampler": "generator"}, "GeneratorSampler needs `generator` of the model, which Decoder does not have"),
        ({"figures": '["predictions"]'}, "Predictions needs `classes` of the data, which DrawnCorpus does not have"),
        ({"figures": '["regression"]', "sampler": "predict"}, None),
        ({"figures": '["latent_map"]'}, "LatentMap needs `latent_shape` of the model"),
        ({"figures": '["node_embedding"]'}, "NodeEmbedding needs 'nodes' in the data's batches, which have tokens"),
        ({"measures": '["translation"]'}, "the measure 'translation' needs a sampler that finds targets"),
        ({"measures": '["known_source"]'}, "KnownSource needs `corrupted` of the objective"),
    ],
)
def test_a_component_that_does_not_suit_the_run_is_refused_before_training(text, change, sentence):
    task, corpus, _ = text
    data = arch_jax.Repeats(symbols=8, stretch=4, batch=2, validation=4)
    it = arch_jax.Experiment(task.model, arch_jax.objective("next_token", prompt="!"), data, steps=1).overridden(change)
    if sentence is None:
        it.check(corpus)  # targets are there; they are tokens
        return
    with pytest.raises(UsageError) as caught:
        it.check(corpus)
    assert str(caught.value).startswith(sentence)


def test_parts_of_the_default_are_overridden_and_the_rest_stays():
    it = arch_jax.Experiment(arch_jax.create("gpt"), arch_jax.objective("next_token", prompt="abc"), arch_jax.Text())
    assert it.sampler is None
    assert it.used_sampler == Autoregressive(prompt="abc")
    other = it.overridden({"sampler.temperature": "0.25", "objective.show_length": "7"})
    assert other.sampler == Autoregressive(prompt="abc", length=7, temperature=0.25)
    assert it.overridden({"figures.0.count": "3"}).figures == (dataclasses.replace(it.used_figures[0], count=3),)
    assert it.overridden({"measures": "[]"}).used_measures == ()
    assert it.overridden({"sampler": "predict"}).used_sampler == Predict()
    with pytest.raises(UsageError, match=r"unknown field 'sampler\.temprature'; the nearest are"):
        it.overridden({"sampler.temprature": "1"})
    assert arch_jax.Experiment.from_json(other.to_json()) == other


def test_a_learned_table_of_positions_limits_the_default_length():
    model = arch_jax.create("gpt2", position=arch_jax.LearnedPosition(length=40), depth=1, width=16, vocabulary=256)
    assert arch_jax.objective("next_token").with_model(model).sampler.length == 32


def test_generated_rows_do_not_depend_on_their_number():
    data = arch_jax.Ring(batch=8, validation=16).load()
    task = arch_jax.objective("adversarial").with_model(
        arch_jax.create("gan", **{"generator.hidden": (8,), "discriminator.hidden": (8,)})
    )
    variables = ready(task, data)
    few, many = (GeneratorSampler()(task, variables, data, jax.random.key(3), n) for n in (2, 5))
    np.testing.assert_allclose(few["coordinates"], many["coordinates"][:2], rtol=1e-6)
    assert many["points"].splitlines()[:2] == few["points"].splitlines()
    read = [list(map(float, row.split())) for row in few["points"].splitlines()]
    np.testing.assert_allclose(read, few["coordinates"], rtol=1e-5)


@pytest.fixture(scope="module")
def digits():
    return arch_jax.Images(source="digits", batch=4, resize=16, low=-1.0, high=1.0, validation=0.2).load()


def test_images_from_the_prior(digits):
    model = arch_jax.create("vae", resolution=16, widths=(4, 4), latent=3, likelihood="gaussian")
    task = arch_jax.objective("variational").with_model(model)
    variables = ready(task, digits)
    few, many = (LatentPrior()(task, variables, digits, jax.random.key(1), n)["images"] for n in (2, 14))
    assert many.shape == (14, 16, 16, 1)
    np.testing.assert_allclose(few, many[:2], rtol=1e-5, atol=1e-6)
    cold = LatentPrior(temperature=0.0)(task, variables, digits, jax.random.key(1), 2)["images"]
    np.testing.assert_array_equal(cold[0], cold[1])
    figure = LatentPrior()(task, variables, digits, jax.random.key(1), 14)["samples"]
    assert sum(bool(axes.images) for axes in figure.axes) == 14
    shown = figure.axes[0].images[0].get_array()
    np.testing.assert_allclose(shown, np.clip((many[0, ..., 0] + 1) / 2, 0, 1), rtol=1e-5)


def test_reconstructions(digits):
    model = arch_jax.create("autoencoder-convolutional", resolution=16, widths=(4, 4), latent=3)
    task = arch_jax.objective("autoencode", masked=0.5).with_model(model)
    variables = ready(task, digits)
    made = Reconstruct()(task, variables, digits, jax.random.key(0), 3)
    assert set(made) == {"reconstructions", "original", "corrupted", "reconstruction"}
    originals = np.concatenate([batch["images"] for batch in digits.validation()])[:3]
    np.testing.assert_array_equal(made["original"], originals)
    kept = made["corrupted"] != 0
    np.testing.assert_array_equal(made["corrupted"][kept], originals[kept])
    assert 0.3 < kept.mean() < 0.7
    expected = jax.jit(model.apply)(variables, made["corrupted"])
    np.testing.assert_allclose(made["reconstruction"], expected, rtol=1e-4, atol=1e-5)


def test_predictions_of_a_classifier_and_of_a_regression(digits):
    task = arch_jax.objective("classify").with_model(arch_jax.create("mlp", hidden=(4,)))
    variables = ready(task, digits)
    made = Predict()(task, variables, digits, jax.random.key(0), 6)
    labels = np.concatenate([batch["labels"] for batch in digits.validation()])[:6]
    probabilities = np.asarray(jax.nn.softmax(made["outputs"]))
    for i, line in enumerate(made["predictions"].splitlines()):
        guess = probabilities[i].argmax()
        wrong = "" if guess == labels[i] else f" (is {labels[i]})"
        assert line == f"{i}: {guess}, probability {probabilities[i, guess]:.3f}{wrong}"

    corpus = arch_jax.AddingProblem(length=6, batch=4, validation=4).load()
    task = arch_jax.objective("regress").with_model(arch_jax.SequenceReader(mixer=arch_jax.RNN(), width=4))
    made = Predict()(task, ready(task, corpus), corpus, jax.random.key(0), 9)  # there are only four
    assert made["outputs"].shape == (4, 1)
    target = float(next(iter(corpus.validation()))["targets"][0].squeeze())
    assert made["predictions"].splitlines()[0] == f"0: {made['outputs'][0, 0]:.4g} (is {target:.4g})"


class Repeating(nn.Module):
    """An encoder that is sure of the token before each place, and even more of one that stands for no text."""

    vocabulary: int = 258

    def __call__(self, tokens, types=None, mask=None, train=False):
        before = jax.nn.one_hot(jnp.roll(tokens, 1, axis=1), self.vocabulary)
        return {"logits": 5 * before + 9 * jax.nn.one_hot(jnp.full_like(tokens, 257), self.vocabulary)}


def test_masks_are_filled_in():
    data = arch_jax.Text(length=16, batch=4).load()
    task = arch_jax.objective("masked_token").with_model(Repeating())
    made = FillMask("ab[MASK]d[MASK]")(task, {}, data, jax.random.key(0))
    assert made == {"text": "abbdd"}
    rows = FillMask()(task, {}, data, jax.random.key(0), 2)["text"]
    assert rows.count("[MASK]") >= 2


def test_a_prompt_is_translated_as_the_pair_of_the_data_is():
    corpus = arch_jax.RandomPairs(symbols=6, length=5, batch=4, validation=8).load()
    module = arch_jax.create("cho", vocabulary=8, source_vocabulary=8, hidden=8, embedding=4)
    task = arch_jax.objective("sequence_to_sequence", beams=1).with_model(module)
    variables = ready(task, corpus)
    batch = next(iter(corpus.validation()))
    source = batch["source"][0][np.asarray(batch["source_mask"][0])]
    prompt = corpus.decode(source[source != corpus.stop])
    of_pair = BeamSearch(beams=1)(task, variables, corpus, jax.random.key(0), 1)["text"]
    of_prompt = BeamSearch(beams=1, prompt=prompt)(task, variables, corpus, jax.random.key(0))["text"]
    written = next(line for line in of_pair.splitlines() if line.startswith("model")).split()[1:]
    shared = min(len(written), len(of_prompt.split()))  # a prompt's longest target is shorter than the batch's
    assert shared >= 1
    assert of_prompt.split()[:shared] == written[:shared]
    with pytest.raises(UsageError, match="the prompt holds '9'; expected numbers from 0 to 5"):
        BeamSearch(prompt="1 9")(task, variables, corpus, jax.random.key(0))
    with pytest.raises(UsageError, match="the prompt is empty"):
        BeamSearch(prompt="")(task, variables, corpus, jax.random.key(0))


def test_a_prompt_with_masks():
    data = arch_jax.Text(length=16, batch=4).load()
    task = arch_jax.objective("masked_token")
    with pytest.raises(UsageError, match=r"the prompt 'abc' holds no \[MASK\]; expected one at least"):
        FillMask("abc").check(task, data)
    with pytest.raises(UsageError, match="has no tokenizer to encode a prompt with"):
        FillMask("a[MASK]").check(task, arch_jax.Markov(states=4, validation=8).load())
