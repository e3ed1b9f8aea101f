"""The recurrent encoder-decoders against the papers' equations in PyTorch: row by row, without padding or masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax import registry
from arch_jax.layers.seq2seq.scores import LocalAttention, LuongAttention
from arch_jax.ops.losses import cross_entropy

torch = pytest.importorskip("torch", reason="parity needs torch: pip install arch-jax[parity]")

LENGTHS, SOURCE, TIME = (6, 4), 6, 5


def dense(p, x):
    return x @ p["kernel"] + p.get("bias", 0)


def merged(p):
    """A layer whose inputs beside the first have matrices of their own: as if they came side by side."""
    beside = [p[name]["kernel"] for name in ("context", "fed") if name in p]
    return p | {"input": {"kernel": torch.cat([p["input"]["kernel"], *beside])}}


def gru(p, x, h):
    """Cho et al., equations 5 to 8; p holds r, z and the candidate side by side."""
    n, p = len(h), merged(p)
    heard, u = x @ p["input"]["kernel"] + p["bias"], p["recurrent"]["kernel"]
    r, z = torch.sigmoid(heard[: 2 * n] + h @ u[:, : 2 * n]).split(n)
    return z * h + (1 - z) * torch.tanh(heard[2 * n :] + (r * h) @ u[:, 2 * n :])


def over(p, xs, step=gru):
    h, out = torch.zeros(p["recurrent"]["kernel"].shape[0]), []
    for x in xs:
        h = step(p, x, h)
        out.append(h)
    return torch.stack(out)


def lstm(layers, xs, state=None):
    """torch.nn.LSTM with our parameters: (outputs, (h, c))."""
    layers = [merged(p) for p in layers]
    hidden, width = layers[0]["recurrent"]["kernel"].shape[0], xs.shape[-1]
    given = {}
    for i, p in enumerate(layers):
        given |= {f"weight_ih_l{i}": p["input"]["kernel"].T, f"weight_hh_l{i}": p["recurrent"]["kernel"].T}
        given |= {f"bias_ih_l{i}": p["bias"], f"bias_hh_l{i}": torch.zeros_like(p["bias"])}
    return torch.func.functional_call(torch.nn.LSTM(width, hidden, len(layers)), given, (xs, state))


def stack(p):
    return [p[f"layer_{i}"] for i in range(len(p))]


def words(p, table, tokens):
    return p[f"{table}_words"]["embedding"][tokens]


def maxout(t):
    return torch.stack([max_pair.max() for max_pair in t.reshape(-1, 2)])


def sutskever(p, source, target, module):
    _, v = lstm(stack(p["encoder"]), words(p, "source", source.flip(0)))
    out, _ = lstm(stack(p["decoder"]), words(p, "target", target), v)
    return dense(p["output"], out)


def cho(p, source, target, module):
    c = torch.tanh(dense(p["summary"], over(p["encoder"], words(p, "source", source))[-1]))
    h, n = torch.tanh(dense(p["beginning"], c)), len(c)
    w, w_c = p["decoder"]["input"]["kernel"], p["decoder"]["context"]["kernel"]
    u, b, logits = p["decoder"]["recurrent"]["kernel"], p["decoder"]["bias"], []
    for y in words(p, "target", target):
        of_y, of_h, of_c = y @ w + b, h @ u, c @ w_c
        r, z = torch.sigmoid((of_y + of_h + of_c)[: 2 * n]).split(n)
        h = z * h + (1 - z) * torch.tanh(of_y[2 * n :] + r * (of_h + of_c)[2 * n :])
        s = maxout(dense(p["deep"], torch.cat([h, y, c])))
        logits.append(dense(p["output"], dense(p["narrow"], s)))
    return torch.stack(logits)


def bahdanau(p, source, target, module):
    x = words(p, "source", source)
    backward = over(p["backward"], x.flip(0)).flip(0)
    h = torch.cat([over(p["forward"], x), backward], dim=-1)
    s, logits, look = torch.tanh(dense(p["beginning"], backward[0])), [], p["look"]
    for y in words(p, "target", target):
        alpha = torch.softmax(torch.tanh(s @ look["query"] + h @ look["key"]) @ look["v"], dim=0)
        context = alpha @ h
        logits.append(dense(p["output"], maxout(dense(p["deep"], torch.cat([s, y, context])))))
        s = gru(p["decoder"], torch.cat([y, context]), s)
    return torch.stack(logits)


def luong(p, source, target, module):
    h_s, state = lstm(stack(p["encoder"]), words(p, "source", source.flip(0)))
    h_s, fed, logits = h_s.flip(0), torch.zeros(module.hidden), []
    for t, y in enumerate(words(p, "target", target)):
        out, state = lstm(stack(p["decoder"]), torch.cat([y, fed])[None], state)
        h, look = out[0], p.get("look", {})
        if module.score.score == "general":
            scores = h_s @ (h @ look["kernel"])
        elif module.score.score == "dot":
            scores = h_s @ h
        else:
            both = torch.cat([h.expand(len(h_s), -1), h_s], dim=-1)
            scores = torch.tanh(both @ look["kernel"]) @ look["v"]
        place, factor = torch.arange(len(h_s)), 1.0
        if isinstance(module.score, LocalAttention):
            centre = torch.tensor(float(min(t, len(h_s) - 1)))
            if module.score.alignment == "predictive":
                centre = len(h_s) * torch.sigmoid(torch.tanh(h @ look["place_kernel"]) @ look["place_v"])
                factor = torch.exp(-((place - centre) ** 2) / (2 * (module.score.window / 2) ** 2))
            inside = (place - centre).abs() <= module.score.window
            scores = torch.where(inside, scores, -torch.inf)
        fed = torch.tanh(torch.cat([(torch.softmax(scores, dim=0) * factor) @ h_s, h]) @ p["combine"]["kernel"])
        logits.append(dense(p["output"], fed))
    return torch.stack(logits)


def pointer_generator(p, source, target, module):
    known = module.vocabulary - module.extra
    look_up = lambda tokens: words(p, "target", torch.where(tokens < known, tokens, module.unknown))
    x = look_up(source)
    forward, (h, c) = lstm([p["forward"]], x)
    backward, (h_back, c_back) = lstm([p["backward"]], x.flip(0))
    annotations = torch.cat([forward, backward.flip(0)], dim=-1)
    state = tuple(
        torch.relu(dense(p[name], torch.cat(both, dim=-1)))
        for name, both in (("reduce_h", (h, h_back)), ("reduce_c", (c, c_back)))
    )
    context, coverage, logits = torch.zeros_like(annotations[0]), torch.zeros(len(source)), []
    for y in look_up(target):
        x = dense(p["merge"], torch.cat([y, context]))
        _, state = lstm([p["decoder"]], x[None], state)
        s = torch.cat([state[1][0], state[0][0]])
        features = annotations @ p["of_annotation"]["kernel"] + dense(p["of_state"], s)
        a = torch.softmax(torch.tanh(features + coverage[:, None] * p["of_coverage"]) @ p["v"], dim=0)
        coverage, context = coverage + a, a @ annotations
        mixed = dense(p["mix"], torch.cat([state[0][0], context]))
        p_gen = torch.sigmoid(dense(p["gate"], torch.cat([context, s, x])))
        final = torch.cat([p_gen * torch.softmax(dense(p["output"], mixed), dim=-1), torch.zeros(module.extra)])
        logits.append(torch.log(final.scatter_add(0, source, (1 - p_gen) * a).clamp_min(1e-30)))
    return torch.stack(logits)


CASES = {
    "sutskever": (sutskever, "sutskever", {}),
    "cho": (cho, "cho", {}),
    "bahdanau": (bahdanau, "bahdanau", {}),
    "luong": (luong, "luong", {}),
    "luong, concat": (luong, "luong", {"score": LuongAttention("concat", hidden=9), "depth": 1}),
    "luong, local-m": (luong, "luong", {"score": LocalAttention("dot", alignment="monotonic", window=1), "depth": 1}),
    "luong, local-p": (luong, "luong", {"score": LocalAttention("general", window=2), "depth": 1}),
    "pointer-generator": (pointer_generator, "pointer-generator", {}),
}


@pytest.fixture(autouse=True)
def compiled_quickly():
    """Tiny programs, run once each: nearly all of the time would be the compiler's."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def compared(case):
    """(their logits and gradients, ours), on the same random weights and two sources of different lengths."""
    theirs, name, fields = CASES[case]
    module = registry.entry(name).tiny().clone(**fields)
    rng = np.random.default_rng(0)
    source, target, labels = (rng.integers(0, module.vocabulary, (2, n)) for n in (SOURCE, TIME, TIME))
    labels %= getattr(module, "known", module.vocabulary)
    mask = np.arange(SOURCE) < np.array(LENGTHS)[:, None]
    given = jnp.asarray(source, jnp.int32), jnp.asarray(target, jnp.int32), jnp.asarray(mask)
    params = jax.eval_shape(module.init, jax.random.key(0), *given)["params"]
    flat, structure = jax.tree.flatten(params)
    drawn = [np.float32(0.4) * rng.normal(size=leaf.shape).astype(np.float32) for leaf in flat]

    def loss(params):
        logits = module.apply({"params": params}, *given)
        return jnp.mean(cross_entropy(logits, jnp.asarray(labels))), logits

    (value, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(jax.tree.unflatten(structure, drawn))

    leaves = [torch.from_numpy(leaf).requires_grad_() for leaf in drawn]
    p = jax.tree.unflatten(structure, leaves)
    rows = [
        theirs(p, torch.from_numpy(s[:length]), torch.from_numpy(t), module)
        for s, t, length in zip(source, target, LENGTHS)
    ]
    expected = torch.stack(rows)
    their_loss = torch.nn.functional.cross_entropy(expected.flatten(0, 1), torch.from_numpy(labels).flatten())
    their_loss.backward()
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    slopes = {n: (ours, leaf.grad.numpy()) for n, ours, leaf in zip(names, jax.tree.leaves(gradients), leaves)}
    return (logits, expected.detach().numpy()), (value, their_loss.item()), slopes


@pytest.mark.parametrize("case", CASES)
def test_logits_loss_and_gradients(case):
    (logits, expected), (value, their_loss), slopes = compared(case)
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())
    assert float(value) == pytest.approx(their_loss, rel=1e-5)
    largest = max(np.abs(theirs).max() for _, theirs in slopes.values())
    for name, (ours, theirs) in slopes.items():
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * largest, err_msg=name)
        assert np.abs(theirs).max() > 1e-6 * largest, f"{name} has no gradient, so nothing was compared"
