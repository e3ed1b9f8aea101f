# %% [markdown]
# # 2. The Transformer
#
# Papers: Vaswani et al. 2017, *Attention Is All You Need* ([1706.03762](https://arxiv.org/abs/1706.03762)). Radford et
# al. 2018 and 2019, *GPT* and *GPT-2*. Devlin et al. 2018, *BERT* ([1810.04805](https://arxiv.org/abs/1810.04805)).
# Raffel et al. 2020, *T5* ([1910.10683](https://arxiv.org/abs/1910.10683)). Su et al. 2021, *RoFormer*
# ([2104.09864](https://arxiv.org/abs/2104.09864)). Elhage et al. 2021, *A Mathematical Framework for Transformer
# Circuits*. Olsson et al. 2022, *In-context Learning and Induction Heads*
# ([2209.11895](https://arxiv.org/abs/2209.11895)). Kaplan et al. 2020 ([2001.08361](https://arxiv.org/abs/2001.08361))
# and Hoffmann et al. 2022 ([2203.15556](https://arxiv.org/abs/2203.15556)) on scaling laws.
#
# Run time: <!-- run time -->
#
# <!-- about: self-attention, heads, positions, encoder-decoder, GPT, BERT, T5, scaling laws | figure: causality as a
# triangle of gradients; the induction head appearing -->
#
# After this lesson you can
#
# 1. write multi-head attention with a causal mask and rotary positions in 30 lines, and show that it is right;
# 2. read off a Transformer's Jacobian which token can influence which, and tell GPT from BERT by it;
# 3. find the heads of a trained model that do a given computation, and test by intervention that they do it.
#
# **A question first.** A decoder reads 16 random symbols and then the same 16 again, beginning anywhere in the run
# and wrapping around. In the repetition each next symbol is determined: it is the one that followed the present
# symbol the first time. Attention compares tokens by their content, but the token that is wanted has another content
# than the present one; only its *predecessor* is equal. Write down two guesses before you read on: how many layers
# are needed, and does the loss fall gradually or all at once?

# %%
# Installs the library where it is missing (Colab, Kaggle); elsewhere it does nothing.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("arch_jax") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "arch-jax"], check=True)

# %%
import contextlib
import dataclasses
import functools
import io
import json
import math
import os
import re
import tempfile
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import arch_jax

jax.config.update("jax_default_matmul_precision", "float32")  # as on CPUs, so that equalities hold on accelerators too

# %% [markdown]
# ## The equations
#
# Each token $x_t$ of width $w$ is projected to a query, a key and a value for each of $h$ heads of size $d = w/h$.
# Head $i$ mixes the values by weights that depend on queries and keys (Vaswani et al., equation 1):
#
# $$ q_t = W^Q_i x_t, \quad k_s = W^K_i x_s, \quad v_s = W^V_i x_s, \qquad
#    a_{ts} = \operatorname{softmax}_s\!\Big(\frac{q_t \cdot k_s}{\sqrt d} + m_{ts}\Big), \qquad
#    y_t = W^O \operatorname{concat}_i \sum_s a_{ts} v_s . $$
#
# The causal mask $m_{ts}$ is $0$ for $s \le t$ and $-\infty$ for $s > t$; in an encoder $m = 0$. If the entries of
# $q$ and $k$ are independent with variance 1, $q \cdot k$ has variance $d$: the factor $1/\sqrt d$ keeps the softmax
# away from saturation, where its gradient vanishes.
#
# Rotary positions (Su et al., equation 34) turn pair $(j, j + d/2)$ of every query and key by the angle $t\,\theta_j$
# with $\theta_j = 10000^{-2j/d}$. (The paper pairs neighbours; that is a permutation of the dimensions.) A product of
# two rotated vectors depends on the difference of their positions alone: $(R_t q) \cdot (R_s k) = q \cdot R_{s-t} k$.


# %%
def rotate(x):
    """Queries or keys "time heads d", each pair (j, j + d/2) turned by the angle t * 10000^(-2j/d)."""
    half = x.shape[-1] // 2
    angle = jnp.arange(len(x))[:, None, None] * 10_000.0 ** (-jnp.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * jnp.cos(angle) - b * jnp.sin(angle), a * jnp.sin(angle) + b * jnp.cos(angle)], -1)


def attention_weights(parameters, x, heads, causal=True, rotary=True):
    """a, "heads time time", of one sequence x, "time width"."""
    q, k = ((x @ parameters[name]["kernel"]).reshape(len(x), heads, -1) for name in ("query", "key"))
    if rotary:
        q, k = rotate(q), rotate(k)
    scores = jnp.einsum("thd,shd->hts", q, k) / math.sqrt(q.shape[-1])
    if causal:
        scores = jnp.where(jnp.tril(jnp.ones((len(x), len(x)), bool)), scores, -jnp.inf)
    return jax.nn.softmax(scores)


def multi_head(parameters, x, heads, causal=True, rotary=True):
    """y, "time width"."""
    v = (x @ parameters["value"]["kernel"]).reshape(len(x), heads, -1)
    mixed = jnp.einsum("hts,shd->thd", attention_weights(parameters, x, heads, causal, rotary), v)
    return mixed.reshape(len(x), -1) @ parameters["output"]["kernel"]


# %% [markdown]
# The library's layer on the same weights gives the same numbers, with and without mask, with and without rotation.
# The inputs are three times as large as a norm would leave them: with small scores the softmax is flat, and a wrong
# scale or angle would hardly show.

