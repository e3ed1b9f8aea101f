# %% [markdown]
# # 6. Attention
#
# Bahdanau, Cho & Bengio (2014, [1409.0473](https://arxiv.org/abs/1409.0473)), the additive score; Luong, Pham & Manning
# (2015, [1508.04025](https://arxiv.org/abs/1508.04025)), the multiplicative ones and local attention; Vaswani et al.
# (2017, [1706.03762](https://arxiv.org/abs/1706.03762)), several heads. How it is computed: Child et al. (2019,
# [1904.10509](https://arxiv.org/abs/1904.10509)), sparse patterns; Katharopoulos et al. (2020,
# [2006.16236](https://arxiv.org/abs/2006.16236)), linear attention; Dao et al. (2022,
# [2205.14135](https://arxiv.org/abs/2205.14135)), FlashAttention; Shazeer (2019,
# [1911.02150](https://arxiv.org/abs/1911.02150)) and Ainslie et al. (2023,
# [2305.13245](https://arxiv.org/abs/2305.13245)), shared keys and values. Run time: <!-- run time -->
#
# <!-- about: one equation; additive and multiplicative scores; heads and masks; flash, sparse, linear, grouped-query |
# figure: scores compared; strings right by length with and without attention; time, memory and recall by length -->
#
# After this lesson you can
#
# - write Bahdanau's and Luong's attention as one equation with different scores, and say what the choice changes;
# - compute softmax attention without ever holding its matrix, and show that the result is the same;
# - tell which of dense, windowed and linear attention is exact, which is cheap, and what the cheap ones forget.
#
# **A question first.** A network with attention is trained to reverse strings of 4 to 12 symbols until it makes no
# mistake. What share of strings does it get right at 14 symbols, and at 20? And a second guess. The softmax of 16,384
# scores needs their largest and the sum over all of them. How many of the scores must be in memory at the same time?

# %%
# Installs the library where it is missing (Colab, Kaggle); elsewhere it does nothing.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("arch_jax") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "arch-jax"], check=True)

# %%
import dataclasses
import functools
import json
import re
import tempfile
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import arch_jax

jax.config.update("jax_default_matmul_precision", "float32")  # as on CPUs, so that equalities hold on accelerators too

# %% [markdown]
# ## One equation
#
# A *query* $q$ asks, *keys* $k_j$ answer, and *values* $v_j$ are averaged:
#
# $$\alpha_j = \operatorname{softmax}_j\bigl(\mathrm{score}(q, k_j)\bigr), \qquad \mathrm{out} = \sum_j \alpha_j v_j .$$
#
# Scores are compared for one query at a time, so only their differences count. A mask is a set of pairs whose score is
# $-\infty$: padding, the future, what lies outside a window. Where queries, keys and values come from is another
# matter. In **cross-attention** the query is a decoder's, the rest an encoder's ([lesson 5](05_encoder_decoder.ipynb));
# in **self-attention** all three are projections of one sequence ([lesson 2](02_transformer.ipynb)).
#
# In recurrent translation, $s$ is the decoder's state, and an encoder's state $h_j$ is both key and value:
#
# | score | | parameters |
# |---|---|---|
# | additive (Bahdanau et al., appendix A.1.2) | $v^\top \tanh(W s + U h_j)$ | $W$, $U$, $v$ |
# | dot (Luong et al., section 3.1) | $s^\top h_j$ | none |
# | general | $s^\top W h_j$ | $W$ |
# | concat | $v^\top \tanh(W [s; h_j])$ | $W$, $v$ |
#
# **Local** attention (section 3.2) sees $D$ places on either side of a place $p$ only. *Monotonic*, $p$ is the number
# of the step. *Predictive*, $p = S\,\sigma(v_p^\top \tanh(W_p s))$ for a source of $S$ words, and the weights are also
# multiplied by a bell curve around $p$ with $\sigma = D/2$: it is the bell that gives $p$ a gradient. (A score that
# looks at $s$ alone, *location* in the paper, has one output for each place of the source, and so a longest source.)


# %%
def attend(scores, values, visible=True):
    """(outputs, weights) of the queries in the rows of `scores`."""
    weights = jax.nn.softmax(jnp.where(visible, scores, -jnp.inf))
    return weights @ values, weights


def additive(p, s, h):
    return jnp.tanh((s @ p["query"])[:, None] + (h @ p["key"])[None]) @ p["v"]


def dot(p, s, h):
    return s @ h.T


def general(p, s, h):
    return s @ p["kernel"] @ h.T


def concat(p, s, h):
    both = jnp.concatenate(jnp.broadcast_arrays(s[:, None], h[None]), axis=-1)
    return jnp.tanh(both @ p["kernel"]) @ p["v"]


def local(p, s, h, D=3):
    """Predictive local attention, with the score "general"."""
    place = len(h) * jax.nn.sigmoid(jnp.tanh(s @ p["place_kernel"]) @ p["place_v"])[:, None]
    distance = jnp.arange(len(h)) - place
    _, weights = attend(general(p, s, h), h, jnp.abs(distance) <= D)
    weights = weights * jnp.exp(-(distance**2) / (2 * (D / 2) ** 2))
    return weights @ h, weights


# %% [markdown]
# Each beside the library's, with the same weights. They are parts of the models `bahdanau` and `luong`. The library
# gets five more keys, which are padding and must change nothing. The parameters are drawn large, because with small
# ones every softmax is flat, and all scores look alike.

# %%
SMALL = {"vocabulary": 18, "embedding": 8, "hidden": 16}
multiplicative = {name: {"module": "luong_attention", "score": name} for name in ("dot", "general", "concat")}
parts = {"additive": arch_jax.create("bahdanau", **SMALL, **{"score.hidden": 14}).score}
window = {"local": {"module": "local_attention", "window": 3}}
window["monotonic"] = window["local"] | {"alignment": "monotonic"}
for name, score in (multiplicative | window).items():
    parts[name] = arch_jax.create("luong", **SMALL, depth=1, score=score).score

