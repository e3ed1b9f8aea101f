"""The masked autoencoder (He et al. 2021, Masked Autoencoders Are Scalable Vision Learners, 2111.06377).

An image is cut into patches. A large fraction of them, 75 %, is sampled uniformly and dropped; a Vision Transformer
encodes the visible ones alone. A narrower and shallower Transformer, the decoder, sees those encodings and, in each
masked place, one learned mask token; it predicts the pixels of every patch (section 3, figure 1):

    visible, masked = split(patches + positions)            encoder input: [class; visible]
    y = LN(encoder([class; visible]))
    pixels = W LN(decoder(unshuffle([V y; mask tokens]) + positions'))

The loss is of the masked patches alone (the objective "masked_patches"). Both tables of positions are fixed sines and
cosines of the two coordinates, 0 for the class token (appendix A.1): constants, not parameters. After pre-training the
decoder is discarded, and the encoder sees whole images: `encode` gives its features, and `classifier_of` makes a
`ViT` of it.
"""

import functools
from typing import Any

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
from arch_jax.layers.mixers.contract import FeedForward, Mixer, Norm, adapted, unbound
from arch_jax.layers.norms import LayerNorm
from arch_jax.layers.transformer.feed_forward import MLP
from arch_jax.models.transformer.vit import ViT, encoder_stack
from arch_jax.ops.attention.positions import sinusoidal_grid
from arch_jax.ops.convolution.patches import Masking, patches, random_masking, unpatchify, visible_count
from arch_jax.ops.precision import picked
from arch_jax.registry import Paper, register

#: The paper's initializer (appendix A.1); blocks have normal weights of about that size.
_XAVIER = nn.initializers.glorot_uniform()


