"""The contract of every registered model: a new one is tested by being registered.

Published sizes are checked abstractly, by name; each architecture is run once for real, at `entry.tiny()`.
"""

import dataclasses
import functools
import re

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax import describe, fields, registry
from arch_jax.experiment import Experiment, import_asked_for, import_components
from arch_jax.flops import count_flops
from arch_jax.objectives import objective
from arch_jax.optimizer import Optimizer
from arch_jax.train.checkpointing.checkpoint import Checkpoints
from arch_jax.train.state import initial_state
from arch_jax.train.step import make_program, make_step

import_components()
import_asked_for()
ENTRIES = dict(registry.models())
ARCHITECTURES = {entry.architecture: entry for entry in reversed(ENTRIES.values())}
every_name = pytest.mark.parametrize("name", ENTRIES)
every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)


class Tiny:
    """One architecture at its tiny size, with everything that several tests look at computed once."""

    def __init__(self, name: str) -> None:
        self.entry = ARCHITECTURES[name]
        self.module = self.entry.tiny()
        self.inputs = self.entry.inputs.resized(self.module)
        self.batch = self.inputs.batch(self.module, 3, jax.random.key(0))
        self.arguments = self.entry.arguments(self.batch)
        self.variables = jax.jit(self.module.init)(jax.random.key(1), *self.arguments)
        self.apply = jax.jit(self.module.apply)
        self.task = objective(self.entry.objective).with_model(self.module)

    @functools.cached_property
    def outputs(self):
        return self.apply(self.variables, *self.arguments)

    @functools.cached_property
    def experiment(self) -> Experiment:
        """A run of this architecture; the data is not read."""
        optimizer = Optimizer("adamw", learning_rate=3e-3, schedule="constant")
        return Experiment(self.module, objective(self.entry.objective), data=None, optimizer=optimizer, steps=3)

    def gradients(self, variables):
        """The gradient of the sum of all players' losses."""

        def loss(params):
            parts = [
                self.task.loss(player.name, "main", {**variables, "params": params}, self.batch, jax.random.key(2), 0)
                for player in self.task.players
            ]
            return sum(value / weight for (value, weight), _ in parts)

        return jax.jit(jax.value_and_grad(loss))(variables["params"])


@functools.cache
def tiny(name: str) -> Tiny:
    return Tiny(name)


def paths(tree):
    """Path -> leaf, with paths as people write them."""
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {"/".join(str(getattr(key, "key", key)) for key in path): leaf for path, leaf in flat}


@every_name
def test_parameter_count_is_the_published_one(name):
    entry = ENTRIES[name]
    if entry.parameters is None:
        pytest.skip(f"no count was published for {name}")
    assert entry.count() == entry.parameters


@every_name
def test_facts_are_given(name):
    entry = ENTRIES[name]
    assert entry.paper.title
    assert 1940 < entry.paper.year < 2100
    assert entry.paper.arxiv or entry.paper.url
    assert entry.reference
    assert objective(entry.objective)
    assert (entry.build.__doc__ or "").strip(), "a variant's function says what it is"


@every_name
def test_module_is_its_fields(name):
    """Equal, hashable and the same through JSON: nothing about a model hides outside its fields."""
    module = ENTRIES[name].build()
    again = fields.from_json(fields.to_json(module))
    assert again == module
    assert hash(again) == hash(module)
    assert module == ENTRIES[name].build()


@every_architecture
def test_outputs_and_gradients_are_finite(name):
    chex.assert_tree_all_finite(tiny(name).outputs)
    loss, gradients = tiny(name).gradients(tiny(name).variables)
    assert np.isfinite(loss)
    chex.assert_tree_all_finite(gradients)


