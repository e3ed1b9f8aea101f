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
pytestmark = pytest.mark.usefixtures("drawn_quickly")

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
#: In the quick tier each mixer has its first setting.
FURTHER = [change != VARIANTS.get(name, [{}])[0] for name, change in CASES]
every_mixer = pytest.mark.parametrize(
    ("name", "change"),
    [
        pytest.param(name, change, id=f"{name}-{i}", marks=[pytest.mark.thorough] if further else [])
        for i, ((name, change), further) in enumerate(zip(CASES, FURTHER, strict=True))
    ],
)

#: The settings that cut a sequence into chunks of their own.
CHUNKED = [(name, change) for name, change in CASES if "chunk" in change]

#: Rows of segment ids: packed documents, padding in the middle and at the end, an id that comes again.
PACKED = np.array([[1, 1, 1, 2, 2, 2, 2, 2, 3], [4, 4, 0, 0, 4, 7, 4, 0, 0]], np.int32)
#: Few lengths, since each is compiled on its own: one token, and more than one chunk of the forms that have chunks.
CHUNKS = [[1] * 9, [1, 1, 1, 1, 5], [5, 1, 1, 1, 1]]
MORE_CHUNKS = [[9], [4, 1, 4], [1, 4, 4]]
#: Tokens that a causal mixer, too, reads with nothing behind them: one of the runs of PACKED's first row.
ALONE = 5


class Case:
    """A mixer with parameters and inputs, on the host. Each of its programs is compiled once, for all tests."""

    def __init__(self, name, change):
        mixer = fields.override(fields.components("mixer")[name](), change)
        self.mixer = adapted(mixer, dtype=jnp.float32, parameter_dtype=jnp.float32)
        self.causal = getattr(self.mixer, "causal", True)
        rng = np.random.default_rng(0)
        self.x = rng.normal(size=(BATCH, TIME, WIDTH)).astype(np.float32)
        # Away from the initial point: biases of 0 would hide what padding does.
        noisy = lambda p: (p + 0.3 * rng.normal(size=p.shape)).astype(p.dtype)
        self.variables = jax.tree.map(noisy, jax.device_get(jax.jit(self.mixer.init)(jax.random.key(1), self.x)))
        self.apply = jax.jit(self.mixer.apply)
        self.program = jax.jit(self._program)

    def _program(self, variables, x, ids):
        """Of a batch: outputs, state, and the Jacobian, "row time width, row time width" of outputs and inputs."""
        y, pull_back, state = jax.vjp(lambda x: self.mixer.apply(variables, x, ids), x, has_aux=True)
        # Row by row: of a norm pulled back for 144 cotangents at once, some numbers are wrong on a CPU (the fused
        # reductions of jaxlib 0.10.2, beyond 32,768 elements; with XLA's ynn fusion of reductions off they are right).
        (jacobian,) = jax.lax.map(jax.vmap(pull_back), jnp.eye(y.size).reshape(BATCH, -1, *y.shape))
        return {"y": y, "state": state, "jacobian": jacobian.reshape(*y.shape, *x.shape)}

    @functools.cached_property
    def plain(self):
        """`_program` without segment ids."""
        return jax.device_get(self.program(self.variables, self.x, None))

    @functools.cached_property
    def packed(self):
        """`_program` with the segment ids PACKED."""
        return jax.device_get(self.program(self.variables, self.x, PACKED))

    def alone(self, row):
        """The outputs of a sequence shorter than TIME, by itself.

        If causal, only one of ALONE tokens has a program of its own length. Behind another stand tokens, which have no
        influence, as test_future_has_no_influence holds.
        """
        if not self.causal or len(row) == ALONE:
            return np.asarray(self.apply(self.variables, row[None])[0])[0]
        x = np.concatenate([row, self.x[0, len(row) :]])
        return jax.device_get(self.program(self.variables, np.stack([x] * BATCH), None))["y"][0, : len(row)]

    def step(self, x, ids, state):
        return jax.device_get(self.apply(self.variables, x, ids, state))

    @functools.cached_property
    def initial_state(self):
        return jax.device_get(jax.jit(lambda: self.mixer.initial_state(BATCH, TIME, WIDTH, jnp.float32))())

    def chunked(self, lengths, segment_ids=None):
        state = self.initial_state
        start, out = 0, []
        for length in lengths:
            part = slice(start, start + length)
            ids = None if segment_ids is None else segment_ids[:, part]
            y, state = self.step(self.x[:, part], ids, state)
            out.append(y)
            start += length
        return np.concatenate(out, axis=1), state


