"""The diffusion Transformer (Peebles & Xie 2022, Scalable Diffusion Models with Transformers, 2212.09748).

A noisy image, most often a latent of an autoencoder, is cut into patches; each becomes a token by a linear layer, with
fixed sines and cosines of its row and column added. The Transformer's blocks are modulated by the embeddings of time
and class (adaLN-Zero, section 3.2 and figure 3), and a last modulated norm and a linear layer give each patch's
prediction:

    c = W_2 silu(W_1 s(t) + b_1) + b_2 + E[label]
    y = LN(x) * (1 + gamma(c)) + beta(c),   prediction = unpatchify(y W + b)

SiT (Ma et al. 2024, 2401.08740) is the same network, trained as a flow, and told a time from 0 to 1.
"""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from arch_jax.errors import UsageError
from arch_jax.fields import DType, component
from arch_jax.inputs import noisy_images
from arch_jax.layers.denoiser import TimeEmbedding, check_classes, label_embedding, labels_of
from arch_jax.layers.dense import Dense
from arch_jax.layers.facts import CheckpointFacts, facts_field
from arch_jax.layers.mixers.attention import Attention
from arch_jax.layers.mixers.contract import FeedForward, Mixer, adapted
from arch_jax.layers.transformer.adaptive import AdaptiveBlock, modulated, modulation
from arch_jax.layers.transformer.block import Context, Stack
from arch_jax.layers.transformer.feed_forward import MLP
from arch_jax.ops.attention.positions import sinusoidal_grid
from arch_jax.ops.convolution.patches import patches, unpatchify
from arch_jax.ops.diffusion.condition import Condition
from arch_jax.ranges import Positive
from arch_jax.registry import Paper, register