# %%
x = 3 * jax.random.normal(jax.random.key(0), (2, 40, 64))
for causal in (True, False):
    for rope in (arch_jax.RoPE(), None):
        layer = arch_jax.Attention(heads=4, causal=causal, rope=rope, initial_std=None)
        variables = layer.init(jax.random.key(1), x)
        expected, _ = layer.apply(variables, x)
        settings = {"heads": 4, "causal": causal, "rotary": rope is not None}
        mine = jax.vmap(functools.partial(multi_head, variables["params"], **settings))(x)
        np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=1e-4)
        print(settings, f"largest difference {abs(mine - expected).max():.1e}")

# %% [markdown]
# ### Positions
#
# Without a mask and without positions, attention is a function of a *set*: permuted inputs give permuted outputs.
# Positions come in three ways. Sinusoidal vectors are added to the embeddings (Vaswani et al., section 3.5); their
# products depend on the distance alone, since $\cos(a)\cos(b) + \sin(a)\sin(b) = \cos(a - b)$. Learned vectors are a
# table of as many rows as the longest sequence (GPT, BERT); beyond it there is nothing. Rotary positions act inside
# attention and leave the embeddings alone. T5's learned bias by distance is the fourth way, in the next section.

# %%
layer = arch_jax.Attention(heads=4, causal=False, initial_std=None)
variables = layer.init(jax.random.key(1), x)
order = jax.random.permutation(jax.random.key(2), x.shape[1])
permuted, _ = layer.apply(variables, x[:, order])
np.testing.assert_allclose(permuted, layer.apply(variables, x)[0][:, order], rtol=1e-4, atol=1e-4)
rotary_layer = layer.clone(rope=arch_jax.RoPE())
moved = rotary_layer.apply(variables, x[:, order])[0] - rotary_layer.apply(variables, x)[0][:, order]
assert abs(moved).max() > 0.1, "with rotary positions, the order must matter"

sines = arch_jax.SinusoidalPosition().apply({}, jnp.arange(100), 64)
second = 7 * 10_000 ** (-2 / 64)  # the angle of the second pair at position 7
np.testing.assert_allclose(sines[7, :4], [np.sin(7), np.cos(7), np.sin(second), np.cos(second)], rtol=1e-4)
products = np.asarray(sines @ sines.T)
np.testing.assert_allclose(products[10:, 10:], products[:-10, :-10], atol=1e-3)  # constant along the diagonals

queries, keys = jax.random.normal(jax.random.key(3), (2, 1, 50, 4, 16))
near, far = (
    jnp.einsum("bthd,bshd->hts", *(arch_jax.RoPE()(y, jnp.arange(50) + start) for y in (queries, keys)))
    for start in (0, 1000)
)
np.testing.assert_allclose(near, far, atol=5e-3)  # both moved by 1,000: the same scores, but for float32's angles

try:
    arch_jax.LearnedPosition(length=100).init(jax.random.key(0), jnp.arange(101), 64)
    raise AssertionError("a table of 100 positions must refuse the 101st")
except arch_jax.UsageError as refusal:
    print(refusal)

# %% [markdown]
# ### The whole
#
# A block is attention and a position-wise network, each with a norm and a residual connection. In 2017 the norm
# followed the sum, $\operatorname{norm}(x + f(x))$. Since GPT-2 it stands before the part, $x +
# f(\operatorname{norm}(x))$: from the embedding to the last norm, nothing stands in the way of the residual stream.
# This is the model of the training below.

# %%
experiment, _ = arch_jax.load_experiment("induction")
model = experiment.model
SIZES = {"vocabulary": 32, "depth": 2, "width": 64, "mixer.heads": 4, "mixer.kv_heads": 4}
arch_jax.draw("gpt", **SIZES)

# %% [markdown]
# ## One block, four models
#
# The Transformer of 2017, GPT, BERT and T5 share the block. What differs are fields of one module. The parameter
# counts are those of the released checkpoints, to the last one. The papers round: BERT "110M", T5-Small "about 60
# million". GPT-2's table 2 prints 117M for the model of 124M. For the Transformer of 2017 there is only the $65
# \times 10^6$ of its table 3; the count with the "about 37000" tokens of section 5.1 is a little lower.

# %%
released = {"transformer-base": None, "gpt2": 124_439_808, "bert-base": 109_482_240, "t5-small": 60_506_624}
print("model             norm  positions           causal  activation         parameters")
for name, published in released.items():
    parts, count = arch_jax.create(name), arch_jax.models()[name].count()
    norm = getattr(parts, "placement", "post")  # BERT has no such field: it is always post-norm
    position = type(parts.position or parts.relative).__name__
    # An encoder-decoder is causal in its decoder; its encoder sees everything.
    print(f"{name:17} {norm:5} {position:20}{parts.mixer.causal!s:8}{parts.feed_forward.activation:12}{count:17,}")
    assert published in (None, count), f"{name} has {count:,} parameters; published are {published:,}"
ratio = arch_jax.models()["transformer-base"].count() / 65e6
print(f"transformer-base has {ratio:.1%} of the 65 million of table 3")
assert abs(ratio - 1) < 0.04

# %% [markdown]
# - **Encoder-decoder (2017).** An encoder without mask reads the source; a causal decoder writes the target and looks
#   at the source by cross-attention, which [lesson 5](05_encoder_decoder.ipynb) explains.
# - **GPT.** The decoder alone, without cross-attention. Every position predicts its successor, so that one pass gives
#   a loss at every token.
# - **BERT.** The encoder alone. With both sides visible, the next token would be given away; so 15 % of the tokens
#   are chosen, and predicted from the rest. Of the chosen ones, 80 % become `[MASK]`, 10 % a random token and 10 %
#   stay, since there is no `[MASK]` in what the model is used on later (section 3.1).
# - **T5.** Encoder-decoder with the norm before, without vectors for positions: a learned bias for each head and
#   bucket of distances is added to the scores, shared by all layers. It is trained on *spans*: stretches of the text
#   are replaced by one sentinel each, and the target holds the sentinels and what they hide (figure 2).