@functools.lru_cache(1)  # the tests of one case stand next to each other (conftest.py)
def _case(key, name):
    return Case(name, dict(CASES[key][1]))


def only_causal(it):
    """Skips what holds for causal mixers alone: the others have no state."""
    if not it.causal:
        with pytest.raises(UsageError, match="causal"):
            it.mixer.initial_state(BATCH, TIME, WIDTH, jnp.float32)
        pytest.skip("not causal")


def case(name, change):
    return _case(next(i for i, c in enumerate(CASES) if c == (name, change)), name)


@every_mixer
def test_no_state_in_none_out(name, change):
    it = case(name, change)
    assert it.plain["state"] is None
    chex.assert_shape(it.plain["y"], (BATCH, TIME, WIDTH))


@pytest.mark.parametrize("kind", ["mixer", "feed_forward"])
def test_outputs_are_scaled_only_where_a_decoder_asks(kind):
    found = {name: cls for name, cls in fields.components(kind).items() if hasattr(cls, "residual_scale")}
    assert found
    assert {name: cls.residual_scale for name, cls in found.items() if cls.residual_scale != 1} == {}


@every_mixer
def test_future_has_no_influence(name, change):
    """The Jacobian of y_t with respect to later x is exactly 0, and that with respect to x_t is not."""
    it = case(name, change)
    only_causal(it)
    influence = np.abs(it.plain["jacobian"]).sum(axis=(2, 5))  # "row of y, time of y, row of x, time of x"
    for row in range(BATCH):
        assert np.all(np.triu(influence[row, :, row], 1) == 0)
        assert np.all(np.diag(influence[row, :, row]) > 0)
        assert np.all(np.diag(influence[row, :, row], -1) > 0), "a mixer that mixes nothing"


@every_mixer
def test_rows_have_no_influence_on_each_other(name, change):
    it = case(name, change)
    for jacobian in (it.plain["jacobian"], it.packed["jacobian"]):
        influence = np.abs(jacobian).sum(axis=(1, 2, 4, 5))
        assert np.all(influence[~np.eye(BATCH, dtype=bool)] == 0)


def chunks_give_the_whole(it, chunks, ids):
    only_causal(it)
    whole = (it.plain if ids is None else it.packed)["y"]
    states = []
    for lengths in chunks:
        y, state = it.chunked(lengths, ids)
        chex.assert_trees_all_close(y, whole, atol=3e-6, rtol=1e-5)
        states.append(state)
    for state in states[1:]:
        chex.assert_trees_all_close(state, states[0], atol=3e-6, rtol=1e-5)


@every_mixer
def test_single_tokens_give_the_whole(name, change):
    chunks_give_the_whole(case(name, change), CHUNKS[:1], None)


@every_mixer
def test_any_packed_chunks_give_the_whole(name, change):
    chunks_give_the_whole(case(name, change), CHUNKS, PACKED)


@pytest.mark.parametrize(("name", "change"), CHUNKED, ids=[f"{name}-{CASES.index((name, c))}" for name, c in CHUNKED])
@pytest.mark.thorough  # other lengths on the same paths: they begin and end elsewhere in a chunk
def test_more_chunks_give_the_whole(name, change):
    chunks_give_the_whole(case(name, change), CHUNKS + MORE_CHUNKS, PACKED)
    chunks_give_the_whole(case(name, change), CHUNKS[:1] + MORE_CHUNKS, None)


@every_mixer
def test_packed_segments_do_not_see_each_other(name, change):
    """Each run of a packed row gives what it gives alone, and its Jacobian across runs is exactly 0."""
    it = case(name, change)
    runs = [slice(0, 3), slice(3, 8), slice(8, 9)]
    for run in runs:
        chex.assert_trees_all_close(it.packed["y"][0, run], it.alone(it.x[0, run]), atol=3e-6, rtol=1e-5)
    influence = np.abs(it.packed["jacobian"]).sum(axis=(2, 5))[0, :, 0]
    other = PACKED[0][:, None] != PACKED[0][None, :]
    assert np.all(influence[other] == 0)


