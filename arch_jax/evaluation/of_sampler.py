"""A measure of another sampler's samples, beside the run's own."""

import dataclasses
from typing import Annotated, Any

import jax

from arch_jax.errors import UsageError
from arch_jax.evaluation.base import Measure
from arch_jax.fields import Kind, component


@component("of_sampler", kind="measure")
@dataclasses.dataclass(frozen=True)
class OfSampler(Measure):
    """A measure of what another sampler draws from the same weights: a sweep of guidance or of steps trains once.

    Gives the measure's numbers with `name` in front of theirs: "guidance_2_fid". The random key is the run's, so that
    samplers begin with the same noise.

    Attributes:
      measure: such as `ImageDistances` or `PointDistances`.
      sampler: in place of the run's.
      name: what the numbers are told apart by; a word of letters, digits and "_".
    """

    measure: Annotated[Any, Kind("measure")] | None = None
    sampler: Annotated[Any, Kind("sampler")] | None = None
    name: str = "other"

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise UsageError(f"name is {self.name!r}; expected a word of letters, digits and _, such as 'guidance_2'")

    def check(self, task: Any, sampler: Any, data: Any) -> None:
        """Refuses what the measure refuses of the other sampler, and what that sampler refuses."""
        for field, example in (("measure", "arch_jax.PointDistances()"), ("sampler", "arch_jax.DDIM(steps=10)")):
            if getattr(self, field) is None:
                raise UsageError(f"the {field} of OfSampler {self.name!r} is none; expected one, such as {example}")
        self.sampler.check(task, data)
        self.measure.check(task, self.sampler, data)

    def __call__(self, task: Any, variables: Any, sampler: Any, data: Any, key: jax.Array) -> dict[str, float]:
        found = self.measure(task, variables, self.sampler, data, key)
        return {f"{self.name}_{metric}": value for metric, value in found.items()}
