"""A run's folder with any of its files mutated: it opens bit for bit, or says in a sentence why not."""

import importlib.util
import json
import resource
import shutil
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import arch_jax
from arch_jax.data.points.ring import Ring
from arch_jax.train.checkpointing.checkpoint import Checkpoints
from arch_jax.train.loop import train
from arch_jax.train.restore import open_run

spec = importlib.util.spec_from_file_location("mutations", Path(__file__).with_name("mutations.py"))
mutations = importlib.util.module_from_spec(spec)
spec.loader.exec_module(mutations)

#: Mutations of checkpoints and of configurations: a handful, and in CI as many as tell something.
MUTATIONS = [(40, 20), pytest.param((400, 100), marks=pytest.mark.thorough)]
mutated_so_often = pytest.mark.parametrize("counts", MUTATIONS, ids=str)


def state():
    draw = np.random.default_rng(0)
    return {
        "kernel": jax.numpy.asarray(draw.normal(size=(4, 3)), "float32"),
        "key": jax.random.key(7),
        "step": np.int32(5),
        "table": draw.integers(0, 100, 40),
    }


def same(one, other):
    return all(jax.tree.leaves(jax.tree.map(lambda a, b: np.array_equal(bits(a), bits(b)), one, other)))


def bits(x):
    return np.asarray(jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x)


@mutated_so_often
def test_mutated_checkpoints(counts, tmp_path):
    """Mutations of a file of a checkpoint: the state as it was, or a sentence; never another state."""
    whole = tmp_path / "whole"
    with Checkpoints(whole) as checkpoints:
        checkpoints.save(5, state(), None, {"loss": 1.0})
        checkpoints.wait()
    files = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    assert len(files) > 5
    random = np.random.default_rng(11)
    abstract = jax.eval_shape(lambda: jax.tree.map(jax.numpy.asarray, state()))
    expected, outcomes, before = state(), {"same": 0, "sentence": 0}, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for i in range(counts[0]):
        folder = tmp_path / f"{i}"
        shutil.copytree(whole, folder)
        file = files[random.integers(len(files))]
        (folder / file).write_bytes(mutations.mutate((whole / file).read_bytes(), random))
        started = time.perf_counter()
        try:
            with Checkpoints(folder, log=lambda sentence: None, reading=True) as checkpoints:
                step, again = checkpoints.restore(abstract)
            assert step == 5
            assert same(again, expected), f"mutation {i} of {file} gave another state"
            outcomes["same"] += 1
        except arch_jax.ArchJaxError as problem:
            outcomes["sentence"] += "\n" not in str(problem)
        assert time.perf_counter() - started < 30, f"mutation {i} of {file}"
        shutil.rmtree(folder)
    assert min(outcomes.values()) > counts[0] / 20, outcomes
    assert sum(outcomes.values()) == counts[0], "a message of several lines"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kilobytes


@pytest.mark.thorough
@mutated_so_often
def test_mutated_configurations(counts, tmp_path):
    """Mutations of a run's config.json: half of its bytes, half of what it says."""
    it = arch_jax.Experiment(
        model=arch_jax.create("gan", **{"generator.hidden": (3,), "discriminator.hidden": (3,)}),
        objective=arch_jax.objective("adversarial"),
        data=Ring(batch=4, validation=8),
        steps=1,
    )
    run = train(it, tmp_path / "run").path
    random = np.random.default_rng(12)
    text = (run / "config.json").read_bytes()
    outcomes = {"opened": 0, "sentence": 0}
    for i in range(counts[1]):
        if i % 2:
            mutated = mutations.mutate(text, random)
        else:
            mutated = json.dumps(mutations.mutate_json(json.loads(text), random)).encode()
        (run / "config.json").write_bytes(mutated)
        try:
            open_run(run)
            outcomes["opened"] += 1
        except arch_jax.ArchJaxError as problem:
            outcomes["sentence"] += "\n" not in str(problem)
    assert min(outcomes.values()) > counts[1] / 50, outcomes
    assert sum(outcomes.values()) == counts[1], "a message of several lines"
    (run / "config.json").write_bytes(text)
    assert open_run(run).step == 1
    assert json.loads(text)["format"]
