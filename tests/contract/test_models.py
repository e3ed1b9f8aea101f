"""The contract of every registered model: a new one is tested by being registered.

Published sizes are checked abstractly, by name; each architecture is run once for real, at `entry.tiny()`.
"""

import dataclasses
import functools
import importlib.util
import itertools
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from arch_jax import catalogue, describe, fields, registry
from arch_jax.experiment import Experiment, import_asked_for, import_components
from arch_jax.flops import count_flops
from arch_jax.objectives import objective
from arch_jax.optimizer import Optimizer
from arch_jax.protocols import takes_state
from arch_jax.train.checkpointing.checkpoint import Checkpoints
from arch_jax.train.state import initial_state
from arch_jax.train.step import make_program
from tests.contract.on_two_devices import halves

import_components()
import_asked_for()
ENTRIES = dict(registry.models())
LIBTPU = "ARCH_JAX_LIBTPU" in os.environ or importlib.util.find_spec("libtpu") is not None
STORED = {facts.name: facts.parameters for facts in catalogue.stored()}
ARCHITECTURES = {entry.architecture: entry for entry in reversed(ENTRIES.values())}
SCRIPT = Path(__file__).with_name("on_two_devices.py")
pytestmark = pytest.mark.usefixtures("drawn_quickly")
every_name = pytest.mark.parametrize("name", ENTRIES)
thorough = pytest.mark.thorough
#: Run for real in the quick tier: one architecture of each family, and those that the catalogue doesn't have yet.
QUICK = {entry.family: name for name, entry in reversed(ARCHITECTURES.items())}.values()
QUICK = {*QUICK, *(name for name, entry in ARCHITECTURES.items() if entry.name not in STORED)}
every_architecture = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else thorough) for name in ARCHITECTURES]
)
#: Where nothing is run: all of them in the quick tier.
every_architecture_abstractly = pytest.mark.parametrize("name", ARCHITECTURES)


#: The first architecture of each family that is scanned where it is published.
FIRST_SCANNED = {
    entry.family: name for name, entry in reversed(ARCHITECTURES.items()) if getattr(entry.build(), "scan", 0) is True
}.values()

#: Rows of a batch: as many on each of two devices.
ROWS = 4
#: Of two initialisations side by side; the first is the one that is trained.
SEEDS = np.array([0, 9], np.uint32)
#: Odd: as many signs up as down would bring a parameter back to where it began.
STEPS = 5


def when(name: str) -> list:
    """The quick suite counts each architecture once at a published size: tracing a large model may take seconds."""
    return [pytest.mark.thorough] if ARCHITECTURES[ENTRIES[name].architecture].name != name else []


