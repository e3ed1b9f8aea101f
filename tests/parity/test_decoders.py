"""GPT-2 and Llama against transformers: random tiny weights copied in, equal logits, equal training, equal decoding."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from arch_jax import fields
from arch_jax.interop import weights
from arch_jax.interop.configurations import checkpoint_type
from arch_jax.models.transformer.gpt import gpt, gpt2_decoder
from arch_jax.models.transformer.llama import llama_decoder
from arch_jax.ops.attention.rope_scaling import Llama3Scaling
from arch_jax.ops.losses import cross_entropy
from arch_jax.sampling import generate

torch = pytest.importorskip("torch", reason="parity needs torch: pip install arch-jax[parity]")
transformers = pytest.importorskip("transformers", reason="parity needs transformers: pip install arch-jax[parity]")


def variables_of(kind, tensors, module):
    return weights.variables_of(checkpoint_type("transformers", kind), tensors, module)


def tensors_of(model):
    return {name: tensor.detach().numpy().copy() for name, tensor in model.state_dict().items()}


def randomised(model, seed=0):
    """The model with every parameter away from its initial value: biases of 0 and scales of 1 would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


GPT2_SHAPES = [
    {"vocabulary": 61, "depth": 2, "width": 32, "heads": 4, "positions": 24},
    {"vocabulary": 50, "depth": 3, "width": 24, "heads": 1, "positions": 17},
    {"vocabulary": 97, "depth": 1, "width": 40, "heads": 8, "positions": 64},
]


def gpt2_pair(vocabulary, depth, width, heads, positions):
    config = transformers.GPT2Config(
        vocab_size=vocabulary, n_layer=depth, n_embd=width, n_head=heads, n_positions=positions,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    theirs = randomised(transformers.GPT2LMHeadModel(config))
    changes = {"vocabulary": vocabulary, "position.length": positions}
    ours = fields.override(gpt2_decoder(depth, width, heads), changes)
    return theirs, ours, variables_of("gpt2", tensors_of(theirs), ours)


LLAMA_SHAPES = {
    "multi-head": {},
    "grouped": {"num_key_value_heads": 2, "rms_norm_eps": 1e-5},
    "multi-query, tied": {"num_key_value_heads": 1, "tie_word_embeddings": True, "hidden_act": "gelu_pytorch_tanh"},
    "llama 3.1 positions": {
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    },
}


def llama_pair(changes):
    config = transformers.LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        **({"num_key_value_heads": 4, "rms_norm_eps": 1e-6, "max_position_embeddings": 64} | changes),
    )  # fmt: skip
    theirs = randomised(transformers.LlamaForCausalLM(config))
    rope = changes.get("rope_parameters", {"rope_theta": 10_000.0})
    ours = llama_decoder(
        61, 2, 32, 4, config.num_key_value_heads, 48, theta=rope["rope_theta"], epsilon=config.rms_norm_eps
    ).clone(tied=config.tie_word_embeddings)
    if "factor" in rope:
        scaling = Llama3Scaling(
            rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"], rope["original_max_position_embeddings"]
        )
        ours = ours.clone(mixer=ours.mixer.clone(rope=ours.mixer.rope.__class__(rope["rope_theta"], 1.0, scaling)))
    if config.hidden_act != "silu":
        ours = ours.clone(feed_forward=ours.feed_forward.clone(activation="gelu_tanh"))
    return theirs, ours, variables_of("llama", tensors_of(theirs), ours)


def pairs():
    for i, shape in enumerate(GPT2_SHAPES):
        yield pytest.param(lambda shape=shape: gpt2_pair(**shape), id=f"gpt2-{i}")
    for name, changes in LLAMA_SHAPES.items():
        yield pytest.param(lambda changes=changes: llama_pair(changes), id=f"llama-{name}")


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("pair", pairs())
def test_logits(pair, scan):
    theirs, ours, variables = pair()
    if not scan:
        ours, variables = ours.unrolled(variables)
    tokens = np.random.default_rng(0).integers(0, ours.vocabulary, (3, 16))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens)).logits.numpy()
    logits = jax.jit(ours.apply)(variables, jnp.asarray(tokens, jnp.int32))
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(logits, expected, atol=1e-5)


