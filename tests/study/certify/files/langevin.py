"""Langevin dynamics at a low noise level; the noise of the faulty one does not know the temperature."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

import arch_jax

FAULTY = False


@arch_jax.component("langevin", kind="sampler")
@dataclasses.dataclass(frozen=True)
class Langevin(arch_jax.Sampler):
    """x + step / 2 score + sqrt(step T) z, for the law p^(1 / T).

    Attributes:
      temperature: T.
      moves: calls of the score.
      size: of a step.
    """

    temperature: float = 1.0
    moves: int = 2000
    size: float = 0.004

    def __call__(self, task, variables, data, key, count=1):
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(count))
        time = jnp.float32(task.process.time_of(0.02))
        return {"coordinates": run(task, self.moves, variables, keys, time, self.size, self.temperature)}


@functools.partial(jax.jit, static_argnums=(0, 1))
def run(task, moves, variables, keys, time, size, temperature):
    normal = lambda n: jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, n), (task.model.features,)))(keys)
    alpha, sigma = task.process.coefficients(time)

    def step(x, n):
        score = (alpha * task.denoised(variables, x, time) - x) / sigma**2
        spread = jnp.sqrt(size if FAULTY else size * temperature)
        return x + size / 2 * score + spread * normal(n), None

    return jax.lax.scan(step, normal(moves), jnp.arange(moves))[0] / alpha
