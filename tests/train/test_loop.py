"""The train loop: a run that is stopped, killed or damaged gives the bits of one that was not, or says why it can't."""

import dataclasses
import functools
import json
import math
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import arch_jax
from arch_jax.errors import RunError, UsageError
from arch_jax.experiment import load
from arch_jax.train.checkpointing.checkpoint import Checkpoints
from arch_jax.train.loop import Outcome, train
from arch_jax.train.restore import open_run
from arch_jax.train.stopping import stop_requests
from arch_jax.train.workdir import WorkDirectory, read_metrics

pytestmark = pytest.mark.usefixtures("compiled_once")
thorough = pytest.mark.thorough
ROOT = Path(__file__).parents[2]

#: A person's own experiment, whose every part is its own: two small layers on random numbers, with dropout.
FILE = """
import dataclasses, os, time
import flax.linen as nn, jax, jax.numpy as jnp, numpy as np
import arch_jax
from arch_jax.objectives.base import ObjectiveBase

FACTS = {"sha256": "0", "source": "numbers"}


@arch_jax.component("loop_net", kind="model")
class Net(nn.Module):
    width: int = 3

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Dropout(0.2, deterministic=not train)(nn.tanh(nn.Dense(self.width)(x)))
        return nn.Dense(1)(x)[:, 0]


class Answers(arch_jax.Figure):
    def __call__(self, task, variables, sampler, data, key):
        return {"text": str(np.asarray(task.model.apply(variables, data.numbers(0)["x"])).tolist())}


@arch_jax.component("loop_squares", kind="objective")
@dataclasses.dataclass(frozen=True)
class Squares(ObjectiveBase):
    def arguments(self, batch):
        return (batch["x"],)

    def loss(self, player, phase, variables, batch, key, step):
        y, updates = self.apply(variables, batch["x"], key=key)
        loss = jnp.sum(jnp.square(y - batch["y"])), jnp.float32(y.size)
        return loss, ({"loss": loss}, updates)

    def evaluate(self, variables, batch):
        y = self.model.apply(variables, batch["x"])
        return {"loss": (jnp.sum(jnp.square(y - batch["y"])), jnp.float32(y.size))}

    figures = (Answers(),)


class Endless:
    def __init__(self, data):
        self.data, self.taken = data, 0

    def __next__(self):
        self.taken += 1
        time.sleep(float(os.environ.get("SECONDS_PER_STEP", 0)))  # for a person to have time to stop it
        return self.data.numbers(self.taken)

    def get_state(self):
        return {"taken": self.taken}

    def set_state(self, state):
        self.taken = state["taken"]


@arch_jax.component("loop_numbers", kind="data")
@dataclasses.dataclass(frozen=True)
class Numbers:
    batch: int = 4
    nan_at: int = -1

    facts = FACTS

    def load(self):
        return self

    @property
    def shapes(self):
        return {"x": ((self.batch, 2), "float32"), "y": ((self.batch,), "float32")}

    def numbers(self, n):
        x = np.random.default_rng(n).normal(size=(self.batch, 2)).astype(np.float32)
        return {"x": x, "y": np.full(self.batch, np.nan, np.float32) if n == self.nan_at else np.sin(3 * x[:, 0])}

    def train(self, seed):
        return Endless(self)

    def validation(self):
        return [self.numbers(0)]


def config():
    return arch_jax.Experiment(
        model=Net(),
        objective=Squares(),
        data=Numbers(),
        optimizer=arch_jax.Optimizer("adamw", learning_rate=1e-2, warmup=3, weight_decay=0.1),
        steps=20,
        evaluate_every=8,
        checkpoint_every=6,
        steps_per_dispatch=4,
        ema=0.9,
    )
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("experiment") / "numbers.py"
    path.write_text(FILE)
    return path


@pytest.fixture(scope="module")
def module(file) -> tuple[Any, Any]:
    """The experiment and its file's module, loaded once: its classes are made once."""
    return load(str(file))


@pytest.fixture
def numbers(module) -> arch_jax.Experiment:
    return module[0]


