"""A run's data is known by its content: from any folder, by any path to it, for every kind of source with a place."""

import json
import os
import shlex
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

import arch_jax
from arch_jax.cli import main
from arch_jax.data.files import places
from arch_jax.data.images.sources import SOURCES as IMAGES
from arch_jax.data.text.sources import SOURCES as TEXTS
from arch_jax.train import own_data

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
OTHER = "hedcba fg\n" * 40
pytestmark = pytest.mark.usefixtures("compiled_once")


def sets(settings):
    return [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A folder in which a run of text.txt was begun by that name."""
    folder = tmp_path_factory.mktemp("first")
    (folder / "text.txt").write_text(
        "".join("abcdefgh "[(i * i + i // 9) % 9] + "\n" * (i % 7 == 0) for i in range(400))
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        assert main(["train", "gpt", "--workdir", "run", *sets(SMALL | {"data.source": "text:text.txt"})]) == 0
    return folder


@pytest.fixture
def begun(first, tmp_path, monkeypatch):
    """A copy of that folder, by the same path as was written down, in a working directory that is another."""
    shutil.copytree(first, tmp_path / "first")
    config = tmp_path / "first" / "run" / "config.json"
    config.write_text(config.read_text().replace(str(first), str(tmp_path / "first")))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "first"


@pytest.fixture
def told(capsys):
    def command(*arguments):
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err.removeprefix("arch-jax: ").strip()

    return command


@pytest.mark.thorough
def test_a_run_is_resumed_evaluated_and_sampled_from_another_folder(begun, told):
    run = begun / "run"
    assert json.loads((run / "config.json").read_text())["place"] == str(begun / "text.txt")
    code, own, err = told("evaluate", run)
    assert code == 0, err
    for source in (f"text:{begun / 'text.txt'}", "text:../first/text.txt"):
        assert told("evaluate", run, "--set", f"data.source={source}")[:2] == (0, own)
        assert told("sample", run, "--set", f"data.source={source}", "--length", 2)[0] == 0
    # Another file of that name lies here: the content tells.
    Path("text.txt").write_text(OTHER)
    assert told("evaluate", run)[:2] == (0, own)
    code, _, err = told("train", "--workdir", run, "--set", "steps=3")
    assert code == 0, err
    stored = json.loads((run / "config.json").read_text())
    assert stored["experiment"]["data"]["source"] == "text:text.txt"
    assert stored["place"] == str(begun / "text.txt")


@pytest.mark.thorough
def test_a_run_goes_on_where_its_data_lies_now(begun, told):
    run, moved = begun / "run", Path("moved.txt").absolute()
    (begun / "text.txt").rename(moved)
    assert told("evaluate", run)[::2] == (
        2,
        f"the data 'text:text.txt' of the run in {run} is no longer there: there is no 'text.txt' nor "
        f"'{begun / 'text.txt'}'; expected its place by --set data.source=text:PATH",
    )
    code, _, err = told("train", "--workdir", run, "--set", "steps=3", "--set", f"data.source=text:{moved}")
    assert code == 0, err
    stored = json.loads((run / "config.json").read_text())
    assert (stored["experiment"]["data"]["source"], stored["place"]) == (f"text:{moved}", str(moved))
    assert told("evaluate", run)[0] == 0, "what it goes on with is written down"


@pytest.mark.thorough
def test_other_data_is_one_sentence_whose_advice_works(begun, told):
    run = begun / "run"
    Path("o t.txt").write_text(OTHER)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    given = ("--set", "data.source=text:o t.txt")
    for command in (["evaluate", run], ["sample", run], ["train", "--workdir", run]):
        code, out, err = told(*command, *given)
        assert (code, out) == (2, "")
        assert err.startswith(f"the data 'text:o t.txt' is not what the run in {run} was trained on: its hash is ")
        assert err.count("\n") == 0
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    evaluating = err.split("`")[1]
    assert evaluating == f"arch-jax evaluate {run} --on 'text:o t.txt'"
    code, _, told_on = told(*shlex.split(evaluating)[1:])
    assert code == 0, told_on
    assert err.endswith(f", and --set start={run} with another --workdir begins a new run from its weights")
    settings = SMALL | {"data.source": f"text:{begun / 'text.txt'}", "data.length": 4, "start": run}
    code, _, err = told("train", "gpt", "--workdir", "new", *sets(settings))
    assert code == 0, err


@pytest.mark.thorough
def test_names_that_are_not_utf_8(begun, told):
    """As old archives hold them: as a source they are written down and found again, and runs have no such names."""
    odd = os.fsdecode(b"caf\xe9")
    Path(odd).mkdir()
    shutil.copy(begun / "text.txt", Path(odd, "text.txt"))
    code, _, err = told("train", "--workdir", begun / "run", "--set", "steps=3", "--set", f"data.source=text:{odd}")
    assert code == 0, err
    assert json.loads((begun / "run" / "config.json").read_text())["place"] == os.path.abspath(odd)
    assert told("evaluate", begun / "run")[0] == 0
    code, _, err = told("train", "gpt", "--workdir", f"{odd}/run", *sets(SMALL | {"data.source": f"text:{odd}"}))
    assert code == 2
    assert err.startswith("the work directory 'caf\\udce9/run' has a name that is not UTF-8; expected")


@pytest.mark.thorough
@pytest.mark.parametrize("place", ["model.source", "data.sources", "objective.source"])
def test_only_sources_can_have_moved(begun, told, place):
    code, _, err = told("evaluate", begun / "run", "--set", f"{place}=x")
    assert code == 2
    assert f"'{place}' is no source" in err or f"--set {place}=x changes the data, which needs --on" in err


def test_every_source_that_is_named_by_its_place_is_known():
    named = {name.partition(":")[0] for name in (*TEXTS, *IMAGES) if name.endswith((":PATH", ":DIR"))}
    assert set(places.KINDS) == named


def of_images(folder):
    for kind in ("a", "b"):
        (folder / kind).mkdir(parents=True)
        for number in range(3):
            PIL.Image.fromarray(np.full((2, 2), 40 * number, np.uint8)).save(folder / kind / f"{number}.png")
    return arch_jax.Images(source="images:data", batch=2)


def of_idx(folder):
    folder.mkdir()
    for name, shape in (("images-idx3", (4, 2, 2)), ("labels-idx1", (4,))):
        header = bytes([0, 0, 8, len(shape)]) + np.array(shape, ">u4").tobytes()
        values = np.arange(np.prod(shape), dtype=np.uint8) % 2
        (folder / f"train-{name}-ubyte").write_bytes(header + values.tobytes())
    return arch_jax.Images(source="idx:data", batch=2)


def of_text(kind):
    def make(folder):
        folder.mkdir()
        for number in range(3):
            (folder / f"{number}.txt").write_text(f"{number} and a few words of this file alone\n" * 8)
        return kind(source="text:data", tokenizer="bytes", length=16, batch=1, validation=0.4)

    return make


@pytest.mark.parametrize(
    "make",
    [of_images, of_idx, of_text(arch_jax.Text), of_text(arch_jax.data.SentencePairs), of_text(arch_jax.data.Spans)],
    ids=["images", "idx", "text", "sentence_pairs", "spans"],
)
def test_every_kind_of_source_is_found_where_it_was(make, tmp_path, monkeypatch):
    """From another folder, where something else of that name may lie."""
    data = make(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    corpus, place = own_data.find(data, Path("run"), None, None)
    config = {
        "experiment": {"data": {"source": data.source}},
        "data": corpus.facts,
        "place": str(place.absolute()),
    }
    (tmp_path / "elsewhere" / "data").mkdir(parents=True)
    (tmp_path / "elsewhere" / "data" / "1.txt").write_text("something else\nof that name\n" * 80)
    monkeypatch.chdir(tmp_path / "elsewhere")
    again, there = own_data.find(data, Path("run"), config, None)
    assert again.facts | {"source": data.source} == corpus.facts
    assert there == tmp_path / "data"