@every_architecture
def test_every_parameter_has_a_gradient(name):
    """Away from the initial point, whose zeros may hide a path. Exceptions are mathematics, declared with a reason."""
    it = tiny(name)
    leaves, structure = jax.tree.flatten(it.variables["params"])
    keys = jax.random.split(jax.random.key(3), len(leaves))
    noisy = [leaf + 0.3 * jax.random.normal(key, leaf.shape, leaf.dtype) for leaf, key in zip(leaves, keys)]
    _, gradients = it.gradients({**it.variables, "params": jax.tree.unflatten(structure, noisy)})
    largest = {path: float(jnp.max(jnp.abs(leaf))) for path, leaf in paths(gradients).items()}
    without = {path for path in largest if any(re.search(p, path) for p in it.entry.no_gradient)}
    for pattern in it.entry.no_gradient:
        assert any(re.search(pattern, path) for path in largest), f"{pattern} matches no parameter"
    scale = max(largest.values())
    assert not [path for path, size in largest.items() if path not in without and size < 1e-7 * scale]
    assert not [path for path in without if largest[path] > 1e-5 * scale], "declared without gradient, but has one"


@every_architecture
def test_layers_differ_at_initialisation(name):
    """Equal keys for every block would start all layers the same."""
    leaves = paths(tiny(name).variables["params"])
    # What no key decides (HiPPO's matrix, S4D-Real) starts alike in all layers: so the papers have it.
    others = paths(jax.jit(tiny(name).module.init)(jax.random.key(9), *tiny(name).arguments)["params"])
    leaves = {path: leaf for path, leaf in leaves.items() if not np.array_equal(leaf, others[path])}
    layers = {p: np.asarray(leaf) for p, leaf in leaves.items() if "/layers/" in f"/{p}/"}  # scanned: on one axis
    for path in [p for p in leaves if "/layer_0/" in f"/{p}/"]:  # unrolled: beside one another
        other = path.replace("layer_0", "layer_1")
        if other in leaves:
            layers[path] = np.stack([leaves[path], leaves[other]])
    if getattr(tiny(name).module, "depth", 1) > 1:
        assert layers, "repeated layers were not found"
    for path, leaf in layers.items():
        if leaf.shape[0] > 1 and leaf[0].std() > 0:
            assert not np.allclose(leaf[0], leaf[1]), path
            assert abs(np.corrcoef(leaf[0].ravel(), leaf[1].ravel())[0, 1]) < 0.5 or leaf[0].size < 32, path


@every_architecture
def test_depth_adds_parameters(name):
    """One instance called twice, or standing twice in a tuple, would share its parameters."""
    it = tiny(name)
    if not hasattr(it.module, "depth"):
        pytest.skip(f"{name} has no depth")
    turn = getattr(it.module, "turn", 1)  # the layers of a pattern may differ in size
    depths = [turn * n for n in (1, 2, 3, 4)]
    counts = [registry.count(it.entry.abstract_variables(it.module.clone(depth=d))["params"]) for d in depths]
    assert counts[1] > counts[0]
    assert len(set(np.diff(counts))) == 1, counts


@every_architecture
def test_jit_equals_eager(name):
    it = tiny(name)
    chex.assert_trees_all_close(it.outputs, it.module.apply(it.variables, *it.arguments), atol=2e-6, rtol=2e-5)


@every_architecture
def test_vmap_over_seeds(name):
    it = tiny(name)
    keys = jax.random.split(jax.random.key(4), 2)
    stacked = jax.vmap(lambda key: it.module.init(key, *it.arguments))(keys)
    together = jax.jit(jax.vmap(lambda v: it.module.apply(v, *it.arguments)))(stacked)
    for i in range(2):
        alone = it.apply(jax.tree.map(lambda x, i=i: x[i], stacked), *it.arguments)
        chex.assert_trees_all_close(jax.tree.map(lambda x, i=i: x[i], together), alone, atol=2e-6, rtol=2e-5)


