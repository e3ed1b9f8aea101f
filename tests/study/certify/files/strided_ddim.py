"""DDIM with jumps; the faulty one takes the coefficients of the next step of the chain."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

import arch_jax

FAULTY = False


@arch_jax.component("strided_ddim", kind="sampler")
@dataclasses.dataclass(frozen=True)
class StridedDDIM(arch_jax.Sampler):
    """x' = alpha' D + sigma' noise at steps of the chain that lie far apart.

    Attributes:
      steps: of the sampler.
    """

    steps: int = 50

    def check(self, task, data):
        if not task.process.discrete:
            raise arch_jax.UsageError("it samples from chains; expected one")

    def __call__(self, task, variables, data, key, count=1):
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(count))
        x = jax.vmap(lambda k: jax.random.normal(k, (task.model.features,)))(keys)
        times = np.round(np.linspace(task.process.last, 0, self.steps + 1))
        ends = times[:-1] - 1 if FAULTY else times[1:]
        return {"coordinates": run(task, variables, x, jnp.float32(times[:-1]), jnp.float32(ends))}


@functools.partial(jax.jit, static_argnums=0)
def run(task, variables, x, times, ends):
    def step(x, pair):
        time, end = pair
        clean = task.denoised(variables, x, time)
        (alpha, sigma), (next_alpha, next_sigma) = map(task.process.coefficients, (time, end))
        return next_alpha * clean + next_sigma * (x - alpha * clean) / sigma, None

    return jax.lax.scan(step, x, (times, ends))[0]
