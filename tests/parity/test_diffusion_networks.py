"""Denoising networks against diffusers, and DiT's block against a restatement of the authors' in PyTorch."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import arch_jax
from arch_jax.interop.safetensors import FILES, open_checkpoint, write_tensors
from arch_jax.ops.diffusion.condition import Condition

torch = pytest.importorskip("torch", reason="parity needs torch: pip install arch-jax[parity]")
diffusers = pytest.importorskip("diffusers", reason="parity needs diffusers: pip install arch-jax[parity]")

SINGLE = FILES["diffusers"].single
DOWN, UP = ["DownBlock2D", "AttnDownBlock2D"], ["UpBlock2D", "AttnUpBlock2D"]


def blocks(*attends):
    return {
        "down_block_types": [DOWN[each] for each in attends],
        "up_block_types": [UP[each] for each in reversed(attends)],
    }


#: The paper's settings, which are not diffusers' defaults.
DDPM = {"freq_shift": 1, "flip_sin_to_cos": False, "downsample_padding": 0, "norm_eps": 1e-6, "attention_head_dim": None}
#: name -> settings, height and width of the images
UNETS = {
    "as DDPM": (
        {"sample_size": 16, "block_out_channels": [8, 12, 12], "layers_per_block": 2, "norm_num_groups": 4, **DDPM,
         **blocks(0, 1, 0)},
        (16, 16),
    ),
    "as diffusers' tutorials, classes, a learned variance, wide": (
        {"block_out_channels": [16, 24], "layers_per_block": 1, "norm_num_groups": 8, "in_channels": 2,
         "out_channels": 4, "num_class_embeds": 5, **blocks(1, 1)},
        (6, 14),
    ),
    "no attention, tall, grey, a width that is odd": (
        {"block_out_channels": [9, 6], "layers_per_block": 1, "norm_num_groups": 3, "in_channels": 1,
         "out_channels": 1, "add_attention": False, "freq_shift": 1, "flip_sin_to_cos": True, **blocks(0, 0)},
        (10, 4),
    ),
}  # fmt: skip


def noisy(model):
    """The reference with all its parameters away from where they start."""
    torch.manual_seed(0)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(0.1 * torch.randn(tensor.shape))
    return model.eval()


def unet(name):
    torch.manual_seed(0)
    return noisy(diffusers.UNet2DModel(**UNETS[name][0]))


def inputs(shape, classes, seed=0):
    """Our arguments, and theirs."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(3, *shape)).astype(np.float32)
    time = np.array([0, 41, 999], np.float32)
    labels = None if classes is None else draw.integers(0, classes, size=3).astype(np.int32)
    condition = None if labels is None else Condition(label=jnp.asarray(labels))
    theirs = {} if labels is None else {"class_labels": torch.from_numpy(labels).long()}
    return (jnp.asarray(x), jnp.asarray(time), condition), ((to_torch(x), torch.from_numpy(time)), theirs)


def unet_inputs(name):
    settings, sides = UNETS[name]
    return inputs((*sides, settings.get("in_channels", 3)), settings.get("num_class_embeds"))


def to_torch(x):
    return torch.from_numpy(np.asarray(x).transpose(0, 3, 1, 2).copy())


def close(ours, theirs, tolerance=1e-5):
    theirs = theirs.detach().numpy()
    theirs = theirs.transpose(0, 2, 3, 1) if theirs.ndim == 4 else theirs
    print("difference", np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())


@pytest.mark.parametrize("name", UNETS)
def test_unet_outputs_and_gradients(name, tmp_path):
    """Of a squared error, for every parameter and for the image."""
    model = unet(name)
    model.save_pretrained(tmp_path / "theirs")
    module, variables = arch_jax.load_pretrained(tmp_path / "theirs")
    ours, ((sample, time), labels) = unet_inputs(name)
    sample.requires_grad_()
    theirs = model(sample, time, **labels).sample
    target = np.random.default_rng(1).normal(size=theirs.shape).astype(np.float32).transpose(0, 2, 3, 1)
    error = torch.mean((theirs - to_torch(target)) ** 2)
    error.backward()

    def loss(variables, x, time, condition):
        y = module.apply(variables, x, time, condition)
        return jnp.mean((y - target) ** 2), y

    (value, y), (gradients, by_x) = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(variables, *ours)
    close(y, theirs)
    np.testing.assert_allclose(value, error.item(), rtol=1e-5)
    close(by_x, sample.grad)
    arch_jax.save_pretrained(module, gradients, tmp_path / "gradients")  # under their names, in their layout
    found = open_checkpoint(tmp_path / "gradients", FILES["diffusers"])
    found = {path: np.asarray(tensor) for path, tensor in found.items()}
    largest = max(float(p.grad.abs().max()) for p in model.parameters())
    for path, parameter in model.named_parameters():
        np.testing.assert_allclose(found.pop(path), parameter.grad, rtol=0, atol=1e-5 * largest, err_msg=path)
    assert not found


@pytest.mark.parametrize("name", UNETS)
def test_diffusers_reads_the_unet_that_is_written(name, tmp_path):
    model = unet(name)
    model.save_pretrained(tmp_path / "theirs")
    module, variables = arch_jax.load_pretrained(tmp_path / "theirs")
    arch_jax.save_pretrained(module.clone(facts=None), variables, tmp_path / "ours")
    again, said = diffusers.UNet2DModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(said.values()), said
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key]), key
    _, (given, labels) = unet_inputs(name)
    with torch.no_grad():
        assert torch.equal(again.eval()(*given, **labels).sample, model(*given, **labels).sample)
    arch_jax.save_pretrained(module, variables, tmp_path / "facts")  # what the folder said is said again
    before, after = (json.loads((tmp_path / each / "config.json").read_text()) for each in ("theirs", "facts"))
    assert {k: v for k, v in after.items() if k[0] != "_"} == {k: v for k, v in before.items() if k[0] != "_"}


def test_the_names_that_attention_had_before(tmp_path):
    """Those of google/ddpm-cifar10-32 and the others of its time."""
    model = unet("as DDPM")
    model.save_pretrained(tmp_path)
    _, expected = arch_jax.load_pretrained(tmp_path)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for path, tensor in open_checkpoint(tmp_path, FILES["diffusers"]).items():
        for now, before in old.items():
            path = path.replace(f".{now}.", f".{before}.")
        tensors[path] = np.asarray(tensor)
    assert any("proj_attn" in path for path in tensors)
    write_tensors(tmp_path / SINGLE, tensors)
    _, variables = arch_jax.load_pretrained(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, variables, expected)


@pytest.mark.parametrize(
    ("name", "widths", "attends"),
    [("ddpm-cifar10", (128, 256, 256, 256), (0, 1, 0, 0)),
     ("ddpm-celebahq-256", (128, 128, 256, 256, 512, 512), (0, 0, 0, 0, 1, 0))],
)  # fmt: skip
def test_a_registered_unet_has_as_many_parameters_as_diffusers_model(name, widths, attends, monkeypatch):
    monkeypatch.setattr(torch.nn.init, "kaiming_uniform_", lambda *_, **__: None)  # drawing them takes seconds
    with torch.device("meta"):
        model = diffusers.UNet2DModel(block_out_channels=widths, layers_per_block=2, **DDPM, **blocks(*attends))
    assert arch_jax.models()[name].parameters == sum(p.numel() for p in model.parameters())
