# %% [markdown]
# # 5. Encoder and decoder
#
# Sutskever, Vinyals & Le (2014, [1409.3215](https://arxiv.org/abs/1409.3215)) and Cho et al. (2014,
# [1406.1078](https://arxiv.org/abs/1406.1078)), one vector for the whole sentence; Bahdanau, Cho & Bengio (2014,
# [1409.0473](https://arxiv.org/abs/1409.0473)), attention; Luong, Pham & Manning (2015,
# [1508.04025](https://arxiv.org/abs/1508.04025)), the form trained here; Vaswani et al. (2017,
# [1706.03762](https://arxiv.org/abs/1706.03762)), the Transformer's. Run time: <!-- run time -->
#
# <!-- about: the bottleneck, cross-attention, teacher forcing, greedy and beam decoding, translation | figure:
# alignment turning from haze to anti-diagonal; accuracy by length with and without attention -->
#
# After this lesson you can
#
# - write one step of a decoder that attends to an encoder's states, and find it in two papers;
# - tell what teacher forcing measures from what decoding does, and check when the two agree;
# - say what one fixed vector costs on long sentences, what attention costs instead, and when neither is worth it.
#
# **A question first.** One LSTM reads 4 to 12 symbols of 16 kinds; another writes them from the last to the first. All
# that passes between them is a state of 128 numbers. Twelve symbols are 48 bits, so there is room. After 800 steps of
# training, guess the share of strings without a mistake among those of 4 symbols, and among those of 12. Then let the
# decoder look back at every state of the encoder, and guess again. Which picture will its looks make?

# %%
# Installs the library where it is missing (Colab, Kaggle); elsewhere it does nothing.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("arch_jax") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "arch-jax"], check=True)

# %%
import dataclasses
import json
import tempfile
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import arch_jax

# %% [markdown]
# ## From one vector to many
#
# An encoder-decoder models a target $y$ given a source $x$, one token at a time:
#
# $$p(y \mid x) = \prod_i p(y_i \mid y_1 \dots y_{i-1}, x).$$
#
# Sutskever et al. and Cho et al. let the source in through one vector $v$, the encoder's state after the last word. It
# has the same size for 5 words and for 50: this is the **bottleneck**. Bahdanau et al. keep every state $h_j$ of the
# encoder (an *annotation*), and give each step a context of its own. In the paper's numbering, with $s_{i-1}$ the
# decoder's state,
#
# $$e_{ij} = v_a^\top \tanh(W_a s_{i-1} + U_a h_j), \qquad \alpha_{ij} = \frac{\exp e_{ij}}{\sum_k \exp e_{ik}}
# \quad (6), \qquad c_i = \sum_j \alpha_{ij} h_j \quad (5),$$
#
# and the step is $s_i = f(s_{i-1}, y_{i-1}, c_i)$, here with the gates of [lesson 4](04_recurrent.ipynb). The matrix
# $\alpha$, target by source, is the **alignment**. It is not given: it is learned from translations alone, because the
# softmax is differentiable.
#
# Luong et al. step first and look then: $e_{ij} = s_i^\top W h_j$, and $\tilde h_i = \tanh(W_c [c_i; s_i])$ both gives
# the next word's logits and is an input of the next step (*input feeding*). Which score to use, and what else attention
# can be, is the subject of [lesson 6](06_attention.ipynb).


# %%
def attend(e, h):
    """Equations (6) and (5): the weights of the source's states h, "source width", by their scores; and the context."""
    alpha = jax.nn.softmax(e)
    return alpha, alpha @ h