rng = np.random.default_rng(0)
s, h = (jnp.asarray(rng.standard_normal((n, 16)), jnp.float32) for n in (9, 20))
mine = {"additive": additive, "dot": dot, "general": general, "concat": concat, "monotonic": general}
for name, part in parts.items():
    shapes = jax.eval_shape(part.init, jax.random.key(0), s[None], h[None])
    p = {key: rng.standard_normal(w.shape).astype(np.float32) for key, w in shapes.get("params", {}).items()}
    if name == "local":
        context, weights = local(p, s, h)
    else:
        distance = np.subtract.outer(np.arange(9), np.arange(20))  # monotonic: each query's place is its number
        near = np.abs(distance) <= 3 if name == "monotonic" else True
        context, weights = attend(mine[name](p, s, h), h, near)
    padded = jnp.concatenate([h, 9 * jnp.ones((5, 16))])
    theirs, their_weights = part.apply({"params": p}, s[None], padded[None], jnp.arange(25)[None] < 20)
    np.testing.assert_allclose(their_weights[0, :, :20], weights, atol=1e-5)
    np.testing.assert_allclose(theirs[0], context, rtol=1e-4, atol=1e-4)
    assert (their_weights[..., 20:] == 0).all()
    total = weights.sum(axis=1)
    assert (total < 1).any() if name == "local" else jnp.allclose(total, 1)
    count = sum(leaf.size for leaf in jax.tree.leaves(p))
    print(f"{name:9} {count:5} parameters; a query's largest weight is {weights.max(axis=1).mean():.2f} on average")
    if name == "concat":  # the same function as the additive score: W [s; h] is a product with s plus one with h
        split = {"query": p["kernel"][:16], "key": p["kernel"][16:], "v": p["v"]}
        np.testing.assert_allclose(additive(split, s, h), concat(p, s, h), rtol=1e-4, atol=1e-4)

# %% [markdown]
# So *concat* is the additive score, split in another way. What sets Bahdanau et al. and Luong et al. apart is not that
# score but when the decoder looks: with the state before its step, or after it ([lesson 5](05_encoder_decoder.ipynb)).
#
# ## Several heads
#
# A softmax averages: its weights are positive and add up to 1. Whatever one head finds, only a *mixture* passes on.
# Two heads keep two finds apart, and their output matrices can treat each in a way of its own. The smallest example is
# the difference of both neighbours, $x_{t+1} - x_{t-1}$. With weights written by hand, two heads of the library's
# `Attention` compute it exactly. One head, with the best weights on both neighbours and the best matrix behind them,
# explains at most half of its variance.

# %%
places, content = jnp.eye(8), jax.random.normal(jax.random.key(3), (8, 8))
kernel = lambda above, below: {"kernel": jnp.concatenate([above, below])}  # its rows for the content, and for the place
nothing = jnp.zeros((8, 16))
by_hand = {
    "query": kernel(nothing, 100 * jnp.hstack([jnp.roll(places, -1, axis=1), jnp.roll(places, 1, axis=1)])),
    "key": kernel(nothing, jnp.hstack([places, places])),
    "value": kernel(jnp.hstack([places, places]), nothing),  # `places` is the identity matrix
    "output": kernel(jnp.hstack([-places, 0 * places]), jnp.hstack([places, 0 * places])),  # head 1, and head 2
}
two_heads = arch_jax.Attention(heads=2, causal=False)
difference, _ = two_heads.apply({"params": by_hand}, jnp.hstack([content, places])[None])
np.testing.assert_allclose(difference[0, :, :8], jnp.roll(content, -1, 0) - jnp.roll(content, 1, 0), atol=1e-4)

before, after = rng.normal(size=(2, 20_000))
explained = []
for share in np.linspace(0, 1, 21):
    mixture = share * before + (1 - share) * after
    explained.append(np.corrcoef(mixture, after - before)[0, 1] ** 2)
print(f"variance explained by one head: {max(explained):.0%} at best, {explained[10]:.0%} by an even look at both")
assert 0.45 < max(explained) < 0.55

# %% [markdown]
# ## Four ways to compute it
#
# From here on, queries, keys and values of a head are "time d", and the score is $q \cdot k/\sqrt d$. One function
# holds what all ways share. It also covers **grouped queries**: with fewer key heads than query heads, several query
# heads read the same keys and values. One key head for all is *multi-query* attention.