def leaves(tree: Any) -> dict[str, tuple]:
    """Path -> everything about a leaf."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    plain = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    arrays = {jax.tree_util.keystr(path): np.asarray(plain(leaf)) for path, leaf in flat}
    return {path: (array.dtype.name, array.shape, array.tobytes()) for path, array in arrays.items()}


def assert_same_run(one: Outcome, other: Outcome) -> None:
    """The whole state, bit for bit, the metrics, byte for byte, and what is shown."""
    left, right = leaves(one.state), leaves(other.state)
    assert left.keys() == right.keys()
    assert [path for path in left if left[path] != right[path]] == []
    assert (one.path / "metrics.jsonl").read_bytes() == (other.path / "metrics.jsonl").read_bytes()
    assert one.validation == other.validation
    names = [sorted(path.relative_to(it.path).as_posix() for path in it.path.glob("samples/*")) for it in (one, other)]
    assert names[0] == names[1]
    for name in names[0]:
        assert (one.path / name).read_bytes() == (other.path / name).read_bytes()


@functools.cache
def uninterrupted(experiment: arch_jax.Experiment, folder: Path) -> Outcome:
    """The run that the others are held against; one for each experiment."""
    return train(experiment, folder)


@pytest.fixture
def whole(numbers, tmp_path_factory):
    """The uninterrupted run of an experiment, by default `numbers`."""
    folders = tmp_path_factory.getbasetemp()
    return lambda it=numbers: uninterrupted(it, folders / f"whole-{hash(it)}")


def validation_losses(path: Path) -> dict[int, float]:
    return {line["step"]: line["validation/loss"] for line in read_metrics(path) if "validation/loss" in line}


# -- stopping and going on ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stops", "log_every"),
    [([3, 4, 2, 7], 1)]
    + [pytest.param(stops, 1, marks=thorough) for stops in ([10], [1] * 5, [8, 4])]
    + [pytest.param(stops, 3, marks=thorough) for stops in ([10], [8, 4], [3, 4, 2, 7], [1] * 5)],
    ids=str,
)
def test_stopped_and_gone_on_is_not_stopped(numbers, whole, tmp_path, stops, log_every):
    """Whether or not a stop falls on the end of a dispatch, a line, an evaluation or a checkpoint."""
    it = dataclasses.replace(numbers, log_every=log_every)
    step = 0
    for count in stops:
        outcome = train(it, tmp_path / "run", stop_after=count)
        step += count
        assert (outcome.step, outcome.finished, int(outcome.state.step)) == (step, False, step)
    outcome = train(it, tmp_path / "run")
    assert outcome.finished
    assert_same_run(outcome, whole(it))
    lines = read_metrics(outcome.path)
    assert [line["step"] for line in lines if "loss" in line] == list(range(log_every, 21, log_every))
    assert [line["step"] for line in lines if "validation/loss" in line] == [8, 16, 20]


@thorough
def test_a_language_model_too(tmp_path):
    """With Grain's iterator, a tokenizer and a sampled text."""
    text = tmp_path / "text.txt"
    text.write_text("".join(f"line {i} of {i * i} says {i % 7}\n" for i in range(120)))
    it, _ = load("gpt")
    it = it.overridden(
        {
            "model.depth": 1,
            "optimizer.warmup": 2,
            "model.width": 16,
            "model.dropout": 0.1,
            "model.mixer.heads": 2,
            "model.mixer.kv_heads": 1,
            "data.source": f"text:{text}",
            "data.length": 16,
            "data.batch": 4,
            "objective.show_length": 4,
            "steps": 14,
            "steps_per_dispatch": 4,
            "evaluate_every": 6,
        }
    )
    for _ in range(2):
        assert not train(it, tmp_path / "run", stop_after=5).finished
    assert_same_run(train(it, tmp_path / "run"), train(it, tmp_path / "whole"))


