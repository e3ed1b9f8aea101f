# %% [markdown]
# # 1. Introduction: from the perceptron to the Transformer, in shared parts
#
# Rosenblatt (1958, [doi.org/10.1037/h0042519](https://doi.org/10.1037/h0042519)), the perceptron; Rumelhart, Hinton &
# Williams (1986, [doi.org/10.1038/323533a0](https://doi.org/10.1038/323533a0)), hidden units; Vaswani et al. (2017,
# [1706.03762](https://arxiv.org/abs/1706.03762)), the Transformer. Run time: <!-- run time -->
#
# <!-- about: perceptron, hidden units, a language model in five parts, and how a model is made, trained and sampled |
# figure: one language model with every mixer: loss against time a step -->
#
# After this lesson you can
#
# - say what a model is here (a pure function of variables and inputs), and compile, differentiate and vectorise it;
# - write a language model from its parts, and exchange the one part that moves information between tokens;
# - train a model, look at what it learned, and compare it with another at equal size.
#
# **A question first.** Two language models have equal parts, equal sizes and equal training. In one, each token may
# look at the tokens before it; in the other, only at itself. How much better does the first predict the next byte of
# Python's documentation after 200 steps: not at all, by a tenth, by a quarter, by half? And if the part that looks back
# is a recurrence from 1990 instead of attention from 2017, which of the two is ahead by then?

# %%
# Installs the library where it is missing (Colab, Kaggle); elsewhere it does nothing.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("arch_jax") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "arch-jax"], check=True)

# %%
import json
import tempfile

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import arch_jax

# %% [markdown]
# ## One layer, and why two
#
# A **perceptron** scores each class by a weighted sum of its inputs, $s = xW + b$, and answers with the largest. Its
# classes are divided by a straight line, whatever the weights. A **hidden layer** puts units between,
#
# $$h = \tanh(x W_1 + b_1), \qquad s = h W_2 + b_2,$$
#
# each of which divides the plane by a line of its own. The $\tanh$ is not decoration: without it, the two layers
# multiply out to one.


# %%
def perceptron(p, x):
    """s = x W + b: the scores of "batch inputs"."""
    return x @ p["scores"]["kernel"] + p["scores"]["bias"]


def mlp(p, x, f=jnp.tanh):
    """One hidden layer below a perceptron."""
    return perceptron(p, f(x @ p["hidden_1"]["kernel"] + p["hidden_1"]["bias"]))


plane = jax.random.normal(jax.random.key(0), (100, 1, 2, 1))  # images of one row and two pixels
module = arch_jax.create("mlp", classes=2, hidden=(4,))
variables = module.init(jax.random.key(1), plane)
p, x = variables["params"], plane.reshape(100, 2)
np.testing.assert_allclose(mlp(p, x), module.apply(variables, plane), atol=1e-6)

kernel = p["hidden_1"]["kernel"] @ p["scores"]["kernel"]
folded = {"scores": {"kernel": kernel, "bias": perceptron(p, p["hidden_1"]["bias"])}}
np.testing.assert_allclose(mlp(p, x, f=lambda h: h), perceptron(folded, x), atol=1e-6)
assert float(jnp.abs(mlp(p, x) - perceptron(folded, x)).max()) > 0.1

# %% [markdown]
# ## A model is a pure function
#
# `init` makes the variables, a tree of arrays; `apply` is a function of variables and inputs, and changes nothing. So
# JAX's transformations take it as it is: `jax.grad` differentiates in the variables, `jax.jit` compiles, `jax.vmap`
# adds an axis. Here all three at once: 200 networks learn XOR, each from a seed of its own, in one program.

