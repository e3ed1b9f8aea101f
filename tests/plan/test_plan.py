"""Plans: what they are made of, the search for the largest batch, estimates, and one real compilation for a TPU."""

import dataclasses
import importlib.util
import json
import os

import jax
import numpy as np
import pytest

from arch_jax.errors import RunError, UsageError
from arch_jax.experiment import load
from arch_jax.ops.attention import dot_product
from arch_jax.ops.convolution import dense as convolution
from arch_jax.ops.platform import acting_as
from arch_jax.plan import costing, tpu_compiler
from arch_jax.plan.chips import TARGETS, Target, target
from arch_jax.plan.costing import MemoryUse, Step
from arch_jax.plan.plan import DOUBLINGS, HALVINGS, plan, search, workload

SMALL = {"vocabulary": 128, "depth": 2, "width": 32, "mixer.heads": 2, "batch": 8, "length": 64}


def test_a_model_with_batches_of_its_shapes():
    found = workload("gpt2", SMALL | {"mesh.fsdp": 2, "optimizer.name": "sgd"})
    assert {name: x.shape for name, x in found.batch.items()} == dict.fromkeys(found.batch, (8, 64))
    assert (found.rows, found.unit, found.units) == (8, "tokens", 512)
    assert found.experiment.model.depth == 2
    assert found.experiment.model.dtype == jax.numpy.bfloat16
    assert found.experiment.mesh.fsdp == 2
    assert found.experiment.optimizer.name == "sgd"
    assert workload("gpt2", SMALL | {"dtype": "float32"}).experiment.model.dtype == jax.numpy.float32
    assert workload("gpt2", SMALL | {"model.depth": 3}).experiment.model.depth == 3
    assert workload("lenet5", {"data.batch": 5}).units == 5


def test_an_experiment_with_batches_of_its_data():
    found = workload("gpt", {"data.batch": 4})
    batch = next(load("gpt")[0].overridden({"data.batch": 4}).data.load().train(0))
    assert {name: (x.shape, str(x.dtype)) for name, x in found.batch.items()} == {
        name: (x.shape, str(x.dtype)) for name, x in batch.items()
    }
    assert found.units == 4 * 256


def test_another_batch_size():
    found = workload("gpt2", SMALL).resized(24)
    assert (found.rows, found.units) == (24, 24 * 64)
    assert all(x.shape == (24, 64) for x in found.batch.values())
    assert found.batch == workload("gpt2", SMALL | {"batch": 24}).batch


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("gtp2", {}, "experiment or model 'gtp2'.*'gpt2'"),
        ("gpt2", {"dpth": 3}, "'dpth'.*'depth'"),
        ("gpt2", {"mesh.fsd": 3}, "fsd.*mesh.fsdp"),
        ("gpt2", {"length": 2048}, "length is 2048.*at most 1024"),
        ("gpt2", {"length": 0}, "length is 0"),
        ("gpt2", {"batch": 0}, "batch is 0"),
        ("gpt2", {"batch": "many"}, "batch.*'many'.*integer"),
        ("lenet5", {"length": 7}, "length is 7.*'lenet5'"),
    ],
)
def test_what_there_is_not_is_one_sentence(name, changes, said):
    with pytest.raises(UsageError, match=said) as caught:
        workload(name, changes)
    assert "\n" not in str(caught.value)


def attempts(limit):
    """A machine on which batches up to `limit` fit, and what was tried on it."""
    tried = []

    def attempt(rows):
        tried.append(rows)
        memory = MemoryUse(parameters=0, optimizer=0, batch=0, other=0, temporaries=rows, program=0, available=limit)
        return Step(rows=rows, compiles=True, memory=memory, flops=1, seconds=0.0)

    return attempt, tried


@pytest.mark.parametrize("limit", [8, 9, 100, 129, 500, 1023])
@pytest.mark.parametrize("parts", [1, 8])
@pytest.mark.parametrize("start", [8, 64, 1024])
def test_largest_batch(limit, parts, start):
    attempt, tried = attempts(limit)
    found = search(attempt(start), parts, attempt, lambda sentence: None)
    assert found.fits <= limit < found.refused
    assert list(found.tried) == tried
    assert all(rows % parts == 0 for rows in tried)
    assert len(tried) == len(set(tried))
    # Doubled or halved until the limit lies between; then an interval of a factor of 2, halved four times at most.
    after = [rows for rows in tried if rows & (rows - 1)]
    assert len(after) <= HALVINGS
    assert found.refused - found.fits <= max(parts, found.refused / 2**HALVINGS)