@pytest.mark.parametrize("pair", [next(pairs()), *list(pairs())[4:5]])
def test_ten_adamw_steps(pair):
    """Equal losses and weights, the reference in float64.

    AdamW makes a full-sized step of whatever sign a gradient has, of its rounding too. So a weight is compared if each
    of its ten gradients is 0 (a token that isn't there) or stands clear of float32's rounding, and nearly all must. A
    key's bias has no gradient but rounding (the registry says why).
    """
    theirs, ours, variables = pair()
    theirs.double().train()
    kind = theirs.config.model_type
    tokens = np.random.default_rng(1).integers(0, ours.vocabulary, (10, 4, 17))
    torch_optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
    optimizer = optax.adamw(1e-3, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.1)

    def by_name(tensors):
        leaves = jax.tree_util.tree_flatten_with_path(variables_of(kind, tensors, ours)["params"])[0]
        return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}

    def gradients():
        return {name: tensor.grad.numpy() for name, tensor in theirs.state_dict(keep_vars=True).items()}

    @jax.jit
    def step(params, state, batch):
        def loss(params):
            return cross_entropy(ours.apply({"params": params}, batch[:, :-1]), batch[:, 1:]).mean()

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    params, state = jax.tree.map(jnp.asarray, variables["params"]), optimizer.init(variables["params"])
    clear = {name: np.inf for name in by_name(tensors_of(theirs))}
    for batch in tokens:
        inputs = torch.from_numpy(batch)
        logits = theirs(inputs[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), inputs[:, 1:].flatten())
        torch_optimizer.zero_grad()
        loss.backward()
        sizes = {
            name: np.where(gradient == 0, np.inf, np.abs(gradient)) for name, gradient in by_name(gradients()).items()
        }
        clear = {name: np.minimum(clear[name], size) for name, size in sizes.items()}
        torch_optimizer.step()
        params, state, value = step(params, state, jnp.asarray(batch, jnp.int32))
        assert abs(float(value) - loss.item()) < 1e-5
    expected = by_name(tensors_of(theirs))
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]}
    assert leaves.keys() == expected.keys()
    for name, leaf in leaves.items():
        compared = clear[name] > 3e-6
        np.testing.assert_allclose(leaf[compared], expected[name][compared], rtol=0, atol=2e-5, err_msg=name)
        assert "'key']['bias'" in name or compared.mean() > 0.9, name


@pytest.mark.parametrize("pair", [next(pairs()), *list(pairs())[4:5]])
def test_greedy_decoding(pair):
    theirs, ours, variables = pair()
    prompt = np.random.default_rng(2).integers(0, ours.vocabulary, (2, 5))
    with torch.no_grad():
        expected = theirs.generate(
            torch.from_numpy(prompt), max_new_tokens=10, min_new_tokens=10, do_sample=False, pad_token_id=0,
            eos_token_id=None,
        ).numpy()[:, 5:]  # fmt: skip
    tokens = generate(ours, variables, prompt.astype(np.int32), 10, temperature=0)
    np.testing.assert_array_equal(tokens, expected)


def test_small_default_is_a_tied_llama():
    """The registered `gpt` is Llama's block with tied embeddings, on its own initial weights."""
    ours = fields.override(
        gpt(), {"vocabulary": 61, "depth": 2, "width": 32, "mixer.heads": 4, "feed_forward.hidden": 48}
    )
    config = transformers.LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, rms_norm_eps=1e-6, tie_word_embeddings=True,
    )  # fmt: skip
    theirs = randomised(transformers.LlamaForCausalLM(config))
    tokens = np.random.default_rng(0).integers(0, 61, (2, 12))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens)).logits.numpy()
    logits = ours.apply(variables_of("llama", tensors_of(theirs), ours), jnp.asarray(tokens, jnp.int32))
    np.testing.assert_allclose(logits, expected, atol=1e-5)
