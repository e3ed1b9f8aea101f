"""What registers itself is found: every part named in the source is known to a process that has imported nothing."""

import gzip
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import arch_jax
from arch_jax import fields, registry
from arch_jax.cli import main
from arch_jax.data.text import multi30k
from arch_jax.discovery import import_components
from arch_jax.experiment import Experiment, experiments, load
from arch_jax.fields import to_json

ROOT = Path(__file__).parents[1]
SOURCES = [path.read_text(encoding="utf-8") for path in (ROOT / "arch_jax").rglob("*.py")]


def fresh(code: str, *arguments: str) -> subprocess.CompletedProcess:
    """Runs Python in a process that has imported nothing of ours, and compiles tiny programs hastily, as this one."""
    own = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, env=os.environ | own)


def parts(value):
    """A component and all that stand in its fields."""
    yield value
    for _, inner in fields.walk(value):
        if hasattr(inner, "__dataclass_fields__"):
            yield inner


def test_every_part_in_the_source_is_known():
    """A decorator is read from the source, so that a file which nothing imports is noticed."""
    import_components()
    named = {name for text in SOURCES for name in re.findall(r'^@?(?:fields\.)?component\("(\w+)"', text, re.MULTILINE)}
    assert len(named) > 100
    assert named <= fields.components().keys()
    models = {name for text in SOURCES for name in re.findall(r'^\s*@register\(\s*"([^"]+)"', text, re.MULTILINE)}
    assert len(models) > 60
    assert models <= registry.models().keys()


FROM_JSON = """
import json, sys
from arch_jax.experiment import Experiment
from arch_jax import fields
stored = json.load(open(sys.argv[1]))
for name, data in stored["experiments"].items():
    assert Experiment.from_json(data).to_json() == data, name
for data in stored["parts"]:
    assert fields.to_json(fields.from_json(data)) == data, data
"""


def test_every_part_and_experiment_comes_back_in_a_fresh_process(tmp_path):
    import_components()
    runs = {name: load(name)[0] for name in experiments()}
    found = {}
    for whole in [*runs.values(), *(entry.build() for entry in registry.models().values())]:
        found |= {type(part): part for part in parts(whole)}
    for name, cls in fields.components().items():
        if cls in found or not cls.__module__.startswith("arch_jax."):
            continue
        given = {"model": "gpt2", "source": "runs/gpt-1"}
        needed = [f.name for f in fields.settings(cls) if fields.required(f)]
        found[cls] = fields.build(cls, {name: given[name] for name in needed})
        assert name
    path = tmp_path / "stored.json"
    path.write_text(
        json.dumps(
            {
                "experiments": {name: run.to_json() for name, run in runs.items()},
                "parts": [to_json(part) for cls, part in found.items() if cls is not Experiment],
            }
        )
    )
    result = fresh(FROM_JSON, str(path))
    assert result.returncode == 0, result.stderr[-2000:]


def test_a_family_is_a_folder_or_of_ones_own():
    folders = {path.parent.name for path in ROOT.glob("arch_jax/models/*/__init__.py")}
    assert folders <= set(registry.families())
    paper = arch_jax.Paper("A title", "Somebody", 2000, "0000.00000")
    facts = {"objective": "next_token", "paper": paper, "inputs": arch_jax.tokens(4)}
    try:
        arch_jax.register("from-elsewhere", family="hopfield", **facts)(lambda: None)
        assert "hopfield" in registry.families()
    finally:
        registry._ENTRIES.pop("from-elsewhere", None)
    with pytest.raises(arch_jax.UsageError, match="family is 3; expected a name"):
        arch_jax.register("from-elsewhere", family=3, **facts)

    def build():
        """A model that says that it stands in this package."""

    build.__module__ = "arch_jax.models.cnn.lenet"
    with pytest.raises(arch_jax.UsageError, match="of family 'gnn'; expected that of its folder, 'cnn'"):
        arch_jax.register("from-here", family="gnn", **facts)(build)


