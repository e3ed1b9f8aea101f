"""Ancestral sampling as a table; the faulty one adds no noise."""

import dataclasses

import numpy as np

import arch_jax

FAULTY = False


@arch_jax.component("own_ancestral", kind="sampler")
@dataclasses.dataclass(frozen=True)
class OwnAncestral(arch_jax.DiffusionSampler):
    """x' = alpha' D + sqrt(sigma'^2 - std^2) noise + std z, std that of the posterior."""

    def coefficients(self, process, times):
        alpha, sigma = process.coefficients(times, np)
        std = sigma[1:] * np.sqrt(1 - (sigma[1:] * alpha[:-1] / (alpha[1:] * sigma[:-1])) ** 2)
        kept = np.sqrt(sigma[1:] ** 2 - std**2) / sigma[:-1]
        rows = arch_jax.StepCoefficients.empty(times[:-1])
        rows.point[:, 1] = kept
        rows.point[:, 3] = alpha[1:] - kept * alpha[:-1]
        rows.point[:, -1] = 0 if FAULTY else std
        return rows.single()