# %%
masking = arch_jax.objective("masked_token")
kept = 1 - masking.masked - masking.random
assert (masking.share, masking.masked, masking.random) == (0.15, 0.8, 0.1)  # Devlin et al., section 3.1
print(f"BERT: {masking.share:.0%} chosen; {masking.masked:.0%} masked, {masking.random:.0%} random, {kept:.0%} kept")
masking = masking.with_model(arch_jax.create("bert-base"))
true = jax.random.randint(jax.random.key(4), (400, 100), 0, 30_000)
read, chosen = masking.corrupted({"tokens": true, "weights": jnp.ones(400)}, jax.random.key(5))
hidden, same = read == masking.mask_id, read == true
assert (chosen.sum(axis=1) == 15).all()
assert same[~chosen].all()
shares = [float(part[chosen].mean()) for part in (hidden, ~hidden & ~same, same)]
print("of 6,000 chosen tokens", *(f"{share:.1%}" for share in shares), "became [MASK], another token, and stayed")
np.testing.assert_allclose(shares, [0.8, 0.1, 0.1], atol=0.02)

spans = arch_jax.Spans(source="pydocs", length=64, batch=2).load()
batch = next(iter(spans.validation()))
source, target = spans.decode(batch["source"][0]), spans.decode(batch["labels"][0])
print(f"T5 reads   {source!r}\nT5 writes  {target!r}")
sentinels = re.findall(r"<\d+>", source)
assert len(sentinels) >= 2
assert sentinels == re.findall(r"<\d+>", target), "each sentinel of the source must be resolved in the target"

# %% [markdown]
# ## Training: a head appears
#
# Two layers solve the task of the opening question, as Elhage et al. found by reading weights. In layer 1 a head
# looks at the token before and writes its content into the present position. In layer 2 a head searches by content
# for a position that carries the present symbol *as its predecessor*. That position holds the symbol to be predicted.
# Such a pair is an **induction head**. With one layer, keys know their own token only, and there is nothing to search
# for.
#
# `Stripe` measures it while the model trains: the attention of each head of the last layer to the position after the
# previous occurrence of the present symbol, and of each head of the first layer to the position before. It is a
# component like those of the library: what it returns stands in the run's `metrics.jsonl`. The input of attention is
# the output of the norm before it, which Linen's `capture_intermediates` hands out; the weights are those of
# `attention_weights` above.


# %%
def attention_by_layer(model, variables, tokens):
    """The weights of every layer, each "batch heads time time"."""
    _, captured = model.apply(
        variables, tokens, mutable=["intermediates"], capture_intermediates=lambda part, _: part.name == "mixer_norm"
    )
    for i in range(model.depth):
        inputs = captured["intermediates"]["stack"][f"layer_{i}"]["mixer_norm"]["__call__"][0]
        parameters = variables["params"]["stack"][f"layer_{i}"]["mixer"]
        yield jax.vmap(functools.partial(attention_weights, parameters, heads=model.mixer.heads))(inputs)


def stripes(model, variables, tokens, counted):
    """Attention to the position after the previous occurrence (last layer), and to the position before (first layer).

    Args:
      tokens, counted: "batch time"; `counted` is 1 where the next symbol is determined.
    """
    t = jnp.arange(tokens.shape[1])
    earlier = (tokens[:, :, None] == tokens[:, None, :]) & (t[:, None] > t)
    after = jnp.roll(earlier, 1, axis=-1) & (t > 0)
    layers = list(attention_by_layer(model, variables, tokens))
    copied = jnp.einsum("bhts,bts,bt->h", layers[-1], after, counted) / jnp.sum(counted)
    previous = jnp.mean(jnp.diagonal(layers[0], offset=-1, axis1=-2, axis2=-1), axis=(0, 2))
    return copied, previous


measure = jax.jit(stripes, static_argnums=0)


@arch_jax.component("lesson_stripe", kind="measure")
@dataclasses.dataclass(frozen=True)
class Stripe(arch_jax.Measure):
    """`stripes` of a validation batch, one number a head."""

    when: str = "evaluation"

    def __call__(self, task, variables, sampler, data, key):
        batch = next(iter(data.validation()))
        copied, previous = measure(task.model, variables, batch["tokens"], batch["weights"])
        numbers = {f"copied/{head}": float(mass) for head, mass in enumerate(copied)}
        return numbers | {f"previous/{head}": float(mass) for head, mass in enumerate(previous)}


