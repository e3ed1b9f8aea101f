"""The masked autoencoder against transformers: masks, predictions, the loss and its gradients, weights both ways."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import arch_jax
from arch_jax.errors import UsageError
from arch_jax.interop.configurations import checkpoint_type
from arch_jax.interop.weights import tensors_of, variables_of
from arch_jax.ops.attention.positions import sinusoidal_grid

torch = pytest.importorskip("torch", reason="parity needs torch: pip install arch-jax[parity]")
transformers = pytest.importorskip("transformers", reason="parity needs transformers: pip install arch-jax[parity]")

CONFIGURATIONS = {
    "plain": {},
    "normalised pixels, two channels, no biases of queries, tanh GELU, odd widths, few masked": {
        "norm_pix_loss": True,
        "num_channels": 2,
        "qkv_bias": False,
        "hidden_act": "gelu_new",
        "intermediate_size": 37,
        "decoder_intermediate_size": 21,
        "decoder_hidden_size": 28,
        "decoder_num_attention_heads": 7,
        "decoder_num_hidden_layers": 3,
        "image_size": 30,
        "patch_size": 5,
        "num_hidden_layers": 1,
        "layer_norm_eps": 1e-3,
        "mask_ratio": 0.4,
    },
}


def theirs(side, features):
    """The table of the reference's own function; published weights have the columns first (see its comment)."""
    from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

    rows_first = build_2d_sinusoidal_position_embedding(side, side, features)
    return torch.cat([rows_first[:, features // 2 :], rows_first[:, : features // 2]], dim=1)


def reference(settings):
    """A reference with every parameter away from where it starts, and the positions as the paper has them.

    A new model of transformers 5.23 has zeros in both tables; those of published checkpoints are in the files.
    """
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 96}
    sizes |= {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 4}
    sizes |= {"decoder_intermediate_size": 64, "image_size": 16, "patch_size": 4}
    model = transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**sizes | settings))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for table in (model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed):
            side = round((table.shape[1] - 1) ** 0.5)
            table[0, 1:] = theirs(side, table.shape[2])
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_masks_predictions_loss_and_gradients_both_ways(name, scan, tmp_path):
    model = reference(CONFIGURATIONS[name])
    model.save_pretrained(tmp_path / "theirs")
    module, variables = arch_jax.load_pretrained(tmp_path / "theirs", scan=scan)
    draw, side, count = np.random.default_rng(0), module.resolution, (module.resolution // module.patch) ** 2
    x = draw.normal(size=(3, side, side, module.channels)).astype(np.float32)
    noise = draw.uniform(size=(3, count)).astype(np.float32)
    inputs = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
    out = model(inputs, noise=torch.from_numpy(noise))
    out.loss.backward()
    expected = out.logits.detach().numpy()
    assert np.ptp(expected, axis=0).max() > 0.05 * np.abs(expected).max(), "the images make no difference"

    predicted, masking = jax.jit(lambda v, x, n: module.apply(v, x, n, method="masked"))(variables, x, noise)
    np.testing.assert_array_equal(masking.mask, out.mask.numpy() == 1)
    np.testing.assert_array_equal(masking.restore, out.ids_restore.numpy())
    difference = np.abs(np.asarray(predicted) - expected).max() / np.abs(expected).max()
    assert difference < 1e-5, difference

    task = Given(noise).with_model(module)
    batch = {"images": jnp.asarray(x), "labels": jnp.zeros(3, jnp.int32), "weights": jnp.ones(3)}

    def mean(params):
        (total, weight), _ = task.loss("model", "main", {"params": params}, batch, jax.random.key(0), 0)
        return total / weight

    loss, gradients = jax.jit(jax.value_and_grad(mean))(variables["params"])
    np.testing.assert_allclose(loss, out.loss.item(), rtol=1e-5)
    grown = {key: parameter.grad for key, parameter in model.named_parameters()}
    found = {key: jnp.asarray(grad.numpy()) for key, grad in grown.items() if grad is not None}
    held = renamed(found, model, tmp_path / "gradients", module)
    ours = flatten_dict({"params": gradients}, sep="/")
    assert held.keys() == ours.keys()
    most = max(np.abs(leaf).max() for leaf in held.values())
    worst = max(float(np.abs(np.asarray(ours[path]) - held[path]).max()) for path in held) / most
    print(f"{name}, scan={scan}: predictions {difference:.2g}, loss {abs(loss / out.loss.item() - 1):.2g}, "
          f"gradients {worst:.2g} of the largest")  # fmt: skip
    assert worst < 1e-5, worst

    arch_jax.save_pretrained(module, variables, tmp_path / "ours")
    again = transformers.ViTMAEForPreTraining.from_pretrained(tmp_path / "ours").eval()
    for key, tensor in model.state_dict().items():
        if "pos" not in key:
            assert torch.equal(tensor, again.state_dict()[key]), key
        torch.testing.assert_close(tensor, again.state_dict()[key], atol=1e-6, rtol=0)
    with torch.no_grad():
        second = again(inputs, noise=torch.from_numpy(noise))
    torch.testing.assert_close(second.logits, out.logits.detach(), atol=1e-5, rtol=1e-5)
    loaded, same = arch_jax.load_pretrained(tmp_path / "ours", scan=scan)
    assert loaded == module
    jax.tree.map(np.testing.assert_array_equal, same, variables)


class Given(type(arch_jax.objective("masked_patches"))):
    """The objective under given noise."""

    def __init__(self, noise, **settings):
        object.__setattr__(self, "given", jnp.asarray(noise))
        super().__init__(**settings)

    def with_model(self, model):
        return type(self)(self.given, model=model)

    def noise(self, images, key):
        return self.given


def renamed(gradients, model, folder, module):
    """The reference's gradients under our names: written as a checkpoint in place of the parameters."""
    with torch.no_grad():
        kept = {key: parameter.clone() for key, parameter in model.named_parameters()}
        for key, parameter in model.named_parameters():
            if key in gradients:
                parameter.copy_(torch.from_numpy(np.array(gradients[key])))
    model.save_pretrained(folder)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(kept[key])
    from safetensors.numpy import load_file

    found = variables_of(checkpoint_type("transformers", "vit_mae"), load_file(folder / "model.safetensors"), module)
    return {path: np.asarray(leaf) for path, leaf in flatten_dict(found, sep="/").items()}


@pytest.mark.parametrize("features", [16, 24])
def test_positions_are_the_references(features):
    np.testing.assert_allclose(sinusoidal_grid(5, 5, features), theirs(5, features).numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "width", "depth", "heads", "patch"),
    [("mae-base-16", 768, 12, 12, 16), ("mae-large-16", 1024, 24, 16, 16), ("mae-huge-14", 1280, 32, 16, 14)],
)
def test_trainable_parameters_are_as_many(name, width, depth, heads, patch):
    sizes = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads, "patch_size": patch}
    with torch.device("meta"):
        model = transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**sizes, intermediate_size=4 * width))
    assert arch_jax.models()[name].count() == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_what_is_refused(tmp_path):
    model = reference({})
    with torch.no_grad():
        model.decoder.decoder_pos_embed.zero_()
    model.save_pretrained(tmp_path / "zeros")
    with pytest.raises(UsageError, match=r"'decoder\.decoder_pos_embed' is up to 1 from the table"):
        arch_jax.load_pretrained(tmp_path / "zeros")
    plain = json.loads((tmp_path / "zeros" / "config.json").read_text())
    for field, value, said in (
        ("mask_ratio", 1.0, "mask_ratio is 1.0; expected a number between 0 and 1"),
        ("norm_pix_loss", 1, "norm_pix_loss is 1; expected true or false"),
        ("decoder_num_attention_heads", 5, "decoder_num_attention_heads"),
        ("image_size", [16, 16], "image_size is"),
        ("masked_ratio", 0.5, "masked_ratio"),
    ):
        (tmp_path / "zeros" / "config.json").write_text(json.dumps(plain | {field: value}))
        with pytest.raises(UsageError, match=said):
            arch_jax.load_pretrained(tmp_path / "zeros")
    module = arch_jax.create("mae-base-16", **{"decoder_feed_forward.activation": "relu"})
    with pytest.raises(UsageError, match=r"decoder_feed_forward\.activation is 'relu'"):
        arch_jax.save_pretrained(module, {}, tmp_path)


def test_published_names_of_the_decoders_layers():
    module = arch_jax.models()["mae-base-16"].tiny()
    variables = module.init(jax.random.key(0), jnp.zeros((1, 12, 12, 3)))
    kind = checkpoint_type("transformers", "vit_mae")
    for naming, layer in (("transformers", "decoder_layers.1"), ("transformers 5.23", "decoder_encoder.layer.1")):
        tensors = {name: make() for name, _, _, make in tensors_of(kind, module, variables, naming)}
        assert tensors[f"decoder.{layer}.attention.attention.key.weight"].shape == (12, 12)
        jax.tree.map(np.testing.assert_array_equal, variables_of(kind, tensors, module), variables)
