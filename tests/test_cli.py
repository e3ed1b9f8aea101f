"""The command `arch-jax`: what it prints, and that what goes wrong is one sentence with what was expected instead."""

import gc
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import arch_jax
from arch_jax.cli import main
from arch_jax.errors import UsageError
from arch_jax.train.workdir import read_metrics

ROOT = Path(__file__).parents[1]
TINY = {
    "model.depth": 1,
    "model.width": 16,
    "model.mixer.heads": 2,
    "model.mixer.kv_heads": 1,
    "data.tokenizer": "characters",
    "data.length": 16,
    "data.batch": 4,
    "objective.show_length": 4,
    "steps": 4,
    "optimizer.warmup": 1,
}


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """A small corpus without a single capital letter."""
    path = tmp_path_factory.mktemp("text") / "numbers.txt"
    path.write_text("".join(f"line {i} of {i * i} says {i % 7}\n" for i in range(100)))
    return path


@pytest.fixture(scope="module")
def tiny(text):
    """The arguments of a tiny run: `tiny(folder, **{"model.depth": 2})`."""

    def arguments(workdir: Path, experiment: str = "gpt", **changes: object) -> list[str]:
        settings = TINY | {"data.source": f"text:{text}"} | changes
        given = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
        return ["train", experiment, "--workdir", str(workdir), *given]

    return arguments


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory) -> Path:
    """A finished run."""
    path = tmp_path_factory.mktemp("run") / "gpt"
    assert main(tiny(path)) == 0
    return path


@pytest.fixture
def fails(capsys):
    """Runs the command and gives its sentence: one line on stderr, nothing on stdout, and the exit code asked for."""

    def command(*arguments: object, code: int = 2) -> str:
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == code
        out, err = capsys.readouterr()
        assert out == ""
        assert len(err.splitlines()) == 1, err
        assert "Traceback" not in err
        assert err.startswith("arch-jax: ")
        assert err.endswith("\n")
        return err.removeprefix("arch-jax: ").rstrip("\n")

    return command


@pytest.fixture
def says(capsys):
    """Runs the command, which succeeds, and gives what it prints on stdout."""

    def command(*arguments: object) -> str:
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 0
        return capsys.readouterr().out

    return command