#: Experiment -> what makes it tiny; together they hold each pair of an objective and a kind of data.
FASHION = {"data.source": "digits", "data.resize": 28, "data.batch": 8}
LANGUAGE = {"model.depth": 1, "model.width": 16, "data.batch": 4, "objective.show_length": 4}
TINY = {
    "adding_problem": {"data.length": 8, "data.validation": 8, "data.batch": 4, "objective.show_rows": 4},
    "bert_markov": {"model.depth": 1, "model.width": 16, "data.validation": 8, "data.batch": 4},
    "lenet_digits": {"data.batch": 8},
    "copy_memory": {"model.width": 16, "data.delay": 5, "data.validation": 8, "data.batch": 4},
    "denoising_score": {"data.batch": 8, "data.validation": 16},
    "ddpm_points": {"model.depth": 1, "model.width": 16, "data.batch": 8, "data.validation": 16, "sampler.steps": 3},
    "ddpm_fashion": FASHION | {"model.widths": "8,8", "sampler.steps": 2, "objective.show": 4, "measures": "none"},
    "formal_languages": LANGUAGE | {"data.longest": 8, "data.tested": 10, "data.validation": 8},
    "gan_ring": {"data.batch": 8, "data.validation": 16, "objective.show_points": 16},
    "gcn_karate": {},
    "gpt": LANGUAGE | {"model.mixer.heads": 2, "model.mixer.kv_heads": 2, "data.length": 8, "data.validation": 0.01},
    "induction": LANGUAGE | {"model.mixer.heads": 2, "model.mixer.kv_heads": 2, "data.validation": 8},
    "induction_heads": LANGUAGE | {"data.length": 16, "data.validation": 8, "data.tested_sequences": 2},
    "iwae_fashion": FASHION | {"objective.evaluation_draws": 2},
    "luong_reverse": {"model.hidden": 8, "model.embedding": 8, "data.validation": 8, "data.batch": 4},
    "mae_fashion": FASHION
    | {
        "model.depth": 1,
        "model.width": 16,
        "model.decoder_depth": 1,
        "model.decoder_width": 16,
        "objective.probe_images": 40,
    },
    "mqar": LANGUAGE | {"data.validation": 8},
    "multi30k_seq2seq": {
        "model.vocabulary": 302,
        "model.hidden": 8,
        "model.embedding": 8,
        "data.tokenizer": "bpe:300",
        "data.batch": 4,
        "objective.beams": 1,
    },
    "selective_copying": LANGUAGE | {"data.length": 24, "data.validation": 8},
    "sparse_dictionary": {"data.batch": 8, "data.validation": 16},
    "t5_span": {"model.depth": 1, "model.width": 16, "data.length": 32, "data.batch": 4, "data.validation": 0.01},
    "vqvae_fashion": FASHION,
}

COMMANDS = """
import json, os, sys
from arch_jax.cli import main
from arch_jax.data.text import multi30k
multi30k.HASHES.update(json.loads(os.environ["HASHES"]))
for run in sys.argv[1:]:
    for command in (["evaluate", run, "--json"], ["sample", run], ["train", "--workdir", run, "--set", "steps=4"]):
        print("==", os.path.basename(run), command[0], main(command), flush=True)
"""


def test_the_tiny_runs_hold_every_pair_of_objective_and_data():
    pairs = {name: tuple(type(x).__name__ for x in (load(name)[0].objective, load(name)[0].data)) for name in TINY}
    missing = {}
    for name in experiments():
        experiment = load(name)[0]
        pair = (type(experiment.objective).__name__, type(experiment.data).__name__)
        if pair not in pairs.values():
            missing[name] = pair
    assert not missing, "each of these needs a tiny run in TINY"


@pytest.fixture
def captions(tmp_path, monkeypatch):
    """Twelve captions stand in for Multi30k, in a data folder that has everything else that the user's has."""
    folder = tmp_path / "data"
    (folder / "multi30k").mkdir(parents=True)
    if arch_jax.data.data_directory().exists():
        for path in arch_jax.data.data_directory().iterdir():
            if path.name != "multi30k":
                (folder / path.name).symlink_to(path)
    words = {"en": ["A dog runs.", "Two men sit in the snow."], "de": ["Ein Hund rennt.", "Zwei sitzen im Schnee."]}
    hashes = {}
    for part in multi30k.HASHES:
        hashes[part] = {}
        for language, lines in words.items():
            content = gzip.compress(("\n".join(lines * 6) + "\n").encode(), mtime=0)
            (folder / "multi30k" / f"{part}.{language}.gz").write_bytes(content)
            hashes[part][language] = hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(multi30k, "HASHES", hashes)
    monkeypatch.setenv("HASHES", json.dumps(hashes))
    monkeypatch.setenv("ARCH_JAX_DATA", str(folder))


@pytest.fixture
def every_program_is_kept(monkeypatch):
    """However fast it was compiled: the process that goes on with a run finds what began it."""
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    monkeypatch.setenv(name.upper(), "0")
    jax.config.update(name, 0.0)
    yield
    jax.config.update(name, before)


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.usefixtures("captions", "every_program_is_kept")
def test_every_kind_of_run_is_evaluated_sampled_and_resumed_in_a_fresh_process(tmp_path, capfd):
    """What a run is made of is told by its config.json alone; the process has not read the experiment's file."""
    runs = []
    for name, changes in TINY.items():
        one = load(name)[0].optimizer
        short = {"steps": 2, "log_every": 1} | ({"optimizer.warmup": 0} if isinstance(one, arch_jax.Optimizer) else {})
        given = [word for field, value in (short | changes).items() for word in ("--set", f"{field}={value}")]
        assert main(["train", name, "--workdir", str(tmp_path / name), *given]) == 0, capfd.readouterr().err
        runs.append(str(tmp_path / name))
    result = fresh(COMMANDS, *runs)
    assert result.returncode == 0, result.stderr[-3000:]
    codes = {tuple(line.split()[1:3]): int(line.split()[3]) for line in result.stdout.splitlines() if line[:2] == "=="}
    for run in runs:
        for command in ("evaluate", "sample", "train"):
            assert codes[Path(run).name, command] == 0, (run, command, result.stderr)
        assert list((Path(run) / "samples").glob("seed_0_*")), run
