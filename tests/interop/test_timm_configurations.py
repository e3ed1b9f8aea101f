"""timm's config.json: arguments of the network decide there, then the file, then where the weights came from."""

import pytest

import arch_jax
from arch_jax.errors import UsageError
from arch_jax.interop.configurations import module_of

CONFIGURED = {"tag": "a1_in1k", "custom_load": False, "input_size": [3, 224, 224], "fixed_input_size": False}
CONFIGURED |= {"interpolation": "bicubic", "crop_pct": 0.9, "mean": [0.5], "first_conv": "conv1", "classifier": "fc"}
#: What timm 1.0 writes for a network of its own making.
WRITTEN = {
    "architecture": "resnet18",
    "num_classes": 5,
    "num_features": 512,
    "global_pool": "avg",
    "model_args": {"num_classes": 5, "in_chans": 3, "global_pool": "avg"},
    "pretrained_cfg": CONFIGURED | {"num_classes": 5},
}
FIXED = {"input_size": [3, 384, 384], "fixed_input_size": True}
VIT = {"architecture": "vit_tiny_patch16_224"}


@pytest.mark.parametrize(
    ("config", "classes"),
    [
        (WRITTEN, 5),
        (WRITTEN | {"model_args": {"drop_rate": 0.2, "drop_path_rate": 0.1}}, 5),
        ({"architecture": "resnet18", "model_args": {"num_classes": 7}}, 7),
        ({"architecture": "resnet18", "pretrained_cfg": CONFIGURED | {"num_classes": 9}}, 9),
        ({"architecture": "resnet18", "num_classes": 3, **CONFIGURED}, 3),  # the older form, of one level
        ({"architecture": "resnet18", "model_args": None, "pretrained_cfg": None}, 1000),
    ],
)
def test_the_number_of_classes(config, classes):
    assert module_of(config)[1] == arch_jax.create("resnet-18", classes=classes)


@pytest.mark.parametrize(
    ("config", "pixels"),
    [
        (VIT, 224),
        (
            VIT | {"pretrained_cfg": CONFIGURED | {"input_size": [3, 288, 288]}},
            224,
        ),  # of the source, not of the network
        (VIT | {"pretrained_cfg": CONFIGURED | FIXED}, 384),
        (VIT | {"model_args": {"img_size": 96}, "pretrained_cfg": CONFIGURED}, 96),
        (VIT | {"model_args": {"img_size": [96, 96]}, "pretrained_cfg": CONFIGURED | FIXED}, 96),
        (VIT | CONFIGURED | FIXED, 384),
    ],
)
def test_the_resolution_of_a_network_with_a_table_of_positions(config, pixels):
    assert module_of(config)[1].resolution == pixels


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_args": {"num_classes": 7}},
            "model_args.num_classes is 7 and num_classes is 5; expected them to agree",
        ),
        ({"pretrained_cfg": {"num_classes": 7}}, "num_classes is 5 and pretrained_cfg.num_classes is 7"),
        (
            {"model_args": {"global_pool": "max"}},
            "model_args.global_pool is 'max', which is not supported; expected avg",
        ),
        ({"pretrained_cfg": {"global_pool": "max"}}, "pretrained_cfg.global_pool is 'max', which is not supported"),
        ({"global_pool": "max"}, "global_pool is 'max', which is not supported; expected avg"),
        ({"model_args": {"in_chans": 1}}, "model_args.in_chans is 1, which is not supported; expected 3"),
        ({"pretrained_cfg": {"input_size": [1, 28, 28]}}, "pretrained_cfg.input_size has 1 channels"),
        ({"model_args": {"block_args": {}}}, "unknown field of config.json 'model_args.block_args'"),
        ({"model_args": [3]}, r"model_args is \[3\]; expected an object, or null"),
        ({**VIT, "global_pool": "token", "model_args": {"img_size": [96, 64]}}, "images are 96 x 64 pixels"),
    ],
)
def test_what_contradicts_is_refused_by_name(changes, message):
    base = {name: value for name, value in WRITTEN.items() if name not in ("model_args", "pretrained_cfg")}
    with pytest.raises(UsageError, match=message):
        module_of(base | changes)


def test_arguments_that_are_unknown_may_be_ignored():
    config = WRITTEN | {"model_args": {"num_classes": 5, "flash": True}}
    assert module_of(config, ignore=("model_args.flash",))[1] == arch_jax.create("resnet-18", classes=5)
    with pytest.raises(UsageError, match=r"ignore=\('model_args.flash',\)"):
        module_of(config)
