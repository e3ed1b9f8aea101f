"""Several seeds as one program give what each gives alone: in every shape of training, stopped, diverged, divided."""

import dataclasses
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import arch_jax
from arch_jax.errors import RunError
from arch_jax.experiment import load
from arch_jax.study.runs import vmapped as together
from arch_jax.study.runs.run import Stopped, StudyRun
from arch_jax.study.runs.study import Study, seeded
from arch_jax.train.checkpointing.checkpoint import Checkpoints

TOY = str(Path(__file__).parents[1] / "toy.py")
STEPS = 20


def gpt():
    small = {"depth": 2, "width": 24, "mixer.heads": 2, "mixer.kv_heads": 1, "dropout": 0.1, "scan": True}
    text = arch_jax.Text(source="pydocs", length=16, batch=4, validation=0.01)
    return arch_jax.Experiment(arch_jax.create("gpt", **small), arch_jax.objective("next_token"), text)


def lenet():
    data = arch_jax.Images(source="digits", batch=8, resize=28, pad=2)
    return arch_jax.Experiment(arch_jax.create("lenet5-bn"), arch_jax.objective("classify"), data)


def gan():
    model = arch_jax.create("gan", **{"generator.hidden": (8,), "discriminator.hidden": (6,)})
    rate = arch_jax.Optimizer("sgd", learning_rate=0.05)
    objective = arch_jax.objective("adversarial", discriminator_steps=2)
    return arch_jax.Experiment(model, objective, arch_jax.Ring(batch=8, validation=100), (rate, rate))


def gcn():
    model = arch_jax.create("gcn", classes=2, hidden=(4,))
    return arch_jax.Experiment(model, arch_jax.objective("nodes", l2=1e-3), arch_jax.Nodes("karate", multiple=8))


SHAPES = {"gpt": gpt, "lenet5-bn": lenet, "gan": gan, "gcn": gcn}


@functools.cache
def toy():
    return load(TOY)[0]


def run(path, experiment, seeds, together=None):
    with Study(path, together=together) as study:
        return study.run([StudyRun("it", one) for one in seeded(experiment, seeds)])


def same(one, other):
    """But for times and memory."""
    free = {"step_seconds": None, "peak_bytes": None, "together": 0}
    return dataclasses.replace(one, **free) == dataclasses.replace(other, **free)


@pytest.mark.parametrize(
    "shape", [pytest.param(shape, marks=[pytest.mark.thorough] * (shape != "gcn")) for shape in SHAPES]
)
def test_each_seed_is_the_run_made_alone(shape, tmp_path):
    changes = {"steps": STEPS, "evaluate_every": STEPS, "checkpoint_every": STEPS, "steps_per_dispatch": 7}
    experiment = SHAPES[shape]().overridden(changes | {"ema": 0.9})
    alone, as_one = run(tmp_path / "alone", experiment, 3), run(tmp_path / "one", experiment, 3, together=3)
    assert [result.together for result in as_one] == [3, 3, 3]
    losses = [[loss for _, loss in result.curve] for result in as_one]
    assert len(losses[0]) == STEPS
    for one, other in zip(alone, as_one):
        np.testing.assert_allclose([x for _, x in one.curve], [x for _, x in other.curve], rtol=2e-5)
        assert one.validation.keys() == other.validation.keys()
        np.testing.assert_allclose(one.validation["loss"], other.validation["loss"], rtol=1e-4)
        assert (one.parameters, one.flops, one.step) == (other.parameters, other.flops, other.step)
    assert len({tuple(one) for one in losses}) == 3  # three seeds, three runs


def stopped_after(monkeypatch, saves):
    """Ends the process's work as a kill would, right after so many saves."""
    real, seen = together._Group._save, []

    def save(self, *arguments):
        real(self, *arguments)
        self.checkpoints.wait()
        seen.append(1)
        if len(seen) == saves:
            raise KeyboardInterrupt

    monkeypatch.setattr(together._Group, "_save", save)


@pytest.mark.parametrize("saves", [1, pytest.param(2, marks=pytest.mark.thorough)])
def test_a_group_goes_on_bit_for_bit(tmp_path, monkeypatch, saves):
    whole = run(tmp_path / "whole", toy(), 3, together=3)
    with monkeypatch.context() as patched:
        stopped_after(patched, saves)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "killed", toy(), 3, together=3)
    assert not list((tmp_path / "killed").glob("cells/*/result.json"))
    again = run(tmp_path / "killed", toy(), 3, together=2)  # what was begun as three goes on as three
    assert [result.together for result in again] == [3, 3, 3]
    assert all(map(same, whole, again))
    assert not list((tmp_path / "killed").glob("groups/*/checkpoints"))


@arch_jax.component("vmapped_failing", kind="measure")
@dataclasses.dataclass(frozen=True)
class Failing(arch_jax.Measure):
    """An exception while a file is there."""

    file: str = ""

    def __call__(self, task, variables, sampler, data, key):
        if Path(self.file).exists():
            raise MemoryError("too large")
        return {"mine": 1.0}


