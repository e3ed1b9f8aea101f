"""Generation through the state gives the tokens of recomputing the whole sequence each time."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import arch_jax
from arch_jax.decoding import generate
from arch_jax.errors import UsageError
from arch_jax.layers.attention import Attention
from arch_jax.layers.positions import RoPE
from arch_jax.ops.sampling import filter_logits

TINY = {"vocabulary": 17, "width": 16}
MODELS = {
    "gpt": lambda: arch_jax.create("gpt", **TINY, depth=2, scan=True, **{"mixer.heads": 4, "mixer.kv_heads": 2}),
    "gpt2": lambda: arch_jax.create("gpt2", **TINY, depth=1, **{"mixer.heads": 2, "position.length": 12}),
    "hybrid": lambda: arch_jax.create(
        "gpt",
        **TINY,
        depth=4,
        scan=True,
        mixer=(Attention(heads=2, rope=RoPE()), Attention(heads=1, rope=RoPE(), window=3)),
    ),
}
every_model = pytest.mark.parametrize("name", MODELS)


@functools.cache
def model(name: str) -> tuple[nn.Module, Any]:
    """A tiny module whose distributions are far from uniform."""
    module = MODELS[name]()
    variables = module.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    draw = np.random.default_rng(1)
    return module, jax.tree.map(lambda p: p + jnp.asarray(draw.normal(0, 0.3, p.shape), p.dtype), variables)


@functools.cache
def forward(name: str) -> Any:
    """The whole sequence at once, without a state; one compiled program, whatever the length (it is causal)."""
    module, variables = model(name)
    apply = jax.jit(lambda tokens: module.apply(variables, tokens))

    def logits(row: list[int]) -> jax.Array:
        """Of the token after the row."""
        return apply(jnp.asarray([row + [0] * (12 - len(row))]))[0, len(row) - 1]

    return logits


def recomputed(name: str, prompts: list[list[int]], length: int, key: jax.Array, **options: Any) -> list[list[int]]:
    """Token n of row b is drawn with fold_in(fold_in(key, n), b), as documented."""
    rows = []
    for b, prompt in enumerate(prompts):
        row = list(prompt)
        for n in range(length):
            logits = forward(name)(row)
            if options.get("temperature", 1.0) == 0:
                row.append(int(jnp.argmax(logits)))
                continue
            own = jax.random.fold_in(jax.random.fold_in(key, n), b)
            row.append(int(jax.random.categorical(own, filter_logits(logits[None], **options)[0])))
        rows.append(row[len(prompt) :])
    return rows


PROMPTS = [[3, 1, 4, 1], [5, 9, 2, 6]]
RAGGED = [[3, 1, 4, 1, 5], [9], [2, 6, 5]]
KEY = jax.random.key(7)


@every_model
@pytest.mark.parametrize("prompts", [PROMPTS, RAGGED], ids=["even", "ragged"])
@pytest.mark.parametrize(
    "options",
    [{"temperature": 0}, {"temperature": 1.3}, {"temperature": 0.9, "top_k": 4, "top_p": 0.8}],
    ids=["greedy", "sampled", "filtered"],
)
def test_it_is_recomputation(name, prompts, options):
    module, variables = model(name)
    new = generate(module, variables, prompts, 6, KEY, **options)
    assert new.shape == (len(prompts), 6)
    assert new.tolist() == recomputed(name, prompts, 6, KEY, **options)


@every_model
def test_ragged_prompts_are_single_prompts(name):
    """What stands beside a prompt, and the padding behind it, changes nothing."""
    module, variables = model(name)
    together = generate(module, variables, RAGGED, 6, temperature=0)
    alone = [generate(module, variables, [row], 6, temperature=0)[0] for row in RAGGED]
    np.testing.assert_array_equal(together, np.stack(alone))
    assert len({tuple(row) for row in together.tolist()}) > 1


def test_different_keys_draw_differently():
    module, variables = model("gpt")
    one, other, again = (
        generate(module, variables, PROMPTS * 4, 7, jax.random.key(seed), temperature=2.0).tolist()
        for seed in (0, 1, 0)
    )
    assert one == again != other
    assert one[0] != one[2]  # rows with the same prompt draw with keys of their own


def test_one_likeliest_token_is_greedy():
    module, variables = model("gpt")
    greedy = generate(module, variables, PROMPTS, 6, temperature=0)
    for options in ({"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}):
        np.testing.assert_array_equal(generate(module, variables, PROMPTS, 6, KEY, **options), greedy)
    # More than the vocabulary is all of it.
    free = generate(module, variables, PROMPTS, 6, KEY)
    np.testing.assert_array_equal(generate(module, variables, PROMPTS, 6, KEY, top_k=1000), free)
    assert free.tolist() != greedy.tolist()


@pytest.mark.parametrize("name", ["gpt", "hybrid"])
def test_scanned_and_unrolled_are_the_same(name):
    module, variables = model(name)
    assert module.scan
    unrolled, apart = module.unrolled(variables)
    assert not unrolled.scan
    tokens = jnp.asarray(PROMPTS)
    np.testing.assert_allclose(unrolled.apply(apart, tokens), module.apply(variables, tokens), atol=2e-5)
    for options in ({"temperature": 0}, {"temperature": 1.3}):
        np.testing.assert_array_equal(
            generate(unrolled, apart, RAGGED, 6, KEY, **options), generate(module, variables, RAGGED, 6, KEY, **options)
        )


def test_prompts_of_any_kind():
    module, variables = model("gpt")
    expected = generate(module, variables, PROMPTS, 6, temperature=0)
    for prompt in (
        np.array(PROMPTS),
        jnp.asarray(PROMPTS),
        [np.array(row) for row in PROMPTS],
        tuple(map(tuple, PROMPTS)),
    ):
        np.testing.assert_array_equal(generate(module, variables, prompt, 6, temperature=0), expected)


def test_one_token_and_many():
    module, variables = model("gpt")
    new = generate(module, variables, PROMPTS, 6, temperature=0)
    np.testing.assert_array_equal(generate(module, variables, PROMPTS, 1, temperature=0), new[:, :1])


def test_after_the_stop_token_there_is_nothing_else():
    module, variables = model("gpt")
    free = generate(module, variables, PROMPTS * 4, 7, KEY, temperature=1.5)
    stop = int(free[0, 2])
    stopped = generate(module, variables, PROMPTS * 4, 7, KEY, temperature=1.5, stop=stop)
    rows_with_stop = 0
    for row, other in zip(stopped.tolist(), free.tolist()):
        end = other.index(stop) if stop in other else 7
        rows_with_stop += end < 6
        assert row == other[:end] + [stop] * (7 - end)
    assert rows_with_stop
    # A stop token in the prompt stops nothing.
    again = generate(module, variables, [[*PROMPTS[0], stop]], 3, temperature=0, stop=stop)
    np.testing.assert_array_equal(
        again[:, 0], generate(module, variables, [[*PROMPTS[0], stop]], 1, temperature=0)[:, 0]
    )


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