def curves(outcome):
    """Name -> values over the run's evaluations, and `step`."""
    rows = [json.loads(line) for line in (outcome.path / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "validation/loss" in row]
    return {name.removeprefix("validation/"): np.array([row[name] for row in rows]) for name in rows[0]}


# %% [markdown]
# The experiment is that of the record (`experiments/induction.py`) with a seed that the record does not have, and the
# same with one layer. Nothing else differs: the data, the 1,500 steps and the optimizer are the same.

# %%
SEED = 3
changes = {"seed": SEED, "checkpoint_every": 1500, "steps_per_dispatch": 25, "figures": ()}
scratch = tempfile.TemporaryDirectory()  # gone when Python ends
folder = Path(scratch.name)
deep = experiment.overridden(changes | {"measures": (Stripe(),), "evaluate_every": 25})
flat = experiment.overridden(changes | {"measures": (Stripe(),), "evaluate_every": 100, "model.depth": 1})
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    # Each of the 75 evaluations tells its figures, which would fill the page.
    two = arch_jax.train(deep, folder / "two_layers")
    one = arch_jax.train(flat, folder / "one_layer")
print(f"two layers: {two.validation['loss']:.5f} nats, accuracy {two.validation['accuracy']:.4f}")
print(f"one layer:  {one.validation['loss']:.5f} nats, accuracy {one.validation['accuracy']:.4f}")

# %% [markdown]
# Four claims: the task is solved; a head of the last layer puts most of its attention on the stripe; the loss and the
# stripe move together, within 75 steps; and they do so at once, with most of the way made in a fifth of the training.
# One layer has to fail them.


# %%
def reaches(steps, values, level):
    """The first step at which a rising curve has come to a level."""
    assert (values >= level).any(), f"the curve never comes to {level:.3g}; its largest value is {values.max():.3g}"
    return steps[np.argmax(values >= level)]


def check_induction(outcome):
    """Asserts the four claims.

    Returns:
      The step at which the loss has fallen halfway, and the step at which the stripe has risen halfway.
    """
    seen = curves(outcome)
    strongest = np.max([values for name, values in seen.items() if name.startswith("copied/")], axis=0)
    steps, fallen = seen["step"], seen["loss"][0] - seen["loss"]
    assert outcome.validation["loss"] < 0.05, f"the loss is {outcome.validation['loss']:.3f} nats"
    assert strongest[-1] > 0.8, f"the strongest head has {strongest[-1]:.2f} of its attention on the stripe"
    halfway = [reaches(steps, curve, curve[-1] / 2) for curve in (fallen, strongest)]
    assert abs(halfway[0] - halfway[1]) <= 75, f"the loss falls at step {halfway[0]}, the stripe rises at {halfway[1]}"
    assert reaches(steps, fallen, 0.9 * fallen[-1]) - reaches(steps, fallen, 0.2 * fallen[-1]) <= 300
    return halfway


loss_step, stripe_step = check_induction(two)
seen = curves(two)
look = np.max([values for name, values in seen.items() if name.startswith("previous/")], axis=0)
look_step = reaches(seen["step"], look, look[-1] / 2)
print(f"two layers: the loss is halfway at step {loss_step}, the stripe at step {stripe_step}, ", end="")
print(f"layer 1's look at the token before at step {look_step}")
assert look[-1] > 0.3  # an even look at all tokens so far would have 0.10
assert abs(look_step - stripe_step) <= 150  # both halves of the circuit appear together
try:
    check_induction(one)
except AssertionError as failure:
    print(f"one layer fails: {failure}")
else:
    raise AssertionError("one layer must not solve the task")
seen_one, seen_two = curves(one), curves(two)
assert max(values[-1] for name, values in seen_one.items() if name.startswith("copied/")) < 0.2
assert one.validation["loss"] > 2

# %% [markdown]
# One layer still learns something. The symbols of the repetition are among the 16 of the first run, and those that
# have been repeated already do not come again. Whoever knows no more than the former pays $\ln 16$ nats; whoever
# knows nothing pays $\ln 32$.

# %%
print(f"ln 32 = {math.log(32):.2f}   one layer {one.validation['loss']:.2f}   ln 16 = {math.log(16):.2f} nats")
assert one.validation["loss"] < math.log(32)

# %% [markdown]
# ### The same by intervention
#
# That loss and stripe move together is a correlation. The test is to take heads away: their rows of $W^O$ are set to
# zero, and the loss on the validation data is computed again. If the circuit is the one described, the loss must rise
# without the head of layer 1 that looks at the token before, rise without the heads of layer 2 that have the stripe,
# and hardly rise without a head that does not have it.

# %%
trained = two.state.evaluated
parts = [*experiment.data.load().validation()]
batch = {name: jnp.concatenate([part[name] for part in parts]) for name in parts[0]}  # all that validation is of
copied, previous = measure(model, trained, batch["tokens"], batch["weights"])


@functools.partial(jax.jit, static_argnums=1)
def loss_without(variables, layer, heads):
    """Nats a counted symbol, without the heads of a layer for which `heads` is True."""
    parameters = jax.tree.map(lambda leaf: leaf, variables["params"])  # new dictionaries
    output = parameters["stack"][layer]["mixer"]["output"]
    output["kernel"] = jnp.where(jnp.repeat(heads, model.width // len(heads))[:, None], 0, output["kernel"])
    log_p = jax.nn.log_softmax(model.apply({"params": parameters}, batch["tokens"]))
    nats = -jnp.take_along_axis(log_p, batch["targets"][..., None], axis=-1)[..., 0]
    return jnp.sum(nats * batch["weights"]) / jnp.sum(batch["weights"])


heads = jnp.arange(model.mixer.heads)
most, least = int(jnp.argmax(copied)), int(jnp.argmin(copied))
whole = loss_without(trained, "layer_1", heads < 0)
np.testing.assert_allclose(whole, two.validation["loss"], atol=1e-5)
removed = {f"head {h}, stripe {copied[h]:.2f}": loss_without(trained, "layer_1", heads == h) for h in range(len(heads))}
removed["all with a stripe above 0.5"] = striped = loss_without(trained, "layer_1", copied > 0.5)
removed[f"layer 1, head {jnp.argmax(previous)}"] = source = loss_without(
    trained, "layer_0", heads == jnp.argmax(previous)
)
print(f"loss of the whole model {whole:.5f} nats; without")
for name, loss in removed.items():
    print(f"  {name:28} {loss:.5f}")
unstriped = loss_without(trained, "layer_1", heads == least)
assert unstriped - whole < 0.01, "a head without the stripe must not matter"
assert min(striped, source) > 2, "the ability must be gone without the circuit"

# %% [markdown]
# The heads are redundant: several have the stripe, and most of them can be spared one at a time. So a stripe alone
# does not prove that a head is needed; what the head *writes* at the present position counts too. All of them
# together, and the head of layer 1 that they read, are the circuit.

# %% [markdown]
# ## The figure
#
# Causality is seen in the Jacobian: $\lVert \partial\, \text{logits}_t / \partial\, \text{embedding}_s \rVert$ for
# every pair of positions. For a causal model it is exactly zero for $s > t$, not just small: no path leads from a
# later token to an earlier output. BERT's is a full square. A small vector is added to the output of the embedding by
# Flax's method interceptor, and the logits are differentiated in it.


# %%
def jacobian_norms(model, variables, tokens, embedding):
    """Frobenius norms "time time" of the logits at t in the embedded token at s."""

    def logits(added):
        def add(call, arguments, options, context):
            embeds = context.module.name == embedding and context.method_name == "__call__"
            return call(*arguments, **options) + added if embeds else call(*arguments, **options)

        with nn.intercept_methods(add):
            out = model.apply(variables, tokens[None])
        return (out["logits"] if isinstance(out, dict) else out)[0]

    jacobian = jax.jit(jax.jacrev(logits))(jnp.zeros((len(tokens), model.width)))
    return np.asarray(jnp.sqrt(jnp.sum(jnp.square(jacobian), axis=(1, 3))))


row = batch["tokens"][0]
triangle = jacobian_norms(model, trained, row, "embedding")
masked_experiment, _ = arch_jax.load_experiment("bert_markov")
bert = masked_experiment.model
sentence = jnp.asarray(next(iter(masked_experiment.data.load().validation()))["tokens"][0])
square = jacobian_norms(bert, bert.init(jax.random.key(0), sentence[None]), sentence, "token_embedding")

below = np.tril(np.ones_like(triangle, bool))
assert (triangle[~below] == 0).all(), "a later token must have no influence at all"
assert (triangle[below] > 0).all(), "every earlier token must have some"
assert (square > 0).all(), "in BERT every token must see every other"
counted = np.flatnonzero(batch["weights"][0])
found = [int(np.flatnonzero(row[:t] == row[t])[0]) + 1 for t in counted]  # after the first occurrence of symbol t
typical = [np.median(np.delete(triangle[t, :t], s)) for t, s in zip(counted, found)]
print(f"influence of the token to be copied: {np.median(triangle[counted, found] / typical):.1f} times the usual one")
assert np.median(triangle[counted, found] / typical) > 3
unmasked = model.clone(mixer=model.mixer.clone(causal=False))
assert not (jacobian_norms(unmasked, trained, row, "embedding")[~below] == 0).all(), "it is the mask that does it"

# %%
record = arch_jax.load_record("induction")
figure, axes = plt.subplot_mosaic(
    [["gpt", "bert", "head"], ["curve"] * 3], figsize=(11, 8), layout="constrained", height_ratios=(1, 1.1)
)


def show_matrix(axis, matrix, title, colour_label, **options):
    image = axis.imshow(matrix, **options)
    axis.set(title=title, xlabel="input s (position)", ylabel="output t (position)")
    figure.colorbar(image, ax=axis, shrink=0.75, label=colour_label)


with np.errstate(divide="ignore"):
    show_matrix(axes["gpt"], np.log10(triangle), "Decoder: a triangle", "log10 of the Jacobian's norm")
others = np.log10(square[~np.eye(len(square), dtype=bool)]).max()
show_matrix(axes["bert"], np.log10(square), "BERT: a full square", "log10 of the Jacobian's norm", vmax=others)
axes["gpt"].text(30, 5, "exactly 0", ha="right", size=11)
*_, last = attention_by_layer(model, trained, row[None])
show_matrix(axes["head"], last[0, most], f"Layer 2, head {most}: the stripe", "attention weight", vmin=0, vmax=1)
for name, colour in (("gpt", "black"), ("head", "white")):
    axes[name].axhline(15.5, color=colour, lw=0.8)
    axes[name].text(30.3, 15.2, "repetition", color=colour, ha="right", va="bottom", size=8)

LABEL = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
nats = axes["curve"]
for steps, values in record.variant("baseline").curve("loss").values():
    nats.plot(steps, values, "o", ms=4, color="tab:blue", alpha=0.4)
nats.plot(seen_two["step"], seen_two["loss"], color="tab:blue", lw=2.5)
nats.plot(seen_one["step"], seen_one["loss"], color="tab:blue", ls="--")
nats.set(xlabel="training step", xlim=(0, 1000), ylim=(0, 3.7))
nats.set_ylabel("loss in the repetition (nats a symbol)", color="tab:blue")
nats.text(130, 3.0, "loss, two layers\n(dots: the record's seeds)", color="tab:blue", va="top")
nats.text(200, 3.49, "loss, one layer", color="tab:blue", va="bottom")
mass = nats.twinx()
for head in range(len(heads)):
    values = seen_two[f"copied/{head}"]
    mass.plot(seen_two["step"], values, color="tab:orange", lw=2.5 if head == most else 1)
    height = np.interp(950, seen_two["step"], values)
    mass.text(950, height, f"layer 2, head {head}", color="tab:orange", ha="right", va="center", size=8, bbox=LABEL)
before = seen_two[f"previous/{jnp.argmax(previous)}"]
mass.plot(seen_two["step"], before, color="tab:green", lw=2)
mass.text(560, 0.47, "layer 1: attention to the token before", color="tab:green", va="top")
strongest_one = np.max([values for name, values in seen_one.items() if name.startswith("copied/")], axis=0)
mass.plot(seen_one["step"], strongest_one, color="tab:orange", ls="--")
mass.text(150, 0.02, "one layer, its strongest head", color="tab:orange", va="center", size=8)
mass.set(ylim=(0, 1.05))
mass.set_ylabel("fraction of the attention on the stripe", color="tab:orange")
plt.show()

# %% [markdown]
# Above: the influence of input $s$ on output $t$, in the decoder that was trained and in a BERT that was not (its
# diagonal is off the scale). In the repetition each row of the trained decoder has two bright cells, the token itself
# and the one that the head's stripe marks: what followed the present symbol the first time. Below: for hundreds of
# steps nothing seems to happen. Then the stripes of layer 2 and the look at the token before in layer 1 appear
# together, and the loss falls in the same steps.
#
# The claim would have been refuted by a loss that falls without a stripe or long before it, by a one-layer model
# whose loss falls too, or by a loss that stays low when the heads with the stripe are removed. Both guesses of the
# beginning are answered: two layers, and all at once.
#
# The run above is a new draw from the distribution that the record describes: the same experiment, other seeds. So is
# the run with one layer. Each must lie in the 95 % prediction interval of the record's seeds: of the logarithm of the
# loss, since a loss near 0 differs by factors from seed to seed (and from machine to machine).

# %%
for outcome, variant in ((two, record.variant("baseline")), (one, record.variant("depth=1"))):
    new, predicted = outcome.validation["loss"], variant.prediction("loss", scale="log")
    told = f"prediction interval {predicted.low:.5f} to {predicted.high:.5f}"
    print(f"{variant.label}: new seed {new:.5f} nats, {told}")
    assert predicted.contains(new), f"{variant.label}: {new:.5f} is outside of the {told}"

# %% [markdown]
# ## What it costs by length
#
# For a sequence of $n$ tokens of width $w$, the four projections take $8nw^2$ operations (two for a multiply and an
# add), and the products $QK^\top$ and $AV$ another $4n^2w$: the quadratic term is the larger one from $n = 2w$ on.
# The library counts the operations of a computation from its jaxpr, and comes to exactly that for the plain form. The
# form that runs on a CPU cuts the queries into blocks and leaves out blocks above the diagonal.

# %%
width = 64
for length in (64, 256, 1024, 4096):
    tokens = jax.ShapeDtypeStruct((1, length, width), jnp.float32)
    counts = {}
    for form in ("reference", "xla"):
        layer = arch_jax.Attention(heads=4, implementation=form)
        abstract = jax.eval_shape(layer.init, jax.random.key(0), tokens)
        counts[form] = arch_jax.count_flops(layer.apply, abstract, tokens).products
    projections, pairs = 8 * length * width**2, 4 * length**2 * width
    assert counts["reference"] == projections + pairs
    print(f"{length:5} tokens: {counts['reference']:13,}  quadratic part {pairs / counts['reference']:4.0%}", end="")
    print(f"  in blocks {counts['xla'] / counts['reference']:4.0%} of it")
assert counts["xla"] < 0.75 * counts["reference"]

# %% [markdown]
# Measured times of one layer of width 64, forward and backward, on a CPU; the slope is that of a line through the
# logarithms: 1 is linear in the length, 2 quadratic; above 2, a pair costs more, too. Memory grows more slowly than
# time, because the matrix of all pairs is never held, which is the subject of [lesson 6](06_attention.ipynb).

# %%
table = arch_jax.load_table("mixers_by_length")
print(table.title)


def slope(mixer, quantity="milliseconds"):
    """The power of the length by which a quantity grows, over the lengths that were measured."""
    points = [(length, row[quantity]) for length, row in table[mixer].items() if row.get(quantity)]
    return np.polyfit(*np.log(np.array(points)).T, deg=1)[0]


for mixer in ("attention", "linear_attention", "gru"):
    times = ", ".join(f"{table[mixer][length]['milliseconds']:.1f} ms at {length:,}" for length in (1024, 4096))
    print(f"{mixer:17} time {slope(mixer):.2f}  memory {slope(mixer, 'MiB'):.2f}  {times}")
assert slope("attention") > 1.7
assert slope("linear_attention") < 1.3
assert slope("attention", "MiB") < 1.3

# %% [markdown]
# When a decoder writes, it keeps keys and values of all tokens so far. A recurrence keeps a state of fixed size.

# %%
cached = {}
for name, mixer in (("attention", arch_jax.Attention(heads=6)), ("gru", arch_jax.GRU())):
    decoder = arch_jax.create("gpt", mixer=mixer)
    for length in (1024, 4096):
        state = jax.eval_shape(functools.partial(decoder.initial_state, 1, length))
        floats = [leaf for leaf in jax.tree.leaves(state.layers) if leaf.dtype == jnp.float32]
        cached[name, length] = sum(leaf.size * 4 for leaf in floats)
        print(f"{name:10} {length:5} tokens: {cached[name, length]:12,} bytes a sequence")
assert cached["attention", 1024] == 1024 * 2 * decoder.depth * decoder.width * 4  # a key and a value, float32
assert cached["attention", 4096] == 4 * cached["attention", 1024]
assert cached["gru", 4096] == cached["gru", 1024]

# %% [markdown]
# ## Scaling laws
#
# How large should the model be for a given budget? Training on $D$ tokens takes about $C = 6ND$ operations: each of
# $N$ parameters takes part in a multiply and an add in the forward pass, and in two of each in the backward pass. The
# count of GPT-2 confirms it; what is above 6 is attention's quadratic term, which $N$ knows nothing of.

# %%
gpt2 = arch_jax.create("gpt2")
abstract = jax.eval_shape(gpt2.init, jax.random.key(0), jnp.ones((1, 8), jnp.int32))
per_token = {}
for length in (128, 1024):
    tokens = jnp.ones((1, length), jnp.int32)
    step = jax.grad(lambda variables, tokens: jnp.sum(gpt2.apply(variables, tokens)))
    operations = arch_jax.count_flops(step, abstract, tokens).products
    per_token[length] = operations / length / arch_jax.models()["gpt2"].count()
    print(f"GPT-2, {length:4} tokens: {per_token[length]:.2f} N operations a token")
assert 5.9 < per_token[128] < 6.2 < per_token[1024] < 6.8

# %% [markdown]
# Hoffmann et al. fit the losses of more than 400 runs by $L(N, D) = E + A N^{-\alpha} + B D^{-\beta}$. Under a fixed
# $C$ the best $N$ grows as $C^a$ with $a = \beta / (\alpha + \beta)$. Kaplan et al. had found $a = 0.73$, so models
# were made large and trained on few tokens. Hoffmann's first two approaches give 0.50 and 0.49 (table 2): model and
# data should grow alike. Their third, a fit of this form, gives 0.46 there (0.45 from the exponents as printed, $\alpha
# = 0.34$ and $\beta = 0.28$). Besiroglu et al. ([2404.10102](https://arxiv.org/abs/2404.10102)) read the points off
# figure 4 and fitted them again: with $\alpha = 0.348$ and $\beta = 0.366$ the third approach agrees with the other
# two. `arch-jax scaling fit` repeats their fit on these points, which are public (`epoch-research/analyzing-chinchilla`
# on GitHub). Put the file into the folder `chinchilla` below the one that `ARCH_JAX_DATA` names, and the cell fits it;
# otherwise it says that there is nothing to fit.

# %%
points = Path(os.environ.get("ARCH_JAX_DATA", "data")) / "chinchilla" / "svg_extracted_data.csv"
if points.exists():
    command = [sys.executable, "-m", "arch_jax", "scaling", "fit", str(points), "--drop-highest", "5", "--json"]
    command += ["--bootstrap", "100", "--budget", "5.76e23", "--workdir", str(folder / "scaling")]
    answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    law, optimum = answer["law"], answer["optimal"][0]
    print("        here    95 %            Besiroglu et al.  Hoffmann et al.")
    for name, theirs, first in (("E", 1.817, 1.69), ("alpha", 0.348, 0.34), ("beta", 0.366, 0.28)):
        low, high = law["intervals"][name]
        print(f"{name:6}{law[name]:7.3f}   {low:.3f} to {high:.3f}{theirs:12.3f}{first:18.2f}")
        assert abs(law[name] - theirs) < 0.01
    np.testing.assert_allclose(law["a"], law["beta"] / (law["alpha"] + law["beta"]))
    low, high = law["intervals"]["a"]
    print(f"a     {law['a']:7.3f}   {low:.3f} to {high:.3f}")
    print(f"at Chinchilla's 5.76e23: {optimum['parameters']:.3g} parameters, {optimum['tokens']:.3g} tokens")
    assert low < 0.5 < high < 0.73, "model and data must grow alike, not as Kaplan et al. found"
    assert law["intervals"]["beta"][0] > 0.28, "the constant that was printed must be outside"
else:
    print("The points of Chinchilla's figure 4 are not at hand, so that nothing is fitted here.")

# %% [markdown]
# ## Published beside measured
#
# The record of the task above, of the encoder-decoder of 2017 on copying, and of BERT against the entropy rate of a
# Markov source. None of the three is a number of the papers, whose models take days on many accelerators: each is
# what the task itself allows.

# %%
arch_jax.load_record("induction")

# %%
arch_jax.load_record("transformer_copy")

# %%
arch_jax.load_record("bert_markov")

# %%
for name in ("induction", "transformer_copy", "bert_markov"):
    for entry in arch_jax.load_record(name).figures:
        assert entry.verdict == "reproduced", f"{name}: {entry.verdict}"

# %% [markdown]
# ## When to choose it, and when not
#
# Choose it where
#
# - what is needed stands somewhere in the context, at a distance not known before: a head finds it by content, at
#   every distance, and in one step (the stripe of the figure);
# - training has to be parallel over the sequence: the whole triangle of the figure comes from a few matrix products,
#   and no state is carried from token to token;
# - one architecture has to read, write and translate: in the table of the four models, a mask, positions and an
#   objective are all that differs.
#
# Choose something else where
#
# - sequences are long and little has to be looked up: time grows with the square of the length, as the slopes above
#   show beside the linear mixer's;
# - memory is scarce when writing: the cache grows with each token, as the bytes above show ([lesson
#   6](06_attention.ipynb) makes it smaller);
# - there is little to train on: neither order nor copying is built in, and for hundreds of steps the curve of the
#   figure shows nothing.
#
# ## How to read Attention Is All You Need
#
# - **Equation (1)** is `attention_weights`; $1/\sqrt{d_k}$ is explained in footnote 4. **Figure 2** (scaled
#   dot-product and multi-head attention) is `multi_head`.
# - **Figure 1** is what `arch_jax.draw("transformer-base")` draws. Norms follow the sum there; the models of today
#   differ.
# - **Table 1** gives $O(n^2 d)$ for self-attention: the cell that counts operations has the constants, and the
#   projections.
# - **Section 3.5** is the cell on positions. That sums of sines let a model attend by relative positions is the
#   equality along the diagonals. Row (E) of **table 3** is the ablation: learned positions do as well.
# - **Table 2** compares BLEU and training cost. BLEU is no property of the architecture alone: label smoothing, the
#   averaging of checkpoints and beam search are part of it (sections 5.4 and 6.1).
# - **Table 3** row (A) varies the heads at constant cost: one head loses 0.9 BLEU, and too many lose as well. A head
#   has one pattern of attention for each token: two looks at once need two heads.
# - **Radford et al. 2019**, section 2.3, lists what was changed from GPT: the norm before each part, one more at the
#   end, and initial weights of residual layers smaller by $1/\sqrt{N}$, with $N$ the number of such layers.
# - **Devlin et al.**: figure 3 contrasts the masks, as the first two panels of our figure do. Section 3.1 has the
#   80/10/10 rule, and appendix C.2 its ablation.
# - **Raffel et al.**: figure 2 is the cell with spans, section 2.1 the bias by distance.
# - **Olsson et al.**: argument 1 is the curve of our figure, argument 3 the intervention, and argument 2 exercise 3.
#
# ## Exercises
#
# **1. Change a number.** The heads were trained on runs of 16 symbols. How well does the trained model do on runs of
# 8 and of 32? Guess first. Use `arch_jax.open_run(two.path).evaluate(data)` with
# `dataclasses.replace(experiment.data, stretch=...)`.
#
# <details><summary>Solution</summary>
#
# Shorter runs are no problem: the head searches by content. Longer ones are harder, since two things are new:
# distances that the rotation has never had in training, and more keys among which the softmax is divided. The cell
# below prints the accuracies.
#
# </details>

# %% tags=["solution"]
run = arch_jax.open_run(two.path)
accuracy = {n: run.evaluate(dataclasses.replace(experiment.data, stretch=n))["accuracy"] for n in (8, 16, 32)}
print({n: f"{value:.3f}" for n, value in accuracy.items()})
assert accuracy[8] > 0.99
assert accuracy[16] > 0.99
assert 1 / 32 < accuracy[32] < accuracy[16]

# %% [markdown]
# **2. Change code.** Give `attention_weights` a sliding window: a token sees itself and the `window - 1` tokens
# before it. Show that it equals `arch_jax.Attention(window=...)`. How far can the first token reach in a stack of $L$
# such layers?
#
# <details><summary>Solution</summary>
#
# The mask becomes `triangle & (distance < window)`. Each layer reaches `window - 1` tokens further, so that $L$
# layers reach $L(w - 1)$: information travels like in a convolutional network. The Jacobian shows the band.
#
# </details>


# %% tags=["solution"]
def windowed(parameters, x, heads, window):
    """`multi_head` of a sliding window, without rotation."""
    q, k, v = ((x @ parameters[name]["kernel"]).reshape(len(x), heads, -1) for name in ("query", "key", "value"))
    distance = jnp.arange(len(x))[:, None] - jnp.arange(len(x))
    scores = jnp.einsum("thd,shd->hts", q, k) / math.sqrt(q.shape[-1])
    weights = jax.nn.softmax(jnp.where((distance >= 0) & (distance < window), scores, -jnp.inf))
    return jnp.einsum("hts,shd->thd", weights, v).reshape(len(x), -1) @ parameters["output"]["kernel"]


layer = arch_jax.Attention(heads=4, window=5, initial_std=None)
variables = layer.init(jax.random.key(1), x)
np.testing.assert_allclose(
    windowed(variables["params"], x[0], 4, 5), layer.apply(variables, x)[0][0], rtol=1e-4, atol=1e-4
)
local = model.clone(mixer=model.mixer.clone(window=5))
band = jacobian_norms(local, trained, row, "embedding") > 0
reach = np.subtract.outer(np.arange(len(row)), np.arange(len(row)))
np.testing.assert_array_equal(band, (reach >= 0) & (reach <= 2 * 4))  # two layers of window 5

# %% [markdown]
# **3. Open.** One layer fails because its keys know only their own token. What is the smallest change that lets *one*
# layer of attention solve the task?
#
# <details><summary>Solution</summary>
#
# The keys have to know their predecessor. Olsson et al. (argument 2) replace each key by a mixture of it and the key
# before, with one learned number a head ("smeared keys"): the sudden fall of the loss then appears in models of one
# layer too, which have none otherwise, and earlier in deeper ones. A short convolution before attention does the
# same; many modern recurrences have one. To try it, write a mixer that shifts its input by one place before the key's
# projection (`examples/leaky_average.py` of the repository shows the contract) and run the cell of the training with
# `model.depth=1`. No solution is executed here: a result with fewer than three seeds would prove little.
#
# </details>
#
# ## Summary
#
# Attention mixes values by weights that depend on content; a mask makes it causal, and the Jacobian shows that the
# zeros above the diagonal are exact. The Transformer of 2017, GPT, BERT and T5 are one block with different masks,
# positions and objectives. Two layers compose to an induction head, which appears within few steps, together with the
# fall of the loss; one layer cannot, and without the head the ability is lost. The price is a cost that grows with
# the square of the length, and a cache that grows with each token.
#
# ## Sources
#
# The papers above, and: Besiroglu et al. 2024, *Chinchilla Scaling: A replication attempt*
# ([2404.10102](https://arxiv.org/abs/2404.10102)). Xiong et al. 2020, *On Layer Normalization in the Transformer
# Architecture* ([2002.04745](https://arxiv.org/abs/2002.04745)). Dao et al. 2022, *FlashAttention*
# ([2205.14135](https://arxiv.org/abs/2205.14135)).
#
# **Next**: [lesson 3](03_convolutional.ipynb), convolutional networks.
