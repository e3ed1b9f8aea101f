"""Comparisons: models as they are asked for, fitted to a task and a budget, tuned, ranked, and what is said of it."""

import csv
import dataclasses
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import arch_jax
from arch_jax import registry
from arch_jax.errors import UsageError
from arch_jax.experiment import load
from arch_jax.inputs import Rows, images
from arch_jax.study.compare.budget import Budget
from arch_jax.study.compare.candidates import Contestant, fitted, parse_grid, parse_model
from arch_jax.study.compare.compare import APART, compare
from arch_jax.study.compare.presentation import comparison_table, draw_comparison, write_comparison_csv
from arch_jax.study.runs.run import StudyRun
from arch_jax.study.runs.steps import lasting
from arch_jax.study.runs.study import Study
from arch_jax.study.sizing import parameters
from arch_jax.study.statistics import holm, interval, paired

TOY, TOY_FILE = load(str(Path(__file__).with_name("toy.py")))
TOY = dataclasses.replace(TOY, evaluate_every=20, checkpoint_every=20)
TEXT = "The quick brown fox jumps over the lazy dog.\n" * 60


@arch_jax.component("compare_broken", kind="study_activation")
@dataclasses.dataclass(frozen=True)
class Broken(TOY_FILE.Tanh):
    """Nothing finite comes of it."""

    def __call__(self, x):
        return x * jnp.nan


class PointsOfAWave(Rows):
    """Example inputs of the toy's models."""

    names = ("x",)

    def batch(self, module, size, key):
        return {"x": jnp.zeros((size, 2)), "y": jnp.zeros((size,))}


@pytest.fixture
def toys(monkeypatch):
    """Models for the toy's task, known to the registry for one test: a net, a line, and one that diverges."""
    registry.models()
    facts = {"family": "rnn", "objective": "study_squares", "paper": arch_jax.Paper("None", "Nobody", 2000)}
    builders = {
        "toy_net": lambda: TOY_FILE.Net(width=16, depth=1),
        "toy_line": lambda: TOY_FILE.Net(width=8, depth=1, activation=TOY_FILE.Nothing()),
        "toy_broken": lambda: TOY_FILE.Net(activation=Broken()),
        "toy_of_pictures": lambda: arch_jax.create("lenet5"),
    }
    for name, build in builders.items():
        inputs = images(32, 1) if name == "toy_of_pictures" else PointsOfAWave()
        entry = registry.Entry(name=name, build=build, inputs=inputs, **facts)
        monkeypatch.setitem(registry._ENTRIES, name, entry)


def run(path, texts, budget, **options):
    with Study(path) as study:
        return compare([parse_model(text) for text in texts], TOY, Budget.parse(budget), study, **options)


@pytest.mark.parametrize(
    ("text", "name", "changes"),
    [
        ("gpt", "gpt", {}),
        ("gpt:mixer.kv_heads=1,norm=layer_norm", "gpt", {"mixer.kv_heads": "1", "norm": "layer_norm"}),
        (
            'gpt:mixer={"module": "attention", "heads": 4, "window": 8}, depth=2',
            "gpt",
            {"mixer": '{"module": "attention", "heads": 4, "window": 8}', "depth": "2"},
        ),
        (
            'gpt:depth=3,mixer=["lstm", {"module": "attention", "heads": 3}]',
            "gpt",
            {"depth": "3", "mixer": '["lstm", {"module": "attention", "heads": 3}]'},
        ),
    ],
)
def test_models_as_they_are_asked_for(text, name, changes):
    assert parse_model(text) == Contestant(text, name, changes)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("gtp", "unknown model 'gtp'; the nearest"),
        ("gpt:depth", "the model 'gpt:depth' has 'depth'; expected field=value, such as gpt:depth=4"),
        ("gpt:", "the model 'gpt:' has ''; expected field=value"),
        ("gpt:dept=4", "gpt:dept=4: unknown field 'dept'; the nearest is 'depth'"),
        ("gpt:depth=x", "gpt:depth=x: depth is 'x'; expected an integer"),
    ],
)
def test_models_that_can_not_be(text, sentence):
    with pytest.raises(UsageError, match=sentence):
        parse_model(text)