def bahdanau_step(p, s, y, h):
    """Looks, then steps: from the state s and the last word's vector y."""
    look, (W, C, U) = p["look"], (p["decoder"][name]["kernel"] for name in ("input", "context", "recurrent"))
    alpha, c = attend(jnp.tanh(s @ look["query"] + h @ look["key"]) @ look["v"], h)
    gates, n = y @ W + c @ C + p["decoder"]["bias"], len(s)
    r, z = jnp.split(jax.nn.sigmoid(gates[: 2 * n] + s @ U[:, : 2 * n]), 2)
    after = z * s + (1 - z) * jnp.tanh(gates[2 * n :] + (r * s) @ U[:, 2 * n :])
    t = jnp.concatenate([s, y, c]) @ p["deep"]["kernel"] + p["deep"]["bias"]
    return after, alpha, t.reshape(-1, 2).max(axis=1) @ p["output"]["kernel"] + p["output"]["bias"]


def luong_step(p, state, y, h):
    """Steps, then looks: the state is (s, the LSTM's cell, the last step's h~)."""
    (s, cell, fed), lstm = state, p["decoder"]["layer_0"]
    gates = y @ lstm["input"]["kernel"] + fed @ lstm["fed"]["kernel"] + s @ lstm["recurrent"]["kernel"] + lstm["bias"]
    i, f, g, o = jnp.split(gates, 4)
    cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
    s = jax.nn.sigmoid(o) * jnp.tanh(cell)
    alpha, c = attend(h @ (s @ p["look"]["kernel"]), h)
    fed = jnp.tanh(jnp.concatenate([c, s]) @ p["combine"]["kernel"])
    return (s, cell, fed), alpha, fed @ p["output"]["kernel"]


# %% [markdown]
# Both, beside the library's modules with the same weights: logits and alignments of every step of a target.


# %%
def compare(model, step, first):
    """The from-scratch decoder beside the module, on random weights large enough that no softmax is flat."""
    source, target = jax.random.randint(jax.random.key(0), (2, 1, 7), 0, 16)
    shapes = jax.eval_shape(model.init, jax.random.key(1), source, target)
    keys = iter(jax.random.split(jax.random.key(2), len(jax.tree.leaves(shapes))))
    variables = jax.tree.map(lambda w: jax.random.normal(next(keys), w.shape), shapes)
    call = jax.jit(lambda *given, method=None: model.apply(variables, *given, method=method), static_argnames="method")
    memory = call(source, method="encode")
    state, h = first(call(memory, None, method="start").carry), memory.annotations[0]
    p, weights, logits = variables["params"], [], []
    step = jax.jit(step)
    for token in target[0]:
        state, alpha, scores = step(p, state, p["target_words"]["embedding"][token], h)
        weights.append(alpha)
        logits.append(scores)
    # The module gets the source with padding on its right, which must change nothing.
    padded, real = jnp.pad(source, ((0, 0), (0, 3))), jnp.arange(10)[None] < 7
    alignment = call(padded, target, real, method="attention")[0]
    np.testing.assert_allclose(alignment[:, 7:], 0, atol=1e-7)
    np.testing.assert_allclose(jnp.stack(weights), alignment[:, :7], atol=2e-5)
    np.testing.assert_allclose(jnp.stack(logits), call(padded, target, real)[0], atol=2e-4)
    np.testing.assert_allclose(jnp.stack(weights).sum(axis=1), 1, atol=1e-5)
    print(f"{type(model).__name__}: largest weight on a source state {float(alignment.max()):.2f}, least "
          f"{float(alignment[:, :7].min()):.1e}")  # fmt: skip


bahdanau = arch_jax.create("bahdanau", vocabulary=18, embedding=12, hidden=16, maxout=10, **{"score.hidden": 14})
compare(bahdanau, bahdanau_step, lambda carry: carry[0][0])
luong = arch_jax.create("luong", vocabulary=18, embedding=12, hidden=16, depth=1, reverse=False)
compare(luong, luong_step, lambda carry: (carry[0][0][0][0], carry[0][0][1][0], carry[1][0]))

# %% [markdown]
# The Transformer's **cross-attention** is the same `attend`, with queries from the decoder, keys and values from the
# encoder's output, and the score $q_i^\top k_j / \sqrt d$. Nothing recurs, so all targets look at once.

