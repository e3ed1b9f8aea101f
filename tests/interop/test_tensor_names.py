"""Tensors under other names than a library writes: tied ones under one of them, and names that wrappers changed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import arch_jax
from arch_jax.errors import UsageError
from arch_jax.interop.configurations import checkpoint_type, checkpoint_types, module_of

HEADS = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12, "vocab_size": 11}
SIDES, MARIAN = ("encoder", "decoder"), (("layers", 1), ("ffn_dim", 12), ("attention_heads", 2))
#: model_type -> fields of a small model with a tied output layer
TIED = {
    "bert": HEADS,
    "gpt2": {"vocab_size": 11, "n_positions": 6, "n_embd": 8, "n_layer": 1, "n_head": 2},
    "llama": HEADS | {"tie_word_embeddings": True},
    "mistral": HEADS | {"tie_word_embeddings": True, "num_key_value_heads": 1},
    "ministral": HEADS | {"tie_word_embeddings": True, "num_key_value_heads": 1},
    "mamba": {"vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 1, "tie_word_embeddings": True},
    "mamba2": {
        "vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 1, "num_heads": 4, "head_dim": 4, "n_groups": 1,
        "state_size": 4, "tie_word_embeddings": True,
    },
    "rwkv": {"vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 1, "tie_word_embeddings": True},
    "marian": {
        "vocab_size": 11, "d_model": 8,
        **{f"{side}_{name}": n for side in SIDES for name, n in MARIAN},
    },
    "t5": {"vocab_size": 11, "d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 1, "num_heads": 2},
}  # fmt: skip


def saved(name, folder):
    """A folder as the library writes it; its module, variables and tensors."""
    kind, module = module_of({"model_type": name} | TIED[name])
    shapes = jax.eval_shape(module.init, jax.random.key(0), *kind.inputs(module))
    draw = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: jnp.asarray(draw.normal(size=leaf.shape), leaf.dtype), shapes)
    arch_jax.save_pretrained(module, variables, folder)
    return module, variables, load_file(folder / "model.safetensors")


def assert_loads(folder, tensors, module, variables):
    save_file(tensors, folder / "model.safetensors")
    loaded, again = arch_jax.load_pretrained(folder)
    assert loaded == module
    jax.tree.map(np.testing.assert_array_equal, again, variables)


def test_every_type_with_tied_tensors_is_here():
    types = {}
    for kind in checkpoint_types():
        if kind.library.name == "transformers":
            naming = next(iter(kind.namings.values()))
            types[kind.name] = naming(kind.module_of({"model_type": kind.name} | TIED.get(kind.name, {}))).copies
    assert {name for name, copies in types.items() if copies} == set(TIED)


@pytest.mark.parametrize("name", TIED)
def test_a_tied_tensor_under_each_of_its_names(name, tmp_path):
    """What safetensors.torch.save_model writes: one of the names alone, whichever comes first."""
    module, variables, tensors = saved(name, tmp_path)
    naming = next(iter(checkpoint_type("transformers", name).namings.values()))(module)
    assert naming.copies
    for copy, full in naming.copies.items():
        stored = next(spelling for spelling in naming.spellings(full) if spelling in tensors)
        renamed = {copy if key == stored else key: tensor for key, tensor in tensors.items()}
        assert_loads(tmp_path, renamed, module, variables)
        assert_loads(tmp_path, tensors | {copy: tensors[stored]}, module, variables)
        if (name, copy) != ("t5", "lm_head.weight"):  # whose numbers say that it is one of its own
            with pytest.raises(UsageError, match="differs from"):
                assert_loads(tmp_path, tensors | {copy: tensors[stored] + 1}, module, variables)


def test_an_output_layer_of_its_own_is_no_embedding(tmp_path):
    module, variables = module_of({"model_type": "llama"} | HEADS | {"tie_word_embeddings": False})[1], None
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 3), jnp.int32))
    variables = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), shapes)
    arch_jax.save_pretrained(module, variables, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.embed_tokens.weight"]
    with pytest.raises(UsageError, match=r"the tensor 'model\.embed_tokens\.weight' is missing"):
        assert_loads(tmp_path, tensors, module, variables)


@pytest.mark.parametrize("name", TIED)
@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "base_model.model.", "model.", "student.net."])
def test_what_a_wrapper_puts_before_all_names(name, wrapper, tmp_path):
    module, variables, tensors = saved(name, tmp_path)
    assert_loads(tmp_path, {f"{wrapper}{key}": tensor for key, tensor in tensors.items()}, module, variables)


@pytest.mark.parametrize("inner", ["_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module."])
def test_what_a_wrapper_puts_into_names(inner, tmp_path):
    module, variables, tensors = saved("llama", tmp_path)
    renamed = {key.replace("layers.0.", f"layers.0.{inner}"): tensor for key, tensor in tensors.items()}
    assert renamed.keys() != tensors.keys()
    assert_loads(tmp_path, {f"module.{key}": tensor for key, tensor in renamed.items()}, module, variables)


def test_a_prefix_of_some_names_is_none(tmp_path):
    module, variables, tensors = saved("gpt2", tmp_path)
    some = {f"module.{key}" if i % 2 else key: tensor for i, (key, tensor) in enumerate(tensors.items())}
    with pytest.raises(UsageError, match="missing from the checkpoint; the nearest"):
        assert_loads(tmp_path, some, module, variables)
