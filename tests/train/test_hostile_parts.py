"""Parts of one's own that give what nobody can use: each is refused by name, and nothing silently goes wrong."""

import dataclasses
import shutil
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import arch_jax
from arch_jax import fields
from arch_jax.cli import main
from arch_jax.errors import RunError, UsageError
from arch_jax.evaluation.base import measured
from arch_jax.figures.base import drawn
from arch_jax.objectives.classify import Classify
from arch_jax.study.runs.run import StudyRun
from arch_jax.study.runs.study import Study
from arch_jax.train import open_run, train
from arch_jax.train.report import save_shown
from arch_jax.train.workdir import read_metrics
from arch_jax.trained import Frozen, Start

DIGITS = arch_jax.Images(source="digits", batch=16, resize=28, pad=2)


@fields.component("hostile_sampler", kind="sampler")
@dataclasses.dataclass(frozen=True)
class Teaching(arch_jax.Sampler):
    """The teacher's scores of a grey image."""

    teacher: Annotated[Any, fields.Kind("frozen")] | None = None
    uses_data = False

    def __call__(self, task, variables, data, key, count=1):
        return {"text": str(np.asarray(self.teacher.apply(variables, jnp.ones((1, 32, 32, 1)))).tolist())}


@fields.component("hostile_measure", kind="measure")
@dataclasses.dataclass(frozen=True)
class Given(arch_jax.Measure):
    """A number under a name."""

    name: str = "mine"
    number: float = 1.0

    def __call__(self, task, variables, sampler, data, key):
        return {self.name: np.float32(self.number)}


@dataclasses.dataclass(frozen=True)
class Anything(arch_jax.Measure):
    """Whatever it is made with."""

    given: Any = None

    def __call__(self, task, variables, sampler, data, key):
        return self.given


class Number(arch_jax.Figure):
    """Not a figure."""

    def __call__(self, task, variables, sampler, data, key):
        return {"a": 1}


@fields.component("hostile_objective", kind="objective")
@dataclasses.dataclass(frozen=True)
class Wrong(Classify):
    """A classifier's objective that returns something wrong."""

    kind: str = ""

    def loss(self, player, phase, variables, batch, key, step):
        loss, (metrics, updates) = super().loss(player, phase, variables, batch, key, step)
        match self.kind:
            case "vector":
                return (jnp.ones(3), loss[1]), (metrics, updates)
            case "scalar":
                return loss[0], (metrics, updates)
            case "integer":
                return (loss[0], 16), (metrics, updates)
            case "params":
                return loss, (metrics, updates | {"params": {}})
        return loss, (metrics, updates)

    def evaluate(self, variables, batch):
        metrics = super().evaluate(variables, batch)
        match self.kind:
            case "no loss":
                return {"accuracy": metrics["accuracy"]}
            case "no pair":
                return metrics | {"accuracy": metrics["accuracy"][0]}
            case "no weight":
                return metrics | {"rare": (jnp.zeros(()), jnp.zeros(()))}
        return metrics


def experiment(kind="", **changes):
    module, objective = arch_jax.create("mlp", hidden=(8,)), Wrong(kind=kind)
    return arch_jax.Experiment(module, objective, DIGITS, steps=1).overridden({"figures": "[]"} | changes)


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """Two teachers, and a run whose sampler has the first."""
    folder = tmp_path_factory.mktemp("taught")
    for i in range(2):
        train(experiment(seed=i), folder / f"teacher_{i}")
    train(dataclasses.replace(experiment(), sampler=Teaching(Frozen(str(folder / "teacher_0")))), folder / "run")
    return folder


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("vector", r"has a sum of shape \(3,\) and a weight of shape \(\); expected scalars"),
        ("scalar", r"the loss of Wrong for player 'model' in phase 'main' is not \(\(sum, weight\)"),
        ("params", "updates 'params'; expected collections of its own"),
        ("no loss", "the objective Wrong in `evaluate` gives accuracy; expected 'loss' among them"),
        ("no pair", r"the objective Wrong in `evaluate` gives 'accuracy' as .*; expected a pair of scalars"),
    ],
)
def test_an_objective_that_returns_something_else(kind, sentence, tmp_path):
    with pytest.raises(UsageError, match=sentence):
        train(experiment(kind), tmp_path)


def test_a_weight_that_is_an_integer_and_a_metric_that_nothing_counts_for(tmp_path):
    plain = train(experiment(), tmp_path / "plain")
    assert train(experiment("integer"), tmp_path / "integer").validation == plain.validation
    assert train(experiment("no weight"), tmp_path / "rare").validation == plain.validation


def test_numbers_of_measures(tmp_path):
    found = train(dataclasses.replace(experiment(), measures=(Given(),)), tmp_path / "fine")
    assert found.validation["mine"] == 1.0
    assert read_metrics(tmp_path / "fine")[-1]["validation/mine"] == 1.0
    with pytest.raises(UsageError, match="the measure Given gives 'loss', which is a metric already"):
        train(dataclasses.replace(experiment(), measures=(Given(name="loss"),)), tmp_path / "taken")
    with pytest.raises(RunError, match="the measure mine is inf at step 1"):
        train(dataclasses.replace(experiment(), measures=(Given(number=np.inf),)), tmp_path / "wild")
    for wrong, sentence in (
        ({"a": np.ones(2)}, "gives 'a' as array"),
        ({"a": "x"}, "gives 'a' as 'x'"),
        ({"a": None}, "gives 'a' as None"),
        (None, "gives NoneType; expected numbers by name"),
    ):
        with pytest.raises(UsageError, match=sentence):
            measured([Anything(given=wrong)], None, None, None, None, jax.random.key(0))


