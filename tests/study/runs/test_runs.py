"""The cells of a study: kept, shared, continued, judged on their part of the data, and locked."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from arch_jax.errors import UsageError
from arch_jax.experiment import load
from arch_jax.study.runs import study as cells_module
from arch_jax.study.runs.run import Stopped, StudyRun
from arch_jax.study.runs.study import Study, ValidationPart, metric_values, seeded
from arch_jax.train.compiled import Compiled, alike
from arch_jax.train.loop import train
from arch_jax.train.workdir import read_metrics

TOY = str(Path(__file__).parents[1] / "toy.py")


@pytest.fixture(scope="module")
def toy():
    return load(TOY)[0]


def cells_of(experiment, label="it", seeds=2, **changes):
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    return [StudyRun(label, one) for one in seeded(experiment.overridden(changes), seeds)]


def test_a_cell_is_the_run_that_train_makes(toy, tmp_path):
    with Study(tmp_path / "study") as study:
        (result,) = study.run(cells_of(toy, seeds=1))
    outcome = train(toy, tmp_path / "alone")
    assert result.status == "finished"
    assert result.step == 40
    assert result.validation == outcome.validation
    lines = [line for line in read_metrics(outcome.path) if "loss" in line]
    assert result.curve == tuple((line["step"], line["loss"]) for line in lines)
    assert [step for step, _ in result.checks] == [10, 20, 30, 40]
    assert result.checks[-1][1] == outcome.validation
    assert result.parameters == 3 * 16 + 17
    # Two layers forward, their weights' gradients, and the gradient of the hidden layer's outputs.
    assert result.flops == 2 * 32 * (2 * 2 * 16 + 3 * 16)
    assert result.peak_bytes > 3 * 4 * result.parameters


def test_finished_cells_are_kept_and_changed_ones_are_new(toy, tmp_path, monkeypatch):
    taken = []
    real = cells_module.train
    monkeypatch.setattr(cells_module, "train", lambda e, p, **k: taken.append(e.seed) or real(e, p, **k))
    with Study(tmp_path) as study:
        first = study.run(cells_of(toy, steps=10))
        assert taken == [0, 1]
        again = study.run(cells_of(toy, seeds=3, steps=10))
        assert taken == [0, 1, 2]
        assert [r.validation for r in again[:2]] == [r.validation for r in first]
        study.run(cells_of(toy, seeds=1, steps=20))
        assert taken == [0, 1, 2, 0]
        # The same under another name, in twice: still one cell.
        both = study.run(cells_of(toy, "one", steps=10) + cells_of(toy, "two", steps=10))
        assert len(taken) == 4
        assert [r.cell.label for r in both] == ["one", "one", "two", "two"]
        # Nothing is left but what is read again.
        assert not list(tmp_path.glob("cells/*/checkpoints"))


def test_a_damaged_result_is_run_again(toy, tmp_path, capsys):
    with Study(tmp_path) as study:
        (first,) = study.run(cells_of(toy, seeds=1, steps=10))
        file = next(tmp_path.glob("cells/*/result.json"))
        for damaged in ("", "{", '{"status": 3}', "[]"):
            file.write_text(damaged)
            (again,) = study.run(cells_of(toy, seeds=1, steps=10))
            assert "is damaged; the cell is run again" in capsys.readouterr().err
            assert again.validation == first.validation
            assert again.curve == first.curve


@pytest.mark.parametrize("seeds", [1, pytest.param(2, marks=pytest.mark.thorough)])
def test_what_differs_in_numbers_alone_is_compiled_once(toy, tmp_path, monkeypatch, seeds):
    made = []
    real = Compiled.__init__
    monkeypatch.setattr(Compiled, "__init__", lambda self, *a, **k: made.append(1) or real(self, *a, **k))
    wanted = [
        *cells_of(toy, "rate", seeds, optimizer__learning_rate=1e-3, steps=10),
        *cells_of(toy, "clip", seeds, optimizer__clip=0.1, steps=10),
        *cells_of(toy, "epsilon", seeds, optimizer__epsilon=1.0, steps=10),
        *cells_of(toy, "base", seeds, steps=10),
    ]
    with Study(tmp_path) as study:
        found = study.run(wanted)
    assert len(made) == 1
    # What one program gave to all is what each has alone.
    for result in found:
        alone = train(result.cell.stored, tmp_path / f"alone-{result.cell.label}-{result.cell.experiment.seed}")
        assert result.validation == alone.validation
    by_label = {result.cell.label: result.validation["loss"] for result in found}
    assert len(set(by_label.values())) == 4


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"seed": 5}, True),
        ({"optimizer.learning_rate": 0.5}, True),
        ({"evaluate_every": 5, "log_every": 2, "keep": 3}, True),
        ({"optimizer.name": "adamw", "optimizer.weight_decay": 0.1}, False),
        ({"steps": 80}, True),  # the horizon is what counts, and a constant schedule's is one too
        ({"model.width": 8}, False),
        ({"optimizer.b2": 0.5}, False),
        ({"optimizer.clip": "none"}, False),
        ({"optimizer.schedule": "cosine"}, False),
        ({"steps_per_dispatch": 7}, False),
        ({"accumulate": 2}, False),
        ({"ema": 0.9}, False),
        ({"data.batch": 16}, False),
    ],
)
def test_alike(toy, changes, same):
    toy = toy.settled()
    other = toy.overridden(changes)
    batch = lambda e: {name: jax.ShapeDtypeStruct(*facts) for name, facts in e.data.shapes.items()}
    assert (alike(toy, batch(toy)) == alike(other, batch(other))) is same


def test_decays_share_a_compilation(toy, tmp_path, monkeypatch):
    made = []
    real = Compiled.__init__
    monkeypatch.setattr(Compiled, "__init__", lambda self, *a, **k: made.append(1) or real(self, *a, **k))
    decayed = toy.overridden({"optimizer.name": "adamw", "steps": 10, "optimizer.decay": "all"})
    wanted = [*cells_of(decayed, "little", 1, optimizer__weight_decay=0.1)]
    wanted += cells_of(decayed, "much", 1, optimizer__weight_decay=5.0)
    with Study(tmp_path) as study:
        little, much = study.run(wanted)
    assert len(made) == 1
    assert much.validation != little.validation
    assert much.validation == train(much.cell.stored, tmp_path / "alone").validation


def test_a_cell_that_diverges_is_a_result(toy, tmp_path):
    wanted = [*cells_of(toy, "wild", 1, optimizer__learning_rate=1e30, optimizer__clip=None), *cells_of(toy, "tame", 1)]
    with Study(tmp_path) as study:
        wild, tame = study.run(wanted)
        assert (wild.status, tame.status) == ("diverged", "finished")
        assert "loss is " in wild.reason
        assert " at step " in wild.reason
        assert str(tmp_path) not in wild.reason
        assert wild.validation == {}
        assert len(wild.curve) < 40
        assert metric_values([wild, tame], "loss") == [tame.validation["loss"]]
        # It is kept like any other.
        assert study.run(wanted)[0].reason == wild.reason
        with pytest.raises(UsageError, match="unknown metric 'lost'; valid are 'loss', 'worst'"):
            metric_values([wild, tame], "lost")


def test_what_is_tuned_on_is_not_reported_on(toy, tmp_path):
    (experiment,) = seeded(toy.overridden({"steps": 10}), 1)
    with Study(tmp_path) as study:
        parts = [StudyRun("it", experiment, part) for part in ("all", "tuning", "report")]
        whole, tuning, report = (result.validation["loss"] for result in study.run(parts))
    assert len({whole, tuning, report}) == 3
    assert np.isclose(whole, (tuning + report) / 2, rtol=1e-6)  # 2 of 4 batches each
    batches = [batch["y"].tobytes() for batch in toy.data.validation()]
    of_part = lambda part: [batch["y"].tobytes() for batch in ValidationPart(toy.data, part).validation()]
    halves = [of_part(part) for part in ("tuning", "report")]
    assert halves == [batches[::2], batches[1::2]]


def test_one_batch_has_no_halves(toy):
    class One:
        facts = 3

        def validation(self):
            yield "all"

    parts = [ValidationPart(One(), "tuning"), ValidationPart(One(), "report")]
    assert [list(part.validation()) for part in parts] == [["all"], ["all"]]
    assert not any(part.divided for part in parts)
    assert parts[0].facts == 3
    assert ValidationPart(toy.data, "tuning").divided


def test_the_second_study_is_told_who_holds_the_first(tmp_path):
    other = (
        "from arch_jax.study.runs.study import Study\nimport sys\n"
        f"with Study({str(tmp_path)!r}): print('open', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", other], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    assert holder.stdout.readline() == "open\n"
    with pytest.raises(UsageError, match=rf"is held by process {holder.pid} on .*, since 20\d\d-.*; wait for it, or "):
        Study(tmp_path)
    holder.kill()
    holder.wait()
    with Study(tmp_path):  # what was killed holds nothing
        pass


def test_a_folder_that_is_none(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="can't write to the study's folder"):
        Study(tmp_path / "file")
    with pytest.raises(UsageError, match="together is 0; expected at least 1"):
        Study(tmp_path / "new", together=0)


def test_what_can_be_refused_is_refused_before_the_first_step(toy, tmp_path):
    wanted = [*cells_of(toy, "good", 1), *cells_of(toy, "log=99", 1, log_every=99)]
    with Study(tmp_path) as study:
        with pytest.raises(UsageError, match=r"^log=99: log_every is 99; expected at most steps, which is 40$"):
            study.run(wanted)
        assert not list(tmp_path.glob("cells/*/*"))
    with pytest.raises(UsageError, match="seeds is 0; expected at least 1"):
        seeded(toy, 0)


def test_a_stop_is_saved_and_gone_on_with(toy, tmp_path):
    """SIGTERM in the second of two cells: the study says so, and ends as one that was not stopped."""
    import signal

    wanted = cells_of(toy)
    with Study(tmp_path / "whole") as study:
        whole = study.run(wanted)
    real = cells_module.Within

    def stopping(corpus, compiled, progress, sources=None):
        seen = progress.update

        def update(step, loss):
            seen(step, loss)
            if step == 20 and "seed 1" in progress._label:
                os.kill(os.getpid(), signal.SIGTERM)

        progress.update = update
        return real(corpus, compiled, progress)

    cells_module.Within = stopping
    try:
        with Study(tmp_path / "stopped") as study, pytest.raises(Stopped, match="the same command resumes it"):
            study.run(wanted)
    finally:
        cells_module.Within = real
    done = [json.loads(file.read_text())["label"] for file in (tmp_path / "stopped").glob("cells/*/result.json")]
    assert done == ["it"]
    with Study(tmp_path / "stopped") as study:
        again = study.run(wanted)
    for one, other in zip(whole, again):
        assert dataclasses.replace(one, step_seconds=None) == dataclasses.replace(other, step_seconds=None)