class Tiny:
    """One architecture at its tiny size: each of its programs is compiled once, for all tests.

    Those are three, `begin`, `forward` and `steps`; thorough tests have some of their own. What they give lies on the
    host, where arithmetic compiles nothing.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.entry = ARCHITECTURES[name]
        self.module = self.entry.tiny()
        self.inputs = self.entry.inputs.resized(self.module)
        self.task = objective(self.entry.objective).with_model(self.module)
        # Its first step is Adam's, a sign; with one moment a parameter it is compiled in four fifths of the time.
        optimizer = Optimizer("lion", learning_rate=3e-3, schedule="constant")
        #: A run of this architecture; the data is not read.
        self.experiment = Experiment(self.module, objective(self.entry.objective), None, optimizer, steps=STEPS)
        begin = jax.jit(self._begin)
        (self.batch, self.permuted, self.order, first), (*_, second) = (on_host(begin(seed)) for seed in SEEDS)
        self.begun = jax.tree.map(lambda *leaves: np.stack(leaves), first, second)
        self.arguments = self.entry.arguments(self.batch)
        self.variables = self.state(0).variables
        self.forward = jax.jit(self._forward)

    def _begin(self, seed):
        """A batch and the same in another order, which are those of any seed, and the state before the first step."""
        batch = self.inputs.batch(self.module, ROWS, jax.random.key(0))
        state = with_key_data(initial_state(self.experiment, batch, seed))
        return batch, *self.inputs.permuted(batch, jax.random.key(5)), state

    def _forward(self, variables, batch):
        """The model's outputs, and the metrics of a validation batch: a compiler sees what the two have in common."""
        return self.module.apply(variables, *self.entry.arguments(batch)), self.task.evaluate(variables, batch)

    def state(self, i: int):
        """The state before the first step from one of `SEEDS`."""
        return jax.tree.map(lambda x: x[i], self.begun)

    @functools.cached_property
    def outputs(self):
        """What the model gives for the batch; and the validation's metrics, of which every draw is fixed."""
        return on_host(self.forward(self.variables, self.batch))

    @functools.cached_property
    def live(self):
        """Variables for which the outputs are not about 0, and those outputs.

        The initial ones; with noise on them for a denoiser, which starts at 0, of which everything would be true.
        """
        if max(np.abs(leaf).max() for leaf in jax.tree.leaves(self.outputs[0])) > 1e-3:
            return self.variables, self.outputs[0]
        rng = np.random.default_rng(4)
        noise = lambda leaf: (leaf + 0.1 * rng.normal(size=leaf.shape)).astype(leaf.dtype)
        variables = {**self.variables, "params": jax.tree.map(noise, self.variables["params"])}
        return variables, on_host(self.forward(variables, self.batch))[0]

    @functools.cached_property
    def traced(self):
        """The train program for `STEPS` batches, as `arch-jax train` makes it."""
        program = jax.jit(make_program(self.experiment), donate_argnums=0)
        return program.trace(with_key(self.state(0)), self._batches, np.int32(1))

    @functools.cached_property
    def compiled(self):
        return self.traced.lower().compile()

    @property
    def _batches(self):
        return jax.tree.map(lambda x: np.stack([x] * STEPS), self.batch)

    def steps(self, state, count: int, batch=None):
        """The state after some steps on the one batch, or on another of its shapes, and their metrics, one a step."""
        batches = self._batches if batch is None else jax.tree.map(lambda x: np.stack([x] * STEPS), batch)
        state, metrics = self.compiled(with_key(state), batches, np.int32(count))
        return on_host(with_key_data(state)), jax.tree.map(lambda x: np.asarray(x)[:count], metrics)

    @functools.cached_property
    def first(self):
        """The state after one step, and its metrics."""
        return self.steps(self.state(0), 1)


def on_host(tree):
    """The tree with numpy's arrays."""
    return jax.tree.map(np.asarray, jax.device_get(tree))


def with_key_data(state):
    """The state with its random key as numbers, which can lie on the host."""
    return state.replace(key=jax.random.key_data(state.key))


def with_key(state):
    """The state with a random key for its steps."""
    return state.replace(key=jax.random.wrap_key_data(state.key))


def gradients(state):
    """The gradient that each player's first step followed, as path -> array: the optimizer's moments after it."""
    moments = optax.tree_utils.tree_get_all_with_path(state.optimizer, "mu")
    found = [paths(tree) for _, tree in moments]
    return {path: leaf for tree in found for path, leaf in tree.items()}


@functools.lru_cache(1)  # the tests of one architecture stand next to each other (conftest.py)
def tiny(name: str) -> Tiny:
    return Tiny(name)


def paths(tree):
    """Path -> leaf, with paths as people write them."""
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {"/".join(str(getattr(key, "key", key)) for key in path): leaf for path, leaf in flat}


