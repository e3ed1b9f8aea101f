"""Whatever is given to what decodes ends in a result or in one sentence of ours, never in an error of JAX or Flax."""

import fractions
import functools
import importlib

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import arch_jax
from arch_jax.errors import UsageError
from arch_jax.sampling.arguments import pad_prompts
from arch_jax.sampling.base import check_count
from arch_jax.train.restore import seed_of

ANYTHING = [
    *(None, True, False, 0, 1, 3, -1, 2**40, -(2**70), 0.0, 0.5, 2.5, float("nan"), float("inf"), 1j, "", "x", b"x"),
    *([], [1], (1, 2), [1.5], [[1], [2, 3]], [[]], [[[1]]], [1, [2]], ["a"], [True], [None], {}, {"params": {}}),
    *(object(), object, len, range(3), fractions.Fraction(1, 2), {1, 2}, np.float32(1), np.int64(3), np.bool_(True)),
    *(np.array([1, 2]), np.array([[1]]), np.array([1.0]), np.array(["a"]), np.array([None]), np.zeros((1, 1, 1), int)),
    *(np.zeros(0, int), np.array(2), jnp.int32(3), jnp.float32(1.0), jnp.array([1, 2]), jnp.ones((2, 2))),
    *(jnp.array(True), jax.random.key(0), jax.random.split(jax.random.key(0)), jax.random.PRNGKey(0), iter([1])),
]


