"""The Vision Transformer (Dosovitskiy et al. 2021, 2010.11929).

An image is cut into patches of P x P pixels; each, as a row of P^2 C numbers times a matrix, is a token. With a
learned class token in front and learned positions they go through a pre-norm encoder (equations 1 to 4), and the first
token, or the mean of all others, through a norm and a linear layer gives the logits:

    z_0  = [x_class; x_1 E; ...; x_N E] + E_pos
    z'_l = MSA(LN(z_{l-1})) + z_{l-1},   z_l = MLP(LN(z'_l)) + z'_l,   y = LN(z_L^0)

Images of another size have another number of patches: positions are then interpolated in two dimensions (section
3.2).
"""

import functools
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from arch_jax.errors import UsageError
from arch_jax.fields import DType, component
from arch_jax.inputs import images
from arch_jax.layers.dense import Dense
from arch_jax.layers.facts import CheckpointFacts, facts_field
from arch_jax.layers.mixers.attention import Attention
from arch_jax.layers.mixers.contract import FeedForward, Mixer, Norm, adapted
from arch_jax.layers.norms import LayerNorm
from arch_jax.layers.transformer.block import Block, Stack
from arch_jax.layers.transformer.feed_forward import MLP
from arch_jax.ops.convolution.patches import patches
from arch_jax.ranges import PartialShare
from arch_jax.registry import Paper, register


def interpolated(
    table: Float[Array, "places width"], side: int, height: int, width: int
) -> Float[Array, "places_now width"]:
    """Positions on a grid of side x side places, bilinearly interpolated to height x width places.

    As in the authors' code, corners are aligned.
    """
    if (height, width) == (side, side):
        return table
    grid = table.reshape(side, side, -1)
    rows, columns = (jnp.asarray(_between(side, now), table.dtype) for now in (height, width))
    return jnp.einsum("hr,wc,rcd->hwd", rows, columns, grid).reshape(height * width, -1)


def _between(old: int, new: int) -> Any:
    """The weight of each of `old` places in each of `new`, spaced evenly from the first to the last."""
    places = jnp.linspace(0.0, old - 1.0, new) if new > 1 else jnp.zeros(1)
    return jnp.maximum(0, 1 - jnp.abs(places[:, None] - jnp.arange(old)))


def encoder_stack(
    owner: nn.Module, mixer: nn.Module, feed_forward: nn.Module, depth: int, dropout: float = 0.0
) -> Stack:
    """The layers of equations 2 and 3, in which every patch sees every other, as an unbound `Stack`.

    Args:
      owner: has the norm, the dtypes, and whether layers are scanned and rematerialised: `norm`, `dtype`,
        `parameter_dtype`, `scan` and `remat`.
      mixer: of each layer; it is made bidirectional.
      feed_forward: of each layer.
      depth: number of layers.
      dropout: dropout rate of each part's output.
    """
    part = functools.partial(adapted, dtype=owner.dtype, parameter_dtype=owner.parameter_dtype)
    block = Block(part(mixer, causal=False), part(owner.norm), part(feed_forward), dropout, parent=None)
    return Stack((block,), depth, owner.scan, owner.remat, parent=None)


