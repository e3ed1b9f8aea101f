"""Advice in messages, followed to the letter: what a message says of PyTorch's pickles ends with a loaded model."""

import re

import jax
import numpy as np
import pytest

import arch_jax
from arch_jax.errors import UsageError
from arch_jax.interop.safetensors import CONVERTING

torch = pytest.importorskip("torch", reason="parity needs torch: pip install arch-jax[parity]")
transformers = pytest.importorskip("transformers", reason="parity needs transformers: pip install arch-jax[parity]")

SMALL = {"vocab_size": 11, "n_positions": 6, "n_embd": 8, "n_layer": 1, "n_head": 2}


@pytest.fixture
def tied(tmp_path):
    """A model whose output layer is its embedding, in a folder without weights; and its weights as they are loaded."""
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**SMALL))
    model.save_pretrained(tmp_path)
    expected = arch_jax.load_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    return model, tmp_path, expected


def message(folder):
    with pytest.raises(UsageError) as caught:
        arch_jax.load_pretrained(folder)
    return str(caught.value)


def assert_loads(folder, expected):
    module, variables = arch_jax.load_pretrained(folder)
    assert module == expected[0]
    jax.tree.map(np.testing.assert_array_equal, variables, expected[1])


@pytest.mark.parametrize("key", [None, "model", "state_dict"])
@pytest.mark.parametrize("name", ["model.pth", "weights.pt", "epoch=3.ckpt"])
def test_a_state_dict_is_converted(tied, key, name, monkeypatch):
    model, folder, expected = tied
    state = model.state_dict()
    assert state["lm_head.weight"].data_ptr() == state["transformer.wte.weight"].data_ptr()
    state = {n: x.T.contiguous().T if x.ndim == 2 else x for n, x in state.items()} if key == "model" else state
    torch.save(state if key is None else {key: state, "epoch": 3}, folder / name)
    code = message(folder).split(CONVERTING)[1]
    monkeypatch.chdir(folder)
    exec(code, {})
    assert_loads(folder, expected)


def test_transformers_own_pickle_is_written_anew(tied):
    model, folder, expected = tied
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    assert re.search("load them in transformers and write them with model.save_pretrained", message(folder))
    transformers.AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder)
    assert_loads(folder, expected)


def test_diffusers_own_pickle_is_written_anew(tmp_path):
    diffusers = pytest.importorskip("diffusers", reason="parity needs diffusers: pip install arch-jax[parity]")
    torch.manual_seed(0)
    model = diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=2, sample_size=8)
    model.save_pretrained(tmp_path)
    expected = arch_jax.load_pretrained(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "diffusion_pytorch_model.bin")
    assert "load them in diffusers with use_safetensors=False and write them with model.save_pre" in message(tmp_path)
    diffusers.AutoencoderKL.from_pretrained(tmp_path, use_safetensors=False).save_pretrained(tmp_path)
    assert_loads(tmp_path, expected)
