"""Fields of config.json that are said to change nothing, changed one by one in transformers: the outputs stay."""

import numpy as np
import pytest

from arch_jax.interop.configurations import checkpoint_type, checkpoint_types

torch = pytest.importorskip("torch", reason="parity needs torch: pip install arch-jax[parity]")
transformers = pytest.importorskip("transformers", reason="parity needs transformers: pip install arch-jax[parity]")

TEXT = {
    "vocab_size": 31, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "pad_token_id": 0,
}  # fmt: skip
MAMBA = {"vocab_size": 31, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}
SIDES = {"layers": 2, "ffn_dim": 24, "attention_heads": 2}
IMAGE = {"image_size": 32, "num_labels": 3}
VIT = TEXT | IMAGE | {"patch_size": 8}
#: model_type -> class, small settings
SMALL = {
    "bert": ("BertForMaskedLM", TEXT),
    "convnext": ("ConvNextForImageClassification", IMAGE | {"num_stages": 2, "hidden_sizes": [4, 6], "depths": [1, 1]}),
    "efficientnet": (
        "EfficientNetForImageClassification",
        IMAGE | {"width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 320},
    ),
    "gpt2": ("GPT2LMHeadModel", {"vocab_size": 31, "n_embd": 16, "n_layer": 2, "n_head": 2}),
    "llama": ("LlamaForCausalLM", TEXT),
    "mamba": ("MambaForCausalLM", MAMBA),
    "mamba2": ("Mamba2ForCausalLM", MAMBA | {"num_heads": 8, "head_dim": 4, "n_groups": 2, "chunk_size": 8}),
    "marian": (
        "MarianMTModel",
        {"vocab_size": 31, "d_model": 16, "pad_token_id": 30, "decoder_start_token_id": 30}
        | {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in SIDES.items()},
    ),
    "ministral": ("MinistralForCausalLM", TEXT | {"head_dim": 8, "num_key_value_heads": 1}),
    "mistral": ("MistralForCausalLM", TEXT | {"num_key_value_heads": 1}),
    "mobilenet_v2": ("MobileNetV2ForImageClassification", IMAGE | {"depth_multiplier": 0.25}),
    "resnet": (
        "ResNetForImageClassification",
        IMAGE | {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "layer_type": "basic"},
    ),
    "rwkv": ("RwkvForCausalLM", {"vocab_size": 31, "hidden_size": 16, "num_hidden_layers": 2}),
    "t5": (
        "T5ForConditionalGeneration",
        {"vocab_size": 31, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2},
    ),
    "vit": ("ViTForImageClassification", VIT),
    "vit_mae": (
        "ViTMAEForPreTraining",
        VIT | {"decoder_hidden_size": 8, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2,
               "decoder_intermediate_size": 12},
    ),
    "xlstm": ("xLSTMForCausalLM", {"vocab_size": 31, "hidden_size": 16, "num_hidden_layers": 2, "num_heads": 2}),
}  # fmt: skip
#: Fields without effect on a model that is loaded, by which it is built, returns something else, or names a kernel.
BUILT = {
    "num_labels", "id2label", "label2id", "return_dict", "use_return_dict", "architectures", "model_type",
    "transformers_version", "sequence_kernel", "step_kernel", "chunkwise_kernel", "mode",
    "num_stages",
}  # fmt: skip


def inputs(kind):
    """Arguments of the model, by its main input."""
    tokens = torch.from_numpy(np.random.default_rng(0).integers(1, 29, (2, 11)))
    match kind:
        case "t5" | "marian":
            return {"input_ids": tokens, "decoder_input_ids": tokens[:, :6]}
        case "convnext" | "efficientnet" | "mobilenet_v2" | "resnet" | "vit":
            return {"pixel_values": torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32).sin()}
        case "vit_mae":
            images = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32).sin()
            return {"pixel_values": images, "noise": torch.linspace(0, 1, 32).reshape(2, 16)}
        case "xlstm":  # whose cache rounds the heads' sizes up to multiples of 64, which its layers don't
            return {"input_ids": tokens, "use_cache": False}
    return {"input_ids": tokens}


def other(value):
    """Another value of the same type; None where there is no obvious one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return type(value)(value + 1 if isinstance(value, int) else 0.3)
    return None


def logits(kind, settings, weights=None):
    name, small = SMALL[kind]
    # Where its authors' package is installed, transformers takes its kernels, which know other fields.
    transformers.utils.is_xlstm_available = lambda: False
    cls = getattr(transformers, name)
    torch.manual_seed(0)
    model = cls(cls.config_class(**small | settings)).eval()
    if weights is not None:
        model.load_state_dict(weights)
    with torch.no_grad():
        return model(**inputs(kind)).logits.numpy(), model


def test_every_type_is_here():
    assert {kind.name for kind in checkpoint_types() if kind.library.name == "transformers"} == set(SMALL)


@pytest.mark.parametrize("kind", SMALL)
def test_fields_without_effect_change_no_output(kind):
    expected, model = logits(kind, {})
    weights = model.state_dict()
    found = checkpoint_type("transformers", kind)
    fields = found.fields.beside(found.library.fields)
    looked = []
    for name, value in type(model.config)().to_dict().items():
        said = fields.account(name)
        assert said is not None, name
        changed = other(value)
        skipped = said.startswith(("used", "supported only", "special tokens", "a note")) or name in BUILT
        if skipped or changed is None:
            continue
        np.testing.assert_allclose(logits(kind, {name: changed}, weights)[0], expected, atol=1e-6, err_msg=name)
        looked.append(name)
    assert len(looked) > 2
