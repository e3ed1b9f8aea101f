"""Checkpoints to and from transformers: the same logits both ways, the same bits, in one file and in shards."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import arch_jax

torch = pytest.importorskip("torch", reason="parity needs torch: pip install arch-jax[parity]")
transformers = pytest.importorskip("transformers", reason="parity needs transformers: pip install arch-jax[parity]")

SHAPE = {"vocab_size": 61, "n_layer": 2, "n_embd": 32, "n_head": 4, "n_positions": 24}
GPT2 = {
    "plain": {},
    "odd hidden width, relu, one head, epsilon": {
        "n_inner": 37, "activation_function": "relu", "n_head": 1, "layer_norm_epsilon": 1e-3,
    },
    "untied, exact gelu": {"tie_word_embeddings": False, "activation_function": "gelu"},
    "one layer, silu, upcast": {"n_layer": 1, "activation_function": "silu", "reorder_and_upcast_attn": True},
    "scores divided by the layer's number": {"scale_attn_by_inverse_layer_idx": True, "n_layer": 3},
    "the same, not scaled otherwise": {
        "scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False, "reorder_and_upcast_attn": True,
    },
    "tanh gelu by another name, dropout": {"activation_function": "gelu_pytorch_tanh", "resid_pdrop": 0.3},
}  # fmt: skip

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LLAMA = {
    "plain": {},
    "heads of their own size, four to one": {"head_dim": 6, "num_key_value_heads": 1, "rms_norm_eps": 1e-3},
    "biases everywhere": {"attention_bias": True, "mlp_bias": True},
    "tied, gelu": {"tie_word_embeddings": True, "hidden_act": "gelu"},
    "linear positions, two layers of norm": {
        "rope_parameters": {"rope_type": "linear", "rope_theta": 50.0, "factor": 3}
    },
    "llama 3.1 positions, one layer": {"rope_parameters": LLAMA3_ROPE, "num_hidden_layers": 1, "hidden_act": "relu"},
}


def reference(kind, changes, seed=0):
    """A reference model with every parameter away from its initial value: biases of 0 would hide mistakes."""
    if kind == "gpt2":
        config = transformers.GPT2Config(**SHAPE | changes)
        model = transformers.GPT2LMHeadModel(config)
    else:
        sizes = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
        sizes |= {"num_attention_heads": 4, "max_position_embeddings": 64}
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes | changes))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def their_logits(model, tokens):
    with torch.no_grad():
        return model(torch.from_numpy(tokens)).logits.float().numpy()


def tokens_for(vocabulary=61):
    return np.random.default_rng(0).integers(0, vocabulary, (3, 16))


def assert_same_logits(module, variables, theirs, tolerance=1e-5):
    tokens = tokens_for()
    expected = their_logits(theirs, tokens)
    assert np.abs(expected).max() > 0.5
    logits = module.apply(variables, jnp.asarray(tokens, jnp.int32))
    np.testing.assert_allclose(logits, expected, atol=tolerance)


def assert_same_bits(one, other):
    one, other = one.state_dict(), other.state_dict()
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


CASES = [("gpt2", name) for name in GPT2] + [("llama", name) for name in LLAMA]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_there_and_back(kind, name, tmp_path):
    theirs = reference(kind, {"gpt2": GPT2, "llama": LLAMA}[kind][name])
    theirs.save_pretrained(tmp_path / "theirs")
    module, variables = arch_jax.load_pretrained(tmp_path / "theirs")
    assert_same_logits(module, variables, theirs)

    arch_jax.save_pretrained(module, variables, tmp_path / "ours")
    back, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values()), report
    assert type(back) is type(theirs)
    assert_same_bits(back, theirs)
    tokens = tokens_for()
    np.testing.assert_allclose(their_logits(back.eval(), tokens), their_logits(theirs, tokens), atol=1e-5)

    again, loaded = arch_jax.load_pretrained(tmp_path / "ours", **({"scan": False} if "plain" in name else {}))
    if "plain" in name:
        assert_same_logits(again, loaded, theirs)
        arch_jax.save_pretrained(again, loaded, tmp_path / "unrolled")
        one, other = (tmp_path / folder / "model.safetensors" for folder in ("ours", "unrolled"))
        assert one.read_bytes() == other.read_bytes()
    else:
        assert again == module
        jax.tree.map(np.testing.assert_array_equal, loaded, variables)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_shards(kind, tmp_path):
    theirs = reference(kind, {})
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 2
    module, variables = arch_jax.load_pretrained(tmp_path / "theirs")
    assert_same_logits(module, variables, theirs)
    arch_jax.save_pretrained(module, variables, tmp_path / "ours", shard_bytes=20_000)
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 2
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert_same_bits(back, theirs)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(kind, dtype, tmp_path):
    half = reference(kind, {}).to(getattr(torch, dtype))
    half.save_pretrained(tmp_path / "half")
    module, variables = arch_jax.load_pretrained(tmp_path / "half")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(variables)} == {"float32"}
    # Loaded anew: `half.float()` would keep frequencies that had been rounded to half precision.
    widened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "half", dtype=torch.float32)
    assert_same_logits(module, variables, widened)

    module, variables = arch_jax.load_pretrained(tmp_path / "half", dtype=dtype)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(variables)} == {dtype}
    assert module.dtype == module.parameter_dtype == getattr(jnp, dtype)
    arch_jax.save_pretrained(module, variables, tmp_path / "ours")
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert back.dtype == getattr(torch, dtype)
    assert_same_bits(back, half)


def test_double_precision(tmp_path):
    double = reference("llama", {}).double()
    double.save_pretrained(tmp_path)
    with jax.enable_x64(True):
        module, variables = arch_jax.load_pretrained(tmp_path, dtype=jnp.float64)
        tokens = tokens_for()
        logits = np.asarray(module.apply(variables, jnp.asarray(tokens, jnp.int32)))
        assert logits.dtype == np.float64
    with torch.no_grad():
        expected = double(torch.from_numpy(tokens)).logits.numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-5)  # theirs rotates by float32 angles


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_layouts_of_older_files(kind, tmp_path):
    """Names without the prefix, buffers, and positions described as before transformers 5."""
    from safetensors.torch import load_file, save_file

    changes = {} if kind == "gpt2" else {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": True}
    theirs = reference(kind, changes)
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    if kind == "gpt2":
        tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
        tensors |= {"h.0.attn.bias": torch.ones(1, 1, 24, 24), "h.1.attn.masked_bias": torch.tensor([-1e4])}
        config |= {"n_ctx": 24, "task_specific_params": {"text-generation": {"do_sample": True}}}
    else:
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        rope = config.pop("rope_parameters")
        config |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope, "torch_dtype": config.pop("dtype")}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    module, variables = arch_jax.load_pretrained(tmp_path)
    assert_same_logits(module, variables, theirs)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_every_field_of_the_reference_is_known(kind):
    """Every field that transformers writes is used or known to change nothing."""
    from arch_jax.interop.configurations import module_of

    config = {"gpt2": transformers.GPT2Config, "llama": transformers.LlamaConfig}[kind]()
    data = json.loads(json.dumps(config.to_dict(), default=str))
    assert len(data) > 20
    module_of(data)
