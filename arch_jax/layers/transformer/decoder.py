"""One decoder-only language model: tokens in, logits of the next token out, built of interchangeable parts."""

import functools
import math
from typing import Any, ClassVar

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from arch_jax.fields import DType, component
from arch_jax.layers.dense import Dense, Embedding
from arch_jax.layers.facts import CheckpointFacts, facts_field
from arch_jax.layers.mixers.attention import Attention
from arch_jax.layers.mixers.contract import FeedForward, Mixer, Norm, Position, adapted, check_sizes
from arch_jax.layers.norms import RMSNorm
from arch_jax.layers.sequence_position import advanced, at_start
from arch_jax.layers.transformer.block import Block, Placement, Stack, unrolled_variables
from arch_jax.layers.transformer.feed_forward import SwiGLU
from arch_jax.ops.segments import read_where_real, runs_and_positions
from arch_jax.ranges import PartialShare, Positive

#: Where the parameters go on a mesh: (regular expression on the path, axis for each dimension from the right). As in
#: Megatron-LM (1909.08053, section 3): heads and hidden units are sharded over "tensor" by columns of what goes into a
#: part and by rows of what leaves it, the vocabulary by rows of the table; "fsdp" takes the other dimension.
SHARDINGS = (
    (r"mixer/(query|key|value|gate|up|output_gate)/kernel$", ("fsdp", "tensor")),
    (r"mixer/(query|key|value)/bias$", ("tensor",)),
    (r"mixer/output/kernel$", ("tensor", "fsdp")),
    (r"feed_forward/(gate|up)/kernel$", ("fsdp", "tensor")),
    (r"feed_forward/(gate|up)/bias$", ("tensor",)),
    (r"feed_forward/down/kernel$", ("tensor", "fsdp")),
    (r"^embedding/embedding$", ("tensor", "fsdp")),
    (r"^logits/kernel$", ("fsdp", "tensor")),
    (r"^logits/bias$", ("tensor",)),
)


@flax.struct.dataclass
class DecoderState:
    """Decoding state: a state for each layer, and the position of each row.

    Attributes:
      layers: the mixers' states, in order.
      at: position of each row, a `SequencePosition`.
    """

    # No shape annotations: JAX rebuilds these containers with placeholders that are not arrays.
    layers: tuple
    at: Any