def test_budgets_and_grids_as_they_are_asked_for():
    assert Budget.parse("parameters=1e6") == Budget("parameters", 1e6)
    assert parse_grid("learning_rate=1e-4, 3e-4") == ("learning_rate", ["1e-4", "3e-4"])
    for text, sentence in {
        "1e6": "the budget is '1e6'; expected kind=amount",
        "flop=1e15": "unknown budget 'flop'; the nearest is 'flops'",
        "tokens=-1": "the budget of tokens is -1.0; expected a number above 0",
        "seconds=inf": "the budget of seconds is inf; expected a number above 0",
        "seconds=soon": "the budget of seconds is 'soon'; expected a number",
    }.items():
        with pytest.raises(UsageError, match=sentence):
            Budget.parse(text)
    for text in ("learning_rate", "learning_rate=", "=1,2"):
        with pytest.raises(UsageError, match="expected field=value,value"):
            parse_grid(text)


@pytest.fixture
def language(tmp_path):
    """An experiment on a small text of few characters, and its data."""
    (tmp_path / "text.txt").write_text(TEXT)
    data = arch_jax.Text(source=f"text:{tmp_path / 'text.txt'}", tokenizer="characters", length=16, batch=4)
    corpus = data.load()
    model = arch_jax.create("gpt", vocabulary=corpus.tokenizer.vocabulary, dtype="bfloat16")
    objective = arch_jax.objective("next_token", prompt="The")
    experiment = arch_jax.Experiment(model, objective, data, steps=4, evaluate_every=4, name="small")
    return experiment, corpus


def test_what_the_task_decides(language):
    experiment, corpus = language
    vocabulary = experiment.model.vocabulary
    changes, fit = fitted(parse_model("gpt2:depth=2"), experiment, corpus)
    assert changes == {"position.length": 16, "vocabulary": vocabulary, "dtype": jnp.bfloat16}
    assert (fit.model.depth, fit.model.position.length, fit.model.vocabulary) == (2, 16, vocabulary)
    assert fitted(parse_model("lstm:dtype=float32"), experiment, corpus)[0] == {"vocabulary": vocabulary}
    # What was asked for stays, also where a part was set as a whole.
    changes, fit = fitted(parse_model(f"gpt2:position=sinusoidal,vocabulary={vocabulary + 3}"), experiment, corpus)
    assert changes == {"dtype": jnp.bfloat16}
    assert fit.model.vocabulary == vocabulary + 3


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("lenet5", "the model 'lenet5' is made for the objective 'classify', and the experiment 'small' has 'next_tok"),
        ("gpt2:position.length=8", "gpt2:position.length=8: a sequence of 16 tokens is longer than the table of 8"),
        ("gpt:width=100", "gpt:width=100: width 100 is not divisible by heads 6"),
        ("gpt:vocabulary=5", "gpt:vocabulary=5: model.vocabulary is 5, but the tokenizer"),
    ],
)
def test_models_that_do_not_fit(text, sentence, language):
    with pytest.raises(UsageError, match=sentence):
        fitted(parse_model(text), *language)


def test_a_model_of_other_inputs(toys):
    sentence = "the model 'toy_of_pictures' takes images, labels, weights, and the data of the experiment 'toy' gives"
    with pytest.raises(UsageError, match=sentence):
        fitted(parse_model("toy_of_pictures"), TOY, TOY.data)


@pytest.mark.thorough
def test_language_models_at_equal_parameters(language, tmp_path):
    """A decoder and a recurrence with as many parameters, on the same text."""
    experiment, corpus = language
    experiment = experiment.overridden({"model.dtype": "float32"})
    with Study(tmp_path / "study") as study:
        found = compare(
            [parse_model("gpt:norm=layer_norm"), parse_model("lstm")],
            experiment,
            Budget("parameters", 7e4),
            study,
            seeds=1,
        )
        batch = {name: jax.ShapeDtypeStruct(*facts) for name, facts in corpus.shapes.items()}
        for row in found.rows:
            assert abs(row.parameters / 7e4 - 1) <= 0.02
            (result,) = row.results
            assert parameters(result.cell.experiment, batch) == row.parameters
            assert result.cell.experiment.model.vocabulary == corpus.tokenizer.vocabulary
            assert row.steps == result.step == 4
            assert row.values[0] < 1.2 * math.log(corpus.tokenizer.vocabulary)
    assert any(line.startswith("parameters: ") for line in found.held_equal)
    assert "tokens seen: 256" in found.held_equal
    assert any(line.startswith("width: ") for line in found.not_equal)
    assert any("no interval from fewer than 3" in note for note in found.notes)