def test_more_steps_keep_the_schedule(numbers, tmp_path):
    """8 steps, then 16: the run of 16 whose schedule ends at 8."""
    settle = lambda steps, horizon: dataclasses.replace(
        numbers, steps=steps, optimizer=dataclasses.replace(numbers.optimizer, horizon=horizon)
    )
    assert train(settle(8, None), tmp_path / "run").finished
    longer = train(settle(16, None), tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())["experiment"]
    assert (config["steps"], config["optimizer"]["horizon"]) == (16, 8)
    expected = train(settle(16, 8), tmp_path / "expected")
    assert_same_run(longer, expected)
    bent = train(settle(16, None), tmp_path / "bent")
    assert leaves(bent.state.parameters) != leaves(expected.state.parameters)


def test_a_new_run_settles_its_horizon(numbers, tmp_path):
    train(numbers, tmp_path / "run", stop_after=1)
    config = json.loads((tmp_path / "run" / "config.json").read_text())["experiment"]
    assert config["optimizer"]["horizon"] == numbers.steps


# -- whose folder it is ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def begun(module, tmp_path_factory) -> Path:
    """A run of 20 steps that has taken 6."""
    path = tmp_path_factory.mktemp("begun") / "run"
    train(module[0], path, stop_after=6)
    return path


def contents(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file() and p.name != ".lock"}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seed": 1}, "seed=0, and now it is 1"),
        ({"model.width": 4}, "model.width=3, and now it is 4"),
        ({"data.batch": 8}, "data.batch=4, and now it is 8"),
        ({"optimizer.learning_rate": 0.5}, "optimizer.learning_rate=0.01, and now it is 0.5"),
        ({"optimizer.horizon": 30}, "optimizer.horizon=20, and now it is 30"),
        ({"optimizer.name": "lion"}, 'optimizer.name="adamw", and now it is "lion"'),
        ({"ema": None}, "ema=0.9, and now it is null"),
        ({"steps": 30, "evaluate_every": 5}, "evaluate_every=8, and now it is 5"),
    ],
    ids=str,
)
def test_nothing_but_steps_may_change(numbers, begun, changes, says):
    before = contents(begun)
    with pytest.raises(UsageError) as caught:
        train(numbers.overridden(changes), begun)
    assert str(caught.value) == f"{begun} holds a run with {says}; only steps and the mesh may change on resume"
    assert contents(begun) == before


def test_fewer_steps_than_were_taken(numbers, begun):
    before = contents(begun)
    with pytest.raises(UsageError, match=r"^steps is 5, but the run in .* has taken 6 already; expected at least"):
        train(dataclasses.replace(numbers, steps=5), begun)
    assert contents(begun) == before


def test_the_folder_of_another_experiment(numbers, begun):
    with pytest.raises(UsageError) as caught:
        train(dataclasses.replace(numbers, name="other"), begun)
    assert str(caught.value) == (
        f"{begun} holds a run of the experiment 'numbers', not of 'other'; choose another work directory"
    )


def test_other_data_of_the_same_name(numbers, module, begun, monkeypatch):
    monkeypatch.setitem(module[1].FACTS, "sha256", "1")
    with pytest.raises(
        UsageError, match=r"^the data 'numbers' is not what the run in .* was trained on: .* --on SOURCE"
    ):
        train(numbers, begun)


def test_two_runs_in_one_folder(numbers, begun):
    with WorkDirectory(begun), pytest.raises(UsageError) as caught:
        train(numbers, begun)
    assert str(caught.value) == f"another run has the work directory {begun} open; wait for it, or choose another"
    WorkDirectory(begun).__exit__()  # the lock was let go of


def test_a_run_that_is_refused_leaves_the_folder_free(numbers, tmp_path, monkeypatch):
    """Settings that turn out not to work are no run that others would have to agree with."""
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UsageError, match="tensorboard=true needs tensorboardX"):
        train(dataclasses.replace(numbers, tensorboard=True), tmp_path)
    assert train(dataclasses.replace(numbers, seed=7), tmp_path, stop_after=1).step == 1


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "config.json is damaged"),
        ("[]", "config.json is damaged: expected an object with format, experiment, data, batch"),
        ('{"format": 9, "experiment": {}, "data": {}, "batch": {}}', "has format 9; this version of arch_jax reads"),
    ],
)
def test_a_damaged_config(numbers, tmp_path, content, says):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises((RunError, UsageError), match=says):
        train(numbers, tmp_path)
    assert (tmp_path / "config.json").read_text() == content