@component("vit", kind="model", renamed={"picture": "resolution"})
class ViT(nn.Module):
    """A Transformer on patches of images, "batch height width channels".

    Attributes:
      classes: number of classes; None for none, and features "batch channels" instead of logits.
      resolution: resolution that the positions are for; other sizes are interpolated.
      patch: pixels on a side of a patch.
      depth: layers.
      width: of the tokens.
      mixer: of each layer.
      feed_forward: of each layer.
      norm: in front of each part, and at the end.
      pooling: input of the logits: the class "token", or the "mean" of the patches, without a class token.
      position: whether there are positions.
      dropout: dropout rate of each part's output, and of the tokens,.
      scan: whether equal layers are scanned: compile time that does not grow with depth.
      remat: whether activations are recomputed in the backward pass to save memory.
      initial_std: standard deviation of the initial weights outside the layers.
      dtype: of the computation.
      parameter_dtype: of the parameters.
      facts: the checkpoint's own, where the module was loaded from one.
    """

    classes: int | None = 1000
    resolution: int = 224
    patch: int = 16
    depth: int = 12
    width: int = 768
    mixer: Mixer = Attention(heads=12, bias=True, causal=False)
    feed_forward: FeedForward = MLP(activation="gelu")
    norm: Norm = LayerNorm(epsilon=1e-6)
    pooling: Literal["token", "mean"] = "token"
    position: bool = True
    dropout: PartialShare = 0.0
    scan: bool = True
    remat: bool = False
    initial_std: float = 0.02
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32
    facts: CheckpointFacts | None = facts_field()

    def __post_init__(self) -> None:
        if self.patch < 1 or self.resolution < 1 or self.resolution % self.patch:
            raise UsageError(
                f"resolution is {self.resolution} and patch is {self.patch}; expected a multiple of the patch, such as "
                f"{max(1, self.resolution // max(1, self.patch)) * max(1, self.patch)}"
            )
        super().__post_init__()

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch classes"]:
        """Logits of each class.

        Raises:
          UsageError: images that the patches don't divide.
        """
        dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        part = functools.partial(adapted, **dtypes)
        dense = functools.partial(Dense, initial_std=self.initial_std, **dtypes, parent=self)
        draw = lambda name, *shape: self.param(
            name, nn.initializers.normal(self.initial_std), shape, self.parameter_dtype
        )
        dropout = nn.Dropout(self.dropout, deterministic=not train)

        x = dense(self.width, name="patch_embedding")(patches(images, self.patch))
        token, side = self.pooling == "token", self.resolution // self.patch
        if token:
            first = draw("class_token", self.width).astype(self.dtype)
            x = jnp.concatenate([jnp.broadcast_to(first, (len(x), 1, self.width)), x], axis=1)
        if self.position:
            table = draw("position_embedding", side**2 + token, self.width).astype(self.dtype)
            height, width = (n // self.patch for n in images.shape[1:3])
            x = x + jnp.concatenate([table[:token], interpolated(table[token:], side, height, width)])
        stack = encoder_stack(self, self.mixer, self.feed_forward, self.depth, self.dropout)
        x, _ = stack.clone(parent=self, name="stack")(dropout(x), None, None, train)
        x = part(self.norm).clone(parent=self, name="final_norm")(x)
        pooled = x[:, 0] if token else x.mean(1, dtype=jnp.promote_types(x.dtype, jnp.float32)).astype(x.dtype)
        x = pooled
        return x if self.classes is None else dense(self.classes, name="logits")(x)

    def check(self, shape: tuple[int, ...]) -> None:
        """Refuses images that the patches don't divide.

        Raises:
          UsageError: if `shape` ("height width channels") is such.
        """
        jax.eval_shape(lambda: patches(jnp.zeros((1, *shape)), self.patch))


def _vit(name: str, parameters: int, patch: int, depth: int, width: int, heads: int, paper: Paper) -> None:
    """Registers one of the sizes, at 224 x 224 pixels with 1,000 classes."""

    @register(
        name,
        family="transformer",
        objective="classify",
        paper=paper,
        inputs=images(224),
        parameters=parameters,
        architecture="vit",
        shrink={"classes": 5, "resolution": 8, "patch": 4, "depth": 2, "width": 16, "mixer.heads": 2},
        reference="transformers ViTForImageClassification: logits within 1e-5",
        departures=(
            "One linear layer gives the logits, which is the form for fine-tuning; the paper pre-trains with a hidden "
            "layer before it.",
            "The logits' weights start normal with 0.02; the paper starts them at 0 when fine-tuning.",
            "Dropout is off by default, and where it is on it acts on the tokens and on each part's output; the "
            "paper's acts after every dense layer but queries, keys and values.",
            "vit-tiny-16 and vit-small-16 have DeiT's sizes without its distillation token.",
        ),
        difference=4.1e-7,
        no_gradient={r"mixer/key/bias": "softmax does not change when all scores of a query move by the same amount"},
    )
    def build() -> ViT:
        return ViT(patch=patch, depth=depth, width=width, mixer=Attention(heads=heads, bias=True, causal=False))

    build.__doc__ = f"{depth} layers of width {width} with {heads} heads, patches of {patch} x {patch} pixels."


_PAPER = Paper("An Image is Worth 16x16 Words", "Dosovitskiy et al.", 2021, "2010.11929")
_DEIT = Paper("Training Data-Efficient Image Transformers", "Touvron et al.", 2021, "2012.12877")
_vit("vit-tiny-16", 5_717_416, 16, 12, 192, 3, _DEIT)
_vit("vit-small-16", 22_050_664, 16, 12, 384, 6, _DEIT)
_vit("vit-base-16", 86_567_656, 16, 12, 768, 12, _PAPER)
_vit("vit-base-32", 88_224_232, 32, 12, 768, 12, _PAPER)
_vit("vit-large-16", 304_326_632, 16, 24, 1024, 16, _PAPER)
_vit("vit-huge-14", 632_045_800, 14, 32, 1280, 16, _PAPER)
