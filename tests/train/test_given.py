"""Trained parts from elsewhere: frozen ones that no step changes, and weights that a run starts from."""

import dataclasses
import json
import shutil
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import arch_jax
from arch_jax import fields
from arch_jax.fields import Kind, component
from arch_jax.objectives.classify import Classify
from arch_jax.train import loop, open_run, train
from arch_jax.train.checkpointing.checksums import leaf_paths
from arch_jax.train.given import open_given
from arch_jax.train.workdir import read_config
from arch_jax.trained import Frozen, Start


@component("test_given_distil", kind="objective")
@dataclasses.dataclass(frozen=True)
class Distil(Classify):
    """Cross-entropy with a teacher's classes (Hinton et al. 2015, 1503.02531, section 2, temperature 1)."""

    teacher: Annotated[Any, Kind("frozen")] | None = None

    def loss(self, player, phase, variables, batch, key, step):
        (_, weight), (metrics, updates) = super().loss(player, phase, variables, batch, key, step)
        logits, _ = self.apply(variables, batch["images"], key=key)
        soft = jax.nn.softmax(self.teacher.apply(variables, batch["images"]))
        total = -jnp.sum(soft * jax.nn.log_softmax(logits))
        return (total, weight), (metrics | {"distilled": (total, weight)}, updates)

    def evaluate(self, variables, batch):
        agree = self.teacher.apply(variables, batch["images"]).argmax(-1) == self.model.apply(
            variables, batch["images"]
        ).argmax(-1)
        weights = jnp.asarray(batch["weights"])
        return super().evaluate(variables, batch) | {"agreement": (jnp.sum(agree * weights), jnp.sum(weights))}


DIGITS = arch_jax.Images(source="digits", batch=16, resize=28, pad=2)


def experiment(objective=None, **changes):
    it = arch_jax.Experiment(
        arch_jax.create("mlp", hidden=(8,)),
        objective or arch_jax.objective("classify", show_images=4),
        DIGITS,
        steps=4,
    )
    return it.overridden({"evaluate_every": 4, "checkpoint_every": 2, "figures": "[]"} | changes)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    train(experiment(), folder)
    return folder