# -- numbers that are not finite ---------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite(numbers, tmp_path):
    it = numbers.overridden({"data.nan_at": 11})
    with pytest.raises(RunError) as caught:
        train(it, tmp_path)
    assert str(caught.value) == (
        f"loss is nan at step 11 of the run in {tmp_path}; the last good checkpoint is that of step 8"
    )
    assert [line["step"] for line in read_metrics(tmp_path) if "loss" in line] == list(range(1, 11))
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    run = open_run(tmp_path)
    assert run.step == 8
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(run.variables))
    assert run.evaluate() == {"loss": validation_losses(tmp_path)[8]}
    with pytest.raises(RunError, match="loss is nan at step 11"):  # it is as it was: the same happens again
        train(it, tmp_path)


def test_a_loss_that_is_not_finite_before_the_first_checkpoint(numbers, tmp_path):
    with pytest.raises(RunError, match=r"^loss is nan at step 2 of .*; there is no checkpoint before it$"):
        train(numbers.overridden({"data.nan_at": 2}), tmp_path)


def test_a_learning_rate_beyond_reason(numbers, tmp_path):
    it = numbers.overridden({"optimizer.learning_rate": 1e30, "optimizer.weight_decay": 0, "optimizer.warmup": 0})
    with pytest.raises(RunError, match=r"^(loss|gradient_norm) is (nan|inf) at step \d+ of the run in"):
        train(it, tmp_path)


def test_a_state_that_is_not_finite_is_not_saved(numbers, tmp_path):
    """The loss of a step does not tell what its update makes of the parameters."""
    it = numbers.overridden({"optimizer.learning_rate": 1e39, "optimizer.warmup": 0, "checkpoint_every": 1})
    with pytest.raises(RunError) as caught:
        train(it, tmp_path)
    assert str(caught.value).startswith("the parameter ")
    assert str(caught.value).endswith(f" at step 1 of the run in {tmp_path}; there is no checkpoint before it")
    assert Checkpoints(tmp_path / "checkpoints").steps() == []


def test_a_validation_that_is_not_finite(numbers, tmp_path):
    with pytest.raises(RunError, match=r"^validation loss is nan at step 8 of .* is that of step 6$"):
        train(numbers.overridden({"data.nan_at": 0}), tmp_path)


# -- damage ------------------------------------------------------------------------------------------------------------


def test_metrics_are_cut_back_to_the_checkpoint(numbers, whole, begun, tmp_path):
    """Lines of steps that are taken again go; so does a line that a kill has torn."""
    shutil.copytree(begun, tmp_path / "run")
    file = tmp_path / "run" / "metrics.jsonl"
    with open(file, "a") as lines:
        lines.write('{"step": 7, "loss": 9.0}\n{"step": 8, "validation/loss": 9.0}\n{"step": 9, "lo')
    assert [line["step"] for line in read_metrics(tmp_path / "run")][-2:] == [7, 8]
    assert_same_run(train(numbers, tmp_path / "run"), whole())


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 4
    file.write_bytes(bytes(content))


def damage_at(outcome: Outcome, damage: Any) -> None:
    """Damages the file of the newest checkpoint that holds a kernel, where it holds it.

    Of the kernels and their moments, the first that lies there as it is: numbers that happen to repeat are compressed.
    """
    files = [p for p in (outcome.path / "checkpoints" / str(outcome.step) / "state").rglob("*") if p.is_file()]
    kernels = [np.asarray(x).tobytes() for x in jax.tree.leaves(outcome.state) if getattr(x, "ndim", 0) == 2]
    kernel, holding = next(
        (kernel, found) for kernel in kernels if (found := [path for path in files if kernel in path.read_bytes()])
    )
    for path in holding:
        damage(path, path.read_bytes().index(kernel) + 5)