# %%
cross = arch_jax.CrossAttention(heads=1)
x, memory = jax.random.normal(jax.random.key(3), (1, 5, 8)), jax.random.normal(jax.random.key(4), (1, 7, 8))
variables = cross.init(jax.random.key(5), x, memory)
variables = jax.tree.map(lambda w: 40 * w, variables)
q, k, v = (
    of[0] @ variables["params"][name]["kernel"] for of, name in ((x, "query"), (memory, "key"), (memory, "value"))
)
_, contexts = jax.vmap(attend, (0, None))(q @ k.T / jnp.sqrt(8), v)
np.testing.assert_allclose(
    contexts @ variables["params"]["output"]["kernel"], cross.apply(variables, x, memory)[0][0], rtol=1e-4, atol=1e-4
)

# %% [markdown]
# The model that is trained below, from its module tree:

# %%
arch_jax.draw("luong", vocabulary=18, embedding=64, hidden=64, depth=1)

# %% [markdown]
# ## Learning to align
#
# Reversing is the smallest translation whose word order differs. The run is that of `luong_reverse`, with a seed that
# its record does not have. A figure of an experiment is called at every evaluation with the model's variables; this
# one keeps them. The variant without attention is Sutskever et al.'s model of the same sizes: one LSTM layer of 64
# cells on either side, the same data, the same optimizer, the same steps.

# %%
kept = []


@arch_jax.component("kept", kind="figure")
@dataclasses.dataclass(frozen=True)
class Kept(arch_jax.Figure):
    """Draws nothing, and keeps the variables."""

    def __call__(self, task, variables, sampler, data, key):
        kept.append(jax.tree.map(np.asarray, variables))
        return {}


def trained(**changes):
    """A variant of `luong_reverse` with seed 17: (model, step -> variables, step -> validation metrics)."""
    kept.clear()
    experiment, _ = arch_jax.load_experiment("luong_reverse")
    experiment = dataclasses.replace(experiment, figures=(Kept(),), measures=())
    often = {"evaluate_every": 100, "checkpoint_every": 800, "optimizer.horizon": 800, "seed": 17}
    experiment = experiment.overridden({**often, **changes})
    with tempfile.TemporaryDirectory() as folder:
        outcome = arch_jax.train(experiment, folder)
        lines = [json.loads(line) for line in (outcome.path / "metrics.jsonl").read_text().splitlines()]
    names = ("accuracy", "exact", "loss")
    checks = {
        line["step"]: {name: line[f"validation/{name}"] for name in names}
        for line in lines
        if "validation/loss" in line
    }
    return experiment.model, dict(zip(checks, kept, strict=True)), checks


bottleneck = {"module": "sutskever", "vocabulary": 18, "embedding": 64, "hidden": 64, "depth": 1, "reverse": False}
bottleneck["initial_scale"] = 0.1  # as in Luong's model
attending, attending_at, attending_checks = trained(evaluate_every=50)
alone, alone_at, alone_checks = trained(model=bottleneck)
for name, checks in (("attention", attending_checks), ("one vector", alone_checks)):
    print(f"{name:10}", {step: f"{checks[step]['exact']:.1%}" for step in (100, 200, 400, 800)}, "of the strings right")

# %% [markdown]
# By length, on 4,096 new strings: a string is right if every symbol is, and the end.

# %%
START, STOP = 16, 17


def strings(count, task="reverse", **lengths):
    """Pairs of the task as arrays, by name."""
    batches = list(arch_jax.RandomPairs(task=task, validation=count, **lengths).load().validation())
    return {name: np.concatenate([batch[name] for batch in batches])[:count] for name in batches[0]}


forward = jax.jit(lambda model, *given: model.apply(*given), static_argnums=0)
test = strings(4096)
real, length = test["weights"] > 0, test["source_mask"].sum(axis=1) - 1  # the end is a token of the source, too