@pytest.mark.thorough
def test_a_measure_that_fails_costs_no_training(tmp_path, capsys):
    file = tmp_path / "file"
    file.touch()
    experiment = dataclasses.replace(toy(), measures=(Failing("evaluation", str(file)),))
    for _ in range(2):
        with pytest.raises(RunError, match=r"the measure Failing failed: MemoryError: too large; the run in .* is "):
            run(tmp_path / "study", experiment, 2, together=2)
        said = capsys.readouterr().err.splitlines()
        assert said.count("warning: the measure Failing failed, and is left out: MemoryError: too large") == 1
    (folder,) = (tmp_path / "study" / "groups").glob("*/checkpoints")
    assert Checkpoints(folder).steps()[-1] == experiment.steps
    file.unlink()
    assert [result.validation["mine"] for result in run(tmp_path / "study", experiment, 2, together=2)] == [1.0, 1.0]


@pytest.mark.thorough
def test_one_that_diverges_leaves_the_others_alone(tmp_path, monkeypatch):
    """Seed 1's data turns bad: seeds 0 and 2 give what they give without it, also when the group is stopped later."""
    real = type(toy().data).numbers

    def numbers(self, *seed):
        found = real(self, *seed)
        if seed[0] == 2 and seed[-1] == 14:  # seed 1, step 14
            found["y"] = found["y"] * np.float32(np.inf)
        return found

    monkeypatch.setattr(type(toy().data), "numbers", numbers)
    whole = run(tmp_path / "whole", toy(), 3, together=3)
    assert [result.status for result in whole] == ["finished", "diverged", "finished"]
    assert "at step 14" in whole[1].reason
    assert [step for step, _ in whole[1].curve] == list(range(1, 14))
    alone = run(tmp_path / "alone", toy(), 3)
    assert [result.status for result in alone] == [result.status for result in whole]
    for one, other in zip(alone, whole):
        np.testing.assert_allclose([x for _, x in one.curve], [x for _, x in other.curve], rtol=2e-5)
    with monkeypatch.context() as patched:
        stopped_after(patched, 2)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "killed", toy(), 3, together=3)
    again = run(tmp_path / "killed", toy(), 3, together=3)
    assert all(map(same, whole, again))


@pytest.mark.thorough
def test_all_diverge(tmp_path):
    wild = toy().overridden({"optimizer.learning_rate": 1e30, "optimizer.clip": None})
    results = run(tmp_path, wild, 2, together=2)
    assert [result.status for result in results] == ["diverged", "diverged"]


@pytest.mark.thorough
def test_what_does_not_fit_is_taken_in_groups(tmp_path, monkeypatch, capsys):
    sizes = []
    real = together.Seeds._compile

    def compile(self, *arguments):
        sizes.append(len(self.seeds))
        return real(self, *arguments)

    monkeypatch.setattr(together.Seeds, "_compile", compile)
    whole = run(tmp_path / "whole", toy(), 5, together=5)
    needed = max(result.peak_bytes for result in whole)
    monkeypatch.setattr(together, "device_memory", lambda: needed / 5 * 3.5)
    sizes.clear()
    groups = run(tmp_path / "groups", toy(), 5, together=5)
    assert sizes == [5, 3, 2]
    assert sorted(result.together for result in groups) == [2, 2, 3, 3, 3]
    assert "5 seeds at once take 0.0 GB" in capsys.readouterr().err
    for one, other in zip(whole, groups):
        np.testing.assert_allclose([x for _, x in one.curve], [x for _, x in other.curve], rtol=2e-5)


@pytest.mark.thorough
def test_a_stop(tmp_path, monkeypatch):
    """SIGTERM between two saves: what was reached is saved and gone on with."""
    import signal

    whole = run(tmp_path / "whole", toy(), 2, together=2)
    real = together._Group._record

    def record(self, before, *arguments):
        real(self, before, *arguments)
        if before == 20:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(together._Group, "_record", record)
        with pytest.raises(Stopped):
            run(tmp_path / "stopped", toy(), 2, together=2)
    assert [path.name for path in (tmp_path / "stopped").glob("groups/*/checkpoints/25")] == ["25"]
    assert all(map(same, whole, run(tmp_path / "stopped", toy(), 2, together=2)))


@pytest.mark.thorough
def test_seeds_are_dealt_to_devices(tmp_path):
    """4 seeds on 8 CPU devices: four of them take one each, and the losses are those of one device."""
    program = (
        "import jax, json, sys\n"
        "from arch_jax.experiment import load\n"
        "from arch_jax.study.runs.run import StudyRun as Cell\nfrom arch_jax.study.runs.study import Study, seeded\n"
        "from arch_jax.study.runs import vmapped as together\n"
        "seen = []\n"
        "real = together.Seeds.fresh\n"
        "def fresh(self):\n"
        "    state = real(self)\n"
        "    seen.append(len(jax.tree.leaves(state.parameters)[0].sharding.device_set))\n"
        "    return state\n"
        "together.Seeds.fresh = fresh\n"
        f"experiment = load({TOY!r})[0]\n"
        f"with Study({str(tmp_path / 'eight')!r}, together=4) as study:\n"
        "    found = study.run([Cell('it', one) for one in seeded(experiment, 4)])\n"
        "print(json.dumps([seen, [[x for _, x in result.curve] for result in found]]))\n"
    )
    environment = {
        **os.environ,
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8",
    }
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    devices, losses = json.loads(result.stdout.splitlines()[-1])
    assert devices == [4]
    alone = run(tmp_path / "alone", toy(), 4)
    np.testing.assert_allclose(losses, [[x for _, x in one.curve] for one in alone], rtol=2e-5)


def test_a_mesh_of_its_own_is_refused(tmp_path):
    with pytest.raises(arch_jax.UsageError, match="seeds that are trained together take the devices for themselves"):
        run(tmp_path, toy().overridden({"parallel": "pmap"}), 2, together=2)
