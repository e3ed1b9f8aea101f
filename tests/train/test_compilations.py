"""What is compiled: nothing for a second dispatch, a second evaluation or a second sample of the same run."""

import dataclasses

import jax
import numpy as np
import pytest

import arch_jax
from arch_jax.train import loop
from arch_jax.train.loop import train
from arch_jax.train.mesh import Placement
from arch_jax.train.restore import open_run


def language(folder):
    text = folder / "text.txt"
    text.write_text("".join(f"line {i} of {i * i} says {i % 7}\n" for i in range(100)))
    small = {"depth": 1, "width": 16, "mixer.heads": 2, "mixer.kv_heads": 1}
    objective = arch_jax.objective("next_token", show_length=4)
    data = arch_jax.Text(source=f"text:{text}", length=16, batch=4)
    return arch_jax.Experiment(arch_jax.create("gpt", **small), objective, data)


def pictures(folder):
    data = arch_jax.Images(source="digits", batch=16, resize=28, pad=2)
    return arch_jax.Experiment(arch_jax.create("lenet5"), arch_jax.objective("classify", show_images=4), data)


def points(folder):
    model = arch_jax.create("gan", **{"generator.hidden": (8,), "discriminator.hidden": (6,)})
    return arch_jax.Experiment(model, arch_jax.objective("adversarial"), arch_jax.Ring(batch=20, validation=100))


def nodes(folder):
    model = arch_jax.create("gcn", classes=2, hidden=(4,))
    return arch_jax.Experiment(model, arch_jax.objective("nodes"), arch_jax.Nodes(source="karate", multiple=8))


#: Shape of training -> the experiment, and how a sample is asked for.
RUNS = {
    "language": (language, {"count": 2, "settings": {"prompt": "a", "length": 4}}),
    "points": (points, {"count": 3}),
    "pictures": (pictures, {"count": 3}),
    "nodes": (nodes, {"count": 3}),
}


@pytest.mark.parametrize(
    "name",
    [
        "language",
        *(pytest.param(name, marks=pytest.mark.thorough) for name in ("pictures", "points", "nodes")),
    ],
)
def test_the_second_time_nothing_is_compiled(name, compiled, tmp_path, monkeypatch):
    make, sample = RUNS[name]
    jax.clear_caches()  # runs of equal tasks share how they are evaluated, also with tests before this one
    dispatched, evaluated = [], []

    def counted(counts, method):
        def count(*arguments, **options):
            before = len(compiled)
            result = method(*arguments, **options)
            counts.append(compiled[before:])
            return result

        return count

    monkeypatch.setattr(Placement, "run", counted(dispatched, Placement.run))
    monkeypatch.setattr(loop._Run, "_evaluate", counted(evaluated, loop._Run._evaluate))
    settings = {"steps": 8, "steps_per_dispatch": 2, "evaluate_every": 2, "checkpoint_every": 2, "log_every": 1}
    it = dataclasses.replace(make(tmp_path), **settings)
    outcome = train(it, tmp_path / "run", stop_after=6)  # not to the end, where some are scored, once
    assert len(dispatched) == len(evaluated) == 3
    assert evaluated[0]  # something is there to be counted
    assert dispatched[1:] == [[], []]
    assert evaluated[1:] == [[], []]

    run = open_run(outcome.path)
    first, before = run.evaluate(), len(compiled)
    assert run.evaluate() == first
    assert open_run(outcome.path).evaluate() == first
    assert compiled[before:] == []
    first, before = run.sample(0, **sample), len(compiled)
    run.sample(1, **sample)
    again = run.sample(0, **sample)
    assert first.keys() == again.keys()
    for thing, other in zip(first.values(), again.values()):
        if isinstance(thing, str | np.ndarray):  # figures are other objects
            np.testing.assert_array_equal(thing, other)
    assert compiled[before:] == []
