"""BERT (Devlin et al. 2018, 1810.04805): a bidirectional encoder, trained to fill in masked tokens.

With x_0 = LayerNorm(E[tokens] + P[positions] + S[types]), the layers of the Transformer's encoder (1706.03762),
post-norm, with GELU and biases everywhere:

    a = LayerNorm(x + Attention(x)),    x' = LayerNorm(a + GELU(a W_1 + b_1) W_2 + b_2)

Heads (section 3.1 and the authors' code):

    pooled = tanh(x_L[first token] W_p + b_p)                        input of classifiers and the next-sentence head
    logits = LayerNorm(GELU(x_L W_t + b_t)) E^T + b                  of the masked tokens
    next   = pooled W_n + b_n                                        0: the second sentence follows, 1: it is random
"""

import functools
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from arch_jax.errors import UsageError
from arch_jax.fields import DType, component
from arch_jax.inputs import encoded
from arch_jax.layers.dense import Dense, Embedding
from arch_jax.layers.facts import CheckpointFacts, facts_field
from arch_jax.layers.mixers.attention import Attention
from arch_jax.layers.mixers.contract import FeedForward, Mixer, Norm, Position, adapted, check_sizes
from arch_jax.layers.norms import LayerNorm
from arch_jax.layers.transformer.block import Block, Stack, unrolled_variables
from arch_jax.layers.transformer.decoder import SHARDINGS
from arch_jax.layers.transformer.feed_forward import MLP, activation
from arch_jax.layers.transformer.positions import LearnedPosition
from arch_jax.ops.segments import read_where_real
from arch_jax.ranges import Count, PartialShare
from arch_jax.registry import Paper, register


