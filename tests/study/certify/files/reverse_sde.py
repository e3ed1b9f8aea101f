"""The reverse variance exploding SDE by Euler and Maruyama; the faulty one has no d sigma^2 / dt."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

import arch_jax

FAULTY = False


@arch_jax.component("reverse_sde", kind="sampler")
@dataclasses.dataclass(frozen=True)
class ReverseSDE(arch_jax.Sampler):
    """dx = -(d sigma^2 / dt) score dt + sqrt(d sigma^2 / dt) dw, backwards from t = 1.

    Attributes:
      grain: parts of the time.
    """

    grain: int = 1000

    def check(self, task, data):
        if type(task.process).__name__ != "VarianceExploding":
            raise arch_jax.UsageError("it samples from variance exploding processes; expected one")

    def __call__(self, task, variables, data, key, count=1):
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(count))
        return {"coordinates": run(task, self.grain, variables, keys)}


@functools.partial(jax.jit, static_argnums=(0, 1))
def run(task, grain, variables, keys):
    normal = lambda n: jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, n), (task.model.features,)))(keys)
    times = jnp.linspace(1.0, 0.0, grain + 1)[:-1]

    def step(x, n):
        time, dt = times[n], 1.0 / grain
        sigma = task.process.coefficients(time)[1]
        rate = 1.0 if FAULTY else 2 * sigma**2 * jnp.log(task.process.largest / task.process.smallest)
        score = (task.denoised(variables, x, time) - x) / sigma**2
        return x + rate * score * dt + jnp.sqrt(rate * dt) * normal(n), None

    x = task.process.largest * normal(grain)
    return jax.lax.scan(step, x, jnp.arange(grain))[0]
