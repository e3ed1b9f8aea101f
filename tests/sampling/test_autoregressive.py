"""Generation through the state gives the tokens of recomputing the whole sequence each time."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import arch_jax
from arch_jax.errors import UsageError
from arch_jax.layers.mixers.attention import Attention
from arch_jax.layers.transformer.positions import RoPE
from arch_jax.ops.token_sampling import filter_logits
from arch_jax.sampling import generate

TINY = {"vocabulary": 17, "width": 16}
MODELS = {
    "gpt": lambda: arch_jax.create("gpt", **TINY, depth=2, scan=True, **{"mixer.heads": 4, "mixer.kv_heads": 2}),
    "gpt2": lambda: arch_jax.create("gpt2", **TINY, depth=1, **{"mixer.heads": 2, "position.length": 12}),
    "hybrid": lambda: arch_jax.create(
        "gpt",
        **TINY,
        depth=2,
        scan=True,
        feed_forward=None,
        mixer=(Attention(heads=2, rope=RoPE()), Attention(heads=1, rope=RoPE(), window=3)),
    ),
}
every_model = pytest.mark.parametrize("name", MODELS)


@functools.cache
def model(name: str) -> tuple[nn.Module, Any]:
    """A tiny module whose distributions are far from uniform."""
    module = MODELS[name]()
    variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    draw = np.random.default_rng(1)
    noisy = lambda p: jnp.asarray(np.asarray(p) + draw.normal(0, 0.3, p.shape).astype(p.dtype))
    return module, jax.tree.map(noisy, variables)


@functools.cache
def forward(name: str) -> Any:
    """The whole sequence at once, without a state; one compiled program, whatever the length (it is causal)."""
    module, variables = model(name)
    apply = jax.jit(lambda tokens: module.apply(variables, tokens))

    def logits(row: list[int]) -> jax.Array:
        """Of the token after the row."""
        return np.asarray(apply(jnp.asarray([row + [0] * (12 - len(row))])))[0, len(row) - 1]

    return logits


def recomputed(name: str, prompts: list[list[int]], length: int, key: jax.Array, **options: Any) -> list[list[int]]:
    """Token n of row b is drawn with fold_in(fold_in(key, n), b), as documented."""

    @jax.jit
    def drawn(logits, n, b):
        own = jax.random.fold_in(jax.random.fold_in(key, n), b)
        return jax.random.categorical(own, filter_logits(logits[None], **options)[0])

    rows = []
    for b, prompt in enumerate(prompts):
        row = list(prompt)
        for n in range(length):
            logits = forward(name)(row)
            if options.get("temperature", 1.0) == 0:
                row.append(int(np.argmax(logits)))
                continue
            row.append(int(drawn(logits, n, b)))
        rows.append(row[len(prompt) :])
    return rows


PROMPTS = [[3, 1, 4, 1], [5, 9, 2, 6]]
RAGGED = [[3, 1, 4, 1, 5], [9], [2, 6, 5]]
KEY = jax.random.key(7)


GREEDY, SAMPLED = {"temperature": 0}, {"temperature": 1.3}
FILTERED = {"temperature": 0.9, "top_k": 4, "top_p": 0.8}


# Few settings and shapes in this file, and the same ones again and again: each is a compilation.
@pytest.mark.parametrize(
    ("name", "prompts", "options"),
    [("hybrid", RAGGED, SAMPLED)]
    + [
        pytest.param(*case, marks=pytest.mark.thorough)
        for case in (
            ("gpt", PROMPTS, GREEDY),
            ("gpt", RAGGED, SAMPLED),
            ("gpt", RAGGED, FILTERED),
            ("gpt2", PROMPTS, GREEDY),
            ("gpt2", RAGGED, SAMPLED),
            ("hybrid", PROMPTS, GREEDY),
        )
    ],
)
def test_it_is_recomputation(name, prompts, options):
    module, variables = model(name)
    new = generate(module, variables, prompts, 6, KEY, **options)
    assert new.shape == (len(prompts), 6)
    assert new.tolist() == recomputed(name, prompts, 6, KEY, **options)


@pytest.mark.parametrize("name", ["gpt2", *(pytest.param(n, marks=pytest.mark.thorough) for n in ("gpt", "hybrid"))])
def test_a_ragged_prompt_is_a_single_prompt(name):
    """What stands before, beside and behind the first prompt changes nothing; its keys are those of row 0."""
    module, variables = model(name)
    short_first = [RAGGED[1], RAGGED[0], RAGGED[2]]
    together = generate(module, variables, short_first, 6, KEY, **SAMPLED)
    alone = generate(module, variables, short_first[:1], 6, KEY, **SAMPLED)
    np.testing.assert_array_equal(together[:1], alone)


def test_rows_and_keys_draw_differently():
    module, variables = model("gpt")
    one, other, again = (
        generate(module, variables, PROMPTS * 4, 7, jax.random.key(seed), temperature=2.0).tolist()
        for seed in (0, 1, 0)
    )
    assert one == again != other
    assert one[0] != one[2]  # the same prompt, another row


def test_one_likeliest_token_is_greedy():
    module, variables = model("gpt")
    greedy = generate(module, variables, PROMPTS, 6, **GREEDY)
    np.testing.assert_array_equal(generate(module, variables, PROMPTS, 6, KEY, top_k=1), greedy)
    # More than the vocabulary is all of it.
    free = generate(module, variables, PROMPTS, 6, KEY, top_k=17)
    np.testing.assert_array_equal(generate(module, variables, PROMPTS, 6, KEY, top_k=1000), free)
    assert free.tolist() != greedy.tolist()


@pytest.mark.parametrize("name", [pytest.param("gpt", marks=pytest.mark.thorough), "hybrid"])
def test_scanned_and_unrolled_are_the_same(name):
    module, variables = model(name)
    assert module.scan
    unrolled, apart = module.unrolled(variables)
    assert not unrolled.scan
    assert jax.tree.structure(apart) != jax.tree.structure(variables)
    np.testing.assert_array_equal(
        generate(unrolled, apart, RAGGED, 6, KEY, **SAMPLED), generate(module, variables, RAGGED, 6, KEY, **SAMPLED)
    )


def test_prompts_of_any_kind():
    module, variables = model("gpt")
    expected = generate(module, variables, PROMPTS, 6, **GREEDY)
    kinds = (np.array(PROMPTS), jnp.asarray(PROMPTS), [np.array(row) for row in PROMPTS], tuple(map(tuple, PROMPTS)))
    for prompt in kinds:
        np.testing.assert_array_equal(generate(module, variables, prompt, 6, **GREEDY), expected)
    np.testing.assert_array_equal(generate(module, variables, PROMPTS, 1, **GREEDY), expected[:, :1])


def test_after_the_stop_token_there_is_nothing_else():
    module, variables = model("gpt")
    go = functools.partial(generate, module, variables, length=7, key=KEY, temperature=2.0)
    free = go(PROMPTS * 4)
    stop = int(free[0, 2])
    rows_with_stop = 0
    for row, other in zip(go(PROMPTS * 4, stop=stop).tolist(), free.tolist()):
        end = other.index(stop) if stop in other else 7
        rows_with_stop += end < 6
        assert row == other[:end] + [stop] * (7 - end)
    assert rows_with_stop
    # A stop token in the prompt stops nothing.
    ending = [[*row[:3], stop] for row in PROMPTS * 4]
    np.testing.assert_array_equal(go(ending, stop=stop)[:, 0], go(ending)[:, 0])


def test_up_to_the_last_learned_position():
    module, variables = model("gpt2")
    prompt = [[1, 2, 3, 4, 5]]
    # The last token is drawn and never fed: 5 + 8 tokens stand on 12 positions.
    assert generate(module, variables, prompt, 8, temperature=0).shape == (1, 8)
    with pytest.raises(
        UsageError, match=r"^a sequence of 13 tokens is longer than the table of 12 learned positions; use"
    ):
        generate(module, variables, prompt, 9, temperature=0)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"prompt": []}, "a prompt is empty; expected at least one token in each"),
        ({"prompt": [[1], []]}, "a prompt is empty; expected at least one token in each"),
        ({"prompt": np.zeros((2, 0), np.int32)}, "a prompt is empty; expected at least one token in each"),
        ({"prompt": [[1, 17]]}, "the prompt holds token 17, outside the vocabulary; expected 0 to 16"),
        ({"prompt": [[1], [2, -1]]}, "the prompt holds token -1, outside the vocabulary; expected 0 to 16"),
        ({"length": 0}, "length is 0; expected at least 1 token to generate"),
        ({"key": None}, "temperature 1.0 draws at random and needs a key; give key= or temperature=0"),
        ({"temperature": -0.5}, "temperature is -0.5; expected a finite number of at least 0"),
        ({"temperature": float("nan")}, "temperature is nan; expected a finite number of at least 0"),
        ({"top_k": 0}, "top_k is 0; expected an integer of at least 1"),
        ({"top_p": 0.0}, r"top_p is 0.0; expected a number in (0, 1]"),
    ],
    ids=str,
)
def test_what_is_refused(arguments, says):
    module, variables = model("gpt")
    given = {"prompt": PROMPTS, "length": 3, "key": KEY} | arguments
    with pytest.raises(UsageError) as caught:
        generate(module, variables, **given)
    assert str(caught.value).startswith(says)
