"""ResNet against transformers, and its tensors under transformers' and torchvision's names."""

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
    "basic": {"layer_type": "basic", "hidden_sizes": [8, 16], "depths": [1, 2]},
    "bottleneck, stride in its first convolution, three stages": {
        "hidden_sizes": [32, 64, 128],
        "depths": [2, 1, 1],
        "downsample_in_bottleneck": True,
    },
    "stride at once, gelu": {
        "layer_type": "basic", "hidden_sizes": [8, 16], "depths": [2, 1], "downsample_in_first_stage": True,
        "hidden_act": "gelu",
    },
    "bottleneck, widths of its own, silu": {"hidden_sizes": [10, 20, 30], "depths": [1, 2, 1], "hidden_act": "silu"},
}  # fmt: skip


def reference(settings, seed=0):
    """A reference with every parameter and running statistic away from where it starts."""
    config = transformers.ResNetConfig(**{"embedding_size": 8, "num_labels": 5} | settings)
    model = transformers.ResNetForImageClassification(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            elif tensor.is_floating_point():
                tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
    return model.eval()


def images(side=33):
    x = np.random.default_rng(0).normal(size=(3, side, side, 3)).astype(np.float32)
    return jnp.asarray(x), torch.from_numpy(x.transpose(0, 3, 1, 2).copy())


def close(ours, theirs):
    theirs = theirs.detach().numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_logits_and_running_statistics(name, tmp_path):
    model = reference(CONFIGURATIONS[name])
    model.save_pretrained(tmp_path)
    module, variables = arch_jax.load_pretrained(tmp_path)
    x, y = images()
    with torch.no_grad():
        expected = model(y).logits
        assert np.ptp(expected.numpy(), axis=0).max() > 0.05 * expected.abs().max(), "the images make no difference"
        close(jax.jit(module.apply)(variables, x), expected)
        expected = model.train()(y).logits
    logits, updated = jax.jit(lambda v, x: module.apply(v, x, train=True, mutable=["batch_stats"]))(variables, x)
    close(logits, expected)
    after = {name: tensor for name, tensor in model.state_dict().items() if "running" in name}
    moved = {**variables, **updated}
    kind = checkpoint_type("transformers", "resnet")
    ours = {name: make() for name, _, _, make in tensors_of(kind, module, moved) if name in after}
    assert ours.keys() == after.keys()
    for name, tensor in after.items():
        close(ours[name], tensor)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_saved_and_read_again(name, tmp_path):
    model = reference(CONFIGURATIONS[name])
    model.save_pretrained(tmp_path / "theirs")
    module, variables = arch_jax.load_pretrained(tmp_path / "theirs")
    arch_jax.save_pretrained(module, variables, tmp_path / "ours")
    again = transformers.ResNetForImageClassification.from_pretrained(tmp_path / "ours").eval()
    for name, tensor in model.state_dict().items():
        if not name.endswith("num_batches_tracked"):  # a count that nothing is computed from
            assert torch.equal(tensor, again.state_dict()[name]), name
    with torch.no_grad():
        assert torch.equal(model(images()[1]).logits, again(images()[1]).logits)


def test_torchvisions_names_in_a_folder_of_timms(tmp_path):
    from safetensors.numpy import save_file

    module = arch_jax.create("resnet-18", classes=7)
    draw = np.random.default_rng(0)
    shapes = jax.eval_shape(module.init, jax.random.key(0), images()[0])
    variables = jax.tree.map(lambda leaf: draw.normal(size=leaf.shape).astype(np.float32), shapes)
    kind = checkpoint_type("torchvision", "resnet18")
    tensors = {name: make() for name, _, _, make in tensors_of(kind, module, variables)}
    # As torchvision prints them; there are 62 arrays in its resnet18, and as many pairs of running statistics as norms.
    assert len(tensors) == 62 + 40
    assert tensors["layer2.0.downsample.0.weight"].shape == (128, 64, 1, 1)
    assert tensors["layer4.1.bn2.running_var"].shape == (512,)
    assert tensors["fc.weight"].shape == (7, 512)
    save_file(tensors | {"bn1.num_batches_tracked": np.zeros((), np.int64)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet18", "num_classes": 7}))
    found, again = arch_jax.load_pretrained(tmp_path)
    assert found == module
    jax.tree.map(np.testing.assert_array_equal, again, variables)
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet19"}))
    with pytest.raises(UsageError, match="resnet18"):
        arch_jax.load_pretrained(tmp_path)


def test_what_transformers_has_no_model_for(tmp_path):
    module = arch_jax.create("resnet-cifar-20")
    with pytest.raises(UsageError, match=r"stem is 'cifar'|shortcut is 'padding'"):
        arch_jax.save_pretrained(module, {}, tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"hidden_sizes": [8, 24], "layer_type": "basic", "depths": [1]},
            r"hidden_sizes is \[8, 24\] and depths \[1\]; expected one of each for a stage",
        ),
        ({"hidden_sizes": [3], "depths": [1]}, r"widths is \(3,\); expected at least 4 for each of the 1 stages"),
        ({"hidden_act": "mish"}, "hidden_act is 'mish'"),
        ({"depths": []}, r"depths is \[\]; expected a list"),
    ],
)
def test_what_is_refused(settings, message, tmp_path):
    data = transformers.ResNetConfig(embedding_size=8).to_dict() | settings
    (tmp_path / "config.json").write_text(json.dumps(data))
    with pytest.raises(UsageError, match=message):
        arch_jax.load_pretrained(tmp_path)


def test_a_missing_and_an_unknown_tensor(tmp_path):
    from safetensors.torch import load_file, save_file

    reference(CONFIGURATIONS["basic"]).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    weight = tensors.pop("classifier.1.weight")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match=r"'classifier\.1\.weight' is missing"):
        arch_jax.load_pretrained(tmp_path)
    save_file(
        tensors | {"classifier.1.weight": weight, "classifier.2.weight": weight.clone()}, tmp_path / "model.safetensors"
    )
    with pytest.raises(UsageError, match=r"classifier\.2\.weight.*which the module lacks"):
        arch_jax.load_pretrained(tmp_path)
    save_file(tensors | {"classifier.1.weight": weight[:, :3].clone()}, tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match=r"has shape \(5, 3\); expected \(5, 16\)"):
        arch_jax.load_pretrained(tmp_path)
