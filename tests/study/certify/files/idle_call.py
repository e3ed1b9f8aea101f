"""Euler as a table; the faulty one calls the network once more, at the end, for nothing."""

import dataclasses

import numpy as np

import arch_jax

FAULTY = False


@arch_jax.component("idle_call", kind="sampler")
@dataclasses.dataclass(frozen=True)
class IdleCall(arch_jax.DiffusionSampler):
    """Euler's method."""

    def coefficients(self, process, times):
        alpha, sigma = process.coefficients(times, np)
        if FAULTY:
            at = np.append(times[:-1], process.first / 2)
        else:
            at = times[:-1]
        rows = arch_jax.StepCoefficients.empty(at)
        n = len(times) - 1
        rows.point[:n, 1] = sigma[1:] / sigma[:-1]
        rows.point[:n, 3] = alpha[1:] - alpha[:-1] * sigma[1:] / sigma[:-1]
        rows.point[n:, 1] = 1.0
        return rows.single()
