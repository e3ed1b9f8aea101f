"""A residual block, and a stack of them: scanned where layers repeat, unrolled where a state is carried."""

import functools
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array, Float, Int

from arch_jax.layers.mixer import FeedForward, Mixer, Norm, unbound


class Block(nn.Module):
    """Pre-norm residual block: x + mixer(norm(x)), then x + feed_forward(norm(x)).

    (Xiong et al. 2020, 2002.04745, figure 1b; GPT-2 and Llama.)

    Attributes:
      mixer: what moves information along the sequence.
      norm: applied before each part.
      feed_forward: what works on each position alone; none leaves the block with its mixer only (as in Mamba).
      dropout: share of each part's output that is dropped in training.
    """

    mixer: Mixer
    norm: Norm
    feed_forward: FeedForward | None = None
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch time width"],
        segment_ids: Int[Array, "batch time"] | None = None,
        state: Any = None,
        train: bool = False,
    ) -> tuple[Float[Array, "batch time width"], Any]:
        dropout = nn.Dropout(self.dropout, deterministic=not train)
        y, state = self.mixer(self.norm.clone(parent=self, name="mixer_norm")(x), segment_ids, state, train)
        x = x + dropout(y)
        if self.feed_forward is not None:
            y = self.feed_forward(self.norm.clone(parent=self, name="feed_forward_norm")(x))
            x = x + dropout(y)
        return x, state


class Pattern(nn.Module):
    """The blocks of one turn of a repeating pattern: what is scanned over the depth.

    Attributes:
      blocks: in order; one for most models, several for hybrids.
      train: whether dropout is active. A field, not an argument: `nn.scan` drops keywords and traces arguments.
    """

    blocks: tuple[nn.Module, ...]
    train: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "batch time width"], segment_ids: Int[Array, "batch time"] | None = None):
        for i, block in enumerate(self.blocks):
            x, _ = unbound(block).clone(parent=self, name=f"block_{i}")(x, segment_ids, None, self.train)
        return x, None


class Stack(nn.Module):
    """`depth` blocks, one after another; layer i is `blocks[i % len(blocks)]`.

    Without a state, equal layers are scanned: their parameters lie under `layers/block_j` with a leading axis over the
    turns of the pattern. With a state, or with `scan=False`, layers are unrolled; with `scan=False` the parameters of
    layer i lie under `layer_i`. `unrolled_variables` turns the first form into the second.

    Attributes:
      blocks: the repeating pattern.
      depth: how many layers in all.
      scan: whether layers are scanned where the depth is a whole number of turns.
      remat: whether activations are computed again in the backward pass instead of kept.
    """

    blocks: tuple[nn.Module, ...]
    depth: int
    scan: bool = True
    remat: bool = False

    @property
    def scans(self) -> bool:
        """Whether the parameters are stacked."""
        return self.scan and self.depth % len(self.blocks) == 0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch time width"],
        segment_ids: Int[Array, "batch time"] | None = None,
        state: tuple | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "batch time width"], tuple | None]:
        blocks = unbound(self.blocks)
        if self.scans and state is None:
            pattern = nn.remat(Pattern, prevent_cse=False) if self.remat else Pattern
            turns = nn.scan(
                pattern,
                variable_axes={True: 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=nn.broadcast,
                length=self.depth // len(blocks),
            )
            x, _ = turns(blocks, train, parent=self, name="layers")(x, segment_ids)
            return x, None
        layers = [unbound(blocks[i % len(blocks)]) for i in range(self.depth)]
        if self.scans:  # a scan over layers would copy every cache at every token
            variables = unrolled_variables(self.variables, len(blocks))
            apart = [{kind: tree[f"layer_{i}"] for kind, tree in variables.items()} for i in range(self.depth)]
            steps = [functools.partial(block.apply, apart[i]) for i, block in enumerate(layers)]
        else:
            steps = [block.clone(parent=self, name=f"layer_{i}") for i, block in enumerate(layers)]
        new = []
        for i, step in enumerate(steps):
            if self.remat and state is None:
                x, after = _remat(step, x, segment_ids, train), None
            else:
                x, after = step(x, segment_ids, None if state is None else state[i], train)
            new.append(after)
        return x, None if state is None else tuple(new)


def _remat(block: nn.Module, x: Array, segment_ids: Array | None, train: bool) -> Array:
    """One unrolled block whose activations are computed again in the backward pass."""
    return nn.remat(lambda b, x: b(x, segment_ids, None, train)[0])(block, x)


def unrolled_variables(variables: Any, pattern: int) -> Any:
    """Scanned variables of a `Stack` (leading axis over turns) as those of the same stack with `scan=False`.

    Args:
      variables: collection -> tree with `layers/block_j`.
      pattern: blocks in one turn.
    """

    def split(tree: Any) -> Any:
        layers = tree["layers"]
        turns = jax.tree.leaves(layers)[0].shape[0]
        rest = {name: value for name, value in tree.items() if name != "layers"}
        return rest | {
            f"layer_{turn * pattern + j}": jax.tree.map(lambda leaf, t=turn: leaf[t], layers[f"block_{j}"])
            for turn in range(turns)
            for j in range(pattern)
        }

    return {kind: split(tree) if "layers" in tree else tree for kind, tree in variables.items()}
