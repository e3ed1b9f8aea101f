"""A residual block, and a stack of them: scanned where layers repeat, unrolled where a state is carried."""

import functools
from typing import Any, Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from arch_jax.layers.mixers.contract import Cross, FeedForward, Mixer, Norm, Place, unbound
from arch_jax.ops.float16 import stream_dtype
from arch_jax.ops.tracing import asks_for_values

#: Positions of the norms in a residual block; see `Block`.
Placement = Literal["pre", "post", "sandwich"]


@flax.struct.dataclass
class Context:
    """Inputs that all layers of a stack share beside the sequence.

    Attributes:
      bias: added to the scores of self-attention, broadcasting to "batch heads time source"; None for nothing.
      memory: the encoder's output, "batch source width"; None without cross-attention.
      memory_mask: True at real tokens of the source, "batch source"; None is all.
      condition: a vector that modulates every layer, "batch width" (`AdaptiveBlock`); None in other stacks.
    """

    # No shape annotations: JAX rebuilds these containers with placeholders that are not arrays.
    bias: Any = None
    memory: Any = None
    memory_mask: Any = None
    condition: Any = None


class Block(nn.Module):
    """Residual block: a sequence mixer, cross-attention if there is a memory, and a feed-forward part.

    With f one of the parts, `placement` says where the norm stands:

        pre       x + f(norm(x))            (Xiong et al. 2020, 2002.04745, figure 1b; GPT-2, T5, Llama)
        post      norm(x + f(x))            (Vaswani et al. 2017, 1706.03762, section 3.1; BERT)
        sandwich  x + norm'(f(norm(x)))     (Ding et al. 2021, 2105.13290, section 2.4; Gemma 2)

    Attributes:
      mixer: the sequence mixer.
      norm: of each part.
      feed_forward: the position-wise part; None leaves the block with its mixer only (as in Mamba).
      dropout: dropout rate of each part's output.
      placement: "pre", "post" or "sandwich".
      cross: attention to the memory, between the two other parts; None in an encoder or a decoder-only model.
    """

    mixer: Mixer
    norm: Norm
    feed_forward: FeedForward | None = None
    dropout: float = 0.0
    placement: Placement = "pre"
    cross: Cross | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch time width"],
        segment_ids: Int[Array, "batch time"] | None = None,
        state: Any = None,
        train: bool = False,
        context: Context | None = None,
        place: Place | None = None,
    ) -> tuple[Float[Array, "batch time width"], Any]:
        """The sequence after the block, and the state after it: the mixer's, or with `cross` a pair of that and the
        memory's keys and values. `place` is the block's place, for a mixer whose initial parameters depend on it."""
        dropout = nn.Dropout(self.dropout, deterministic=not train)
        context = Context() if context is None else context
        mixed, remembered = state if self.cross is not None and state is not None else (state, None)
        shared = {} if context.bias is None else {"bias": context.bias}
        shared |= {"place": place} if getattr(self.mixer, "placed", False) else {}
        x, mixed = self._residual("mixer", x, lambda y: self.mixer(y, segment_ids, mixed, train, **shared), dropout)
        if self.cross is not None:
            attend = lambda y: self.cross(y, context.memory, context.memory_mask, remembered)
            x, remembered = self._residual("cross", x, attend, dropout)
        if self.feed_forward is not None:
            forward = lambda y: (self.feed_forward(y, segment_ids, train), None)
            x, _ = self._residual("feed_forward", x, forward, dropout)
        if state is None:
            return x, None
        return x, mixed if self.cross is None else (mixed, remembered)

    def _residual(self, name, x, part, dropout):
        """x plus the part's output, normed where `placement` says; and the part's other output."""
        norm = lambda name: self.norm.clone(parent=self, name=name)
        y, other = part(x if self.placement == "post" else norm(f"{name}_norm")(x))
        if self.placement == "sandwich":
            y = norm(f"{name}_output_norm")(y)
        stream = x.dtype
        x = x + dropout(y)
        return (norm(f"{name}_norm")(x) if self.placement == "post" else x).astype(stream), other


class PatternTurn(nn.Module):
    """The blocks of one turn of a repeating pattern: what is scanned over the depth.

    Attributes:
      blocks: in order; one for most models, several for hybrids.
      turns: repetitions of the pattern.
      train: whether dropout is active. A field, not an argument: `nn.scan` drops keywords and traces arguments.
    """

    blocks: tuple[nn.Module, ...]
    turns: int
    train: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch time width"],
        segment_ids: Int[Array, "batch time"] | None = None,
        context: Context | None = None,
        turn: Any = 0,
    ):
        for i, block in enumerate(self.blocks):
            block = unbound(block).clone(parent=self, name=f"block_{i}")
            x, _ = block(x, segment_ids, None, self.train, context, (turn, self.turns))
        return x, None


class Stack(nn.Module):
    """`depth` blocks, one after another; layer i is `blocks[i % len(blocks)]`.

    Without a state, equal layers are scanned: their parameters lie under `layers/block_j` with a leading axis over the
    turns of the pattern. With a state, or with `scan=False`, layers are unrolled; with `scan=False` the parameters of
    layer i lie under `layer_i`. `unrolled_variables` turns the first form into the second.

    The residual stream of a computation in float16 is float32, and comes out as such (`ops.float16`).

    Attributes:
      blocks: the repeating pattern.
      depth: number of layers in all.
      scan: whether layers are scanned where the depth is a whole number of turns.
      remat: whether activations are recomputed in the backward pass to save memory.
    """

    blocks: tuple[nn.Module, ...]
    depth: int
    scan: bool = True
    remat: bool = False

    @property
    def scans(self) -> bool:
        """True if the parameters are stacked."""
        return self.scan and self.depth % len(self.blocks) == 0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch time width"],
        segment_ids: Int[Array, "batch time"] | None = None,
        state: tuple | None = None,
        train: bool = False,
        context: Context | None = None,
    ) -> tuple[Float[Array, "batch time width"], tuple | None]:
        x = x.astype(stream_dtype(x.dtype))
        blocks = unbound(self.blocks)
        count = -(-self.depth // len(blocks))
        if self.scans and state is None:
            pattern = nn.remat(PatternTurn, prevent_cse=False) if self.remat else PatternTurn
            turns = nn.scan(
                pattern,
                variable_axes={True: 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=(nn.broadcast, nn.broadcast, 0),
                length=count,
                # No variable is broadcast, so the check is only a second trace of all layers; but where parameters are
                # drawn, it counts for what is drawn.
                check_constancy_invariants=self.is_initializing() and asks_for_values(),
            )
            layers = turns(blocks, count, train, parent=self, name="layers")
            x, _ = layers(x, segment_ids, context, jnp.arange(count))
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
            place = (i // len(blocks), count)
            if self.remat and state is None:
                x, after = _remat(step, x, segment_ids, train, context, place), None
            else:
                x, after = step(x, segment_ids, None if state is None else state[i], train, context, place)
            new.append(after)
        return x, None if state is None else tuple(new)


def _remat(
    block: nn.Module, x: Array, segment_ids: Array | None, train: bool, context: Context | None, place: Place
) -> Array:
    """One unrolled block whose activations are recomputed in the backward pass."""
    return nn.remat(lambda b, x, c: b(x, segment_ids, None, train, c, place)[0])(block, x, context)


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
