"""DDIM by a loop over the chain; the faulty one calls the network at every step of the chain."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

import arch_jax

FAULTY = False


@arch_jax.component("many_calls", kind="sampler")
@dataclasses.dataclass(frozen=True)
class ManyCalls(arch_jax.Sampler):
    """DDIM at `steps` steps of a chain.

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
        calls = int(task.process.last) if FAULTY else self.steps
        times = np.round(np.linspace(task.process.last, 0, calls + 1))
        return {"coordinates": run(task, variables, x, jnp.float32(times))}


@functools.partial(jax.jit, static_argnums=0)
def run(task, variables, x, times):
    def step(x, pair):
        time, end = pair
        clean = task.denoised(variables, x, time)
        (alpha, sigma), (next_alpha, next_sigma) = map(task.process.coefficients, (time, end))
        return next_alpha * clean + next_sigma * (x - alpha * clean) / sigma, None

    return jax.lax.scan(step, x, (times[:-1], times[1:]))[0]
