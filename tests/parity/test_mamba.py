"""Mamba and Mamba-2 against transformers: logits, greedy decoding, and gradients, on random tiny weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import arch_jax
from arch_jax.errors import UsageError
from arch_jax.interop.configurations import module_of
from arch_jax.sampling import generate

torch = pytest.importorskip("torch", reason="parity needs torch: pip install arch-jax[parity]")
transformers = pytest.importorskip("transformers", reason="parity needs transformers: pip install arch-jax[parity]")

MAMBA = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
MAMBA2 = MAMBA | {"num_heads": 8, "head_dim": 8, "n_groups": 1}
CASES = {
    "mamba": ("MambaForCausalLM", MAMBA),
    "mamba, odd sizes, biases, untied": (
        "MambaForCausalLM",
        MAMBA | {
            "expand": 3, "conv_kernel": 3, "state_size": 5, "time_step_rank": 7, "use_bias": True,
            "use_conv_bias": False, "layer_norm_epsilon": 1e-3, "tie_word_embeddings": False,
        },
    ),
    "mamba2": ("Mamba2ForCausalLM", MAMBA2),
    "mamba2, groups, biases, limited steps": (
        "Mamba2ForCausalLM",
        MAMBA2 | {
            "num_heads": 6, "head_dim": 16, "expand": 3, "n_groups": 3, "conv_kernel": 2, "use_bias": True,
            "use_conv_bias": False, "time_step_limit": (0.05, 0.5), "layer_norm_epsilon": 1e-3,
            "tie_word_embeddings": True,
        },
    ),
}  # fmt: skip


def reference(case):
    """A tiny model of theirs with every parameter away from its initial value."""
    name, settings = CASES[case]
    torch.manual_seed(0)
    cls = getattr(transformers, name)
    model = cls(cls.config_class(**settings))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@functools.cache
def tokens():
    return np.random.default_rng(0).integers(0, 61, (3, 13))


@pytest.mark.parametrize("case", CASES)
def test_logits_there_and_back(case, tmp_path):
    theirs = reference(case)
    theirs.save_pretrained(tmp_path / "theirs")
    module, variables = arch_jax.load_pretrained(tmp_path / "theirs")
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens())).logits.numpy()
    largest = np.abs(expected).max()
    assert largest > 0.3
    logits = jax.jit(module.apply)(variables, jnp.asarray(tokens(), jnp.int32))
    np.testing.assert_allclose(logits, expected, atol=1e-5 * max(1, largest))

    apart, layers = module.unrolled(variables)
    arch_jax.save_pretrained(apart, layers, tmp_path / "ours")
    again, notes = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not notes["missing_keys"]
    assert not notes["unexpected_keys"]
    before, after = theirs.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    with torch.no_grad():
        np.testing.assert_array_equal(again.eval()(torch.from_numpy(tokens())).logits.numpy(), expected)


@pytest.mark.parametrize("case", ["mamba, odd sizes, biases, untied", "mamba2"])
def test_greedy_decoding(case, tmp_path):
    """Token by token in the recurrent form, as theirs with its cache."""
    theirs = reference(case)
    # A tied output layer of random weights repeats the last token for ever.
    theirs.lm_head.weight = torch.nn.Parameter(torch.randn(61, 32))
    theirs.config.tie_word_embeddings = False
    theirs.save_pretrained(tmp_path)
    module, variables = arch_jax.load_pretrained(tmp_path)
    prompt = tokens()[:2, :7]
    with torch.no_grad():
        expected = theirs.generate(
            torch.from_numpy(prompt), max_new_tokens=20, min_new_tokens=20, do_sample=False, pad_token_id=0,
            eos_token_id=None,
        ).numpy()[:, 7:]  # fmt: skip
    assert len(np.unique(expected)) > 5
    found = generate(module, variables, jnp.asarray(prompt, jnp.int32), 20, temperature=0)
    np.testing.assert_array_equal(found, expected)


def test_gradients_of_the_scan():
    """Those of S6's inputs, from theirs in PyTorch by automatic differentiation."""
    from transformers.models.mamba.modeling_mamba import mamba_selective_scan

    from arch_jax.ops.recurrence.selective_scan import selective_scan

    rng = np.random.default_rng(0)
    sizes = {"x": (2, 19, 6), "delta": (2, 19, 6), "A": (6, 4), "B": (2, 19, 4), "C": (2, 19, 4), "D": (6,)}
    ours = {name: rng.normal(size=shape).astype(np.float32) for name, shape in sizes.items()}
    ours["A"] = -np.exp(ours["A"])
    theirs = {name: torch.from_numpy(array).requires_grad_() for name, array in ours.items()}
    turned = {name: array.transpose(1, 2) if array.ndim == 3 else array for name, array in theirs.items()}
    out = mamba_selective_scan(turned["x"], turned["delta"], *(turned[n] for n in "ABCD"), delta_softplus=True)
    weights = rng.normal(size=(2, 19, 6)).astype(np.float32)
    (out.transpose(1, 2) * torch.from_numpy(weights)).sum().backward()

    def loss(parts):
        given = parts | {"delta": jax.nn.softplus(parts["delta"])}
        y, _ = selective_scan(**given, form="chunked", chunk=8)
        return jnp.sum(y * weights), y

    (_, y), found = jax.jit(jax.value_and_grad(loss, has_aux=True))(ours)
    np.testing.assert_allclose(y, out.detach().numpy().swapaxes(1, 2), atol=1e-5)
    for name, gradient in found.items():
        np.testing.assert_allclose(gradient, theirs[name].grad.numpy(), rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("case", "change", "message"),
    [
        ("mamba", {"hidden_act": "gelu"}, "hidden_act is 'gelu', which is not supported"),
        ("mamba", {"intermediate_size": 65}, "intermediate_size is 65; expected a multiple of hidden_size, 32"),
        ("mamba", {"time_step_rank": "automatic"}, "time_step_rank is 'automatic'; .* or 'auto'"),
        ("mamba", {"conv_kernel": 10**6}, "conv_kernel is 1000000; expected at most 256"),
        ("mamba", {"stat_size": 8}, "unknown field of config.json 'stat_size'; .*'state_size'"),
        ("mamba2", {"n_groups": 3}, "n_groups is 3, which does not divide num_heads"),
        ("mamba2", {"num_heads": 7}, "num_heads is 7 and head_dim 8; expected a product of 64"),
        ("mamba2", {"time_step_limit": [0.5, 0.1]}, "time_step_limit is .* expected two numbers"),
    ],
)
def test_configurations_that_are_refused(case, change, message):
    config = {"model_type": case} | CASES[case][1] | change
    with pytest.raises(UsageError, match=message):
        module_of(config)


def test_fields_of_older_checkpoints():
    older = {
        "model_type": "mamba", "d_model": 768, "n_layer": 24, "d_inner": 1536, "hidden_size": 768, "rms_norm": True,
        "num_hidden_layers": 24, "ssm_cfg": {}, "fused_add_norm": True, "pad_vocab_size_multiple": 8,
        "initializer_range": 0.02, "rescale_prenorm_residual": True, "time_step_rank": 48, "vocab_size": 50280,
    }  # fmt: skip
    kind, module = module_of(older)
    assert (kind.name, module) == ("mamba", arch_jax.create("mamba-130m"))
