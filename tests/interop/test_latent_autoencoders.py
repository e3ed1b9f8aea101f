"""diffusers' folders, without diffusers: every field used, harmless or refused; files by their names."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import arch_jax
from arch_jax.errors import UsageError
from arch_jax.interop.safetensors import FILES
from arch_jax.models.autoencoder.autoencoder_kl import AutoencoderKL
from arch_jax.models.autoencoder.vq_model import VQModel

TINY = {"resolution": 8, "widths": (4, 6), "units": 1, "groups": 2}
MODULES = {
    "AutoencoderKL": AutoencoderKL(latent=2, attention=(0,), shift=-0.5, **TINY),
    "VQModel": VQModel(latent=2, codes=5, code_width=3, mid_attention=False, **TINY),
}
SINGLE, INDEX = FILES["diffusers"].single, FILES["diffusers"].index


@functools.cache
def variables_of(module):
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    draw = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(draw.normal(size=leaf.shape), jnp.float32), shapes)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder of each module, written once."""
    folders = {name: tmp_path_factory.mktemp(name) for name in MODULES}
    for name, folder in folders.items():
        arch_jax.save_pretrained(MODULES[name], variables_of(MODULES[name]), folder)
    return folders


@pytest.fixture(params=MODULES)
def saved(request, written, tmp_path):
    """A folder of the test's own, and the module and the variables that are in it."""
    module = MODULES[request.param]
    shutil.copytree(written[request.param], tmp_path, dirs_exist_ok=True)
    return tmp_path, module, variables_of(module)


def change(folder, **fields):
    data = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps(data))


def test_there_and_back(saved):
    folder, module, variables = saved
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", SINGLE]
    data = json.loads((folder / "config.json").read_text())
    assert data["_class_name"] == type(module).__name__
    assert not {"model_type", "dtype"} & set(data)
    found, again = arch_jax.load_pretrained(folder)
    assert found == module
    jax.tree.map(np.testing.assert_array_equal, again, variables)
    half, rough = arch_jax.load_pretrained(folder, dtype="bfloat16")
    assert (half.dtype, {leaf.dtype for leaf in jax.tree.leaves(rough)}) == (jnp.bfloat16, {jnp.dtype("bfloat16")})