@pytest.mark.parametrize("name", [pytest.param(name, marks=when(name)) for name in ENTRIES])
def test_parameter_count_is_the_published_one(name):
    """And the one that the catalogue stores, where none was published too."""
    entry = ENTRIES[name]
    counted = entry.count()
    assert entry.parameters in (None, counted)
    if name in STORED:  # not a model of one's own
        assert counted == STORED[name], "python -m arch_jax.catalogue writes it anew"


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
def test_tiny_form_is_built(name):
    """By every name, since checks of variants other than an architecture's first ask for it too."""
    entry = ENTRIES[name]
    tiny, first = entry.tiny(), ARCHITECTURES[entry.architecture].tiny()
    assert type(tiny) is type(first)
    assert fields.from_json(fields.to_json(tiny)) == tiny


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
    assert_finite(tiny(name).outputs)
    state, metrics = tiny(name).first
    assert_finite(metrics)
    assert_finite(gradients(state))


def assert_finite(tree):
    for path, leaf in paths(tree).items():
        assert np.all(np.isfinite(leaf)), path


@every_architecture
def test_every_parameter_has_a_gradient(name):
    """Away from the initial point, whose zeros may hide a path. Exceptions are mathematics, declared with a reason."""
    it = tiny(name)
    rng = np.random.default_rng(3)
    noise = lambda leaf: (leaf + 0.3 * rng.normal(size=leaf.shape)).astype(leaf.dtype)
    state = it.state(0)
    found = gradients(it.steps(state.replace(parameters=jax.tree.map(noise, state.parameters)), 1)[0])
    assert set(found) == set(paths(it.variables["params"]))
    largest = {path: float(np.max(np.abs(leaf))) for path, leaf in found.items()}
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
    others = paths(tiny(name).state(1).variables["params"])
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
    depths = [turn * n for n in (1, 2, 3)]
    known = {it.module.depth: it.variables}
    at = lambda depth: known.get(depth) or it.entry.abstract_variables(it.module.clone(depth=depth))
    counts = [registry.count(at(depth)["params"]) for depth in depths]
    assert counts[1] > counts[0]
    assert len(set(np.diff(counts))) == 1, counts


@pytest.mark.parametrize("name", sorted(QUICK))
@pytest.mark.thorough
def test_nothing_is_remembered(name):
    """Traced again, it is the same program. (No module can tell whether it is traced: test_house.py.)"""
    it = tiny(name)
    programs = [jax.make_jaxpr(lambda *given: it.module.apply(*given))(it.variables, *it.arguments) for _ in range(2)]
    first, second = (re.sub(r" at 0x[0-9a-f]+", "", str(program)) for program in programs)
    assert first == second


@pytest.mark.parametrize("name", sorted(QUICK))
@pytest.mark.thorough  # a program for each of its operations
def test_jit_equals_eager(name):
    """Operation by operation it gives the numbers of the whole program."""
    it = tiny(name)
    variables, outputs = it.live
    eager = it.module.apply(*jax.device_put((variables, *it.arguments)))
    chex.assert_trees_all_close(outputs, on_host(eager), atol=2e-6, rtol=2e-5)


@every_architecture
def test_batch_permutation(name):
    """Examples don't see each other."""
    it = tiny(name)
    if it.entry.couples_examples:
        pytest.skip("the paper couples the examples of a batch")
    variables, outputs = it.live
    permuted, _ = on_host(it.forward(variables, it.permuted))
    expected = jax.tree.map(lambda x: x[it.order], outputs)
    chex.assert_trees_all_close(permuted, expected, atol=2e-6, rtol=2e-5)


@every_architecture
def test_a_token_outside_the_vocabulary_shows(name):
    """NaN in its row, where a table read from its end or clipped would give numbers; and nowhere else."""
    it = tiny(name)
    read = [key for key in ("tokens", "source") if key in it.batch]
    if not read or it.entry.couples_examples:
        pytest.skip("reads no tokens, or couples examples")
    for key, wrong in itertools.product(read, (-1, 2**30)):
        tokens = it.batch[key].copy()
        tokens[0, 0] = wrong
        outputs, _ = on_host(it.forward(it.variables, it.batch | {key: tokens}))
        assert any(np.isnan(leaf[0]).any() for leaf in jax.tree.leaves(outputs))
        assert not any(np.isnan(leaf[1:]).any() for leaf in jax.tree.leaves(outputs))