def right(tokens):
    """Which strings are without a mistake."""
    return np.asarray(((tokens == test["labels"]) | ~real).all(axis=1))


given = test["source"], test["target"], test["source_mask"]
forced = {
    "attention": forward(attending, attending_at[800], *given),
    "one vector": forward(alone, alone_at[800], *given),
}
lengths = np.arange(4, 13)
by_length = {
    name: np.array([right(logits.argmax(axis=-1))[length == n].mean() for n in lengths])
    for name, logits in forced.items()
}
for name, shares in by_length.items():
    print(f"{name:10}", *(f"{n}: {share:6.1%} " for n, share in zip(lengths, shares)))
assert by_length["attention"].min() > 0.97
assert by_length["one vector"][0] > 0.8  # short strings pass through one vector ...
assert by_length["one vector"][-1] < 0.1  # ... and long ones do not
assert by_length["attention"][-1] - by_length["one vector"][-1] > 0.8

# %% [markdown]
# So the bottleneck is not a matter of bits. The state has room for twelve symbols, and 800 steps don't teach the two
# networks a code that uses it. Attention needs no such code: a symbol has to be found, not stored.
#
# The run with attention is also a cell of the record, again: the prediction interval says where a further seed should
# land. It is wide, since three seeds say little about a spread.

# %%
predicted = arch_jax.load_record("luong_reverse").variant("baseline").prediction("loss", scale="log")
loss = attending_checks[800]["loss"]
print(f"seed 17: {loss:.5f} nats a token; predicted from the record: {predicted.low:.5f} to {predicted.high:.5f}")
assert predicted.contains(loss)

# %% [markdown]
# ## The figure
#
# Rows are what is written, columns what is read; each row of weights adds up to 1. The first matrix is a network as
# initialised. The printed share is the weight on the anti-diagonal, over all test strings of 12 symbols; an even
# spread would have a twelfth there. The claim is that the network learns to reverse *by* learning where to look. It
# would be refuted if the strings came out right while the matrix was still haze, or if the weights stood elsewhere.

# %%
twelve = np.flatnonzero(length == 12)[:256]
place = np.arange(12)
experiment, _ = arch_jax.load_experiment("luong_reverse")
fresh = jax.jit(experiment.model.init)(jax.random.key(17), *(array[:1] for array in given))
look = jax.jit(lambda variables, *given: attending.apply(variables, *given, method="attention"))
alignments, shares = {}, {}
for step, variables in {0: fresh, **attending_at}.items():
    inputs = [array[twelve] for array in given]
    weights = np.asarray(look(variables, *inputs))[:, :12, :12]
    alignments[step], shares[step] = weights[0], float(weights[:, place, 11 - place].mean())

shown = (0, 50, 100, 150, 800)
figure = plt.figure(figsize=(13, 7.2), layout="constrained")
above, below = figure.subfigures(2, 1, height_ratios=(1, 1.15))
symbols = ["ABCDEFGHIJKLMNOP"[token] for token in test["source"][twelve[0]][:12]]
for step, axis in zip(shown, above.subplots(1, len(shown), sharey=True)):
    image = axis.imshow(alignments[step], cmap="magma", vmin=0, vmax=1)
    axis.set_title(f"step {step}\n{shares[step]:.0%} on the anti-diagonal", fontsize=10)
    axis.set_xticks(place, symbols, fontsize=8)
    axis.set_yticks(place, symbols[::-1], fontsize=8)
    axis.set_xlabel("read")
    if step == 0:
        axis.set_ylabel("to be written")
above.colorbar(image, ax=above.axes, label="weight", shrink=0.8)

over_steps, over_lengths = below.subplots(1, 2)
for name, checks, colour in (("attention", attending_checks, "C1"), ("one vector", alone_checks, "C0")):
    steps = np.array([0, *checks])
    exact = np.array([0.0, *(found["exact"] for found in checks.values())])
    over_steps.plot(steps, 100 * exact, color=colour, marker=".")
    over_lengths.plot(lengths, 100 * by_length[name], color=colour, marker=".")