def test_shards_are_read_and_stale_files_go(saved):
    folder, module, variables = saved
    arch_jax.save_pretrained(module, variables, folder, shard_bytes=3_000)
    names = sorted(path.name for path in folder.iterdir())
    assert INDEX in names
    assert SINGLE not in names
    assert any(name.startswith("diffusion_pytorch_model-00001-of-0") for name in names)
    jax.tree.map(np.testing.assert_array_equal, arch_jax.load_pretrained(folder)[1], variables)
    arch_jax.save_pretrained(module, variables, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", SINGLE]


def test_fields_that_change_nothing(saved):
    folder, module, _ = saved
    change(folder, force_upcast=True, _diffusers_version="0.6.0", act_fn="swish")
    assert arch_jax.load_pretrained(folder)[0] == module


REFUSED = {
    "unknown": (
        {"laten_channels": 4},
        "unknown field of config.json 'laten_channels'; the nearest are 'latent_channels'",
    ),
    "of transformers": ({"num_beams": 1}, "unknown field of config.json 'num_beams'"),
    "class": (
        {"_class_name": "AutoencoderKl"},
        "_class_name is 'AutoencoderKl', which is not supported; the nearest is",
    ),
    "list as class": ({"_class_name": ["VQModel"]}, r"_class_name is \['VQModel'\], which is not supported"),
    "activation": ({"act_fn": "mish"}, "act_fn is 'mish', which is not supported"),
    "block": (
        {"down_block_types": ["DownBlock2D"]},
        "has 'DownBlock2D', which is not supported; the nearest are 'Down",
    ),
    "no blocks": ({"up_block_types": []}, r"up_block_types is \[\]; expected a list"),
    "fewer blocks": ({"block_out_channels": [4]}, "down_block_types has 2 entries; expected 1, as block_out_channels"),
    "channels": ({"out_channels": 1}, "out_channels is 1; expected in_channels, 3"),
    "attention": (
        {"up_block_types": ["AttnUpDecoderBlock2D", "AttnUpDecoderBlock2D"]},
        "up_block_types has attention elsewhere than down_block_types; expected",
    ),
    "groups": ({"norm_num_groups": 3}, "groups is 3; expected multiples of the groups"),
    "units": ({"layers_per_block": 10**9}, "layers_per_block is 1000000000; expected at most 64"),
    "side": ({"sample_size": 9}, "resolution is 9, which 1 convolutions can't halve"),
    "scale": ({"scaling_factor": 0}, "scaling_factor is 0; expected a number above 0"),
    "other sizes": ({"latent_channels": 7}, "has shape .*; expected"),
    "the largest size": ({"latent_channels": 2**31 - 1}, "has shape .*; expected"),
    "fewer units": ({"layers_per_block": 2}, "'encoder.down_blocks.0.resnets.1.norm1.weight' is missing"),
}
REFUSED_KL = {
    "mean": ({"latents_mean": [0.0]}, r"channel_mean is \(0.0,\); expected \d numbers, one a channel, or none"),
    "standard deviation": ({"latents_std": 2.0}, "latents_std is 2.0; expected a list of numbers, or null"),
    "an entry": ({"latents_std": [None]}, r"latents_std\[0\] is None; expected a finite number"),
    "shift": ({"shift_factor": "0.1"}, "shift_factor is '0.1'; expected a finite number, or null"),
    "a convolution less": ({"use_quant_conv": False}, "has the tensor 'quant_conv.*', which the module lacks"),
}
REFUSED_VQ = {
    "norm": ({"norm_type": "spatial"}, "norm_type is 'spatial', which is not supported; expected group"),
    "codes": ({"num_vq_embeddings": 1}, "codes is 1; expected at least 2"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(saved, case):
    fields, message = REFUSED[case]
    change(saved[0], **fields)
    with pytest.raises(UsageError, match=message):
        arch_jax.load_pretrained(saved[0])


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [("AutoencoderKL", *case) for case in REFUSED_KL.values()] + [("VQModel", *case) for case in REFUSED_VQ.values()],
)
def test_what_is_refused_of_one_class(name, fields, message, written, tmp_path):
    shutil.copytree(written[name], tmp_path, dirs_exist_ok=True)
    change(tmp_path, **fields)
    with pytest.raises(UsageError, match=message):
        arch_jax.load_pretrained(tmp_path)


def test_what_diffusers_has_no_model_for(tmp_path):
    module = VQModel(latent=2, codes=5, average=0.9, **TINY)
    with pytest.raises(
        UsageError, match=r"diffusers has no model .* the nearest is 'VQModel': average is 0.9; expected None"
    ):
        arch_jax.save_pretrained(module, {}, tmp_path)
    variance = MODULES["AutoencoderKL"].clone(variance=0.1)  # of the likelihood, which training alone sees
    arch_jax.save_pretrained(variance, variables_of(variance), tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("diffusion_pytorch_model.bin", "load them in diffusers with use_safetensors=False and write them with"),
        ("pytorch_model.bin", r"load them in transformers and write them with model.save_pretrained\(folder\)"),
        ("pytorch_model-00001-of-00002.bin", "load them in transformers"),
        ("model.pth", r"torch.load\('model.pth', .*weights_only=True\).*, 'diffusion_pytorch_model.safetensors'\)$"),
        ("v1-5-pruned.ckpt", r"torch.load\('v1-5-pruned.ckpt', .*weights_only=True\)"),
        ("weights.pt", r"torch.load\('weights.pt', .*weights_only=True\)"),
    ],
)
def test_pickles_are_named_with_the_way_out(saved, name, message):
    folder, *_ = saved
    (folder / SINGLE).unlink()
    (folder / name).write_bytes(b"\x80\x02cos\nsystem\n")
    (folder / "a.msgpack").write_bytes(b"")  # what another framework left there is not what is spoken of
    with pytest.raises(
        UsageError, match=f"holds weights as '{name}', which is not read: such files can run code; .*{message}"
    ):
        arch_jax.load_pretrained(folder)


def test_weights_under_another_name(saved):
    folder, *_ = saved
    (folder / SINGLE).rename(folder / "diffusion_pytorch_model.fp16.safetensors")
    with pytest.raises(UsageError, match=r"holds neither .*; 'diffusion_pytorch_model.fp16.safetensors' is there"):
        arch_jax.load_pretrained(folder)


def test_a_pipeline_s_folder(saved, tmp_path):
    _, module, variables = saved
    arch_jax.save_pretrained(module, variables, tmp_path / "pipeline" / "vae")
    (tmp_path / "pipeline" / "model_index.json").write_text("{}")
    with pytest.raises(UsageError, match=r"has no config.json; expected one of its models' folders: 'vae'"):
        arch_jax.load_pretrained(tmp_path / "pipeline")
