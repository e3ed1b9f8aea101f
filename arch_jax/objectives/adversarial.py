"""The adversarial game of a generator and a discriminator (Goodfellow et al. 2014, 1406.2661)."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from arch_jax.errors import UsageError
from arch_jax.evaluation.mode_coverage import modes
from arch_jax.fields import component
from arch_jax.figures.base import Figure
from arch_jax.figures.points import GeneratedPoints
from arch_jax.objectives.base import Batch, ObjectiveBase, Pair, Player
from arch_jax.ops.precision import at_least_float32
from arch_jax.protocols import point_features
from arch_jax.ranges import Count
from arch_jax.sampling.generator import GeneratorSampler


@component("adversarial", kind="objective")
@dataclasses.dataclass(frozen=True)
class Adversarial(ObjectiveBase):
    """D minimises -log D(x) - log(1 - D(G(z))); G minimises -log D(G(z)), or log(1 - D(G(z))) if saturating.

    Algorithm 1 takes k steps of the discriminator for each of the generator: `discriminator_steps` is k. Both see the
    same batch in a step, and noise of their own.

    Attributes:
      model: generator and discriminator; filled in by the experiment.
      discriminator_steps: k of algorithm 1: the generator is updated in every k-th step.
      saturating: whether G minimises log(1 - D(G(z))), the game of equation 1, which hardly moves G while D is sure of
        itself (section 3).
      show_points: generated points in the default figure, at most those of a validation batch.
    """

    unit: ClassVar[str] = "nats of the game's value V(D, G), at best -1.3863"

    discriminator_steps: int = 1
    saturating: bool = False
    show_points: Count = 2500

    def __post_init__(self) -> None:
        if self.discriminator_steps < 1:
            raise UsageError(f"discriminator_steps is {self.discriminator_steps}; expected at least 1")

    @property
    def sampler(self) -> GeneratorSampler:
        """Generated examples."""
        return GeneratorSampler()

    @property
    def figures(self) -> tuple[Figure, ...]:
        """Generated points over the real density, where points are in the plane."""
        return (GeneratedPoints(self.show_points),)

    @property
    def players(self) -> tuple[Player, ...]:
        return Player("discriminator", ("D",)), Player("generator", ("G",), every=self.discriminator_steps)

    def arguments(self, batch: Batch) -> tuple:
        return (jnp.zeros((len(self.real(batch)), self.model.generator.latent)),)

    @staticmethod
    def real(batch: Batch) -> Any:
        """The real examples of a batch."""
        return batch["x"] if "x" in batch else batch["images"]

    def loss(
        self, player: str, phase: str, variables: Any, batch: Batch, key: jax.Array, step: Any
    ) -> tuple[Pair, tuple[dict, dict]]:
        real = self.real(batch)
        noise, key = jax.random.split(key)
        latent = jax.random.normal(noise, (len(real), self.model.generator.latent), real.dtype)
        made, updates = self.apply(variables, latent, key=key, method="generate")
        of_made = at_least_float32(self.apply(variables, made, key=key, method="score")[0])
        # -log D = softplus(-score), -log(1 - D) = softplus(score): no sigmoid whose logarithm could overflow.
        if player == "generator":
            each = -jax.nn.softplus(of_made) if self.saturating else jax.nn.softplus(-of_made)
            metrics = {}
        else:
            of_real = at_least_float32(self.apply(variables, real, key=key, method="score")[0])
            each = jax.nn.softplus(-of_real) + jax.nn.softplus(of_made)
            right = (of_real > 0) * 0.5 + (of_made < 0) * 0.5
            metrics = {"accuracy": _pair(right)}
        return _pair(each), (metrics | {"loss": _pair(each)}, updates)

    def evaluate(self, variables: Any, batch: Batch) -> dict[str, Pair]:
        """The game's value V(D, G) ("loss"; -log 4 at the optimum), and on a known mixture the modes that were found.

        With `centres` and `std` in the batch: "modes" is how many centres have a generated point within 3 standard
        deviations, "high_quality" the share of generated points that are so near to one (Srivastava et al. 2017,
        1705.07761, section 5.1; the same latents at each call).
        """
        real = self.real(batch)
        made = self._make(variables, len(real), jax.random.key(0))
        of_real, of_made = at_least_float32([self.model.apply(variables, x, method="score") for x in (real, made)])
        metrics = {"loss": _pair(-jax.nn.softplus(-of_real) - jax.nn.softplus(of_made))}
        if "centres" in batch:
            found, near = modes(made, batch["centres"], batch["std"])
            metrics |= {
                "modes": (jnp.sum(found, dtype=of_real.dtype), jnp.ones((), of_real.dtype)),
                "high_quality": near,
            }
        return metrics

    def _make(self, variables: Any, count: int, key: jax.Array) -> jax.Array:
        latent = jax.random.normal(key, (count, self.model.generator.latent))
        return self.model.apply(variables, latent, method="generate")

    def check(self, data: Any) -> None:
        """The data's examples must have the shape that the generator makes."""
        if "x" not in data.shapes and "images" not in data.shapes:
            raise UsageError(
                f"the objective 'adversarial' takes points or images, and the data has {', '.join(data.shapes)}; "
                "expected x or images, such as arch_jax.Ring()"
            )
        features = point_features(self.model.generator)
        given = data.shapes["x"][0][-1] if "x" in data.shapes else None
        if None not in (features, given) and features != given:
            raise UsageError(
                f"model.generator.features is {features}, but the data's points have {given} coordinates; "
                f"set model.generator.features={given}"
            )


def _pair(each: jax.Array) -> Pair:
    return jnp.sum(each), jnp.asarray(each.size, each.dtype)