over_steps.plot(list(shares), [100 * share for share in shares.values()], color="0.5", linestyle="--")
over_steps.text(450, 103, "strings right, attention", color="C1")
over_steps.text(330, 80, "weight on the anti-diagonal", color="0.4")
over_steps.text(460, 15, "strings right, one vector", color="C0")
for step in shown:
    over_steps.axvline(step, color="0.85", linewidth=1, zorder=0)
over_steps.set(xlabel="training step", ylabel="%", ylim=(-3, 112), title="Accuracy rises with the alignment")
over_lengths.text(9.5, 103, "attention", color="C1")
over_lengths.text(8.3, 42, "one vector", color="C0")
over_lengths.set(xlabel="symbols in the string", ylabel="strings right after 800 steps, %", ylim=(-3, 112),
                 title="One vector holds short strings only")  # fmt: skip
plt.show()
print({step: f"{share:.0%}" for step, share in shares.items() if step in (0, 50, 100, 150, 200, 400, 800)})
assert abs(shares[0] - 1 / 12) < 0.01  # haze
assert shares[800] > 0.75
assert (alignments[800].argmax(axis=1) == 11 - place).mean() > 0.9  # where the drawn matrix is brightest
assert all(attending_checks[step]["exact"] < 0.5 for step in attending_checks if shares[step] < 0.5)
assert all(shares[step] > 0.6 for step in attending_checks if attending_checks[step]["exact"] > 0.9)
assert all(attending_checks[step]["exact"] > alone_checks[step]["exact"] for step in alone_checks if step >= 200)

# %% [markdown]
# ## Writing without the answer
#
# Training gives the decoder the true symbols before each one that it must write: **teacher forcing**. All losses and
# all shares above are of that kind. In use, the decoder reads what it wrote itself. **Greedy** decoding takes the
# likeliest token each time:


# %%
def greedy(model, variables, source, mask, longest=13):
    """The likeliest token after those written so far, until the end; "batch longest"."""
    written = jnp.full((len(source), longest + 1), START)
    ended = jnp.zeros(len(source), bool)
    for t in range(longest):
        token = forward(model, variables, source, written[:, :-1], mask)[:, t].argmax(axis=-1)
        written = written.at[:, t + 1].set(jnp.where(ended, STOP, token))
        ended = ended | (token == STOP)
    return written[:, 1:]


some = slice(0, 512)
source, mask = test["source"][some], test["source_mask"][some]
options = {"source_mask": mask, "start": START, "stop": STOP}
found = {}
for beams in (1, 4):
    tokens, scores = arch_jax.beam_search(alone, alone_at[800], source, 13, beams=beams, **options)
    found[beams] = np.asarray(tokens), np.asarray(scores)
assert (np.asarray(greedy(alone, alone_at[800], source, mask)) == found[1][0]).all()


def summary(tokens):
    """(share of the strings right, share of the tokens right)."""
    hits = tokens == test["labels"][some]
    return float((hits | ~real[some]).all(axis=1).mean()), float(hits[real[some]].mean())


measured = {"teacher forcing": summary(np.asarray(forced["one vector"].argmax(axis=-1))[some])}
measured |= {"greedy": summary(found[1][0]), "4 beams": summary(found[4][0])}
for name, (whole, each) in measured.items():
    print(f"one vector, {name:16} {whole:6.1%} of the strings, {each:6.1%} of the tokens")
likelier = found[4][1] - found[1][1]
print(f"log p of what was found, 4 beams less greedy: {likelier.mean():.2f} nats a string")
assert measured["teacher forcing"][0] == measured["greedy"][0]
assert measured["teacher forcing"][1] > measured["greedy"][1]
assert likelier.mean() > 0
assert measured["4 beams"][0] > measured["greedy"][0]