@every_architecture
def test_what_has_no_weight_enters_no_sum(name):
    """A target of -100 with weight 0, as other libraries mark places: the same loss and gradients as with any other."""
    it = tiny(name)
    key = next((key for key in ("targets", "labels") if key in it.batch), None)
    if key is None or "weights" not in it.batch or it.batch[key].shape != it.batch["weights"].shape:
        pytest.skip("has no targets with weights")
    place = (0, -1) if it.batch[key].ndim == 2 else 0
    found = []
    for target in (0, -100):
        batch = it.batch | {array: it.batch[array].copy() for array in (key, "weights")}
        batch["weights"][place], batch[key][place] = 0, target
        _, metrics = on_host(it.forward(it.variables, batch))
        found.append((metrics, gradients(it.steps(it.state(0), 1, batch)[0])))
    assert_finite(found)
    chex.assert_trees_all_equal(*found)


@every_architecture
@pytest.mark.thorough  # for a decoder a program of its own
def test_what_stands_at_padding_enters_nothing(name):
    """Tokens beyond the vocabulary, or numbers that are none, where a mask or a segment id says that nothing is."""
    it = tiny(name)
    key = next((key for key in ("tokens", "source", "x", "nodes") if key in it.batch), None)
    masks = ("weights",) if key == "nodes" else ("mask", "source_mask", "segment_ids")
    mask = next((name for name in masks if name in it.batch), None)
    if key is None or (mask is None and not takes_state(it.module)):
        pytest.skip("has no padding")
    real = np.ones(it.batch[key].shape[:2], bool) if mask is None else np.asarray(it.batch[mask]) > 0
    if mask is None:
        real[0, -3:] = real[1, :2] = False
    apply = jax.jit(it.module.apply)
    found = []
    for rubbish in (1, 2**30 if it.batch[key].dtype == np.int32 else np.nan):
        given = it.batch[key].copy()
        given[~real] = rubbish
        if mask is None:
            outputs = on_host(apply(it.variables, given, real.astype(np.int32)))
        else:
            outputs = on_host(it.forward(it.variables, it.batch | {key: given})[0])
        at_real = lambda leaf: leaf[real] if leaf.shape[: real.ndim] == real.shape and key != "source" else leaf
        found.append(jax.tree.map(at_real, outputs))
    assert not real.all()
    assert_finite(found)
    chex.assert_trees_all_equal(*found)


@every_architecture_abstractly
def test_bfloat16_gives_bfloat16(name):
    """No layer widens what it is given, by types alone; the numbers are the thorough tier's."""
    half = ARCHITECTURES[name].tiny().clone(dtype=jnp.bfloat16)
    entry = dataclasses.replace(ARCHITECTURES[name], inputs=ARCHITECTURES[name].inputs.resized(half))
    arguments = lambda key: entry.arguments(entry.inputs.batch(half, 1, key))
    apply = lambda variables, key: half.apply(variables, *arguments(key))
    found = jax.eval_shape(apply, entry.abstract_variables(half), jax.random.key(0))
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(found)} == {"bfloat16"}


@every_architecture
@pytest.mark.thorough  # a program of its own
def test_bfloat16_stays_near_float32(name):
    it = tiny(name)
    half = it.module.clone(dtype=jnp.bfloat16)
    variables, exactly = it.live
    outputs = on_host(jax.jit(half.apply)(variables, *it.arguments))
    for exact, rough in zip(jax.tree.leaves(exactly), jax.tree.leaves(outputs), strict=True):
        assert rough.dtype == jnp.bfloat16
        assert rough.shape == exact.shape
        # bfloat16 has 8 bits: half a percent a step, over the few steps of a tiny model.
        error = np.linalg.norm(rough.astype(np.float32) - exact) / np.linalg.norm(exact)
        assert error < 0.03, error


#: What writes to a residual stream: the last layers of its parts.
WRITES = re.compile(r"/(mixer/output|cross/output|feed_forward/down)/kernel$")


