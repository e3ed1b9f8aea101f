"""Classifiers and regressors of sequences: features in at each time, one answer for the whole sequence out."""

import functools
import math
from typing import ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from arch_jax.errors import UsageError
from arch_jax.fields import DType, component
from arch_jax.layers.dense import Dense
from arch_jax.layers.mixers.contract import FeedForward, Mixer, Norm, Position, adapted, check_sizes
from arch_jax.layers.mixers.rnn.lstm import LSTM
from arch_jax.layers.transformer.block import Block, Placement, Stack
from arch_jax.layers.transformer.decoder import SHARDINGS
from arch_jax.ops.segments import read_where_real
from arch_jax.ranges import PartialShare


class Unnormed(nn.Module):
    """The identity, for blocks without norm."""

    def __call__(self, x: Float[Array, "*batch width"], train: bool = False) -> Float[Array, "*batch width"]:
        return x


class PlainBlock(Block):
    """A block without residual connections: each part's output replaces its input.

    So layers were stacked before residual connections (Zaremba et al. 2014, 1409.2329, figure 1).
    """

    def _residual(self, name, x, part, dropout):
        norm = lambda name: self.norm.clone(parent=self, name=name)
        y, other = part(x if self.placement == "post" else norm(f"{name}_norm")(x))
        if self.placement == "sandwich":
            y = norm(f"{name}_output_norm")(y)
        y = dropout(y)
        return norm(f"{name}_norm")(y) if self.placement == "post" else y, other