@every_mixer
def test_padding_gives_zero_and_leaves_the_state(name, change):
    it = case(name, change)
    assert np.all(it.packed["y"][1, PACKED[1] == 0] == 0)
    jacobian = it.packed["jacobian"]
    assert np.all(np.isfinite(jacobian))
    assert np.all(jacobian[:, :, :, 1, PACKED[1] == 0] == 0), "of anything with respect to padding"
    only_causal(it)
    _, state = it.chunked(CHUNKS[1], PACKED)
    y, after = it.step(it.x[:, :5], np.zeros((BATCH, 5), np.int32), state)
    assert np.all(y == 0)
    chex.assert_trees_all_equal(after, state)


@every_mixer
def test_what_stands_at_padding_enters_nothing(name, change):
    """NaN and infinity there: outputs, states and gradients are the same, bit for bit."""
    it = case(name, change)
    real = PACKED[:, :, None] > 0
    for other in (np.nan, np.inf):
        found = jax.device_get(it.program(it.variables, np.where(real, it.x, np.float32(other)), PACKED))
        jax.tree.map(np.testing.assert_array_equal, found, it.packed)


@pytest.mark.thorough
@every_mixer
def test_what_stands_at_padding_enters_no_gradient(name, change):
    """The same for the parameters' gradient."""
    it = case(name, change)
    real = PACKED[:, :, None] > 0
    ids = jnp.array(PACKED)
    slope = jax.jit(jax.grad(lambda v, x: jnp.sum(jnp.square(it.mixer.apply(v, x, ids)[0]))))
    found = [slope(it.variables, np.where(real, it.x, np.float32(other))) for other in (0, np.nan)]
    jax.tree.map(np.testing.assert_array_equal, *found)


@every_mixer
def test_prompts_of_different_lengths(name, change):
    """Rows padded on the right, then decoded together, give what each gives alone."""
    it = case(name, change)
    only_causal(it)
    lengths = [3, 5]
    ids = (np.arange(5)[None] < np.array(lengths)[:, None]).astype(np.int32)
    _, state = it.step(it.x[:, :5], ids, it.initial_state)
    found = []
    for t in (5, 6):
        y, state = it.step(it.x[:, t : t + 1], None, state)
        found.append(y)
    expected = [it.alone(np.concatenate([row[:n], row[5:7]])) for row, n in zip(it.x, lengths, strict=True)]
    for row, length in enumerate(lengths):
        both = np.concatenate([y[row] for y in found])
        chex.assert_trees_all_close(both, expected[row][length:], atol=3e-6, rtol=1e-5)


@every_mixer
@pytest.mark.thorough  # each operation has its own test against an oracle, in values and gradients
def test_forms_agree_in_float64(name, change):
    """Parallel and step by step, in values and gradients."""
    single = case(name, change)
    only_causal(single)
    with jax.enable_x64(True):
        mixer = adapted(single.mixer, dtype=jnp.float64, parameter_dtype=jnp.float64)
        wide = lambda leaf: leaf.astype(np.float64) if leaf.dtype == np.float32 else leaf
        x, variables = wide(single.x), jax.tree.map(wide, single.variables)
        target = np.random.default_rng(5).normal(size=x.shape)

        def parallel(variables, x):
            return mixer.apply(variables, x, jnp.asarray(PACKED))[0]

        def stepwise(variables, x):
            def step(state, token):
                y, state = mixer.apply(variables, token[0][:, None], token[1][:, None], state)
                return state, y[:, 0]

            # A loop, so that one step is compiled and not nine; it also holds that no step changes a state's dtypes.
            begin = mixer.initial_state(BATCH, TIME, WIDTH, x.dtype)
            return jax.lax.scan(step, begin, (x.swapaxes(0, 1), jnp.asarray(PACKED.T)))[1].swapaxes(0, 1)

        def values_and_gradient(form):
            def total(x, variables):
                y = form(variables, x)
                return jnp.sum(y * target), y

            return jax.device_get(jax.jit(jax.value_and_grad(total, has_aux=True))(x, variables))

        found, expected = values_and_gradient(parallel), values_and_gradient(stepwise)
        assert found[0][1].dtype == np.float64
        chex.assert_trees_all_close(found, expected, atol=1e-10, rtol=1e-10)