@pytest.fixture(autouse=True)
def unchecked():
    """A person's process has no check of types around every function."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@functools.cache
def decoder():
    module = arch_jax.create("gpt", vocabulary=5, depth=1, width=8, **{"mixer.heads": 1, "mixer.kv_heads": 1})
    return module, jax.eval_shape(module.init, jax.random.key(0), jnp.ones((1, 2), jnp.int32))


@functools.cache
def encoder_decoder():
    return arch_jax.create("transformer-base", vocabulary=5, depth=1, width=8), {"params": {}}


def refused(call, *arguments, **options):
    """The sentence by which a call is refused; None where it goes through."""
    try:
        call(*arguments, **options)
    except UsageError as problem:
        sentence = str(problem)
        assert "\n" not in sentence
        assert 10 < len(sentence) < 400
        return sentence
    return None


@pytest.fixture
def given(monkeypatch):
    """What reaches the compiled programs, which are left out: after the boundary all is as it should be."""
    seen = []

    def generated(module, variables, tokens, segment_ids, key, *settings):
        seen.append((tokens, settings))
        return tokens

    def searched(module, variables, source, mask, *settings):
        seen.append((source, settings))
        return source, source

    monkeypatch.setattr("arch_jax.sampling.autoregressive._generate", generated)
    monkeypatch.setattr(importlib.import_module("arch_jax.sampling.beam_search"), "_search", searched)
    return seen


GENERATE = {"prompt": [[1, 2]], "length": 3, "key": jax.random.key(0), "temperature": 1.0}
GENERATE |= {"top_k": 2, "top_p": 0.5, "stop": 4}
SEARCH = {"source": [[1, 2]], "length": 3, "start": 0, "stop": 1}
SEARCH |= {"beams": 2, "length_penalty": 0.5, "source_mask": None}


@pytest.mark.parametrize(
    ("call", "made", "arguments"),
    [(arch_jax.generate, decoder, GENERATE), (arch_jax.beam_search, encoder_decoder, SEARCH)],
    ids=["generate", "beam_search"],
)
def test_anything_in_the_place_of_each_argument(call, made, arguments, given):
    module, variables = made()
    assert refused(call, module, variables, **arguments) is None
    accepted = {name: 0 for name in arguments}
    for name in arguments:
        for value in ANYTHING:
            sentence = refused(call, module, variables, **arguments | {name: value})
            if sentence is None:
                accepted[name] += 1
                tokens, settings = given[-1]
                assert tokens.ndim == 2, (name, value)
                assert tokens.dtype == np.int32
                assert {type(one) for one in settings} <= {int, float, type(None)}, (name, value)
                hash(settings)
            else:
                assert name.split("_")[0] in sentence or "token" in sentence, (name, value, sentence)
    for value in ANYTHING:
        refused(call, module, value, **arguments)
        assert refused(call, value, variables, **arguments)
    assert all(0 < count < len(ANYTHING) / 2 for name, count in accepted.items() if name != "source_mask"), accepted


@pytest.mark.parametrize(
    ("prompt", "rows"),
    [
        ([3, 1, 4], [[3, 1, 4]]),
        ((3, 1, 4), [[3, 1, 4]]),
        (np.array([3, 1, 4]), [[3, 1, 4]]),
        (jnp.array([3, 1, 4]), [[3, 1, 4]]),
        ([np.int64(3), jnp.int32(1), np.array(4)], [[3, 1, 4]]),
        (range(3), [[0, 1, 2]]),
        ([[3], [1], [4]], [[3], [1], [4]]),
        (np.array([[3], [1]], np.uint8), [[3], [1]]),
        ([np.array([3, 1]), (4, 1)], [[3, 1], [4, 1]]),
    ],
)
def test_one_prompt_and_several(prompt, rows):
    tokens, ids = pad_prompts(prompt, 5)
    assert tokens.tolist() == rows
    assert ids is None


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ([1.0, 2.0], "a token of the prompt is 1.0; expected token ids, which are integers"),
        (np.array([1.0]), "the prompt is an array of float64; expected token ids, which are integers"),
        ([np.array([[1, 2]])], "row 0 of the prompt is of shape (1, 2); expected one sequence of token ids"),
        ([[1], [[2]]], "a token of row 1 of the prompt is [2]; expected token ids, which are integers"),
        ([[1], 2], "the prompt holds both lists and 2; expected integers for one prompt, or lists for several"),
        ("text", "the prompt is the text 'text'; expected token ids, as a tokenizer encodes it"),
        ([True], "a token of the prompt is True; expected token ids, which are integers"),
        ([2**40], "the prompt holds token 1099511627776, which is outside every vocabulary"),
        (np.array([2**40]), "the prompt holds token 1099511627776, outside the vocabulary; expected 0 to 4"),
        (np.zeros((1, 1, 1), int), "the prompt is of shape (1, 1, 1); expected token ids, 'time' or 'batch time'"),
        ({1: 2}, "the prompt is of type dict; expected a list or an array of token ids"),
    ],
)
def test_prompts_that_are_none(prompt, says):
    assert refused(pad_prompts, prompt, 5) == says


def test_a_prompt_under_jit():
    module, variables = decoder()
    go = lambda prompt: arch_jax.generate(module, variables, prompt, 2, temperature=0)
    for prompt in (jnp.ones((1, 2), jnp.int32), [jnp.int32(1)]):
        assert refused(jax.jit(go), prompt)


@pytest.mark.parametrize(
    ("name", "function", "says"),
    [
        (
            "t5-small",
            "generate",
            "EncoderDecoder is an encoder-decoder, which generate does not take; call beam_search",
        ),
        ("bert-base", "generate", "BERT is no decoder: it carries no state from token to token; call its apply"),
        ("resnet-18", "generate", "ResNet is no decoder: it carries no state from token to token; call its apply"),
        (
            "gpt2",
            "beam_search",
            "Decoder is a decoder, which has no source to search with; call generate with a prompt",
        ),
        ("bert-base", "beam_search", "BERT is no encoder-decoder; call its apply for outputs, or beam_search with"),
        ("vae", "beam_search", "VAE is no encoder-decoder; call its apply for outputs, or beam_search with"),
    ],
)
def test_what_to_call_instead(name, function, says):
    arguments = {"generate": GENERATE, "beam_search": SEARCH}[function]
    sentence = refused(getattr(arch_jax, function), arch_jax.create(name), {"params": {}}, **arguments)
    assert sentence.startswith(says)


def test_variables_of_another_module():
    _, variables = decoder()
    other = arch_jax.create("gpt", vocabulary=5, depth=1, width=16, **{"mixer.heads": 1, "mixer.kv_heads": 1})
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), variables)
    go = lambda variables: arch_jax.generate(other, variables, [1], 1, temperature=0)
    assert refused(go, zeros).startswith("variables are not those of this Decoder: ")
    assert refused(go, zeros["params"]).startswith("variables hold [")
    assert refused(go, {"params": {}}).startswith("variables are not those of this Decoder: ")


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (arch_jax.Autoregressive, ("length", "temperature", "top_k", "top_p")),
        (arch_jax.BeamSearch, ("beams", "length_penalty", "longest")),
    ],
)
def test_settings_of_samplers(kind, settings):
    for name in settings:
        for value in ANYTHING:
            refused(kind, **{name: value})


@pytest.mark.parametrize(("read", "name"), [(check_count, "count"), (seed_of, "seed")])
def test_counts_and_seeds(read, name):
    for value in ANYTHING:
        said = refused(read, value)
        assert said is None or said.startswith(f"{name} is ")
        assert said is not None or type(read(value)) is int
    assert read(jnp.int32(3)) == 3
