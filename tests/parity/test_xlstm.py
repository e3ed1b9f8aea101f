"""xLSTM against the authors' package, and transformers' checkpoints of xLSTM 7B's kind there and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import arch_jax
from arch_jax.errors import UsageError
from arch_jax.interop.configurations import module_of
from arch_jax.layers.mixers.mlstm import MLSTM
from arch_jax.layers.mixers.slstm import SLSTM
from arch_jax.layers.norms import LayerNorm
from arch_jax.layers.transformer.decoder import Decoder
from arch_jax.layers.transformer.feed_forward import SwiGLU
from arch_jax.sampling import generate

torch = pytest.importorskip("torch", reason="parity needs torch: pip install arch-jax[parity]")

WIDTH, HEADS, VOCABULARY, TIME = 32, 4, 29, 19


def away(model, seed=0):
    """The model with every parameter away from its initial value: biases of 0 would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def their_language_model(kinds):
    """The package's model, with its mLSTM and sLSTM ("m" and "s") in this order."""
    xlstm = pytest.importorskip("xlstm", reason="this parity needs the authors' package: pip install xlstm")
    torch.manual_seed(0)
    slstm_at = [i for i, kind in enumerate(kinds) if kind == "s"]
    slstm = xlstm.sLSTMBlockConfig(
        xlstm.sLSTMLayerConfig(backend="vanilla", num_heads=HEADS), xlstm.FeedForwardConfig(proj_factor=1.3)
    )
    config = xlstm.xLSTMLMModelConfig(
        mlstm_block=xlstm.mLSTMBlockConfig(xlstm.mLSTMLayerConfig(num_heads=HEADS)),
        slstm_block=slstm if slstm_at else None, slstm_at=slstm_at, context_length=TIME,
        num_blocks=len(kinds), embedding_dim=WIDTH, vocab_size=VOCABULARY,
    )  # fmt: skip
    model = xlstm.xLSTMLMModel(config)
    model.reset_parameters()
    return model