@pytest.mark.parametrize("damage", [flip, os.truncate], ids=["flipped", "truncated"])
def test_a_damaged_checkpoint_is_named_and_survived(numbers, whole, tmp_path, capfd, damage):
    damaged = train(numbers, tmp_path / "run", stop_after=14)
    folder = tmp_path / "run" / "checkpoints"
    assert sorted(p.name for p in folder.iterdir() if p.name.isdecimal()) == ["12", "14", "8"]  # 8 is the best
    damage_at(damaged, damage)
    capfd.readouterr()
    outcome = train(numbers, tmp_path / "run")
    told = capfd.readouterr().err
    assert f"checkpoint 14 in {folder} is corrupt: " in told
    assert "; going back to checkpoint 12\n" in told
    assert f"going on from step 12 in {tmp_path / 'run'}\n" in told
    assert "Traceback" not in told
    assert_same_run(outcome, whole())


def test_no_whole_checkpoint(numbers, tmp_path):
    damage_at(train(numbers, tmp_path, stop_after=3), flip)
    before = contents(tmp_path)
    with pytest.raises(RunError, match=r"^no checkpoint in .* is whole: checkpoint 3 \("):
        train(numbers, tmp_path)
    assert contents(tmp_path) == before


# -- after the end -----------------------------------------------------------------------------------------------------


def test_a_finished_run_is_evaluated_again_and_not_changed(numbers, tmp_path):
    first = train(numbers, tmp_path)
    before = contents(tmp_path)
    again = train(numbers, tmp_path)
    assert again.finished
    assert again.step == 20
    assert math.isfinite(again.validation["loss"])
    assert again.shown == first.shown
    assert_same_run(first, again)
    changed = {name for name, content in contents(tmp_path).items() if before.get(name) != content}
    assert not changed
    assert contents(tmp_path).keys() == before.keys()


def test_the_evaluation_is_of_the_moving_average(numbers, module, tmp_path):
    outcome = train(numbers, tmp_path)
    evaluate = lambda part: float(
        numbers.task.evaluate({"params": part["model"]}, numbers.data.numbers(0))["loss"][0] / 4
    )
    assert outcome.validation["loss"] == pytest.approx(evaluate(outcome.state.average), rel=1e-6)
    assert outcome.validation["loss"] != pytest.approx(evaluate(outcome.state.parameters), rel=1e-4)
    assert read_metrics(tmp_path)[-1] == {"step": 20, "validation/loss": outcome.validation["loss"]}
    run = open_run(tmp_path, best=True)
    best = min((loss, step) for step, loss in validation_losses(tmp_path).items())
    assert (run.evaluate()["loss"], run.step) == best


def test_what_is_in_the_folder(numbers, whole):
    path = whole().path
    assert {p.name for p in path.iterdir()} - {".lock"} == {
        "config.json",
        "metrics.jsonl",
        "loss.png",
        "samples",
        "checkpoints",
    }
    assert (path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in sorted((path / "samples").iterdir())] == [
        f"step_{step:07d}_text.txt" for step in (8, 16, 20)
    ]
    config = json.loads((path / "config.json").read_text())
    assert arch_jax.Experiment.from_json(config["experiment"]) == numbers.settled()
    assert config["versions"]["jax"] == jax.__version__


@arch_jax.component("drawn_numbers", kind="figure")
@dataclasses.dataclass(frozen=True)
class DrawnNumbers(arch_jax.Figure):
    """What its key draws, as text."""

    def __call__(self, task, variables, sampler, data, key):
        return {"numbers": str(jax.random.normal(key, 3))}


def test_figures_draw_alike_at_every_step(numbers, tmp_path):
    """So that what changes from one to the next is the model; and otherwise from another seed."""
    it = dataclasses.replace(numbers, figures=(DrawnNumbers(),))
    seen = []
    for seed in (0, 1):
        outcome = train(dataclasses.replace(it, seed=seed), tmp_path / str(seed))
        files = sorted((outcome.path / "samples").glob("*_numbers.txt"))
        assert len(files) > 1
        seen.append({file.read_text() for file in files})
    assert [len(texts) for texts in seen] == [1, 1]
    assert seen[0] != seen[1]


@arch_jax.component("failing_figure", kind="figure")
@dataclasses.dataclass(frozen=True)
class FailingFigure(arch_jax.Figure):
    """An exception; after it has looked for the checkpoint of the newest step."""

    folder: str = ""

    def __call__(self, task, variables, sampler, data, key):
        checkpoints = Checkpoints(Path(self.folder) / "checkpoints").steps()
        raise ImportError(f"no backend, newest checkpoint {checkpoints[-1:]}")


