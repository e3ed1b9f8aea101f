"""Reproductions and their ledger: verdicts, records that outlive what they are of, and the table in a README."""

import dataclasses
import json
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

from arch_jax.errors import RunError, UsageError
from arch_jax.experiment import Published, load
from arch_jax.study.reproduce.ledger import ledger, ledger_table, write_record, write_table
from arch_jax.study.reproduce.record import Record, ReproducedFigure
from arch_jax.study.reproduce.reproduce import commit, reproduce
from arch_jax.study.runs.run import RunResult
from arch_jax.study.runs.study import Study

FILE = '''"""A toy."""

import arch_jax

published = (
    "a text, of earlier days",
    arch_jax.Published(60.0, "Nobody 2026, table 1", 40.0, metric="accuracy", seeds=3, unit="% | all", factor=100.0),
    arch_jax.Published(5.0, "Nobody 2026, table 2", 0.5, seeds=2, direction="at most", behaviour=True),
)


def config():
    return arch_jax.Experiment(
        model=arch_jax.create("gcn", classes=2, hidden=(4,), dropout=0.0),
        objective=arch_jax.objective("nodes"),
        data=arch_jax.Nodes(source="karate", multiple=8),
        optimizer=arch_jax.Optimizer("adam", learning_rate=0.1, schedule="constant", clip=None),
        steps=20,
        evaluate_every=20,
        checkpoint_every=20,
    )
'''


STEP = "arch_jax/train/step.py"


class Told(Study):
    """A study whose cells are not run: each gives what is told for its seed, and has diverged where that is nothing."""

    def __init__(self, by_seed):
        self.by_seed, self.path, self.sources = by_seed, Path("nowhere"), {}

    def run(self, cells):
        return [self._result(cell) for cell in cells]

    def _result(self, cell):
        found = self.by_seed[cell.experiment.seed]
        status = "finished" if found else "diverged"
        return RunResult(cell, status, "", 20, found, (), (), parameters=9, flops=9, step_seconds=0.5, peak_bytes=None)

    def corpus(self, cell):
        return types.SimpleNamespace(facts={"sha256": "abc"})


ALL = {seed: {"accuracy": 0.5 + seed / 8, "loss": 4.0 + seed} for seed in range(5)}


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "experiments" / "toy.py"
    path.parent.mkdir()
    path.write_text(FILE)
    return path


@pytest.fixture
def record(file) -> Record:
    return reproduce(*load(str(file)), Told(ALL))


def kept(record: Record, file: Path) -> Path:
    return write_record(record, file.parent / "results")


def entry(file: Path):
    (found,) = ledger(file.parent / "results")
    return found


def published(**changes) -> Published:
    return Published(**{"value": 2.0, "source": "s", "tolerance": 0.5, "seeds": 2} | changes)


@pytest.mark.parametrize(
    ("changes", "values", "diverged", "verdict"),
    [
        ({}, (1.4, 1.6), (), "reproduced"),
        ({}, (1.4, 1.5), (), "not reproduced"),
        ({}, (2.5, 2.6), (), "not reproduced"),
        ({"value": 0.3, "tolerance": 0.0}, (0.1 + 0.2,), (), "reproduced"),
        ({"direction": "at least"}, (9.0,), (), "reproduced"),
        ({"direction": "at least"}, (1.4,), (), "not reproduced"),
        ({"direction": "at most"}, (-9.0,), (), "reproduced"),
        ({"direction": "at most"}, (2.6,), (), "not reproduced"),
        ({"behaviour": True}, (2.0,), (), "behaviour shown"),
        ({"behaviour": True}, (3.0,), (), "behaviour not shown"),
        ({}, (2.0,), (1,), "not reproduced"),
        ({}, (), (0, 1), "not reproduced"),
    ],
)
def test_verdict(changes, values, diverged, verdict):
    assert ReproducedFigure(published(**changes), dict(enumerate(values)), diverged).verdict == verdict


def test_each_figure_is_of_the_seeds_it_declares(record):
    accuracy, loss = record.figures
    assert accuracy.values == {0: 50.0, 1: 62.5, 2: 75.0}
    assert accuracy.mean.mean == 62.5
    assert accuracy.mean.low < 62.5 < accuracy.mean.high
    assert (loss.values, loss.mean.low) == ({0: 4.0, 1: 5.0}, None)
    assert [one.verdict for one in record.figures] == ["reproduced", "behaviour shown"]
    assert (record.name, record.data, record.seconds) == ("toy", "abc", 3 * 20 * 0.5)


def test_seeds_asked_for(file):
    more = reproduce(*load(str(file)), Told(ALL), seeds=5)
    assert [len(one.values) for one in more.figures] == [5, 5]
    fewer = reproduce(*load(str(file)), Told(ALL), seeds=1)
    assert [one.remark for one in fewer.figures] == ["over 1 of the 3 seeds declared", "over 1 of the 2 seeds declared"]


