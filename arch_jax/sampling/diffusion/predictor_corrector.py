"""Predictor-corrector sampling: steps of the reverse SDE with Langevin dynamics between them."""

import dataclasses
from typing import Any, Literal

import numpy as np

from arch_jax.fields import component
from arch_jax.ops.diffusion import langevin
from arch_jax.ops.diffusion.solve import StepCoefficients
from arch_jax.ranges import Count, Positive
from arch_jax.sampling.diffusion.base import DiffusionSampler


@component("predictor_corrector", kind="sampler")
@dataclasses.dataclass(frozen=True)
class PredictorCorrector(DiffusionSampler):
    """Predictor-corrector sampling (Song et al. 2021, 2011.13456, appendix G, algorithms 1 to 5).

    n + (n - 1) correctors calls of the network for n steps. The last step, to time 0, is without noise: the denoising
    of appendix G.

    The authors' step size has norms of score and noise that are means over the batch; here no example depends on those
    beside it. `norms="expected"` has their expectation at much noise; `norms="own"` has each example's, as of a batch
    of one. The dynamics then keeps the law p / (step size) rather than p: images, whose norms hardly vary, don't show
    it, and points in the plane come out half as wide again.

    Attributes:
      predictor: "reverse_diffusion" (equation 46) or "ancestral", which also begins with noise alone.
      correctors: Langevin steps after each step of the predictor; 0 is the predictor alone.
      snr: the ratio of the norms of a Langevin step's two parts; .16 is the authors' on CIFAR-10, variance exploding.
      norms: "expected" or "own".
    """

    steps: int = 1000
    predictor: Literal["reverse_diffusion", "ancestral"] = "reverse_diffusion"
    correctors: Count = 1
    snr: Positive = 0.16
    norms: Literal["expected", "own"] = "expected"

    def coefficients(self, process: Any, times: np.ndarray) -> StepCoefficients:
        return langevin.predictor_corrector(process, times, self.predictor, self.correctors, self.snr, self.norms)