# %% [markdown]
# - **Whole strings agree** exactly, under teacher forcing and greedily: up to the first mistake, the decoder's own
#   symbols are the true ones.
# - **Tokens do not**: after a mistake, teacher forcing puts the decoder back on the right way, and decoding does not.
#   A loss under teacher forcing is therefore no measure of what a user gets. (Scheduled sampling trains on the
#   decoder's own words: the objective's field `teacher_forcing`.)
# - **Beam search** keeps the $k$ likeliest beginnings instead of one. It searches better: what it finds is likelier.
#   Whether likelier is also more often right is a question to the model, answered in the table above.
#
# ## What it costs
#
# Attention compares every target step with every source state: source times target. The matrix products, counted from
# the traced programs for $n$ symbols on either side, and the time of a forward pass on this machine:


# %%
def cost(model, variables, n):
    """(floating-point operations of the matrix products, milliseconds) of a forward pass with n symbols a side."""
    tokens = jnp.zeros((1, n), int)
    function = jax.jit(model.apply)
    function(variables, tokens, tokens).block_until_ready()
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        function(variables, tokens, tokens).block_until_ready()
        times.append(time.perf_counter() - begin)
    return arch_jax.count_flops(model.apply, variables, tokens, tokens).products, 1e3 * min(times)


sizes = (128, 256, 512)
costs = {
    name: [cost(model, variables, n) for n in sizes]
    for name, model, variables in (("attention", attending, attending_at[800]), ("one vector", alone, alone_at[800]))
}
for name, cells in costs.items():
    print(f"{name:10}", *(f"n={n}: {flops / 1e6:6.1f} Mflop {ms:6.2f} ms  " for n, (flops, ms) in zip(sizes, cells)))
one, many = (np.array([flops for flops, _ in costs[name]]) for name in ("one vector", "attention"))
assert 2.3 < many[-1] / many[-2] < 3
assert (one[1:] == 2 * one[:-1]).all()  # linear in the length
# What is not linear: 2 * 64 operations for each score, and as many for its share of the context.
assert (many[1:] - 2 * many[:-1] == 2 * 4 * 64 * np.array(sizes[:-1]) ** 2).all()

# %% [markdown]
# The quadratic part is small for sentences and large for books: from one length printed to the next, the
# operations of one vector double, and those with attention more than double, more so the longer the string.
#
# An encoder and a decoder are not the only way to condition on a source: a **decoder alone**
# ([lesson 2](02_transformer.ipynb)) reads source and target as one text. Two Transformers with about as many
# parameters, a source and a target of $n$ tokens:

# %%
heads = {"mixer.heads": 4, "cross.heads": 4, "feed_forward.hidden": 512}
pair = arch_jax.create("transformer-base", vocabulary=64, depth=4, width=128, dropout=0.0, **heads)
single = arch_jax.create("gpt2", vocabulary=64, depth=9, width=128, **{"mixer.heads": 4})
ratios = []
for n in (64, 512):
    half, both = (jax.ShapeDtypeStruct((1, many), int) for many in (n, 2 * n))
    operations, parameters = [], []
    for model, inputs in ((pair, (half, half)), (single, (both,))):
        shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)
        parameters.append(sum(leaf.size for leaf in jax.tree.leaves(shapes)))
        operations.append(arch_jax.count_flops(model.apply, shapes, *inputs).products)
    ratios.append(operations[1] / operations[0])
    print(f"n = {n:3}: encoder-decoder {parameters[0]:,} parameters, {operations[0] / 1e6:7.1f} Mflop; decoder alone "
          f"{parameters[1]:,}, {operations[1] / 1e6:7.1f} Mflop: {ratios[-1]:.2f} times")  # fmt: skip
    assert 0.9 < parameters[1] / parameters[0] < 1.1
assert 1.7 < min(ratios) <= max(ratios) < 2.3

