"""torchvision's and timm's own networks under their own names: logits in float64, from weights that are drawn.

Each library is skipped where it is missing: torchvision needs a PyTorch of its own release.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import arch_jax

torch = pytest.importorskip("torch", reason="parity needs torch: pip install arch-jax[parity]")

NETWORKS = {
    "torchvision": [
        "resnet18",
        "resnet50",
        "convnext_tiny",
        "mobilenet_v2",
        "efficientnet_b0",
        "efficientnet_b5",
        "vit_b_32",
    ],
    "timm": [
        "resnet18",
        "convnext_tiny",
        "mobilenetv2_100",
        "mobilenetv2_140",
        "efficientnet_b0",
        "tf_efficientnet_b0",
        "tf_efficientnet_lite0",
        "vit_tiny_patch16_224",
    ],
}


EXPORTED = {
    "resnet18": ({"num_classes": 5}, 64, None),
    "resnet18, another pooling": ({"num_classes": 5, "global_pool": "max"}, 64, "global_pool is 'max'"),
    "resnet18, grey": ({"num_classes": 5, "in_chans": 1}, 64, "in_chans is 1"),
    "vit_tiny_patch16_224": ({"num_classes": 5, "img_size": 64}, 64, None),
    "vit_tiny_patch16_224, dropout": ({"num_classes": 5, "drop_path_rate": 0.3}, 224, None),
}


@pytest.mark.parametrize("case", EXPORTED)
def test_a_folder_that_timm_exports(case, tmp_path):
    """What timm makes of its own folder is what is loaded here, or refused by name."""
    timm = pytest.importorskip("timm", reason="timm is not installed")
    settings, side, refused = EXPORTED[case]
    torch.manual_seed(0)
    model = timm.create_model(case.split(",")[0], **settings).eval()
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    if refused:
        with pytest.raises(arch_jax.UsageError, match=refused):
            arch_jax.load_pretrained(tmp_path)
        return
    x = np.random.default_rng(0).normal(size=(2, side, side, 3)).astype(np.float32)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.no_grad():
        expected = again(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
    module, variables = arch_jax.load_pretrained(tmp_path)
    np.testing.assert_allclose(jax.jit(module.apply)(variables, x), expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(("library", "name"), [(lib, name) for lib, names in NETWORKS.items() for name in names])
def test_logits(library, name, tmp_path):
    from safetensors.torch import save_file

    if library == "torchvision":
        models = pytest.importorskip("torchvision", reason="torchvision is not installed").models
        model = getattr(models, name)(num_classes=7)
    else:
        model = pytest.importorskip("timm", reason="timm is not installed").create_model(name, num_classes=7)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if tensor.is_floating_point() and (tensor.ndim == 1 or "gamma" in key or "layer_scale" in key):
                tensor.add_(0.3 * torch.rand(tensor.shape, generator=generator))
            elif name.startswith(("vit", "resnet", "convnext")) and "head" in key:
                tensor.normal_(generator=generator)  # heads of zeros would hide everything
    side = 224 if name.startswith("vit") else 64
    x = np.random.default_rng(0).normal(size=(2, side, side, 3))
    images = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0
    model = model.double()
    with torch.no_grad():
        model.train()(images)  # the statistics of these images, or they would fade out from layer to layer
    model.eval()
    with torch.no_grad():
        expected = model(images).numpy()
    assert np.ptp(expected, axis=0).max() > 1e-3 * np.abs(expected).max(), "the logits say nothing of the images"
    save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": name, "num_classes": 7}))
    with jax.enable_x64(True):
        module, variables = arch_jax.load_pretrained(tmp_path, dtype="float64")
        logits = np.asarray(jax.jit(module.apply)(variables, jnp.asarray(x)))
    difference = np.abs(logits - expected).max() / np.abs(expected).max()
    print(f"{library} {name}: {difference:.1e}")
    assert difference < 1e-10