# -- names and settings that are not valid -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["trian"], "unknown command 'trian'; the nearest is 'train'"),
        ([], "the following arguments are required: COMMAND; see `arch-jax --help`"),
        (["list", "--famly", "cnn"], "unrecognized arguments: --famly; see `arch-jax --help`"),
        (
            ["train", "--stop-after", "soon"],
            "argument --stop-after: invalid int value: 'soon'; see `arch-jax train --help`",
        ),
        (["describe", "gtp2"], "unknown model 'gtp2'; the nearest are 'gpt2'"),
        (["list", "--family", "transfomer"], "unknown family 'transfomer'; the nearest is 'transformer'"),
        (["train", "gtp"], "unknown experiment 'gtp'; the nearest is 'gpt'"),
        (
            ["train", "./none.py"],
            "the experiment file './none.py' does not exist; expected a Python file with config()",
        ),
        (["train", "gpt", "--seed", "x"], "seed is 'x'; expected an integer"),
        (["train", "gpt", "--seed", "-1"], "seed is -1; expected 0 to 4294967295"),
        (["train", "gpt", "--stop-after", "0"], "--stop-after is 0; expected at least 1 step"),
        (["describe", "gpt", "--set", "dept=2"], "unknown field 'dept'; the nearest is 'depth'"),
        (["describe", "gpt", "--set", "width=17", "--set", "mixer.heads=6"], "width 17 is not divisible by heads 6"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_arguments(fails, arguments, sentence):
    assert fails(*arguments).startswith(sentence)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("steps", "--set 'steps' has no value; expected field=value, such as model.depth=4"),
        ("=4", "--set '=4' has no value; expected field=value, such as model.depth=4"),
        ("model.dept=4", "unknown field 'model.dept'; the nearest are 'model.depth'"),
        ("depth=4", "unknown field 'depth'; the nearest is 'model.depth'"),
        ("model.depth=four", "model.depth is 'four'; expected an integer"),
        ("model.depth=0", "depth is 0; expected at least 1"),
        ("model.depth=3 model.depth.more=1", "model.depth is 3, which has no field 'more'"),
        ("steps=-5", "steps is -5; expected at least 1"),
        ("steps=2.5", "steps is '2.5'; expected an integer"),
        ("ema=2", "ema is 2.0; expected more than 0 and less than 1, or none"),
        ("ema=x", "ema is 'x'; expected a number or none"),
        ("optimizer.learning_rate=fast", "optimizer.learning_rate is 'fast'; expected a number"),
        ("optimizer.learning_rate=nan", "optimizer.learning_rate is 'nan'; expected a number"),
        ("optimizer.name=adamv", "optimizer.name is 'adamv'; expected one of 'adamw', 'adam', 'sgd'"),
        ("optimizer=adam", "unknown optimizer 'adam'; valid are 'optimizer'"),
        ("model=gpt3", "unknown model 'gpt3'"),
        ("model.mixer=atention", "unknown mixer 'atention'; the nearest are 'attention', "),
        ("model.mixer=rms_norm", "model.mixer is the norm 'rms_norm'; expected a mixer; valid are 'attention'"),
        ('model.mixer=[{"module":"atention"}]', "unknown mixer 'atention'; the nearest are 'attention', "),
        ("model.mixer.0.heads=2", "unknown field 'model.mixer.0'"),
        ("model.dtype=float99", "model.dtype is 'float99'; expected one of 'float32', 'bfloat16'"),
        ("model.scan=maybe", "model.scan is 'maybe'; expected true or false"),
        ("objective=nxt_token", "unknown objective 'nxt_token'; the nearest are 'next_token', "),
        ("data.source=pydcs", "unknown source 'pydcs'; the nearest is 'pydocs'"),
        ("data.tokenizer=byte", "unknown tokenizer 'byte'; the nearest is 'bytes'"),
        ("data.batch=0", "batch is 0; expected a whole number of at least 1"),
        ("accumulate=3 data.batch=16", "data.batch 16 can't be cut into accumulate=3; the nearest is 2"),
        ("log_every=8 steps=7", "log_every is 8; expected at most steps, which is 7"),
        (
            "steps=20 log_every=1",
            "optimizer.warmup is 50, and steps is 20, so learning_rate is never reached; expected",
        ),
        ("parallel=tpu", "parallel is 'tpu'; expected one of 'jit', 'pmap'"),
        (
            "model.vocabulary=100",
            "model.vocabulary is 100, but the tokenizer 'bytes' has 256 tokens; set model.vocabulary=256",
        ),
    ],
    ids=lambda value: value.split("; ")[0] if "=" in value else "",
)
def test_settings(fails, tmp_path, change, sentence):
    assert fails(
        "train", "gpt", "--workdir", tmp_path / "run", *(w for one in change.split(" ") for w in ("--set", one))
    ).startswith(sentence)
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_sequence_beyond_the_learned_positions(fails, tmp_path):
    settings = ["model=gpt2", "model.depth=1", "model.width=16", "model.mixer.heads=2", "model.position.length=8"]
    settings += ["data.length=16"]
    sentence = fails("train", "gpt", "--workdir", tmp_path, *(word for s in settings for word in ("--set", s)))
    assert sentence == (
        "a sequence of 16 tokens is longer than the table of 8 learned positions; "
        "use at most 8 tokens, or a model whose position.length is 16"
    )