# %% [markdown]
# ## Published beside measured
#
# The Transformer on the same task, reversed and copied; and translation, German to English, by Bahdanau et al.'s model.

# %%
transformer = arch_jax.load_record("transformer_copy")
for label in ("baseline", "task=reverse"):
    exact = transformer.variant(label).interval("exact")
    print(f"{label:14} {100 * exact.mean:.1f} % of the strings right")
    assert exact.mean > 0.99
transformer

# %%
translation, notes = arch_jax.load_record("multi30k_seq2seq"), arch_jax.load_experiment("multi30k_seq2seq")[1].__doc__
lines = [line.strip() for line in notes.splitlines() if "BLEU  " in line and "perplexity" in line]
print(*lines, sep="\n")
once = {line.split()[0]: float(line.split()[1]) for line in lines if "and" not in line}  # without attention: one seed
of_cho, of_bahdanau = translation.figures
with_attention = min(translation.variant("baseline").values("bleu").values())  # Bahdanau's model, the weakest seed
assert once.keys() == {"Sutskever", "Cho"}
assert once["Sutskever"] < once["Cho"] < of_cho.published.value < of_bahdanau.published.value < with_attention
translation

# %% [markdown]
# A reference implementation, bentrevett/pytorch-seq2seq, reports 13.8 BLEU for Sutskever's model, 20.6 for Cho's and
# 28.3 for Bahdanau's. Ours, printed above from the experiment's file, keep the order ([lesson 6](06_attention.ipynb)
# has Luong's), and attention gains much; but the gain flatters attention. Both models without it are *weaker* here than
# the reference's, and the one with it stronger. The settings differ (half the units, byte pairs instead of words, beam
# search), and the two weak ones are of one seed each and stand in no record.
#
# **Choose an encoder-decoder** where the source is complete before the first word is written, and belongs to one side:
# translation, [summarisation](https://arxiv.org/abs/1704.04368), speech to text. With equal parameters it costs about
# half of a decoder alone, since each token passes one half of the layers only (the counts above); the source is read
# once, in both directions, and all beams share it.
#
# **Choose attention over one vector** wherever sources are longer than a few symbols (the right panel). One vector is
# enough where it is what you want: a summary of fixed size, to be compared or clustered; or where memory must not grow
# with the source.
#
# **Choose a decoder alone** ([lesson 2](02_transformer.ipynb)) where no line divides source from target, as in dialogue
# and text that continues: with an encoder-decoder, a source that grows by a word is to be encoded again.
#
# ## How to read the paper
#
# Bahdanau et al. (2014):
#
# - equations (5) and (6) are the two lines of `attend`; appendix A.1.2's score is its first argument in
#   `bahdanau_step`, and appendix A.2.2's step is the rest of that function;
# - figure 3, four alignments, is the upper row of the figure, on real sentences: French and English share most of their
#   order, so theirs run along the diagonal and turn where adjectives do. Ours is the other diagonal by design;
# - figure 2, BLEU by the length of the sentence, falls for RNNencdec and stays for RNNsearch: the right panel. There,
#   too, the gap opens with the length;
# - the ablation is RNNencdec beside RNNsearch in table 1 (for training sentences of up to 50 words, on all test
#   sentences: 17.82 and 26.75 BLEU): `trained(model=bottleneck)` beside `trained()`.
#
# In Sutskever et al., section 3.3 (the source from its end) is exercise 2. In Vaswani et al., cross-attention is the
# first point of section 3.2.3, and the cell with `CrossAttention`.
#
# ## Exercises
#
# **1. Change a number.** Train with `data.task="copy"`. Which diagonal appears, and is it there sooner? 150 steps
# suffice.
#
# <details><summary>Solution</summary>
#
# The main diagonal. Nothing in the model knows about an order, so no diagonal is the easier one for `attend`. The
# states do: the encoder's last state, from which the decoder begins, knows most about the last symbol, which is the
# first to be written when reversing.
#
# </details>

