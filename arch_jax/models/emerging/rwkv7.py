"""RWKV-7 "Goose": a matrix state under a generalised delta rule (Peng et al. 2025, 2503.14456).

A layer is time mixing and channel mixing, each a residual block with a LayerNorm in front; one more norm follows the
embedding, and the values of the first layer are mixed into those of all others:

    x = LayerNorm(E[tokens])
    dx, v_first = TimeMixing(LayerNorm(x), v_first);    x = x + dx;     x = x + ChannelMixing(LayerNorm(x))
    logits = LayerNorm(x) W

Size (appendix F), with ranks d: 2 V D + 4 D + L D (12 D + 2 (d_w + d_a + d_v + d_g) + 19) - (2 D d_v + D).
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from arch_jax.fields import DType, component
from arch_jax.inputs import tokens
from arch_jax.layers.dense import Dense, Embedding
from arch_jax.layers.mixers.contract import Mixer, Norm, adapted, check_sizes
from arch_jax.layers.mixers.rwkv4 import orthogonal
from arch_jax.layers.mixers.rwkv7 import RWKV7, RWKV7Channel
from arch_jax.layers.norms import LayerNorm
from arch_jax.layers.sequence_position import advanced, at_start
from arch_jax.layers.transformer.decoder import SHARDINGS, DecoderState
from arch_jax.ops.segments import read_where_real
from arch_jax.ranges import PartialShare
from arch_jax.registry import Paper, register


class RWKV7Layer(nn.Module):
    """Time mixing and channel mixing, each after a norm and with a residual connection.

    Attributes:
      mixer: time mixing.
      channel: channel mixing.
      norm: of each.
      dropout: dropout rate of each part's output.
    """

    mixer: Mixer
    channel: Mixer
    norm: Norm
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x, segment_ids=None, state=None, train=False, place=None, first=None):
        """x after the layer, its state, and the values of the first layer."""
        dropout = nn.Dropout(self.dropout, deterministic=not train)
        norm = lambda name: self.norm.clone(parent=self, name=name)
        mixed, looked = (None, None) if state is None else state
        y, mixed, first = self.mixer.mix(norm("mixer_norm")(x), segment_ids, mixed, place, first)
        x = x + dropout(y)
        y, looked = self.channel(norm("channel_norm")(x), segment_ids, looked, train, place)
        return x + dropout(y), None if state is None else (mixed, looked), first


@component("rwkv7_model", kind="model")
class RWKV7Model(nn.Module):
    """RWKV-7 as a language model: tokens in, logits of the next token out.

    A `Decoder` passes nothing from layer to layer but the residual stream; this model also passes v_first.

    Attributes:
      vocabulary: number of tokens.
      depth: number of layers, of two residual blocks each.
      width: size of the residual stream.
      mixer: time mixing.
      channel: channel mixing.
      norm: of each part, after the embedding, and at the end.
      dropout: dropout rate of each part's output.
      embedding_std: standard deviation of the initial embedding: small, since a norm follows.
      remat: whether activations are recomputed in the backward pass to save memory.
      dtype: of the computation; norms' statistics, states and losses are at least float32.
      parameter_dtype: of the parameters.
    """

    shardings = SHARDINGS

    vocabulary: int
    depth: int
    width: int
    mixer: Mixer = RWKV7()
    channel: Mixer = RWKV7Channel()
    norm: Norm = LayerNorm(epsilon=1e-5)
    dropout: PartialShare = 0.0
    embedding_std: float = 1e-4
    remat: bool = False
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    def __post_init__(self) -> None:
        check_sizes(self)
        super().__post_init__()

    def setup(self) -> None:
        dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        self.embedding = Embedding(self.vocabulary, self.width, self.embedding_std, **dtypes)
        self.first_norm, self.final_norm = (adapted(self.norm, **dtypes) for _ in range(2))
        layer = nn.remat(RWKV7Layer, static_argnums=(4, 5), prevent_cse=False) if self.remat else RWKV7Layer
        parts = (self.mixer, self.channel, self.norm)
        self.layer = [layer(*(adapted(part, **dtypes) for part in parts), self.dropout) for _ in range(self.depth)]
        head = lambda *arguments: 0.5 * orthogonal(*arguments)
        self.logits = Dense(self.vocabulary, False, initial=head, **dtypes)

    def initial_state(self, batch: int, length: int, dtype: DType | None = None) -> DecoderState:
        """The state before the first token; it has the same size for every `length`."""
        dtype = self.dtype if dtype is None else dtype
        layers = tuple(
            (
                self.mixer.initial_state(batch, length, self.width, dtype),
                self.channel.initial_state(batch, length, self.width, dtype),
            )
            for _ in range(self.depth)
        )
        return DecoderState(layers=layers, at=at_start(batch))

    def __call__(
        self,
        tokens: Int[Array, "batch time"],
        segment_ids: Int[Array, "batch time"] | None = None,
        state: DecoderState | None = None,
        train: bool = False,
    ) -> Float[Array, "batch time vocabulary"] | tuple[Float[Array, "batch time vocabulary"], DecoderState]:
        """Logits for the token after each; with a state, `(logits, new state)`.

        Args:
          tokens: indices in [0, vocabulary); one outside gives NaN.
          segment_ids: packed sequences see only their own segment; 0 is padding; None is one segment a row.
          state: from `initial_state` or an earlier call.
          train: whether dropout is active (needs `rngs={"dropout": key}`).
        """
        x, first, after = self.first_norm(self.embedding(read_where_real(tokens, segment_ids))), None, []
        for i, layer in enumerate(self.layer):
            before = None if state is None else state.layers[i]
            x, new, first = layer(x, segment_ids, before, train, (i, self.depth), first)
            after.append(new)
        logits = self.logits(self.final_norm(x))
        if state is None:
            return logits
        ids = jnp.ones(tokens.shape, jnp.int32) if segment_ids is None else segment_ids
        _, _, at = advanced(state.at, ids)
        return logits, DecoderState(tuple(after), at)


RWKV7_FACTS = {
    "family": "emerging",
    "objective": "next_token",
    "paper": Paper('RWKV-7 "Goose" with Expressive Dynamic State Evolution', "Peng et al.", 2025, "2503.14456"),
    "inputs": tokens(1024),
    "architecture": "rwkv7",
    "shrink": {
        "vocabulary": 32,
        "depth": 2,
        "width": 16,
        "mixer.head_size": 8,
        "mixer.decay_rank": 4,
        "mixer.rate_rank": 4,
        "mixer.value_rank": 4,
        "mixer.gate_rank": 4,
    },
    "reference": "the equations of BlinkDL's rwkv_v7_numpy.py, written out in numpy: logits within 1e-5",
    "departures": (
        "In a hybrid, an RWKV-7 layer on its own goes without the values of the first layer, for which the mixers' "
        "contract has no place; the registered models have them.",
    ),
    "difference": 4.1e-7,
}


def rwkv7_model(layers: int, width: int, **ranks: int) -> RWKV7Model:
    """RWKV-7 of any size, with the World tokenizer's vocabulary; ranks other than the suggested ones by name."""
    return RWKV7Model(vocabulary=65_536, depth=layers, width=width, mixer=RWKV7(**ranks))


@register("rwkv7-0.1b", parameters=191_034_624, **RWKV7_FACTS)
def rwkv7_01b() -> RWKV7Model:
    """RWKV-7 World 0.1B: 12 layers, width 768."""
    return rwkv7_model(12, 768)


@register("rwkv7-0.4b", parameters=450_767_872, **RWKV7_FACTS)
def rwkv7_04b() -> RWKV7Model:
    """RWKV-7 World 0.4B: 24 layers, width 1024."""
    return rwkv7_model(24, 1024, gate_rank=128)


@register("rwkv7-1.5b", parameters=1_527_404_544, **RWKV7_FACTS)
def rwkv7_15b() -> RWKV7Model:
    """RWKV-7 World 1.5B: 24 layers, width 2048."""
    return rwkv7_model(24, 2048)


@register("rwkv7-2.9b", parameters=2_947_735_040, **RWKV7_FACTS)
def rwkv7_29b() -> RWKV7Model:
    """RWKV-7 World 2.9B: 32 layers, width 2560."""
    return rwkv7_model(32, 2560)