def test_a_device_whose_memory_is_full(fails, tiny, tmp_path, monkeypatch):
    """XLA's own exception, raised here by hand: on a CPU, too large a request hangs jaxlib 0.10.2."""

    def full(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.\nmore lines")

    monkeypatch.setattr("arch_jax.train.loop.train", full)
    assert fails(*tiny(tmp_path), code=1) == (
        "the device's memory is full (RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.); "
        "a smaller batch, or accumulate=N, needs less"
    )


# -- data that can't be used -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "file '{}' is empty; expected UTF-8 text"),
        (b"  \n \n", "file '{}' is empty; expected UTF-8 text"),
        (b"only one line", "source 'text:{}' has 11 training tokens, and one batch of 4 x 16 needs 65 "),
        (b"a few\nwords\n" * 4, "source 'text:{}' has "),
        (b"\x00\x01\x02\n" * 100, "'{}' is not UTF-8 text (byte 0x00 at offset 0, in line 1)"),
        (b"caf\xe9\nau lait\n" * 50, "'{}' is not UTF-8 text (byte 0xe9 at offset 3, in line 1)"),
    ],
    ids=["empty", "blank", "one line", "too short", "binary", "latin-1"],
)
def test_corpora(fails, tiny, tmp_path, content, sentence):
    file = tmp_path / "corpus.txt"
    file.write_bytes(content)
    told = fails(*tiny(tmp_path / "run", **{"data.source": f"text:{file}"}))
    assert told.startswith(sentence.format(file))
    if content.startswith(b"a few"):
        assert re.search(
            r"has \d+ training tokens, and one batch of 4 x 16 needs 65 .*; expected at most length \d+ or", told
        )


def test_a_missing_file_and_the_nearest(fails, tiny, text, tmp_path):
    wrong = text.with_name("number.txt")
    told = fails(*tiny(tmp_path, **{"data.source": f"text:{wrong}"}))
    assert told == f"there is no file or folder '{wrong}'; the nearest is '{text}'"


@pytest.mark.parametrize("place", ["/proc/arch-jax/run", "a file"])
def test_folders_that_cannot_be_written(fails, tiny, tmp_path, place):
    (tmp_path / "a file").write_text("")
    folder = Path(place) if place.startswith("/") else tmp_path / place / "run"
    told = fails(*tiny(folder))
    assert told.startswith(f"can't write to the work directory {folder}: ")
    assert told.split(": ")[1] in ("No such file or directory", "Not a directory", "Permission denied")


# -- training ----------------------------------------------------------------------------------------------------------


def test_train_prints_loss_text_and_paths(says, tiny, tmp_path):
    path = tmp_path / "run"
    out = says(*tiny(path))
    lines = out.splitlines()
    last = read_metrics(path)[-1]
    assert lines[0] == "--- step_0000004_text ---"
    shown = (path / "samples" / "step_0000004_text.txt").read_text().strip()
    assert f"---\n{shown}\n---\n" in out
    (loss,) = (line for line in lines if line.startswith("validation loss "))
    assert loss.startswith(f"validation loss {last['validation/loss']:.4f} nats, ")
    written = [Path(line.removeprefix("wrote ")) for line in lines if line.startswith("wrote ")]
    assert written == [
        path / "samples" / "step_0000004_text.txt",
        path / "loss.png",
        path / "metrics.jsonl",
        path / "checkpoints",
    ]
    assert all(file.exists() for file in written)


def test_stop_after_and_going_on(says, tiny, run, tmp_path):
    """The second call needs no more than the folder, which knows the experiment and its settings."""
    arguments = [*tiny(tmp_path / "run"), "--seed", "0"]
    out = says(*arguments, "--stop-after", 3)
    assert out == f"stopped after step 3 of 4; resume with: arch-jax train --workdir {tmp_path / 'run'}\n"
    out = says("train", "--workdir", str(tmp_path / "run"))
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()
    assert "validation loss " in out


def test_a_finished_run_trained_again(says, tiny, run):
    before = (run / "metrics.jsonl").read_bytes()
    out = says(*tiny(run))
    assert re.search(r"^validation loss \d\.\d{4} nats", out, re.MULTILINE)
    assert (run / "metrics.jsonl").read_bytes() == before


def test_the_folder_of_another_run(fails, tiny, run):
    end = "; only steps and the mesh may change on resume"
    told = fails(*tiny(run, **{"optimizer.warmup": 3}))
    assert re.fullmatch(rf"{run} holds a run with optimizer.warmup=1, and now it is 3{end}", told)
    told = fails("train", "gpt", "--workdir", run)
    assert re.fullmatch(rf"{run} holds a run with data.batch=4, and now it is \d+{end}", told)


