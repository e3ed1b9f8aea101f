"""ConvNeXt, MobileNetV2 and EfficientNet against transformers: logits, running statistics, weights both ways."""

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

SMALL_EFFICIENTNET = {
    "width_coefficient": 0.5,
    "depth_coefficient": 0.4,
    "in_channels": [32, 8, 16],
    "out_channels": [8, 16, 24],
    "strides": [1, 2, 2],
    "num_block_repeats": [1, 3, 1],
    "expand_ratios": [1, 6, 4],
    "kernel_sizes": [3, 5, 3],
    "hidden_dim": 640,
}
#: name -> model type, class, settings, pixels on a side
CONFIGURATIONS = {
    "convnext": ("convnext", "ConvNext", {"hidden_sizes": [8, 12, 16], "depths": [1, 2, 1], "num_stages": 3}, 37),
    "convnext, no scale, large patches, tanh GELU": (
        "convnext",
        "ConvNext",
        {"hidden_sizes": [6, 10], "depths": [2, 1], "num_stages": 2, "layer_scale_init_value": 0.0, "patch_size": 5,
         "hidden_act": "gelu_new", "layer_norm_eps": 1e-3},
        40,
    ),
    "mobilenet_v2, half of the width, TensorFlow's padding": (
        "mobilenet_v2", "MobileNetV2", {"depth_multiplier": 0.5}, 65,
    ),
    "mobilenet_v2, equal padding, odd divisor": (
        "mobilenet_v2",
        "MobileNetV2",
        {"depth_multiplier": 0.25, "tf_padding": False, "depth_divisible_by": 5, "min_depth": 5,
         "layer_norm_eps": 1e-2},
        64,
    ),
    "efficientnet": ("efficientnet", "EfficientNet", SMALL_EFFICIENTNET, 32),
    "efficientnet, divisor 4, wider squeeze": (
        "efficientnet",
        "EfficientNet",
        SMALL_EFFICIENTNET | {"depth_divisor": 4, "squeeze_expansion_ratio": 0.5},
        64,
    ),
}  # fmt: skip