@every_architecture
def test_batch_permutation(name):
    """Examples don't see each other."""
    it = tiny(name)
    if it.entry.couples_examples:
        pytest.skip("the paper couples the examples of a batch")
    batch, order = it.inputs.permuted(it.batch, jax.random.key(5))
    permuted = it.apply(it.variables, *it.entry.arguments(batch))
    chex.assert_trees_all_close(permuted, jax.tree.map(lambda x: x[order], it.outputs), atol=2e-6, rtol=2e-5)


@every_architecture
def test_bfloat16_stays_near_float32(name):
    it = tiny(name)
    half = it.module.clone(dtype=jnp.bfloat16)
    outputs = jax.jit(half.apply)(it.variables, *it.arguments)
    for exact, rough in zip(jax.tree.leaves(it.outputs), jax.tree.leaves(outputs)):
        assert rough.dtype == jnp.bfloat16
        # bfloat16 has 8 bits: half a percent a step, over the few steps of a tiny model.
        error = jnp.linalg.norm(rough.astype(jnp.float32) - exact) / jnp.linalg.norm(exact)
        assert error < 0.03, error


@every_architecture
def test_train_step(name):
    """The named objective's step runs, changes every player's parameters, and its loss falls on one batch."""
    it = tiny(name)
    state = jax.jit(lambda b: initial_state(it.experiment, b))(it.batch)
    step = jax.jit(make_step(it.experiment))
    before, losses = state, []
    for _ in range(6):
        state, metrics = step(state, it.batch)
        chex.assert_tree_all_finite(metrics)
        losses.append(sum(float(s / w) for n, (s, w) in metrics.items() if n.endswith("loss") and w))
    assert int(state.step) == 6
    changed = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), before.parameters, state.parameters)
    for player, tree in changed.items():
        flags = paths(tree)
        still = [p for p, c in flags.items() if not c and not any(re.search(x, p) for x in it.entry.no_gradient)]
        assert not still, (player, still)
    if len(it.task.players) == 1:
        assert losses[-1] < losses[0]


@every_architecture
def test_variables_survive_save_and_restore(name, tmp_path):
    it = tiny(name)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(1, it.variables)
        checkpoints.wait()
        _, restored = checkpoints.restore(jax.eval_shape(lambda: it.variables))
    chex.assert_trees_all_equal(restored, it.variables)


@every_architecture
def test_train_step_lowers_for_a_tpu(name):
    """Catches what a TPU can't take (block shapes of kernels, unsupported primitives) without one."""
    it = tiny(name)
    state = jax.eval_shape(lambda b: initial_state(it.experiment, b), it.batch)
    batches = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2, *x.shape), x.dtype), it.batch)
    count = jax.ShapeDtypeStruct((), "int32")
    traced = jax.jit(make_program(it.experiment), donate_argnums=0).trace(state, batches, count)
    assert "stablehlo" in traced.lower(lowering_platforms=("tpu",)).as_text()


@every_architecture
def test_description_adds_up(name):
    """The table of layers accounts for every parameter, and the cost does not depend on scanning."""
    it = tiny(name)
    # A graph network's first layer is as wide as its inputs: those of the tiny one.
    rows = describe.layers(it.module, dataclasses.replace(it.entry, inputs=it.inputs))
    assert sum(row.count for row in rows) == registry.count(it.variables["params"])
    assert all(row.kind for row in rows if row.count)
    if getattr(it.module, "scan", False) is True:
        flat = it.module.clone(scan=False)
        abstract = it.entry.abstract_variables(flat)
        costs = [
            count_flops(m.apply, v, *it.arguments).products for m, v in ((it.module, it.variables), (flat, abstract))
        ]
        assert costs[0] == costs[1] > 0


@every_architecture
def test_every_field_has_a_meaning(name):
    module = tiny(name).module
    for path, _ in fields.walk(module):
        assert describe._meaning(module, path), f"{path} is not explained in its class's docstring"


def test_every_module_part_is_a_linen_module():
    for name, cls in fields.components("mixer").items():
        assert issubclass(cls, nn.Module), name
