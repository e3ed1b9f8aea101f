"""Samplers of one network call a step: DDPM, DDIM, Euler and Euler ancestral."""

import dataclasses
from typing import Any, Literal

import jax
import numpy as np

from arch_jax.errors import UsageError
from arch_jax.fields import component
from arch_jax.ops.diffusion import ancestral
from arch_jax.ops.diffusion.solve import StepCoefficients
from arch_jax.ranges import Share
from arch_jax.sampling.base import keys_by_row
from arch_jax.sampling.diffusion.base import DiffusionSampler


@component("ddpm", kind="sampler")
@dataclasses.dataclass(frozen=True)
class DDPM(DiffusionSampler):
    """Ancestral sampling (Ho et al. 2020, 2006.11239, algorithm 2); with fewer steps, that of the chain that jumps.

    Attributes:
      variance: of a step: the posterior's ("small"), the forward step's ("large"), or the network's own ("learned",
        improved DDPM, 2102.09672), which needs a model with `learned_variance`.
    """

    steps: int = 1000
    variance: Literal["small", "large", "learned"] = "small"

    def coefficients(self, process: Any, times: np.ndarray) -> StepCoefficients:
        return ancestral.ddpm(process, times, self.variance)

    def check(self, task: Any, data: Any) -> None:
        super().check(task, data)
        if self.variance == "learned" and not getattr(task.model, "learned_variance", False):
            raise UsageError(
                "sampler.variance is 'learned', and the model has no learned variance; expected 'small' or 'large'"
            )


@component("ddim", kind="sampler")
@dataclasses.dataclass(frozen=True)
class DDIM(DiffusionSampler):
    """DDIM (Song et al. 2020, 2010.02502, equation 12).

    Attributes:
      eta: 0 is deterministic, 1 is DDPM.
      direction: which denoised estimate gives the noise that is kept where it is clipped: the "clipped" one, or the
        network's own ("raw").
    """

    eta: Share = 0.0
    direction: Literal["clipped", "raw"] = "clipped"

    def coefficients(self, process: Any, times: np.ndarray) -> StepCoefficients:
        return ancestral.ddim(process, times, self.eta, self.direction)

    def invert(self, task: Any, variables: Any, examples: Any, labels: np.ndarray | None = None) -> np.ndarray:
        """The noise from which the sampler without eta leads to the examples, to the first order of its steps.

        `draw(..., begin=noise)` leads back; between two such noises lie interpolations (2010.02502, section 5.3).

        Args:
          task: the objective with its model.
          variables: of the model.
          examples: "count ...", scaled as the data is.
          labels: class of each, "count".
        """
        rows = ancestral.ddim_inversion(task.process, self.grid(task.process))
        return self._run(task, variables, keys_by_row(jax.random.key(0), len(examples)), examples, rows, labels)


@component("euler", kind="sampler")
@dataclasses.dataclass(frozen=True)
class Euler(DiffusionSampler):
    """Euler's method on the probability-flow ODE in sigma / alpha (2206.00364, equation 1); on a flow, in t.

    The same numbers as DDIM without noise (2010.02502, equation 14), which is exact where D does not change.
    """

    def coefficients(self, process: Any, times: np.ndarray) -> StepCoefficients:
        return ancestral.ddim(process, times)


@component("euler_ancestral", kind="sampler")
@dataclasses.dataclass(frozen=True)
class EulerAncestral(DiffusionSampler):
    """Euler's method to a lower noise level than the step's, and fresh noise up to it, as k-diffusion has it.

    With eta 1 it is DDPM's ancestral step for any process.

    Attributes:
      eta: factor of the fresh noise's standard deviation.
    """

    eta: Share = 1.0

    def coefficients(self, process: Any, times: np.ndarray) -> StepCoefficients:
        return ancestral.ddim(process, times, self.eta)
