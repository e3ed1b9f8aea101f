"""The commands that compare and plan: what they print and write, and what they say to wrong usage."""

import copy
import json
from pathlib import Path

import pytest
from PIL import Image

from arch_jax.cli import main, studies
from arch_jax.cli.console import show, table

EXPERIMENT = '''
"""A small text, and a model whose place others take."""
import arch_jax


def config():
    """12 steps."""
    return arch_jax.Experiment(
        arch_jax.create("gpt", depth=1, width=24),
        arch_jax.objective("next_token"),
        arch_jax.Text(source="text:{path}", length=16, batch=4, validation=0.3),
        steps=12,
        evaluate_every=6,
        steps_per_dispatch=2,
    )
'''
TEXT = "".join(f"Sentence {i} is about the number {i * i}.\n" for i in range(200))


@pytest.fixture
def experiment(tmp_path):
    text, file = tmp_path / "text.txt", tmp_path / "small.py"
    text.write_text(TEXT)
    file.write_text(EXPERIMENT.format(path=text))
    return str(file)


def compared(experiment, folder, *more):
    models = ["gpt:depth=1,width=24", "gpt:depth=1,width=24,mixer.rope=none"]
    return ["compare", *models, "--on", experiment, "--workdir", str(folder), *more]


def test_compare(experiment, tmp_path, capsys):
    folder = tmp_path / "study"
    command = compared(
        experiment, folder, "--budget", "tokens=640", "--tune", "learning_rate=1e-3,1e-2", "--seeds", "2"
    )
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "gpt:depth=1,width=24,mixer.rope=none" in out
    assert "\nheld equal: data: " in out
    assert "\nnot equal: " in out
    assert "learning_rate chosen by the loss on every other validation batch, with seed 1000" in out
    with Image.open(folder / "comparison.png") as picture:
        assert min(picture.size) > 200
    assert main([*command, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data == json.loads((folder / "comparison.json").read_text())
    assert [row["units"] for row in data["models"]] == [640, 640]
    assert len({row["parameters"] for row in data["models"]}) == 1
    assert len((folder / "comparison.csv").read_text().splitlines()) == 3


def test_a_figure_of_a_study_that_fails_costs_a_warning(tmp_path, capsys):
    def draw(of, path):
        raise ValueError(f"nothing to draw in {of}")

    assert studies._figure(draw, "it", tmp_path / "bars.png") == []
    said = "warning: the figure bars.png failed, and is left out: ValueError: nothing to draw in it\n"
    assert capsys.readouterr().err == said
    assert studies._figure(lambda of, path: path.touch(), "it", tmp_path / "bars.png") == [tmp_path / "bars.png"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--budget", "token=5"], "unknown budget 'token'; the nearest is 'tokens'"),
        (["--budget", "tokens=many"], "the budget of tokens is 'many'; expected a number"),
        (["--budget", "parameters=100"], "can't be scaled to 100 parameters within 2%; the nearest is"),
        (["--budget", "tokens=64", "--tune", "learning_rate"], "--tune is 'learning_rate'; expected field=value"),
        (["--budget", "tokens=64", "--set", "steps=12"], "steps=12 changes nothing: it is so already"),
    ],
)
def test_compare_refuses(experiment, tmp_path, capsys, more, said):
    assert main(compared(experiment, tmp_path / "study", *more)) == 2
    assert said in capsys.readouterr().err
    assert not list((tmp_path / "study").glob("cells/*/result.json"))


SMALL = [
    "--set",
    "vocabulary=128",
    "--set",
    "depth=2",
    "--set",
    "width=32",
    "--set",
    "mixer.heads=2",
    "--set",
    "length=32",
]


def test_plan(capsys):
    command = ["plan", "gpt2", "--target", "h100", "--target", "kaggle-t4x2", "--set", "batch=8", *SMALL]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "memory (an estimate)" in out
    assert "a session" in out
    assert "at 40% of the peak" in out
    assert main([*command, "--json"]) == 0
    one, two = json.loads(capsys.readouterr().out)
    assert [one["chips"], two["chips"]] == [1, 2]
    assert (one["estimate"], one["step"]["compiles"]) == (True, None)
    assert one["step"]["flops"] == two["step"]["flops"]
    # The parameters are on every chip, the batch is divided.
    assert one["step"]["memory"]["parameters"] == two["step"]["memory"]["parameters"] == 4 * one["parameters"]
    assert one["step"]["memory"]["batch"] == 2 * two["step"]["memory"]["batch"]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["plan", "gpt2", "--target", "v5e-9"], "unknown target 'v5e-9'; the nearest are 'v5e-"),
        (["plan", "gtp2", "--target", "h100"], "unknown experiment or model 'gtp2'; the nearest"),
        (["plan", "gpt2", "--target", "h100", "--chips", "2"], "chips is 2; expected 1 to 1"),
        (["plan", "gpt2"], "the following arguments are required: --target"),
        (["reproduce", "gcn_karate"], "publishes nothing to compare with"),
        (["ablate", "gcn_karate"], "has no axes; expected ablate_NAME() in its file"),
        (["ablate", "gpt", "--axis", "positions"], "unknown axis 'positions'; the nearest is 'position'"),
        (["scaling", "fit", "nowhere.csv"], "the points file 'nowhere.csv' does not exist"),
        (["scaling", "fix"], "unknown command 'fix'; the nearest is 'fit'"),
    ],
)
def test_wrong_usage_is_one_sentence(command, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(command) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not list(Path(tmp_path).glob("runs/*/cells"))


def test_figures_are_never_folded(monkeypatch, capsys):
    """A narrow terminal gets fewer columns, and is told which."""
    grid = table("variant", ">loss", ">memory", ">time")
    grid.add_row("a variant of some length", "1.2345 ± 0.0067", "12.3 MB", "1.23 ms")
    monkeypatch.setenv("FORCE_COLOR", "1")
    for columns, kept in ((100, ["1.2345 ± 0.0067", "12.3 MB", "1.23 ms"]), (60, ["1.2345 ± 0.0067", "12.3 MB"])):
        monkeypatch.setenv("COLUMNS", str(columns))
        show(copy.deepcopy(grid), keep=2)
        out = capsys.readouterr().out
        assert all(word in out for word in kept)
        assert ("no room for time: see the files" in out) is (columns == 60)
