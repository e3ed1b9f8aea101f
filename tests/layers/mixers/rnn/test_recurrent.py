"""Elman's network, the GRU, peepholes and two directions: equations in numpy, and the loop's gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax.errors import UsageError
from arch_jax.layers.mixers.rnn.bidirectional import Bidirectional
from arch_jax.layers.mixers.rnn.gru import GRU
from arch_jax.layers.mixers.rnn.lstm import LSTM
from arch_jax.layers.mixers.rnn.rnn import RNN
from arch_jax.ops.recurrence.cells import lstm_update, recurrent_loop

WIDTH, TIME = 6, 7
IDS = jnp.asarray([[1, 1, 2, 0, 2, 2, 3], [0, 4, 4, 0, 0, 4, 0]], jnp.int32)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def noisy(mixer, seed=0):
    """Inputs, and parameters away from where they start: biases of 0 hide mistakes."""

    @jax.jit
    def draw(key):
        x = jax.random.normal(key, (2, TIME, WIDTH))
        params = mixer.init(jax.random.key(seed + 1), x)["params"]
        return x, jax.tree.map(lambda p: p + 0.4 * jax.random.normal(jax.random.key(2), p.shape), params)

    return draw(jax.random.key(seed))


def rnn_step(p, x, h, f=np.tanh):
    return f(x @ p["input"]["kernel"] + h @ p["recurrent"]["kernel"] + p["bias"])


def gru_step(p, x, h, before):
    hidden = len(h)
    heard, u = x @ p["input"]["kernel"], p["recurrent"]["kernel"]
    r = sigmoid(heard[:hidden] + h @ u[:, :hidden] + p["bias_r"])
    z = sigmoid(heard[hidden : 2 * hidden] + h @ u[:, hidden : 2 * hidden] + p["bias_z"])
    u_n, heard_n = u[:, 2 * hidden :], heard[2 * hidden :] + p["bias_n"]
    n = np.tanh(heard_n + ((r * h) @ u_n if before else r * (h @ u_n + p["bias_u"])))
    return (1 - z) * n + z * h


CASES = {
    "rnn": (RNN(), rnn_step),
    "rnn, relu, fewer units": (
        RNN(hidden=4, activation="relu"),
        lambda p, x, h: rnn_step(p, x, h, lambda a: a.clip(0)),
    ),
    "gru, after": (GRU(), lambda p, x, h: gru_step(p, x, h, False)),
    "gru, before, more units": (GRU(hidden=8, reset="before"), lambda p, x, h: gru_step(p, x, h, True)),
}


@pytest.mark.parametrize("case", CASES)
def test_equations(case):
    mixer, step = CASES[case]
    x, params = noisy(mixer)
    y, _ = jax.jit(mixer.apply)({"params": params}, x)
    y, params = jax.tree.map(np.asarray, (y, params))
    for row, out in zip(np.asarray(x), y):
        h, expected = np.zeros(mixer.hidden or WIDTH), []
        for x_t in row:
            h = step(params, x_t, h)
            expected.append(h)
        expected = np.stack(expected)
        expected = expected @ params["output"]["kernel"] if "output" in params else expected
        np.testing.assert_allclose(out, expected, atol=1e-5)


def test_peepholes():
    """Gers et al. 2002: input and forget gates see the old cells, the output gate the new ones."""
    mixer = LSTM(peepholes=True)
    x, params = noisy(mixer)
    y, _ = jax.jit(mixer.apply)({"params": params}, x)
    p, x, y = jax.tree.map(np.asarray, (params, x, y))
    h = c = np.zeros(WIDTH)
    for x_t, out in zip(x[0], y[0]):
        gates = np.split(x_t @ p["input"]["kernel"] + h @ p["recurrent"]["kernel"], 4)
        i, f, g, o = (gate + p[f"bias_{name}"] for name, gate in zip("ifgo", gates))
        c = sigmoid(f + p["peephole_f"] * c) * c + sigmoid(i + p["peephole_i"] * c) * np.tanh(g)
        h = sigmoid(o + p["peephole_o"] * c) * np.tanh(c)
        np.testing.assert_allclose(out, h, atol=1e-5)
    start = jax.jit(mixer.init)(jax.random.key(0), x)["params"]
    assert not any(np.any(start[f"peephole_{gate}"]) for gate in "ifo"), "it starts as the layer without them"


LOOPS = {
    "rnn, packed": (RNN(), True),
    "lstm": (LSTM(), False),
    "lstm, packed": (LSTM(), True),
    "lstm, peepholes, packed": (LSTM(peepholes=True), True),
    "gru, packed": (GRU(), True),
    "gru, before": (GRU(reset="before"), False),
}


#: In the quick suite each of the three loops once, with what the others leave out.
QUICK = ("rnn, packed", "lstm, peepholes, packed", "gru, before")


@pytest.mark.parametrize(
    ("mixer", "packed"),
    [pytest.param(*case, id=n, marks=[pytest.mark.thorough] * (n not in QUICK)) for n, case in LOOPS.items()],
)
def test_the_gradient_of_the_loop(mixer, packed, monkeypatch):
    """One product after the loop gives what automatic differentiation adds up step by step."""
    with jax.enable_x64(True):
        mixer = mixer.clone(dtype=jnp.float64, parameter_dtype=jnp.float64)
        x = np.random.default_rng(0).normal(size=(2, TIME, WIDTH))
        params = jax.jit(mixer.init)(jax.random.key(1), x)
        ids = IDS if packed else None

        def gradients():
            return jax.jit(jax.grad(lambda p, x: jnp.sum(jnp.sin(mixer.apply(p, x, ids)[0])), (0, 1)))(params, x)

        by_hand = gradients()
        monkeypatch.setattr("arch_jax.layers.mixers.rnn.recurrent_mixer.recurrent_loop", recurrent_loop.fun)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), by_hand, gradients())


@pytest.mark.parametrize("masked", [False, True])
def test_the_written_gradient_of_the_lstm(masked):
    """In everything that a loop is given, through the carry after it too, where steps are skipped and begin anew."""
    with jax.enable_x64(True):
        draw = lambda i, *shape: jnp.asarray(np.random.default_rng(i).normal(size=shape))
        u, carry, added = draw(0, 3, 12), (draw(1, 2, 3), draw(2, 2, 3)), draw(3, 7, 2, 12)
        weights = (draw(4, 2, 3), draw(5, 2, 3)), draw(6, 7, 2, 3)
        starts, real = draw(7, 7, 2, 1) > 1, draw(8, 7, 2, 1) > -0.5
        masks = (starts, real) if masked else None
        assert not masked or np.any(starts[1:]) * np.any(~real)

        def gradients(loop):
            value = lambda u, carry, added: loop(lstm_update, u, None, carry, added, None, masks)
            loss = lambda *given: sum(jnp.sum(a * b) for a, b in zip(*map(jax.tree.leaves, (value(*given), weights))))
            return jax.jit(jax.grad(loss, (0, 1, 2)))(u, carry, added)

        written, automatic = gradients(recurrent_loop), gradients(recurrent_loop.fun)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), written, automatic)


def test_the_state_has_a_gradient_too():
    mixer = GRU()
    x, params = noisy(mixer)
    state = mixer.initial_state(2, TIME, WIDTH)
    loss = lambda state, h: jnp.sum(mixer.apply({"params": params}, x, None, state.replace(h=h))[0])
    gradient = jax.jit(lambda state: jax.grad(lambda h: loss(state, h))(state.h))
    assert not np.any(gradient(state)), "a state before the first token is forgotten"
    _, state = jax.jit(mixer.apply)({"params": params}, x, None, state)
    assert np.any(gradient(state))


def test_identity_start_accumulates():
    """1504.00941: with relu, the identity and positive inputs, h is the sum of what was heard."""
    mixer = RNN(activation="relu", initial="identity")
    x = np.abs(np.random.default_rng(0).normal(size=(1, TIME, WIDTH))).astype(np.float32)
    params = jax.jit(mixer.init)(jax.random.key(1), x)["params"]
    np.testing.assert_array_equal(params["recurrent"]["kernel"], np.eye(WIDTH))
    params["input"]["kernel"] = np.eye(WIDTH, dtype=np.float32)
    np.testing.assert_allclose(jax.jit(mixer.apply)({"params": params}, x)[0], np.cumsum(x, axis=1), rtol=1e-6)
    start = np.asarray(jax.jit(RNN(scale=0.5).init)(jax.random.key(1), x)["params"]["recurrent"]["kernel"])
    np.testing.assert_allclose(start @ start.T, 0.25 * np.eye(WIDTH), atol=1e-6)


@pytest.mark.parametrize("combine", ["concatenate", pytest.param("sum", marks=pytest.mark.thorough)])
def test_two_directions(combine):
    """Bidirectional = the mixer, and reverse . mixer . reverse, for each packed segment on its own."""
    mixer = Bidirectional(mixer=GRU(hidden=4), combine=combine)
    x, params = noisy(mixer)
    y, _ = jax.jit(mixer.apply)({"params": params}, x, IDS)
    x, y = map(np.asarray, (x, y))
    apply = jax.jit(GRU(hidden=4).apply)
    inner = lambda name, x: np.asarray(apply({"params": params[name]}, x)[0])
    for row, ids in enumerate(np.asarray(IDS)):
        assert np.all(y[row, ids == 0] == 0)
        for number in set(ids) - {0}:
            here = ids == number
            alone = x[row : row + 1, here]
            parts = [inner("forward", alone), inner("backward", alone[:, ::-1])[:, ::-1]]
            together = parts[0] + parts[1]
            if combine == "concatenate":
                together = np.concatenate(parts, axis=-1) @ np.asarray(params["output"]["kernel"])
            np.testing.assert_allclose(y[row : row + 1, here], together, atol=1e-6)


def test_bad_input():
    x = jnp.zeros((2, TIME, WIDTH))
    lstm, gru = LSTM(), GRU()
    params = jax.jit(lstm.init)(jax.random.key(0), x)
    with pytest.raises(UsageError, match="was given a RNNState as its state; expected a LSTMState"):
        lstm.apply(params, x, None, gru.initial_state(2, TIME, WIDTH))
    with pytest.raises(UsageError, match="has 3 rows; expected 2"):
        lstm.apply(params, x, None, lstm.initial_state(3, TIME, WIDTH))
    with pytest.raises(UsageError, match=r"h of shape \(2, 4\); expected \(2, 6\)"):
        lstm.apply(params, x, None, lstm.initial_state(2, TIME, 4))
    with pytest.raises(UsageError, match="'after'"):
        GRU(reset="aftr").init(jax.random.key(0), x)
    with pytest.raises(UsageError, match="'relu'"):
        RNN(activation="rely").init(jax.random.key(0), x)
    with pytest.raises(UsageError, match="bidirectional is not causal"):
        Bidirectional().initial_state(2, TIME, WIDTH)