def test_no_batch_fits_or_all_do():
    attempt, tried = attempts(3)
    found = search(attempt(64), 8, attempt, lambda sentence: None)
    assert (found.fits, found.refused) == (None, 8)
    assert tried == [64, 32, 16, 8]
    attempt, tried = attempts(10**9)
    found = search(attempt(1), 1, attempt, lambda sentence: None)
    assert (found.fits, found.refused) == (2**DOUBLINGS, None)
    assert len(tried) == DOUBLINGS + 1


def test_every_attempt_is_told():
    told = []
    attempt, tried = attempts(100)
    found = search(attempt(64), 1, attempt, told.append)
    assert len(told) == len(tried) - 1
    assert told[0].startswith("batch 128 does not fit")
    assert any(line.startswith("batch 96 fits") for line in told)
    assert (found.fits, found.refused) == (100, 104)
    assert str(found).startswith("100 fits: ")
    assert "; 104 does not fit: " in str(found)


def test_an_estimate_for_a_gpu():
    found = plan(workload("gpt2", SMALL), "t4")
    assert found.estimate
    assert found.step.compiles is None
    assert found.step.fits
    memory = found.step.memory
    assert memory.parameters == 4 * found.parameters
    assert 8 * found.parameters <= memory.optimizer <= 8 * found.parameters + 64
    assert memory.batch == 10 * 3 * 4 * 8 * 64  # ten stacked batches of three arrays
    assert memory.temporaries > memory.parameters  # gradients at least
    data = json.loads(json.dumps(found.to_json()))
    assert data["estimate"] is True
    assert data["seconds_per_step"]["50%"] == pytest.approx(found.step.flops / 0.5 / 8.1e12)
    assert data["units_per_second"]["50%"] == pytest.approx(512 / data["seconds_per_step"]["50%"])
    shown = dict(found.lines())
    assert shown["memory (an estimate)"] == str(found.step)
    assert shown["machine"] == "t4: 1 x T4, 8.1 TFLOP/s in bfloat16 at best"
    lent = plan(workload("gpt2", SMALL), "colab-t4").to_json()
    assert lent["steps_per_session"]["50%"] == int(12 * 3600 / lent["seconds_per_step"]["50%"])


def test_several_gpus_share_batch_and_parameters():
    one, two, cut = (
        plan(workload("gpt2", SMALL | changes), name).step
        for name, changes in (("t4", {}), ("t4x2", {}), ("t4x2", {"mesh.fsdp": 2}))
    )
    assert two.flops == one.flops
    assert two.memory.temporaries < 0.7 * one.memory.temporaries
    assert two.memory.parameters == one.memory.parameters
    assert cut.memory.parameters < 0.6 * one.memory.parameters
    assert cut.memory.optimizer < 0.6 * one.memory.optimizer


@pytest.mark.thorough
def test_the_largest_batch_of_an_estimate_is_confirmed(monkeypatch):
    asked = workload("gpt2", SMALL)
    holds = plan(asked.resized(24), "t4").step.memory.total  # as much as 24 examples need
    chip = dataclasses.replace(target("t4").chip, usable=holds)
    monkeypatch.setitem(TARGETS, "small", Target("small", chip, 1))
    told = []
    found = plan(asked, "small", largest_batch=True, say=told.append).largest
    verdicts = {rows: step.fits for rows, step in found.tried.items()}
    assert verdicts == {8: True, 16: True, 32: False, 24: True, 28: False, 26: False, 25: False}
    assert (found.fits, found.refused) == (24, 25)
    assert len(told) == len(found.tried)


def test_what_does_not_suit_the_machine():
    asked = workload("gpt2", SMALL)
    for options, said in (
        ({"target": "v5e-9"}, "unknown target 'v5e-9'.*'v5e-8'"),
        ({"target": "t4", "chips": 2}, "chips is 2; expected 1 to 1"),
        ({"target": "t4", "decode": True}, "'t4'.*expected a TPU"),
        ({"target": "v5e-8", "chips": 9}, "chips is 9; expected 1 to 8, which 'v5e-8' has"),
        ({"target": "h100x8", "chips": 3}, "batch 8.*3 chips; expected such as 6"),
    ):
        with pytest.raises(UsageError, match=said):
            plan(asked, **options)
    with pytest.raises(UsageError, match=r"mesh.fsdp=3.*devices"):
        plan(workload("gpt2", SMALL | {"mesh.fsdp": 3}), "t4x2")
    with pytest.raises(UsageError, match="Nodes has one batch"):
        plan(workload("gcn_karate", {}), "t4", largest_batch=True)
    one, two = (plan(workload("gcn_karate", {}), name).step for name in ("t4", "t4x2"))
    assert one.fits
    assert one.memory == two.memory  # all of the graph on each


