"""The denoiser that training would find with data and capacity without end, of laws for which it is known.

D(x) = E[x_0 | x_t = x] of a mixture of Gaussians is a closed form (`arch_jax.ops.diffusion.laws`). A sampler that is
run with it errs by itself alone: `arch_jax certify` judges samplers so, and a learned network can be put beside it.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from arch_jax.errors import UsageError
from arch_jax.fields import component
from arch_jax.ops.diffusion.condition import Condition
from arch_jax.ops.diffusion.laws import Mixture
from arch_jax.ops.diffusion.predictions import Noise, Prediction
from arch_jax.ops.diffusion.processes import Process, VariancePreserving
from arch_jax.ranges import Signed

RING = Mixture.ring()


@component("exact_denoiser", kind="model")
class ExactDenoiser(nn.Module):
    """The output of a network without error for a mixture of Gaussians, whatever it predicts; no parameters.

    The default law is 8 Gaussians on a circle, as of `arch_jax.Ring`. With `classes`, label k is the law of component k
    alone, and the null class that of all of them.

    Attributes:
      process: of the diffusion.
      prediction: of the diffusion.
      means: of the components, "components features".
      variances: of each coordinate, "components features".
      weights: of the components; they add up to 1.
      classes: as many as components, for a conditional denoiser; None for an unconditional one.
      null_class: whether the label `classes` stands for none.
    """

    process: Process = VariancePreserving()
    prediction: Prediction = Noise()
    means: tuple[tuple[Signed, ...], ...] = tuple(map(tuple, RING.means.tolist()))
    variances: tuple[tuple[float, ...], ...] = tuple(map(tuple, RING.variances.tolist()))
    weights: tuple[float, ...] = tuple(RING.weights.tolist())
    classes: int | None = None
    null_class: bool = True

    def __post_init__(self) -> None:
        if not len(self.means) == len(self.variances) == len(self.weights) > 0:
            raise UsageError(
                f"means, variances and weights are of {len(self.means)}, {len(self.variances)} and "
                f"{len(self.weights)} components; expected as many of each"
            )
        if self.classes not in (None, len(self.means)):
            raise UsageError(f"classes is {self.classes}; expected {len(self.means)}, one a component, or none")
        super().__post_init__()

    @property
    def features(self) -> int:
        """Coordinates of a point."""
        return len(self.means[0])

    def __call__(
        self,
        x: Float[Array, "batch features"],
        time: Float[Array, "batch"],
        condition: Condition | None = None,
        train: bool = False,
    ) -> Float[Array, "batch features"]:
        """F for which D is exact; `x` is scaled as the prediction scales it.

        Of variables with a collection "nudge", {"time", "size"}, the outputs at that time are moved by that size: what
        a sampler makes of one call can be seen so.
        """
        wide = jnp.promote_types(x.dtype, jnp.float32)
        at = self.process.told(time.astype(wide))
        alpha, sigma = (part.astype(wide)[:, None] for part in self.process.coefficients(at))
        rates = None
        if self.prediction.uses_rates:
            rates = tuple(part[:, None] for part in self.process.rates(at))
        made = self.prediction.preconditioning(alpha, sigma, rates)
        x = x.astype(wide) / made.scale
        means, variances = jnp.asarray(self.means, wide), jnp.asarray(self.variances, wide)
        noisy = alpha[..., None] ** 2 * variances + sigma[..., None] ** 2
        away = x[:, None] - alpha[..., None] * means
        log = jnp.log(jnp.asarray(self.weights, wide)) - 0.5 * (away**2 / noisy + jnp.log(noisy)).sum(-1)
        if self.classes is not None and condition is not None:
            label = condition.label[:, None]
            log = jnp.where((label == jnp.arange(self.classes)) | (label == self.classes), log, -jnp.inf)
        each = means + alpha[..., None] * variances / noisy * away
        clean = (jax.nn.softmax(log)[..., None] * each).sum(1)
        output = (clean - made.skip * x) / made.out
        if self.has_variable("nudge", "time"):
            nudged = self.get_variable("nudge", "time")
            near = jnp.abs(time - nudged) <= 1e-3 * jnp.maximum(1e-3, jnp.abs(nudged))
            output = output + jnp.where(near, self.get_variable("nudge", "size"), 0.0)[:, None]
        return output
