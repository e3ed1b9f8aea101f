"""config.json and the names of tensors: what is read, what is refused, and in which words."""

import functools
import json
import math
import os
import subprocess
import sys
import tracemalloc

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import arch_jax
from arch_jax import fields
from arch_jax.errors import ArchJaxError, RunError, UsageError
from arch_jax.interop.configurations import checkpoint_type, checkpoint_types, configuration_of, module_of
from arch_jax.interop.parts import parts_of
from arch_jax.interop.safetensors import SINGLE, open_checkpoint, write_tensors
from arch_jax.interop.strict_json import parse_object
from arch_jax.interop.transformers.text.gpt2 import GPT2_FIELDS
from arch_jax.interop.transformers.text.llama import LLAMA_FIELDS
from arch_jax.interop.weights import variables_of
from arch_jax.layers.mixers.attention import Attention
from arch_jax.layers.norms import LayerNorm, RMSNorm
from arch_jax.layers.transformer.positions import RoPE, SinusoidalPosition
from arch_jax.ops.attention.rope_scaling import LinearScaling, Llama3Scaling

GPT2 = {"model_type": "gpt2", "vocab_size": 11, "n_positions": 6, "n_embd": 8, "n_layer": 2, "n_head": 2}
LLAMA = {
    "model_type": "llama",
    "vocab_size": 11,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
BERT = {
    "model_type": "bert",
    "vocab_size": 11,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
}
T5 = {"model_type": "t5", "vocab_size": 11, "d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 2, "num_heads": 2}
MARIAN = {
    "model_type": "marian",
    "vocab_size": 11,
    "d_model": 8,
    **{f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in (("layers", 2), ("ffn_dim", 16))},
    **{f"{side}_attention_heads": 2 for side in ("encoder", "decoder")},
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


@functools.partial(jax.jit, static_argnums=0)
def initial(module):
    return module.init(jax.random.key(0), jnp.zeros((1, 3), jnp.int32))


def checkpoint(folder, data, **changes):
    """A checkpoint of the configuration, with random weights; returns the module and its variables."""
    _, module = module_of(data | changes)
    variables = initial(module)
    arch_jax.save_pretrained(module, variables, folder)
    return module, variables


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("base", [GPT2, LLAMA], ids=["gpt2", "llama"])
@pytest.mark.parametrize("scan", [True, pytest.param(False, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("shard_bytes", [10**9, 500])
def test_there_and_back(base, scan, shard_bytes, tmp_path):
    module = module_of(base)[1].clone(scan=scan)
    variables = initial(module)
    arch_jax.save_pretrained(module, variables, tmp_path / "new" / "folder", shard_bytes=shard_bytes)
    loaded, back = arch_jax.load_pretrained(str(tmp_path / "new" / "folder"), scan=scan)
    assert loaded == module
    assert_equal(back, variables)


def test_saving_replaces_a_checkpoint_and_its_shards(tmp_path):
    module, variables = checkpoint(tmp_path, GPT2)
    (tmp_path / "tokenizer.json").write_text("{}")
    arch_jax.save_pretrained(module, variables, tmp_path, shard_bytes=600)
    assert not (tmp_path / SINGLE).exists()
    other, weights = checkpoint(tmp_path, LLAMA)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", SINGLE, "tokenizer.json"]
    loaded, back = arch_jax.load_pretrained(tmp_path)
    assert loaded == other
    assert_equal(back, weights)
    assert (tmp_path / SINGLE).stat().st_mode & 0o777 == 0o644


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    _, variables = checkpoint(tmp_path, GPT2)
    module, weights = module_of(LLAMA)[1], None
    weights = initial(module)
    weights["params"]["final_norm"]["scale"] = weights["params"]["final_norm"]["scale"].at[2].set(jnp.nan)
    with pytest.raises(RunError, match=r"the tensor 'model.norm.weight' holds NaN"):
        arch_jax.save_pretrained(module, weights, tmp_path, shard_bytes=500)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", SINGLE]
    assert_equal(arch_jax.load_pretrained(tmp_path)[1], variables)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("arch_jax.interop.pretrained.write_tensors", full)
    with pytest.raises(RunError, match=r"cannot write the checkpoint in .*: No space left on device"):
        arch_jax.save_pretrained(arch_jax.load_pretrained(tmp_path)[0], variables, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", SINGLE]
    assert_equal(arch_jax.load_pretrained(tmp_path)[1], variables)


def test_while_files_take_their_places_there_is_no_configuration(tmp_path, monkeypatch):
    module, variables = checkpoint(tmp_path, GPT2)
    seen = []

    def replace(source, target):
        seen.append((target.name, (tmp_path / "config.json").exists()))
        os.rename(source, target)

    monkeypatch.setattr("arch_jax.interop.pretrained.os.replace", replace)
    arch_jax.save_pretrained(module, variables, tmp_path)
    assert seen == [(SINGLE, False), ("config.json", False)]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    module, variables = module_of(GPT2)[1], None
    variables = initial(module)
    with pytest.raises(RunError, match="cannot write the checkpoint in"):
        arch_jax.save_pretrained(module, variables, tmp_path / "file" / "below")
    with pytest.raises(UsageError, match="shard_bytes is 0; expected"):
        arch_jax.save_pretrained(module, variables, tmp_path, shard_bytes=0)


def test_options(tmp_path):
    checkpoint(tmp_path, GPT2, resid_pdrop=0.5)
    module, variables = arch_jax.load_pretrained(tmp_path, dtype="bfloat16", dropout=0.25, remat=True)
    assert (module.dtype, module.parameter_dtype, module.dropout, module.remat) == (jnp.bfloat16,) * 2 + (0.25, True)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.bfloat16)}
    assert arch_jax.load_pretrained(tmp_path, dtype=jnp.float16)[0].dtype == jnp.float16
    module, variables = arch_jax.load_pretrained(tmp_path, dtype="bfloat16", parameter_dtype="float32")
    assert variables["params"]["final_norm"]["scale"].dtype == jnp.float32
    assert arch_jax.load_pretrained(tmp_path, **{"mixer.implementation": "reference"})[0].mixer.implementation
    with pytest.raises(UsageError, match="dtype is 'int8'; expected one of 'float32', 'bfloat16'"):
        arch_jax.load_pretrained(tmp_path, dtype=np.int8)
    with pytest.raises(UsageError, match="dtype is 'float31'; expected one of"):
        arch_jax.load_pretrained(tmp_path, dtype="float31")
    with pytest.raises(UsageError, match="dtype is 'float64', which JAX has only after"):
        arch_jax.load_pretrained(tmp_path, dtype="float64")
    with pytest.raises(UsageError, match="unknown field 'dropuot'; the nearest is 'dropout'"):
        arch_jax.load_pretrained(tmp_path, dropuot=0.1)
    with pytest.raises(UsageError, match="tensors of 2 layers; expected 3"):
        arch_jax.load_pretrained(tmp_path, depth=3)


def test_folders(tmp_path):
    checkpoint(tmp_path / "model", GPT2)
    with pytest.raises(UsageError, match=r"modle' is not a folder; .*nothing is downloaded\); the nearest is 'model'"):
        arch_jax.load_pretrained(tmp_path / "modle")
    (tmp_path / "model" / "config.json").unlink()
    with pytest.raises(UsageError, match=r"has no config.json"):
        arch_jax.load_pretrained(tmp_path / "model")


REFUSED = {
    "model type": (
        GPT2,
        {"model_type": "gpt3"},
        "model_type is 'gpt3', which is not supported; the nearest is 'gpt2'",
    ),
    "no model type": (GPT2, {"model_type": None, "n_embed": 8}, "config.json has no model_type; valid are 'bert'"),
    "a list as model type": (GPT2, {"model_type": []}, "model_type is [], which is not supported"),
    "unknown": (GPT2, {"n_embed": 8}, "unknown field of config.json 'n_embed'; the nearest"),
    "of another model": (GPT2, {"rms_norm_eps": 1e-5}, "unknown field of config.json 'rms_norm_eps'"),
    "text": (GPT2, {"n_embd": "abc"}, "n_embd is 'abc'; expected a whole number of at least 1"),
    "zero": (GPT2, {"n_head": 0}, "n_head is 0; expected a whole number of at least 1"),
    "fraction": (GPT2, {"n_layer": 2.0}, "n_layer is 2.0; expected a whole number"),
    "boolean": (GPT2, {"n_layer": True}, "n_layer is True; expected a whole number"),
    "null": (GPT2, {"vocab_size": None}, "vocab_size is None; expected a whole number"),
    "huge": (GPT2, {"n_inner": 10**30}, "n_inner is 1000000000000000000000000000000; expected at most 2147483647"),
    "heads": (GPT2, {"n_head": 3}, "n_head is 3, which does not divide n_embd (8)"),
    "epsilon": (GPT2, {"layer_norm_epsilon": -1}, "layer_norm_epsilon is -1; expected a finite number of at least 0"),
    "epsilon as text": (GPT2, {"layer_norm_epsilon": "1e-5"}, "layer_norm_epsilon is '1e-5'; expected a finite number"),
    "infinite": (GPT2, {"initializer_range": float("inf")}, "initializer_range is inf; expected a finite number"),
    "activation": (GPT2, {"activation_function": "gelu_newer"}, "is 'gelu_newer', which is not supported; the nearest"),
    "another activation": (GPT2, {"activation_function": "quick_gelu"}, "which is not supported"),
    "scale": (GPT2, {"scale_attn_weights": 2}, "scale_attn_weights is 2; expected true or false"),
    "layer scale": (
        GPT2,
        {"scale_attn_by_inverse_layer_idx": 1},
        "scale_attn_by_inverse_layer_idx is 1; expected",
    ),
    "cross-attention": (GPT2, {"add_cross_attention": True}, "add_cross_attention is True, which is not supported"),
    "tied": (GPT2, {"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'; expected true or false"),
    "alias": (GPT2, {"hidden_size": 16}, "n_embd is 8 and hidden_size is 16; expected them to agree"),
    "quantised": (LLAMA, {"quantization_config": {"bits": 4}}, "quantization_config is {'bits': 4}, which is not"),
    "window": (
        LLAMA,
        {"sliding_window": 128},
        "sliding_window is 128 without layer_types, and transformers' Llama",
    ),
    "windows of too few": (
        LLAMA,
        {"sliding_window": 9, "layer_types": ["full_attention"]},
        "layer_types has 1 entries; expected 2, as num_hidden_layers says",
    ),
    "windows of no size": (
        LLAMA,
        {"layer_types": ["full_attention", "sliding_attention"]},
        "sliding_window is null and layer_types has 'sliding_attention'; expected the window of these",
    ),
    "windows of another kind": (
        LLAMA,
        {"layer_types": ["full_attention", "chunked_attention"]},
        "layer_types is ['full_attention', 'chunked_attention']; expected 'sliding_attention' or 'full_attention' for",
    ),
    "key-value heads": (LLAMA, {"num_key_value_heads": 3}, "num_key_value_heads is 3, which does not divide"),
    "odd heads": (LLAMA, {"head_dim": 3}, "the heads have 3 dimensions"),
    "heads of nothing": (LLAMA, {"num_attention_heads": 16}, "num_attention_heads is 16, which does not divide"),
    "heads too large": (
        LLAMA,
        {"head_dim": 2**31 - 2},
        "num_attention_heads * head_dim is 8589934584; expected at most",
    ),
    "bias": (LLAMA, {"attention_bias": 1}, "attention_bias is 1; expected true or false"),
    "partial": (LLAMA, {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5, which is not supported"),
    "rope as text": (LLAMA, {"rope_scaling": "linear"}, "rope_scaling is 'linear'; expected an object"),
    "rope type": (LLAMA, {"rope_scaling": {"type": "yam"}}, "rope_scaling.rope_type is 'yam', which is not supported"),
    "yarn without factor": (LLAMA, {"rope_scaling": {"type": "yarn"}}, "rope_scaling.factor is missing; rope_type"),
    "yarn, borders": (
        LLAMA,
        {"rope_scaling": {"type": "yarn", "factor": 2, "beta_fast": 1, "beta_slow": 4}},
        "YaRNScaling's slow is 4.0 and its fast 1.0; expected 0 < slow < fast",
    ),
    "bert without tying": (BERT, {"tie_word_embeddings": False}, "tie_word_embeddings is False, which is not"),
    "bert decoder": (BERT, {"is_decoder": "yes"}, "is_decoder is 'yes'; expected true or false"),
    "t5 feed-forward": (T5, {"feed_forward_proj": "gated-gulu"}, "'gated-gulu', which is not supported; the nearest"),
    "t5 gate": (T5, {"is_gated_act": True}, "is_gated_act is True; expected False, as feed_forward_proj says"),
    "t5 activation": (
        T5,
        {"dense_act_fn": "silu"},
        "dense_act_fn is 'silu'; expected 'relu', as feed_forward",
    ),
    "marian, two vocabularies": (
        MARIAN,
        {"decoder_vocab_size": 7},
        "vocab_size is 11 and decoder_vocab_size 7; expected them to agree, or share_encoder_decoder_embeddings false",
    ),
    "marian, heads": (MARIAN, {"decoder_attention_heads": 3}, "decoder_attention_heads is 3, which does not divide"),
    "mamba, inner": (
        {"model_type": "mamba", "hidden_size": 8},
        {"intermediate_size": 12},
        "intermediate_size is 12; expected a multiple of hidden_size, 8",
    ),
    "marian, pre-norm": (MARIAN, {"normalize_before": True}, "normalize_before is True, which is not supported"),
    "mistral window": (LLAMA, {"model_type": "mistral", "sliding_window": 0}, "sliding_window is 0; expected a whole"),
    "dynamic": (LLAMA, {"rope_parameters": {"rope_type": "dynamic"}}, "rope_parameters.rope_type is 'dynamic', which"),
    "longrope": (
        LLAMA,
        {"rope_parameters": {"rope_type": "longrope"}},
        "rope_type is 'longrope', which is not supported",
    ),
    "rope types": (LLAMA, {"rope_scaling": {"type": "linear", "rope_type": "llama3"}}, "rope_type 'llama3' and type"),
    "both layouts": (LLAMA, {"rope_scaling": {"type": "linear"}, "rope_parameters": LLAMA3}, "rope_scaling differ"),
    "no factor": (
        LLAMA,
        {"rope_scaling": {"type": "linear"}},
        "rope_scaling.factor is missing; rope_type 'linear' needs",
    ),
    "factor": (LLAMA, {"rope_scaling": {"type": "linear", "factor": 0}}, "rope_scaling.factor is 0; expected a number"),
    "factor of default": (LLAMA, {"rope_parameters": {"factor": 2.0}}, "rope_parameters.factor is not supported with"),
    "theta": (LLAMA, {"rope_theta": "big"}, "rope_theta is 'big'; expected a finite number"),
    "theta 0": (LLAMA, {"rope_theta": 0}, "rope_theta is 0; expected a number above 0"),
    "thetas": (
        LLAMA,
        {"rope_theta": 1.0, "rope_parameters": LLAMA3},
        "rope_theta is 1.0, and in rope_parameters 500.0",
    ),
    "frequencies": (LLAMA, {"rope_parameters": LLAMA3 | {"low_freq_factor": 9.0}}, "expected 0 < low < high"),
    "partial, new": (LLAMA, {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
    "original": (LLAMA, {"rope_parameters": LLAMA3 | {"original_max_position_embeddings": 1.5}}, "is 1.5; expected a"),
    "blocks of a stage": (
        {"model_type": "resnet"},
        {"depths": [3, 4, 6, 10**9]},
        "depths[3] is 1000000000; expected at most 1000",
    ),
    "deeper blocks of a stage": (
        {"model_type": "efficientnet"},
        {"depth_coefficient": 1e6},
        "num_block_repeats * depth_coefficient[0] is 1000000; expected at most 1000",
    ),
    "timm's pooling": (
        {"architecture": "resnet18"},
        {"global_pool": "max"},
        "global_pool is 'max', which is not supported; expected avg",
    ),
    "timm's settings": (
        {"architecture": "resnet18"},
        {"model_args": {"depth": 3}},
        "unknown field of config.json 'model_args.depth'",
    ),
    "timm's, unknown": ({"architecture": "resnet18"}, {"num_clases": 5}, "unknown field of config.json 'num_clases'"),
    "timm's, no such network": (
        {"architecture": "resnet19"},
        {},
        "architecture is 'resnet19', which is not supported; the nearest",
    ),
    "per layer": (LLAMA, {"per_layer_config": {"0": {}}}, "per_layer_config is {'0': {}}, which is not supported"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_configurations(name):
    base, changes, expected = REFUSED[name]
    with pytest.raises(UsageError) as caught:
        module_of(base | changes)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


HARMLESS = {
    "_attn_implementation_autoset": True,
    "_name_or_path": "x",
    "architectures": ["Any"],
    "bos_token_id": 5,
    "do_sample": True,
    "dtype": "bfloat16",
    "eos_token_id": [1, 2],
    "id2label": {"0": "x"},
    "task_specific_params": {"text-generation": {}},
    "torch_dtype": "float16",
    "transformers_version": "5.0.0",
    "use_cache": False,
}


@pytest.mark.parametrize("base", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_fields_that_change_nothing(base):
    expected = module_of(base)
    assert module_of(base | HARMLESS) == expected
    for name in {"gpt2": ["n_ctx", "attn_pdrop", "summary_type"], "llama": ["attention_dropout"]}[base["model_type"]]:
        assert module_of(base | {name: 0.5}) == expected


#: For each field that is used, a value unlike the default; each has to change the module.
USED = {
    "gpt2": {
        "vocab_size": 12, "n_positions": 7, "n_embd": 16, "n_layer": 3, "n_head": 4, "n_inner": 5,
        "activation_function": "relu", "layer_norm_epsilon": 1e-3, "initializer_range": 0.1,
        "tie_word_embeddings": False, "scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True,
    },
    "llama": {
        "vocab_size": 12, "hidden_size": 16, "intermediate_size": 5, "num_hidden_layers": 3,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 6, "hidden_act": "gelu", "rms_norm_eps": 1e-3,
        "initializer_range": 0.1, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True,
        "rope_theta": 5.0, "rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": LLAMA3,
    },
}  # fmt: skip


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in USED.items() for name in names])
def test_every_used_field_is_used(kind, name):
    base = {"gpt2": GPT2, "llama": LLAMA}[kind]
    assert module_of(base | {name: USED[kind][name]}) != module_of(base)


def test_no_field_is_forgotten_by_the_test_above():
    refused_when_set = {"n_special"}
    with_llama3_only = {"partial_rotary_factor", "max_position_embeddings", "original_max_position_embeddings"}
    with_llama3_only |= {"sliding_window", "layer_types"}  # each with the other alone, below
    gpt2, llama = ({*fields.reads, *fields.refuses} for fields in (GPT2_FIELDS, LLAMA_FIELDS))
    assert gpt2 == USED["gpt2"].keys() | (refused_when_set & gpt2)
    assert llama == USED["llama"].keys() | (refused_when_set & llama) | with_llama3_only


def windows(depth, types, **changes):
    config = LLAMA | {"num_hidden_layers": depth, "sliding_window": 5} | changes
    return module_of(config | {"layer_types": [f"{'sliding' if c == 's' else 'full'}_attention" for c in types]})[1]


def test_the_shortest_pattern_of_windows():
    of = lambda *given, **changes: [mixer.window for mixer in windows(*given, **changes).mixers]
    assert of(4, "ffff", sliding_window=None) == [None]
    assert of(4, "ssss") == [5]
    assert of(6, "fsfsfs") == [None, 5]
    assert of(6, "fssfss") == [None, 5, 5]
    assert of(4, "fssf") == [None, 5, 5, None]  # no turn of three: four layers are no multiple of it


def test_a_pattern_of_windows_there_and_back(tmp_path):
    """With the layers of a turn apart, and each turn on the leading axis."""
    module = windows(4, "fsfs")
    variables = initial(module)
    arch_jax.save_pretrained(module, variables, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "ministral"
    loaded, back = arch_jax.load_pretrained(tmp_path)
    assert loaded == module
    assert_equal(back, variables)
    apart, layers = arch_jax.load_pretrained(tmp_path, scan=False)
    assert_equal(layers, module.unrolled(variables)[1])
    arch_jax.save_pretrained(apart, layers, tmp_path / "apart")
    assert (tmp_path / "apart" / SINGLE).read_bytes() == (tmp_path / SINGLE).read_bytes()


def test_positions_in_both_layouts():
    def rope(**changes):
        return module_of(LLAMA | changes)[1].mixer.rope

    assert rope() == rope(rope_theta=None, rope_scaling=None, rope_parameters={}) == RoPE(theta=10_000.0)
    assert rope(rope_theta=50) == rope(rope_parameters={"rope_type": "default", "rope_theta": 50.0}) == RoPE(theta=50.0)
    linear = RoPE(theta=50.0, scaling=LinearScaling(4.0))
    assert rope(rope_theta=50, rope_scaling={"type": "linear", "factor": 4}) == linear
    assert rope(rope_parameters={"rope_type": "linear", "rope_theta": 50.0, "factor": 4.0}) == linear
    assert rope(rope_parameters=LLAMA3).scaling == Llama3Scaling(8.0, 1.0, 4.0, 16)
    short = {name: value for name, value in LLAMA3.items() if not name.startswith("original")}
    assert rope(rope_parameters=short, max_position_embeddings=64).scaling.original_length == 64
    outside = rope(rope_parameters=LLAMA3, original_max_position_embeddings=32)  # as transformers has it
    assert outside.scaling.original_length == 32


@pytest.mark.parametrize("scaling", [None, LinearScaling(3.0), Llama3Scaling(8.0, 1.0, 4.0, 16)])
def test_positions_are_written(scaling):
    module = llama(**{"mixer.rope": RoPE(theta=50.0, scaling=scaling)})
    assert module_of(json.loads(json.dumps(configuration_of(module)[1])))[1] == module


def change_tensors(folder, change):
    tensors = {name: np.asarray(tensor) for name, tensor in open_checkpoint(folder).items()}
    change(tensors)
    write_tensors(folder / SINGLE, tensors)


NORM = "model.layers.1.input_layernorm.weight"
BAD_TENSORS = {
    "missing": (lambda t: t.pop("model.norm.weight"), UsageError, "the tensor 'model.norm.weight' is missing"),
    "unknown": (
        lambda t: t.update({"model.norm.bias": np.zeros(8, np.float32)}),
        UsageError,
        "the checkpoint has the tensor 'model.norm.bias', which the module lacks; the nearest",
    ),
    "spelt twice": (
        lambda t: t.update({"norm.weight": np.zeros(8, np.float32)}),
        UsageError,
        "the checkpoint has the tensor 'norm.weight', which the module lacks",
    ),
    "shape": (
        lambda t: t.update({NORM: np.zeros((8, 1), np.float32)}),
        UsageError,
        f"the tensor {NORM!r} has shape (8, 1); expected (8,)",
    ),
    "embedding's shape": (
        lambda t: t.update({"model.embed_tokens.weight": np.zeros((8, 11), np.float32)}),
        UsageError,
        "the tensor 'model.embed_tokens.weight' has shape (8, 11); expected (11, 8)",
    ),
    "NaN": (lambda t: t[NORM].put(3, np.nan), RunError, f"the tensor {NORM!r} holds NaN or infinity"),
    "infinity": (lambda t: t["lm_head.weight"].put(3, np.inf), RunError, "the tensor 'lm_head.weight' holds NaN"),
    "another layer": (
        lambda t: t.update({NORM.replace("1", "2"): t[NORM]}),
        UsageError,
        "the checkpoint has tensors of 3 layers; expected 2",
    ),
    "integers": (
        lambda t: t.update({NORM: np.zeros(8, np.int64)}),
        UsageError,
        f"the tensor {NORM!r} in 'model.safetensors' holds I64 numbers; expected one of",
    ),
    "no output layer": (lambda t: t.pop("lm_head.weight"), UsageError, "the tensor 'lm_head.weight' is missing"),
}


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_bad_tensors(name, tmp_path):
    change, error, expected = BAD_TENSORS[name]
    checkpoint(tmp_path, LLAMA)
    change_tensors(tmp_path, change)
    with pytest.raises(error) as caught:
        arch_jax.load_pretrained(tmp_path)
    assert expected in str(caught.value)


def test_numbers_beyond_the_dtype(tmp_path):
    checkpoint(tmp_path, LLAMA)
    change_tensors(tmp_path, lambda t: t[NORM].put(3, 1e6))
    with pytest.raises(UsageError, match=r"norm.weight' holds numbers beyond float16; expected dtype='bfloat16'"):
        arch_jax.load_pretrained(tmp_path, dtype="float16")
    assert arch_jax.load_pretrained(tmp_path)[0]
    _, variables = arch_jax.load_pretrained(tmp_path, dtype="bfloat16")
    assert abs(max(float(leaf.max()) for leaf in jax.tree.leaves(variables)) / 1e6 - 1) < 4e-3


def test_tied_output_layers(tmp_path):
    _, variables = checkpoint(tmp_path, LLAMA, tie_word_embeddings=True)
    assert "lm_head.weight" not in open_checkpoint(tmp_path)
    change_tensors(tmp_path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"]}))
    assert_equal(arch_jax.load_pretrained(tmp_path)[1], variables)
    change_tensors(tmp_path, lambda t: t.update({"lm_head.weight": t["lm_head.weight"] + 1}))
    with pytest.raises(UsageError, match=r"tied to the embedding, but 'lm_head.weight' differs"):
        arch_jax.load_pretrained(tmp_path)
    change_tensors(tmp_path, lambda t: t.update({"lm_head.weight": t["lm_head.weight"][:3]}))
    with pytest.raises(UsageError, match=r"'lm_head.weight' has shape \(3, 8\); expected \(11, 8\)"):
        arch_jax.load_pretrained(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"n_layer": 2**31 - 1},
        {"n_embd": 2**31 - 1, "n_head": 1},
        {"vocab_size": 2**31 - 1},
        {"n_positions": 2**31 - 1},
        {"n_inner": 2**31 - 1},
        {"n_embd": 2**31 - 1, "n_head": 1, "n_layer": 2**31 - 1, "n_inner": 2**31 - 1, "vocab_size": 2**31 - 1},
    ],
)
def test_absurd_sizes_take_no_memory(changes, tmp_path):
    checkpoint(tmp_path, GPT2)
    (tmp_path / "config.json").write_text(json.dumps(GPT2 | changes))
    tracemalloc.start()
    try:
        with pytest.raises(ArchJaxError, match="expected"):
            arch_jax.load_pretrained(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


def test_a_config_that_is_no_plain_json(tmp_path):
    checkpoint(tmp_path, GPT2)
    for content, expected in [
        (b'{"n_embd": 8, "n_embd": 8}', "config.json names 'n_embd' twice"),
        (b'{"n_embd": NaN}', "config.json holds NaN"),
        (b'{"n_embd": -Infinity}', "config.json holds -Infinity"),
        (b'{"a":' * 100_000, "config.json is nested too deeply"),
        (b"[]", "config.json holds []; expected a JSON object"),
        (b"", "config.json is not valid JSON"),
        (b"\xff\xfe", "config.json is not UTF-8"),
    ]:
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(RunError) as caught:
            arch_jax.load_pretrained(tmp_path)
        assert expected in str(caught.value)


def test_infinity_as_transformers_wrote_it_before_and_writes_it_now(tmp_path):
    mamba2 = {"model_type": "mamba2", "hidden_size": 32, "num_heads": 8, "head_dim": 8, "n_groups": 1}
    bare = json.dumps(mamba2 | {"time_step_limit": [0.5, math.inf]}).encode()
    assert b"[0.5, Infinity]" in bare
    now = mamba2 | {"time_step_limit": [0.5, {"__float__": "Infinity"}]}
    found = [module_of(parse_object(content, "it"))[1] for content in (bare, json.dumps(now).encode())]
    assert found[0] == found[1]
    assert found[0].mixer.step_limit == (0.5, math.inf)
    with pytest.raises(UsageError, match=r"hidden_size is .*Infinity.*; expected a whole number"):
        module_of(parse_object(b'{"model_type": "mamba2", "hidden_size": Infinity}', "it"))


class Strange(nn.Module):
    def __call__(self, x):
        return x


def gpt2(**changes):
    return fields.override(module_of(GPT2)[1], changes)


def llama(**changes):
    return fields.override(module_of(LLAMA)[1], changes)


def create_bert(**changes):
    return module_of(BERT)[1].clone(**changes)


def create_marian(**changes):
    return module_of(MARIAN)[1].clone(**changes)


UNSAVABLE = {
    "window and bias": (
        lambda: llama(**{"mixer.window": 4, "mixer.bias": True}),
        "'llama': mixer.window is 4; expected None",
    ),
    "ntk": (lambda: llama(**{"mixer.rope.scaling": "ntk_scaling"}), "mixer.rope.scaling is {'module': 'ntk_scaling'"),
    "bert with odd heads": (lambda: create_bert(following=False), "transformers has no BERT with these heads"),
    "interleaved marian": (
        lambda: create_marian(position=SinusoidalPosition()),
        "position.interleaved is True; expected",
    ),
    "softcap": (lambda: gpt2(**{"mixer.softcap": 5.0}), "'gpt2': mixer.softcap is 5.0; expected None"),
    "not causal": (lambda: gpt2(**{"mixer.causal": False}), "mixer.causal is False; expected True"),
    "hybrid": (lambda: llama().clone(mixer=(Attention(heads=4), Attention(heads=2))), "mixer is [{"),
    "sinusoidal": (lambda: gpt2().clone(position=SinusoidalPosition()), "position.module is 'sinusoidal'; expected"),
    "no positions": (lambda: gpt2().clone(position=None), "position is None; expected {"),
    "norm": (lambda: gpt2().clone(norm=RMSNorm()), "'gpt2': norm."),
    "norm without bias": (lambda: gpt2().clone(norm=LayerNorm(bias=False)), "norm.bias is False; expected True"),
    "no feed-forward": (lambda: llama().clone(feed_forward=None), "feed_forward is None; expected {"),
    "partial rotation": (lambda: llama(**{"mixer.rope.fraction": 0.5}), "mixer.rope.fraction is 0.5; expected 1.0"),
    "no rotation": (lambda: llama(**{"mixer.rope": None}), "mixer.rope is None; expected {"),
    "grouped gpt2": (lambda: gpt2(**{"mixer.kv_heads": 1}), "mixer.kv_heads is 1; expected 2"),
    "heads": (lambda: gpt2(**{"mixer.head_size": 6}), "mixer.head_size is 6; expected 4"),
    "bias": (lambda: gpt2(**{"mixer.bias": False}), "mixer.bias is False; expected True"),
    "width": (lambda: llama(**{"width": 10, "mixer.head_size": 4}), "heads is 4, which does not divide width (10)"),
    "no decoder": (
        lambda: Strange(),
        "save_pretrained was given a Strange; expected an AutoencoderKL, BERT, ConvNeXt, DDPMUNet, Decoder, "
        "EfficientNet, EncoderDecoder, MAE, MobileNetV2, ResNet, VQModel or ViT",
    ),
}


@pytest.mark.parametrize("name", UNSAVABLE)
def test_modules_that_transformers_cannot_express(name, tmp_path):
    make, expected = UNSAVABLE[name]
    with pytest.raises(UsageError) as caught:
        arch_jax.save_pretrained(make(), {"params": {}}, tmp_path / "new")
    assert expected in str(caught.value)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["gpt2", "gpt2-xl", "llama2-7b", "llama2-70b", "llama3-8b", "gpt"])
def test_registered_models_have_a_configuration(name):
    module = arch_jax.create(name)
    kind, data = configuration_of(module)
    assert kind.name == ("gpt2" if name.startswith("gpt2") else "llama")
    again = module_of(json.loads(json.dumps(data)))[1]
    assert configuration_of(again) == (kind, data)
    assert again == module or name == "gpt"  # whose layers are not scanned, and whose hidden width follows its width
    count = sum(int(np.prod(part.shape)) * (part.stack.depth if part.stack else 1) for part in parts_of(kind, module))
    if (published := arch_jax.models()[name].parameters) is not None:
        assert count == published


def test_variables_that_are_not_the_modules(tmp_path):
    module, variables = checkpoint(tmp_path, GPT2)

    def problem(params):
        with pytest.raises(UsageError) as caught:
            arch_jax.save_pretrained(module, params, tmp_path)
        return str(caught.value)

    params = variables["params"]
    assert "the variables lack 'embedding/embedding'" in problem(params)
    assert "the variables have 'more', which the module lacks" in problem({"params": params | {"more": jnp.ones(3)}})
    wrong = params | {"final_norm": params["final_norm"] | {"scale": jnp.ones(9)}}
    assert "'final_norm/scale' has shape (9,); expected (8,)" in problem({"params": wrong})
    wrong = params | {"final_norm": params["final_norm"] | {"scale": jnp.ones(8, jnp.int32)}}
    assert "'final_norm/scale' has dtype int32" in problem({"params": wrong})
    unrolled = module.unrolled(variables)[1]
    assert "the variables lack 'stack/layers/block_0/" in problem(unrolled)


def test_a_module_of_another_type():
    with pytest.raises(UsageError, match="which a gpt2 checkpoint has no name for"):
        parts_of(checkpoint_type("transformers", "gpt2"), module_of(LLAMA)[1])
    with pytest.raises(UsageError, match="tensors of 0 layers; expected 2"):
        variables_of(checkpoint_type("transformers", "gpt2"), {}, module_of(GPT2)[1])
    with pytest.raises(UsageError, match="tensors of 0 layers; expected 2"):
        variables_of(checkpoint_type("transformers", "llama"), {}, module_of(LLAMA)[1])


def test_a_config_json_as_timm_writes_it():
    data = {
        "architecture": "vit_tiny_patch16_224", "num_classes": 5, "num_features": 192, "global_pool": "token",
        "label_names": ["a"], "label_descriptions": {"a": "b"}, "pretrained_cfg": {"mean": [0.5]}, "model_args": {},
    }  # fmt: skip
    kind, module = module_of(data)
    assert (kind.library.name, module.classes) == ("timm", 5)
    assert module == arch_jax.create("vit-tiny-16", classes=5, dropout=0.0)


def test_image_models_of_absurd_depth_are_refused_at_once():
    kind, module = module_of({"model_type": "vit", "num_hidden_layers": 2**31 - 1})
    with pytest.raises(UsageError, match="tensors of 0 layers; expected 2147483647, the depth"):
        variables_of(kind, {}, module)
    kind, module = module_of({"model_type": "vit_mae", "decoder_num_hidden_layers": 2**31 - 1})
    tensors = {f"vit.encoder.layer.{layer}.output.dense.bias": np.zeros(768) for layer in range(12)}
    with pytest.raises(UsageError, match="tensors of 0 layers of the decoder_stack; expected 2147483647, the depth"):
        variables_of(kind, tensors, module)


TYPES = {f"{kind.library.name} {kind.name}": kind for kind in checkpoint_types()}


def least(kind):
    """A config.json that says its type alone."""
    return {"ssm_cfg": {"layer": kind.name}} if kind.library.name == "mamba_ssm" else {kind.library.key: kind.name}


@pytest.mark.parametrize("name", TYPES)
def test_no_parameter_has_two_names(name):
    kind = TYPES[name]
    for naming in kind.namings.values():
        names = naming(kind.module_of(least(kind)))
        rows = [("", row) for row in names.rows] + [(stack.ours, row) for stack in names.stacks for row in stack.rows]
        paths = [f"{row.collection}/{place}/{row.block}/{path}" for place, row in rows for path in row.ours]
        assert len(paths) == len(set(paths))
        assert len({row.theirs for _, row in rows}) == len(rows)


def test_no_name_means_two_types_of_a_library():
    names = [(kind.library.name, name) for kind in TYPES.values() for name in kind.names]
    assert len(names) == len(set(names)) > 60
    with pytest.raises(UsageError, match="transformers has no checkpoint type 'gpt3'; the nearest is 'gpt2'"):
        checkpoint_type("transformers", "gpt3")


@pytest.mark.parametrize("name", TYPES)
def test_every_field_is_accounted_for_once(name):
    """Each field is used, has no effect for a reason, or is supported with a few values; a default is one of them."""
    kind = TYPES[name]
    account, data = kind.fields.beside(kind.library.fields), least(kind)
    assert not {*account.reads} & {*account.no_effect}
    assert not {*account.refuses} & {*account.reads, *account.no_effect}
    assert not {*account.aliases} & {*account.reads, *account.no_effect, *account.refuses}
    assert {*account.aliases.values()} <= {*account.reads}
    assert {account.account(field) for field in [*account.reads, *account.aliases]} <= {"used"}
    assert all(len(account.account(field)) > 10 for field in account.no_effect)
    for field, supported in account.refuses.items():
        assert all(kind.module_of(data | {field: value}) for value in supported)
        with pytest.raises(UsageError, match=f"{field} is .*which is not supported; expected"):
            kind.module_of(data | {field: "another"})
        assert account.account(field).startswith("supported only as ")
    with pytest.raises(UsageError, match=r"unknown field of config\.json 'no_such_field'"):
        kind.module_of(data | {"no_such_field": 1})
    assert account.account("no_such_field") is None


def test_neither_import_nor_face_is_heavy():
    code = "import arch_jax, sys; print('safetensors' in sys.modules, 'load_pretrained' in dir(arch_jax))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["False", "True"]
