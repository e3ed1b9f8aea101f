"""A run is judged on other data: under its own tokenizer, from another place, or of another kind."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax.cli import main
from arch_jax.errors import UsageError
from arch_jax.train.restore import open_run

SMALL = {
    "model.depth": 1,
    "model.width": 16,
    "model.mixer.heads": 2,
    "model.mixer.kv_heads": 1,
    "data.tokenizer": "characters",
    "data.length": 8,
    "data.batch": 4,
    "objective.show_length": 4,
    "objective.prompt": "a",
    "steps": 2,
    "optimizer.warmup": 0,
}


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Two texts of the same letters, one without some of them, and one with a letter of its own."""
    folder = tmp_path_factory.mktemp("texts")
    rows = ["".join("abcdefgh "[(i * i + j) % 9] for j in range(20)) for i in range(60)]
    (folder / "own.txt").write_text("\n".join(rows))
    (folder / "other.txt").write_text("\n".join(row.replace("h", "a").replace("g", "b") for row in rows[::-1]))
    (folder / "strange.txt").write_text("\n".join(row.replace("h", "z") for row in rows))
    return folder


@pytest.fixture(scope="module")
def run(texts, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "gpt"
    settings = SMALL | {"data.source": f"text:{texts / 'own.txt'}"}
    given = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    assert main(["train", "gpt", "--workdir", str(path), *given]) == 0
    return path


def told(capsys, *arguments):
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_run_s_own_source_is_what_it_was(run, texts, capsys):
    _, own, _ = told(capsys, "evaluate", run, "--json")
    _, again, _ = told(capsys, "evaluate", run, "--on", f"text:{texts / 'own.txt'}", "--json")
    found = json.loads(again)
    assert found.pop("on")["source"] == f"text:{texts / 'own.txt'}"
    assert found == json.loads(own)


def test_other_text_is_read_under_the_run_s_tokenizer(run, texts):
    """A tokenizer of the other text's own letters would give them other numbers."""
    opened = open_run(run)
    data = opened.elsewhere(f"text:{texts / 'other.txt'}")
    assert data.length == 8, "its other fields are the run's"
    corpus = data.load_with(opened._carried().tokenizer)
    assert corpus.tokenizer.characters == "\n abcdefgh"
    nats = count = 0
    for batch in corpus.validation():
        logits = np.asarray(opened.experiment.model.apply(opened.variables, jnp.asarray(batch["tokens"])), np.float64)
        logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
        each = -np.take_along_axis(logits, np.asarray(batch["targets"])[..., None], -1)[..., 0]
        nats, count = nats + (each * batch["weights"]).sum(), count + batch["weights"].sum()
    assert opened.evaluate(data)["loss"] == pytest.approx(nats / count, rel=1e-5)


def test_fields_and_kinds_of_data(run, texts, capsys):
    source = f"text:{texts / 'other.txt'}"
    _, out, _ = told(capsys, "evaluate", run, "--on", source, "--set", "data.validation=0.5", "--json")
    assert json.loads(out)["on"]["validation"] == 0.5
    whole = json.dumps({"module": "text", "source": source, "tokenizer": "characters", "length": 4, "batch": 2})
    code, out, _ = told(capsys, "evaluate", run, "--on", whole)
    assert code == 0
    assert "validation loss" in out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--on", "txet:x"], "unknown source 'txet:x'"),
        (["--on", "strange"], "character 'z' at position"),
        (["--on", "own", "--set", "model.depth=2"], "--set model.depth is not of the data; beside --on, expected"),
        (["--on", "own", "--set", "data.lenght=2"], "unknown field 'data.lenght'; the nearest are 'data.length'"),
        (["--set", "data.batch=2"], "--set data.batch=2 changes the data, which needs --on SOURCE"),
        (["--on", "{oops"], "--on '{oops' is no JSON"),
        (["--on", '{"module": "imagse"}'], "unknown data 'imagse'; the nearest is 'images'"),
        (["--on", "ring"], ""),  # points for a language model
    ],
)
def test_what_can_t_be_judged_on_is_a_sentence(run, texts, capsys, arguments, sentence):
    given = [f"text:{texts / word}.txt" if word in ("own", "strange") else word for word in arguments]
    code, out, err = told(capsys, "evaluate", run, *given)
    assert (code, out) == (2, "")
    assert err.startswith(f"arch-jax: {sentence}")
    assert len(err.splitlines()) == 1


def test_data_without_a_source_says_so(run):
    opened = open_run(run)
    object.__setattr__(opened.experiment, "data", opened.elsewhere("parity"))
    with pytest.raises(UsageError, match="the run's data 'parity' comes from no source that could be another"):
        opened.elsewhere("text:x")


def test_what_is_left_out_is_told_once_a_load(run, texts, capsys):
    folder = texts / "folder"
    (folder / ".ipynb_checkpoints").mkdir(parents=True)
    for name in ("1.txt", "2.txt", ".ipynb_checkpoints/1-checkpoint.txt", "image.png"):
        (folder / name).write_text((texts / "other.txt").read_text())
    code, _, err = told(capsys, "evaluate", run, "--on", f"text:{folder}")
    assert code == 0, err
    assert err == f"'text:{folder}' is read without 1 hidden file or folder, 1 file of another type\n"
