"""The Vision Transformer against transformers, and its tensors under transformers' and timm's names."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import arch_jax
from arch_jax.errors import UsageError
from arch_jax.interop.configurations import checkpoint_type
from arch_jax.interop.weights import tensors_of

torch = pytest.importorskip("torch", reason="parity needs torch: pip install arch-jax[parity]")
transformers = pytest.importorskip("transformers", reason="parity needs transformers: pip install arch-jax[parity]")

CONFIGURATIONS = {
    "plain": {},
    "no biases of queries, tanh GELU, odd widths, other epsilon": {
        "qkv_bias": False,
        "hidden_act": "gelu_new",
        "intermediate_size": 37,
        "image_size": 30,
        "patch_size": 5,
        "num_hidden_layers": 3,
        "layer_norm_eps": 1e-3,
    },
}


def reference(settings):
    """A reference with every parameter away from where it starts."""
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 96}
    sizes |= {"image_size": 16, "patch_size": 4, "num_labels": 5}
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**sizes | settings))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_logits_both_ways(name, scan, tmp_path):
    model = reference(CONFIGURATIONS[name])
    model.save_pretrained(tmp_path / "theirs")
    module, variables = arch_jax.load_pretrained(tmp_path / "theirs", scan=scan)
    side = module.resolution
    x = np.random.default_rng(0).normal(size=(3, side, side, 3)).astype(np.float32)
    inputs = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        expected = model(inputs).logits.numpy()
    assert np.ptp(expected, axis=0).max() > 0.05 * np.abs(expected).max(), "the images make no difference"
    logits = jax.jit(module.apply)(variables, jnp.asarray(x))
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())

    arch_jax.save_pretrained(module, variables, tmp_path / "ours")
    again = transformers.ViTForImageClassification.from_pretrained(tmp_path / "ours").eval()
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key]), key
    with torch.no_grad():
        assert torch.equal(again(inputs).logits, torch.from_numpy(expected))


def test_timms_names_join_queries_keys_and_values(tmp_path):
    from safetensors.numpy import save_file

    module = arch_jax.create("vit-tiny-16", classes=7)
    draw, shapes = np.random.default_rng(0), jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    variables = jax.tree.map(lambda leaf: draw.normal(size=leaf.shape).astype(np.float32), shapes)
    kind = checkpoint_type("timm", "vit_tiny_patch16_224")
    tensors = {name: make() for name, _, _, make in tensors_of(kind, module, variables)}
    assert tensors["blocks.11.attn.qkv.weight"].shape == (576, 192)
    assert tensors["pos_embed"].shape == (1, 197, 192)
    assert tensors["patch_embed.proj.weight"].shape == (192, 3, 16, 16)
    mixer = variables["params"]["stack"]["layers"]["block_0"]["mixer"]
    np.testing.assert_array_equal(tensors["blocks.3.attn.qkv.weight"][192:384], mixer["key"]["kernel"][3].T)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_tiny_patch16_224", "num_classes": 7}))
    found, again = arch_jax.load_pretrained(tmp_path)
    assert found == module
    jax.tree.map(np.testing.assert_array_equal, again, variables)


def test_what_transformers_has_no_model_for(tmp_path):
    with pytest.raises(UsageError, match="pooling is 'mean'; expected 'token'"):
        arch_jax.save_pretrained(arch_jax.create("vit-tiny-16", pooling="mean"), {}, tmp_path)
