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
DDPM = {
    "freq_shift": 1,
    "flip_sin_to_cos": False,
    "downsample_padding": 0,
    "norm_eps": 1e-6,
    "attention_head_dim": None,
}
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


def inputs(shape, classes, last=999):
    """Our arguments, and theirs; `last` is the latest of the times."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(3, *shape)).astype(np.float32)
    time = np.array([0, 41, last], np.float32)
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


DIT = {"resolution": 8, "channels": 2, "classes": 5, "depth": 3, "width": 24}
#: name -> further settings, height and width of the images
DITS = {
    "learned variance": ({}, (8, 8)),
    "no variance, patches of 4": ({"learned_variance": False, "patch": 4, "resolution": 12}, (12, 12)),
}


def dit(settings):
    """Ours, with random weights that are nowhere 0."""
    module = arch_jax.create("dit-s-2", **{**DIT, "mixer.heads": 3, "frequency_shift": 1.0} | settings)
    x = jnp.zeros((1, module.resolution, module.resolution, 2))
    shapes = jax.eval_shape(module.init, jax.random.key(0), x, jnp.zeros((1,)))
    draw = np.random.default_rng(0)
    fan = lambda leaf: np.sqrt(leaf.shape[-2]) if leaf.ndim > 1 else 4.0
    return module, jax.tree.map(lambda leaf: jnp.asarray(draw.normal(size=leaf.shape) / fan(leaf), leaf.dtype), shapes)


def leaves(tree):
    """Dotted path -> array."""
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf) for path, leaf in flat}


def in_diffusers(module, params):
    """The same network in diffusers, where each block has an embedder of its own: here all are alike."""
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=3, attention_head_dim=module.width // 3, in_channels=2,
        out_channels=2 * (1 + module.learned_variance), num_layers=module.depth, sample_size=module.resolution,
        patch_size=module.patch, num_embeds_ada_norm=module.classes, norm_eps=1e-6,
    )  # fmt: skip
    flat = {path: torch.from_numpy(leaf.copy()) for path, leaf in leaves(params).items()}
    patch = flat["patch_embedding.kernel"].reshape(module.patch, module.patch, 2, -1).permute(3, 2, 0, 1)
    state = {"pos_embed.proj.weight": patch, "pos_embed.proj.bias": flat["patch_embedding.bias"]}

    def linear(theirs, ours, layer=None):
        kernel, bias = (flat[f"{ours}.{part}"] for part in ("kernel", "bias"))
        state[f"{theirs}.weight"] = (kernel if layer is None else kernel[layer]).T
        state[f"{theirs}.bias"] = bias if layer is None else bias[layer]

    for i in range(module.depth):
        theirs, ours = f"transformer_blocks.{i}", "stack.layers.block_0"
        linear(f"{theirs}.norm1.emb.timestep_embedder.linear_1", "time.hidden")
        linear(f"{theirs}.norm1.emb.timestep_embedder.linear_2", "time.output")
        state[f"{theirs}.norm1.emb.class_embedder.embedding_table.weight"] = flat["label.embedding"]
        linear(f"{theirs}.norm1.linear", f"{ours}.modulation", i)
        for name, own in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "output")):
            linear(f"{theirs}.attn1.{name}", f"{ours}.mixer.{own}", i)
        linear(f"{theirs}.ff.net.0.proj", f"{ours}.feed_forward.up", i)
        linear(f"{theirs}.ff.net.2", f"{ours}.feed_forward.down", i)
    linear("proj_out_1", "final_layer.modulation")
    linear("proj_out_2", "final_layer.outputs")
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert set(missing) <= {"pos_embed.pos_embed"}
    assert not unexpected
    return model.eval()


@pytest.mark.parametrize("name", DITS)
def test_dit_is_diffusers_with_one_embedder(name):
    """Outputs, and gradients by the image.

    Up to t = 99: diffusers computes frequencies in float32, of which t = 999 makes an error of 1e-4 of an angle.
    """
    settings, sides = DITS[name]
    module, variables = dit(settings)
    model = in_diffusers(module, variables["params"])
    ours, ((sample, time), labels) = inputs((*sides, 2), module.classes + 1, last=99)  # the null class too
    sample.requires_grad_()
    theirs = model(sample, time, **labels).sample
    torch.sum(theirs**2).backward()
    value = lambda x: jnp.sum(module.apply(variables, x, *ours[1:]) ** 2)
    close(jax.jit(module.apply)(variables, *ours), theirs)
    close(jax.jit(jax.grad(value))(ours[0]), sample.grad)


def test_the_frequency_shift_is_no_small_matter():
    """diffusers has 1 where the authors have 0: at t = 999 another network."""
    module, variables = dit({})
    ours, ((sample, time), labels) = inputs((8, 8, 2), module.classes)
    with torch.no_grad():
        theirs = in_diffusers(module, variables["params"])(sample, time, **labels).sample.numpy()
    authors = jax.jit(module.clone(frequency_shift=0.0).apply)(variables, *ours)
    assert np.abs(np.asarray(authors)[2] - theirs.transpose(0, 2, 3, 1)[2]).max() > 1e-2 * np.abs(theirs).max()


def restated(p, module, x, time, labels):
    """The network by the formulas of the paper and the authors' code, from our parameters as PyTorch tensors."""
    functional = torch.nn.functional
    linear = lambda y, path, i=...: y @ p[f"{path}.kernel"][i] + p[f"{path}.bias"][i]
    norm = lambda y: functional.layer_norm(y, y.shape[-1:], eps=1e-6)
    size, width, heads = module.patch, module.width, module.mixer.heads

    half = module.frequencies // 2
    angles = time[:, None] * torch.exp(-np.log(10_000) * torch.arange(half, dtype=x.dtype) / half)
    waves = torch.cat([angles.cos(), angles.sin()], 1)
    c = linear(functional.silu(linear(waves, "time.hidden")), "time.output") + p["label.embedding"][labels]

    down, across = x.shape[1] // size, x.shape[2] // size
    tokens = torch.stack([
        torch.stack([x[:, r * size + i, s * size + j] for i in range(size) for j in range(size)], 1).flatten(1)
        for r in range(down) for s in range(across)
    ], 1)  # fmt: skip
    w = 10_000.0 ** -(np.arange(width // 4) / (width // 4))
    places = [
        np.concatenate([np.sin(s * w), np.cos(s * w), np.sin(r * w), np.cos(r * w)])
        for r in range(down) for s in range(across)
    ]  # fmt: skip
    y = linear(tokens, "patch_embedding") + torch.from_numpy(np.stack(places)).to(x.dtype)

    for i in range(module.depth):
        block = "stack.layers.block_0"
        given = linear(functional.silu(c), f"{block}.modulation", i).chunk(6, 1)
        beta_1, gamma_1, alpha_1, beta_2, gamma_2, alpha_2 = (vector[:, None] for vector in given)
        z = norm(y) * (1 + gamma_1) + beta_1
        apart = lambda name: linear(z, f"{block}.mixer.{name}", i).unflatten(-1, (heads, -1)).transpose(1, 2)  # noqa: B023
        q, k, v = map(apart, ("query", "key", "value"))
        attended = torch.softmax(q @ k.transpose(2, 3) / q.shape[-1] ** 0.5, -1) @ v
        y = y + alpha_1 * linear(attended.transpose(1, 2).flatten(2), f"{block}.mixer.output", i)
        z = norm(y) * (1 + gamma_2) + beta_2
        z = functional.gelu(linear(z, f"{block}.feed_forward.up", i), approximate="tanh")
        y = y + alpha_2 * linear(z, f"{block}.feed_forward.down", i)
    beta, gamma = linear(functional.silu(c), "final_layer.modulation").chunk(2, 1)
    y = linear(norm(y) * (1 + gamma[:, None]) + beta[:, None], "final_layer.outputs")
    out = torch.zeros(*x.shape[:3], y.shape[-1] // size**2, dtype=x.dtype)
    for place in range(y.shape[1]):
        r, s = divmod(place, across)
        out[:, r * size : (r + 1) * size, s * size : (s + 1) * size] = y[:, place].unflatten(-1, (size, size, -1))
    return out


@pytest.mark.parametrize("sides", [(8, 8), (4, 12)])
def test_dit_is_the_authors_network(sides):
    """Outputs, and gradients of a squared error by every parameter, in float64."""
    with jax.enable_x64(True):
        module, variables = dit(dict.fromkeys(("dtype", "parameter_dtype"), "float64") | {"frequency_shift": 0.0})
        (x, time, condition), _ = inputs((*sides, 2), module.classes + 1)
        x, time = x.astype(float), time.astype(float)
        apply = jax.jit(lambda variables: module.apply(variables, x, time, condition))
        y, gradients = apply(variables), jax.jit(jax.grad(lambda variables: jnp.mean(apply(variables) ** 2)))(variables)
        y, found, params = np.asarray(y), leaves(gradients["params"]), leaves(variables["params"])
    params = {path: torch.from_numpy(leaf.copy()).requires_grad_() for path, leaf in params.items()}
    given = (torch.from_numpy(np.array(part)) for part in (x, time, condition.label))
    theirs = restated(params, module, *given)
    torch.mean(theirs**2).backward()
    assert y.dtype == np.float64
    assert np.abs(y).max() > 0.1
    np.testing.assert_allclose(y, theirs.detach(), rtol=0, atol=1e-10 * np.abs(y).max())
    largest = max(np.abs(gradient).max() for gradient in found.values())
    for path, parameter in params.items():
        np.testing.assert_allclose(found[path], parameter.grad, rtol=0, atol=1e-10 * largest, err_msg=path)


def test_sit_is_the_first_half_of_dit():
    """The authors' code computes twice the channels, and gives the first half."""
    module, variables = dit({})
    ours, _ = inputs((8, 8, 2), module.classes)
    flow = module.clone(learned_variance=False, unused_variance=True)
    whole, half = (jax.jit(each.apply)(variables, *ours) for each in (module, flow))
    np.testing.assert_array_equal(half, np.asarray(whole)[..., :2])
