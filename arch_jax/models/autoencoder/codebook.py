"""A codebook that follows the vectors that choose its codes, and the base of autoencoders with one."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from arch_jax.fields import DType
from arch_jax.layers import collections
from arch_jax.ops.precision import look_up
from arch_jax.ops.vector_quantisation import moved_codes, nearest_code, revived, straight_through

collections.declare("codebook", average="copy", devices="mean")


class Codebook(nn.Module):
    """Replaces each vector by the nearest code.

    Attributes:
      codes: number of codes.
      width: numbers in each.
      average: fraction of the moving averages kept at each step; None for codes that are parameters.
      least: codes whose average count falls below it are moved to a vector of the batch; 0 disables it.
      parameter_dtype: of codes that are parameters; moving averages are at least float32.
      initial: initializer of the codes, called with (key, shape, dtype).
    """

    codes: int
    width: int
    average: float | None = 0.99
    least: float = 0.0
    parameter_dtype: DType = jnp.float32
    initial: Callable = nn.initializers.normal(0.1)

    def setup(self) -> None:
        shape = (self.codes, self.width)
        if self.average is None:
            self.table = self.param("codes", self.initial, shape, self.parameter_dtype)
            return
        precise = jnp.promote_types(self.parameter_dtype, jnp.float32)
        draw = lambda: self.initial(self.make_rng("params"), shape, precise)
        self.moving = self.variable("codebook", "codes", draw)
        self.counts = self.variable("codebook", "counts", jnp.ones, (self.codes,), precise)
        self.sums = self.variable("codebook", "sums", lambda: self.moving.value)

    def __call__(
        self, x: Float[Array, "*batch width"], train: bool = False
    ) -> tuple[Float[Array, "*batch width"], Int[Array, "*batch"]]:
        """The nearest code of each vector, and its number; in training, the moving averages are updated."""
        chosen = nearest_code(x, self._codes)
        quantised = self.look_up(chosen)
        moves = train and self.average is not None and not self.is_initializing()
        if moves and self.is_mutable_collection("codebook"):
            flat = jax.lax.stop_gradient(x).reshape(-1, self.width)
            moved = moved_codes(flat, chosen.ravel(), self.counts.value, self.sums.value, self.average)
            if self.least > 0:
                moved = revived(self.make_rng("dropout"), flat, *moved, self.least)
            self.moving.value, self.counts.value, self.sums.value = moved
        return quantised, chosen

    def look_up(self, chosen: Int[Array, "*batch"]) -> Float[Array, "*batch width"]:
        """The codes of these numbers."""
        return look_up(self._codes, chosen)

    @property
    def _codes(self) -> Array:
        return self.table if self.average is None else self.moving.value


class QuantisedAutoencoder(nn.Module):
    """An autoencoder of images with a codebook between its halves (van den Oord et al. 2017, 1711.00937, section 3).

        z_q(x) = e_k,   k = argmin_j |z_e(x) - e_j|                                (equations 1 and 2)

    A subclass has the submodule `codebook`, the field `dtype`, and both halves: `latents` and `pixels_of`.
    """

    def latents(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch h w code"]:
        """The encoder's output (z_e), before quantisation.

        Raises:
          UsageError: images that the model can't take.
        """
        raise TypeError(f"{type(self).__name__} must say how it encodes images: it has no `latents`")

    def pixels_of(self, codes: Float[Array, "batch h w code"]) -> Float[Array, "batch height width channels"]:
        """The image decoded from codes."""
        raise TypeError(f"{type(self).__name__} must say how it decodes codes: it has no `pixels_of`")

    def encode(self, x: Float[Array, "batch height width channels"]) -> Int[Array, "batch h w"]:
        """The number of the code at each place.

        Raises:
          UsageError: images that the model can't take.
        """
        return self.codebook(self.latents(x))[1]

    def decode(self, code: Int[Array, "batch h w"]) -> Float[Array, "batch height width channels"]:
        """The image decoded from the numbers of its codes."""
        return self.pixels_of(self.codebook.look_up(code).astype(self.dtype))

    def decode_latents(self, z: Float[Array, "batch h w code"]) -> Float[Array, "batch height width channels"]:
        """The image decoded from the codes nearest to z."""
        return self.pixels_of(self.codebook(z)[0].astype(self.dtype))

    def quantised(
        self, x: Float[Array, "batch height width channels"], train: bool = False
    ) -> tuple[
        Float[Array, "batch height width channels"],
        Float[Array, "batch h w code"],
        Float[Array, "batch h w code"],
        Int[Array, "batch h w"],
    ]:
        """The reconstruction, the encoder's output (z_e), its nearest codes (z_q), and their numbers."""
        encoded = self.latents(x)
        nearest, chosen = self.codebook(encoded, train)
        nearest = nearest.astype(encoded.dtype)
        return self.pixels_of(straight_through(encoded, nearest)), encoded, nearest, chosen

    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch height width channels"]:
        """The reconstruction of each image."""
        return self.quantised(x, train)[0]