def test_no_libtpu(monkeypatch, tmp_path):
    monkeypatch.delenv("ARCH_JAX_LIBTPU", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RunError, match=r"pip install arch-jax\[tpu\]"):
        plan(workload("gpt2", SMALL), "v5e-1")
    monkeypatch.setenv("ARCH_JAX_LIBTPU", str(tmp_path))
    with pytest.raises(RunError, match="ARCH_JAX_LIBTPU"):
        plan(workload("gpt2", SMALL), "v5e-1")


def test_the_table_divides_memory_where_it_is_known():
    """Its parts stand in a row of their own, those of 0 bytes left out."""
    found = plan(workload("gpt2", SMALL), "h100")
    rows = dict(found.lines())
    assert found.step.memory is not None
    assert "parameters " in rows["of that"]
    assert "available" not in rows["of that"]
    unknown = dataclasses.replace(found, step=dataclasses.replace(found.step, memory=None))
    assert "of that" not in dict(unknown.lines())


def test_a_compiler_that_dies(monkeypatch):
    monkeypatch.setattr(costing, "environment", lambda accelerator: dict(os.environ))
    monkeypatch.setattr(costing.sys, "executable", "false")
    with pytest.raises(RunError, match=r"compiler died.*exit code 1"):
        plan(workload("gpt2", SMALL), "v5e-1")


def test_operations_are_chosen_for_the_target():
    with acting_as("tpu"):
        assert convolution.choose() == "xla"
        assert dot_product.choose(64, 64) == "pallas"
    assert convolution.choose("cpu") == "patches"
    assert convolution.choose() == "patches"
    assert dot_product.choose(64, 64) == "xla"


def test_what_is_lowered_is_the_train_program():
    asked = workload("gpt2", SMALL)
    lower, facts = tpu_compiler.train_step(asked.experiment, asked.batch, jax.devices()[:1])
    assert facts["parameters"] == 4 * facts["count"]
    assert facts["flops"] > 6 * facts["count"] * asked.units * 0.5
    text = lower().as_text()
    assert "tensor<10x8x64xi32>" in text  # the batches of one dispatch
    assert "stablehlo.while" in text
    run = dataclasses.replace(asked.experiment, parallel="pmap")
    with pytest.raises(UsageError, match="parallel=jit"):
        tpu_compiler.train_step(run, asked.batch, jax.devices()[:1])


def test_what_is_lowered_is_a_decoding_step():
    asked = workload("gpt2", SMALL)
    lower, facts = tpu_compiler.decode_step(asked.experiment, asked.batch, jax.devices()[:1], 64)
    keys_and_values = 2 * 2 * 8 * 64 * 32 * 2  # two layers, bfloat16
    assert keys_and_values <= facts["cache"] < 1.1 * keys_and_values
    assert lower().out_info[0].shape == (8,)
    images = workload("lenet5", {"batch": 2})
    with pytest.raises(UsageError, match="no decoding step"):
        tpu_compiler.decode_step(images.experiment, images.batch, jax.devices()[:1], 64)


@pytest.mark.thorough
def test_a_tpu_by_its_own_compiler():
    """A tiny decoder on eight chips, its parameters cut: the train step, the decoding step, a mesh that is refused."""
    if os.environ.get("ARCH_JAX_LIBTPU") is None and importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed, so nothing was compiled for a TPU: pip install arch-jax[tpu]")
    asked = workload("gpt2", SMALL | {"mesh.fsdp": 4})
    found = plan(asked, "kaggle-v5e-8", decode=True)
    memory = found.step.memory
    assert found.step.fits
    assert found.chips == 8
    assert memory.available == target("v5e-8").chip.usable
    assert found.parameters < memory.parameters < 4 * found.parameters * 0.5  # of 4 bytes each, in four parts
    assert memory.temporaries > 0
    assert memory.program > 0
    moved = {row["kind"]: row["bytes"] for row in found.step.collectives}
    assert sum(moved.values()) > found.parameters  # the gradients, at least
    assert found.decode.fits
    assert found.token_seconds > 0
    assert json.loads(json.dumps(found.to_json()))["session_hours"] == 9
    assert np.isclose(found.seconds[0.5], found.step.flops / (8 * 197e12 * 0.5))
    with pytest.raises(UsageError, match=r"data.batch 8 .*; expected data.batch=16"):
        plan(workload("gpt2", SMALL | {"accumulate": 2}), "v5e-8")
