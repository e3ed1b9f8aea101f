"""Every type of image checkpoint that is written: saved and loaded, the same numbers in every place."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import arch_jax
from arch_jax.interop.configurations import checkpoint_types, module_of

VIT = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
VIT |= {"image_size": 16, "patch_size": 8}
#: model_type -> fields of a small one
SMALL = {
    "convnext": {"hidden_sizes": [4, 6], "depths": [1, 2], "num_stages": 2},
    "efficientnet": {
        "width_coefficient": 0.5, "depth_coefficient": 0.4, "hidden_dim": 640, "in_channels": [32, 8],
        "out_channels": [8, 16], "strides": [1, 2], "num_block_repeats": [1, 3], "expand_ratios": [1, 6],
        "kernel_sizes": [3, 5],
    },
    "mobilenet_v2": {"depth_multiplier": 0.25, "depth_divisible_by": 5, "min_depth": 5},
    "resnet": {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 2], "layer_type": "basic"},
    "vit": VIT,
    "vit_mae": VIT | {
        "decoder_hidden_size": 8, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 12,
    },
}  # fmt: skip
#: Those that the quick suite takes: one with running statistics, one with a stack of layers.
QUICK = ("resnet", "vit")


def test_none_is_left_out():
    images = {k.name for k in checkpoint_types() if k.library.name == "transformers" and "images" in k.read.__module__}
    assert images == set(SMALL)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.thorough] * (n not in QUICK)) for n in SMALL])
def test_there_and_back(name, tmp_path):
    _, module = module_of({"model_type": name} | SMALL[name])
    shapes = jax.eval_shape(
        module.init, {"params": jax.random.key(0), "mask": jax.random.key(1)}, jnp.zeros((1, 16, 16, 3))
    )
    draw = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: draw.normal(size=leaf.shape).astype(np.float32), shapes)
    arch_jax.save_pretrained(module, variables, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == name
    found, again = arch_jax.load_pretrained(tmp_path)
    assert found == module
    jax.tree.map(np.testing.assert_array_equal, again, variables)
