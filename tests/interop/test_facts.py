"""A checkpoint's own facts, with the module, in folders and in a run's file (test_published.py: what is written)."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import arch_jax
from arch_jax import fields
from arch_jax.errors import RunError
from arch_jax.interop.configurations import configuration_of, module_of
from arch_jax.interop.facts import facts_of
from arch_jax.layers.facts import CheckpointFacts


def loaded(config):
    """The module of a config.json, with its facts."""
    kind, module = module_of(config)
    return module.clone(facts=facts_of(kind, config))


def test_what_follows_from_a_changed_field_changes_with_it():
    config = {"model_type": "gpt2", "n_positions": 6, "n_ctx": 6, "n_embd": 8, "n_layer": 1, "n_head": 2}
    module = loaded(config)
    assert configuration_of(module)[1] == config | {"architectures": ["GPT2LMHeadModel"]}
    longer = fields.override(module, {"position.length": 9})
    assert configuration_of(longer)[1] == {n: v for n, v in config.items() if n != "n_ctx"} | {
        "n_positions": 9, "architectures": ["GPT2LMHeadModel"],
    }  # fmt: skip
    labels = {"id2label": {"0": "cat", "1": "dog"}, "label2id": {"cat": 0, "dog": 1}, "num_labels": 2}
    image = {"model_type": "resnet", "hidden_sizes": [64], "depths": [1], "layer_type": "basic"} | labels
    module = loaded(image)
    assert labels.items() <= configuration_of(module)[1].items()
    written = configuration_of(module.clone(classes=3))[1]
    assert written["id2label"] == {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}
    assert "num_labels" not in written


LLAMA = {
    "model_type": "llama", "vocab_size": 11, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1,
    "num_attention_heads": 2, "max_position_embeddings": 4096, "eos_token_id": 2, "torch_dtype": "bfloat16",
}  # fmt: skip
GENERATION = {"temperature": 0.6, "eos_token_id": [2, 7], "transformers_version": "4.30.0"}


def folder(tmp_path, config=LLAMA, generation=GENERATION):
    """A checkpoint's folder with settings of generation; and a second one, without."""
    module = module_of(config)[1]
    variables = jax.jit(module.init)(jax.random.key(0), np.zeros((1, 2), np.int32))
    arch_jax.save_pretrained(module, variables, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    return tmp_path


def test_a_folder_there_and_back(tmp_path):
    module, variables = arch_jax.load_pretrained(folder(tmp_path / "theirs"))
    arch_jax.save_pretrained(module, variables, tmp_path / "ours")
    read = lambda name: json.loads((tmp_path / "ours" / name).read_text())
    expected = {name: value for name, value in LLAMA.items() if name != "torch_dtype"}
    assert read("config.json") == expected | {"architectures": ["LlamaForCausalLM"], "dtype": "float32"}
    assert read("generation_config.json") == GENERATION
    again, _ = arch_jax.load_pretrained(tmp_path / "ours")
    assert again.facts.settings == read("config.json")
    # A checkpoint without such settings replaces one that has them.
    arch_jax.save_pretrained(module.clone(facts=None), variables, tmp_path / "ours")
    assert not (tmp_path / "ours" / "generation_config.json").exists()
    assert read("config.json")["eos_token_id"] is None


def test_facts_go_where_the_module_goes(tmp_path):
    module, variables = arch_jax.load_pretrained(folder(tmp_path), ignore=("nothing",))
    facts = module.facts
    assert facts == CheckpointFacts("transformers", "llama", facts.configuration, json.dumps(GENERATION))
    assert repr(facts) == "CheckpointFacts(transformers llama)"
    assert module.clone(depth=2).facts == module.unrolled(variables)[0].facts == facts
    assert fields.from_json(json.loads(json.dumps(fields.to_json(module))), "model").facts == facts  # a run's file
    # Modules that differ in them alone are equal, and share what is compiled.
    other = module.clone(facts=dataclasses.replace(facts, generation=None))
    assert (other, hash(other)) == (module, hash(module)) == (module.clone(facts=None), hash(module))


def test_what_was_ignored_is_not_written(tmp_path):
    where = folder(tmp_path / "theirs")
    (where / "config.json").write_text(json.dumps(LLAMA | {"trained_by": "me"}))
    module, variables = arch_jax.load_pretrained(where, ignore=("trained_by",))
    arch_jax.save_pretrained(module, variables, tmp_path / "ours")
    assert arch_jax.load_pretrained(tmp_path / "ours")[0] == module


def test_damaged_settings_of_generation(tmp_path):
    (folder(tmp_path) / "generation_config.json").write_text("{")
    with pytest.raises(RunError, match=r"generation_config\.json is not valid JSON"):
        arch_jax.load_pretrained(tmp_path)
