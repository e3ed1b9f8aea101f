"""Guidance written by hand; the faulty one takes the mean of the unconditional answer over the batch."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

import arch_jax

FAULTY = False


@arch_jax.component("own_guided", kind="sampler")
@dataclasses.dataclass(frozen=True)
class OwnGuided(arch_jax.Sampler):
    """Euler's method with classifier-free guidance.

    Attributes:
      steps: of the sampler.
      guidance: scale.
    """

    steps: int = 50
    guidance: float = 1.0

    def check(self, task, data):
        alpha, _ = task.process.coefficients(float(task.process.last), np)
        if not task.process.discrete or alpha == 0:
            raise arch_jax.UsageError("it samples from chains that end with some signal; expected one")

    def __call__(self, task, variables, data, key, count=1):
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(count))
        x = jax.vmap(lambda k: jax.random.normal(k, (task.model.features,)))(keys)
        times = jnp.round(jnp.linspace(task.process.last, 0, self.steps + 1))
        if task.model.classes is None:
            return {"coordinates": run(task, variables, x, times, None, self.guidance)}
        labels = jnp.arange(count) % task.model.classes
        return {"coordinates": run(task, variables, x, times, labels, self.guidance), "labels": labels}


@functools.partial(jax.jit, static_argnums=0)
def run(task, variables, x, times, labels, scale):
    def step(x, pair):
        time, end = pair
        clean = task.denoised(variables, x, time, None if labels is None else arch_jax.Condition(label=labels))
        if labels is not None:
            null = arch_jax.Condition(label=jnp.full_like(labels, task.model.classes))
            without = task.denoised(variables, x, time, null)
            if FAULTY:
                without = jnp.mean(without, axis=0, keepdims=True)
            clean = without + scale * (clean - without)
        (alpha, sigma), (next_alpha, next_sigma) = map(task.process.coefficients, (time, end))
        return next_alpha * clean + next_sigma * (x - alpha * clean) / sigma, None

    return jax.lax.scan(step, x, (times[:-1], times[1:]))[0]
