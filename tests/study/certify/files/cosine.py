"""The cosine schedule by its betas; the faulty one clips them to [1e-4, .9999]."""

import dataclasses

import numpy as np

import arch_jax

FAULTY = False


@arch_jax.component("own_cosine", kind="process")
@dataclasses.dataclass(frozen=True)
class OwnCosine(arch_jax.VariancePreserving):
    """Improved DDPM's cosine schedule, from betas."""

    published = arch_jax.VariancePreserving("cosine")

    def __post_init__(self):
        f = np.cos((np.arange(self.steps + 1) / self.steps + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = 1 - f[1:] / f[:-1]
        betas = np.clip(betas, 1e-4, 0.9999) if FAULTY else np.minimum(betas, 0.999)
        object.__setattr__(self, "betas", tuple(betas.tolist()))
        super().__post_init__()
