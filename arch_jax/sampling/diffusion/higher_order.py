"""Samplers of the probability-flow ODE of higher order: Heun, DPM-Solver++, UniPC, PNDM."""

import dataclasses
from typing import Annotated, Any, ClassVar, Literal

import numpy as np

from arch_jax.errors import UsageError
from arch_jax.fields import component
from arch_jax.ops.diffusion.dpm_solver import dpm_solver
from arch_jax.ops.diffusion.heun import heun
from arch_jax.ops.diffusion.pndm import pndm
from arch_jax.ops.diffusion.solve import StepCoefficients
from arch_jax.ops.diffusion.unipc import unipc
from arch_jax.ranges import Range
from arch_jax.sampling.diffusion.base import DiffusionSampler


@component("heun", kind="sampler")
@dataclasses.dataclass(frozen=True)
class Heun(DiffusionSampler):
    """Heun's second-order method (Karras et al. 2022, 2206.00364, algorithm 1): 2 steps - 1 calls of the network."""

    order_seen: ClassVar[float] = 2.0

    def coefficients(self, process: Any, times: np.ndarray) -> StepCoefficients:
        return heun(process, times)


@component("dpm_solver", kind="sampler")
@dataclasses.dataclass(frozen=True)
class DPMSolver(DiffusionSampler):
    """DPM-Solver++, multistep (Lu et al. 2022, 2211.01095): 2M, with the stochastic form 2M-SDE, or of order 1 or 3.

    Attributes:
      order: 1, 2 or 3.
      stochastic: the SDE in place of the ODE, of order 1 or 2.
      form: of orders 2 and 3: "midpoint", as in the authors' code, or "heun", the exact integral, with which the third
        order is one.
      lower_at_end: whether the last steps are of lower order, which few steps need.
    """

    steps: int = 20
    order: Annotated[int, Range(at_least=1, at_most=3)] = 2
    stochastic: bool = False
    form: Literal["midpoint", "heun"] = "midpoint"
    lower_at_end: bool = False

    @property
    def order_seen(self) -> float:
        """The order, but 2 for the third in the authors' form."""
        return min(float(self.order), 3.0 if self.form == "heun" else 2.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stochastic and self.order == 3:
            raise UsageError("order is 3 with stochastic, which has orders 1 and 2; expected order=2")

    def coefficients(self, process: Any, times: np.ndarray) -> StepCoefficients:
        return dpm_solver(
            process, times, self.order, stochastic=self.stochastic, form=self.form, lower_at_end=self.lower_at_end
        )


@component("unipc", kind="sampler")
@dataclasses.dataclass(frozen=True)
class UniPC(DiffusionSampler):
    """UniPC (Zhao et al. 2023, 2302.04867): a multistep predictor and a corrector without a further call.

    Attributes:
      order: of the predictor, 1, 2 or 3; with the corrector one more.
      variant: "bh1" or "bh2".
      corrector: whether there is one.
      lower_at_end: whether the last steps are of lower order, which few steps need.
    """

    steps: int = 20
    order: Annotated[int, Range(at_least=1, at_most=3)] = 2
    variant: Literal["bh1", "bh2"] = "bh2"
    corrector: bool = True
    lower_at_end: bool = False

    @property
    def order_seen(self) -> float:
        """The predictor's order, and one more with the corrector; 3 at most, as first steps are of lower order."""
        return min(float(self.order + self.corrector), 3.0)

    def coefficients(self, process: Any, times: np.ndarray) -> StepCoefficients:
        return unipc(
            process,
            times,
            self.order,
            variant=self.variant,
            corrector=self.corrector,
            lower_at_end=self.lower_at_end,
        )


@component("pndm", kind="sampler")
@dataclasses.dataclass(frozen=True)
class PNDM(DiffusionSampler):
    """PNDM (Liu et al. 2022, 2202.09778): Adams' method of order 4 on the noise, with DDIM's step.

    Attributes:
      warm_up: first steps: "heun", as latent diffusion has it (PLMS), or the paper's "runge_kutta".
    """

    warm_up: Literal["heun", "runge_kutta"] = "heun"

    @property
    def order_seen(self) -> float:
        """2: the step itself is DDIM's, whose weights are exact for a noise that does not change."""
        return 2.0

    def coefficients(self, process: Any, times: np.ndarray) -> StepCoefficients:
        return pndm(process, times, self.warm_up)