@component("decoder", kind="model")
class Decoder(nn.Module):
    """A decoder language model: embedding, `depth` residual blocks, a norm, and the logits.

    GPT-2, Llama and hybrids with recurrent mixers are settings of it: only the parts vary.

    Attributes:
      vocabulary: number of tokens.
      depth: number of blocks.
      width: size of the residual stream.
      mixer: the sequence mixer, or a tuple of them: layer i takes number i modulo the tuple's length.
      feed_forward: the position-wise part of each block, or None; or a tuple of such: layer i takes number i modulo
        the tuple's length, whatever its mixer.
      norm: of each part, and at the end unless the placement is "post".
      placement: position of the norms: "pre", "post" or "sandwich"; see `layers.transformer.block.Block`.
      position: added to the embeddings; None if the mixer encodes positions (RoPE, recurrences).
      scale_embedding: whether the embeddings are multiplied by sqrt(width) (Vaswani et al. 2017, section 3.4; Gemma).
      embedding_norm: whether a norm follows the embeddings too (RWKV, 2305.13048, appendix F; BLOOM).
      embedding_std: standard deviation of the initial embedding if it is not `initial_std`.
      logit_softcap: logits are squashed to (-c, c) by c * tanh(logits / c) (Gemma 2, 2408.00118); None disables it.
      tied: whether the output layer is the embedding table (Press & Wolf 2017, 1608.05859).
      head: whether there is an output layer; without it the outputs are the last hidden states, "batch time width".
      dropout: dropout rate of the embeddings and of each part's output.
      initial_std: standard deviation of the initial embedding and output layer.
      scale_residual: whether the weights that write to the residual stream start smaller by 1/sqrt(2 depth) (GPT-2),
        or 1/sqrt(depth) in blocks without feed-forward part (Mamba).
      scan: whether equal layers are scanned: compile time that does not grow with depth.
      remat: whether activations are recomputed in the backward pass to save memory.
      dtype: of the computation; softmax, norms' statistics and losses are at least float32.
      parameter_dtype: of the parameters.
      facts: the checkpoint's own, where the module was loaded from one.
    """

    shardings: ClassVar = SHARDINGS

    vocabulary: int
    depth: int
    width: int
    mixer: Mixer | tuple[Mixer, ...] = Attention()
    feed_forward: FeedForward | tuple[FeedForward | None, ...] | None = SwiGLU()
    norm: Norm = RMSNorm()
    position: Position | None = None
    tied: bool = True
    dropout: PartialShare = 0.0
    initial_std: float = 0.02
    scale_residual: bool = True
    scan: bool = True
    remat: bool = False
    placement: Placement = "pre"
    scale_embedding: bool = False
    logit_softcap: Positive | None = None
    embedding_norm: bool = False
    embedding_std: float | None = None
    head: bool = True
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32
    facts: CheckpointFacts | None = facts_field()

    def __post_init__(self) -> None:
        check_sizes(self)
        super().__post_init__()

    @property
    def mixers(self) -> tuple[nn.Module, ...]:
        """The repeating pattern of mixers."""
        return self.mixer if isinstance(self.mixer, tuple) else (self.mixer,)

    @property
    def feed_forwards(self) -> tuple[nn.Module | None, ...]:
        """The repeating pattern of position-wise parts."""
        return self.feed_forward if isinstance(self.feed_forward, tuple) else (self.feed_forward,)

    @property
    def turn(self) -> int:
        """The number of layers after which both patterns repeat."""
        return math.lcm(len(self.mixers), len(self.feed_forwards))

    def setup(self) -> None:
        dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        part = functools.partial(adapted, **dtypes)
        blocks = tuple(self._block(i, part) for i in range(self.turn))
        std = self.initial_std if self.embedding_std is None else self.embedding_std
        self.embedding = Embedding(self.vocabulary, self.width, std, **dtypes)
        if self.embedding_norm:
            self.first_norm = part(self.norm)
        if self.position is not None:
            self.position_embedding = adapted(self.position, **dtypes)
        self.embedding_dropout = nn.Dropout(self.dropout)
        self.stack = Stack(blocks, self.depth, self.scan, self.remat)
        if self.placement != "post":
            self.final_norm = part(self.norm)
        if self.head and not self.tied:
            self.logits = Dense(self.vocabulary, False, self.initial_std, **dtypes)

    def _block(self, i, part):
        """Block i of a turn. What writes to the residual stream is scaled by how many such parts a stack of it has."""
        mixer, feed_forward = self.mixers[i % len(self.mixers)], self.feed_forwards[i % len(self.feed_forwards)]
        parts = self.depth * (1 if feed_forward is None else 2)
        scale = parts**-0.5 if self.scale_residual else 1.0
        mixer = part(mixer, residual_scale=scale)
        feed_forward = None if feed_forward is None else part(feed_forward, residual_scale=scale)
        return Block(mixer, part(self.norm), feed_forward, self.dropout, self.placement, parent=None)

    def initial_state(self, batch: int, length: int, dtype: DType | None = None) -> DecoderState:
        """The state before the first token, with room for `length` tokens a row.

        Raises:
          UsageError: `length` is beyond the table of learned positions.
        """
        if self.position is not None:
            self.position.check(length)
        dtype = self.dtype if dtype is None else dtype
        mixers = [self.mixers[i % len(self.mixers)] for i in range(self.depth)]
        layers = tuple(mixer.initial_state(batch, length, self.width, dtype) for mixer in mixers)
        return DecoderState(layers=layers, at=at_start(batch))

    def __call__(
        self,
        tokens: Int[Array, "batch time"],
        segment_ids: Int[Array, "batch time"] | None = None,
        state: DecoderState | None = None,
        train: bool = False,
    ) -> Float[Array, "batch time _"] | tuple[Float[Array, "batch time _"], DecoderState]:
        """Logits "batch time vocabulary" for the token after each; with a state, `(logits, new state)`.

        Args:
          tokens: indices in [0, vocabulary); one outside gives NaN.
          segment_ids: packed sequences see only their own segment; 0 is padding; None is one segment a row.
          state: from `initial_state` or an earlier call.
          train: whether dropout is active (needs `rngs={"dropout": key}`).

        Raises:
          UsageError: the sequence is longer than a table of learned positions.
        """
        x = self.embedding(read_where_real(tokens, segment_ids))
        if self.scale_embedding:
            x = x * jnp.asarray(self.width**0.5, x.dtype)
        at = None
        if state is not None:
            ids = jnp.ones(tokens.shape, jnp.int32) if segment_ids is None else segment_ids
            _, positions, at = advanced(state.at, ids)
        elif segment_ids is not None and self.position is not None:
            positions = runs_and_positions(segment_ids)[1]
        else:
            positions = jnp.arange(tokens.shape[1])
        if self.position is not None:
            x = x + self.position_embedding(positions, self.width)
        if self.embedding_norm:
            x = self.first_norm(x)
        x = self.embedding_dropout(x, deterministic=not train)
        x, layers = self.stack(x, segment_ids, None if state is None else state.layers, train)
        x = x if self.placement == "post" else self.final_norm(x)
        out = self._logits(x) if self.head else x.astype(self.dtype)
        return out if state is None else (out, DecoderState(layers=layers, at=at))

    def _logits(self, x):
        logits = self.embedding.attend(x) if self.tied else self.logits(x)
        if self.logit_softcap is None:
            return logits
        return self.logit_softcap * jnp.tanh(logits / self.logit_softcap)

    def unrolled(self, variables: Any) -> tuple["Decoder", Any]:
        """The same model with a parameter tree for each layer, the form for decoding.

        Slicing the stacked parameters once, outside the loop over tokens, saves a copy of all of them at each token.
        """
        if not (self.scan and self.depth % self.turn == 0):
            return self, variables
        apart = {}
        for kind, tree in variables.items():
            apart[kind] = dict(tree)
            if "stack" in tree:
                apart[kind]["stack"] = unrolled_variables({kind: tree["stack"]}, self.turn)[kind]
        return self.clone(scan=False), apart