def test_diverged_seed_is_told(file):
    record = reproduce(*load(str(file)), Told(ALL | {2: {}}))
    accuracy, loss = record.figures
    assert (accuracy.values, accuracy.diverged, accuracy.verdict) == ({0: 50.0, 1: 62.5}, (2,), "not reproduced")
    assert accuracy.remark == "diverged: seed 2"
    assert (loss.diverged, loss.verdict) == ((), "behaviour shown")


def test_real_run_fills_the_ledger(file, tmp_path):
    experiment, module = load(str(file))
    with Study(tmp_path / "study") as study:
        record = reproduce(experiment, module, study)
        results = [study.result(cell) for cell in (dataclasses.replace(c, label="x") for c in _cells(experiment))]
    assert record.figures[0].values == {seed: 100 * r.validation["accuracy"] for seed, r in enumerate(results)}
    assert len(set(record.figures[1].values.values())) == 2
    kept(record, file)
    found = entry(file)
    assert (found.stale, found.problem) == ("", "")
    assert found.record == record


def _cells(experiment):
    from arch_jax.study.runs.run import StudyRun
    from arch_jax.study.runs.study import seeded

    return [StudyRun("again", one) for one in seeded(experiment, 3)]


def test_record_survives_json(record, file):
    path = kept(record, file)
    assert Record.from_json(json.loads(path.read_text())) == record
    assert path.name == "toy.json"
    for name in ("versions", "device", "commit", "date", "fingerprint"):
        assert name in json.loads(path.read_text())


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("learning_rate=0.1", "learning_rate=0.25", "optimizer.learning_rate was 0.1 and is 0.25"),
        ("steps=20,", "steps=1000,", "steps was 20 and is 1000"),
        ('table 1", 40.0', 'table 1", 4.0', "the published figures have changed"),
        ("seeds=2", "seeds=10", "the published figures have changed"),
        ("import arch_jax", "import no_such_module", "toy.py fails with ModuleNotFoundError"),
        (FILE, "", "has no config()"),
        ('"""A toy."""', '"""In better words."""', ""),
        ("Nobody 2026, table 1", "Nobody (2026), page 3, table 1", ""),
    ],
)
def test_stale_once_the_experiment_has_changed(record, file, old, new, says):
    kept(record, file)
    assert entry(file).stale == ""
    assert FILE.count(old) == 1
    file.write_text(FILE.replace(old, new))
    found = entry(file)
    assert says in found.stale
    assert bool(found.stale) == bool(says)
    assert ("stale" in ledger_table([found])[0]["verdict"]) == bool(says)


def test_stale_once_the_experiment_is_gone(record, file):
    kept(record, file)
    file.unlink()
    assert entry(file).stale == "toy.py is gone"


def test_field_of_a_later_version_is_no_change(record, file):
    """The record of a version that did not have the field, and so another fingerprint."""
    path = kept(record, file)
    data = json.loads(path.read_text())
    del data["experiment"]["accumulate"]
    path.write_text(json.dumps(data | {"fingerprint": "0" * 16}))
    assert entry(file).stale == ""
    data["experiment"]["accumulate"] = 2
    path.write_text(json.dumps(data | {"fingerprint": "0" * 16}))
    assert entry(file).stale == "accumulate was 2 and is 1"


def test_changed_run_is_not_kept(file):
    experiment, module = load(str(file))
    record = reproduce(experiment.overridden({"steps": 7}), module, Told(ALL))
    with pytest.raises(UsageError, match=r"the record of 'toy' is not kept: steps was set"):
        kept(record, file)
    assert not (file.parent / "results").exists()
    # Which seed the file has does not matter: they are counted from 0.
    assert reproduce(experiment.overridden({"seed": 7}), module, Told(ALL)).changes == ()


def spoil(path: Path, **changes) -> str:
    return json.dumps(json.loads(path.read_text()) | changes)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: "", "Expecting value"),
        (lambda path: path.read_text()[:200], "damaged"),
        (lambda path: "[1]", "damaged"),
        (lambda path: "{}", "'format' is missing"),
        (lambda path: spoil(path, format=99), "its format is 99; expected 1"),
        (lambda path: spoil(path, figures=[{"values": 3}]), "'published' is missing"),
        (lambda path: spoil(path, device=3), "device is 3"),
        (lambda path: path.read_text().replace("62.5", "NaN"), "is nan"),
        (lambda path: path.read_text().replace('"near"', '"near"}'), "damaged"),
    ],
)
def test_damaged_record_is_told_and_the_others_are_shown(record, file, damage, says):
    path = kept(record, file)
    other = path.with_name("broken.json")
    other.write_text(damage(path))
    path.with_name("._toy.json").write_bytes(b"\0\5\x16\7\0Mac OS X")  # no record at all
    broken, good = ledger(path.parent)
    assert (broken.name, broken.record) == ("broken", None)
    assert "the record broken.json is damaged" in broken.problem
    assert says in broken.problem
    assert "\n" not in broken.problem
    assert (good.record, good.problem) == (record, "")
    assert [row["experiment"] for row in ledger_table([broken, good])] == ["broken", "toy", "toy"]