# %%
def layer(core, p, x, heads=4):
    """A self-attention layer: `core(q, k, v)` for each head, side by side, then the output's projection."""
    apart = lambda y: jnp.moveaxis(y.reshape(len(x), -1, x.shape[-1] // heads), 1, 0)
    q, k, v = (apart(x @ p[name]["kernel"]) for name in ("query", "key", "value"))
    k, v = (jnp.repeat(y, heads // len(y), axis=0) for y in (k, v))  # query heads that share a key head
    mixed = jnp.moveaxis(jax.vmap(core)(q, k, v), 0, 1)
    return mixed.reshape(len(x), -1) @ p["output"]["kernel"]


def dense(q, k, v, visible=None):
    """The whole matrix at once; causal unless told otherwise."""
    visible = np.tri(len(q), dtype=bool) if visible is None else visible
    return attend(q @ k.T / np.sqrt(q.shape[-1]), v, visible)[0]


x = 3 * jax.random.normal(jax.random.key(4), (192, 64))  # large: with small scores every softmax is flat


def check(core, module):
    """Asserts that `layer(core, ...)` equals a module of the library with its weights."""
    variables = jax.jit(module.init)(jax.random.key(5), x[None])
    expected = jax.jit(module.apply)(variables, x[None])[0][0]
    mine = jax.jit(functools.partial(layer, core))(variables["params"], x)
    np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=1e-4)


Attention = functools.partial(arch_jax.Attention, heads=4, initial_std=None)
check(dense, Attention(implementation="reference"))
for kv_heads in (4, 2, 1):
    check(dense, Attention(kv_heads=kv_heads))
check(functools.partial(dense, visible=True), Attention(causal=False))

# %% [markdown]
# ### Flash: the same numbers, without the matrix
#
# Softmax seems to need a whole row: the largest score, so that nothing overflows, and the sum. Both can be kept up to
# date while the keys pass by in blocks (*online softmax*). With $m$ the largest score so far, $\ell$ the sum (`total`)
# and $o$ the unfinished output, a block of scores $s$ with values $V$ gives
#
# $$m' = \max(m, \max s), \qquad \ell' = e^{m - m'} \ell + \sum_j e^{s_j - m'}, \qquad
#   o' = e^{m - m'} o + e^{s - m'} V ,$$
#
# and after the last block the output is $o/\ell$. The factor $e^{m-m'}$ corrects what was summed under a smaller
# maximum. Nothing is approximated, and of $n^2$ scores one block exists at a time.


# %%
def one_block(query, keys):
    """The outputs of a block of queries, over all blocks of keys."""
    q, i = query

    def update(carry, block):
        (m, total, o), (k, v, j) = carry, block
        s = jnp.where(j <= i[:, None], q @ k.T / jnp.sqrt(q.shape[-1]), -jnp.inf)
        m_new = jnp.maximum(m, s.max(axis=1))
        weights, rescale = jnp.exp(s - m_new[:, None]), jnp.exp(m - m_new)
        total, o = rescale * total + weights.sum(axis=1), rescale[:, None] * o + weights @ v
        return (m_new, total, o), None

    start = jnp.full(len(q), -jnp.inf), jnp.zeros(len(q)), jnp.zeros((len(q), keys[1].shape[-1]))
    (_, total, o), _ = jax.lax.scan(update, start, keys)
    return o / total[:, None]


def flash(q, k, v, block=64, rows=one_block):
    """Causal softmax attention in memory that grows with the length."""
    place = jnp.arange(len(q))
    q, k, v, place = (y.reshape(-1, block, *y.shape[1:]) for y in (q, k, v, place))
    return jax.lax.map(lambda query: rows(query, (k, v, place)), (q, place)).reshape(-1, v.shape[-1])


for block in (16, 64, 192):  # the result does not depend on the block
    check(functools.partial(flash, block=block), Attention(implementation="xla"))
q, k, v = jax.random.normal(jax.random.key(6), (3, 256, 16))
np.testing.assert_allclose(flash(1000 * q, k, v), dense(1000 * q, k, v), rtol=1e-3, atol=1e-3)
assert jnp.isinf(jnp.exp(1000 * q @ k.T)).any()  # where the exponential by itself overflows

# %% [markdown]
# ### Windows and patterns: a part of the matrix
#
# A **window** lets a token see itself and the $w - 1$ before it. It is dense attention with a mask, and blocks outside
# it are never computed. What a layer cannot see may come through the next: the reach grows by $w - 1$ a layer
# ([lesson 2](02_transformer.ipynb) shows it in a Jacobian). **Strided** attention (Child et al.) sees the last $l$
# tokens and every $l$-th one before. Any token is then two hops away: within its stride to the right place, then in
# strides. With $l \approx \sqrt n$, that costs $n^{3/2}$ pairs.

# %%
n, stride, window = 192, 14, 27
distance = np.subtract.outer(np.arange(n), np.arange(n))
masks = {
    "window": (distance >= 0) & (distance < window),
    "strided": (distance >= 0) & ((distance < stride) | (distance % stride == 0)),
    "dense": distance >= 0,
}
strided = {"module": "attention", "heads": 4, "initial_std": None, "pattern": {"module": "strided", "stride": stride}}
check(functools.partial(dense, visible=masks["window"]), Attention(window=window))
check(functools.partial(dense, visible=masks["strided"]), arch_jax.create("gpt", mixer=strided).mixer)
for name, mask in masks.items():
    hops, reach = mask.astype(int), []
    for _ in range(8):
        reach.append(int((hops[-1] > 0).sum()))  # tokens that can influence the last one
        hops = (hops @ mask > 0).astype(int)
    print(f"{name:8} {mask.sum():6} pairs; the last token is reached by {reach} of {n} tokens after 1, 2, ... layers")
    if name == "window":
        assert reach == [min(n, 1 + depth * (window - 1)) for depth in range(1, 9)]
    if name == "strided":
        assert reach[0] < n == reach[1]

# %% [markdown]
# ### Linear attention: another matrix
#
# Replace $e^{q \cdot k/\sqrt d}$ by a product of features $\phi(q) \cdot \phi(k)$, with
# $\phi(x) = \mathrm{elu}(x) + 1 > 0$. Matrix products may then be bracketed the other way,
#
# $$\bigl(\phi(Q)\,\phi(K)^\top\bigr) V = \phi(Q)\,\bigl(\phi(K)^\top V\bigr),$$
#
# and the right side has no matrix of $n \times n$. With a causal mask, $\phi(K)^\top V$ becomes a running sum $S$: the
# layer is a recurrence with a state of one matrix a head. ([Lesson 10](10_state_spaces.ipynb) has recurrences that
# forget, and [lesson 13](13_emerging.ipynb) the family: RetNet, the delta rule.)


# %%
def phi(x):
    return jax.nn.elu(x) + 1


def quadratic(q, k, v):
    """Every pair at once."""
    weights = np.tri(len(q)) * (phi(q) @ phi(k).T)
    return weights @ v / weights.sum(axis=1, keepdims=True)


def linear(q, k, v):
    """One token at a time: S is the sum of phi(k) v^T, and z that of phi(k)."""

    def step(state, token):
        (S, z), (q, k, v) = state, token
        S, z = S + jnp.outer(phi(k), v), z + phi(k)
        return (S, z), phi(q) @ S / (phi(q) @ z)

    start = jnp.zeros((k.shape[-1], v.shape[-1])), jnp.zeros(k.shape[-1])
    return jax.lax.scan(step, start, (q, k, v))[1]


for core in (quadratic, linear):
    check(core, arch_jax.LinearAttention(heads=4, initial_std=None))
from_softmax = float(jnp.abs(linear(q, k, v) - dense(q, k, v)).max())
print(f"linear attention differs from softmax attention by up to {from_softmax:.2f}: it is another function")
assert from_softmax > 0.1

# %% [markdown]
# ## Training: with and without attention
#
# The task of `luong_reverse`: write 4 to 12 symbols of 16 kinds from the last to the first. Three models with 64 units
# get the same 800 steps. `bahdanau` is drawn below. `cho` has the same gated units, and its decoder sees one vector of
# the source at every step: what Bahdanau et al. compared with. `dot` is a cell of the record, with a seed that it does
# not have.

# %%
UNITS = {"vocabulary": 18, "embedding": 64, "hidden": 64, "maxout": 32, "initial_std": 0.1}
score = {"module": "additive_attention", "hidden": 64, "initial_std": 0.1}
arch_jax.draw("bahdanau", **UNITS, score=score)

# %%
record = arch_jax.load_record("luong_reverse")
dot_recorded = record.variant("score=luong_attention(score=dot)")


def trained(**changes):
    """`luong_reverse` with changes and seed 17: (model, variables, metrics of the validation, (steps, losses))."""
    experiment, _ = arch_jax.load_experiment("luong_reverse")
    experiment = dataclasses.replace(experiment, figures=(), measures=()).overridden({"seed": 17, **changes})
    with tempfile.TemporaryDirectory() as folder:
        outcome = arch_jax.train(experiment, folder)
        lines = [json.loads(line) for line in (outcome.path / "metrics.jsonl").read_text().splitlines()]
    curve = np.array([(line["step"], line["loss"]) for line in lines if "loss" in line]).T
    return experiment.model, outcome.state.evaluated, outcome.validation, curve


runs = {
    "Bahdanau": trained(model={"module": "bahdanau", **UNITS, "score": score}),
    "Luong, dot": trained(**dot_recorded.changes),
    "no attention": trained(model={"module": "cho", **UNITS, "rank": None}),
}
loss, predicted = runs["Luong, dot"][2]["loss"], dot_recorded.prediction("loss", scale="log")
print(f"dot, seed 17: {loss:.5f} nats a token; predicted from the record: {predicted.low:.5f} to {predicted.high:.5f}")
assert predicted.contains(loss)

# %% [markdown]
# [Lesson 5](05_encoder_decoder.ipynb) showed that one vector fails *within* the lengths of training. Here the test goes
# on to 24 symbols. A string is right if all of its symbols are, and the end.

# %%
test = list(arch_jax.RandomPairs(task="reverse", shortest=4, length=24, validation=2048).load().validation())
test = {name: np.concatenate([batch[name] for batch in test]) for name in test[0]}
length, real = test["source_mask"].sum(axis=1) - 1, test["weights"] > 0  # the end is a token of the source, too
lengths = np.arange(4, 25)


def right_by_length(model, variables):
    """The share of the strings of each length that are right."""
    logits = jax.jit(model.apply)(variables, test["source"], test["target"], test["source_mask"])
    right = np.asarray(((logits.argmax(axis=-1) == test["labels"]) | ~real).all(axis=1))
    return np.array([right[length == n].mean() for n in lengths])


def assert_attention(shares):
    """The claim: every length of training is solved."""
    worst = lengths[:9][shares[:9].argmin()]
    assert shares[:9].min() > 0.97, f"of {worst} symbols, {shares[:9].min():.0%} of the strings are right"


by_length = {name: right_by_length(model, variables) for name, (model, variables, *_) in runs.items()}
for name, shares in by_length.items():
    print(f"{name:12}", *(f"{n}: {share:4.0%} " for n, share in zip(lengths, shares) if n % 2 == 0))
assert_attention(by_length["Bahdanau"])
assert_attention(by_length["Luong, dot"])
try:
    assert_attention(by_length["no attention"])
except AssertionError as failure:
    print(f"without attention: {failure}")
else:
    raise AssertionError("without attention, one vector must not hold 12 symbols")
assert by_length["no attention"][0] > 0.8  # short strings do pass
for name in ("Bahdanau", "Luong, dot"):
    assert by_length[name][lengths >= 20].max() < 0.2  # and far beyond the training, nothing does

# %% [markdown]
# Attention removes the bottleneck, not the dependence on what was seen in training. The decoder's state has to say
# *which* place comes next, and of places beyond the twelfth it has learned nothing. How soon that tells is a matter of
# the model: at 14 symbols the first question has two answers, which are printed above. That it tells is not: at 20, the
# answer is next to none.
#
# ### The scores, from the record
#
# Three seeds of each score in the same model. "Settled" is the step after which no logged loss is above 0.1.

# %%
scores = {"general": record.variant("baseline"), "dot": dot_recorded}
scores |= {name: record.variant(f"score=luong_attention(score={name})") for name in ("concat",)}
scores |= {"local": record.variant("score=local_attention(window=2)")}
settled = {}
for name, variant in scores.items():
    curves = variant.curve("training loss")
    settled[name] = {seed: int(steps[losses > 0.1][-1]) for seed, (steps, losses) in curves.items()}
    shares = ", ".join(f"{share:.0%}" for share in variant.values("exact").values())
    print(f"{name:8} {variant.parameters:7,} parameters; strings right: {shares}; settled: {[*settled[name].values()]}")
early = {name: np.mean(list(found.values())) for name, found in settled.items()}
for name in ("general", "dot", "concat"):
    assert min(scores[name].values("exact").values()) > 0.99
ends = {name: np.mean([losses[-1] for _, losses in scores[name].curve("training loss").values()]) for name in early}
assert max(ends[name] for name in ("general", "dot", "concat")) < 2 * min(ends.values())  # they end alike
assert early["dot"] < early["general"]
assert early["dot"] < early["concat"]
local_shares = list(scores["local"].values("exact").values())
assert min(local_shares) < 0.9 < max(local_shares)
local_interval, general_interval = (scores[name].prediction("loss") for name in ("local", "general"))
assert local_interval.high - local_interval.low > 100 * (general_interval.high - general_interval.low)

# %% [markdown]
# The global scores end alike (Bahdanau et al.'s model is lower, in the figure below; it differs in more than its score,
# and ran once). Without parameters of its own, *dot* settles first: it needs no more than that states of
# encoder and decoder resemble each other. The predictive window is the risky one. Its bell has a gradient only where
# it stands, so a run whose $p$ begins in the wrong place may stay there, and one of the seeds did.
#
# ## The figure
#
# Left: the record's runs, and the live one of Bahdanau et al.'s model. Middle: the claim would be refuted by a curve
# of "no attention" that stays up within the shaded lengths, or by one with attention that falls there. Right:
# translation, which would refute it by a model without attention on a level with those that have it.

# %%
translation, notes = arch_jax.load_record("multi30k_seq2seq"), arch_jax.load_experiment("multi30k_seq2seq")[1].__doc__
published = {"Sutskever": 13.8, "Cho": 20.6, "Bahdanau": 28.3}  # bentrevett/pytorch-seq2seq, 1 to 3, of 512 units
(luong,) = [one for one in translation.variants if "luong" in one.label]
attending = {"Bahdanau": translation.variant("baseline").values("bleu"), "Luong": luong.values("bleu")}
# One seed each, from the experiment's file.
found = re.findall(r"^ +(Sutskever|Cho) +([\d.]+) BLEU", notes, re.MULTILINE)
alone = {name: {0: float(value)} for name, value in found}
bleu = alone | dict(sorted(attending.items(), key=lambda pair: np.mean([*pair[1].values()])))
means = {name: np.mean([*values.values()]) for name, values in bleu.items()}
for name, values in bleu.items():
    beside = f"published {published[name]:.1f}" if name in published else "nothing published"
    seeds = ", ".join(f"{value:.1f}" for value in values.values())
    print(f"{name:10} {means[name]:5.1f} BLEU ({seeds}), {beside}")
weaker = {name: published[name] - means[name] for name in alone}
told = " and ".join(f"{name}'s by {gap:.1f} BLEU" for name, gap in weaker.items())
print(f"The models without attention are weaker here than published: {told}. That flatters what attention gains.")
assert min(weaker.values()) > 0
assert set(alone) == {"Sutskever", "Cho"}
assert min(min(values.values()) for values in attending.values()) > max(means[name] for name in alone)
assert min(attending["Bahdanau"].values()) > published["Bahdanau"]

# %% [markdown]
# Both models with attention pass all that is reached without it, with every seed. Between them lies more than the
# score: Bahdanau et al.'s encoder reads the sentence in both directions, so that each of its states knows what follows,
# while Luong et al.'s is one LSTM in one direction; and the one attends before its recurrent step, the other after it.

# %%
figure, (curves, reach, translated) = plt.subplots(1, 3, figsize=(13.5, 4.4), layout="constrained")
colours = {"general": "C0", "dot": "C1", "concat": "C2", "local": "C3"}
for name, variant in scores.items():
    for steps, losses in variant.curve("training loss").values():
        curves.semilogy(steps, losses, color=colours[name], linewidth=1, alpha=0.8)
curves.semilogy(*runs["Bahdanau"][3], color="black", linewidth=2)
worst_seed = min(scores["local"].values("exact"), key=scores["local"].values("exact").get)
worst_steps, worst_losses = scores["local"].curve("training loss")[worst_seed]
curves.text(800, 2.2 * worst_losses[-1], "local, one seed of three", color="C3", ha="right")
named = {"general": 0.13, "concat": 0.075, "dot": 0.043, "local": 0.025}
for name, height in named.items():
    curves.text(800, height, name if name != "local" else "local, the others", color=colours[name], ha="right")
curves.text(10, 2.5e-4, "Bahdanau's\nmodel, live", color="black")
curves.set(title="Global scores end alike", xlabel="training step", ylabel="training loss, nats a token")

labels = {"Bahdanau": ("black", 14.4, 70), "Luong, dot": ("C1", 7.9, 88), "no attention": ("0.4", 4.3, 30)}
reach.axvspan(4, 12, color="0.93", zorder=0)
reach.text(8, 105, "lengths of training", ha="center", color="0.4")
for name, shares in by_length.items():
    colour, at, height = labels[name]
    reach.plot(lengths, 100 * shares, color=colour, marker=".")
    reach.text(at, height, name, color=colour)
reach.set(title="Attention holds what it was trained on", xlabel="symbols in the string", ylabel="strings right, %",
          ylim=(-3, 113))  # fmt: skip

for i, (name, mean) in enumerate(means.items()):
    translated.barh(i, mean, color="C0" if name in attending else "0.7")
    translated.plot(list(bleu[name].values()), [i] * len(bleu[name]), "o", color="black", markersize=4)
    if name in published:
        translated.plot([published[name]] * 2, [i - 0.4, i + 0.4], color="C3", linewidth=2)
translated.text(published["Sutskever"] + 0.6, 0, "published", color="C3", va="center")
translated.set(title="German to English: blue has attention", xlabel="BLEU (dots: seeds)")
translated.set_yticks(range(len(means)), list(means))
plt.show()

# %% [markdown]
# ## What it costs
#
# ### Scores
#
# Dot and general are matrix products. The additive score needs a $\tanh$ of every pair for every hidden unit, and that
# much memory: temporary memory according to XLA, for a source and a target of 512.


# %%
def temporaries(function, *shapes):
    """MiB of temporary memory of the compiled function; nothing is run."""
    compiled = jax.jit(function).lower(*shapes).compile()
    return compiled.memory_analysis().temp_size_in_bytes / 2**20


abstract = jax.ShapeDtypeStruct((1, 512, 16), jnp.float32)
score_memory = {}
for name in ("additive", "concat", "general", "dot"):
    variables = jax.eval_shape(parts[name].init, jax.random.key(0), abstract, abstract)
    score_memory[name] = temporaries(parts[name].apply, variables, abstract, abstract)
    print(f"{name:9} {score_memory[name]:6.1f} MiB")
assert min(score_memory["additive"], score_memory["concat"]) > 5 * max(score_memory["general"], score_memory["dot"])

# %% [markdown]
# ### Length
#
# One causal layer of width 64 with four heads, forward. Operations are counted from the traced program; memory is what
# XLA plans, so that 16,384 tokens can be asked for without being run; time is measured here and now.

# %%
ways = {"dense": Attention(implementation="reference"), "window 256": Attention(window=256)}
ways |= {"linear": arch_jax.LinearAttention(heads=4, initial_std=None)}
parameters = ways["dense"].init(jax.random.key(0), jnp.zeros((1, 8, 64)))["params"]  # all have the same
functions = {name: lambda p, x, of=of: of.apply({"params": p}, x[None])[0][0] for name, of in ways.items()}
functions |= {"flash, ours": functools.partial(layer, functools.partial(flash, block=256))}
measured = {}
for name, function in functions.items():
    for n in (1024, 2048, 4096, 16384):
        shape = jax.ShapeDtypeStruct((n, 64), jnp.float32)
        compiled = jax.jit(function).lower(parameters, shape).compile()
        cell = {"MiB": compiled.memory_analysis().temp_size_in_bytes / 2**20}
        cell["Mflop"] = arch_jax.count_flops(function, parameters, shape).products / 1e6
        if n <= 4096:
            tokens, times = jnp.asarray(rng.standard_normal((n, 64)), jnp.float32), []
            for _ in range(3):
                begin = time.perf_counter()
                compiled(parameters, tokens).block_until_ready()
                times.append(1e3 * (time.perf_counter() - begin))
            cell["ms"] = min(times)
        measured[name, n] = cell
for name in functions:
    for n in (1024, 4096, 16384):
        cell = measured[name, n]
        took = f"{cell['ms']:8.1f} ms" if "ms" in cell else ""
        print(f"{name:12} {n:6,} tokens {cell['Mflop']:9.0f} Mflop {cell['MiB']:8.1f} MiB {took}")


def growth(name, quantity, first, last):
    """The power of the length by which a quantity grows from one length to another."""
    return np.log(measured[name, last][quantity] / measured[name, first][quantity]) / np.log(last / first)


assert measured["flash, ours", 4096]["Mflop"] == measured["dense", 4096]["Mflop"]  # not one product is saved
assert growth("dense", "MiB", 4096, 16384) > 1.9
for name in ("flash, ours", "window 256", "linear"):
    assert growth(name, "MiB", 4096, 16384) < 1.2
    assert measured[name, 16384]["MiB"] < 0.1 * measured["dense", 16384]["MiB"]
assert growth("dense", "Mflop", 4096, 16384) > 1.8
for name in ("window 256", "linear"):
    assert growth(name, "Mflop", 4096, 16384) < 1.1

# %% [markdown]
# The second guess of the beginning: one block of scores at a time is enough. Flash computes exactly the products that
# dense attention computes. Where it is faster all the same (look at the times printed), its blocks stay in the cache,
# while the matrix has to travel through memory. That is the paper's point, made there for GPUs. For training, forward
# and backward, the committed table has the library's attention in blocks beside others:

# %%
training = arch_jax.load_table("mixers_by_length")
print(training.title)
for name in ("attention", "latent_attention", "linear_attention", "performer", "linformer"):
    cells = {n: training[name][n] for n in (1024, 4096, 16384) if n in training[name]}
    print(f"{name:17}", *(f"{n:6,}: {c['milliseconds']:6.1f} ms {c['MiB']:6.1f} MiB " for n, c in cells.items()))
grown = {name: training[name][4096]["milliseconds"] / training[name][1024]["milliseconds"] for name in training}
assert grown["attention"] > 10 > 6 > max(grown["linear_attention"], grown["performer"], grown["linformer"])
assert training["attention"][4096]["MiB"] < 4 * training["attention"][1024]["MiB"]  # in blocks: not squared

# %% [markdown]
# ### Recall
#
# What does linear attention give up? Store $n$ pairs of a random key and a random value, of 32 numbers each, and ask
# for every key again; a recall counts if the output is nearest to its own value. Softmax can be made as sharp as needed
# by scaling the keys. The state $S$ holds $32 \times 32$ numbers for any $n$. For fairness, the best of six scales is
# taken for each. A window of 64 has forgotten all but the last 64 pairs.


# %%
def recalled(weights_of, n, d=32, scales=(0.5, 1, 2, 4, 8, 16)):
    """The share of n stored pairs that is recalled, over at least 512 pairs, with the best scale of the keys."""
    draw = np.random.default_rng(n)
    shares = dict.fromkeys(scales, 0.0)
    draws = -(-512 // n)
    for _ in range(draws):
        keys, values = draw.standard_normal((2, n, d))
        values = values / np.linalg.norm(values, axis=1, keepdims=True)
        for scale in scales:
            found = weights_of(scale * keys) @ values
            shares[scale] += ((found @ values.T).argmax(axis=1) == np.arange(n)).mean() / draws
    return max(shares.values())


def by_softmax(keys):
    scores = keys @ keys.T / np.sqrt(keys.shape[1])
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def by_features(keys):
    features = np.where(keys > 0, keys + 1, np.exp(np.minimum(keys, 0)))  # phi; a factor of a row changes no ranking
    return features @ features.T


np.testing.assert_allclose(by_features(np.asarray(k)), phi(k) @ phi(k).T, rtol=1e-4)
pairs = 2 ** np.arange(2, 11)
recall = {"softmax": [recalled(by_softmax, n) for n in pairs], "linear": [recalled(by_features, n) for n in pairs]}
recall["window 64"] = [min(1, 64 / n) for n in pairs]
for name, shares in recall.items():
    print(f"{name:10}", *(f"{n}: {share:4.0%} " for n, share in zip(pairs, shares)))
assert min(recall["softmax"]) > 0.99
assert recall["linear"][0] > 0.9
assert recall["linear"][-1] < 0.1

# %% [markdown]
# The keys are random. Keys with orthogonal features would not interfere, but among vectors of 32 numbers no more than
# 32 are orthogonal. Better features raise the limit; that there is one is the state's fixed size.

# %%
figure, axes = plt.subplots(1, 3, figsize=(13.5, 4.2), layout="constrained")
shades = {"dense": "C0", "flash, ours": "C1", "window 256": "C2", "linear": "C3"}
for axis, quantity, unit, sizes in (
    (axes[0], "ms", "milliseconds, forward", (1024, 2048, 4096)),
    (axes[1], "MiB", "temporary memory, MiB", (1024, 2048, 4096, 16384)),
):
    for name, colour in shades.items():
        axis.loglog(sizes, [measured[name, n][quantity] for n in sizes], color=colour, marker="o", markersize=4)
    axis.set_xticks(sizes, [f"{n:,}" for n in sizes])
    axis.minorticks_off()
    axis.set(xlabel="tokens", ylabel=unit, xlim=(900, sizes[-1] * 2.6 if quantity == "ms" else sizes[-1] * 5))
    heights = sorted((np.log(measured[name, sizes[-1]][quantity]), name) for name in shades)
    low, high = np.log(axis.get_ylim())
    at = -np.inf
    for height, name in heights:  # labels that would overlap are moved up
        at = max(height, at + 0.07 * (high - low))
        axis.text(1.12 * sizes[-1], np.exp(at), name, color=shades[name], va="center")
axes[0].set_title("Time")
axes[1].set_title("Memory: only dense is quadratic")
for name, colour in (("softmax", "C0"), ("linear", "C3"), ("window 64", "C2")):
    axes[2].semilogx(pairs, 100 * np.array(recall[name]), color=colour, marker="o", markersize=4, base=2)
axes[2].text(64, 103, "softmax, dense or flash", color="C0", ha="center")
axes[2].text(300, 30, "window 64", color="C2")
axes[2].text(5, 40, "linear", color="C3")
axes[2].set(title="Recall", xlabel="pairs stored (heads of 32)", ylabel="recalled, %", ylim=(-3, 112))
plt.show()

# %% [markdown]
# The three panels together are the trade. Flash keeps the curve of softmax in the right panel and gives up the square
# in memory alone. Window and linear attention give up the square in time as well, and pay on the right: the window by
# age, linear attention by number. The claim would be refuted by a way that is linear in time and stays up there.
#
# ### Writing
#
# When a decoder writes, every token reads the keys and values of all before it, so that memory traffic sets the pace.
# Sharing them among query heads shrinks the cache. The sizes are those of Llama 2 7B at 8,192 tokens, in float32.

# %%
cache = {}
changes = {"32 key heads": {"mixer.kv_heads": 32}, "8, grouped": {"mixer.kv_heads": 8}}
changes |= {"1, multi-query": {"mixer.kv_heads": 1}, "32, window 1,024": {"mixer.kv_heads": 32, "mixer.window": 1024}}
changes |= {"linear": {"mixer": arch_jax.LinearAttention(heads=32)}}
for name, fields in changes.items():
    model = arch_jax.create("llama2-7b", **fields)
    state = jax.eval_shape(functools.partial(model.initial_state, 1, 8192))
    floats = [leaf for leaf in jax.tree.leaves(state.layers) if leaf.dtype == jnp.float32]
    cache[name] = sum(4 * leaf.size for leaf in floats) / 2**20
    print(f"{name:17} {cache[name]:8.1f} MiB a sequence")
assert cache["32 key heads"] == 4 * cache["8, grouped"] == 32 * cache["1, multi-query"]
assert cache["32, window 1,024"] == cache["32 key heads"] / 8
decoding = arch_jax.load_table("decoding_recurrent")
print(decoding.title)
for name in ("attention", "latent_attention", "linear_attention"):
    print(f"{name:17}", *(f"{n:6,} tokens: {decoding[name][n]['milliseconds']:.2f} ms " for n in (0, 4096, 16384)))
assert decoding["attention"][16384]["milliseconds"] > 3 * decoding["attention"][0]["milliseconds"]
assert decoding["linear_attention"][16384]["milliseconds"] < 1.5 * decoding["linear_attention"][0]["milliseconds"]

# %% [markdown]
# ## Published beside measured

# %%
record

# %%
translation

# %%
recalling = arch_jax.load_record("mqar")
assert recalling.figures[0].verdict == "reproduced"
recalling

# %% [markdown]
# The last record is recall as a trained task (Arora et al., [2312.04927](https://arxiv.org/abs/2312.04927)): softmax
# attention, at a size where the paper's figure 2 has it at 100 %.
#
# **Choose a score**: dot products, scaled ([lesson 2](02_transformer.ipynb) says why), because they are matrix
# products; the record shows no loss by it. The additive score where query and key differ in kind and there are few of
# them; its memory is in the first table of costs.
#
# **Choose softmax, by flash**, whenever the square in time can be paid. It is exact, and it recalls (right panel).
# There is no reason to hold the matrix, except to look at it.
#
# **Choose a window** where what matters is near, and some dense layers among the windows where it is not always.
# **Choose linear attention** where the length is large and what must be kept is small (right panel), or where writing
# must cost the same at every length (the last table). **Don't choose either** to copy or look up much text.
#
# **Choose grouped queries** for every decoder that will write: the cache above shrinks by the ratio. Llama 3.1 has 8
# key heads for 32 query heads.
#
# **Choose no attention** where a summary of fixed size is what you want ([lesson 5](05_encoder_decoder.ipynb)).
#
# ## How to read the papers
#
# - **Bahdanau et al.**: appendix A.1.2 is `additive`, equations (5) and (6) are `attend`. Figure 2, BLEU by length, is
#   our middle panel; its RNNsearch-30, trained on sentences of up to 30 words, falls behind RNNsearch-50 beyond them.
#   RNNencdec is "no attention"; table 1 is the ablation.
# - **Luong et al.**: section 3.1 has the scores, section 3.2 local attention: equation (9) is `place`, equation (10)
#   the line with the bell. Table 4 is the ablation of scores, our left panel. They found dot good globally and general
#   better locally, and got no good results with concat. In the record, concat is as good as the rest: a task of one
#   minute does not decide it.
# - **Vaswani et al.**: equation (1) is `dense`; section 3.2.2 on heads ("averaging inhibits this") is the cell of the
#   two neighbours.
# - **Dao et al.**: algorithm 1 is `one_block` and `flash` with its loops exchanged; theorem 1 (the products, and linear
#   extra memory) is the table of costs; figure 3 the first two panels. Algorithm 4, the backward pass, recomputes the
#   scores: exercise 2.
# - **Katharopoulos et al.**: equations (4) to (6) are the two bracketings, (7) is `phi`; section 3.4, Transformers are
#   RNNs, is `linear`; figure 1 has time and memory by length.
# - **Child et al.**: figure 3 draws the patterns; section 4.2 is the cell of the masks.
# - **Ainslie et al.**: figure 2 is the line with `jnp.repeat`.
#
# ## Exercises
#
# **1. Change a number.** Until how many pairs does linear attention recall 80 %, with heads of 16, 32 and 64 numbers?
# Guess how the limit grows with the head, before you call `recalled(by_features, n, d=...)`.
#
# <details><summary>Solution</summary>
#
# About in proportion to $d$, although the state has $d \times d$ numbers. All pairs are read out together, and what
# the others add to the wanted value grows with their number; more dimensions make two random keys less alike. Features
# of more dimensions than $d$ do that, too (Performer has them), at the price of a larger state.
#
# </details>

# %% tags=["solution"]
limit = {d: max(n for n in range(2, 41, 2) if recalled(by_features, n, d) >= 0.8) for d in (16, 32, 64)}
print({f"heads of {d}": f"{n} pairs" for d, n in limit.items()})
assert limit[16] < limit[32] < limit[64] < 64

# %% [markdown]
# **2. Change code.** Differentiate `flash`. By itself, JAX keeps every block's weights for the backward pass, so that
# the square of the length is back. Compare the temporary memory of the gradient at 1,024 and 4,096 tokens, and repair
# it in one place.
#
# <details><summary>Solution</summary>
#
# `rows=jax.checkpoint(one_block)` keeps the inputs of a block of queries and computes its scores again when its
# gradient is due: more operations, less memory. FlashAttention's backward pass is this, with the saved $m$ and $\ell$,
# which spare it the second search for the maximum.
#
# </details>


# %% tags=["solution"]
def gradient(core):
    return jax.jit(jax.grad(lambda qkv: jnp.sum(jax.vmap(core)(*qkv) ** 2)))


qkv = jax.random.normal(jax.random.key(8), (3, 1, 256, 16))
repaired = functools.partial(flash, rows=jax.checkpoint(one_block))
np.testing.assert_allclose(gradient(repaired)(qkv), gradient(dense)(qkv), rtol=1e-3, atol=1e-4)
grown = {}
for name, core in (("flash", flash), ("repaired", repaired)):
    sizes = [temporaries(gradient(core), jax.ShapeDtypeStruct((3, 1, n, 16), jnp.float32)) for n in (1024, 4096)]
    grown[name] = sizes[1] / sizes[0]
    print(f"gradient of {name:9} {sizes[0]:6.1f} MiB at 1,024 tokens, {sizes[1]:6.1f} MiB at 4,096")
assert grown["flash"] > 10
assert grown["repaired"] < 6

# %% [markdown]
# **3. Open.** What lets a model with attention reverse strings longer than any in its training?
#
# <details><summary>Hint</summary>
#
# The middle panel says that content alone does not. For copying, monotonic local attention knows the next place from
# the step: `model={..., "score": {"module": "local_attention", "alignment": "monotonic"}}` with `data.task="copy"`, and
# `right_by_length` on strings of that task. Reversing needs the length of the source as well. A score that adds a term
# for the place relative to the last one looked at is another way (Chorowski et al.,
# [1506.07503](https://arxiv.org/abs/1506.07503)). Take at least three seeds before you believe a difference.
#
# </details>
#
# ## Summary
#
# Attention is a softmax over scores and an average by its weights; additive, dot and general differ in the score, and
# where the task is small they end alike. It removes the bottleneck within the lengths of training, and did not carry
# beyond them. Flash computes the same numbers in blocks and needs no square in memory; windows compute a part of the
# pairs; linear attention is another function, with a state of fixed size that can hold only so many pairs. Sharing
# keys and values among heads makes the cache of a decoder smaller by the same factor.
#
# **Sources**: the papers above, and Milakov & Gimelshein (2018, [1805.02867](https://arxiv.org/abs/1805.02867)) for the
# online softmax, Beltagy et al. (2020, [2004.05150](https://arxiv.org/abs/2004.05150)) for windows with global tokens,
# Choromanski et al. (2020, [2009.14794](https://arxiv.org/abs/2009.14794)) for Performer's features.
#
# **Next**: [lesson 10](10_state_spaces.ipynb), state spaces.