# %%
truth = jnp.array([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
xor = jnp.array([0, 1, 1, 0])
table = truth.reshape(4, 1, 2, 1)


def rows_right(hidden, key, steps=400, rate=0.5):
    """Gradient descent on the four rows of XOR: how many are right at the end, and the weights."""
    module = arch_jax.create("mlp", classes=2, hidden=hidden)

    def loss(params):
        scores = module.apply({"params": params}, table)
        return -jnp.take_along_axis(jax.nn.log_softmax(scores), xor[:, None], axis=1).mean()

    def step(params, _):
        return jax.tree.map(lambda w, g: w - rate * g, params, jax.grad(loss)(params)), None

    params, _ = jax.lax.scan(step, module.init(key, table)["params"], length=steps)
    return (module.apply({"params": params}, table).argmax(axis=1) == xor).sum(), params


seeds = jax.random.split(jax.random.key(2), 200)
learned = {}
for units in (0, 1, 2, 3, 4, 8):
    hidden = (units,) if units else ()
    rows, weights = jax.jit(jax.vmap(lambda key, hidden=hidden: rows_right(hidden, key)))(seeds)
    learned[units] = np.asarray(rows), weights
    print(f"{units} hidden units: all rows in {float((rows == 4).mean()):4.0%} of 200 trainings, at most {rows.max()}")
assert learned[0][0].max() <= 3  # no line will do, whatever the seed
assert (learned[2][0] == 4).mean() > 0.3
assert (learned[8][0] == 4).mean() > 0.95

# %% [markdown]
# No perceptron gets four rows: that is a theorem (Minsky & Papert 1969), and 200 seeds agree. Two units *can* do it,
# and yet a part of their trainings fails: what a network can represent and what gradient descent finds are different
# questions. A few units more than necessary make the second easy.

# %%
grid = np.stack(np.meshgrid(np.linspace(-1.8, 1.8, 80), np.linspace(-1.8, 1.8, 80)), axis=-1).reshape(-1, 2)
figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
best = int(np.argmax(learned[2][0]))
for axis, units, weights in zip(axes, (0, 2), (learned[0][1], jax.tree.map(lambda leaf: leaf[best], learned[2][1]))):
    one = weights if units else jax.tree.map(lambda leaf: leaf[0], weights)
    scores = mlp(one, grid) if units else perceptron(one, grid)
    share = jax.nn.softmax(scores)[:, 1].reshape(80, 80)
    axis.imshow(share, origin="lower", extent=(-1.8, 1.8, -1.8, 1.8), cmap="RdBu", vmin=0, vmax=1)
    if float(np.ptp(share)) > 0.01:  # gradient descent leaves a perceptron at 1/2 everywhere
        axis.contour(share, [0.5], extent=(-1.8, 1.8, -1.8, 1.8), colors="black", linewidths=1)
    for point, label in zip(truth, xor):
        axis.text(*point, str(label), ha="center", va="center", fontsize=14, fontweight="bold")
    title = f"{units} hidden units" if units else "a perceptron"
    axis.set(
        title=f"{title}: class 1 at {share.min():.0%} to {share.max():.0%}", xlabel="first input", ylabel="second input"
    )
axes[2].plot(list(learned), [100 * (rows == 4).mean() for rows, _ in learned.values()], "o-", color="black")
axes[2].set(title="trainings with all four rows right", xlabel="hidden units", ylabel="% of 200 seeds", ylim=(-3, 103))
plt.show()

# %% [markdown]
# ## Five parts make a language model
#
# A language model gives each token of a text a guess of the next one. Nearly all of this course's are made of the same
# five parts:
#
# 1. an **embedding**: a row of a table for each token, $x_t = E_{w_t}$;
# 2. a **norm** before each part: RMSNorm, $\hat x = x / \sqrt{\overline{x^2} + \epsilon} \odot g$;
# 3. a **mixer**, the only part in which a position receives anything from another;
# 4. a **feed-forward** part at each position by itself, the hidden layer from above with a gate: SwiGLU,
#    $(\mathrm{silu}(\hat x W_g) \odot \hat x W_u) W_d$;
# 5. the **logits**, one score for each token of the vocabulary: here $E \hat x$, by the table of the embedding.
#
# Mixer and feed-forward part write to a *residual stream*, which runs from the first layer to the last:
#
# $$x \leftarrow x + \mathrm{mixer}(\mathrm{norm}(x)), \qquad x \leftarrow x + \mathrm{feedforward}(\mathrm{norm}(x)).$$
#
# Why sums: [lesson 3](03_convolutional.ipynb). The Transformer's mixer is attention
# ([lesson 2](02_transformer.ipynb)); recurrences ([lesson 4](04_recurrent.ipynb)), state spaces
# ([lesson 10](10_state_spaces.ipynb)) and newer ones ([lesson 13](13_emerging.ipynb)) stand in the same place. So the
# model is written once, with the mixer as an argument.


# %%
def norm(scale, x):
    return x * jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + 1e-6) * scale


def block(p, x, mix):
    """Mixer and feed-forward part, each added to the stream: "batch time width"."""
    x = x + mix(p["mixer"], norm(p["mixer_norm"]["scale"], x))
    y = norm(p["feed_forward_norm"]["scale"], x)
    f = {name: leaf["kernel"] for name, leaf in p["feed_forward"].items()}
    return x + (jax.nn.silu(y @ f["gate"]) * (y @ f["up"])) @ f["down"]


def language_model(p, tokens, mix):
    """The logits of the next token at each place, "batch time vocabulary"."""
    x = p["embedding"]["embedding"][tokens]
    for i in range(len(p["stack"])):
        x = block(p["stack"][f"layer_{i}"], x, mix)
    return norm(p["final_norm"]["scale"], x) @ p["embedding"]["embedding"].T  # one table, read both ways


tokens = jax.random.randint(jax.random.key(3), (2, 40), 0, 256)
ATTENTION = {"module": "attention", "heads": 4, "rope": "rope"}
SIZES = {"depth": 2, "width": 64}
# Mixer and hidden units of the feed-forward part: fewer where the mixer has more parameters.
MIXERS = {"attention": (ATTENTION, 128), "rnn": ("rnn", 170), "lstm": ("lstm", 41), "mamba": ("mamba", 43)}


def fields(mixer, hidden):
    return {**SIZES, "mixer": mixer, "feed_forward.hidden": hidden}


models = {name: arch_jax.create("gpt", **fields(*parts)) for name, parts in MIXERS.items()}
counts = {}
for name, model in models.items():
    variables = model.init(jax.random.key(4), tokens)
    mix = lambda p, x, model=model: model.mixer.apply({"params": p}, x)[0]
    own = jax.jit(lambda p, mix=mix: language_model(p, tokens, mix))(variables["params"])
    np.testing.assert_allclose(own, jax.jit(model.apply)(variables, tokens), atol=2e-5)
    counts[name] = sum(leaf.size for leaf in jax.tree.leaves(variables))
    print(f"{name:10} {counts[name]:,} parameters")
assert max(counts.values()) < 1.01 * min(counts.values())

# %%
arch_jax.draw("gpt", **fields(*MIXERS["attention"]))

# %%
arch_jax.draw("gpt", **fields(*MIXERS["lstm"]))

# %% [markdown]
# ## The mixer is what makes it a model of language
#
# An *experiment* holds everything that a run is made of, as plain fields: model, objective, data, optimizer, steps. It
# is trained into a folder, which keeps its metrics, its checkpoints and a sample of its text
# (`arch-jax train` does the same from a shell). The data are the texts of Python's own documentation, in bytes.
#
# Four mixers, and the one of the question that looks only at itself: attention with a window of one token.


# %%
def trained(model, folder, steps=200):
    """The outcome of training a language model on bytes of Python's documentation."""
    experiment = arch_jax.Experiment(
        name="introduction",
        model=model,
        objective=arch_jax.objective("next_token", prompt="The ", show_length=200, temperature=0.7),
        data=arch_jax.Text(source="pydocs", length=64, batch=16),
        optimizer=arch_jax.Optimizer("adamw", learning_rate=3e-3, warmup=20, weight_decay=0.1),
        steps=steps,
        evaluate_every=steps,
        checkpoint_every=steps,
        log_every=10,
        steps_per_dispatch=10,
    )
    return arch_jax.train(experiment, folder)


models["blind"] = arch_jax.create("gpt", **fields(ATTENTION | {"window": 1}, 128))
outcomes, curves = {}, {}
with tempfile.TemporaryDirectory() as folder:
    for name, model in models.items():
        outcomes[name] = trained(model, f"{folder}/{name}")
        rows = [json.loads(line) for line in (outcomes[name].path / "metrics.jsonl").read_text().splitlines()]
        curves[name] = np.array([(row["step"], row["loss"]) for row in rows if "loss" in row])
loss = {name: outcome.validation["loss"] for name, outcome in outcomes.items()}
for name, outcome in outcomes.items():
    print(f"{name:10} {loss[name]:.2f} nats a byte, {1000 * outcome.step_seconds:.0f} ms a step")
print(f"knowing nothing: {np.log(256):.2f} nats")
gains = {name: 1 - loss[name] / loss["blind"] for name in MIXERS}
print("less than itself alone:", ", ".join(f"{name} {gain:.0%}" for name, gain in gains.items()))
assert outcomes["attention"].finished
assert all(loss[name] < 0.95 * loss["blind"] for name in MIXERS)  # what a position learns from the others
assert np.log(256) - loss["blind"] > 0.7 * (np.log(256) - min(loss.values()))
assert 0.05 < gains["attention"] < 0.18  # the answers to the question
assert gains["rnn"] > gains["attention"] + 0.03
falls_to = {name: curve[-5:, 1].mean() for name, curve in curves.items()}  # the figure's left panel, at its right end
assert max(falls_to[name] for name in MIXERS) < falls_to["blind"]

# %% [markdown]
# The blind model knows which byte follows which, and at this stage that is most of what the others know, too. Attention
# is ahead of it by about a tenth, which answers the first question, and the recurrence of 1990 by about twice that,
# which answers the second: a recurrence is born looking at its neighbours, while attention must learn where to look
# ([lesson 2](02_transformer.ipynb) shows the step at which it does). 200 steps are a beginning: what is true of them is
# true of speed, not of the end.
#
# It generates all the same: each token is drawn from what usually follows the last. `generate` reads the prompt
# once and then feeds back a token a step.

# %%
prompt = jnp.frombuffer(b"The ", dtype=jnp.uint8).astype(jnp.int32)[None]
for name in ("blind", "mamba"):
    new = arch_jax.generate(
        models[name], outcomes[name].state.evaluated, prompt, 100, jax.random.key(5), temperature=0.7
    )
    print(f"{name}: The " + repr(bytes(new[0].tolist()).decode(errors="replace")))
# A token a step, and the whole text read anew: at temperature 0 each new token is the likeliest after all before it.
for name in MIXERS:
    variables = outcomes[name].state.evaluated
    new = arch_jax.generate(models[name], variables, prompt, 60, temperature=0)
    logits = jax.jit(models[name].apply)(variables, jnp.concatenate([prompt, new], axis=1))[:, prompt.shape[1] - 1 : -1]
    taken = jnp.take_along_axis(logits, new[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(taken, logits.max(axis=-1), atol=1e-3, err_msg=name)

# %% [markdown]
# ## The figure
#
# Left: the five models above. Right: the record of `shakespeare_mixers`, one language model with each mixer of the
# library, the width chosen so that all have about as many parameters: 500 steps on Shakespeare's characters, three
# seeds each, one learning rate for all. If the mixer were a detail, the points would lie on one height; if what costs
# more were better, they would fall from left to right; if the newer were, the colours would be sorted by height.

# %%
mixers = arch_jax.load_record("shakespeare_mixers")
variants = {one.changes.get("model.mixer", {"module": "attention"})["module"]: one for one in mixers.variants}
PERIODS = {  # the years of the papers; DeltaNet's rule is of 2021, its present form of 2024
    "to 1997": ("C3", "rnn lstm"),
    "2014 to 2017": ("C1", "gru attention"),
    "2020 to 2022": ("C2", "linear_attention performer s4 s4d delta_net"),
    "2023": ("C0", "rwkv4 retention hyena s6 mamba_block mamba"),
    "since 2024": ("C4", "mamba2 latent_attention gated_delta_net mlstm slstm rwkv7"),
}
period = {name: one for one, (_, names) in PERIODS.items() for name in names.split()}
assert variants.keys() == period.keys()
sizes = [variant.parameters for variant in variants.values()]
assert max(sizes) < 1.02 * min(sizes)
reached = {name: np.array([*variant.values("loss").values()]) for name, variant in variants.items()}
mean = dict(sorted(((name, found.mean()) for name, found in reached.items()), key=lambda pair: pair[1]))
took = {name: 1000 * variant.step_seconds for name, variant in variants.items()}
for name in mean:
    each = " ".join(f"{found:.3f}" for found in reached[name])
    print(f"{name:17} {period[name]:13} {each} nats a character, {took[name]:4.0f} ms a step")
assert all(len(found) == 3 for found in reached.values())

# %%
COLOURS = {"attention": "C1", "rnn": "C3", "lstm": "C2", "mamba": "C0", "blind": "0.4"}
LABELS = {"attention": "attention", "rnn": "RNN", "lstm": "LSTM", "mamba": "Mamba", "blind": "itself alone"}
TOP = 2.1  # what lies above is drawn at the edge, with its value
figure, (falling, price) = plt.subplots(1, 2, figsize=(13, 5.4), layout="constrained", width_ratios=(1, 1.8))
for i, name in enumerate(sorted(falls_to, key=falls_to.get, reverse=True)):
    falling.plot(*curves[name].T, color=COLOURS[name], alpha=0.8)
    falling.text(0.97, 0.94 - 0.06 * i, LABELS[name], color=COLOURS[name], transform=falling.transAxes, ha="right")
falling.set(xlabel="step", ylabel="training loss (nats a byte)", title="In the order of their ends")
for name, found in reached.items():
    colour, at = PERIODS[period[name]][0], min(mean[name], TOP)
    price.plot([took[name]] * 2, np.minimum([found.min(), found.max()], TOP), color=colour, lw=1.5)
    price.plot(took[name], at, "o" if at < TOP else "^", color=colour)
    label = name if at < TOP else f"{name}, {mean[name]:.2f}"
    price.annotate(label, (took[name], at), (7, 0), textcoords="offset points", va="center", fontsize=9)
for i, (one, (colour, _)) in enumerate(PERIODS.items()):
    price.text(0.98, 0.9 - 0.05 * i, one, color=colour, transform=price.transAxes, ha="right")
price.set(xlim=(0.9 * min(took.values()), 1.25 * max(took.values())), ylim=(None, TOP + 0.02), xscale="log")
price.set(xlabel=f"time a step (ms, {mixers.device})", ylabel="validation loss (nats a character)")
price.set(title="What a mixer buys (lines: three seeds)")
price.xaxis.set_major_formatter("{x:.0f}")
price.xaxis.set_minor_formatter("{x:.0f}")
plt.show()

# What is said of the figure below, with every seed.
for name in ("rnn", "lstm", "gru"):
    assert reached[name].max() < reached["attention"].min()
assert abs(mean["gru"] - min(mean.values())) < 0.02
assert took["gru"] < 0.5 * min(took["mamba"], took["mlstm"])
assert {*[*mean][-2:]} == {"linear_attention", "performer"}

# %% [markdown]
# So the mixer is no detail, and neither price nor year sorts the points. Level with the newest is the GRU, at less than
# half of a step's time (of this width, on a CPU). All recurrences from before 2018 are ahead of attention, with every
# seed. The two at the upper edge have no position encoding: order is what they lack, since a sum forgets it.
#
# A million characters show how fast a model learns, not where it ends, and one rate for all is fair to none. That is
# why the course has a lesson for each family, with the tasks by which they part. One cell of the record again, the
# cheapest, with a seed that it doesn't have:

# %%
again = arch_jax.load_experiment("shakespeare_mixers")[0].overridden({**variants["rnn"].changes, "seed": 17})
predicted = variants["rnn"].prediction("loss")
print(f"predicted from the record: {predicted.low:.3f} to {predicted.high:.3f} nats a character")
try:
    again.data.load()
except arch_jax.RunError as missing:
    print(f"Shakespeare is not on this machine, so that no cell is run again here: {missing}")
else:
    with tempfile.TemporaryDirectory() as folder:
        found = arch_jax.train(again, folder).validation["loss"]
    print(f"seed 17: {found:.3f}")
    assert predicted.contains(found)

# %% [markdown]
# ## What it costs
#
# At 64 tokens, a step's time says little: the mixers differ in how they grow with the length. Of one layer of width 64,
# forward and backward:

# %%
costs = arch_jax.load_table("mixers_by_length")
print(costs.title)
for name in ("rnn", "lstm", "mamba", "attention"):
    print(f"{name:10}", *(f"{costs[name][length]['milliseconds']:8.1f} ms" for length in (1024, 4096)))
growth = {name: costs[name][4096]["milliseconds"] / costs[name][1024]["milliseconds"] for name in costs}
assert growth["attention"] > 10  # four times as long: sixteen times the pairs
assert growth["rnn"] < 8

# %% [markdown]
# Where something was published, a record has the published number beside the measured one, with seeds, device and
# commit. Here that of XOR, and one of its cells again.

# %%
record = arch_jax.load_record("xor")
record

# %%
again = arch_jax.load_experiment("xor")[0].overridden({"seed": 17})
with tempfile.TemporaryDirectory() as folder:
    found = arch_jax.train(again, folder).validation["accuracy"]
predicted = record.variant("baseline").prediction("accuracy")
print(f"seed 17: {found:.2f} of the rows; predicted: {predicted.low:.2f} to {predicted.high:.2f}")
assert predicted.contains(found)
without = record.variant("hidden=[]").values("accuracy")
print("without hidden units:", without)
assert max(without.values()) < 1

# %% [markdown]
# **When to choose which?** Where inputs have a fixed size and no order, an MLP is the first thing to try, and the floor
# for all others. Where order matters and little training can be paid for, a recurrence: it is ahead in the figure.
# Where length matters, look at the growth above before all else. Where much training can be paid for, the order of the
# figure may turn round: [lesson 2](02_transformer.ipynb) shows the task that attention is made for, and
# [lesson 13](13_emerging.ipynb) what it never learns.
#
# ## How to read the papers
#
# - Rosenblatt's perceptron has fixed random units before the weights that learn; `perceptron` is the layer that
#   learns. His rule is the objective "classify" with `criterion="perceptron"`, and which gates it learns is the axis
#   `gate` of the record above.
# - Rumelhart, Hinton & Williams give in the letter to *Nature* the backward pass as equations 4 to 7, which is what
#   `jax.grad` derives from `mlp`. XOR is in their longer chapter, with the drawing of two hidden units.
# - Vaswani et al.: the right half of figure 1 is the drawing above, with its norm behind each part where `block` has it
#   before ("pre-norm"; the field is `placement`), and with ReLU in the place of SwiGLU.
#   Section 3.3 is the feed-forward part, section 3.4 the shared table. Table 1 is the growth with length that the last
#   table measures.
#
# ## Exercises
#
# **1. Change a number.** With two hidden units some of the 200 trainings get stuck. Does a smaller learning rate and
# more steps free them?
#
# <details><summary>Solution</summary>
#
# Hardly: they sit where the gradient vanishes for all rows at once, not where steps are too long. Units help and
# patience does not; the cell below trains five times as long.
#
# </details>

# %% tags=["solution"]
patient = jax.jit(jax.vmap(lambda key: rows_right((2,), key, steps=2000, rate=0.25)[0]))(seeds)
share, before = float((patient == 4).mean()), float((learned[2][0] == 4).mean())
print(f"two units: {before:.0%} after 400 steps, {share:.0%} after 2,000 of half the size")
assert share < (learned[3][0] == 4).mean()

# %% [markdown]
# **2. Change code.** Write a mixer of your own in one line: the mean of all inputs up to each place. Show that the
# model is causal with it, and that it is not if the mean is taken over the whole text.
#
# <details><summary>Solution</summary>
#
# `mix(p, x)` gets the part's parameters, of which the mean has none, and the normed stream. A change of the last token
# must leave all logits before it as they were.
#
# </details>


# %% tags=["solution"]
def past_mean(p, x):
    return jnp.cumsum(x, axis=1) / jnp.arange(1, x.shape[1] + 1)[:, None]


def whole_mean(p, x):
    return jnp.broadcast_to(x.mean(axis=1, keepdims=True), x.shape)


params = models["attention"].init(jax.random.key(4), tokens)["params"]
changed = tokens.at[:, -1].add(1)
for mixer, causal in ((past_mean, True), (whole_mean, False)):
    difference = jnp.abs(language_model(params, tokens, mixer) - language_model(params, changed, mixer))
    assert float(difference[:, -1].max()) > 0
    assert (float(difference[:, :-1].max()) == 0) == causal

# %% [markdown]
# **3. Open.** In the figure all models have one learning rate. Is the order the mixer's, or the rate's? `arch-jax
# compare` tunes each model by itself within one budget, with seeds; write down what you expect before it ends.
#
# <details><summary>Hint</summary>
#
# `arch-jax compare gpt:mixer=lstm gpt:mixer=mamba gpt --on shakespeare_mixers --budget parameters=3e5 --seeds 3`, and
# `--tune` with three learning rates; the field `optimizer.warmup` is worth an axis of its own.
#
# </details>
#
# ## Summary
#
# A model is a pure function of its variables and inputs. One layer divides by a line; hidden units fold the plane, and
# a few more than necessary make them easy to train. A language model is five parts, of which one lets positions
# exchange anything, and the course is largely about what to put there. After 200 steps recurrences are ahead of
# attention; how that turns with length, data and task is what the lessons measure.
#
# **Sources**: [doi.org/10.1037/h0042519](https://doi.org/10.1037/h0042519),
# [doi.org/10.1038/323533a0](https://doi.org/10.1038/323533a0), [1706.03762](https://arxiv.org/abs/1706.03762).
#
# **Next**: [lesson 2](02_transformer.ipynb), the Transformer.
