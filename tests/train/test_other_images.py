"""A classifier measured on other images: classes go by their names, and shapes are those that its parameters take."""

import json

import numpy as np
import PIL.Image
import pytest

import arch_jax
from arch_jax.cli import main
from arch_jax.data.images.relabelled import Relabelled
from arch_jax.errors import UsageError

pytestmark = pytest.mark.usefixtures("compiled_once")
SETTINGS = {"steps": 1, "log_every": 1, "data.batch": 4, "data.validation": 0.5, "figures": "[]"}


def write(folder, classes, colour="L"):
    """Eight images of each class, of one shade each; the shade is the class's place in the alphabet."""
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(8):
            shade = 20 * (ord(name[0]) - 96) + i
            PIL.Image.new(colour, (28, 28), shade if colour == "L" else (shade,) * 3).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    source = write(folder / "three", "abc")
    settings = SETTINGS | {"data.source": f"images:{source}"}
    words = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    assert main(["train", "lenet_digits", "--workdir", str(folder / "run"), *words]) == 0
    return folder / "run"


def test_labels_are_those_of_the_names(run, tmp_path):
    """Of two of three classes, the second is not the run's second."""
    corpus = arch_jax.Images(source=f"images:{write(tmp_path / 'two', 'bc')}", batch=4, validation=0.5).load()
    renamed = Relabelled(corpus, ["a", "b", "c"])
    own = [batch["labels"] for batch in corpus.validation()]
    new = [batch["labels"] for batch in renamed.validation()]
    np.testing.assert_array_equal(np.concatenate(new), np.concatenate(own) + 1)
    assert (renamed.classes, renamed.class_names, renamed.facts) == (3, ("a", "b", "c"), corpus.facts)


def test_other_images_are_measured_by_name(run, tmp_path, capsys):
    """The accuracy on all three classes follows from those on each two of them, each class being as large."""
    opened = arch_jax.open_run(run)
    folders = {names: write(tmp_path / names, names) for names in ("abc", "bc", "ac", "ab")}
    right = {names: opened.evaluate(opened.elsewhere(f"images:{one}"))["accuracy"] for names, one in folders.items()}
    assert 3 * right.pop("abc") == pytest.approx(sum(2 * share for share in right.values()) / 2)
    assert main(["evaluate", str(run), "--on", f"images:{write(tmp_path / 'other', 'bcz')}"]) == 2
    assert "the class 'z' is none of those that were trained on" in capsys.readouterr().err


def test_images_that_the_parameters_can_t_take(run, tmp_path, capsys):
    assert main(["evaluate", str(run), "--on", f"images:{write(tmp_path / 'colour', 'abc', 'RGB')}"]) == 2
    said = capsys.readouterr().err
    assert "the run's model can't take images of shape (32, 32, 3); it was trained on (32, 32, 1)" in said
    assert "Traceback" not in said


def test_a_class_beyond_the_names():
    with pytest.raises(UsageError, match=r"the class 'cats' is none of those .*; the nearest is 'cat'"):
        Relabelled(type("Corpus", (), {"class_names": ("cat", "cats")})(), ["cat", "dog"])


def test_runs_of_earlier_versions_have_no_names(run):
    """They are measured as before: by the order of the names."""
    config = json.loads((run / "config.json").read_text())
    assert config["data"]["class_names"] == ["a", "b", "c"]
    del config["data"]["class_names"]
    (run / "config.json").write_text(json.dumps(config))
    assert main(["evaluate", str(run)]) == 0
    assert main(["train", "--workdir", str(run), "--set", "steps=2"]) == 0
