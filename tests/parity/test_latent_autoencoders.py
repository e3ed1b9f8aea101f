"""AutoencoderKL and VQModel against diffusers: latents, codes, reconstructions, gradients, weights both ways."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import arch_jax
from arch_jax.interop.safetensors import FILES, open_checkpoint, write_tensors

torch = pytest.importorskip("torch", reason="parity needs torch: pip install arch-jax[parity]")
diffusers = pytest.importorskip("diffusers", reason="parity needs diffusers: pip install arch-jax[parity]")

SINGLE, INDEX = FILES["diffusers"].single, FILES["diffusers"].index
DOWN, UP = ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"], ["UpDecoderBlock2D", "AttnUpDecoderBlock2D"]


def blocks(*attends):
    return {
        "down_block_types": [DOWN[each] for each in attends],
        "up_block_types": [UP[each] for each in reversed(attends)],
    }


#: name -> class, settings, height and width of the images
CONFIGURATIONS = {
    "AutoencoderKL": (
        "AutoencoderKL",
        {"block_out_channels": [8, 12, 12], "layers_per_block": 2, "norm_num_groups": 4, **blocks(0, 0, 0)},
        (16, 16),
    ),
    "AutoencoderKL, attention on a level, none in the middle, no 1 x 1 convolutions, grey, wide": (
        "AutoencoderKL",
        {"block_out_channels": [6, 10], "layers_per_block": 1, "norm_num_groups": 2, "in_channels": 1,
         "out_channels": 1, "latent_channels": 3, "mid_block_add_attention": False, "use_quant_conv": False,
         "use_post_quant_conv": False, "scaling_factor": 0.3611, "shift_factor": 0.1159, "sample_size": 64,
         "latents_mean": [0.5, -1.0, 2.0], "latents_std": [0.5, 1.0, 8.0],
         **blocks(0, 1)},
        (10, 26),
    ),
    "VQModel": (
        "VQModel",
        {"block_out_channels": [8, 12], "layers_per_block": 2, "norm_num_groups": 4, "num_vq_embeddings": 32,
         **blocks(0, 0)},
        (16, 16),
    ),
    "VQModel, attention on two levels, one group, codes of another width, tall": (
        "VQModel",
        {"block_out_channels": [4, 6, 8], "layers_per_block": 1, "norm_num_groups": 1, "num_vq_embeddings": 11,
         "vq_embed_dim": 2, "latent_channels": 5, "scaling_factor": 1.0, **blocks(1, 0, 1)},
        (28, 12),
    ),
}  # fmt: skip


def reference(name):
    """A reference whose parameters are all away from where they start, and whose codes lie among its latents."""
    cls, settings, _ = CONFIGURATIONS[name]
    torch.manual_seed(0)
    model = getattr(diffusers, cls)(**settings).eval()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(0.1 * torch.randn(tensor.shape))
        if cls == "VQModel":
            latents = model.encode(images(name)[1]).latents.movedim(1, -1).flatten(0, 2)
            codes = model.quantize.embedding.weight
            drawn = latents[torch.randperm(len(latents))[: len(codes)]]
            codes.copy_(drawn + 0.3 * latents.std(0) * torch.randn(codes.shape))
    return model


def images(name):
    _, settings, sides = CONFIGURATIONS[name]
    x = np.random.default_rng(0).uniform(-1, 1, size=(2, *sides, settings.get("in_channels", 3))).astype(np.float32)
    return jnp.asarray(x), to_torch(x)


def to_torch(x):
    return torch.from_numpy(np.asarray(x).transpose(0, 3, 1, 2).copy())


def close(ours, theirs, tolerance=1e-5):
    theirs = theirs.detach().numpy()
    theirs = theirs.transpose(0, 2, 3, 1) if theirs.ndim == 4 else theirs
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())


@pytest.mark.parametrize("name", [name for name in CONFIGURATIONS if name.startswith("AutoencoderKL")])
def test_moments_and_reconstruction(name, tmp_path):
    model = reference(name)
    model.save_pretrained(tmp_path)
    module, variables = arch_jax.load_pretrained(tmp_path)
    assert (module.scale, module.shift) == (model.config.scaling_factor, model.config.shift_factor or 0)
    for ours, theirs in (("channel_mean", "latents_mean"), ("channel_std", "latents_std")):
        recorded = getattr(model.config, theirs)
        assert getattr(module, ours) == (None if recorded is None else tuple(recorded))
    x, inputs = images(name)
    with torch.no_grad():
        posterior = model.encode(inputs).latent_dist
        made, mean, log_variance = jax.jit(module.apply)(variables, x)
        assert mean.shape == (2, *module.latent_shape(x.shape[1:]))
        close(mean, posterior.mean)
        close(log_variance, posterior.logvar)
        close(made, model(inputs).sample)
        z = np.random.default_rng(1).normal(size=mean.shape).astype(np.float32)
        decode = jax.jit(lambda v, z: module.apply(v, z, method="decode"))
        close(decode(variables, jnp.asarray(z)), model.decode(to_torch(z)).sample)


@pytest.mark.parametrize("name", [name for name in CONFIGURATIONS if name.startswith("VQModel")])
def test_codes_and_reconstruction(name, tmp_path):
    model = reference(name)
    model.save_pretrained(tmp_path)
    module, variables = arch_jax.load_pretrained(tmp_path)
    x, inputs = images(name)
    apply = lambda method, *given: jax.jit(lambda v, *a: module.apply(v, *a, method=method))(variables, *given)
    with torch.no_grad():
        latents = model.encode(inputs).latents
        close(apply("latents", x), latents)
        codes = model.quantize(latents)[2][2].numpy().reshape(2, *(side // module.factor for side in x.shape[1:3]))
        assert len(np.unique(codes)) > 3, "one code says nothing of which is nearest"
        np.testing.assert_array_equal(apply("encode", x), codes)
        close(apply("__call__", x), model(inputs).sample)
        close(apply("decode", jnp.asarray(codes, jnp.int32)), model(inputs).sample)
        z = np.random.default_rng(1).normal(size=(*codes.shape, latents.shape[1])).astype(np.float32)
        close(apply("decode_latents", jnp.asarray(z)), model.decode(to_torch(z)).sample)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_gradients(name, tmp_path):
    """Gradients of a squared error and of the divergence, or the distance to the codes, for every parameter."""
    model = reference(name)
    model.save_pretrained(tmp_path / "theirs")
    module, variables = arch_jax.load_pretrained(tmp_path / "theirs")
    x, inputs = images(name)
    if isinstance(model, diffusers.AutoencoderKL):
        posterior = model.encode(inputs).latent_dist
        theirs = torch.mean((model.decode(posterior.mode()).sample - inputs) ** 2) + 1e-2 * posterior.kl().mean()

        def loss(variables):
            made, mean, log_variance = module.apply(variables, x)
            kl = 0.5 * jnp.sum(mean**2 + jnp.exp(log_variance) - 1 - log_variance, axis=(1, 2, 3))
            return jnp.mean((made - x) ** 2) + 1e-2 * jnp.mean(kl)
    else:
        decoded = model(inputs)  # diffusers prices the encoder's distance at 1 and the codes' at a quarter
        theirs = torch.mean((decoded.sample - inputs) ** 2) + decoded.commit_loss

        def loss(variables):
            made, encoded, nearest, _ = module.apply(variables, x, method="quantised")
            stop = jax.lax.stop_gradient
            distances = jnp.mean((encoded - stop(nearest)) ** 2) + 0.25 * jnp.mean((stop(encoded) - nearest) ** 2)
            return jnp.mean((made - x) ** 2) + distances

    theirs.backward()
    value, gradients = jax.jit(jax.value_and_grad(loss))(variables)
    np.testing.assert_allclose(value, theirs.item(), rtol=1e-5)
    arch_jax.save_pretrained(module, gradients, tmp_path / "gradients")  # under their names, in their layout
    ours = {
        path: np.asarray(tensor) for path, tensor in open_checkpoint(tmp_path / "gradients", FILES["diffusers"]).items()
    }
    largest = max(float(p.grad.abs().max()) for p in model.parameters())
    for path, parameter in model.named_parameters():
        np.testing.assert_allclose(ours.pop(path), parameter.grad, rtol=0, atol=1e-5 * largest, err_msg=path)
    assert not ours


@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("shard_bytes", [5_000_000_000, 4_000])
def test_diffusers_reads_what_is_written(name, shard_bytes, tmp_path):
    model = reference(name)
    model.save_pretrained(tmp_path / "theirs")
    module, variables = arch_jax.load_pretrained(tmp_path / "theirs")
    arch_jax.save_pretrained(module, variables, tmp_path / "ours", shard_bytes=shard_bytes)
    files = sorted(path.name for path in (tmp_path / "ours").iterdir())
    if shard_bytes > 4_000:
        assert files == ["config.json", SINGLE]
    else:
        assert INDEX in files
        assert SINGLE not in files
        assert arch_jax.load_pretrained(tmp_path / "ours")[0] == module
    again, said = type(model).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(said.values()), said
    theirs, ours = (
        {key: value for key, value in each.config.items() if not key.startswith("_")} for each in (model, again)
    )
    assert {key: list(v) if isinstance(v, tuple) else v for key, v in ours.items()} == theirs
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key]), key
    _, inputs = images(name)
    with torch.no_grad():
        assert torch.equal(again.eval()(inputs).sample, model(inputs).sample)


@pytest.mark.parametrize("convolved", [False, True])
def test_the_names_that_attention_had_before(convolved, tmp_path):
    """Stable Diffusion 1's own checkpoint has them; diffusers still reads them too."""
    name = "AutoencoderKL, attention on a level, none in the middle, no 1 x 1 convolutions, grey, wide"
    model = reference(name)
    model.save_pretrained(tmp_path)
    _, expected = arch_jax.load_pretrained(tmp_path)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for path, tensor in open_checkpoint(tmp_path, FILES["diffusers"]).items():
        array = np.asarray(tensor)
        for now, before in old.items():
            if f".{now}." in path:
                path = path.replace(now, before)
                array = array[:, :, None, None] if convolved and array.ndim == 2 else array
        tensors[path] = array
    assert any("proj_attn" in path for path in tensors)
    write_tensors(tmp_path / SINGLE, tensors)
    # Stable Diffusion 1's config.json says nothing of what came later.
    data = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in data.items() if k != "force_upcast"}))
    _, variables = arch_jax.load_pretrained(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, variables, expected)


SIZES = {
    "autoencoder-kl": ("AutoencoderKL", [128, 256, 512, 512], blocks(0, 0, 0, 0), {"latent_channels": 4}),
    "autoencoder-kl-f16": ("AutoencoderKL", [128, 128, 256, 256, 512], blocks(0, 0, 0, 0, 1), {"latent_channels": 16}),
    "vq-f4": ("VQModel", [128, 256, 512], blocks(0, 0, 0), {"num_vq_embeddings": 8192}),
}


@pytest.mark.parametrize("name", SIZES)
def test_a_registered_size_has_as_many_parameters_as_diffusers_model(name, monkeypatch):
    cls, widths, kinds, more = SIZES[name]
    monkeypatch.setattr(torch.nn.init, "kaiming_uniform_", lambda *_, **__: None)  # drawing them takes seconds
    with torch.device("meta"):
        model = getattr(diffusers, cls)(block_out_channels=widths, layers_per_block=2, **kinds, **more)
    assert arch_jax.models()[name].parameters == sum(p.numel() for p in model.parameters())