@pytest.mark.thorough
def test_figures_of_a_comparison(toys, tmp_path):
    """Ranks, differences, intervals, totals, and that asking again runs nothing again."""
    texts, options = ["toy_line", "toy_net", "toy_broken"], {"seeds": 3}
    found = run(tmp_path, texts, "tokens=3200", **options)
    assert [row.label for row in found.rows] == ["toy_net", "toy_line", "toy_broken"]
    best, second, broken = found.rows
    assert found.seeds == (0, 1, 2)
    assert all(row.steps == 100 and row.units == 3200 for row in found.rows)
    for row in (best, second):
        assert row.mean == interval(list(row.values.values()))
        assert [r.cell.experiment.seed for r in row.results] == [0, 1, 2]
        assert all(r.cell.part == "all" for r in row.results)
        assert row.flops == 100 * row.step_flops > 0
        assert row.seconds == pytest.approx(100 * row.step_seconds)
    assert best.difference is None
    assert second.difference == paired([second.values[s] for s in range(3)], [best.values[s] for s in range(3)])
    assert second.p == holm([second.difference.p])[0]
    assert (broken.mean, broken.difference, len(broken.diverged)) == (None, None, 3)
    assert sum("toy_broken, seed" in note and "diverged" in note for note in found.notes) == 3
    assert "steps: 100" in found.held_equal
    assert "points seen: 3,200" in found.held_equal
    assert any(line.startswith("parameters: ") for line in found.not_equal)
    assert any(line.startswith("time of the training: ") for line in found.not_equal)

    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("cells/*/*.json")}
    again = run(tmp_path, texts, "tokens=3200", **options)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("cells/*/*.json")} == before
    assert again.to_json() == found.to_json()

    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert [one["rank"] for one in data["models"]] == [1, 2, 3]
    assert data["models"][0]["values"] == {str(seed): value for seed, value in best.values.items()}
    headers, rows = comparison_table(found)
    assert {len(row) for row in rows} == {len(headers)}
    assert [row[1] for row in rows] == ["toy_net", "toy_line", "toy_broken"]
    with open(write_comparison_csv(found, tmp_path / "figures.csv")) as file:
        written = list(csv.DictReader(file))
    assert float(written[1]["loss_mean"]) == second.mean.mean
    assert (written[2]["loss_mean"], written[2]["diverged"]) == ("", "3")
    picture = np.asarray(Image.open(draw_comparison(found, tmp_path / "figures.png")).convert("RGB"))
    for i in (0, 1):  # each model's colour is in each of the three panels
        colour = ((0, 0, 0), (0x00, 0x72, 0xB2))[i]
        there = (np.abs(picture.astype(int) - colour).sum(axis=2) < 12).sum(axis=0)
        assert all(there[part].sum() > 30 for part in np.array_split(np.arange(picture.shape[1]), 3))


def test_tuning(toys, tmp_path):
    """Each gets the rate that is best for it, by batches and a seed that are not reported on."""
    rates = {"learning_rate": ["1e-5", "1e-2", "1e30"], "optimizer.clip": ["none"]}
    found = run(tmp_path, ["toy_net", "toy_net:width=8"], "tokens=3200", seeds=1, tune=rates)
    for row in found.rows:
        assert row.tuned == {"optimizer.learning_rate": 1e-2, "optimizer.clip": None}
        (result,) = row.results
        assert (result.cell.part, result.cell.experiment.seed) == ("report", 0)
        assert result.cell.experiment.optimizer.learning_rate == 1e-2
    cells = [json.loads(path.read_text()) for path in tmp_path.glob("cells/*/config.json")]
    seeds = [(cell["experiment"]["seed"], cell["experiment"]["optimizer"]["learning_rate"]) for cell in cells]
    assert sorted(seeds) == sorted([(0, 1e-2), (APART, 1e-5), (APART, 1e-2), (APART, 1e30)] * 2)
    assert any(line.startswith("learning_rate: 0.01, chosen for each") for line in found.held_equal)
    assert not any("edge" in note for note in found.notes)
    assert any("every other validation batch" in note for note in found.notes)

    rates["learning_rate"].remove("1e30")
    edge = run(tmp_path, ["toy_net", "toy_net:width=8"], "tokens=3200", seeds=1, tune=rates)
    assert sum("0.01, is at the edge of what was tried" in note for note in edge.notes) == 2