def test_a_loss_that_is_not_finite(fails, tiny, tmp_path):
    changes = {"optimizer.learning_rate": 1e30, "optimizer.warmup": 0, "steps": 20, "optimizer.weight_decay": 0}
    told = fails(*tiny(tmp_path, **changes), code=1)
    assert re.fullmatch(
        rf"(loss|gradient_norm) is (nan|inf) at step \d+ of the run in {tmp_path}; there is no checkpoint before it",
        told,
    )


def test_the_next_free_folder(says, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = tiny(Path("x"))
    arguments = [*arguments[:2], *arguments[4:], "--stop-after", "1"]
    assert "--workdir runs/gpt-1\n" in says(*arguments)
    assert "--workdir runs/gpt-2\n" in says(*arguments)


OWN = '''
"""An experiment with a norm of its own."""

import flax.linen as nn
import jax.numpy as jnp

import arch_jax


@arch_jax.component("cli_max_norm", kind="norm")
class MaxNorm(nn.Module):
    """x / max |x|."""

    scale: float = 1.0

    @nn.compact
    def __call__(self, x):
        return self.scale * x / (jnp.abs(x).max(axis=-1, keepdims=True) + 1e-6)


published = ["2.5 nats, table 1 of nobody's paper"]


def config():
    return arch_jax.Experiment(
        model=arch_jax.create("gpt", norm=MaxNorm(scale=2.0)),
        objective=arch_jax.objective("next_token"),
        data=arch_jax.Text(),
        steps=4,
    )
'''


def test_a_persons_own_experiment(says, fails, tiny, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(OWN)
    path = tmp_path / "run"
    out = says(*tiny(path, experiment=str(file), **{"model.norm.scale": 3}))
    assert "published: 2.5 nats, table 1 of nobody's paper" in out
    config = json.loads((path / "config.json").read_text())["experiment"]
    assert config["name"] == "mine"
    assert config["model"]["norm"] == {"module": "cli_max_norm", "scale": 3.0}
    loss = re.search(r"validation loss (\S+) nats", out)[1]
    assert says("evaluate", path, "--import", file).startswith(f"validation loss {loss} nats")
    # Where nobody has said what the part is, the sentence tells how to.
    (path / "config.json").write_text((path / "config.json").read_text().replace("cli_max_norm", "cli_nobodys_norm"))
    told = fails("evaluate", path)
    assert told.startswith(f"the run in {path} can't be opened: unknown norm 'cli_nobodys_norm'; the nearest ")
    assert told.endswith("; parts of your own come with --import FILE")
    assert fails("evaluate", path, "--import", tmp_path / "no.py") == (
        f"--import '{tmp_path / 'no.py'}' does not exist; expected a Python file"
    )


# -- evaluate and sample -----------------------------------------------------------------------------------------------


def test_evaluate_prints_the_loss_first(says, run):
    losses = [line["validation/loss"] for line in read_metrics(run) if "validation/loss" in line]
    out = says("evaluate", run)
    assert re.search(r"\d+(\.\d+)?", out)[0] == f"{losses[-1]:.4f}"
    assert out.splitlines()[1] == f"of step 4 of {run}"
    found = json.loads(says("evaluate", run, "--json"))
    assert found["step"] == 4
    assert found["loss"] == pytest.approx(losses[-1], rel=1e-6)
    assert says("evaluate", run, "--best") == out


def test_evaluate_other_data(fails, run, text, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    config = tmp_path / "run" / "config.json"
    other = tmp_path / "other.txt"
    other.write_text(text.read_text() + "one more line\n")
    config.write_text(config.read_text().replace(f"text:{text}", f"text:{other}"))
    told = fails("evaluate", tmp_path / "run")
    assert re.fullmatch(
        rf"the data 'text:{other}' is not what the run in .* was trained on: its hash is \w+, expected \w+; "
        rf"`arch-jax evaluate .* --on text:{other}` measures the run on it",
        told,
    )


@pytest.mark.parametrize("command", ["evaluate", "sample"])
def test_a_folder_without_a_run(fails, tmp_path, command):
    assert fails(command, tmp_path) == f"{tmp_path} holds no run: there is no config.json in it"
    assert fails(command, tmp_path / "none") == f"{tmp_path / 'none'} holds no run: there is no config.json in it"
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_a_checkpoint(fails, run, tmp_path):
    shutil.copy(run / "config.json", tmp_path)
    assert fails("evaluate", tmp_path, code=1) == f"the run in {tmp_path} has no checkpoint yet"


def test_sample(says, run):
    out = says("sample", run, "--prompt", "line 7", "--length", 5, "--temperature", 0)
    assert out.startswith("line 7")
    assert len(out.rstrip("\n")) <= len("line 7") + 5
    assert says("sample", run, "--prompt", "line 7", "--length", 5, "--temperature", 0, "--seed", 9) == out
    several = says("sample", run, "--count", 3, "--length", 12, "--temperature", 1.5, "--prompt", "a")
    texts = re.split(r"--- sample \d ---\n", several)[1:]
    assert len(texts) == 3
    assert len(set(texts)) > 1
    again = ("sample", run, "--count", 3, "--length", 12, "--temperature", 1.5, "--prompt", "a")
    assert says(*again) == several
    assert says(*again, "--seed", 1) != several
    assert says("sample", run, "--length", 12, "--temperature", 5, "--top-k", 1) == says(
        "sample", run, "--length", 12, "--temperature", 0
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--temperature", "-1"], "temperature is -1.0; expected a finite number of at least 0"),
        (["--temperature", "nan"], "sampler.temperature is 'nan'; expected a number"),
        (
            ["--temperature", "warm"],
            "sampler.temperature is 'warm'; expected a number",
        ),
        (["--top-k", "0"], "top_k is 0; expected an integer of at least 1"),
        (["--top-p", "0"], "top_p is 0.0; expected a number in (0, 1]"),
        (["--top-p", "1.5"], "top_p is 1.5; expected a number in (0, 1]"),
        (["--count", "0"], "count is 0; expected at least 1"),
        (["--length", "0"], "length is 0; expected at least 1 token to generate"),
        (["--length", "-3"], "length is -3; expected at least 1 token to generate"),
        (["--prompt", ""], "the prompt is empty; expected at least one character"),
        (["--prompt", "line é"], "character 'é' at position 5 is not among the"),
        (["--seed", "x"], "argument --seed: invalid int value: 'x'; see `arch-jax sample --help`"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_sample_settings(fails, run, arguments, sentence):
    assert fails("sample", run, *arguments).startswith(sentence)


def test_a_damaged_tokenizer(fails, run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "tokenizer.json").write_text('{"kind": "charac')
    assert fails("sample", tmp_path / "run", code=1).startswith(
        f"{tmp_path}/run/tokenizer.json is missing or damaged: "
    )


# -- looking -----------------------------------------------------------------------------------------------------------


def test_list(says):
    rows = json.loads(says("list", "--json"))
    assert [row["name"] for row in rows] == list(arch_jax.models())
    for row in rows:
        assert {"name", "family", "parameters", "parameters_published", "paper", "year"} <= row.keys()
        assert row["parameters"] > 0
        assert row["parameters_published"] in (None, row["parameters"])
    assert next(row for row in rows if row["name"] == "gpt2")["parameters_published"] == 124_439_808
    assert json.loads(says("list", "--family", "cnn", "--json")) == [row for row in rows if row["family"] == "cnn"]
    table = says("list", "--family", "transformer")
    assert "124,439,808" in table
    for row in rows:
        is_there = re.search(rf"^ ?{re.escape(row['name'])} ", table, re.MULTILINE) is not None
        assert is_there == (row["family"] == "transformer")
    found = json.loads(says("list", "mamba", "--parameters", "100M:300M", "--json"))
    assert [row["name"] for row in found] == ["mamba-130m", "mamba2-130m"]


def test_list_imports_no_jax():
    code = "import sys; from arch_jax.cli import main; main(['list', '--json']); assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, cwd=ROOT)


def test_list_of_a_file_of_ones_own(says, tmp_path):
    """With --import a model of one's own is listed, counted on the spot, and described."""
    file = tmp_path / "mine.py"
    file.write_text(
        "import arch_jax\n"
        "@arch_jax.register('tiniest', family='transformer', objective='next_token', inputs=arch_jax.tokens(4),\n"
        "                   paper=arch_jax.Paper('A title', 'Somebody', 2000, '0000.00000'), reference='none')\n"
        "def tiniest():\n"
        "    return arch_jax.create('gpt2', depth=1, width=8, vocabulary=16, **{'mixer.heads': 2})\n"
    )
    try:
        rows = json.loads(says("list", "tiniest", "--import", file, "--json"))
        facts = json.loads(says("describe", "tiniest", "--import", file, "--json"))
    finally:
        arch_jax.registry._ENTRIES.pop("tiniest", None)
    assert [row["parameters"] for row in rows] == [facts["parameters"]]


def test_describe(says):
    facts = json.loads(says("describe", "gpt", "--set", "depth=2", "--set", "mixer.heads=4", "--json"))
    assert facts["name"] == "gpt"
    assert facts["parameters"] == sum(layer["count"] for layer in facts["layers"])
    assert facts["parameters_published"] is None
    assert gc.isenabled()  # it pauses while a model is traced
    settings = {field["name"]: field for field in facts["hyperparameters"]}
    assert settings["depth"] == {"name": "depth", "value": 2, "meaning": "number of blocks."}
    assert settings["mixer.heads"]["value"] == 4
    assert facts["flops"] > 0
    out = says("describe", "gpt2")
    assert "parameters  124,439,808  (published: 124,439,808)" in out
    assert "Radford et al. (2019)" in out


def test_experiments(says):
    found = {row["name"]: row["text"] for row in json.loads(says("experiments", "--json"))}
    assert found.keys() == {path.stem for path in (ROOT / "experiments").glob("*.py")}
    assert all(found.values())
    out = says("experiments")
    assert all(name in out for name in found)


def test_debug_shows_where(capsys):
    with pytest.raises(UsageError, match="unknown model 'gtp2'"):
        main(["describe", "gtp2", "--debug"])
    assert capsys.readouterr().err == ""


def test_without_debug_an_unexpected_error_is_not_hidden(monkeypatch):
    """A sentence is for what a person can do something about; a bug keeps its traceback."""
    monkeypatch.setattr("arch_jax.describe.describe", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["describe", "gpt"])


# -- as a process ------------------------------------------------------------------------------------------------------


def process(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "arch_jax", *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.thorough
def test_as_a_module():
    done = process("--version")
    assert (done.returncode, done.stdout) == (0, f"arch-jax {arch_jax.__version__}\n")


def test_a_platform_that_is_not_there(tmp_path):
    """Never a silent fall back to the CPU."""
    done = process("train", "gpt", "--workdir", str(tmp_path / "run"), "--stop-after", "1", JAX_PLATFORMS="tpu")
    if done.returncode == 0:
        pytest.skip("there is a TPU here")
    assert done.returncode == 1
    assert done.stdout == ""
    # Where libtpu is installed and there is no TPU, it writes lines of its own.
    others = importlib.util.find_spec("libtpu") is not None
    lines = [line for line in done.stderr.splitlines() if line.startswith("arch-jax: ") or not others]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("arch-jax: the platform asked for (tpu) is not there: ")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.thorough
def test_looking_needs_no_platform():
    done = process("describe", "gpt", "--json", JAX_PLATFORMS="tpu")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["name"] == "gpt"


@pytest.mark.thorough
def test_debug_prints_the_traceback():
    done = process("describe", "gtp2", "--debug")
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")
    assert "unknown model 'gtp2'" in done.stderr.splitlines()[-1]
