"""config.json of published checkpoints: what loads, what is refused because it changes the outputs, what is written.

published_configurations.jsonl holds them as public repositories have them, one a line, with repository, commit and
path; of long tables of labels only how many there are, and people's own folders are "elsewhere". "refused" is a
pattern of the message.
"""

import ast
import collections
import json
import re
from pathlib import Path

import jax
import pytest

import arch_jax
from arch_jax import fields, registry
from arch_jax.errors import UsageError
from arch_jax.interop.configurations import checkpoint_types, configuration_of, module_of, settings_of
from arch_jax.interop.facts import DROPPED, facts_of

LINES = Path(__file__).with_name("published_configurations.jsonl").read_text(encoding="utf-8").splitlines()
#: What a table of labels is where the file has the number of its rows.
TABLES = {
    "id2label": lambda rows: {str(i): f"LABEL_{i}" for i in range(rows)},
    "label2id": lambda rows: {f"LABEL_{i}": i for i in range(rows)},
    "label_names": lambda rows: [f"label {i}" for i in range(rows)],
    "label_descriptions": lambda rows: {f"label {i}": f"the label {i}" for i in range(rows)},
}


def published(line):
    row = json.loads(line)
    config = {n: TABLES[n](v) if n in TABLES and isinstance(v, int) else v for n, v in row["config"].items()}
    return row | {"config": config}


ROWS = [published(line) for line in LINES]
LOADED = [row for row in ROWS if "refused" not in row]
REFUSED = [row for row in ROWS if "refused" in row]
name_of = lambda row: f"{row['checkpoint'] or row['repository'].split('/')[1]}-{row['commit'][:4]}".replace(" ", "_")


def test_they_are_of_every_type_and_many_hands():
    assert len(ROWS) > 100
    assert len({row["repository"] for row in ROWS}) > 50
    assert all(re.fullmatch("[0-9a-f]{40}", row["commit"]) and row["path"] for row in ROWS)
    types = collections.Counter(module_of(row["config"])[0].name for row in LOADED)
    assert types["Mamba2"] > 1  # in their authors' form
    few = {"vit_mae", "mamba2", "xlstm"}  # of which no more were found in public repositories
    few |= {"ministral"}  # Ministral's own file calls itself "mistral"
    written = {kind.name for kind in checkpoint_types() if kind.write is not None}
    assert {name for name in written if types[name] < 2} == few


@pytest.mark.parametrize("row", LOADED, ids=name_of)
def test_it_loads_and_every_field_is_accounted_for(row):
    kind, module = module_of(row["config"])
    assert type(module) is kind.module
    account = kind.fields.beside(kind.library.fields)
    assert None not in [account.account(field) for field in row["config"] if field != kind.library.key]


@pytest.mark.parametrize("row", REFUSED, ids=name_of)
def test_it_is_refused_for_what_changes_its_outputs(row):
    with pytest.raises(UsageError, match=row["refused"]):
        module_of(row["config"])


#: Written as another type: transformers' Llama and Mistral know no `layer_types`, and its Ministral does.
RENAMED = {"model_type", "architectures"}
#: That Ministral has no biases, and never splits its products.
RENAMED_LLAMA = RENAMED | {"attention_bias", "mlp_bias", "pretraining_tp"}
WRITTEN = [row for row in LOADED if module_of(row["config"])[0].write is not None]


def loaded(config):
    kind, module = module_of(config)
    return kind, module.clone(facts=facts_of(kind, config))


@pytest.mark.parametrize("row", WRITTEN, ids=name_of)
def test_what_is_written_is_what_was_read(row):
    config = row["config"]
    kind, module = loaded(config)
    written_as, written = configuration_of(module)
    other = written_as is not kind
    assert other == ("layer_types" in config)
    without = {*DROPPED, *((RENAMED_LLAMA if kind.name == "llama" else RENAMED) if other else ())}
    kept = lambda fields: {name: fields[name] for name in config if name in fields and name not in without}
    assert kept(written) == kept(config)
    assert written.keys() - config.keys() <= RENAMED, "what the file does not say is not invented"
    assert module_of(written) == (written_as, module)


def test_every_type_that_is_written_keeps_its_facts():
    for kind in checkpoint_types():
        declared = {field.name: field for field in fields.settings(kind.module)}["facts"]
        assert declared.default is None
        assert not declared.compare
    read = {module_of(row["config"])[0].name for row in WRITTEN}
    unpublished = {"ministral", "xlstm"}  # in what was found
    assert read == {kind.name for kind in checkpoint_types() if kind.write is not None} - unpublished


