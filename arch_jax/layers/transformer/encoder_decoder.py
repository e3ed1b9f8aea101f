"""One encoder-decoder: a source is encoded whole, a target decoded token by token; built of interchangeable parts."""

import functools
from typing import Any, ClassVar

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from arch_jax.errors import UsageError
from arch_jax.fields import DType, component
from arch_jax.layers.dense import Dense, Embedding
from arch_jax.layers.facts import CheckpointFacts, facts_field
from arch_jax.layers.mixers.attention import Attention
from arch_jax.layers.mixers.contract import Cross, FeedForward, Mixer, Norm, Position, adapted, check_sizes
from arch_jax.layers.norms import LayerNorm
from arch_jax.layers.transformer.block import Block, Context, Placement, Stack, unrolled_variables
from arch_jax.layers.transformer.cross_attention import CrossAttention
from arch_jax.layers.transformer.decoder import SHARDINGS
from arch_jax.layers.transformer.feed_forward import MLP
from arch_jax.layers.transformer.positions import RelativeBuckets
from arch_jax.ops.segments import read_where_real
from arch_jax.ranges import PartialShare


@flax.struct.dataclass
class EncoderDecoderState:
    """Decoding state.

    Attributes:
      layers: of each layer the mixer's state, and the memory's keys and values (none before the first call).
      memory: the encoder's output; None once its keys and values are known.
      memory_mask: True at real tokens of the source, "batch source", or None.
      written: tokens of the target so far, "batch".
    """

    # No shape annotations: JAX rebuilds these containers with placeholders that are not arrays.
    layers: tuple
    memory: Any
    memory_mask: Any
    written: Any


