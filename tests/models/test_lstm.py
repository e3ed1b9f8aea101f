"""The LSTM: its equations against a loop in numpy, where it starts from, and the language model made of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax import create, generate
from arch_jax.errors import UsageError
from arch_jax.layers.mixers.rnn.lstm import LSTM
from arch_jax.registry import count, entry
from arch_jax.train.sharding import partition

WIDTH, TIME = 6, 7


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def by_hand(params, x):
    """The docstring's equations, one token after another; rows of x are times."""
    w, u = params["input"]["kernel"], params["recurrent"]["kernel"]
    h = c = np.zeros(u.shape[0])
    out = []
    for x_t in x:
        gates = np.split(x_t @ w + h @ u, 4)
        i, f, g, o = (gate + params[f"bias_{name}"] for name, gate in zip("ifgo", gates))
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        out.append(h)
    return np.stack(out) @ params["output"]["kernel"] if "output" in params else np.stack(out)


@pytest.mark.parametrize("hidden", [None, 4, *(pytest.param(n, marks=pytest.mark.thorough) for n in (WIDTH, 9))])
def test_equations(hidden):
    mixer = LSTM(hidden=hidden)
    x = np.random.default_rng(0).normal(size=(2, TIME, WIDTH)).astype(np.float32)

    @jax.jit
    def run(x):
        params = mixer.init(jax.random.key(1), x)["params"]
        params = jax.tree.map(lambda p: p + 0.5 * jax.random.normal(jax.random.key(2), p.shape), params)
        return params, mixer.apply({"params": params}, x)[0]

    params, y = jax.tree.map(np.asarray, run(x))
    assert ("output" in params) == (hidden not in (None, WIDTH))
    expected = np.stack([by_hand(params, row) for row in x])
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_it_starts_by_remembering():
    initial = lambda mixer: jax.jit(mixer.init)(jax.random.key(0), jnp.zeros((1, 1, WIDTH)))["params"]
    params = initial(LSTM())
    starts = {gate: np.unique(params[f"bias_{gate}"]).tolist() for gate in "ifgo"}
    assert starts == {"i": [0], "f": [1], "g": [0], "o": [0]}
    for gate in np.split(np.asarray(params["recurrent"]["kernel"]), 4, axis=1):
        np.testing.assert_allclose(gate @ gate.T, np.eye(WIDTH), atol=1e-5)
    assert np.all(np.asarray(initial(LSTM(forget_bias=-3.0))["bias_f"]) == -3)


def test_state_does_not_grow_with_the_sequence():
    module = entry("lstm").tiny()
    sizes = [count(jax.eval_shape(lambda n=n: module.initial_state(3, n))) for n in (1, 1000)]
    assert sizes[0] == sizes[1]


def test_bfloat16_keeps_its_state_in_float32():
    mixer = LSTM(dtype=jnp.bfloat16)
    x = jax.ShapeDtypeStruct((1, TIME, WIDTH), jnp.bfloat16)
    variables = jax.eval_shape(mixer.init, jax.random.key(1), x)
    state = mixer.initial_state(1, TIME, WIDTH, jnp.bfloat16)
    y, state = jax.eval_shape(mixer.apply, variables, x, None, state)
    assert (y.dtype, state.h.dtype, state.c.dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)


def test_no_cells():
    with pytest.raises(UsageError, match="hidden is 0; expected at least 1 cell"):
        LSTM(hidden=0)


def test_size_is_that_of_the_formula():
    """8 w^2 + 4 w in each layer, a scale in each norm, and the table of the embeddings."""
    width, depth = 312, 2
    expected = depth * (8 * width**2 + 4 * width) + (depth + 1) * width + 256 * width
    assert entry("lstm").count() == expected
    assert abs(expected / entry("gpt").count() - 1) < 0.02


def test_the_model_generates_what_it_computes():
    """Greedy decoding through the state gives what computing the whole sequence at each step gives."""
    module = entry("lstm").tiny()
    prompt = jax.random.randint(jax.random.key(0), (2, 5), 0, module.vocabulary)
    variables = jax.jit(module.init)(jax.random.key(1), prompt)
    tokens, apply = np.pad(prompt, ((0, 0), (0, 6))), jax.jit(module.apply)
    for t in range(5, 11):
        tokens[:, t] = np.argmax(np.asarray(apply(variables, tokens))[:, t - 1], axis=-1)
    np.testing.assert_array_equal(generate(module, variables, prompt, 6, temperature=0), tokens[:, 5:])


def test_it_is_a_part_like_any_other():
    """A hybrid of recurrence and attention, and cells fewer than the width, scanned."""
    model = create("gpt", depth=4, width=24, scan=True, mixer=(create("gpt").mixer, LSTM(hidden=16)))
    tokens = jnp.zeros((1, 8), jnp.int32)
    params = jax.jit(model.init)(jax.random.key(0), tokens)["params"]
    recurrent = params["stack"]["layers"]["block_1"]["mixer"]
    assert recurrent["input"]["kernel"].shape == (2, 24, 64)
    # The decoder's 1/sqrt(2 depth) reaches what writes to the residual stream: LeCun's 1/sqrt(16) times 1/sqrt(8).
    assert float(recurrent["output"]["kernel"].std()) == pytest.approx((16 * 8) ** -0.5, rel=0.15)
    assert "fsdp" in partition("mixer/input/kernel", (24, 64), model.shardings, {"fsdp": 2, "tensor": 1})