class FinalLayer(nn.Module):
    """The last modulated norm and the linear layer, both of which start at 0.

    Attributes:
      features: numbers for each patch.
      dtype: of the computation.
      parameter_dtype: of the parameters.
    """

    features: int
    dtype: DType
    parameter_dtype: DType

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch time width"], condition: Float[Array, "batch width"]
    ) -> Float[Array, "batch time features"]:
        shift, scale = modulation(self, condition, 2)
        zeros = {"initial": nn.initializers.zeros, "dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        return Dense(self.features, **zeros, name="outputs")(modulated(x, shift, scale, self.dtype))


@component("dit", kind="model")
class DiT(nn.Module):
    """A Transformer denoiser of images or latents, "batch height width channels".

    Images of any size that patches divide pass: positions are computed for the actual grid.

    Attributes:
      resolution: pixels on a side in training.
      channels: of an image or latent.
      classes: number of classes; None for an unconditional network.
      null_class: whether there is a further class that stands for none, for guidance.
      learned_variance: whether the output has as many channels more, for the variance.
      unused_variance: whether the last layer computes these channels and they are dropped, as in the code of SiT.
      patch: pixels on a side of a patch.
      depth: layers.
      width: of the tokens, a multiple of 4.
      mixer: of each layer.
      feed_forward: of each layer.
      frequencies: sines and cosines of time.
      frequency_shift: of these, in frequencies: 0 in the authors' code, 1 in diffusers.
      time_scale: time is multiplied by it first: 0.001 for SiT, whose times go from 0 to 1.
      scan: whether equal layers are scanned: compile time that does not grow with depth.
      remat: whether activations are recomputed in the backward pass to save memory.
      initial_std: standard deviation of the initial weights of the embeddings of time and class.
      dtype: of the computation; norms, softmax, and the sines and cosines of time are at least float32.
      parameter_dtype: of the parameters.
      facts: the checkpoint's own, where the module was loaded from one.
    """

    resolution: int = 32
    channels: int = 4
    classes: int | None = 1000
    null_class: bool = True
    learned_variance: bool = True
    unused_variance: bool = False
    patch: int = 2
    depth: int = 28
    width: int = 1152
    mixer: Mixer = Attention(heads=16, bias=True, causal=False, initial="xavier")
    feed_forward: FeedForward = MLP(activation="gelu_tanh", initial="xavier")
    frequencies: int = 256
    frequency_shift: float = 0.0
    time_scale: Positive = 1.0
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
        if self.width < 4 or self.width % 4:
            raise UsageError(
                f"width is {self.width}, and sine-cosine positions need a multiple of 4, such as "
                f"{max(4, round(self.width / 4) * 4)}"
            )
        if self.learned_variance and self.unused_variance:
            raise UsageError("learned_variance and unused_variance are both true; expected one of them, or neither")
        check_classes(self)
        super().__post_init__()

    def check(self, shape: Any) -> None:
        """Refuses images that the network can't take.

        Raises:
          UsageError: `shape` ("height width channels") has another number of channels, or sides that patches don't
            divide.
        """
        size = self.patch
        if len(shape) == 3 and not (shape[0] % size or shape[1] % size) and shape[2] == self.channels and min(shape):
            return
        near = [max(size, round(side / size) * size) for side in (*shape, size, size)[:2]]
        raise UsageError(
            f"the images have the shape {' x '.join(map(str, shape))}, and the model takes sides that are multiples of "
            f"{size} with {self.channels} channels; expected such as {near[0]} x {near[1]} x {self.channels}"
        )

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        time: Float[Array, "batch"],
        condition: Condition | None = None,
        train: bool = False,
    ) -> Float[Array, "batch height width outputs"]:
        """The prediction, such as the noise in x; with a learned variance, its numbers are further channels.

        Args:
          x: noisy images or latents.
          time: of each, from 0 to 999, or to 999 / `time_scale`.
          condition: a `label` for each where the network has classes; without one it is the null class.
          train: passed to the mixer and the feed-forward part; the network itself has no dropout.

        Raises:
          UsageError: images that `check` refuses; a condition that the network would ignore, or a missing one.
        """
        self.check(x.shape[1:])
        height, width = x.shape[1:3]
        dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        c = TimeEmbedding(
            self.width,
            self.frequencies,
            self.frequency_shift,
            cosine_first=True,
            initial=nn.initializers.normal(self.initial_std),
            **dtypes,
            name="time",
        )(time.astype(jnp.promote_types(time.dtype, jnp.float32)) * self.time_scale)
        labels = labels_of(self, condition, len(x))
        if labels is not None:
            c = c + label_embedding(self, self.width, self.initial_std)(labels)

        embedding = {"initial": nn.initializers.glorot_uniform(), "name": "patch_embedding"}
        x = Dense(self.width, **embedding, **dtypes)(patches(x, self.patch))
        x = x + sinusoidal_grid(height // self.patch, width // self.patch, self.width).astype(self.dtype)
        part = functools.partial(adapted, **dtypes)
        block = AdaptiveBlock(part(self.mixer, causal=False), part(self.feed_forward), **dtypes, parent=None)
        stack = Stack((block,), self.depth, self.scan, self.remat, parent=self, name="stack")
        # All layers read it, so that its gradient is a sum over them, in at least float32.
        c = c.astype(jnp.promote_types(c.dtype, jnp.float32))
        x, _ = stack(x, None, None, train, Context(condition=c))

        outputs = self.channels * (1 + (self.learned_variance or self.unused_variance))
        x = FinalLayer(self.patch**2 * outputs, **dtypes, name="final_layer")(x, c)
        x = unpatchify(x, self.patch, height, width)
        return x[..., : self.channels] if self.unused_variance else x


_DIT = Paper("Scalable Diffusion Models with Transformers", "Peebles & Xie", 2022, "2212.09748")
_SIT = Paper(
    "SiT: Exploring Flow and Diffusion-based Generative Models with Scalable Interpolant Transformers",
    "Ma et al.",
    2024,
    "2401.08740",
)
#: Size -> layers, width, heads (table 1 of DiT's paper).
_SIZES = {"s": (12, 384, 6), "b": (12, 768, 12), "l": (24, 1024, 16), "xl": (28, 1152, 16)}
#: Parameters that the authors' code has for latents of 32 x 32 x 4, with the fixed table of positions.
PUBLISHED = {
    "s-2": 32_963_360,
    "s-4": 32_945_024,
    "s-8": 33_148_160,
    "b-2": 130_512_416,
    "b-4": 130_475_648,
    "b-8": 130_881_536,
    "l-2": 458_102_816,
    "l-4": 458_053_760,
    "l-8": 458_594_816,
    "xl-2": 675_129_632,
    "xl-4": 675_074_432,
    "xl-8": 675_683_072,
}


def _register(family: str, name: str) -> None:
    """Registers one of the sizes, for latents of 32 x 32 x 4 (images of 256 x 256) with 1,000 classes."""
    size, patch = name.split("-")
    (depth, width, heads), flow = _SIZES[size], family == "sit"
    count = PUBLISHED[name] - (32 // int(patch)) ** 2 * width
    told = (
        "Times are 1,000 times the noise's share, from 0 for data to 1,000 for noise, and divided by 1,000; the "
        "authors' go from 0 for noise to 1 for data.",
    )

    @register(
        f"{family}-{name}",
        family="diffusion",
        objective="diffusion",
        paper=_SIT if flow else _DIT,
        inputs=noisy_images(32, 4, classes=1000, times=1000.0 if flow else 999.0),
        parameters=count,
        architecture="dit",
        shrink={
            "resolution": 4,
            "classes": 3,
            "patch": 2,
            "depth": 2,
            "width": 16,
            "mixer.heads": 2,
            "frequencies": 8,
        },
        reference="diffusers DiTTransformer2DModel, and the authors' block restated in PyTorch: outputs and gradients "
        "within 1e-5",
        departures=(
            "The table of positions is computed, as a constant; the authors keep it as a parameter without gradient "
            "and count it: 32,963,360 parameters for dit-s-2, and with every size (32 / patch)^2 times the width more.",
            "Labels are dropped in training by the objective, not by the network.",
            "Images of other sizes pass, with the positions of their own grid; the authors' network takes one size.",
            *told[:flow],
        ),
        difference=1.2e-6,
        no_gradient={r"mixer/key/bias": "softmax does not change when all scores of a query move by the same amount"},
    )
    def build() -> DiT:
        mixer = Attention(heads=heads, bias=True, causal=False, initial="xavier")
        others = {"learned_variance": False, "unused_variance": True, "time_scale": 0.001} if flow else {}
        return DiT(patch=int(patch), depth=depth, width=width, mixer=mixer, **others)

    build.__doc__ = f"{depth} layers of width {width} with {heads} heads on patches of {patch} x {patch}."
    if flow:
        build.__doc__ += " As the authors' code, it computes the channels of a variance and drops them."


for _name in PUBLISHED:
    _register("dit", _name)
for _name in ("s-2", "b-2", "l-2", "xl-2"):
    _register("sit", _name)