@component("sequence_reader", kind="model")
class SequenceReader(nn.Module):
    """A linear layer for each time, blocks of any mixer, a norm, one vector for the sequence, and a linear layer.

    With the defaults it is the plain recurrent network of Hochreiter & Schmidhuber (1997) and its successors: one layer
    whose last state is read, without norm or residual connection. (The linear layer in front adds nothing to what such
    a network can compute: where its matrix is the identity, filled up with zeros, it is `torch.nn.LSTM` and
    `torch.nn.Linear`.) S4 as a classifier (2111.00396, section 3.4) has `residual`, a norm, and the mean over time.

    Attributes:
      outputs: the number of regression outputs, or of classes.
      depth: number of blocks.
      width: size of what goes from block to block.
      mixer: the sequence mixer, or a tuple of them: layer i takes number i modulo the tuple's length.
      feed_forward: the position-wise part of each block, or None; or a tuple of such, in the same way.
      norm: of each part, and at the end unless the placement is "post"; None disables norms.
      placement: position of the norms: "pre", "post" or "sandwich"; see `layers.transformer.block.Block`.
      residual: whether a part's output is added to its input; otherwise it replaces it.
      position: added after the first linear layer; None if the mixer encodes positions.
      pooling: summary of a sequence: "last", the last time, or "mean", over all times.
      dropout: dropout rate after the first linear layer and of each part's output.
      scale_residual: whether the weights that write to the residual stream start smaller, as in a `Decoder`.
      scan: whether equal layers are scanned: compile time that does not grow with depth.
      remat: whether activations are recomputed in the backward pass to save memory.
      dtype: of the computation; norms' statistics, states and sums are at least float32.
      parameter_dtype: of the parameters.
    """

    shardings: ClassVar = SHARDINGS

    outputs: int = 1
    depth: int = 1
    width: int = 128
    mixer: Mixer | tuple[Mixer, ...] = LSTM()
    feed_forward: FeedForward | tuple[FeedForward | None, ...] | None = None
    norm: Norm | None = None
    placement: Placement = "pre"
    residual: bool = False
    position: Position | None = None
    pooling: Literal["last", "mean"] = "last"
    dropout: PartialShare = 0.0
    scale_residual: bool = False
    scan: bool = False
    remat: bool = False
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    def __post_init__(self) -> None:
        check_sizes(self, ("outputs", "depth", "width"))
        if self.pooling not in ("last", "mean"):
            raise UsageError(f"pooling is {self.pooling!r}; expected 'last' or 'mean'")
        super().__post_init__()

    @property
    def classes(self) -> int:
        """The outputs, under a classifier's name for them."""
        return self.outputs

    def setup(self) -> None:
        part = functools.partial(adapted, dtype=self.dtype, parameter_dtype=self.parameter_dtype)
        several = lambda given: given if isinstance(given, tuple) else (given,)
        mixers, feed_forwards = several(self.mixer), several(self.feed_forward)
        norm = part(self.norm) if self.norm is not None else Unnormed(parent=None)
        kind = Block if self.residual else PlainBlock

        def block(i: int) -> Block:
            mixer, feed_forward = mixers[i % len(mixers)], feed_forwards[i % len(feed_forwards)]
            parts = self.depth * (1 if feed_forward is None else 2)
            scale = {"residual_scale": parts**-0.5 if self.scale_residual and self.residual else 1.0}
            feed_forward = None if feed_forward is None else part(feed_forward, **scale)
            return kind(part(mixer, **scale), norm, feed_forward, self.dropout, self.placement, parent=None)

        blocks = tuple(block(i) for i in range(math.lcm(len(mixers), len(feed_forwards))))
        linear = functools.partial(Dense, bias=True, initial_std=None)
        dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        self.input = linear(self.width, **dtypes)
        if self.position is not None:
            self.position_embedding = part(self.position)
        self.input_dropout = nn.Dropout(self.dropout)
        self.stack = Stack(blocks, self.depth, self.scan, self.remat)
        if self.norm is not None and self.placement != "post":
            self.final_norm = part(self.norm)
        self.output = linear(self.outputs, **dtypes)

    def __call__(
        self,
        x: Float[Array, "batch *time features"],
        segment_ids: Int[Array, "batch steps"] | None = None,
        train: bool = False,
    ) -> Float[Array, "batch outputs"]:
        """The answers, or logits of classes.

        Args:
          x: sequences "batch time features"; images "batch height width channels" are read pixel by pixel, row by
            row.
          segment_ids: 1 where a row is real and 0 where it is padding, which changes nothing; None is real throughout.
            Of several segments in a row, the last time read is that of the last one, and the mean is over all.
          train: whether dropout is active (needs `rngs={"dropout": key}`).

        Raises:
          UsageError: the sequence is longer than a table of learned positions, or no sequence.
        """
        if x.ndim < 3:
            raise UsageError(f"the sequences have the shape {x.shape}; expected batch, time and features")
        x = x.reshape(x.shape[0], math.prod(x.shape[1:-1]), x.shape[-1])
        x = self.input(read_where_real(x, segment_ids))
        if self.position is not None:
            x = x + self.position_embedding(jnp.arange(x.shape[1]), self.width)
        x = self.input_dropout(x, deterministic=not train)
        x, _ = self.stack(x, segment_ids, None, train)
        if self.norm is not None and self.placement != "post":
            x = self.final_norm(x)
        return self.output(self._pooled(x, segment_ids))

    def _pooled(self, x: Array, segment_ids: Array | None) -> Array:
        """One vector for each row; 0 for a row that has nothing real."""
        precise = jnp.promote_types(x.dtype, jnp.float32)
        real = jnp.ones(x.shape[:2], precise) if segment_ids is None else (segment_ids > 0).astype(precise)
        if self.pooling == "mean":
            share = real / jnp.maximum(jnp.sum(real, axis=1, keepdims=True), 1)
        else:
            after = jnp.cumsum(real[:, ::-1], axis=1)[:, ::-1]  # how many are real from here on
            share = real * (after == 1)
        return jnp.einsum("btw,bt->bw", x.astype(precise), share).astype(x.dtype)

    def check(self, shape: tuple[int, ...]) -> None:
        """Refuses images of more pixels than a table of learned positions has.

        Args:
          shape: of one example: height, width and channels, or time and features.
        """
        if self.position is not None:
            self.position.check(math.prod(shape[:-1]))
