"""A measure of another sampler's samples: what an experiment with that sampler gives, under another name."""

import dataclasses

import jax
import numpy as np
import pytest

import arch_jax
from arch_jax.data.base import load_corpus
from arch_jax.errors import UsageError


def experiment():
    return arch_jax.Experiment(
        model=arch_jax.create("point-denoiser", depth=1, width=8),
        objective=arch_jax.objective("diffusion"),
        data=arch_jax.Ring(batch=8, validation=32),
        optimizer=arch_jax.Optimizer("adam", learning_rate=1e-3),
        sampler=arch_jax.DDIM(steps=2),
        steps=2,
    )


def test_it_is_the_measure_with_the_other_sampler():
    it = experiment()
    data, key = load_corpus(it.data), jax.random.key(3)
    batch = next(iter(data.validation()))
    variables = jax.jit(it.task.init)(jax.random.key(0), batch)
    measure, other = arch_jax.PointDistances(count=20), arch_jax.DDIM(steps=5, eta=1.0)
    expected = measure(it.task, variables, other, data, key)
    found = arch_jax.OfSampler(measure=measure, sampler=other, name="five")(it.task, variables, it.sampler, data, key)
    assert {f"five_{name}": value for name, value in expected.items()} == found
    plain = measure(it.task, variables, it.sampler, data, key)
    assert any(not np.isclose(plain[name], expected[name]) for name in expected)


def test_two_samplers_stand_beside_the_runs_own(tmp_path):
    measure = arch_jax.PointDistances(count=20)
    others = [arch_jax.OfSampler(measure=measure, sampler=arch_jax.DDIM(steps=n), name=f"steps_{n}") for n in (1, 3)]
    it = dataclasses.replace(experiment(), measures=(measure, *others), figures=())
    found = arch_jax.train(it, tmp_path / "run").validation
    assert {"distance", "steps_1_distance", "steps_3_distance"} <= found.keys()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "2 steps"}, "name is '2 steps'; expected a word"),
        ({"sampler": None}, "the sampler of OfSampler 'five' is none"),
        ({"measure": None}, "the measure of OfSampler 'five' is none"),
        ({"sampler": arch_jax.DDIM(guidance=2.0)}, "sampler.guidance is 2.0, and the model has no classes"),
        ({"measure": arch_jax.ImageDistances()}, "ImageDistances"),
    ],
)
def test_what_is_refused(settings, message):
    it = experiment()
    good = {"measure": arch_jax.PointDistances(count=20), "sampler": arch_jax.DDIM(steps=5), "name": "five"}
    with pytest.raises(UsageError, match=message):
        arch_jax.OfSampler(**good | settings).check(it.task, it.sampler, load_corpus(it.data))