def params_of(model, kinds):
    """Their weights as ours. Norms' factors are kept there less 1."""
    w = {name: tensor.detach().numpy() for name, tensor in model.named_parameters()}
    dense = lambda name: {"kernel": w[f"{name}.weight"].T}
    blocks = lambda name: {"kernel": w[f"{name}.weight"].swapaxes(1, 2)}
    norm = lambda name: 1 + w[f"{name}.weight"]
    convolution = lambda name: {"kernel": w[f"{name}.conv.weight"][:, 0].T, "bias": w[f"{name}.conv.bias"]}

    def mlstm(name):
        cell = f"{name}.mlstm_cell"
        return {
            "up": dense(f"{name}.proj_up"),
            "short_convolution": convolution(f"{name}.conv1d"),
            **{ours: blocks(f"{name}.{ours[0]}_proj") for ours in ("query", "key", "value")},
            **{f"{gate}_gate": dense(f"{cell}.{gate[0]}gate") for gate in ("input", "forget")},
            **{f"{gate}_bias": w[f"{cell}.{gate[0]}gate.bias"] for gate in ("input", "forget")},
            "norm_scale": norm(f"{cell}.outnorm"),
            "skip": w[f"{name}.learnable_skip"],
            "output": dense(f"{name}.proj_down"),
        }

    def slstm(name):
        # Their cell takes (f, i, z, o) for (i, f, z, o): their layer's `fgate` feeds the input gate.
        theirs = {"input": "fgate", "forget": "igate", "cell": "zgate", "output": "ogate"}
        r = w[f"{name}.slstm_cell._recurrent_kernel_"].reshape(HEADS, 4, WIDTH // HEADS, WIDTH // HEADS)
        biases = w[f"{name}.slstm_cell._bias_"].reshape(4, WIDTH)
        return {
            "short_convolution": convolution(f"{name}.conv1d"),
            **{f"{gate}_gate": blocks(f"{name}.{of}") for gate, of in theirs.items()},
            **{f"{gate}_recurrent": r[:, i].swapaxes(1, 2) for i, gate in enumerate(theirs)},
            **{f"bias_{gate}": biases[i] for i, gate in enumerate(theirs)},
            "norm_scale": norm(f"{name}.group_norm"),
        }

    layers = {}
    for i, kind in enumerate(kinds):
        name = f"xlstm_block_stack.blocks.{i}"
        layers[f"layer_{i}"] = {
            "mixer_norm": {"scale": norm(f"{name}.xlstm_norm")},
            "mixer": {"m": mlstm, "s": slstm}[kind](f"{name}.xlstm"),
        }
        if kind == "s":
            gate, up = np.split(w[f"{name}.ffn.proj_up.weight"], 2)
            layers[f"layer_{i}"] |= {
                "feed_forward_norm": {"scale": norm(f"{name}.ffn_norm")},
                "feed_forward": {
                    "gate": {"kernel": gate.T}, "up": {"kernel": up.T}, "down": dense(f"{name}.ffn.proj_down"),
                },
            }  # fmt: skip
    params = {
        "embedding": {"embedding": w["token_embedding.weight"]},
        "stack": layers,
        "final_norm": {"scale": norm("xlstm_block_stack.post_blocks_norm")},
        "logits": dense("lm_head"),
    }
    return {"params": jax.tree.map(jnp.asarray, params)}


def our_language_model(kinds):
    cells = {"m": MLSTM(heads=HEADS), "s": SLSTM(heads=HEADS)}
    behind = {"m": None, "s": SwiGLU(hidden=64, activation="gelu")}
    feed_forwards = tuple(behind[kind] for kind in kinds)
    return Decoder(
        vocabulary=VOCABULARY, depth=len(kinds), width=WIDTH, mixer=tuple(cells[kind] for kind in kinds),
        feed_forward=feed_forwards[0] if len(set(kinds)) == 1 else feed_forwards, norm=LayerNorm(bias=False),
        tied=False, scan=False,
    )  # fmt: skip


@pytest.mark.parametrize("kinds", ["mm", "ss", "msm"])
def test_language_models(kinds):
    """Logits and the embedding's gradient; the recurrent form too, token by token."""
    theirs = away(their_language_model(kinds))
    ours, variables = our_language_model(kinds), params_of(theirs, kinds)
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (2, TIME))
    shapes = lambda tree: jax.tree.map(np.shape, tree)
    assert shapes(variables) == shapes(jax.eval_shape(ours.init, jax.random.key(0), jnp.asarray(tokens)))
    logits = theirs(torch.from_numpy(tokens))
    weights = np.random.default_rng(1).normal(size=logits.shape).astype(np.float32)
    (logits * torch.from_numpy(weights)).sum().backward()
    expected, gradient = logits.detach().numpy(), theirs.token_embedding.weight.grad.numpy()

    @jax.jit
    def both(variables):
        def loss(variables):
            logits = ours.apply(variables, jnp.asarray(tokens, jnp.int32))
            return jnp.sum(logits * weights), logits

        return jax.grad(loss, has_aux=True)(variables)

    gradients, found = both(variables)
    largest = np.abs(expected).max()
    assert largest > 1
    np.testing.assert_allclose(found, expected, atol=1e-5 * largest)
    largest = np.abs(gradient).max()
    np.testing.assert_allclose(gradients["params"]["embedding"]["embedding"], gradient, atol=2e-5 * largest)
    state, step = ours.initial_state(2, TIME), jax.jit(ours.apply)
    for t in range(5):
        y, state = step(variables, tokens[:, t : t + 1].astype(np.int32), None, state)
        np.testing.assert_allclose(y[:, 0], expected[:, t], atol=1e-5 * np.abs(expected).max())


def test_initial_weights():
    """Biases of the gates as theirs, and the spread of all weights within a tenth of theirs."""
    kinds = "mm"
    expected = params_of(their_language_model(kinds), kinds)["params"]["stack"]["layer_1"]["mixer"]
    tokens = jnp.zeros((1, 3), jnp.int32)
    found = jax.jit(our_language_model(kinds).init)(jax.random.key(0), tokens)["params"]["stack"]["layer_1"]["mixer"]
    for name in ("up", "query", "output", "short_convolution"):
        ours, theirs = np.std(found[name]["kernel"]), np.std(expected[name]["kernel"])
        assert abs(ours / theirs - 1) < 0.1, name
    for name in ("forget_bias", "skip", "norm_scale"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6)
    assert not np.any(found["input_gate"]["kernel"])
    expected = params_of(their_language_model("sss"), "sss")["params"]["stack"]
    for i, share in enumerate((0.0, 0.5, 1.0)):
        mixer = SLSTM(heads=HEADS, depth_share=share)
        found = jax.jit(mixer.init)(jax.random.key(0), jnp.zeros((1, 3, WIDTH)))["params"]
        for gate in ("input", "forget", "cell", "output"):
            name = f"bias_{gate}"
            np.testing.assert_allclose(found[name], expected[f"layer_{i}"]["mixer"][name], atol=1e-5)
            assert not np.any(found[f"{gate}_recurrent"])


