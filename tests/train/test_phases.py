"""What adversarial and consistency training need of a step: phases, the step's number, rules for collections."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import arch_jax
from arch_jax.errors import UsageError
from arch_jax.layers import collections, norms
from arch_jax.objectives.base import ObjectiveBase, Phase, Player
from arch_jax.train.state import initial_state
from arch_jax.train.step import make_program, make_step

RATE = 0.25
collections.declare("test_phases_counts", devices="sum")
collections.declare("test_phases_followed", average="average", devices="replicate")


@arch_jax.component("test_phases_net", kind="model")
class Net(nn.Module):
    """Three numbers of their own, and two collections: a count of rows, and twice the first number."""

    @nn.compact
    def __call__(self, x):
        a, b, c = (self.param(name, nn.initializers.ones, ()) for name in "abc")
        count = self.variable("test_phases_counts", "rows", jnp.zeros, ())
        followed = self.variable("test_phases_followed", "twice", jnp.zeros, ())
        if not self.is_initializing() and self.is_mutable_collection("test_phases_counts"):
            count.value = count.value + len(x)
            followed.value = 2 * a
        return a, b, c


@arch_jax.component("test_phases_objective", kind="objective")
@dataclasses.dataclass(frozen=True)
class Phased(ObjectiveBase):
    """The first player owns a and c: pulled to the step's number, and c to 0 in every third step. The second owns b."""

    @property
    def players(self):
        return Player("first", ("a", "c"), phases=(Phase(), Phase("lazy", every=3))), Player("second", ("b",), every=2)

    def arguments(self, batch):
        return (batch["x"],)

    def loss(self, player, phase, variables, batch, key, step):
        others = [kind for kind in variables if kind != "params"]
        (a, b, c), updates = self.model.apply(variables, batch["x"], mutable=others)
        rows = jnp.float32(len(batch["x"]))
        value = {"main": 0.5 * (a - step) ** 2, "lazy": 0.5 * c**2}[phase] if player == "first" else 0.5 * b**2
        loss = (rows * value, rows)
        return loss, ({"loss": loss, "told": (step * rows, rows)}, updates if player == "first" else {})

    def evaluate(self, variables, batch):
        return {"loss": (variables["params"]["a"], jnp.float32(1))}


BATCH = {"x": jnp.zeros((4, 1))}


def run(**changes):
    rate = arch_jax.Optimizer("sgd", learning_rate=RATE, schedule="constant", b1=0.0, clip=None)
    return arch_jax.Experiment(Net(), Phased(), data=None, optimizer=(rate, rate), steps=7, **changes)


def trained(experiment, steps):
    state = jax.jit(lambda b: initial_state(experiment, b))(BATCH)
    step, told = jax.jit(make_step(experiment)), []
    for _ in range(steps):
        state, metrics = step(state, BATCH)
        told.append(jax.device_get(metrics))
    return state, told


@pytest.mark.parametrize("accumulate", [1, 2])
def test_phases_and_players_take_their_turns(accumulate):
    """The reference is plain arithmetic: gradient descent on each number in the steps in which it is asked for."""
    state, told = trained(run(accumulate=accumulate), 7)
    a = b = c = 1.0
    for n, metrics in enumerate(told):
        assert metrics["first/told"][0] / metrics["first/told"][1] == n, "the step's number, not the micro-batch's"
        np.testing.assert_allclose(metrics["first/loss"][0] / 4, 0.5 * (a - n) ** 2, rtol=1e-6)
        a -= RATE * (a - n)
        if n % 3 == 0:
            np.testing.assert_allclose(metrics["first/lazy/loss"][0] / 4, 0.5 * c**2, rtol=1e-6)
            c -= RATE * c
        else:
            assert [pair[1] for name, pair in metrics.items() if "lazy" in name] == [0, 0, 0]
        assert metrics["second/loss"][1] == (0 if n % 2 else 4)
        b -= 0 if n % 2 else RATE * b
        assert all(np.isfinite(pair).all() for pair in metrics.values())
    found = state.variables["params"]
    np.testing.assert_allclose([found[name] for name in "abc"], [a, b, c], rtol=1e-6)


def test_one_program_takes_them_too():
    """Seven steps of the compiled program, and the same as four and three."""
    experiment = run()
    state = jax.jit(lambda b: initial_state(experiment, b))(BATCH)
    batches = jax.tree.map(lambda x: jnp.stack([x] * 7), BATCH)
    program = jax.jit(make_program(experiment))
    whole, _ = program(state, batches, 7)
    half, _ = program(state, batches, 4)
    both, _ = program(half, batches, 3)
    for name in ("parameters", "others", "optimizer"):
        jax.tree.map(np.testing.assert_array_equal, getattr(whole, name), getattr(both, name))


def test_a_moving_average_of_what_is_declared_so():
    experiment = run(ema=0.5, ema_warmup=False)
    state, _ = trained(experiment, 3)
    a, average, followed = 1.0, 1.0, 0.0
    for n in range(3):
        before = a
        a -= RATE * (a - n)
        average = 0.5 * average + 0.5 * a
        twice = 2 * (a if n % 3 == 0 else before)  # the lazy phase looks at the model again, after the main one
        followed = 0.5 * followed + 0.5 * twice
    evaluated = state.evaluated
    np.testing.assert_allclose(evaluated["params"]["a"], average, rtol=1e-6)
    np.testing.assert_allclose(evaluated["test_phases_followed"]["twice"], followed, rtol=1e-6)
    # A count is what it is: three main phases, and the lazy one of step 0.
    assert evaluated["test_phases_counts"]["rows"] == state.others["test_phases_counts"]["rows"] == 4 * 4


def test_devices_by_rule():
    """Under a mapped axis, as `pmap` has it: means, sums of changes, and values of one's own."""
    kinds = ("batch_stats", "test_phases_counts", "test_phases_followed")
    before = dict(zip(kinds, map(jnp.float32, (1, 10, 0))))
    after = dict(zip(kinds, map(jnp.array, ([1.0, 3.0], [12.0, 13.0], [5.0, 5.0]))))
    found = jax.vmap(lambda a: collections.over_devices(before, a, "devices"), axis_name="devices")(after)
    np.testing.assert_array_equal(found["batch_stats"], [2, 2])
    np.testing.assert_array_equal(found["test_phases_counts"], [15, 15])
    np.testing.assert_array_equal(found["test_phases_followed"], [5, 5])


def test_rules_are_said_once():
    assert norms.BatchNorm()  # whose file says it first
    with pytest.raises(UsageError, match=r"'batch_stats' is declared as .* already"):
        collections.declare("batch_stats", devices="sum")
    with pytest.raises(UsageError, match="unknown rule devices 'means'; the nearest is 'mean'"):
        collections.declare("test_phases_new", devices="means")
