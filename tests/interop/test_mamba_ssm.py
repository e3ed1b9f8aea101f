"""Mamba and Mamba-2 in their authors' own form: arguments of their classes, and a vocabulary that they pad."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import arch_jax
from arch_jax.errors import UsageError
from arch_jax.interop.configurations import module_of

#: Their form, and the same model as transformers describes it.
FORMS = {
    "Mamba1": (
        {"d_model": 8, "n_layer": 2, "vocab_size": 11, "ssm_cfg": {"d_state": 3, "dt_rank": 2}, "rms_norm": True},
        {"model_type": "mamba", "hidden_size": 8, "num_hidden_layers": 2, "vocab_size": 16, "state_size": 3}
        | {"time_step_rank": 2},
    ),
    "Mamba2": (
        {"d_model": 8, "n_layer": 2, "vocab_size": 11, "pad_vocab_size_multiple": 16, "tie_embeddings": False}
        | {"ssm_cfg": {"layer": "Mamba2", "headdim": 4, "d_state": 4}, "attn_layer_idx": [], "attn_cfg": {}},
        {"model_type": "mamba2", "hidden_size": 8, "num_hidden_layers": 2, "vocab_size": 16, "state_size": 4}
        | {"num_heads": 4, "head_dim": 4, "n_groups": 1, "tie_word_embeddings": False},
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_it_is_the_same_model(name, tmp_path):
    theirs, ours = FORMS[name]
    kind, module = module_of(ours)
    assert module_of(theirs)[1] == module
    shapes = jax.eval_shape(module.init, jax.random.key(0), *kind.inputs(module))
    draw = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: draw.normal(size=leaf.shape).astype(np.float32), shapes)
    arch_jax.save_pretrained(module, variables, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(theirs))
    tensors = load_file(tmp_path / "model.safetensors")
    renamed = {key.replace(".embeddings.", ".embedding."): tensor for key, tensor in tensors.items()}
    assert renamed.keys() != tensors.keys()
    if name == "Mamba1":  # tied: their files have both
        renamed["lm_head.weight"] = renamed["backbone.embedding.weight"]
    save_file(renamed, tmp_path / "model.safetensors")
    loaded, again = arch_jax.load_pretrained(tmp_path)
    assert loaded == module
    jax.tree.map(np.testing.assert_array_equal, again, variables)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attn_layer_idx": [3]}, r"attn_layer_idx is \[3\], which is not supported"),
        ({"d_intermediate": 16}, "d_intermediate is 16, which is not supported; expected 0"),
        (
            {"ssm_cfg": {"layer": "Mamba3"}},
            "ssm_cfg is 'Mamba3', which is not supported; the nearest are 'Mamba",
        ),
        ({"ssm_cfg": {"layer": "Mamba2", "headdim": 3}}, "num_heads is 5 and head_dim 3; expected a product of 16"),
        ({"ssm_cfg": {"layer": "Mamba2", "dt_limit": 3}}, r"ssm_cfg.dt_limit is 3; expected two numbers, such as"),
        ({"ssm_cfg": {"d_inner": 3}}, r"unknown field of config\.json 'ssm_cfg\.d_inner'"),
        ({"ssm_cfg": 3}, "ssm_cfg is 3, which is not supported"),
    ],
)
def test_what_is_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        module_of({"d_model": 8, "n_layer": 1, "vocab_size": 11, "ssm_cfg": {}} | changes)


def test_their_pickle_is_a_state_dict(tmp_path):
    """transformers, which has no class for this form, would be the wrong advice."""
    (tmp_path / "config.json").write_text(json.dumps(FORMS["Mamba1"][0]))
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02cos\nsystem\n")
    with pytest.raises(UsageError, match=r"torch.load\('pytorch_model.bin', .*, 'model.safetensors'\)$"):
        arch_jax.load_pretrained(tmp_path)