def test_things_of_figures_and_their_names(tmp_path):
    with pytest.raises(UsageError, match="gives 'a' as int; expected text or a matplotlib figure"):
        drawn([Number()], None, None, None, None, jax.random.key(0))
    for name in ("../a", "a/b", "/a", "..", ""):
        with pytest.raises(UsageError, match="expected letters, digits"):
            save_shown(tmp_path / "samples", "seed_0", {"fine": "x", name: "x"})
    assert not (tmp_path / "samples").exists()
    with pytest.raises(UsageError, match="the sample 'a' is NoneType; expected text, a figure or an array"):
        save_shown(tmp_path, "seed_0", {"a": None})
    (written,) = save_shown(tmp_path, "seed_0", {"a": "\ud800"})
    assert written.read_text() == "?\n"


def test_old_and_new_name_of_one_field():
    for given in ({"picture": 32, "resolution": 64}, {"resolution": 64, "picture": 32}):
        with pytest.raises(UsageError, match="resolution is set twice, also by its old name 'picture'"):
            fields.from_json({"module": "vae"} | given)
        with pytest.raises(UsageError, match="resolution is set twice"):
            fields.override(arch_jax.create("vae"), given)


def test_a_field_that_json_has_no_place_for():
    with pytest.raises(UsageError, match="has a field called 'module', which in JSON is the component's name"):

        @fields.component("hostile_field", kind="sampler")
        @dataclasses.dataclass(frozen=True)
        class Held(arch_jax.Sampler):
            module: str = ""


def test_validation_rows_without_weights():
    with pytest.raises(UsageError, match="validation rows have x; expected 'weights' among them"):
        list(arch_jax.ValidationBatches(lambda rows: {"x": np.zeros(len(rows))}, 3, 2))


def test_a_mapping_with_a_group_that_is_not_there():
    with pytest.raises(UsageError, match=r"start.mapping replaces '.params' by .*: invalid group reference 3"):
        Start("x", mapping=(("^params", r"\3"),)).mapped("params/a")


@pytest.mark.thorough
def test_a_trained_part_of_the_sampler_is_opened_anew_where_it_is_set(taught, tmp_path):
    run = open_run(taught / "run")
    first, second = str(taught / "teacher_0"), str(taught / "teacher_1")
    assert run.sample(0, 1, {"teacher": first}) == run.sample(0) != run.sample(0, 1, {"teacher": second})
    with pytest.raises(UsageError, match=r"sampler.teacher: .* is not what the run was made with"):
        run.sample(0, 1, {"teacher.source": second})
    with pytest.raises(UsageError, match="count is 0; expected at least 1"):
        run.sample(0, 0)
    for seed in (-1, 2**32):
        with pytest.raises(UsageError, match=f"seed is {seed}; expected 0 to"):
            run.sample(seed)


@pytest.mark.thorough
def test_a_run_is_opened_from_another_working_directory(taught, tmp_path, monkeypatch):
    monkeypatch.chdir(taught)
    relative = dataclasses.replace(experiment(), sampler=Teaching(Frozen("teacher_0")), start=Start("teacher_1"))
    train(relative, tmp_path / "run")
    train(relative, tmp_path / "run")  # it is the same run
    monkeypatch.chdir(tmp_path)
    run = open_run(tmp_path / "run")
    assert run.experiment.sampler.teacher.source == str(taught / "teacher_0")
    assert run.sample(0) == open_run(taught / "run").sample(0)


def test_a_circle_of_sources(taught, tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    shutil.copytree(taught / "teacher_0", other)
    train(dataclasses.replace(experiment(), sampler=Teaching(Frozen(str(other)))), one)
    shutil.rmtree(other)
    shutil.copytree(one, other)
    with pytest.raises(UsageError, match="leads back to it; expected no circle of sources"):
        open_run(one)


def test_text_is_printed_where_nothing_can_be_written(taught, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["sample", str(taught / "run"), "--out", str(tmp_path / "file")]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("[[")
    assert said.err.startswith("not written: ")


def test_a_study_takes_a_source_that_has_changed_for_another(taught, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(taught / "teacher_0", source)
    cell = StudyRun("a", dataclasses.replace(experiment(**{"optimizer.learning_rate": 0.0}), start=Start(str(source))))
    losses = []
    for _ in range(2):
        with Study(tmp_path / "study") as study:
            (result,) = study.run([cell])
        losses.append(result.validation["loss"])
        shutil.rmtree(source)
        shutil.copytree(taught / "teacher_1", source)
    assert losses[0] != losses[1]
    expected = [open_run(taught / f"teacher_{i}").evaluate()["loss"] for i in range(2)]
    assert losses == pytest.approx(expected, rel=1e-5)


def test_a_study_trains_what_it_needs(taught, tmp_path, monkeypatch):
    from arch_jax.train import loop

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(loop, "load_experiment", lambda name: (experiment(seed=1), None))
    with Study(tmp_path / "study") as study:
        (result,) = study.run([StudyRun("a", dataclasses.replace(experiment(), start=Start("xor")))])
    assert result.status == "finished"
