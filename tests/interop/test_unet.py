"""A folder of diffusers' UNet2DModel, without diffusers: every field used, harmless or refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import arch_jax
from arch_jax.errors import UsageError
from arch_jax.models.diffusion.ddpm_unet import DDPMUNet
from arch_jax.ops.diffusion.condition import Condition

TINY = {"resolution": 4, "widths": (4, 6), "units": 1, "groups": 2, "attention": (1,), "dropout": 0.0}


@pytest.fixture(scope="module", params=[None, 3])
def saved(request, tmp_path_factory):
    """A folder, and the module and variables that are in it."""
    module = DDPMUNet(classes=request.param, **TINY)
    condition = None if module.classes is None else Condition(label=jnp.zeros(1, jnp.int32))
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 4, 4, 3)), jnp.zeros(1), condition)
    draw = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: jnp.asarray(draw.normal(size=leaf.shape), jnp.float32), shapes)
    folder = tmp_path_factory.mktemp("unet")
    arch_jax.save_pretrained(module, variables, folder)
    return folder, module, variables


def changed(folder, tmp_path, **fields):
    """The folder with other fields in its config.json."""
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    data = json.loads((folder / "config.json").read_text()) | fields
    (tmp_path / "config.json").write_text(
        json.dumps({name: value for name, value in data.items() if value != "absent"})
    )
    return tmp_path


def test_there_and_back(saved):
    folder, module, variables = saved
    found, again = arch_jax.load_pretrained(folder)
    assert found == module
    jax.tree.map(np.testing.assert_array_equal, again, variables)
    assert arch_jax.load_pretrained(folder, dropout=0.2)[0].dropout == 0.2


@pytest.mark.parametrize(
    ("fields", "settings"),
    [
        ({"dropout": 0.3, "num_train_timesteps": 1000, "act_fn": "swish", "_diffusers_version": "0.1"}, {}),
        ({"sample_size": None}, {"resolution": 32}),
        ({"sample_size": [8, 8]}, {"resolution": 8}),
        ({"downsample_padding": "absent"}, {"padding": "around"}),
        ({"flip_sin_to_cos": "absent", "freq_shift": "absent"}, {"cosine_first": True, "frequency_shift": 0.0}),
        ({"norm_eps": "absent", "attention_head_dim": 2}, {"epsilon": 1e-5, "head_size": 2}),
    ],
)
def test_fields_that_are_used(saved, tmp_path, fields, settings):
    folder, module, _ = saved
    assert arch_jax.load_pretrained(changed(folder, tmp_path, **fields))[0] == module.clone(**settings)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"time_embedding_type": "fourier"}, "time_embedding_type is 'fourier', which is not supported; expected posi"),
        (
            {"resnet_time_scale_shift": "scale_shift"},
            "resnet_time_scale_shift is 'scale_shift', which is not supported",
        ),
        ({"class_embed_type": "timestep"}, "class_embed_type is 'timestep', which is not supported; expected null"),
        ({"downsample_type": "resnet"}, "downsample_type is 'resnet', which is not supported; expected conv"),
        ({"upsample_type": "resnet"}, "upsample_type is 'resnet', which is not supported; expected conv"),
        ({"mid_block_type": None}, "mid_block_type is None, which is not supported; expected unetmidblock2d"),
        ({"mid_block_scale_factor": 1.5}, "mid_block_scale_factor is 1.5, which is not supported"),
        ({"center_input_sample": True}, "center_input_sample is True, which is not supported; expected false"),
        ({"attn_norm_num_groups": 2}, "attn_norm_num_groups is 2, which is not supported; expected null"),
        ({"time_embedding_dim": 8}, "time_embedding_dim is 8, which is not supported; expected null"),
        ({"downsample_padding": 2}, "downsample_padding is 2, which is not supported; expected 0 or 1"),
        ({"out_channels": 4}, "out_channels is 4; expected in_channels, 3, or with a learned variance 6"),
        (
            {"down_block_types": ["DownBlock2D", "SkipDownBlock2D"]},
            "has 'SkipDownBlock2D', which is not supported; the",
        ),
        (
            {"up_block_types": ["UpBlock2D", "UpBlock2D"]},
            "up_block_types has attention elsewhere than down_block_types",
        ),
        ({"attention_head_dim": 4}, "head_size is 4, which does not divide the width 6"),
        ({"sample_size": [4, 8]}, r"sample_size is \[4, 8\]; expected a whole number of at least 1"),
        ({"encoder_hid_dim": 8}, "unknown field of config.json 'encoder_hid_dim'"),
        ({"num_class_embeds": 7}, "'class_embedding.weight'"),
        ({"out_channels": 6}, r"'conv_out.weight' has shape \(3, 4, 3, 3\); expected \(6, 4, 3, 3\)"),
    ],
)
def test_what_is_refused(saved, tmp_path, fields, message):
    with pytest.raises(UsageError, match=message):
        arch_jax.load_pretrained(changed(saved[0], tmp_path, **fields))


def test_what_diffusers_has_no_model_for(tmp_path):
    module = DDPMUNet(classes=3, null_class=True, **TINY)
    with pytest.raises(UsageError, match="the nearest is 'UNet2DModel': null_class is True; expected False"):
        arch_jax.save_pretrained(module, {}, tmp_path)