class Unwritable:
    """A figure that is drawn, and fails where it is written."""

    def savefig(self, *arguments, **options):
        raise ValueError("mathtext")


@arch_jax.component("unwritable_figure", kind="figure")
@dataclasses.dataclass(frozen=True)
class UnwritableFigure(arch_jax.Figure):
    def __call__(self, task, variables, sampler, data, key):
        return {"unwritable": Unwritable()}


def test_a_figure_that_fails_costs_a_warning(numbers, whole, tmp_path, capfd):
    """Its checkpoint is there before it is drawn, and what else is shown is shown."""
    figures = (FailingFigure(str(tmp_path)), UnwritableFigure(), DrawnNumbers())
    outcome = train(dataclasses.replace(numbers, figures=figures), tmp_path)
    assert outcome.finished
    assert outcome.validation == whole().validation
    assert [path.name for path in outcome.shown] == ["step_0000020_numbers.txt", "loss.png"]
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == [
        f"step_{step:07d}_numbers.txt" for step in (8, 16, 20)
    ]
    warnings = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: ")]
    failed = "warning: the figure FailingFigure failed, and is left out: ImportError: no backend, newest checkpoint "
    written = "warning: writing 'unwritable' failed, and is left out: ValueError: mathtext"
    assert warnings == [f"{failed}[8]", written, f"{failed}[16]", f"{failed}[20]"]


def test_a_loss_curve_that_fails_costs_a_warning(numbers, tmp_path, capfd, monkeypatch):
    from arch_jax.figures import canvas

    def broken(part=""):
        raise ImportError("no matplotlib here")

    monkeypatch.setattr(canvas, "library", broken)
    outcome = train(numbers, tmp_path)
    assert outcome.finished
    assert [path.name for path in outcome.shown] == ["step_0000020_text.txt"]
    said = "warning: the figure of the losses failed, and is left out: ImportError: no matplotlib here"
    assert said in capfd.readouterr().err.splitlines()


@arch_jax.component("failing_measure", kind="measure")
@dataclasses.dataclass(frozen=True)
class FailingMeasure(arch_jax.Measure):
    """An exception while a file is there."""

    file: str = ""

    def __call__(self, task, variables, sampler, data, key):
        if Path(self.file).exists():
            raise MemoryError("too large")
        return {"mine": 1.0}


def test_a_measure_that_fails_costs_a_warning_until_the_end(numbers, whole, tmp_path, capfd):
    """At the end the run is saved and shown before the error, and the same call takes the number later."""
    (tmp_path / "file").touch()
    it = dataclasses.replace(numbers, measures=(FailingMeasure("evaluation", str(tmp_path / "file")),))
    says = r"the measure FailingMeasure failed: MemoryError: too large; the run in .* is trained and saved"
    with pytest.raises(RunError, match=says):
        train(it, tmp_path / "run")
    warning = "warning: the measure FailingMeasure failed, and is left out: MemoryError: too large"
    assert capfd.readouterr().err.splitlines().count(warning) == 1
    assert (tmp_path / "run" / "loss.png").exists()
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps()[-1] == 20
    assert validation_losses(tmp_path / "run") == validation_losses(whole().path)
    with pytest.raises(RunError, match=says):  # and no checkpoint was lost
        train(it, tmp_path / "run")
    (tmp_path / "file").unlink()
    assert train(it, tmp_path / "run").validation == whole().validation | {"mine": 1.0}