TINY = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_heads": 4}
CASES = {
    "xlstm": TINY,
    "xlstm, odd sizes, other caps and epsilons": TINY | {
        "num_heads": 3, "hidden_size": 30, "qk_dim_factor": 0.7, "v_dim_factor": 1.3, "ffn_proj_factor": 1.9,
        "ffn_round_up_to_multiple_of": 7, "gate_soft_cap": 3.0, "output_logit_soft_cap": 5.0, "norm_eps": 1e-3,
        "eps": 1e-2, "chunk_size": 16,
    },
}  # fmt: skip


def reference(case):
    transformers = pytest.importorskip("transformers", reason="parity needs transformers: pip install arch-jax[parity]")
    # Where the authors' package is installed, transformers takes its kernels instead of what is compared here. Its
    # cache rounds the heads' sizes up to multiples of 64, which its layers don't: so `use_cache` is off below.
    transformers.utils.is_xlstm_available = lambda: False
    torch.manual_seed(0)
    return away(transformers.xLSTMForCausalLM(transformers.xLSTMConfig(**CASES[case])))


@pytest.mark.parametrize("case", CASES)
def test_checkpoints_there_and_back(case, tmp_path):
    theirs = reference(case)
    theirs.save_pretrained(tmp_path / "theirs")
    module, variables = arch_jax.load_pretrained(tmp_path / "theirs")
    tokens = np.random.default_rng(0).integers(0, 61, (3, 21))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens), use_cache=False).logits.numpy()
    largest = np.abs(expected).max()
    assert largest > 0.3
    found = jax.jit(module.apply)(variables, tokens.astype(np.int32))
    np.testing.assert_allclose(found, expected, atol=1e-5 * max(1, largest))

    arch_jax.save_pretrained(*module.unrolled(variables), tmp_path / "ours")
    again, notes = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not notes["missing_keys"]
    assert not notes["unexpected_keys"]
    before, after = theirs.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    with torch.no_grad():
        found = again.eval()(torch.from_numpy(tokens), use_cache=False).logits.numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)  # chunks may be others: they are not a setting of ours


def test_greedy_decoding(tmp_path):
    theirs = reference("xlstm")
    theirs.save_pretrained(tmp_path)
    module, variables = arch_jax.load_pretrained(tmp_path)
    prompt = np.random.default_rng(2).integers(0, 61, (2, 5))
    written = prompt
    with torch.no_grad():
        for _ in range(9):
            logits = theirs(torch.from_numpy(written), use_cache=False).logits[:, -1].numpy()
            written = np.concatenate([written, logits.argmax(-1)[:, None]], axis=1)
    tokens = generate(module, variables, prompt.astype(np.int32), 9, temperature=0)
    np.testing.assert_array_equal(tokens, written[:, 5:])


def test_what_a_configuration_can_not_say(tmp_path):
    theirs = {"model_type": "xlstm"} | TINY
    for change, match in (
        ({"weight_mode": "fused"}, "weight_mode"),
        ({"use_bias": True}, "use_bias"),
        ({"num_heads": 5}, "num_heads"),
        ({"gate_soft_cap": None}, "gate_soft_cap"),
        ({"gate_cap": 3.0}, "gate_cap"),
        ({"embedding_dim": 31}, "embedding_dim"),
    ):
        with pytest.raises(UsageError, match=match):
            module_of(theirs | change)
    convolved = our_language_model("mm").clone(mixer=MLSTM(heads=HEADS))
    tokens = jnp.zeros((1, 3), jnp.int32)
    with pytest.raises(UsageError, match="transformers has no model"):
        arch_jax.save_pretrained(convolved, jax.jit(convolved.init)(jax.random.key(0), tokens), tmp_path)
