"""transformers' classes without a head: hidden states and features, there and back."""

import jax
import numpy as np
import pytest

import arch_jax

torch = pytest.importorskip("torch", reason="parity needs torch: pip install arch-jax[parity]")
transformers = pytest.importorskip("transformers", reason="parity needs transformers: pip install arch-jax[parity]")

TEXT = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
MAMBA = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
MAMBA2 = {"num_heads": 8, "head_dim": 8, "n_groups": 2, "tie_word_embeddings": False}
IMAGE = {"image_size": 32}
VIT = TEXT | IMAGE | {"patch_size": 8}
DECODERS = {
    "LlamaModel": TEXT,
    "MistralModel": TEXT | {"num_key_value_heads": 2, "sliding_window": 5},
    "MambaModel": MAMBA | {"tie_word_embeddings": False},
    "Mamba2Model": MAMBA | MAMBA2,
    "RwkvModel": {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2},
    "GPT2Model": {"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4, "tie_word_embeddings": False},
}
IMAGES = {
    "ViTModel": {name: size for name, size in VIT.items() if name != "vocab_size"},
    "ResNetModel": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2], "layer_type": "basic"},
    "ConvNextModel": IMAGE | {"num_stages": 2, "hidden_sizes": [4, 6], "depths": [1, 1]},
    "MobileNetV2Model": IMAGE | {"depth_multiplier": 0.5},
    "EfficientNetModel": IMAGE | {"width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 320},
}


def reference(name, settings, folder):
    torch.manual_seed(0)
    model = getattr(transformers, name)(getattr(transformers, name).config_class(**settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    return model


def back(theirs, module, variables, folder, given):
    """What transformers makes of the folder that we write; every tensor is there."""
    arch_jax.save_pretrained(module, variables, folder)
    again, notes = type(theirs).from_pretrained(folder, output_loading_info=True)
    # A pooler, and the count of batches, which nothing is computed from.
    assert not [name for name in notes["missing_keys"] if not {"pooler", "num_batches_tracked"} & {*name.split(".")}]
    assert not notes["unexpected_keys"]
    with torch.no_grad():
        return again.eval()(given)


@pytest.mark.parametrize("name", DECODERS)
def test_hidden_states(name, tmp_path):
    theirs = reference(name, DECODERS[name], tmp_path / "theirs")
    module, variables = arch_jax.load_pretrained(tmp_path / "theirs")
    assert not module.head
    tokens = np.random.default_rng(0).integers(0, 61, (3, 9))
    given = torch.from_numpy(tokens)
    with torch.no_grad():
        expected = theirs(given).last_hidden_state.numpy()
    found = jax.jit(module.apply)(variables, tokens.astype(np.int32))
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    again = back(theirs, module, variables, tmp_path / "ours", given).last_hidden_state.numpy()
    np.testing.assert_allclose(again, expected, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("name", IMAGES)
def test_features(name, tmp_path):
    theirs = reference(name, IMAGES[name], tmp_path / "theirs")
    module, variables = arch_jax.load_pretrained(tmp_path / "theirs")
    assert module.classes is None
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    given = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    # A ViT's pooler is a layer of its own; the classifier reads the class token.
    features = lambda out: out.last_hidden_state[:, 0] if name == "ViTModel" else out.pooler_output.flatten(1)
    with torch.no_grad():
        expected = features(theirs(given)).numpy()
    found = jax.jit(module.apply)(variables, images)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    again = features(back(theirs, module, variables, tmp_path / "ours", given)).numpy()
    np.testing.assert_allclose(again, expected, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("form", ["relu", "gated-gelu"])
def test_an_encoder_alone(form, tmp_path):
    """T5EncoderModel, the text encoder of diffusion models, with padding."""
    settings = {"vocab_size": 61, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    theirs = reference("T5EncoderModel", settings | {"feed_forward_proj": form}, tmp_path / "theirs")
    module, variables = arch_jax.load_pretrained(tmp_path / "theirs")
    assert module.encoder_only
    tokens, mask = np.random.default_rng(0).integers(0, 61, (3, 9)), np.arange(9) < np.array([[9], [4], [7]])
    with torch.no_grad():
        given = {"attention_mask": torch.from_numpy(mask.astype(int))}
        expected = theirs(torch.from_numpy(tokens), **given).last_hidden_state.numpy()
    found = jax.jit(module.apply)(variables, tokens.astype(np.int32), None, mask)
    np.testing.assert_allclose(found[mask], expected[mask], atol=1e-5 * np.abs(expected).max())
    again = back(theirs, module, variables, tmp_path / "ours", torch.from_numpy(tokens)).last_hidden_state.numpy()
    with torch.no_grad():
        np.testing.assert_array_equal(again, theirs(torch.from_numpy(tokens)).last_hidden_state.numpy())