@pytest.mark.thorough
@every_architecture
def test_float16_does_not_overflow(name):
    """Nothing that is computed leaves its range; and where there is a residual stream, neither does the sum of what
    all layers give, though it be beyond 65,504."""
    it = tiny(name)
    half = jax.jit(it.module.clone(dtype=jnp.float16).apply)
    variables, _ = it.live
    assert_finite(on_host(half(variables, *it.arguments)))
    loud = traverse_util.flatten_dict(variables, sep="/")
    writes = [path for path in loud if WRITES.search(path)]
    if not writes:
        return
    loud |= {path: 4e4 * loud[path] / (np.abs(loud[path]).max() + 1e-3) for path in writes}
    loud = traverse_util.unflatten_dict(loud, sep="/")
    exact, rough = on_host((it.forward(loud, it.batch)[0], half(loud, *it.arguments)))
    for one, other in zip(jax.tree.leaves(exact), jax.tree.leaves(rough), strict=True):
        assert other.dtype == jnp.float16
        error = np.linalg.norm(other.astype(np.float32) - one) / np.linalg.norm(one)
        assert error < 0.03, error


@every_architecture
def test_train_step(name):
    """The named objective's step runs, changes every player's parameters, and what validation measures falls."""
    it = tiny(name)
    state, metrics = it.steps(it.first[0], STEPS - 1)
    assert_finite(metrics)
    assert int(state.step) == STEPS
    for player, tree in state.parameters.items():
        before = paths(it.begun.parameters[player])
        still = [path for path, leaf in paths(tree).items() if np.array_equal(leaf, before[path][0])]
        still = [path for path in still if not any(re.search(x, path) for x in it.entry.no_gradient)]
        assert not still, (player, still)
    before, after = it.outputs[1], on_host(it.forward(state.variables, it.batch))[1]
    assert_finite(after)
    if len(it.task.players) == 1:  # a game has no loss that both bring down
        loss = lambda metrics: metrics["loss"][0] / metrics["loss"][1]
        assert loss(after) < loss(before)


@pytest.fixture(scope="module")
def two_devices(tmp_path_factory):
    """A process that takes steps on two devices (on_two_devices.py), for one architecture after another."""
    own = {
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(SCRIPT.parents[2]), os.environ.get("PYTHONPATH")])),
    }
    pipe, problems = subprocess.PIPE, tmp_path_factory.mktemp("two_devices") / "problems"
    with problems.open("w") as written:
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT)], env=os.environ | own, stdin=pipe, stdout=pipe, stderr=written, text=True
        )

    given, found = problems.with_name("given"), problems.with_name("found")

    def ask(question: dict, state, batch):
        given.write_bytes(pickle.dumps((state, batch)))
        print(json.dumps(question | {"given": str(given), "found": str(found)}), file=process.stdin, flush=True)
        assert process.stdout.readline(), problems.read_text()[-3000:]
        return pickle.loads(found.read_bytes())

    with process:
        yield ask
        process.stdin.close()


@every_architecture
@pytest.mark.thorough  # a program of its own
def test_vmap_over_seeds_and_pmap_over_a_batch(name, two_devices):
    """In one program; each seed gives each half of the batch what it gives that half alone."""
    it = tiny(name)
    found = two_devices({"what": "outputs", "name": name}, it.begun.variables, it.batch)
    parts = halves(it.entry, it.batch)
    apply = jax.jit(it.module.apply)
    for i in range(len(SEEDS)):
        variables = it.state(i).variables
        if it.entry.couples_examples:
            each = [it.entry.arguments(jax.tree.map(lambda x, d=d: x[d], parts)) for d in range(2)]
            alone = jax.tree.map(lambda *x: np.stack(x), *(on_host(apply(variables, *one)) for one in each))
        else:  # what the whole batch gives has been compiled already
            alone = jax.tree.map(lambda x: x.reshape(2, -1, *x.shape[1:]), on_host(it.forward(variables, it.batch)[0]))
        chex.assert_trees_all_close(jax.tree.map(lambda x, i=i: x[:, i], found), alone, atol=2e-6, rtol=2e-5)