@component("encoder_decoder", kind="model")
class EncoderDecoder(nn.Module):
    """A Transformer for sequence to sequence: the original of 2017, T5 and Marian are settings of it.

    Attributes:
      vocabulary: number of tokens of the target, and of the source unless that has its own.
      depth: blocks of the encoder.
      width: size of the residual stream.
      mixer: self-attention; bidirectional in the encoder, causal in the decoder.
      decoder_mixer: self-attention of the decoder if it is not `mixer`.
      cross: the decoder's attention to the source.
      feed_forward: the position-wise part of each block.
      decoder_feed_forward: that of the decoder's blocks if it is not `feed_forward`.
      norm: of each part, and at the end of both stacks unless the placement is "post".
      placement: position of the norms: "pre", "post" or "sandwich"; see `layers.transformer.block.Block`.
      position: added to the embeddings, or None.
      relative: a term of the scores that all layers of a stack share (T5), or None; bidirectional in the encoder.
      decoder_depth: blocks of the decoder; None is as many as the encoder has.
      shared: whether source and target have one embedding table.
      source_vocabulary: number of tokens of the source if it is not `vocabulary`; needs tables of their own.
      tied: whether the output layer is the target's table (Press & Wolf 2017, 1608.05859).
      scale_embedding: whether embeddings are multiplied by sqrt(width) (Vaswani et al. 2017, section 3.4).
      scale_logits: whether the last hidden states are multiplied by 1/sqrt(width) before a tied output layer (T5).
      logits_bias: whether a bias is added to the logits (Marian).
      encoder_only: whether there is no decoder, as in text encoders of diffusion models: the outputs are the memory.
      dropout: dropout rate of the embeddings and of each part's output.
      initial_std: standard deviation of the initial embeddings.
      scan: whether equal layers are scanned: compile time that does not grow with depth.
      remat: whether activations are recomputed in the backward pass to save memory.
      dtype: of the computation; softmax, norms' statistics and losses are at least float32.
      parameter_dtype: of the parameters.
      facts: the checkpoint's own, where the module was loaded from one.
    """

    shardings: ClassVar = (
        (r"cross/(query|key|value)/kernel$", ("fsdp", "tensor")),
        (r"cross/(query|key|value)/bias$", ("tensor",)),
        (r"cross/output/kernel$", ("tensor", "fsdp")),
        (r"^source_embedding/embedding$", ("tensor", "fsdp")),
        *SHARDINGS,
    )

    vocabulary: int
    depth: int
    width: int
    mixer: Mixer = Attention()
    cross: Cross = CrossAttention()
    feed_forward: FeedForward = MLP()
    norm: Norm = LayerNorm()
    placement: Placement = "pre"
    position: Position | None = None
    relative: RelativeBuckets | None = None
    decoder_depth: int | None = None
    shared: bool = True
    tied: bool = True
    scale_embedding: bool = False
    scale_logits: bool = False
    logits_bias: bool = False
    decoder_mixer: Mixer | None = None
    decoder_feed_forward: FeedForward | None = None
    source_vocabulary: int | None = None
    encoder_only: bool = False
    dropout: PartialShare = 0.0
    initial_std: float = 0.02
    scan: bool = True
    remat: bool = False
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32
    facts: CheckpointFacts | None = facts_field()

    def __post_init__(self) -> None:
        check_sizes(self)
        if self.decoder_depth is not None and self.decoder_depth < 1:
            raise UsageError(
                f"decoder_depth is {self.decoder_depth}; expected at least 1, or none for as many as depth"
            )
        if self.source_vocabulary is not None and (self.shared or self.source_vocabulary < 1):
            raise UsageError(
                f"source_vocabulary is {self.source_vocabulary} and shared {str(self.shared).lower()}; expected at "
                "least 1 token and shared=false, or source_vocabulary=none for one vocabulary"
            )
        super().__post_init__()

    def setup(self) -> None:
        dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        part = functools.partial(adapted, **dtypes)
        settings = {"dropout": self.dropout, "placement": self.placement, "parent": None}
        norm = part(self.norm)
        encoder = Block(part(self.mixer, causal=False), norm, part(self.feed_forward), **settings)
        mixer, feed_forward = self.decoder_parts
        decoder = Block(part(mixer, causal=True), norm, part(feed_forward), cross=part(self.cross), **settings)
        self.embedding = Embedding(self.vocabulary, self.width, self.initial_std, **dtypes)
        if not self.shared:
            entries = self.source_vocabulary or self.vocabulary
            self.source_embedding = Embedding(entries, self.width, self.initial_std, **dtypes)
        if self.position is not None:
            self.position_embedding = part(self.position)
        if self.relative is not None:
            self.encoder_relative = part(self.relative, bidirectional=True)
        self.drop = nn.Dropout(self.dropout)
        self.encoder = Stack((encoder,), self.depth, self.scan, self.remat)
        if self.placement != "post":
            self.encoder_norm = part(self.norm)
        if self.encoder_only:
            return
        if self.relative is not None:
            self.decoder_relative = part(self.relative, bidirectional=False)
        self.decoder = Stack((decoder,), self.decoder_layers, self.scan, self.remat)
        if self.placement != "post":
            self.decoder_norm = part(self.norm)
        if not self.tied:
            self.logits = Dense(self.vocabulary, False, None, **dtypes)
        if self.logits_bias:
            self.output_bias = self.param(
                "logits_bias", nn.initializers.zeros, (self.vocabulary,), self.parameter_dtype
            )

    @property
    def decoder_parts(self) -> tuple[nn.Module, nn.Module]:
        """Self-attention and feed-forward part of the decoder."""
        return self.decoder_mixer or self.mixer, self.decoder_feed_forward or self.feed_forward

    @property
    def decoder_layers(self) -> int:
        """Blocks of the decoder."""
        return self.decoder_depth or self.depth

    def __call__(
        self,
        source: Int[Array, "batch source"],
        target: Int[Array, "batch time"] | None = None,
        source_mask: Bool[Array, "batch source"] | None = None,
        train: bool = False,
    ) -> Float[Array, "batch _ _"]:
        """Logits "batch time vocabulary" for the token after each of the target; of an encoder alone, the memory.

        Args:
          source: indices in [0, vocabulary), or [0, source_vocabulary); one outside gives NaN.
          target: the target so far, beginning with the start token; not read by an encoder alone.
          source_mask: True at real tokens of the source; padding is on the right. None is all.
          train: whether dropout is active (needs `rngs={"dropout": key}`).

        Raises:
          UsageError: a sequence is longer than a table of learned positions, or there is no target.
        """
        memory = self.encode(source, source_mask, train)
        if self.encoder_only:
            return memory
        if target is None:
            raise UsageError("target is none; expected the tokens so far, or a model with encoder_only=true")
        positions = jnp.arange(target.shape[1])
        x = self.drop(self._embed(self.embedding, target, positions), deterministic=not train)
        bias = self._bias("decoder_relative", positions[:, None] - positions)
        x, _ = self.decoder(x, None, None, train, Context(bias, memory, source_mask))
        return self._read(x, train)

    def encode(
        self,
        source: Int[Array, "batch source"],
        source_mask: Bool[Array, "batch source"] | None = None,
        train: bool = False,
    ) -> Float[Array, "batch source width"]:
        """The memory: the encoder's output."""
        positions, source = jnp.arange(source.shape[1]), read_where_real(source, source_mask)
        x = self._embed(self.embedding if self.shared else self.source_embedding, source, positions)
        x = self.drop(x, deterministic=not train)
        bias = self._bias("encoder_relative", positions[:, None] - positions)
        ids = None if source_mask is None else source_mask.astype(jnp.int32)
        x, _ = self.encoder(x, ids, None, train, Context(bias))
        if self.placement != "post":
            x = self.drop(self.encoder_norm(x), deterministic=not train)
        return x.astype(self.dtype)

    def start(
        self,
        memory: Float[Array, "batch source width"],
        source_mask: Bool[Array, "batch source"] | None,
        length: int,
    ) -> EncoderDecoderState:
        """The state before the first token of a target of up to `length` tokens.

        Raises:
          UsageError: `length` is beyond the table of learned positions, or there is no decoder.
        """
        if self.encoder_only:
            raise UsageError("encoder_only is true, so nothing can be decoded; expected a model with a decoder")
        if self.position is not None:
            self.position.check(length)
        batch = memory.shape[0]
        mixer = adapted(self.decoder_parts[0], causal=True)
        layers = tuple(
            (mixer.initial_state(batch, length, self.width, self.dtype), None) for _ in range(self.decoder_layers)
        )
        return EncoderDecoderState(layers, memory, source_mask, jnp.zeros((batch,), jnp.int32))

    def decode(
        self, target: Int[Array, "batch time"], state: EncoderDecoderState
    ) -> tuple[Float[Array, "batch time vocabulary"], EncoderDecoderState]:
        """Logits for the token after each of the next tokens of the target, and the state after them.

        The first call computes the memory's keys and values, once for all later ones.
        """
        positions = state.written[:, None] + jnp.arange(target.shape[1])
        x = self._embed(self.embedding, target, positions)
        bias = None
        if self.relative is not None:
            places = jnp.arange(state.layers[0][0].place_run.shape[1])
            bias = self._bias("decoder_relative", positions[:, :, None] - places)
        x, layers = self.decoder(x, None, state.layers, False, Context(bias, state.memory, state.memory_mask))
        after = EncoderDecoderState(layers, None, state.memory_mask, state.written + target.shape[1])
        return self._read(x, False), after

    def unrolled(self, variables: Any) -> tuple["EncoderDecoder", Any]:
        """The same model with a parameter tree for each layer, the form for decoding: see `Decoder.unrolled`."""
        if not self.scan:
            return self, variables
        apart = {
            kind: {
                name: unrolled_variables({kind: part}, 1)[kind] if name in ("encoder", "decoder") else part
                for name, part in tree.items()
            }
            for kind, tree in variables.items()
        }
        return self.clone(scan=False), apart

    def _embed(self, table, tokens, positions):
        x = table(tokens)
        if self.scale_embedding:
            x = x * jnp.asarray(self.width**0.5, x.dtype)
        return x if self.position is None else x + self.position_embedding(positions, self.width)

    def _bias(self, name, distance):
        """The stack's shared term of the scores, "batch|1 heads time source"; None without one."""
        if self.relative is None:
            return None
        distance = distance if distance.ndim == 3 else distance[None]
        mixer = self.mixer if name == "encoder_relative" else self.decoder_parts[0]
        return getattr(self, name)(distance, mixer.heads)

    def _read(self, x, train):
        """Logits from the decoder's last hidden states."""
        if self.placement != "post":
            x = self.drop(self.decoder_norm(x), deterministic=not train)
        if self.scale_logits:
            x = x * jnp.asarray(self.width**-0.5, x.dtype)
        logits = self.embedding.attend(x) if self.tied else self.logits(x)
        return logits + self.output_bias.astype(logits.dtype) if self.logits_bias else logits