def reference(name):
    """A reference with every parameter and running statistic away from where it starts, and ours' momentum."""
    _, cls, settings, _ = CONFIGURATIONS[name]
    config = getattr(transformers, f"{cls}Config")(**settings, num_labels=5)
    model = getattr(transformers, f"{cls}ForImageClassification")(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.ndim > 1:  # large enough for images to reach the logits through every layer
                deviation = (2 / tensor[0].numel()) ** 0.5
                tensor.copy_(deviation * torch.randn(tensor.shape, generator=generator))
            elif tensor.is_floating_point():
                tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
    for layer in model.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0
    side = CONFIGURATIONS[name][-1]
    with torch.no_grad():  # the statistics of a batch, so that each norm gives numbers of unit size
        model.train()(torch.randn(32, 3, side, side, generator=generator))
        for key, tensor in model.state_dict().items():
            if "running" in key:
                tensor.mul_(0.5 + torch.rand(tensor.shape, generator=generator))
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            # transformers gives the share that is kept (0.99, 0.997) where PyTorch takes the share that is new.
            layer.momentum = 0.003 if cls == "MobileNetV2" else 0.01
    return model.eval()


def close(ours, theirs, tolerance):
    theirs = np.asarray(theirs)
    np.testing.assert_allclose(ours, theirs, atol=tolerance * np.abs(theirs).max())


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_logits_running_statistics_and_weights_both_ways(name, tmp_path):
    kind, _, _, side = CONFIGURATIONS[name]
    model = reference(name)
    model.save_pretrained(tmp_path / "theirs")
    module, variables = arch_jax.load_pretrained(tmp_path / "theirs")
    x = np.random.default_rng(0).normal(size=(3, side, side, 3)).astype(np.float32)
    inputs = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        expected = model(inputs).logits.numpy()
    assert np.ptp(expected, axis=0).max() > 0.05 * np.abs(expected).max(), "the logits say nothing of the images"
    # In float32 transformers' MobileNetV2 is itself 1e-5 from what it gives in float64, where ours is held to 1e-12.
    close(jax.jit(module.apply)(variables, jnp.asarray(x)), expected, 1e-4 if kind == "mobilenet_v2" else 1e-5)

    arch_jax.save_pretrained(module, variables, tmp_path / "ours")
    again = type(model).from_pretrained(tmp_path / "ours").eval()
    for key, tensor in model.state_dict().items():
        if not key.endswith("num_batches_tracked"):  # a count that nothing is computed from
            assert torch.equal(tensor, again.state_dict()[key]), key
    with torch.no_grad():
        assert torch.equal(again(inputs).logits, torch.from_numpy(expected))

    in_float64(checkpoint_type("transformers", kind), model, tmp_path / "theirs", x)


def test_blocks_that_get_images_of_odd_size(tmp_path):
    """36 pixels: 18, 9, 5. transformers lists the block that gets 9, padded alike on both sides; B3 has two such."""
    settings = SMALL_EFFICIENTNET | {"image_size": 36, "depthwise_padding": [3], "num_labels": 5}
    torch.manual_seed(0)
    model = transformers.EfficientNetForImageClassification(transformers.EfficientNetConfig(**settings)).eval()
    model.save_pretrained(tmp_path)
    module, variables = arch_jax.load_pretrained(tmp_path)
    x = np.random.default_rng(0).normal(size=(2, 36, 36, 3)).astype(np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).logits.numpy()
    close(jax.jit(module.apply)(variables, jnp.asarray(x)), expected, 1e-5)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"image_size": 34}))
    with pytest.raises(UsageError, match=r"depthwise_padding is \[3\]; expected \[1, 3\], the blocks with a stride"):
        arch_jax.load_pretrained(tmp_path)


def in_float64(kind, model, folder, x):
    """Logits in evaluation and in training, and the running statistics of a training step's batch.

    In float64: some channels hardly vary over so few pixels, and dividing by that, layer after layer, makes of a
    rounding of float32 what any difference could have made.
    """
    model, inputs = model.double(), torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).double()
    with torch.no_grad():
        expected, expected_in_training = model(inputs).logits.numpy(), model.train()(inputs).logits.numpy()
    with jax.enable_x64(True):
        module, variables = arch_jax.load_pretrained(folder, dtype="float64")
        x = jnp.asarray(x, jnp.float64)
        close(jax.jit(module.apply)(variables, x), expected, 1e-12)
        if "batch_stats" not in variables:
            return
        logits, updated = jax.jit(lambda v, x: module.apply(v, x, train=True, mutable=["batch_stats"]))(variables, x)
        close(logits, expected_in_training, 1e-10)
        moved = {name: make() for name, _, _, make in tensors_of(kind, module, {**variables, **updated})}
    for key, tensor in model.state_dict().items():
        if "running" in key:
            close(moved[key], tensor, 1e-10)


