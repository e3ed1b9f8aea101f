"""The contract of every sequence mixer: `y, state = mixer(x, segment_ids, state, train)`.

A new mixer is tested by being named with `@component(name, kind="mixer")`; settings that change its mathematics are
listed in `VARIANTS`.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax import fields
from arch_jax.errors import UsageError
from arch_jax.experiment import import_asked_for, import_components
from arch_jax.layers.mixers.contract import adapted

import_components()
import_asked_for()

BATCH, TIME, WIDTH = 2, 9, 8

#: Settings of each mixer that are worth a run of their own; the defaults are always among them.
VARIANTS = {
    "attention": [
        {"heads": 2},
        {"heads": 4, "kv_heads": 2, "rope": "rope", "bias": True},
        {"heads": 2, "window": 3, "softcap": 2.0, "rope": {"module": "rope", "fraction": 0.5}},
        {"heads": 2, "causal": False},
        {"heads": 2, "relative": "alibi", "window": 4},
        {
            "heads": 4,
            "kv_heads": 2,
            "relative": {"module": "relative_buckets", "buckets": 6, "longest": 5},
            "pattern": {"module": "strided", "stride": 3},
        },
        {
            "heads": 2,
            "relative": {"module": "shaw", "longest": 2},
            "qk_norm": "rms_norm",
            "output_bias": True,
            "pattern": {"module": "longformer", "window": 2, "global_tokens": 1},
            "scale": 1.0,
        },
    ],
    "linear_attention": [
        {"heads": 2},
        {"heads": 4, "kv_heads": 2, "bias": True, "form": "chunked", "chunk": 4},
        {"heads": 2, "causal": False, "form": "chunked", "chunk": 4},
    ],
    "latent_attention": [
        {"heads": 2, "kv_rank": 6, "head_size": 4, "rope_size": 2},
        {"heads": 3, "query_rank": 5, "kv_rank": 4, "head_size": 4, "rope_size": 4, "value_size": 3, "bias": True},
    ],
    "performer": [
        {"heads": 2, "random_features": 6},
        {"heads": 2, "kv_heads": 1, "bias": True, "form": "chunked", "chunk": 3, "orthogonal": False},
        {"heads": 1, "causal": False},
    ],
    "mamba": [
        {"state": 4},
        {"expand": 1, "step_rank": 3, "bias": True, "convolution": 2, "form": "associative", "chunk": 4},
    ],
    "mamba2": [
        {"head_size": 4, "state": 3},
        {
            "head_size": 2,
            "state": 4,
            "groups": 4,
            "bias": True,
            "form": "chunked",
            "chunk": 4,
            "step_limit": [0.01, 0.5],
        },
    ],
    "mamba_block": [{"inner": {"module": "s4d", "state": 4, "glu": False}}],
    "s4": [{"state": 4}],
    "s4d": [{"state": 4}, {"state": 6, "initial": "inv", "discretization": "bilinear", "glu": False, "chunk": 4}],
    "s6": [{"state": 4}],
    "retention": [
        {"heads": 2},
        {"heads": 2, "head_size": 4, "value_size": 3, "norm": "rms", "form": "chunked", "chunk": 4, "longest": 64.0},
    ],
    "delta_net": [
        {
            "heads": 2,
            "head_size": 3,
            "convolution": 0,
            "negative_eigenvalues": True,
            "gate": True,
            "form": "chunked",
            "chunk": 4,
        },
    ],
    "gated_delta_net": [{"heads": 2, "value_heads": 4, "value_size": 3, "form": "chunked", "chunk": 4}],
    "mlstm": [
        {"heads": 2, "multiple": 8},
        {
            "heads": 2,
            "expansion": None,
            "convolution": 0,
            "block_size": None,
            "key_size": 3,
            "value_size": 5,
            "gate_softcap": 4.0,
            "input_bias": -1.0,
            "form": "chunked",
            "chunk": 4,
        },
    ],
    "slstm": [{"heads": 2}, {"heads": 1, "convolution": 0}],
    "rnn": [{"hidden": 5, "initial": "identity", "scale": 0.5}],
    "gru": [{}, {"hidden": 5, "reset": "before"}],
    "lstm": [{}, {"hidden": 5, "peepholes": True}],
    "bidirectional": [{"mixer": {"module": "gru", "hidden": 5}}],
    "rwkv4": [{"hidden": 6, "form": "chunked", "chunk": 2}],
    "rwkv7": [{"head_size": 4, "decay_rank": 3, "rate_rank": 3, "value_rank": 3, "gate_rank": 3, "chunk": 4}],
    "hyena": [{"order": 3, "length": 12, "filter_width": 6, "features": 5}],
    "linformer": [{"heads": 2, "length": 9, "rank": 4}, {"heads": 4, "kv_heads": 2, "length": 12, "shared": True}],
}
CASES = [(name, change) for name in fields.components("mixer") for change in VARIANTS.get(name, [{}])]
every_mixer = pytest.mark.parametrize(("name", "change"), CASES, ids=[f"{n}-{i}" for i, (n, _) in enumerate(CASES)])

#: Rows of segment ids: packed documents, padding in the middle and at the end, an id that comes again.
PACKED = np.array([[1, 1, 1, 2, 2, 2, 2, 3, 3], [4, 4, 0, 0, 4, 7, 4, 0, 0]], np.int32)
CHUNKS = [[9], [1] * 9, [4, 5], [1, 4, 4]]  # few lengths: each is compiled on its own


class Case:
    """A mixer with parameters and inputs."""

    def __init__(self, name, change, dtype=jnp.float32):
        mixer = fields.override(fields.components("mixer")[name](), change)
        self.mixer = adapted(mixer, dtype=dtype, parameter_dtype=dtype)
        self.x = jax.random.normal(jax.random.key(0), (BATCH, TIME, WIDTH), dtype)
        self.variables = self.mixer.init(jax.random.key(1), self.x)
        # Away from the initial point: biases of 0 would hide what padding does.
        self.variables = jax.tree.map(
            lambda p: p + 0.3 * jax.random.normal(jax.random.key(2), p.shape, dtype), self.variables
        )
        self.apply = jax.jit(self.mixer.apply)

    def whole(self, x=None, segment_ids=None):
        return self.apply(self.variables, self.x if x is None else x, segment_ids)[0]

    def chunked(self, lengths, segment_ids=None):
        state = self.mixer.initial_state(BATCH, TIME, WIDTH, self.x.dtype)
        start, out = 0, []
        for length in lengths:
            part = slice(start, start + length)
            ids = None if segment_ids is None else segment_ids[:, part]
            y, state = self.apply(self.variables, self.x[:, part], ids, state)
            out.append(y)
            start += length
        return jnp.concatenate(out, axis=1), state


@functools.cache
def _case(key, name):
    return Case(name, dict(CASES[key][1]))


def only_causal(it):
    """Skips what holds for causal mixers alone: the others have no state."""
    if not getattr(it.mixer, "causal", True):
        with pytest.raises(UsageError, match="causal"):
            it.mixer.initial_state(BATCH, TIME, WIDTH, jnp.float32)
        pytest.skip("not causal")


def case(name, change):
    return _case(next(i for i, c in enumerate(CASES) if c == (name, change)), name)


@every_mixer
def test_no_state_in_none_out(name, change):
    it = case(name, change)
    y, state = it.mixer.apply(it.variables, it.x)
    assert state is None
    chex.assert_shape(y, (BATCH, TIME, WIDTH))


@every_mixer
def test_future_has_no_influence(name, change):
    """The Jacobian of y_t with respect to later x is exactly 0, and that with respect to x_t is not."""
    it = case(name, change)
    only_causal(it)
    jacobian = jax.jit(jax.jacobian(lambda x: it.mixer.apply(it.variables, x[None])[0][0]))(it.x[0])
    influence = jnp.abs(jacobian).sum(axis=(1, 3))  # "time of y, time of x"
    assert jnp.all(jnp.triu(influence, 1) == 0)
    assert jnp.all(jnp.diag(influence) > 0)
    assert jnp.all(jnp.diag(influence, -1) > 0), "a mixer that mixes nothing"


@every_mixer
@pytest.mark.parametrize("packed", [False, True])
def test_any_chunks_give_the_whole(name, change, packed):
    it = case(name, change)
    only_causal(it)
    ids = jnp.asarray(PACKED) if packed else None
    whole = it.whole(segment_ids=ids)
    states = []
    for lengths in CHUNKS:
        y, state = it.chunked(lengths, ids)
        chex.assert_trees_all_close(y, whole, atol=3e-6, rtol=1e-5)
        states.append(state)
    for state in states[1:]:
        chex.assert_trees_all_close(state, states[0], atol=3e-6, rtol=1e-5)


@every_mixer
def test_packed_segments_do_not_see_each_other(name, change):
    """Each run of a packed row gives what it gives alone, and its Jacobian across runs is exactly 0."""
    it = case(name, change)
    ids = jnp.asarray(PACKED[:1, :])
    whole = it.whole(it.x[:1], ids)
    for start, stop in ((0, 3), (3, 7), (7, 9)):
        alone = it.whole(it.x[:1, start:stop])
        chex.assert_trees_all_close(whole[:, start:stop], alone, atol=3e-6, rtol=1e-5)
    jacobian = jax.jit(jax.jacobian(lambda x: it.mixer.apply(it.variables, x[None], ids)[0][0]))(it.x[0])
    influence = np.asarray(jnp.abs(jacobian).sum(axis=(1, 3)))
    other = PACKED[0][:, None] != PACKED[0][None, :]
    assert np.all(influence[other] == 0)


@every_mixer
def test_padding_gives_zero_and_leaves_the_state(name, change):
    it = case(name, change)
    ids = jnp.asarray(PACKED)
    assert jnp.all(it.whole(segment_ids=ids)[1, PACKED[1] == 0] == 0)
    gradient = jax.grad(lambda x: jnp.sum(it.mixer.apply(it.variables, x, ids)[0] ** 2))(it.x)
    assert jnp.all(gradient[1, PACKED[1] == 0] == 0)
    chex.assert_tree_all_finite(gradient)
    only_causal(it)
    _, state = it.chunked([4, 5], ids)
    y, after = it.apply(it.variables, it.x[:, :3], jnp.zeros((BATCH, 3), jnp.int32), state)
    assert jnp.all(y == 0)
    chex.assert_trees_all_equal(after, state)


@every_mixer
def test_prompts_of_different_lengths(name, change):
    """Rows padded on the right, then decoded together, give what each gives alone."""
    it = case(name, change)
    only_causal(it)
    lengths = np.array([3, 5])
    ids = jnp.asarray((np.arange(5)[None] < lengths[:, None]).astype(np.int32))
    state = it.mixer.initial_state(BATCH, TIME, WIDTH, it.x.dtype)
    _, state = it.apply(it.variables, it.x[:, :5], ids, state)
    y, _ = it.apply(it.variables, it.x[:, 5:7], None, state)
    for row, length in enumerate(lengths):
        alone = jnp.concatenate([it.x[row : row + 1, :length], it.x[row : row + 1, 5:7]], axis=1)
        chex.assert_trees_all_close(y[row], it.whole(alone)[0, length:], atol=3e-6, rtol=1e-5)


@every_mixer
def test_forms_agree_in_float64(name, change):
    """Parallel and step by step, in values and gradients."""
    with jax.enable_x64(True):
        it = Case(name, change, jnp.float64)
        only_causal(it)
        ids = jnp.asarray(PACKED)

        def parallel(x):
            return it.mixer.apply(it.variables, x, ids)[0]

        def stepwise(x):
            def step(state, token):
                y, state = it.mixer.apply(it.variables, token[0][:, None], token[1][:, None], state)
                return state, y[:, 0]

            # A loop, so that one step is compiled and not nine; it also holds that no step changes a state's dtypes.
            begin = it.mixer.initial_state(BATCH, TIME, WIDTH, x.dtype)
            return jax.lax.scan(step, begin, (x.swapaxes(0, 1), ids.T))[1].swapaxes(0, 1)

        target = jax.random.normal(jax.random.key(5), it.x.shape, it.x.dtype)

        def values_and_gradient(form):
            def total(x):
                y = form(x)
                return jnp.sum(y * target), y

            return jax.jit(jax.value_and_grad(total, has_aux=True))(it.x)

        found, expected = values_and_gradient(parallel), values_and_gradient(stepwise)
        assert found[0][1].dtype == jnp.float64
        chex.assert_trees_all_close(found, expected, atol=1e-10, rtol=1e-10)