@every_architecture
@pytest.mark.thorough  # a second compilation of the train step
def test_steps_on_two_devices(name, two_devices):
    """Under `pmap` both devices stay alike; and where nothing is drawn, a step is what it is on one device."""
    it = tiny(name)
    if name not in QUICK and set(it.variables) <= {"params", "batch_stats"}:
        pytest.skip("one of its family takes them, and with batch statistics lenet5-bn (test_devices.py)")
    count, optimizer = 3, dataclasses.asdict(it.experiment.optimizer)
    asked = {"what": "steps", "name": name, "steps": count, "optimizer": optimizer}
    state, metrics = two_devices(asked, it.state(0), it.batch)
    assert_finite(metrics)
    assert_finite(state.variables)
    for path, leaf in paths(state).items():
        assert len(leaf) == 2
        np.testing.assert_array_equal(leaf[0], leaf[1], err_msg=path)
    assert int(state.step[0]) == count
    alone = it.first[1]
    drawn = it.steps(it.state(0).replace(key=it.state(1).key), 1)[1]
    nothing_is_drawn = all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(alone), jax.tree.leaves(drawn)))
    if nothing_is_drawn and not it.entry.couples_examples:
        # Not what is no sum over examples, such as the perplexity of codes, which is of each device's part.
        sums = [name for name in alone if name.split("/")[-1] in ("loss", "gradient_norm")]
        assert sums
        together = {name: jax.tree.map(lambda x: x[:1], metrics[name]) for name in sums}
        chex.assert_trees_all_close(together, {name: alone[name] for name in sums}, rtol=1e-5, atol=1e-6)


@every_architecture
def test_variables_survive_save_and_restore(name, tmp_path):
    it = tiny(name)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(1, it.variables)
        checkpoints.wait()
        _, restored = checkpoints.restore(jax.eval_shape(lambda: it.variables))
    chex.assert_trees_all_equal(restored, it.variables)


@every_architecture
@pytest.mark.thorough
@pytest.mark.skipif(LIBTPU, reason="libtpu is here, and test_tpu.py compiles these steps with it")
def test_train_step_lowers_for_a_tpu(name):
    """Catches what a TPU can't take (block shapes of kernels, unsupported primitives) without one."""
    assert "stablehlo" in tiny(name).traced.lower(lowering_platforms=("tpu",)).as_text()


@every_architecture
def test_description_adds_up(name):
    """The table of layers accounts for every parameter."""
    it = tiny(name)
    # A graph network's first layer is as wide as its inputs: those of the tiny one.
    rows = describe.layers(it.module, dataclasses.replace(it.entry, inputs=it.inputs))
    assert sum(row.count for row in rows) == registry.count(it.variables["params"])
    assert all(row.kind for row in rows if row.count)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in FIRST_SCANNED else thorough) for name in ARCHITECTURES]
)
def test_cost_does_not_depend_on_scanning(name):
    """Quickly for one architecture a family: loops are counted in one place (`flops`), which has tests of its own."""
    it = tiny(name)
    if getattr(it.module, "scan", False) is not True:
        pytest.skip("is not scanned")
    flat = it.module.clone(scan=False)
    abstract = it.entry.abstract_variables(flat)
    costs = [count_flops(m.apply, v, *it.arguments).products for m, v in ((it.module, it.variables), (flat, abstract))]
    assert costs[0] == costs[1] > 0


@every_architecture_abstractly
def test_every_field_has_a_meaning(name):
    module = ARCHITECTURES[name].tiny()
    for path, _ in fields.walk(module):
        assert describe._meaning(module, path), f"{path} is not explained in its class's docstring"


def test_every_module_part_is_a_linen_module():
    for name, cls in fields.components("mixer").items():
        assert issubclass(cls, nn.Module), name