@component("mae", kind="model", renamed={"picture": "resolution"})
class MAE(nn.Module):
    """An encoder of visible patches, and a decoder that predicts the pixels of all: "batch height width channels".

    Images may have any size that patches divide: positions are computed for the actual grid.

    Attributes:
      resolution: resolution of the images that it is made for.
      channels: of an image: 1 for grey, 3 for colour.
      patch: pixels on a side of a patch.
      depth: layers of the encoder.
      width: of the encoder's tokens, a multiple of 4.
      mixer: of each layer of the encoder.
      feed_forward: of each layer of the encoder.
      decoder_depth: layers of the decoder.
      decoder_width: of the decoder's tokens, a multiple of 4.
      decoder_mixer: of each layer of the decoder.
      decoder_feed_forward: of each layer of the decoder.
      norm: in front of each part, and at the end of encoder and decoder.
      masking_ratio: fraction of the patches that is masked in pre-training, between 0 and 1.
      normalised_pixels: whether predictions stand for pixels normalised by their patch's mean and variance.
      scan: whether equal layers are scanned: compile time that does not grow with depth.
      remat: whether activations are recomputed in the backward pass to save memory.
      initial_std: standard deviation of the initial class and mask token.
      dtype: of the computation.
      parameter_dtype: of the parameters.
      facts: the checkpoint's own, where the module was loaded from one.
    """

    resolution: int = 224
    channels: int = 3
    patch: int = 16
    depth: int = 12
    width: int = 768
    mixer: Mixer = Attention(heads=12, bias=True, causal=False, initial_std=None)
    feed_forward: FeedForward = MLP(activation="gelu", initial_std=None)
    decoder_depth: int = 8
    decoder_width: int = 512
    decoder_mixer: Mixer = Attention(heads=16, bias=True, causal=False, initial_std=None)
    decoder_feed_forward: FeedForward = MLP(activation="gelu", initial_std=None)
    norm: Norm = LayerNorm(epsilon=1e-6)
    masking_ratio: float = 0.75
    normalised_pixels: bool = False
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
        for name in ("channels", "depth", "decoder_depth"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; expected at least 1")
        for name in ("width", "decoder_width"):
            value = getattr(self, name)
            if value < 4 or value % 4:
                raise UsageError(
                    f"{name} is {value}, and sine-cosine positions need a multiple of 4, such as "
                    f"{max(4, round(value / 4) * 4)}"
                )
        count = (self.resolution // self.patch) ** 2
        if not 0 < self.masking_ratio < 1 or not 0 < visible_count(count, self.masking_ratio) < count:
            raise UsageError(
                f"masking_ratio is {self.masking_ratio} of {count} patches; expected a fraction that masks some and "
                "leaves some visible, such as 0.75"
            )
        super().__post_init__()

    def setup(self) -> None:
        dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        dense = functools.partial(Dense, initial=_XAVIER, **dtypes)
        token = lambda name, width: self.param(
            name, nn.initializers.normal(self.initial_std), (width,), self.parameter_dtype
        )
        self.patch_embedding = dense(self.width)
        self.class_token = token("class_token", self.width)
        self.stack = encoder_stack(self, self.mixer, self.feed_forward, self.depth)
        self.final_norm = adapted(self.norm, **dtypes)
        self.decoder_embedding = dense(self.decoder_width)
        self.mask_token = token("mask_token", self.decoder_width)
        self.decoder_stack = encoder_stack(self, self.decoder_mixer, self.decoder_feed_forward, self.decoder_depth)
        self.decoder_norm = adapted(self.norm, **dtypes)
        self.pixels = dense(self.patch**2 * self.channels)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """The number of patches of an image, down and across."""
        return height // self.patch, width // self.patch

    def encode(
        self, images: Float[Array, "batch height width channels"], masking: Masking | None = None
    ) -> Float[Array, "batch tokens features"]:
        """Features of the class token and of each visible patch; without a masking, of all patches in their order.

        Raises:
          UsageError: images that the patches don't divide.
        """
        x = self.patch_embedding(patches(images, self.patch))
        x = x + sinusoidal_grid(*self.grid(*images.shape[1:3]), self.width).astype(self.dtype)
        if masking is not None:
            x = picked(x, masking.kept)
        first = jnp.broadcast_to(self.class_token.astype(self.dtype), (len(x), 1, self.width))
        x, _ = self.stack(jnp.concatenate([first, x], axis=1))
        return self.final_norm(x)

    def decode(
        self,
        features: Float[Array, "batch tokens features"],
        masking: Masking | None = None,
        grid: tuple[int, int] | None = None,
    ) -> Float[Array, "batch patches pixels"]:
        """The prediction of each patch in its place, from the output of `encode` for the same masking.

        Args:
          features: of the class token and of the visible patches.
          masking: the masking; None if nothing was masked.
          grid: patches down and across; None for those of the size that the model is made for.
        """
        y = self.decoder_embedding(features)
        first, y = y[:, :1], y[:, 1:]
        if masking is not None:
            batch, count = masking.restore.shape
            shape = (batch, count - y.shape[1], self.decoder_width)
            y = jnp.concatenate([y, jnp.broadcast_to(self.mask_token.astype(y.dtype), shape)], axis=1)
            y = picked(y, masking.restore)
        grid = self.grid(self.resolution, self.resolution) if grid is None else grid
        y = y + sinusoidal_grid(*grid, self.decoder_width).astype(self.dtype)
        y, _ = self.decoder_stack(jnp.concatenate([first, y], axis=1))
        return self.pixels(self.decoder_norm(y))[:, 1:]

    def masked(
        self, images: Float[Array, "batch height width channels"], noise: Float[Array, "batch patches"]
    ) -> tuple[Float[Array, "batch patches pixels"], Masking]:
        """The prediction of every patch from those that are not masked, and the masking.

        Args:
          images: the images.
          noise: a number for each patch, uniform in training; those with the largest are masked.

        Raises:
          UsageError: images that the patches don't divide.
        """
        masking = random_masking(noise, self.masking_ratio)
        features = self.encode(images, masking)
        return self.decode(features, masking, self.grid(*images.shape[1:3])), masking

    def __call__(
        self, images: Float[Array, "batch height width channels"], noise: Float[Array, "batch patches"] | None = None
    ) -> Float[Array, "batch height width channels"]:
        """The reconstruction as an image: of the patches masked by the noise or, without noise, of a whole image.

        Its values are those that the decoder predicts: pixels, or pixels normalised patch by patch. The loss does not
        constrain visible patches, nor images without masked ones.

        Raises:
          UsageError: images that the patches don't divide.
        """
        height, width = images.shape[1:3]
        if noise is None:
            rows = self.decode(self.encode(images), grid=self.grid(height, width))
        else:
            rows, _ = self.masked(images, noise)
        return unpatchify(rows, self.patch, height, width)

    def check(self, shape: tuple[int, ...]) -> None:
        """Refuses images that the patches don't divide, or of another number of channels.

        Raises:
          UsageError: if `shape` ("height width channels") is such.
        """
        jax.eval_shape(lambda: patches(jnp.zeros((1, *shape)), self.patch))
        if shape[2] != self.channels:
            raise UsageError(
                f"the images have {shape[2]} channels and the model predicts {self.channels}; "
                f"set model.channels={shape[2]}"
            )


def classifier_of(module: MAE, variables: Any, key: jax.Array, classes: int = 1000) -> tuple[ViT, dict[str, Any]]:
    """A `ViT` with the features of a pre-trained encoder and a new last layer: the start of fine-tuning.

        vit, variables = classifier_of(mae, variables, jax.random.key(0), classes=10)
        logits = vit.apply(variables, images)

    The input of the last layer is `encode(images)[:, 0]`, for images of the size that the model is made for. The
    positions become parameters, which then may be trained; at another size a `ViT` interpolates them.

    Args:
      module: the masked autoencoder.
      variables: its variables.
      key: of the new layer's initial weights.
      classes: number of classes.

    Returns:
      The classifier, and its variables.
    """
    names = ("patch", "depth", "width", "mixer", "feed_forward", "norm", "scan", "remat", "initial_std", "dtype")
    shared = {name: unbound(getattr(module, name)) for name in (*names, "resolution", "parameter_dtype")}
    vit = ViT(classes=classes, pooling="token", position=True, **shared)
    kept = {name: variables["params"][name] for name in ("patch_embedding", "class_token", "stack", "final_norm")}
    places = sinusoidal_grid(*module.grid(module.resolution, module.resolution), module.width)
    kernel = module.initial_std * jax.random.normal(key, (module.width, classes), module.parameter_dtype)
    new = {
        "position_embedding": jnp.concatenate([jnp.zeros_like(places[:1]), places]).astype(module.parameter_dtype),
        "logits": {"kernel": kernel, "bias": jnp.zeros((classes,), module.parameter_dtype)},
    }
    return vit, {"params": kept | new}


def _mae(name: str, parameters: int, patch: int, depth: int, width: int, heads: int) -> None:
    """Registers one of the sizes: a ViT's encoder, and the decoder of 8 layers that all of them have."""
    still = "softmax does not change when all scores of a query move by the same amount"

    @register(
        name,
        family="transformer",
        objective="masked_patches",
        paper=Paper("Masked Autoencoders Are Scalable Vision Learners", "He et al.", 2021, "2111.06377"),
        inputs=images(224),
        parameters=parameters,
        architecture="mae",
        shrink={
            "resolution": 12,
            "patch": 4,
            "depth": 2,
            "width": 16,
            "mixer.heads": 2,
            "decoder_depth": 2,
            "decoder_width": 12,
            "decoder_mixer.heads": 3,
        },
        reference="transformers ViTMAEForPreTraining: predictions, loss and its gradients within 1e-5",
        departures=(
            "The targets are pixels by default, as in transformers; the paper's best models predict pixels normalised "
            "by patch (normalised_pixels=true).",
        ),
        difference=3.7e-7,
        no_gradient={r"mixer/key/bias": still},
    )
    def build() -> MAE:
        attention = Attention(heads=heads, bias=True, causal=False, initial_std=None)
        return MAE(patch=patch, depth=depth, width=width, mixer=attention)

    patches_of = f"patches of {patch} x {patch} pixels"
    build.__doc__ = f"An encoder of {depth} layers of width {width} with {heads} heads, {patches_of}."


_mae("mae-base-16", 111_655_680, 16, 12, 768, 12)
_mae("mae-large-16", 329_239_296, 16, 24, 1024, 16)
_mae("mae-huge-14", 656_613_964, 14, 32, 1280, 16)
