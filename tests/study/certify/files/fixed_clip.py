"""DDIM that can clip; the faulty one always does."""

import dataclasses

import numpy as np

import arch_jax

FAULTY = False


@arch_jax.component("fixed_clip", kind="sampler")
@dataclasses.dataclass(frozen=True)
class FixedClip(arch_jax.DiffusionSampler):
    """DDIM with a setting for the clip, which is off unless asked for."""

    def __post_init__(self):
        super().__post_init__()
        if FAULTY:
            object.__setattr__(self, "clip", 1.0)

    def coefficients(self, process, times):
        alpha, sigma = process.coefficients(times, np)
        rows = arch_jax.StepCoefficients.empty(times[:-1])
        rows.point[:, 1] = sigma[1:] / sigma[:-1]
        rows.point[:, 3] = alpha[1:] - alpha[:-1] * sigma[1:] / sigma[:-1]
        return rows.single()
