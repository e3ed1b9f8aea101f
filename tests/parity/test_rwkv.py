"""RWKV-4 against transformers, there and back, and RWKV-7 against its equations in numpy, token by token."""

import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import arch_jax
from arch_jax.errors import UsageError
from arch_jax.layers.mixers.rwkv4 import RWKV4, RWKV4Channel
from arch_jax.layers.mixers.rwkv7 import RWKV7
from arch_jax.registry import entry

torch = pytest.importorskip("torch", reason="parity needs torch: pip install arch-jax[parity]")
transformers = pytest.importorskip("transformers", reason="parity needs transformers: pip install arch-jax[parity]")

TINY = {"vocab_size": 61, "hidden_size": 16, "num_hidden_layers": 2}
CASES = {
    "as published": TINY,
    "inner sizes of their own, tied": TINY | {
        "attention_hidden_size": 12, "intermediate_size": 40, "tie_word_embeddings": True, "num_hidden_layers": 3,
        "rescale_every": 0,
    },
}  # fmt: skip
TOKENS = np.random.default_rng(0).integers(0, 61, size=(2, 13))
OURS = jnp.asarray(TOKENS, jnp.int32)


def reference(case):
    """A tiny model of theirs with every parameter away from its initial value."""
    torch.manual_seed(0)
    model = transformers.RwkvForCausalLM(transformers.RwkvConfig(**CASES[case]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return model.eval()


def logits_of(model, tokens=TOKENS):
    with torch.no_grad():
        return model(torch.from_numpy(tokens), use_cache=False).logits.numpy()


def close(ours, theirs, rtol=1e-5):
    np.testing.assert_allclose(ours, theirs, atol=rtol * np.abs(theirs).max())


@pytest.mark.parametrize("case", CASES)
def test_there_and_back(case, tmp_path):
    theirs = reference(case)
    theirs.save_pretrained(tmp_path / "theirs")  # before its first evaluation, which rescales its weights in place
    expected = logits_of(theirs)
    module, variables = arch_jax.load_pretrained(tmp_path / "theirs")
    y = jax.jit(module.apply)(variables, OURS)
    close(y, expected)
    arch_jax.save_pretrained(module, variables, tmp_path / "ours")
    again = transformers.RwkvForCausalLM.from_pretrained(tmp_path / "ours").eval()
    close(logits_of(again), expected)
    assert arch_jax.load_pretrained(tmp_path / "ours")[0] == module


def test_decoding():
    """Their state and ours, token by token. One row: of more, theirs adds each one's last token to all of them."""
    theirs = reference("as published")
    module, variables = loaded(theirs)
    state, other = module.initial_state(1, 13), None
    step = jax.jit(module.apply)
    for t in range(13):
        token = TOKENS[:1, t : t + 1]
        y, state = step(variables, jnp.asarray(token, jnp.int32), None, state)
        with torch.no_grad():
            out = theirs(torch.from_numpy(token), state=other, use_cache=True)
        other = out.state
        close(y, out.logits.numpy())
    close(state.layers[0].m, other[4][:, :, 0].numpy())


def loaded(model):
    """Theirs as ours, with a parameter tree for each layer."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return arch_jax.load_pretrained(folder, scan=False)


def test_gradients():
    theirs = reference("as published").train()  # no dropout, and nothing rescaled
    module, variables = loaded(theirs)
    weights = np.random.default_rng(1).normal(size=(2, 13, 61)).astype(np.float32)
    (theirs(torch.from_numpy(TOKENS), use_cache=False).logits * torch.from_numpy(weights)).sum().backward()
    params = jax.jit(jax.grad(lambda v: jnp.sum(module.apply(v, OURS) * weights)))(variables)["params"]
    for i, block in enumerate(theirs.rwkv.blocks):
        ours, channel = (params["stack"][f"layer_{2 * i + j}"]["mixer"] for j in range(2))
        pairs = [(ours["decay"], block.attention.time_decay), (ours["bonus"], block.attention.time_first)]
        for name in ("key", "value", "receptance", "output"):
            pairs.append((ours[name]["kernel"].T, getattr(block.attention, name).weight))
        for name in ("key", "value", "receptance"):
            pairs.append((ours[f"mix_{name}"], getattr(block.attention, f"time_mix_{name}")))
            pairs.append((channel[name]["kernel"].T, getattr(block.feed_forward, name).weight))
        for mine, parameter in pairs:
            close(mine, parameter.grad.numpy().reshape(mine.shape), rtol=1e-4)


def test_it_starts_like_theirs():
    """Decay, mixes and their dependence on the layer; their own copy sets u to 1, which the authors' code does not."""
    theirs = transformers.RwkvModel(transformers.RwkvConfig(**TINY | {"num_hidden_layers": 4}))
    module = entry("rwkv4-169m").tiny().clone(depth=8)
    params = jax.jit(module.init)(jax.random.key(0), OURS[:1, :2])["params"]["stack"]["layers"]
    for i, block in enumerate(theirs.blocks):
        ours, channel = (jax.tree.map(lambda leaf, i=i: leaf[i], params[f"block_{j}"]["mixer"]) for j in range(2))
        np.testing.assert_allclose(ours["decay"], block.attention.time_decay.detach(), atol=1e-5)
        for name in ("key", "value", "receptance"):
            theirs_mix = getattr(block.attention, f"time_mix_{name}").detach().numpy()
            np.testing.assert_allclose(ours[f"mix_{name}"], theirs_mix[0, 0], atol=1e-6)
        np.testing.assert_allclose(channel["mix_key"], block.feed_forward.time_mix_key.detach()[0, 0], atol=1e-6)
        np.testing.assert_allclose(ours["bonus"][:3], np.log(0.3) + np.array([0, 0.5, -0.5]), atol=1e-6)


def test_what_it_refuses(tmp_path):
    module = entry("rwkv4-169m").tiny()
    odd = module.clone(depth=3, scan=False)
    with pytest.raises(UsageError, match="transformers has no model for this module"):
        arch_jax.save_pretrained(odd, {}, tmp_path)
    swapped = module.clone(mixer=(RWKV4Channel(), RWKV4()))
    with pytest.raises(UsageError, match="transformers has no model for this module"):
        arch_jax.save_pretrained(swapped, {}, tmp_path)
    x = jnp.zeros((2, 3, 8))
    params = RWKV4().init(jax.random.key(0), x)
    with pytest.raises(UsageError, match="was given a ShiftState as its state; expected a RWKV4State"):
        RWKV4().apply(params, x, None, RWKV4Channel().initial_state(2, 3, 8))
    with pytest.raises(UsageError, match="head_size 64 of rwkv7 does not divide the width 24; the nearest below is 24"):
        RWKV7().initial_state(1, 1, 24)
    with pytest.raises(UsageError, match="chunk of rwkv7 is 0"):
        RWKV7(chunk=0)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def layer_norm(p, x):
    return (x - x.mean()) / np.sqrt(x.var() + 1e-5) * p["scale"] + p["bias"]


def time_mixing(p, x, last, s, first):
    """One token of 2503.14456's appendix on time mixing; s is "heads values keys"."""
    heads, size, _ = s.shape
    x_r, x_w, x_k, x_v, x_a, x_g = (x + p[f"mix_{name}"] * (last - x) for name in "rwkvag")
    low = lambda name, x, f=lambda a: a: f(x @ p[f"{name}_down"]["kernel"]) @ p[f"{name}_up"]["kernel"]
    w = np.exp(-np.exp(-0.5) * sigmoid(low("decay", x_w, np.tanh) + p["decay_bias"]))
    a, g = sigmoid(low("rate", x_a) + p["rate_bias"]), low("gate", x_g, sigmoid)
    r, k, v = (h @ p[n]["kernel"] for h, n in ((x_r, "receptance"), (x_k, "key"), (x_v, "value")))
    first = v if first is None else first
    if "value_bias" in p:
        v = v + (first - v) * sigmoid(low("value", x_v) + p["value_bias"])
    kappa = (k * p["removal"]).reshape(heads, size)
    kappa = kappa / np.linalg.norm(kappa, axis=1, keepdims=True)
    k = k * (1 + (a - 1) * p["key_rate"])
    r, w, k, v, a = (array.reshape(heads, size) for array in (r, w, k, v, a))
    y = np.zeros((heads, size))
    for h in range(heads):
        s[h] = s[h] @ (np.diag(w[h]) - np.outer(kappa[h], a[h] * kappa[h])) + np.outer(v[h], k[h])
        y[h] = s[h] @ r[h]
        y[h] = (y[h] - y[h].mean()) / np.sqrt(y[h].var() + 64e-5) * p["norm_scale"][h] + p["norm_bias"][h]
        y[h] += (r[h] * k[h] * p["bonus"][h]).sum() * v[h]
    return (y.ravel() * g) @ p["output"]["kernel"], first


def test_rwkv7_is_its_equations():
    """The whole model, with the first layer's values in the second and third."""
    module = entry("rwkv7-0.1b").tiny().clone(depth=3)
    tokens = OURS[:, :7] % module.vocabulary
    params = jax.jit(module.init)(jax.random.key(0), tokens)["params"]
    params = jax.tree.map(lambda p: p + 0.3 * jax.random.normal(jax.random.key(1), p.shape), params)
    y = jax.jit(module.apply)({"params": params}, tokens)
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    for row, out in zip(tokens, y):
        last = np.zeros((3, 2, module.width))
        s = np.zeros((3, module.width // 8, 8, 8))
        for token, logits in zip(row, out):
            x, first = layer_norm(p["first_norm"], p["embedding"]["embedding"][token]), None
            for i in range(3):
                layer = p[f"layer_{i}"]
                z = layer_norm(layer["mixer_norm"], x)
                dx, first = time_mixing(layer["mixer"], z, last[i, 0], s[i], first)
                last[i, 0], x = z, x + dx
                z = layer_norm(layer["channel_norm"], x)
                k = (z + layer["channel"]["mix_k"] * (last[i, 1] - z)) @ layer["channel"]["key"]["kernel"]
                last[i, 1], x = z, x + np.maximum(k, 0) ** 2 @ layer["channel"]["value"]["kernel"]
            close(logits, layer_norm(p["final_norm"], x) @ p["logits"]["kernel"], rtol=2e-5)


def test_rwkv7_decodes_what_it_computes():
    module = entry("rwkv7-0.1b").tiny()
    prompt = OURS[:, :5] % module.vocabulary
    variables = jax.jit(module.init)(jax.random.key(1), prompt)
    variables = jax.tree.map(lambda p: p + 0.3 * jax.random.normal(jax.random.key(2), p.shape), variables)
    tokens, apply = jnp.pad(prompt, ((0, 0), (0, 4))), jax.jit(module.apply)
    for t in range(5, 9):
        tokens = tokens.at[:, t].set(jnp.argmax(apply(variables, tokens)[:, t - 1], axis=-1))
    np.testing.assert_array_equal(arch_jax.generate(module, variables, prompt, 4, temperature=0), tokens[:, 5:])