@pytest.mark.parametrize("times", [1, pytest.param(2, marks=thorough)])
def test_samples_that_a_kill_left_out_are_drawn_on_resume(numbers, whole, tmp_path, monkeypatch, times):
    """A process that is killed between a save and the end of its drawing; but no third time, after a crash."""
    from arch_jax.train import showing

    class Killed(BaseException):
        pass

    def killed(*arguments, **options):
        raise Killed

    for _ in range(times):
        with monkeypatch.context() as patched:
            patched.setattr(showing, "drawn", killed)
            with pytest.raises(Killed):
                train(numbers, tmp_path)
    assert Checkpoints(tmp_path / "checkpoints").steps()[-1] == 8
    outcome = train(numbers, tmp_path)
    if times == 1:
        assert_same_run(outcome, whole())
    else:
        names = [file.name for file in sorted((tmp_path / "samples").iterdir())]
        assert names == [f"step_{step:07d}_text.txt" for step in (16, 20)]


@pytest.fixture
def panels_of(monkeypatch):
    """Run's folder -> the labels of the curves of each panel of its `loss.png`."""
    from arch_jax.train import report

    def labels(path):
        figures = []
        with monkeypatch.context() as patched:
            patched.setattr(report, "png_of", lambda figure: figures.append(figure) or b"")
            report.draw_losses(path, "loss")
        (figure,) = figures
        return [[line.get_label() for line in axes.lines] for axes in figure.axes]

    return labels


def test_loss_curve_of_lines_that_begin_with_a_validation(numbers, tmp_path, panels_of):
    """The first line is of step 8's evaluation when only every tenth step is logged."""
    outcome = train(dataclasses.replace(numbers, log_every=10), tmp_path)
    assert list(read_metrics(tmp_path)[0]) == ["step", "validation/loss"]
    (labels,) = panels_of(outcome.path)
    assert any(label.startswith("training loss") for label in labels)
    assert any(label.startswith("validation loss") for label in labels)