#: Architecture, library -> our name, a tensor of it and its shape, and the settings that the library has otherwise.
NAMES = {
    ("convnext_tiny", "timm"): ("convnext-tiny", "stages.2.blocks.8.conv_dw.weight", (384, 1, 7, 7), {}),
    ("convnext_tiny", "torchvision"): ("convnext-tiny", "features.1.0.layer_scale", (96, 1, 1), {}),
    ("tf_efficientnet_b0", "timm"): ("efficientnet-b0", "blocks.6.0.se.conv_reduce.weight", (48, 1152, 1, 1), {}),
    ("tf_efficientnet_lite0", "timm"): ("efficientnet-lite0", "blocks.1.0.conv_pwl.weight", (24, 96, 1, 1), {}),
    ("efficientnet_b0", "timm"): (
        "efficientnet-b0",
        "blocks.0.0.se.conv_expand.bias",
        (32,),
        {"padding": None, "norm.epsilon": 1e-5},
    ),
    ("efficientnet_b0", "torchvision"): (
        "efficientnet-b0",
        "features.2.0.block.2.fc1.weight",
        (4, 96, 1, 1),
        {"padding": None, "norm.epsilon": 1e-5},
    ),
    ("efficientnet_b5", "torchvision"): (
        "efficientnet-b5",
        "features.0.0.weight",
        (48, 3, 3, 3),
        {"padding": None},
    ),
    ("efficientnet-b0", "efficientnet_pytorch"): (
        "efficientnet-b0",
        "_blocks.1._se_reduce.weight",
        (4, 96, 1, 1),
        {},
    ),
    ("efficientnet-lite0", "efficientnet_pytorch"): (
        "efficientnet-lite0",
        "_blocks.15._bn2.running_var",
        (320,),
        {},
    ),
    ("mobilenet_v2", "torchvision"): (
        "mobilenet-v2",
        "features.17.conv.2.weight",
        (320, 960, 1, 1),
        {"norm.epsilon": 1e-5},
    ),
    ("mobilenetv2_100", "timm"): (
        "mobilenet-v2",
        "blocks.2.0.conv_pwl.weight",
        (32, 144, 1, 1),
        {"norm.epsilon": 1e-5},
    ),
    ("resnet18", "torchvision"): ("resnet-18", "layer2.0.downsample.0.weight", (128, 64, 1, 1), {}),
    ("vit_tiny_patch16_224", "timm"): ("vit-tiny-16", "blocks.11.attn.qkv.weight", (576, 192), {}),
    ("vit_b_32", "torchvision"): (
        "vit-base-32",
        "encoder.layers.encoder_layer_0.self_attention.in_proj_bias",
        (2304,),
        {},
    ),
}


@pytest.mark.parametrize(("theirs", "library"), NAMES)
def test_tensors_under_other_names(theirs, library, tmp_path):
    """The names, shapes and settings are those that the libraries themselves showed."""
    from safetensors.numpy import save_file

    ours, name, shape, settings = NAMES[theirs, library]
    kind = checkpoint_type(library, theirs)
    registered = arch_jax.create(ours)
    plain = {field: 0.0 for field in ("dropout", "stochastic_depth") if hasattr(registered, field)}
    module = arch_jax.create(ours, classes=7, **plain | settings)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *kind.inputs(module))
    draw = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: draw.standard_normal(leaf.shape, np.float32), shapes)
    tensors = {n: make() for n, _, _, make in tensors_of(kind, module, variables)}
    assert tensors[name].shape == shape
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": theirs, "num_classes": 7}))
    found, again = arch_jax.load_pretrained(tmp_path)
    assert found == module
    jax.tree.map(np.testing.assert_array_equal, again, variables)


@pytest.mark.parametrize(
    ("cls", "settings", "message"),
    [
        ("MobileNetV2", {"output_stride": 16}, "output_stride is 16"),
        ("MobileNetV2", {"depth_multiplier": 0.2}, "the first block has 8 channels on both sides"),
        ("MobileNetV2", {"min_depth": 16}, "min_depth is 16; expected depth_divisible_by, 8"),
        ("EfficientNet", {"hidden_dim": 1283, "width_coefficient": 1.0}, "hidden_dim is 1283; expected 1280"),
        ("EfficientNet", {"strides": [1, 2]}, "expected one of each for a stage"),
        ("EfficientNet", {"in_channels": [32, 16, 24, 40, 80, 112, 9]}, r"in_channels is .*expected the stem's"),
    ],
)
def test_what_is_refused(cls, settings, message, tmp_path):
    data = getattr(transformers, f"{cls}Config")().to_dict() | settings
    (tmp_path / "config.json").write_text(json.dumps(data))
    with pytest.raises(UsageError, match=message):
        arch_jax.load_pretrained(tmp_path)
