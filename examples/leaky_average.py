"""A sequence mixer of one's own: a leaky average of the past in place of attention.

    arch-jax train examples/leaky_average.py
    arch-jax describe leaky --import examples/leaky_average.py
    ARCH_JAX_IMPORT=examples/leaky_average.py python -m pytest tests/contract -m "" -k leaky

h_t = a * h_{t-1} + (1 - a) * x_t, with a in (0, 1) learned for each channel, and y_t = W h_t.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

import arch_jax


@arch_jax.component("leaky_average", kind="mixer")
class LeakyAverage(nn.Module):
    """The mixer: one call for training, prefilling and decoding.

    Segment id 0 is padding: its output is 0 and it leaves the state untouched; a change of id resets the state.
    """

    def initial_state(self, batch, length, width, dtype=jnp.float32):
        """(last segment id "batch", h "batch width")."""
        return jnp.zeros((batch,), jnp.int32), jnp.zeros((batch, width), dtype)

    @nn.compact
    def __call__(self, x, segment_ids=None, state=None, train=False):
        a = nn.sigmoid(self.param("decay", nn.initializers.normal(1.0), x.shape[-1:])).astype(x.dtype)
        ids = jnp.ones(x.shape[:2], jnp.int32) if segment_ids is None else segment_ids
        x = jnp.where(ids[:, :, None] > 0, x, 0)  # whatever stands at padding: 0 * NaN would be NaN

        def step(carry, now):
            (last, h), (segment, x) = carry, now
            new = jnp.where((segment == last)[:, None], a * h, 0) + (1 - a) * x
            h = jnp.where((segment > 0)[:, None], new, h)
            return (jnp.where(segment > 0, segment, last), h), jnp.where((segment > 0)[:, None], h, 0)

        begin = self.initial_state(*x.shape, x.dtype) if state is None else state
        end, h = jax.lax.scan(step, begin, (ids.T, x.swapaxes(0, 1)))
        # What is added to the residual stream: in float16 it is float32, so that the sum does not overflow.
        output = arch_jax.Dense(x.shape[-1], bias=False, dtype=x.dtype, to_stream=True, name="output")
        y = output(h.swapaxes(0, 1))
        return y, None if state is None else end


@arch_jax.register(
    "leaky",
    family="rnn",
    objective="next_token",
    inputs=arch_jax.tokens(256),
    paper=arch_jax.Paper("Finding Structure in Time", "Elman", 1990, url="doi:10.1207/s15516709cog1402_1"),
    reference="none",
    shrink={"vocabulary": 32, "depth": 2, "width": 16},
)
def leaky():
    """The default decoder with a leaky average instead of attention."""
    return arch_jax.create("gpt", mixer=LeakyAverage())


def config():
    """Bytes of English, two minutes on 2 CPU cores."""
    return arch_jax.Experiment(arch_jax.create("leaky"), arch_jax.objective("next_token"), arch_jax.Text(), steps=200)


def ablate_mixer():
    """The leaky average beside an LSTM and attention."""
    yield {"model.mixer": "leaky_average"}
    yield {"model.mixer": "lstm"}
    yield {"model.mixer": {"module": "attention", "heads": 6}}