def test_a_game_s_validation_has_a_panel_of_its_own(tmp_path, panels_of):
    """Points that were told apart are another quantity than what either player minimises."""
    lines = [
        {"step": 1, "generator/loss": 0.7, "discriminator/loss": 1.4},
        {"step": 2, "generator/loss": 0.6, "discriminator/loss": 1.3, "validation/loss": 9.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    training, validation = panels_of(tmp_path)
    assert {label for label in training if label.startswith("training")} == {
        "training generator/loss",
        "training discriminator/loss",
    }
    assert validation == ["validation loss (last 9.0000)"]


def test_tensorboard_events(numbers, tmp_path):
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed (extra `tensorboard`)")
    from tensorboardX.proto.event_pb2 import Event

    it = dataclasses.replace(numbers, tensorboard=True)
    train(it, tmp_path, stop_after=10)
    train(it, tmp_path)
    found, purged = {}, []
    for file in sorted((tmp_path / "tensorboard").iterdir(), key=lambda file: file.stat().st_mtime):
        content = file.read_bytes()
        while content:  # TFRecord: length, its checksum, the message, its checksum
            size = int.from_bytes(content[:8], "little")
            event = Event.FromString(content[12 : 12 + size])
            content = content[16 + size :]
            purged += [event.step] if event.HasField("session_log") else []
            for one in event.summary.value:
                found.setdefault(one.tag, {})[event.step] = one.simple_value
    lines = read_metrics(tmp_path)
    for name in ("loss", "gradient_norm", "validation/loss"):
        expected = {line["step"]: line[name] for line in lines if name in line}
        assert found[name].keys() == expected.keys()
        np.testing.assert_allclose([found[name][s] for s in expected], list(expected.values()), rtol=1e-6)
    assert 11 in purged  # what a killed run had written beyond its checkpoint is hidden


# -- processes that end before their time ------------------------------------------------------------------------------


def begin(arguments: list[str], seconds_per_step: float) -> subprocess.Popen:
    command = [sys.executable, "-m", "arch_jax", *arguments]
    environment = os.environ | {"SECONDS_PER_STEP": str(seconds_per_step)}
    outside = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under `nohup` it is ignored, by what is begun there, too
    try:
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    finally:
        signal.signal(signal.SIGHUP, outside)


def wait_for_lines(process: subprocess.Popen, path: Path, count: int) -> None:
    """Until `metrics.jsonl` has so many lines more than it had."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and path.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.01)
    raise AssertionError(f"no {count} lines in {path}: {process.communicate()}")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_signals_that_ask_for_a_stop(name):
    number = getattr(signal, name)
    outside = signal.signal(number, signal.default_int_handler)  # under `nohup`, SIGHUP is ignored
    try:
        with stop_requests() as stop:
            assert not stop.is_set()
            signal.raise_signal(number)
            assert stop.is_set()
        assert signal.getsignal(number) == signal.default_int_handler
    finally:
        signal.signal(number, outside)


def test_a_hangup_that_is_ignored_stays_so():
    """`nohup arch-jax train ...` goes on when its terminal closes."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_requests() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.is_set()
    finally:
        signal.signal(signal.SIGHUP, before)


@thorough
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_and_says_how_to_go_on(file, numbers, tmp_path, number):
    settings = ["steps=400", "checkpoint_every=400", "evaluate_every=400"]
    arguments = ["train", str(file), "--workdir", str(tmp_path / "a run"), "--seed", "3"]
    arguments += [word for setting in settings for word in ("--set", setting)]
    process = begin(arguments, seconds_per_step=0.02)
    wait_for_lines(process, tmp_path / "a run" / "metrics.jsonl", 10)
    process.send_signal(number)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    steps = Checkpoints(tmp_path / "a run" / "checkpoints").steps()
    assert len(steps) == 1
    assert 10 <= steps[0] < 400
    assert out.startswith(f"stopped after step {steps[0]} of 400; resume with: arch-jax train ")
    assert len(out.splitlines()) == 1
    # The folder knows experiment, seed and settings; the parts that are a person's own come from their file.
    told = shlex.split(out.split("resume with: ")[1])
    assert told == ["arch-jax", "train", "--workdir", str(tmp_path / "a run"), "--import", str(file)]
    it = numbers.overridden(dict(setting.split("=") for setting in settings) | {"seed": 3})
    assert_same_run(train(it, tmp_path / "a run"), train(it, tmp_path / "whole"))


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, pytest.param(4, marks=thorough)])
def test_killed_at_any_moment_and_gone_on(file, numbers, tmp_path, times):
    """Each time between the first new line and about a second later: in steps, evaluations and saves."""
    steps = 60 * (1 + times)
    settings = {"steps": steps, "checkpoint_every": 5, "evaluate_every": 20}
    arguments = ["train", str(file), "--workdir", str(tmp_path / "run")]
    arguments += [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    draw, metrics = random.Random(times), tmp_path / "run" / "metrics.jsonl"
    killed = []
    for _ in range(times):
        there = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
        process = begin(arguments, seconds_per_step=0.01)
        deadline = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < deadline:
            # Cut back to the checkpoint, and then longer than before or not: either way it has begun to write.
            now = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
            if now != there:
                break
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.6))
        process.kill()
        process.communicate()
        if process.returncode == -signal.SIGKILL:
            killed.append(max((line["step"] for line in read_metrics(tmp_path / "run")), default=0))
    assert len(killed) >= max(1, times - 1), killed  # a fast machine may be done before the last
    assert killed[0] < steps
    it = numbers.overridden(settings)
    assert_same_run(train(it, tmp_path / "run"), train(it, tmp_path / "whole"))


@thorough
@pytest.mark.slow
def test_disk_full(numbers, file, tmp_path):
    """One sentence, exit code 1, and the checkpoint before is as it was; with room again, the run goes on."""
    it = numbers.overridden({"model.width": 4000})  # 64 kB a checkpoint, and little else
    train(it, tmp_path / "run", stop_after=6)
    before = contents(tmp_path / "run" / "checkpoints" / "6")
    code = f"""
        import resource, sys
        from arch_jax.cli import main
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        sys.exit(main(["train", {str(file)!r}, "--workdir", {str(tmp_path / "run")!r}, "--set", "model.width=4000"]))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=ROOT,
        env=os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith(("going on from step 6", "step "))]
    folder = tmp_path / "run" / "checkpoints"
    assert lines == [
        f"arch-jax: checkpoint 8 could not be written to {folder}: a file grew beyond the size allowed here; "
        "checkpoint 6 before it is intact"
    ]
    assert contents(folder / "6") == before
    assert_same_run(train(it, tmp_path / "run"), train(it, tmp_path / "whole"))
