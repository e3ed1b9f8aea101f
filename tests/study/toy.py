"""A person's experiment file for the tests of studies: small, quick to compile, with axes of every kind.

SECONDS_PER_STEP makes it slow enough to be killed.
"""

import dataclasses
import os
import time
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

import arch_jax
from arch_jax.objectives.base import ObjectiveBase


@arch_jax.component("study_tanh", kind="study_activation")
@dataclasses.dataclass(frozen=True)
class Tanh:
    """An activation as a part of its own."""

    def __call__(self, x):
        return jnp.tanh(x)


@arch_jax.component("study_renamed_tanh", kind="study_activation")
@dataclasses.dataclass(frozen=True)
class RenamedTanh(Tanh):
    """The same under another name: a variant that does nothing."""


@arch_jax.component("study_nothing", kind="study_activation")
@dataclasses.dataclass(frozen=True)
class Nothing(Tanh):
    """No activation: what is left is a line."""

    def __call__(self, x):
        return x


@arch_jax.component("study_net", kind="model")
class Net(nn.Module):
    """`depth` hidden layers and an output."""

    width: int = 16
    depth: int = 1
    activation: Tanh = Tanh()

    @nn.compact
    def __call__(self, x, train: bool = False):
        for i in range(self.depth):
            x = self.activation(nn.Dense(self.width, name=f"hidden_{i}")(x))
        return nn.Dense(1, name="output")(x)[:, 0]


@arch_jax.component("study_squares", kind="objective")
@dataclasses.dataclass(frozen=True)
class Squares(ObjectiveBase):
    """Squared error."""

    def arguments(self, batch):
        return (batch["x"],)

    def loss(self, player, phase, variables, batch, key, step):
        y, updates = self.apply(variables, batch["x"], key=key)
        loss = jnp.sum(jnp.square(y - batch["y"])), jnp.float32(y.size)
        return loss, ({"loss": loss}, updates)

    def evaluate(self, variables, batch):
        error = self.model.apply(variables, batch["x"]) - batch["y"]
        return {
            "loss": (jnp.sum(jnp.square(error)), jnp.float32(error.size)),
            "worst": (jnp.max(jnp.abs(error)), jnp.float32(1)),
        }


class Endless:
    """An endless stream, another for each seed."""

    def __init__(self, data, seed):
        self.data, self.seed, self.taken = data, seed, 0

    def __next__(self):
        self.taken += 1
        time.sleep(float(os.environ.get("SECONDS_PER_STEP", 0)))
        return self.data.numbers(1 + self.seed, self.taken)

    def get_state(self):
        return {"taken": self.taken}

    def set_state(self, state):
        self.taken = state["taken"]


@arch_jax.component("study_waves", kind="data")
@dataclasses.dataclass(frozen=True)
class Waves:
    """Points of a wave, with noise."""

    batch: int = 32
    source: str = "waves"

    facts: ClassVar = {"sha256": "waves"}
    unit: ClassVar = "points"

    def load(self):
        return self

    @property
    def shapes(self):
        return {"x": ((self.batch, 2), "float32"), "y": ((self.batch,), "float32")}

    @property
    def units_per_batch(self):
        return self.batch

    def numbers(self, *seed):
        generator = np.random.default_rng(seed)
        x = generator.normal(size=(self.batch, 2)).astype(np.float32)
        noise = 0.1 * generator.normal(size=self.batch)
        return {"x": x, "y": (np.sin(3 * x[:, 0]) + noise).astype(np.float32)}

    def train(self, seed, shard=(0, 1)):
        return Endless(self, seed)

    def validation(self):
        return [self.numbers(0, n) for n in range(4)]


published = (arch_jax.Published(0.5, "nobody's paper, table 1", tolerance=0.2, unit="squares"),)


def config() -> arch_jax.Experiment:
    """40 steps."""
    return arch_jax.Experiment(
        model=Net(),
        objective=Squares(),
        data=Waves(),
        optimizer=arch_jax.Optimizer("adam", learning_rate=1e-2, schedule="constant"),
        steps=40,
        evaluate_every=10,
        checkpoint_every=10,
        steps_per_dispatch=5,
    )


def ablate_width():
    """The baseline's own is among them."""
    for width in (4, 16):
        yield {"model.width": width}


def ablate_rate():
    """Numbers alone: one compilation."""
    for rate in (1e-3, 3e-3):
        yield {"optimizer.learning_rate": rate}


def ablate_activation():
    """One that does nothing, and one that harms."""
    yield {"model.activation": RenamedTanh()}
    yield {"model.activation": Nothing()}


def ablate_broken():
    """One that diverges."""
    yield {"optimizer.learning_rate": 1e30, "optimizer.clip": None}


def ablate_idle():
    """Nothing at all."""
    yield {"model.width": 16}