#: Changes of a module, of whatever has the field.
CHANGES = {
    "vocabulary": 77, "depth": 2, "width": 96, "initial_std": 0.5, "dropout": 0.25, "classes": 3, "resolution": 64,
    "norm.epsilon": 0.125, "mixer.heads": 4, "position.length": 33, "tied": None, "layer_scale": 0.5,
}  # fmt: skip
ONE_OF_EACH = {module_of(row["config"])[0].name: row for row in reversed(WRITTEN)}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.thorough] * (name not in ("llama", "resnet"))) for name in ONE_OF_EACH],
)
def test_the_module_counts(name):
    """Each field changed after loading: a file says the changed module, and keeps what has nothing to do with it."""
    config = ONE_OF_EACH[name]["config"]
    module = loaded(config)[1]
    changed = 0
    for path, value in CHANGES.items():
        head, _, last = path.partition(".")
        owner = getattr(module, head, None) if last else module
        if not hasattr(owner, last or head):
            continue
        before = getattr(owner, last or head)
        value = not before if path == "tied" else value
        try:
            new = fields.override(module, {path: value})
            _, written = configuration_of(new)
        except arch_jax.errors.UsageError:  # not a module, or not one of theirs
            continue
        changed += 1
        read = module_of(written)[1]
        assert settings_of(read) == settings_of(new), path
        if path == "initial_std" and hasattr(read, "initial_std") and read.initial_std != before:
            assert read.initial_std == value
        if path == "dropout":  # where the type has a field for it
            plain = configuration_of(new.clone(facts=None))[1]
            assert {f: v for f, v in plain.items() if "drop" in f and v == value}.items() <= written.items()
        for tokens in ("bos_token_id", "transformers_version", "_diffusers_version"):
            assert written.get(tokens) == config.get(tokens) or tokens not in config
    assert changed


#: Published checkpoint -> the model that it is, as registered.
SAME = {
    "gpt2-xl": "gpt2-xl",
    "DialoGPT 345M (2019 form)": "gpt2-medium",
    "state-spaces/mamba-370m-hf": "mamba-370m",
    "state-spaces/mamba-790m-hf": "mamba-790m",
    "state-spaces/mamba2-130m": "mamba2-130m",
    "state-spaces/mamba2-1.3b": "mamba2-1.3b",
    "google/efficientnet-b0": "efficientnet-b0",
    "google/efficientnet-b3": "efficientnet-b3",
    "google/efficientnet-b7": "efficientnet-b7",
    "microsoft/resnet-50": "resnet-50",
}


@pytest.mark.thorough
@pytest.mark.parametrize("checkpoint", SAME)
def test_its_size_is_the_published_one(checkpoint):
    """Of all fields that are read: those that change no shape are compared with the registered model's."""
    rows = [row for row in LOADED if row["checkpoint"] == checkpoint]
    assert rows
    entry = registry.entry(SAME[checkpoint])
    for row in rows:
        kind, module = module_of(row["config"])
        shapes = jax.eval_shape(module.init, jax.random.key(0), *kind.inputs(module))
        assert registry.count(shapes["params"]) == entry.count()


@pytest.mark.parametrize("row", [row for row in REFUSED if "unknown field" in row["refused"]], ids=name_of)
def test_the_way_round_an_unknown_field_works(row):
    """What the message says is done to the letter: the fields that it names are left out, and no other is."""
    with pytest.raises(UsageError) as caught:
        module_of(row["config"])
    ignore = ast.literal_eval(re.search(r"ignore=(\(.*?\))\)", str(caught.value))[1])
    others = {name: value for name, value in row["config"].items() if name not in ignore}
    assert outcome(row["config"], ignore) == outcome(others)
    assert "unknown field" not in str(outcome(others))


def outcome(config, ignore=()):
    """The type and the module, or the message."""
    try:
        return module_of(config, ignore=ignore)
    except UsageError as problem:
        return str(problem)


def test_what_may_be_ignored(tmp_path):
    config = {"model_type": "gpt2", "vocab_size": 11, "n_embd": 8, "n_layer": 1, "n_head": 2, "trained_by": "me"}
    with pytest.raises(UsageError, match=r"'trained_by'.*load_pretrained\(\.\.\., ignore=\('trained_by',\)\)"):
        module_of(config)
    assert module_of(config, ignore={"trained_by", "output_past", "not_there"})[1].width == 8
    with pytest.raises(UsageError, match="ignore names 'n_embd', which is used; expected fields that are unknown here"):
        module_of(config, ignore=["n_embd", "trained_by"])
    with pytest.raises(UsageError, match="ignore names 'hidden_size', which is used"):
        module_of(config, ignore=["hidden_size", "trained_by"])
    with pytest.raises(
        UsageError, match="ignore names 'add_cross_attention', which is supported only as false or null"
    ):
        module_of(config | {"add_cross_attention": True}, ignore=["add_cross_attention"])
    with pytest.raises(UsageError, match=r"ignore is 'trained_by'; expected a tuple of names, such as"):
        arch_jax.load_pretrained(tmp_path, ignore="trained_by")


def test_files_without_a_type_of_their_own():
    """Those of 2019: the one type that has all their fields."""
    config = {"vocab_size": 11, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_special": 0, "predict_special_tokens": True}
    assert module_of(config)[0].name == "gpt2"
    with pytest.raises(UsageError, match=r"has no model_type, and its fields suit '.*' or '.*'; expected one of these"):
        module_of({"hidden_size": 8, "num_hidden_layers": 2})
    with pytest.raises(UsageError, match="has no model_type; valid are"):
        module_of({"n_embd": 8, "trained_by": "me"})
    assert module_of({"n_embd": 8, "n_head": 2, "trained_by": "me"}, ignore=("trained_by",))[0].name == "gpt2"