@pytest.fixture(scope="module")
def student(teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("student")
    outcome = train(distilling(teacher), folder)
    return folder, outcome


def distilling(teacher, **changes):
    return experiment(Distil(teacher=Frozen(str(teacher)), show_images=4), **{"ema": 0.5, "seed": 1} | changes)


def leaves(tree):
    return {path: np.asarray(leaf) for path, leaf in leaf_paths(tree)[0].items()}


def same(one, other):
    one, other = leaves(one), leaves(other)
    return one.keys() == other.keys() and all((one[path] == other[path]).all() for path in one)


def test_a_frozen_part_is_what_its_run_made_and_no_step_changes_it(teacher, student):
    folder, outcome = student
    taught = open_run(teacher).variables
    (held,) = outcome.state.frozen.values()
    assert same(held, taught)
    assert set(outcome.state.average) == {"model"}  # nothing of the teacher is averaged, nor has it moments
    assert not any(same(tree, taught) for tree in (outcome.state.variables["params"],))
    run = open_run(folder)
    logits = run.experiment.objective.teacher.apply(run.variables, jnp.zeros((2, 32, 32, 1)))
    expected = open_run(teacher).experiment.model.apply(taught, jnp.zeros((2, 32, 32, 1)))
    np.testing.assert_array_equal(logits, expected)
    assert run.evaluate() == pytest.approx(outcome.validation)
    assert "agreement" in outcome.validation


def test_its_hash_stands_in_the_configuration_and_no_checkpoint_holds_it(teacher, student):
    folder, outcome = student
    stored = read_config(folder)["experiment"]["objective"]["teacher"]
    assert stored["source"] == str(teacher)
    assert stored["sha256"] == next(iter(outcome.state.frozen))
    assert stored["model"] == fields.to_json(open_run(teacher).experiment.model)
    record = next(folder.glob("checkpoints/4/record/*.json")).read_text()
    assert "frozen" not in record
    assert "parameters/model" in record


def test_a_run_with_a_frozen_part_is_resumed_bit_for_bit(teacher, student, tmp_path):
    _, whole = student
    train(distilling(teacher), tmp_path, stop_after=2)
    assert same(train(distilling(teacher), tmp_path).state.parameters, whole.state.parameters)


def test_no_gradient_reaches_a_frozen_part(teacher, student):
    folder, _ = student
    run = open_run(folder)
    batch = jax.tree.map(jnp.asarray, next(iter(DIGITS.load().validation())))
    loss = lambda variables: run.experiment.task.loss("model", "main", variables, batch, jax.random.key(0), 0)[0][0]
    slopes = jax.jit(jax.grad(loss))(run.variables)
    assert all((leaf == 0).all() for leaf in leaves(slopes["frozen"]).values())
    assert any((leaf != 0).any() for leaf in leaves(slopes["params"]).values())


def test_a_source_that_has_changed_is_refused(teacher, student, tmp_path):
    folder, _ = student
    other = tmp_path / "other"
    train(experiment(seed=7), other)
    config = json.loads((folder / "config.json").read_text())
    copy = tmp_path / "copy"
    train(distilling(teacher), copy, stop_after=2)
    config["experiment"]["objective"]["teacher"]["source"] = str(other)
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(arch_jax.UsageError, match=r"objective\.teacher: .* is not what the run was made with"):
        open_run(copy)
    with pytest.raises(arch_jax.UsageError, match=r"objective\.teacher\.(sha256|source)="):
        train(distilling(other), folder)


def test_a_teacher_may_lie_elsewhere_by_now(teacher, student, tmp_path):
    """A trained part is known by its content, as data is."""
    moved = shutil.copytree(teacher, tmp_path / "moved")
    copy = shutil.copytree(student[0], tmp_path / "copy")
    run = open_run(copy, moved={"objective.teacher.source": str(moved)})
    assert run.experiment.objective.teacher.source == str(moved)
    train(distilling(moved), copy)
    assert read_config(copy)["experiment"]["objective"]["teacher"]["source"] == str(moved)
    with pytest.raises(
        arch_jax.UsageError, match=r"'objective\.techer\.source' is no source of the run .* the nearest"
    ):
        open_run(copy, moved={"objective.techer.source": str(moved)})


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("no/such", r"objective\.teacher: 'no/such' is no folder and no experiment"),
        ("gp", r"'gp' is no folder and no experiment; .*the nearest"),
        (".", r"'/.*' has no config\.json; expected the folder of a run or of a checkpoint"),
    ],
)
def test_a_source_that_is_none(source, sentence, tmp_path):
    with pytest.raises(arch_jax.UsageError, match=sentence):
        train(distilling(source), tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_an_experiment_is_trained_on_demand_once(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(loop, "load_experiment", lambda name: (experiment(steps=2, evaluate_every=2), None))
    it = distilling("xor")
    batch = {name: jax.ShapeDtypeStruct(*facts) for name, facts in DIGITS.load().shapes.items()}
    with pytest.raises(arch_jax.UsageError, match="the experiment 'xor' has not been trained to its end in"):
        open_given(it, batch)
    train(it, tmp_path / "run")
    assert "training xor for objective.teacher, once, in" in capfd.readouterr().err
    opened, given, held = open_given(it, batch)
    assert opened.objective.teacher.model == experiment().model
    assert given.frozen.keys() == held.keys() == {opened.objective.teacher.sha256}
    train(it, tmp_path / "again")
    assert "training xor" not in capfd.readouterr().err


def test_a_source_is_given_as_text():
    it = experiment(Distil()).overridden({"objective.teacher": "runs/mlp-1"})
    assert it.objective.teacher == Frozen("runs/mlp-1")
    assert arch_jax.Experiment.from_json(it.to_json()) == it


def test_an_unopened_part_says_what_it_needs():
    with pytest.raises(arch_jax.UsageError, match="the frozen part 'here' has not been opened"):
        Frozen("here").apply({"params": {}}, 0)


# -- start -------------------------------------------------------------------------------------------------------------


def test_a_run_starts_from_the_weights_of_another(teacher, tmp_path):
    begun = train(experiment(start=str(teacher), **{"optimizer.learning_rate": 0.0, "ema": 0.5}), tmp_path)
    taught = open_run(teacher).variables
    assert same(begun.state.variables, taught)
    assert same({"params": begun.state.average["model"]}, {"params": taught["params"]})
    assert open_run(tmp_path).evaluate() == pytest.approx(open_run(teacher).evaluate())
    stored = read_config(tmp_path)["experiment"]["start"]
    assert len(stored["sha256"]) == 64


def test_once_begun_a_run_no_longer_needs_its_source(teacher, tmp_path, monkeypatch):
    source = tmp_path / "source"
    shutil.copytree(teacher, source)
    it = experiment(start=str(source))
    whole = train(it, tmp_path / "whole")
    train(it, tmp_path / "parts", stop_after=2)
    shutil.rmtree(source)
    assert same(train(it, tmp_path / "parts").state.parameters, whole.state.parameters)
    assert open_run(tmp_path / "parts").step == 4
    monkeypatch.chdir(tmp_path)  # the same folder under a shorter name, though it is gone
    assert train(experiment(start="source"), tmp_path / "parts").step == 4


def test_a_folder_that_has_the_name_of_an_experiment_and_is_no_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "xor").mkdir()
    batch = {name: jax.ShapeDtypeStruct(*facts) for name, facts in DIGITS.load().shapes.items()}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(arch_jax.UsageError, match="the experiment 'xor' has not been trained to its end"):
        open_given(experiment(start="xor"), batch)


def test_paths_are_mapped_and_what_has_no_place_is_named(teacher, tmp_path):
    wide = {"model.hidden": "[8, 5]"}
    named = sorted(leaves(open_run(teacher).variables))
    deeper = experiment(**wide)
    with pytest.raises(arch_jax.UsageError, match=r"start: .* has shape .*; expected the same, or a pattern of it"):
        train(dataclasses.replace(deeper, start=Start(str(teacher))), tmp_path / "a")
    first = "hidden_1"
    assert f"params/{first}/kernel" in named
    start = Start(str(teacher), fresh=(rf"^params/(?!{first}/)",))
    begun = train(dataclasses.replace(deeper, start=start).overridden({"optimizer.learning_rate": 0.0}), tmp_path / "b")
    mine, taught = leaves(begun.state.variables), leaves(open_run(teacher).variables)
    np.testing.assert_array_equal(mine[f"params/{first}/kernel"], taught[f"params/{first}/kernel"])
    renamed = Start(str(teacher), mapping=(("^params/hidden_1/", "params/elsewhere/"),))
    with pytest.raises(arch_jax.UsageError, match="has 'params/elsewhere/bias', for which the run has no place"):
        train(dataclasses.replace(experiment(), start=renamed), tmp_path / "c")
    with pytest.raises(arch_jax.UsageError, match="has no 'params/hidden_1/bias'; map it"):
        train(
            dataclasses.replace(experiment(), start=dataclasses.replace(renamed, unused=("elsewhere",))), tmp_path / "d"
        )


def test_a_pattern_that_is_none():
    with pytest.raises(arch_jax.UsageError, match=r"'\(' of the start is no regular expression"):
        Start("runs/x", unused=("(",))