# %% tags=["solution"]
_, copying_at, copying_checks = trained(**{"data.task": "copy", "steps": 150, "evaluate_every": 50})
pairs = strings(64, task="copy", shortest=12)
weights = look(copying_at[150], pairs["source"], pairs["target"], pairs["source_mask"])
main, other = (float(weights[:, place, columns].mean()) for columns in (place, 11 - place))
print(f"copying, step 150: {main:.0%} of the weight on the main diagonal, {other:.0%} on the other")
for step in (50, 100, 150):
    print(f"step {step}: copied {copying_checks[step]['exact']:.0%}, reversed {attending_checks[step]['exact']:.0%}")
assert main > 0.6
assert other < 0.1

# %% [markdown]
# **2. Change code.** Sutskever et al. read the source from its last word to its first, and report that it helps much
# (their section 3.3; test perplexity 5.8 to 4.7, BLEU 25.9 to 30.6). Write that as a change to the source tokens, with
# padding left on the right, and show that it is the field `reverse`. Should it help here? Train 300 steps with it.
#
# <details><summary>Solution</summary>
#
# Each row is reversed among its real tokens. It hurts here. What counts is the lag between a symbol read and the same
# one written: in translation, where both orders agree, reading from the end brings the *beginnings* close together.
# Here the target is reversed already, and the last symbol read is the first written; reading from the end makes every
# lag as long as the string. To copy with a reversed source is the very problem that `alone` was trained on.
#
# </details>


# %% tags=["solution"]
def from_the_end(source, mask):
    """Each row's real tokens from the last to the first."""
    turned = source.copy()
    for row, n in enumerate(mask.sum(axis=1)):
        turned[row, :n] = source[row, :n][::-1]
    return turned


source, target, mask = (array[:32] for array in given)
field = forward(alone.clone(reverse=True), alone_at[800], source, target, mask)
np.testing.assert_allclose(forward(alone, alone_at[800], from_the_end(source, mask), target, mask), field, atol=1e-5)
_, _, turned_checks = trained(model={**bottleneck, "reverse": True}, steps=300, evaluate_every=300)
for name, checks in (("from its start", alone_checks), ("from its end", turned_checks)):
    print(f"source read {name:15} {checks[300]['accuracy']:.1%} of the symbols right after 300 steps")
assert alone_checks[300]["accuracy"] - turned_checks[300]["accuracy"] > 0.1

# %% [markdown]
# **3. Open.** Does a decoder that has learned to look need a *mixture* of states? Replace the softmax of `attend` by
# the one state with the highest score, first after training, then during it.
#
# <details><summary>Hint</summary>
#
# After training it is one line in `attend`: decode with `luong_step` and the variables `attending_at[800]`, and compare
# by length. The last matrix of the figure lets you guess. In training, the choice of one state has no gradient. Xu et
# al. ([1502.03044](https://arxiv.org/abs/1502.03044)) draw it and use REINFORCE; a window around a predicted place
# (`score=local_attention` in the record of `luong_reverse`) is a compromise.
#
# </details>
#
# ## Summary
#
# An encoder-decoder reads a source completely and then writes. Through one vector, strings of 4 symbols pass and
# strings of 12 do not, with the same training that is more than enough with attention. Attention averages the
# encoder's states with weights that a softmax makes of scores; nobody shows it the order, and it finds the
# anti-diagonal as the strings become right. Teacher forcing agrees with greedy decoding on whole strings, not on
# tokens; beam search finds likelier strings. The price is source times target.
#
# **Sources**: [1409.3215](https://arxiv.org/abs/1409.3215), [1406.1078](https://arxiv.org/abs/1406.1078),
# [1409.0473](https://arxiv.org/abs/1409.0473), [1508.04025](https://arxiv.org/abs/1508.04025),
# [1706.03762](https://arxiv.org/abs/1706.03762).
#
# **Next**: [lesson 6](06_attention.ipynb), the kinds of attention and their costs.
