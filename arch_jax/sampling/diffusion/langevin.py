"""Annealed Langevin dynamics, the sampler of noise-conditional score networks."""

import dataclasses
from typing import Annotated, Any, ClassVar

import numpy as np

from arch_jax.errors import UsageError
from arch_jax.fields import component
from arch_jax.ops.diffusion.grids import grid
from arch_jax.ops.diffusion.langevin import annealed_langevin, check_first_level
from arch_jax.ops.diffusion.solve import StepCoefficients
from arch_jax.ranges import Range
from arch_jax.sampling.diffusion.base import DiffusionSampler


@component("annealed_langevin", kind="sampler")
@dataclasses.dataclass(frozen=True)
class AnnealedLangevin(DiffusionSampler):
    """Annealed Langevin dynamics (NCSN, Song & Ermon 2019, 1907.05600, algorithm 1; NCSNv2, 2006.09011).

    `steps` noise levels that shrink by one ratio, with `correctors` steps of Langevin dynamics at each: steps *
    correctors + 1 calls of the network. The defaults are NCSNv2's on CIFAR-10. A process that begins with noise alone
    has no first level, and is refused. With few levels samples are wider than the data, as the dynamics lags behind.

    Attributes:
      correctors: T, Langevin steps at each level.
      step_size: of a step, over the level's sigma^2. The papers' epsilon is that at the smallest level: step_size is
        epsilon / (2 sigma_L^2) of 1907.05600 (2e-5 and .01: .1), and epsilon / sigma_L^2 of 2006.09011. None is what
        its technique 4 finds for the levels' ratio and T: .062, as 6.2e-6 / .01^2, for 232 levels from 50 to .01.
      denoise: whether the end is the denoised estimate at the smallest level, by one more call.
    """

    keeps_tilt: ClassVar[bool] = True

    steps: int = 232
    correctors: int = 5
    step_size: Annotated[float, Range(above=0, below=1)] | None = None
    denoise: bool = True

    def grid(self, process: Any) -> np.ndarray:
        if self.spacing not in (None, "exponential"):
            raise UsageError(
                f"sampler.spacing is {self.spacing!r}, and the levels of annealed Langevin dynamics shrink by one "
                "ratio; expected none or 'exponential'"
            )
        check_first_level(process, process.last)
        return grid(process, self.steps, "exponential")

    def coefficients(self, process: Any, times: np.ndarray) -> StepCoefficients:
        return annealed_langevin(process, times, self.correctors, self.step_size, self.denoise)
