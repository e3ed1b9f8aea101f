"""A family that is trained and fitted, and the commands for scaling laws and reproduction."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from arch_jax.cli import main
from arch_jax.errors import UsageError
from arch_jax.experiment import load
from arch_jax.study.reproduce import ledger as ledger_module
from arch_jax.study.reproduce.ledger import results_folder
from arch_jax.study.runs.study import Study
from arch_jax.study.scaling.family import train_family
from arch_jax.study.scaling.law import fit

TOY = str(Path(__file__).with_name("toy.py"))
SIZES, TOKENS = [700, 1500, 3000], [320, 640, 1280]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("family")


@pytest.fixture(scope="module")
def trained(folder):
    experiment, _ = load(TOY)
    with Study(folder) as study:
        return train_family(experiment, study, SIZES[::-1], TOKENS, seeds=2, bootstrap=20)


@pytest.mark.thorough
def test_the_runs(trained):
    assert len(trained.members) == 18
    for place, member in enumerate(trained.members):
        size, tokens = SIZES[place // 6], TOKENS[place // 2 % 3]
        assert abs(member.parameters - size) <= 0.02 * size
        assert member.parameters == member.result.parameters
        assert member.tokens == tokens
        experiment = member.result.cell.experiment
        assert (experiment.steps, experiment.seed) == (tokens // 32, place % 2)
        assert experiment.settled().optimizer.horizon == experiment.evaluate_every == experiment.steps
        assert member.flops == member.result.flops * experiment.steps
        # A multiply and an add a parameter forward, twice that backward: 6 N D, but for what has no gradient.
        assert 0.5 < member.flops / (6 * member.parameters * member.tokens) <= 1


@pytest.mark.thorough
def test_the_law_is_of_the_runs(trained):
    points = trained.points
    assert np.array_equal(points.loss, [member.result.validation["loss"] for member in trained.members])
    again = fit(points)
    assert trained.law.objective == pytest.approx(again.objective, rel=1e-6)
    assert set(trained.law.intervals) == {"E", "A", "B", "alpha", "beta", "a", "b"}


def test_errors(tmp_path):
    experiment, _ = load(TOY)
    with Study(tmp_path) as study:
        for sizes, tokens, wrong in (
            ([100, 100, 200], TOKENS, "sizes has 2 different numbers; a law needs at least 3"),
            (SIZES, [0, 1, 2], "tokens has 0; expected positive numbers"),
            (SIZES, [3, 400, 500], "tokens is 3; expected at least 32, which a step takes"),
            ([2, 100, 200], TOKENS, "can't be scaled to 2 parameters within 2%; the nearest is"),
        ):
            with pytest.raises(UsageError, match=wrong):
                train_family(experiment, study, sizes, tokens)


@pytest.mark.thorough
def test_the_commands_for_scaling(trained, folder, tmp_path, capsys):
    run = ["scaling", "run", TOY, "--sizes", "700,1500,3000", "--tokens", "320,640,1280", "--bootstrap", "0"]
    assert main([*run, "--seeds", "2", "--workdir", str(folder), "--budget", "1e7"]) == 0
    out, told = capsys.readouterr()
    assert "18 of 18 cells are done already" in told
    assert "parameters at 1e+07 FLOPs" in out
    assert "held equal" in out
    with Image.open(folder / "law.png") as picture:
        assert min(picture.size) > 200
    with open(folder / "points.csv", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 18
    law = json.loads((folder / "law.json").read_text())["law"]
    assert law["objective"] == pytest.approx(trained.law.objective)
    # What was trained can be fitted again from its table.
    points = str(folder / "points.csv")
    again = ["scaling", "fit", points, "--bootstrap", "0", "--workdir", str(tmp_path / "fit"), "--json"]
    assert main(again) == 0
    assert json.loads(capsys.readouterr().out)["law"] == law
    assert main([*again, "--drop-highest", "16"]) == 2
    assert "drop_highest is 16 of 18 points" in capsys.readouterr().err
    assert main([*again, "--loss", "los"]) == 2
    assert "unknown column" in capsys.readouterr().err
    assert main([*run[:4], "many", *run[5:]]) == 2
    assert "--sizes is 'many'; expected numbers between commas" in capsys.readouterr().err


def test_the_commands_for_reproduction(tmp_path, capsys):
    own = tmp_path / "toy.py"
    own.write_text(Path(TOY).read_text())
    command = ["reproduce", str(own), "--workdir", str(tmp_path / "study")]
    assert main([*command, "--seeds", "2", "--set", "steps=10"]) == 0
    told = capsys.readouterr()
    assert "over 2 of the 3 seeds declared" in told.out
    assert "not in the ledger: steps" in told.err
    assert not (tmp_path / "results").exists()
    assert main(command) == 0
    assert "reproduced" in capsys.readouterr().out
    record = json.loads((tmp_path / "results" / "toy.json").read_text())
    assert record == json.loads((tmp_path / "study" / "record.json").read_text())
    assert record["figures"][0]["verdict"] == "reproduced"
    assert sorted(record["figures"][0]["values"]) == ["0", "1", "2"]
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["figures"] == record["figures"]


def test_the_ledger_of_an_installed_package_is_only_read(tmp_path, monkeypatch, capsys):
    records = results_folder()
    shutil.copytree(records.parent, tmp_path / "_experiments", ignore=shutil.ignore_patterns("benchmarks", "README.md"))
    monkeypatch.setattr(ledger_module, "directories", lambda: [tmp_path / "_experiments"])
    assert main(["ledger"]) == 0
    assert "wrote" not in capsys.readouterr().out
    assert not (tmp_path / "_experiments" / "README.md").exists()


def test_the_ledger_of_the_project(capsys):
    """Every record can be read, and is of the experiment as it is."""
    assert main(["ledger", "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert {"gcn_cora", "shakespeare_char"} <= {entry["name"] for entry in entries}
    for entry in entries:
        assert (entry["stale"], entry["problem"]) == ("", ""), entry["name"]
        assert entry["record"]["figures"] or entry["record"]["variants"]


def test_the_check_of_the_ledger(tmp_path, monkeypatch, capsys):
    """A record of code that has changed since is named with its files and its command; nothing is written."""
    folder = tmp_path / "experiments"
    shutil.copytree(results_folder(), folder / "results")
    for name in ("induction", "gcn_cora"):
        shutil.copy(results_folder().parent / f"{name}.py", folder)
    for path in (folder / "results").glob("*.json"):
        if path.stem not in ("induction", "gcn_cora"):
            path.unlink()
    record = json.loads((folder / "results" / "induction.json").read_text())
    record["code"] = dict.fromkeys(["arch_jax/optimizer.py", "arch_jax/errors.py"], "00000000")
    (folder / "results" / "induction.json").write_text(json.dumps(record))
    monkeypatch.setattr(ledger_module, "directories", lambda: [folder])
    assert main(["ledger", "--check", "--json"]) == 0
    told = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert told["induction"]["changed"] == ["arch_jax/errors.py", "arch_jax/optimizer.py"]
    assert told["induction"]["state"].startswith("stale: 2 of 2 files that ran have changed: arch_jax/errors.py")
    assert main(["ledger", "--check"]) == 0
    out = capsys.readouterr().out
    assert "arch-jax reproduce induction" in out
    assert "of 2 records are stale" in out
    assert not (folder / "README.md").exists()
