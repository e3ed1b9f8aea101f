"""dtype="float16" against transformers' float16: finite wherever theirs is, and about as near to float32.

Activations are made large by the last matrix of a part: the residual stream then comes near 65,504, beyond which
float16 has no numbers, or passes it where the reference has a guard.
"""

import jax
import numpy as np
import pytest

import arch_jax

torch = pytest.importorskip("torch", reason="parity needs torch: pip install arch-jax[parity]")
transformers = pytest.importorskip("transformers", reason="parity needs transformers: pip install arch-jax[parity]")

BERT = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
SIDES = {"layers": 2, "ffn_dim": 48, "attention_heads": 4}
MARIAN = {"vocab_size": 61, "d_model": 32, "pad_token_id": 60, "decoder_start_token_id": 60}
MARIAN |= {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in SIDES.items()}
T5 = {"vocab_size": 61, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 4, "num_heads": 4}
MAMBA = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 3, "state_size": 8}
RWKV = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 12, "rescale_every": 2}

#: class, settings, the matrices that are made large
CASES = {
    "bert": ("BertForMaskedLM", BERT, "output.dense.weight"),
    "gpt2": ("GPT2LMHeadModel", {"vocab_size": 61, "n_embd": 32, "n_layer": 3, "n_head": 4}, "mlp.c_proj.weight"),
    "llama": ("LlamaForCausalLM", BERT, "down_proj.weight"),
    "mamba": ("MambaForCausalLM", MAMBA, "out_proj.weight"),
    "mamba2": ("Mamba2ForCausalLM", MAMBA | {"num_heads": 8, "head_dim": 8, "n_groups": 2}, "out_proj.weight"),
    "marian": ("MarianMTModel", MARIAN, "fc2.weight"),
    "rwkv": ("RwkvForCausalLM", RWKV, "attention.output.weight"),
    "t5": ("T5ForConditionalGeneration", T5, "wo.weight"),
    "t5 v1.1": ("T5ForConditionalGeneration", T5 | {"feed_forward_proj": "gated-gelu"}, "wo.weight"),
}
#: How much larger; RWKV's are so from the middle on, since its guard leaves the first layers as they are.
SIZES = {"rwkv": (1.0, 1e4, 6e4)}
#: What the stream passes, in float32, while the reference is finite: those with a guard pass float16's range.
PASSES = {"bert": 0, "marian": 0, "rwkv": 65_504, "t5": 65_504, "t5 v1.1": 65_504}


def reference(case, size):
    name, settings, large = CASES[case]
    torch.manual_seed(0)
    model = getattr(transformers, name)(getattr(transformers, name).config_class(**settings))
    generator = torch.Generator().manual_seed(0)
    matrices = [name for name, _ in model.named_parameters() if name.endswith(large)]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
            if name in matrices:
                share = min(1, 2 * (1 + matrices.index(name)) / len(matrices)) if case == "rwkv" else 1
                parameter.mul_(size**share)
    return model.eval()


def streamed(model, inputs):
    """The logits, and the largest number among the hidden states."""
    with torch.no_grad():
        out = model(**inputs, output_hidden_states=True)
    names = ("hidden_states", "encoder_hidden_states", "decoder_hidden_states")
    states = [state for name in names for state in out.get(name) or ()]
    return out.logits.float().numpy(), max(float(state.abs().max()) for state in states)


@pytest.mark.parametrize("case", CASES)
def test_finite_where_the_reference_is(case, tmp_path):
    draw = np.random.default_rng(0)
    source, target = draw.integers(1, 59, (3, 13)), draw.integers(1, 59, (3, 9))
    given = (source, target) if case in ("marian", "t5", "t5 v1.1") else (source,)
    inputs = dict(zip(("input_ids", "decoder_input_ids"), map(torch.from_numpy, given)))
    passed = 0.0
    for size in SIZES.get(case, (1.0, 1e3, 1e4, 2e4)):
        model = reference(case, size)
        model.save_pretrained(tmp_path)
        exact, _ = streamed(model, inputs)
        # Their rescaling is done to the weights, once: a model that has run is no longer the one that was saved.
        stream = unscaled(case, size, inputs)
        half = type(model).from_pretrained(tmp_path, dtype=torch.float16).eval()
        theirs = streamed(half, inputs)[0]
        module, variables = arch_jax.load_pretrained(tmp_path, dtype="float16")
        found = jax.jit(module.apply)(variables, *(tokens.astype(np.int32) for tokens in given))
        ours = np.asarray(found["logits"] if isinstance(found, dict) else found)
        assert ours.dtype == np.float16
        if np.isfinite(theirs).all():
            passed = max(passed, stream)
            assert error(ours, exact) < 2 * error(theirs, exact) + 2e-3, size
    assert passed > PASSES.get(case, 500), passed


def error(logits, exact):
    return np.linalg.norm(logits.astype(np.float32) - exact) / np.linalg.norm(exact)


def unscaled(case, size, inputs):
    """The largest number of the stream where nothing is rescaled."""
    model = reference(case, size)
    if hasattr(model.config, "rescale_every"):
        model.config.rescale_every = 0
    return streamed(model, inputs)[1]