def test_models_that_turn_out_the_same(toys, tmp_path):
    found = run(tmp_path, ["toy_net", "toy_net:width=16"], "tokens=320", seeds=1)
    assert found.rows[0].values == found.rows[1].values
    assert any("toy_net:width=16 is the same model as toy_net under this budget" in note for note in found.notes)
    assert len(list(tmp_path.glob("cells/*"))) == 1


def test_what_can_not_be_tuned(toys, tmp_path):
    for tune, sentence in {
        "model.width": "model.width can't be tuned",
        "learning_rat": "unknown field 'optimizer.learning_rat'; the nearest are 'optimizer.learning_rate'",
    }.items():
        with pytest.raises(UsageError, match=sentence):
            run(tmp_path, ["toy_net", "toy_line"], "tokens=640", tune={tune: ["1"]})
    with pytest.raises(UsageError, match="learning_rate is 'fast'; expected a number"):
        run(tmp_path, ["toy_net", "toy_line"], "tokens=640", tune={"learning_rate": ["fast"]})
    assert not list(tmp_path.glob("cells/*"))


@pytest.mark.thorough
def test_a_budget_of_flops(toys, tmp_path):
    found = run(tmp_path, ["toy_net", "toy_line"], "flops=5e7", seeds=1)
    for row in found.rows:
        assert abs(row.flops / 5e7 - 1) <= 0.02
        assert (row.steps, set(row.changes)) == (40, {"depth", "width"})
    assert any(line.startswith("FLOPs of the training: ") for line in found.held_equal)


@pytest.mark.thorough
def test_a_budget_of_seconds(toys, tmp_path):
    """The steps follow from a step's time, which is measured once and kept."""
    found = run(tmp_path, ["toy_net", "toy_line"], "seconds=0.02", seeds=1)
    timed = {}
    with Study(tmp_path) as study:
        for path in tmp_path.glob("cells/*/config.json"):
            experiment = arch_jax.Experiment.from_json(json.loads(path.read_text())["experiment"])
            if experiment.seed == APART:
                timed[experiment.model.width] = study.result(StudyRun("", experiment, "tuning")).step_seconds
    for row in found.rows:
        assert row.steps == round(0.02 / timed[row.results[0].cell.experiment.model.width])
        assert row.results[0].step == row.steps
    assert [row.steps for row in run(tmp_path, ["toy_net", "toy_line"], "seconds=0.02", seeds=1).rows] == [
        row.steps for row in found.rows
    ]


def test_a_schedule_is_stretched_with_the_steps():
    optimizer = dataclasses.replace(TOY.optimizer, warmup=10, horizon=40, schedule="cosine")
    experiment = dataclasses.replace(TOY, optimizer=optimizer, log_every=20)
    longer, shorter = lasting(experiment, 100), lasting(experiment, 10)
    assert (longer.optimizer.warmup, longer.settled().optimizer.horizon, longer.evaluate_every) == (25, 100, 50)
    assert (shorter.optimizer.warmup, shorter.settled().optimizer.horizon, shorter.log_every) == (2, 10, 10)
    assert lasting(experiment, 40) == experiment


@pytest.mark.parametrize(
    ("texts", "budget", "options", "sentence"),
    [
        (["toy_net"], "tokens=640", {}, "compare has 1 models; expected at least 2"),
        (["toy_net", "toy_net"], "tokens=640", {}, "the model 'toy_net' stands twice"),
        (["toy_net", "toy_line"], "tokens=640", {"seeds": 0}, "seeds is 0; expected at least 1"),
        (["toy_net", "toy_line"], "tokens=10", {}, "toy_net: a budget of 10 tokens is less than one step; .* 32 poi"),
        (["toy_net", "toy_line"], "parameters=3", {}, "the model 'toy_net' can't be scaled to 3 parameters within 2%"),
        (["toy_net", "gpt"], "tokens=640", {}, "the model 'gpt' is made for the objective 'next_token'"),
    ],
)
def test_comparisons_that_can_not_be(texts, budget, options, sentence, toys, tmp_path):
    with pytest.raises(UsageError, match=sentence):
        run(tmp_path, texts, budget, **options)
    assert not list(tmp_path.glob("cells/*"))