def test_table_in_a_readme(record, file):
    kept(record, file)
    readme = file.parent / "README.md"
    readme.write_text("before\n<!-- ledger -->\nold\n<!-- /ledger -->\nafter\n")
    entries = ledger(file.parent / "results")
    write_table(entries, readme)
    once = readme.read_text()
    assert once.startswith("before\n<!-- ledger -->\n")
    assert once.endswith("<!-- /ledger -->\nafter\n")
    assert "old" not in once
    lines = [line for line in once.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(record.figures)
    assert "60 % \\| all" in lines[2]
    assert str(record.figures[0].mean) in lines[2]
    assert "| reproduced |" in lines[2]
    assert "at most 5 nats" in lines[3]
    assert {line.replace("\\|", "").count("|") for line in lines} == {lines[0].count("|")}
    write_table(entries, readme)
    assert readme.read_text() == once
    write_table([], readme)
    assert "No record yet." in readme.read_text()


@pytest.mark.parametrize("text", [None, "no marks", "<!-- /ledger --> <!-- ledger -->", "<!-- ledger -->" * 2])
def test_readme_without_a_place(tmp_path, text):
    readme = tmp_path / "README.md"
    if text is not None:
        readme.write_text(text)
    with pytest.raises(UsageError, match=r"expected .*<!-- ledger --> and <!-- /ledger -->"):
        write_table([], readme)
    assert text is None or readme.read_text() == text


def test_nothing_published(file):
    file.write_text(FILE.replace("published = (", "found = ("))
    with pytest.raises(UsageError, match="'toy' publishes nothing to compare with"):
        reproduce(*load(str(file)), Told(ALL))


def test_unknown_metric(file):
    file.write_text(FILE.replace('metric="accuracy"', 'metric="accurracy"'))
    with pytest.raises(UsageError, match=r"unknown metric 'accurracy'.*'accuracy'"):
        reproduce(*load(str(file)), Told(ALL))


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_commit(file, record, monkeypatch):
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(file.parent.parent.parent))
    assert commit(file) is None
    top = file.parent.parent
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    git = lambda *arguments: subprocess.run(
        ["git", "-C", str(top), *who, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()
    git("init")
    (top / "library.py").write_text("x = 1\n")
    git("add", "library.py")
    git("commit", "-m", "one")
    assert commit(file) is None  # in the clone's folder, and not of it
    git("add", "experiments/toy.py")
    git("commit", "-m", "two")
    head = git("rev-parse", "HEAD")
    shutil.rmtree(file.parent / "__pycache__", ignore_errors=True)
    assert head.startswith(commit(file))
    assert len(commit(file)) == 12
    kept(record, file)  # what a reproduction writes is no change
    assert commit(file) == head[:12]
    (top / "library.py").write_text("x = 2\n")
    assert commit(file) == head[:12] + "+changes"


RECORDED = (
    FILE.replace("published = (", 'recorded = ("width",)\n\npublished = (').replace(
        "    arch_jax.Published(5.0",
        """    arch_jax.Published(
        0.0, "Nobody 2026, table 3", 1.0, metric="accuracy", factor=100.0, changes={"model.hidden": (8,)}, against={}
    ),
    arch_jax.Published(1.0, "Nobody 2026, table 4", 9.0, metric="loss", changes={"model.dropout": 0.25}),
    arch_jax.Published(5.0""",
    )
    + """

def ablate_width():
    for hidden in ((4,), (8,)):
        yield {"model.hidden": hidden}
"""
)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A record of three variants with three seeds that really ran, and its file."""
    path = tmp_path_factory.mktemp("recorded") / "experiments" / "toy.py"
    path.parent.mkdir()
    path.write_text(RECORDED)
    experiment, module = load(str(path))
    with Study(path.parent.parent / "study") as study:
        return reproduce(experiment, module, study), path, study.path


def test_variants_of_recorded_axes_and_of_published_numbers(recorded):
    record, _, _ = recorded
    assert [(one.label, one.changes) for one in record.variants] == [
        ("baseline", {}),
        ("hidden=[8]", {"model.hidden": [8]}),
        ("dropout=0.25", {"model.dropout": 0.25}),
    ]
    base, wide, dropped = record.variants
    assert base.parameters < wide.parameters
    assert len({tuple(one.values("loss").values()) for one in record.variants}) == 3
    accuracy, difference, loss, last = record.figures
    assert accuracy.values == {seed: 100 * value for seed, value in base.values("accuracy").items()}
    assert difference.values == {
        seed: 100 * wide.values("accuracy")[seed] - accuracy.values[seed] for seed in accuracy.values
    }
    assert loss.values == dropped.values("loss")
    assert last.values == {seed: base.values("loss")[seed] for seed in (0, 1)}


def test_curves_end_where_the_results_stand(recorded):
    record, _, _ = recorded
    for variant in record.variants:
        for seed, (steps, values) in variant.curve("loss").items():
            assert steps[-1] == 20
            assert values[-1] == pytest.approx(variant.values("loss")[seed], rel=1e-4)
        assert all(steps[-1] == 20 for steps, _ in variant.curve("training loss").values())
        low, high = variant.prediction("loss").low, variant.prediction("loss").high
        assert low < variant.interval("loss").low < variant.interval("loss").high < high
    with pytest.raises(UsageError, match=r"unknown metric 'los'; the nearest is 'loss'"):
        record.variant("baseline").values("los")
    with pytest.raises(UsageError, match="unknown variant 'hidden'"):
        record.variant("hidden")
    with pytest.raises(UsageError, match=r"unknown curve 'lss'"):
        record.variant("baseline").curve("lss")


def test_record_with_variants_survives_json(recorded):
    record, path, _ = recorded
    text = kept(record, path).read_text()
    assert Record.from_json(json.loads(text)) == record
    assert max(map(len, text.splitlines())) < 4000
    assert len(text.splitlines()) < 900  # no line for each point
    assert load_text(path) == record


def load_text(path):
    return entry(path).record


@pytest.mark.thorough
def test_the_code_that_ran_stands_in_the_record(file, tmp_path):
    command = [sys.executable, "-m", "arch_jax", "reproduce", str(file), "--seeds", "1"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    (record,) = [one.record for one in ledger(file.parent / "results")]
    assert {STEP, "arch_jax/optimizer.py", "arch_jax/objectives/nodes.py", "arch_jax/models/gnn/gcn.py"} <= {
        *record.code
    }
    assert not {"arch_jax/layers/mixers/rnn/lstm.py", "arch_jax/models/rnn/lstm.py"} & {
        *record.code
    }  # imported at most
    assert record.command == "arch-jax reproduce toy --seeds 1"
    assert entry(file).state == "fresh"


def test_what_is_done_is_not_run_again_unless_its_code_has_changed(recorded, monkeypatch):
    record, path, folder = recorded
    ran = []
    monkeypatch.setattr(Study, "_take", lambda self, group, progress: ran.extend(group))
    experiment, module = load(str(path))
    with Study(folder) as study:
        assert reproduce(experiment, module, study).variants == record.variants
    assert ran == []
    copy = path.parent.parent / "copy"
    shutil.copytree(folder, copy)
    result = next(iter(sorted(copy.glob("cells/*/result.json"))))
    found = json.loads(result.read_text())
    result.write_text(json.dumps(found | {"code": found["code"] | {STEP: "00000000"}}))
    with Study(copy) as study, pytest.raises(RunError, match="is not done"):
        reproduce(experiment, module, study)
    assert ran == [result.parent.name]


def test_state_of_a_record(recorded):
    record, path, _ = recorded
    kept(record, path)
    assert entry(path).state == "fresh"
    kept(dataclasses.replace(record, code={**record.code, STEP: "0", "arch_jax/gone.py": "1"}), path)
    assert entry(path).changed == ("arch_jax/gone.py", STEP)
    assert f"2 of {len(record.code) + 1} files that ran have changed: arch_jax/gone.py" in entry(path).state
    kept(dataclasses.replace(record, code={}), path)
    assert entry(path).state == "stale: made before records kept the code that ran"


def test_only_variants_are_recorded(file):
    file.write_text(RECORDED.replace("published = (", "found = ("))
    file.write_text(file.read_text().replace('recorded = ("width",)', "recorded = 3"))
    with pytest.raises(UsageError, match=r"recorded is 3; expected a tuple"):
        reproduce(*load(str(file)), Told(ALL))
    file.write_text(file.read_text().replace("recorded = 3", 'recorded = ("wdth",)'))
    with pytest.raises(UsageError, match=r"unknown axis 'wdth'; the nearest is 'width'"):
        reproduce(*load(str(file)), Told(ALL))
    file.write_text(file.read_text().replace("wdth", "width"))
    record = reproduce(*load(str(file)), Told(ALL))
    assert record.figures == ()
    assert [len(one.results) for one in record.variants] == [3, 3]
    kept(record, file)
    assert ledger_table([entry(file)])[0]["verdict"] == "2 variants recorded"
    assert "Nothing is published" in str(record)