@component("bert", kind="model")
class BERT(nn.Module):
    """A bidirectional encoder, with the heads that are asked for.

    Attributes:
      vocabulary: number of tokens.
      depth: number of blocks.
      width: size of the residual stream.
      mixer: self-attention; it is made bidirectional, or causal as `causal` says.
      feed_forward: the position-wise part of each block.
      norm: of the embeddings and of each part.
      position: added to the embeddings, or None.
      types: kinds of token, such as first and second sentence; 0 for none.
      pooler: whether there is `pooled`.
      masked: whether there are `logits` of the masked tokens.
      following: whether there is `next`; needs the pooler.
      classes: number of classes of `classes`, logits of the whole sequence (section 4.1); needs the pooler. None for no
        such head.
      embedding: whether there is `embedding`, the mean of the hidden states at real tokens, of length 1 (Reimers &
        Gurevych 2019, 1908.10084, section 3).
      activation: of the head for masked tokens.
      causal: whether a token sees only itself and earlier ones: BERT as a decoder (Rothe et al. 2020, 1907.12461).
      dropout: dropout rate of the embeddings and of each part's output.
      initial_std: standard deviation of the initial weights.
      scan: whether equal layers are scanned: compile time that does not grow with depth.
      remat: whether activations are recomputed in the backward pass to save memory.
      dtype: of the computation; softmax, norms' statistics and losses are at least float32.
      parameter_dtype: of the parameters.
      facts: the checkpoint's own, where the module was loaded from one.
    """

    shardings: ClassVar = SHARDINGS

    vocabulary: int = 30_522
    depth: int = 12
    width: int = 768
    mixer: Mixer = Attention(heads=12, bias=True, causal=False)
    feed_forward: FeedForward = MLP(activation="gelu")
    norm: Norm = LayerNorm(epsilon=1e-12)
    position: Position | None = LearnedPosition(length=512)
    types: Count = 2
    pooler: bool = True
    masked: bool = True
    following: bool = True
    classes: int | None = None
    embedding: bool = False
    activation: str = "gelu"
    causal: bool = False
    dropout: PartialShare = 0.1
    initial_std: float = 0.02
    scan: bool = True
    remat: bool = False
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32
    facts: CheckpointFacts | None = facts_field()

    def __post_init__(self) -> None:
        check_sizes(self)
        if self.classes is not None and self.classes < 1:
            raise UsageError(f"classes is {self.classes}; expected at least 1, or none for no classifier")
        if not self.pooler and (self.following or self.classes is not None):
            raise UsageError("pooler is false, but following and classes read what it gives; expected pooler=true")
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "batch time"],
        types: Int[Array, "batch time"] | None = None,
        mask: Bool[Array, "batch time"] | None = None,
        train: bool = False,
    ) -> dict[str, Float[Array, "batch *_"]]:
        """The hidden states, and the outputs of the heads.

        Args:
          tokens: indices in [0, vocabulary); one outside gives NaN.
          types: the sentence of each token, in [0, types); None is 0 for all.
          mask: True at real tokens; padding is on the right. None is all.
          train: whether dropout is active (needs `rngs={"dropout": key}`).

        Returns:
          `hidden` "batch time width", and those that the model has of `pooled` "batch width", `logits`
          "batch time vocabulary", `next` "batch 2", `classes` "batch classes" and `embedding` "batch width".

        Raises:
          UsageError: the sequence is longer than the table of learned positions.
        """
        dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        part = functools.partial(adapted, **dtypes)
        norm = lambda name: part(self.norm).clone(parent=self, name=name)
        dense = functools.partial(Dense, initial_std=self.initial_std, **dtypes, parent=self)
        dropout = nn.Dropout(self.dropout, deterministic=not train)

        table = Embedding(self.vocabulary, self.width, self.initial_std, **dtypes, parent=self, name="token_embedding")
        x = table(read_where_real(tokens, mask))
        if self.types:
            kinds = Embedding(self.types, self.width, self.initial_std, **dtypes, parent=self, name="type_embedding")
            x = x + kinds(jnp.zeros_like(tokens) if types is None else read_where_real(types, mask))
        if self.position is not None:
            position = part(self.position).clone(parent=self, name="position_embedding")
            x = x + position(jnp.arange(tokens.shape[1]), self.width)
        x = dropout(norm("embedding_norm")(x))
        mixer = part(self.mixer, causal=self.causal)
        block = Block(mixer, part(self.norm), part(self.feed_forward), self.dropout, "post", parent=None)
        ids = None if mask is None else mask.astype(jnp.int32)
        x, _ = Stack((block,), self.depth, self.scan, self.remat, parent=self, name="stack")(x, ids, None, train)

        x = x.astype(self.dtype)

        found = {"hidden": x}
        if self.pooler:
            found["pooled"] = jnp.tanh(dense(self.width, name="pooler")(x[:, 0]))
        if self.masked:
            h = activation(self.activation)(dense(self.width, name="masked_transform")(x))
            bias = self.param("masked_bias", nn.initializers.zeros, (self.vocabulary,), self.parameter_dtype)
            found["logits"] = table.attend(norm("masked_norm")(h)) + bias.astype(self.dtype)
        if self.following:
            found["next"] = dense(2, name="next_sentence")(found["pooled"])
        if self.classes is not None:
            found["classes"] = dense(self.classes, name="classifier")(dropout(found["pooled"]))
        if self.embedding:
            precise = jnp.promote_types(x.dtype, jnp.float32)
            weight = jnp.ones(tokens.shape, precise) if mask is None else mask.astype(precise)
            total = jnp.einsum("btw,bt->bw", x.astype(precise), weight)
            length = jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(total), axis=-1, keepdims=True), 1e-24))
            found["embedding"] = (total / length).astype(x.dtype)
        return found

    def unrolled(self, variables: Any) -> tuple["BERT", Any]:
        """The same model with a parameter tree for each layer."""
        if not self.scan:
            return self, variables
        apart = {
            kind: tree | {"stack": unrolled_variables({kind: tree["stack"]}, 1)[kind]} if "stack" in tree else tree
            for kind, tree in variables.items()
        }
        return self.clone(scan=False), apart


FACTS = {
    "family": "transformer",
    "objective": "masked_token",
    "paper": Paper(
        "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding",
        "Devlin et al.",
        2018,
        "1810.04805",
    ),
    "inputs": encoded(512),
    "architecture": "bert",
    "shrink": {"vocabulary": 32, "depth": 2, "width": 16, "mixer.heads": 2, "position.length": 32},
    "reference": "transformers BertForPreTraining and its other heads: outputs within 1e-5",
    "departures": (
        "No dropout on attention weights, which the blocked kernels never hold; dropout acts on the embeddings and on "
        "each part's output.",
        "Weights start normal, as in transformers; the authors' code truncates at two standard deviations.",
    ),
    "difference": 4e-7,
    "uncounted": {r"^(masked_|next_sentence)": "the published count is that of the encoder with its pooler"},
    "no_gradient": {r"mixer/key/bias": "softmax does not change when all scores of a query move by the same amount"},
}


@register("bert-base", parameters=109_482_240, **FACTS)
def bert_base() -> BERT:
    """BERT base, uncased: 12 layers, width 768, 12 heads; with both heads of the pre-training."""
    return BERT()


@register("bert-large", parameters=335_141_888, **FACTS)
def bert_large() -> BERT:
    """BERT large, uncased: 24 layers, width 1024, 16 heads; with both heads of the pre-training."""
    return BERT(depth=24, width=1024, mixer=Attention(heads=16, bias=True, causal=False))
