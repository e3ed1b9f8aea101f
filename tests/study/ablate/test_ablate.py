"""Ablations: what is run, what is paired, what is said of it, and that kills leave no trace."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from arch_jax.cli import main
from arch_jax.errors import UsageError
from arch_jax.experiment import experiments, load
from arch_jax.study.ablate.ablate import ablate, axes, overridden, variants
from arch_jax.study.runs.study import Study
from arch_jax.study.statistics import holm, interval, paired
from arch_jax.train.state import initial_state

TOY = str(Path(__file__).parents[1] / "toy.py")
FREE = ("seconds_per_step", "peak_bytes")  # what may differ between two runs of a study


@pytest.fixture(scope="module")
def toy():
    experiment, module = load(TOY)
    return experiment, axes(module)


@pytest.fixture(scope="module")
def finished(toy, tmp_path_factory):
    """All axes but the idle one, with 3 seeds."""
    experiment, available = toy
    experiment = experiment.overridden({"steps": 200, "evaluate_every": 200, "checkpoint_every": 200})
    chosen = variants(experiment, available, ["width", "rate", "activation", "broken"])
    with Study(tmp_path_factory.mktemp("ablation")) as study:
        return ablate(chosen, study, seeds=3)


def labels(found):
    return [one.label for one in found]


def test_variants(toy):
    experiment, available = toy
    found = variants(experiment, available, ["width", "rate"])
    assert labels(found) == ["baseline", "width=4", "learning_rate=0.001", "learning_rate=0.003"]
    assert found[0].experiment == experiment
    assert [one.experiment.model.width for one in found] == [16, 4, 16, 16]
    product = variants(experiment, available, ["width", "rate"], product=True)
    assert labels(product) == [
        "baseline",
        "width=4, learning_rate=0.001",
        "width=4, learning_rate=0.003",
        "width=16, learning_rate=0.001",
        "width=16, learning_rate=0.003",
    ]
    assert product[1].axes == ("width", "rate")
    assert (product[1].experiment.model.width, product[1].experiment.optimizer.learning_rate) == (4, 1e-3)


def test_the_axes_of_every_experiment_can_be_made():
    for name in experiments():
        experiment, module = load(name)
        available = axes(module)
        if available:
            found = variants(experiment, available, [])
            assert len(found) > 1
            assert len(set(labels(found))) == len(found)


@pytest.mark.parametrize(
    "name", ["gcn_cora", *(pytest.param(x, marks=pytest.mark.thorough) for x in ("gpt", "lenet_digits"))]
)
def test_what_a_variant_shares_with_the_baseline_begins_alike(name):
    """Every parameter that both have in one shape is drawn alike; and something is drawn otherwise by another seed."""
    experiment, module = load(name)
    small = {
        "gpt": {"model.depth": 2, "model.width": 24, "data.length": 16},
        "gcn_cora": {"data.source": "karate"},  # a graph that is here, whoever runs this
    }
    experiment = experiment.overridden(small.get(name, {}))
    batch = {key: jax.ShapeDtypeStruct(*facts) for key, facts in experiment.data.load().shapes.items()}
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), batch)
    draws = []
    for one in variants(experiment, axes(module), [])[:4]:
        state = jax.jit(lambda b, one=one: initial_state(one.experiment, b))(zeros)
        leaves = jax.tree_util.tree_leaves_with_path(state.parameters)
        draws.append({(jax.tree_util.keystr(path), leaf.shape): np.asarray(leaf) for path, leaf in leaves})
    compared = 0
    for other in draws[1:]:
        shared = draws[0].keys() & other.keys()
        assert all(np.array_equal(draws[0][key], other[key]) for key in shared)
        compared += len(shared)
    assert compared
    begun = jax.jit(lambda b, seed: initial_state(experiment, b, seed).parameters)
    again, first = (jax.tree.leaves(begun(zeros, np.uint32(seed))) for seed in (1, 0))
    assert any(not np.array_equal(a, b) for a, b in zip(first, again))


def test_figures(finished):
    rows = {row.variant.label: row for row in finished.rows}
    base = list(rows["baseline"].values.values())
    assert len(base) == 3
    assert rows["baseline"].mean == interval(base)
    assert rows["baseline"].difference is None
    ps = []
    for label, row in rows.items():
        if label != "baseline" and row.values:
            assert row.difference == paired(list(row.values.values()), base)
            ps.append(row.difference.p)
    assert holm(ps) == [row.p for label, row in rows.items() if label != "baseline" and row.values]
    assert len(ps) == 5


def test_what_does_nothing_and_what_harms(finished):
    rows = {row.variant.label: row for row in finished.rows}
    nothing, harm = rows["activation=study_renamed_tanh"].difference, rows["activation=study_nothing"].difference
    assert (nothing.mean, nothing.low, nothing.high, nothing.p) == (0, 0, 0, 1)
    assert harm.low > 0


@pytest.mark.thorough
def test_what_diverged_is_said(finished):
    row = finished.rows[-1]
    assert len(row.diverged) == 3
    assert (row.mean, row.difference, row.p) == (None, None, None)
    assert sum("diverged: loss is " in note for note in finished.notes) == 3
    data = finished.to_json()["variants"][-1]
    assert data["diverged"] == [0, 1, 2]
    assert json.loads(json.dumps(data)) == data


@pytest.mark.thorough
def test_two_seeds_have_no_interval(toy, tmp_path):
    experiment, available = toy
    with Study(tmp_path) as study:
        found = ablate(variants(experiment.overridden({"steps": 10}), available, ["width"]), study, seeds=2)
    assert [row.mean.low for row in found.rows] == [None, None]
    assert found.rows[1].p is None
    assert "no interval from fewer than 3" in found.notes[0]


def test_errors(toy):
    experiment, available = toy
    with pytest.raises(UsageError, match="unknown axis 'rat'; the nearest is 'rate'"):
        variants(experiment, available, ["rat"])
    with pytest.raises(UsageError, match="the axis 'idle' changes nothing"):
        variants(experiment, available, ["idle"])
    with pytest.raises(UsageError, match="'it' has no axes; expected ablate_NAME"):
        variants(experiment.overridden({"name": "it"}), {}, [])
    with pytest.raises(UsageError, match=r"the axis odd: unknown field 'model\.widht'; the nearest are"):
        variants(experiment, {"odd": [{"model.widht": 3}]}, [])
    with pytest.raises(UsageError, match=r"^model\.width=16 changes nothing: it is so already"):
        overridden(experiment, {"model.width": "16", "steps": "10"})
    assert overridden(experiment, {"model": '{"module": "study_net", "width": 3}'}).model.width == 3

    class Broken:
        @staticmethod
        def ablate_all():
            yield {"model.width": 1 // 0}

    module = type(sys)("broken")
    module.ablate_all = Broken.ablate_all
    with pytest.raises(UsageError, match=r"ablate_all\(\) fails with ZeroDivisionError"):
        axes(module)


def test_the_command(tmp_path, capsys):
    command = ["ablate", TOY, "--axis", "rate", "--seeds", "3", "--set", "steps=20", "--workdir", str(tmp_path)]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "learning_rate=0.001" in out
    assert "±" in out
    assert "95 %, Student's t" in out
    with open(tmp_path / "ablation.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["variant"] for row in rows] == ["baseline", "learning_rate=0.001", "learning_rate=0.003"]
    assert rows[0]["difference_mean"] == ""
    for name in ("curves.png", "bars.png"):
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 200
            assert len(set(picture.convert("L").tobytes())) > 20
    assert main([*command, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data == json.loads((tmp_path / "ablation.json").read_text())
    assert [float(row["loss_mean"]) for row in rows] == [one["mean"]["mean"] for one in data["variants"]]
    assert data["variants"][0]["parameters"] == 65
    assert main([*command, "--metric", "lost"]) == 2
    assert capsys.readouterr().err.endswith("arch-jax: unknown metric 'lost'; valid are 'loss', 'worst'\n")


def comparable(folder):
    data = json.loads((folder / "ablation.json").read_text())
    for one in data["variants"]:
        for name in FREE:
            one.pop(name)
    return data


@pytest.mark.thorough
@pytest.mark.slow
def test_kills_leave_no_trace(tmp_path):
    """kill -9 at random twice: the table is that of a study that nobody disturbed."""
    words = ["ablate", TOY, "--axis", "width", "--axis", "rate", "--seeds", "3"]
    start = lambda name, **extra: subprocess.Popen(
        [sys.executable, "-m", "arch_jax", *words, "--workdir", str(tmp_path / name)],
        env={**os.environ, **extra},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    whole = start("whole")
    generator, kills = random.Random(0), 0
    while kills < 2:
        process = start("killed", SECONDS_PER_STEP="0.03")
        begun = time.monotonic()
        while not list((tmp_path / "killed").glob("cells/*/metrics.jsonl")) and time.monotonic() - begun < 120:
            time.sleep(0.05)
        time.sleep(generator.uniform(0.5, 4))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "it ended before it could be killed"
    last = start("killed")
    for process in (whole, last):
        _, told = process.communicate(timeout=300)
        assert process.returncode == 0, told[-2000:]
    assert comparable(tmp_path / "killed") == comparable(tmp_path / "whole")
