"""Files that hold a part of a model: a base without its head, an encoder alone, another task's head beside the rest."""

import ast
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import arch_jax
from arch_jax.errors import UsageError
from arch_jax.interop.configurations import checkpoint_type, module_of
from arch_jax.objectives import objective

HEADS = {"vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
CONFIGURATIONS = {
    "llama": HEADS,
    "bert": HEADS,
    "vit": {name: size for name, size in HEADS.items() if name != "vocab_size"}
    | {"image_size": 8, "patch_size": 4, "num_labels": 3},
    "t5": {"vocab_size": 11, "d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 1, "num_heads": 2},
}


def checkpoint(name, folder, named, change):
    """A folder whose config.json names a class, and whose tensors are changed; its module and variables."""
    kind, module = module_of({"model_type": name} | CONFIGURATIONS[name])
    shapes = jax.eval_shape(module.init, jax.random.key(0), *kind.inputs(module))
    draw = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: jnp.asarray(draw.normal(size=leaf.shape), leaf.dtype), shapes)
    arch_jax.save_pretrained(module, variables, folder)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"architectures": [named]}))
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")
    return module, variables


def without(*starts):
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if not name.startswith(starts)}


def test_a_decoder_without_its_head(tmp_path):
    bare = lambda tensors: {n.removeprefix("model."): x for n, x in without("lm_head")(tensors).items()}
    module, variables = checkpoint("llama", tmp_path, "LlamaModel", bare)
    base, loaded = arch_jax.load_pretrained(tmp_path)
    assert base == module.clone(head=False)
    del variables["params"]["logits"]
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    tokens = jnp.arange(6).reshape(2, 3)
    hidden = base.apply(loaded, tokens)
    assert hidden.shape == (2, 3, 8)
    whole = base.clone(head=True).apply({"params": loaded["params"] | {"logits": {"kernel": jnp.eye(8, 11)}}}, tokens)
    np.testing.assert_allclose(whole[..., :8], hidden, atol=1e-6)
    np.testing.assert_allclose(base.apply(loaded, tokens, None, base.initial_state(2, 3))[0], hidden, atol=1e-5)
    with pytest.raises(UsageError, match="head is false, so the model gives hidden states; expected a model with an"):
        arch_jax.generate(base, loaded, [[1, 2]], 3, temperature=0)
    with pytest.raises(UsageError, match="head is false, so the model gives hidden states"):
        objective("next_token").with_model(base).check(arch_jax.Text(length=8).load())
    arch_jax.save_pretrained(base, loaded, tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["architectures"] == ["LlamaModel"]
    assert arch_jax.load_pretrained(tmp_path / "again")[0] == base


def test_a_head_that_is_lost(tmp_path):
    """Where config.json names a class with a head, a file without it is cut off."""
    checkpoint("llama", tmp_path, "LlamaForCausalLM", without("lm_head"))
    missing = r"'lm_head\.weight' is missing .*valid|nearest.* \(config.json calls it 'LlamaForCausalLM'\)"
    with pytest.raises(UsageError, match=missing):
        arch_jax.load_pretrained(tmp_path)


def test_an_encoder_alone(tmp_path):
    """Read where config.json names its class; elsewhere the decoder is lost."""
    module, variables = checkpoint("t5", tmp_path, "T5EncoderModel", without("decoder", "lm_head"))
    alone, loaded = arch_jax.load_pretrained(tmp_path)
    assert alone == module.clone(encoder_only=True)
    source = jnp.arange(6).reshape(2, 3)
    memory = module.apply(variables, source, method="encode")
    np.testing.assert_array_equal(alone.apply(loaded, source), memory)
    np.testing.assert_array_equal(module.apply(variables, source, source).shape, (2, 3, 11))
    with pytest.raises(UsageError, match="target is none; expected the tokens so far, or a model with encoder_only"):
        module.apply(variables, source)
    with pytest.raises(UsageError, match="encoder_only is true, so nothing can be decoded"):
        alone.apply(loaded, memory, None, 3, method="start")
    with pytest.raises(UsageError, match="encoder_only is true, so the model gives hidden states; expected one with a"):
        objective("sequence_to_sequence").with_model(alone).check(arch_jax.RandomPairs(length=4).load())
    arch_jax.save_pretrained(alone, loaded, tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["architectures"] == ["T5EncoderModel"]
    assert arch_jax.load_pretrained(tmp_path / "again")[0] == alone
    checkpoint("t5", tmp_path, "T5ForConditionalGeneration", without("decoder", "lm_head"))
    with pytest.raises(UsageError) as caught:
        arch_jax.load_pretrained(tmp_path)
    said = "tensors of 0 layers of the decoder; expected 1, the depth; it has 'encoder.block.0.layer.0.SelfAttention.k"
    assert said in str(caught.value)
    assert str(caught.value).endswith("(config.json calls it 'T5ForConditionalGeneration')")


OTHER = {
    "llama": ("LlamaForSequenceClassification", "score.weight"),
    "bert": ("BertForTokenClassification", "classifier.weight"),
    "t5": ("T5ForTokenClassification", "classifier.out_proj.weight"),
}


@pytest.mark.parametrize("name", OTHER)
def test_another_tasks_head_beside_the_rest(name, tmp_path):
    """It is named; and what the message says of it is done to the letter."""
    named, tensor = OTHER[name]
    drop = without("bert.pooler", "cls.seq") if name == "bert" else lambda tensors: tensors
    head = {tensor: np.ones((5, 8), np.float32)}
    checkpoint(name, tmp_path, named, lambda tensors: drop(tensors) | head)
    with pytest.raises(UsageError, match=rf"has the tensor '{tensor}', which the module lacks.*'{named}'") as caught:
        arch_jax.load_pretrained(tmp_path)
    ignore = ast.literal_eval(re.search(r"ignore=(\(.*?\))\)", str(caught.value))[1])
    module, _ = arch_jax.load_pretrained(tmp_path, ignore=ignore)
    assert "architectures" not in module.facts.settings  # it is no longer of that class


def test_features_of_images(tmp_path):
    """A ViTModel, with its pooler, which the last hidden state does not need."""
    pooler = {f"pooler.dense.{part}": np.ones((8,) * n, np.float32) for part, n in (("weight", 2), ("bias", 1))}
    bare = lambda tensors: {n.removeprefix("vit."): x for n, x in without("classifier")(tensors).items()} | pooler
    module, variables = checkpoint("vit", tmp_path, "ViTModel", bare)
    base, loaded = arch_jax.load_pretrained(tmp_path)
    assert base == module.clone(classes=None)
    images = jnp.ones((2, 8, 8, 3))
    features = base.apply(loaded, images)
    assert features.shape == (2, 8)
    head = variables["params"]["logits"]
    logits = module.apply(variables, images)
    np.testing.assert_allclose(features @ head["kernel"] + head["bias"], logits, atol=1e-4)
    arch_jax.save_pretrained(base, loaded, tmp_path / "again")
    assert arch_jax.load_pretrained(tmp_path / "again")[0] == base
    data = type("Data", (), {"classes": 4, "shapes": {"images": ((1, 8, 8, 3), "float32")}})
    with pytest.raises(UsageError, match=r"model.classes is none, so the model gives features; set model\.classes=4"):
        objective("classify").with_model(base).check(data)
    # A classifier that is there counts, whatever the class is called.
    checkpoint("vit", tmp_path, "ViTModel", lambda tensors: tensors)
    assert arch_jax.load_pretrained(tmp_path)[0] == module


def test_timms_networks_without_classes():
    kind = checkpoint_type("torchvision", "resnet18")
    assert kind.module_of({"architecture": "resnet18", "num_classes": 0}) == arch_jax.create("resnet-18", classes=None)
    assert kind.module_of({"architecture": "resnet18"}) == arch_jax.create("resnet-18")
