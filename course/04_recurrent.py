# %% [markdown]
# # 4. Recurrent networks: RNN, LSTM, GRU
#
# Hochreiter (1991, diploma thesis) and Bengio, Simard & Frasconi (1994, IEEE Transactions on Neural Networks 5:2), who
# found that gradients vanish; Pascanu, Mikolov & Bengio (2013, [1211.5063](https://arxiv.org/abs/1211.5063)), with the
# bound and with clipping; Hochreiter & Schmidhuber (1997, [LSTM](https://doi.org/10.1162/neco.1997.9.8.1735)); Gers,
# Schmidhuber & Cummins (2000, [the forget gate](https://doi.org/10.1162/089976600300015015)); Cho et al. (2014,
# [1406.1078](https://arxiv.org/abs/1406.1078)), the GRU; Schuster & Paliwal (1997,
# [bidirectional](https://doi.org/10.1109/78.650093)). Run time: <!-- run time -->
#
# <!-- about: vanishing gradient, gates, LSTM and GRU, bidirectional reading | figure: gradient norm against distance,
# fresh and trained; a bidirectional reader against a causal one -->
#
# After this lesson you can
#
# - predict from a recurrence's Jacobian how fast its gradient vanishes or explodes, before training anything;
# - write an LSTM, a GRU and a bidirectional layer in a few lines each, and say what each gate does to the gradient;
# - decide when a recurrent network is the right choice, by its reach, its cost and its state.
#
# **A question first.** A network reads 100 numbers, two of them marked, and must give the sum of those two at the end
# (the *adding problem*). Three networks of 64 units are freshly initialised: a plain RNN with an orthogonal recurrent
# matrix, a GRU, and an LSTM whose forget gates have the bias 1. Take the gradient of each answer in the *first*
# number. Write down two guesses: the order of the three gradients, largest first; and which of the three networks
# learn the task in 600 steps. Do those with the larger gradients learn?

# %%
# Installs the library where it is missing (Colab, Kaggle); elsewhere it does nothing.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("arch_jax") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "arch-jax"], check=True)

# %%
import pathlib
import tempfile

import jax
import jax.flatten_util
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import arch_jax

sigmoid = jax.nn.sigmoid

# %% [markdown]
# ## The equations
#
# All three networks read $x_t$ and carry a state from step to step. With $W$ for the input, $U$ for the state and one
# bias $b$ a gate, as in the code:
#
# $$\text{RNN:}\quad h_t = \tanh(x_t W + h_{t-1} U + b)$$
#
# $$\text{LSTM:}\quad i, f, g, o = x_t W + h_{t-1} U + b, \qquad
# c_t = \sigma(f) \odot c_{t-1} + \sigma(i) \odot \tanh(g), \qquad h_t = \sigma(o) \odot \tanh(c_t)$$
#
# $$\text{GRU:}\quad r, z = \sigma(x_t W_{rz} + h_{t-1} U_{rz} + b_{rz}), \qquad
# n = \tanh\bigl(x_t W_n + b_n + r \odot (h_{t-1} U_n + b_u)\bigr), \qquad h_t = (1 - z) \odot n + z \odot h_{t-1}$$
#
# The RNN rewrites its whole state at each step. The LSTM and the GRU *add* to theirs, by as much as a gate allows, and
# keep the rest by as much as another gate allows. The paper's GRU has $(r \odot h_{t-1}) U_n$, the reset before the
# product; cuDNN, PyTorch and the default here have it after, so that one product a step serves all three gates.
# Exercise 2 goes back to the paper.


# %%
def lstm(p, x):
    """h of every step, "time hidden", for x, "time width"; p as the library names it."""
    W, U = p["input"]["kernel"], p["recurrent"]["kernel"]
    b = jnp.concatenate([p["bias_i"], p["bias_f"], p["bias_g"], p["bias_o"]])

    def step(carry, x_t):
        h, c = carry
        i, f, g, o = jnp.split(x_t @ W + h @ U + b, 4)
        c = sigmoid(f) * c + sigmoid(i) * jnp.tanh(g)
        h = sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    zero = jnp.zeros(U.shape[0])
    return jax.lax.scan(step, (zero, zero), x)[1]


def gru(p, x):
    """(h, z) of every step, "time hidden" each."""
    W, U = p["input"]["kernel"], p["recurrent"]["kernel"]
    b = jnp.concatenate([p["bias_r"], p["bias_z"], p["bias_n"]])

    def step(h, x_t):
        (x_r, x_z, x_n), (h_r, h_z, h_n) = jnp.split(x_t @ W + b, 3), jnp.split(h @ U, 3)
        r, z = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
        n = jnp.tanh(x_n + r * (h_n + p["bias_u"]))
        h = (1 - z) * n + z * h
        return h, (h, z)

    return jax.lax.scan(step, jnp.zeros(U.shape[0]), x)[1]


def bidirectional(p, x):
    """One GRU reads forwards, another one backwards, and a matrix brings both halves to the width of x."""
    forward, backward = gru(p["forward"], x)[0], gru(p["backward"], x[::-1])[0][::-1]
    return jnp.concatenate([forward, backward], axis=1) @ p["output"]["kernel"]


# %% [markdown]
# Each of them gives what the library's module gives, on the same weights. All biases are drawn at random, since a bias
# of 0 would hide its own mistakes.


# %%
def random_weights(module, x, key):
    """The module's variables, with noise on each, so that no bias is 0."""
    flat, rebuild = jax.flatten_util.ravel_pytree(jax.jit(module.init)(key, x))
    return rebuild(flat + 0.3 * jax.random.normal(key, flat.shape))


x = jax.random.normal(jax.random.key(0), (2, 30, 16))
for module, ours in (
    (arch_jax.LSTM(), lstm),
    (arch_jax.GRU(), lambda p, x: gru(p, x)[0]),
    (arch_jax.Bidirectional(mixer=arch_jax.GRU()), bidirectional),
):
    variables = random_weights(module, x, jax.random.key(1))
    theirs, _ = jax.jit(module.apply)(variables, x)
    np.testing.assert_allclose(jax.jit(jax.vmap(ours, (None, 0)))(variables["params"], x), theirs, atol=2e-5)
    print(f"{type(module).__name__:14} equal, {sum(leaf.size for leaf in jax.tree.leaves(variables)):,} parameters")

# %% [markdown]
# ### Why gradients vanish
#
# The RNN's state depends on an earlier one through a product of Jacobians (Pascanu et al., equation 5), and its norm
# is at most the product of theirs:
#
# $$\frac{\partial h_T}{\partial h_t} = \prod_{s=t+1}^{T} \operatorname{diag}(1 - h_s^2)\, U^\top, \qquad
# \left\lVert \frac{\partial h_T}{\partial h_t} \right\rVert \le \prod_{s=t+1}^{T}
# \bigl\lVert \operatorname{diag}(1 - h_s^2)\, U^\top \bigr\rVert \le \rho^{\,T-t}$$
#
# where $\rho$ is the largest singular value of $U$. If $\rho < 1$ the gradient must vanish; if $\rho > 1$ it may
# explode. The cell multiplies the Jacobians, checks the product against the library's own derivative, and does it for
# an orthogonal $U$ times 0.5, 1 and 1.5, once without input ($h = 0$, where $\tanh' = 1$) and once with a small one.


# %%
def jacobians(p, x, h):
    """Norm of dh_t / dh_0 and its bound, of every t; and the last Jacobian itself."""
    W, U, b = p["input"]["kernel"], p["recurrent"]["kernel"], p["bias"]

    def step(carry, x_t):
        h, product, bound = carry
        h = jnp.tanh(x_t @ W + h @ U + b)
        local = (1 - h**2)[:, None] * U.T  # row i, column j: d h_i / d (the state before)_j
        product, bound = local @ product, bound * jnp.linalg.norm(local, 2)
        return (h, product, bound), (jnp.linalg.norm(product, 2), bound)

    (_, product, _), norms = jax.lax.scan(step, (h, jnp.eye(len(h)), 1.0), x)
    return norms, product


STEPS, UNITS = 50, 32
noise = jax.random.normal(jax.random.key(2), (1, STEPS + 1, UNITS))
rnn = arch_jax.RNN()


@jax.jit
def from_the_first(variables, x):
    """Of dh_t / dh_0 after the first token: norms, bounds, the last as a product, and the same by the library."""
    _, begun = rnn.apply(variables, x[:, :1], None, rnn.initial_state(1, STEPS + 1, UNITS))
    (norms, bounds), product = jacobians(variables["params"], x[0, 1:], begun.h[0])
    last = lambda h: rnn.apply(variables, x[:, 1:], None, begun.replace(h=h))[0][0, -1]
    return norms, bounds, product, jax.jacrev(last)(begun.h)[:, 0]


silent, driven, exploding = {}, {}, {}
gradient = jax.jit(jax.grad(lambda variables: rnn.apply(variables, 0.01 * noise)[0][0, -1].sum()))
print(f"norm of dh_t / dh_0 after {STEPS} steps")
print("radius     silent     driven  its bound  radius ** steps")
for radius in (0.5, 1.0, 1.5):
    variables = jax.jit(arch_jax.RNN(scale=radius).init)(jax.random.key(3), noise)
    for amplitude, found in ((0.0, silent), (0.1, driven)):  # the bound printed is that of the second
        norms, bounds, product, derivative = map(np.asarray, from_the_first(variables, amplitude * noise))
        np.testing.assert_allclose(product, derivative, rtol=0, atol=1e-4 * np.abs(product).max())
        assert np.all(norms <= 1.001 * bounds)
        assert np.all(bounds <= 1.001 * radius ** (1 + np.arange(STEPS)))
        found[radius] = norms[-1]
    print(f"{radius:6.1f} {silent[radius]:10.1e} {driven[radius]:10.1e} {bounds[-1]:10.1e} {radius**STEPS:16.1e}")
    exploding[f"radius {radius}"] = gradient(variables)

for radius, norm in silent.items():  # without input radius ** steps is reached
    np.testing.assert_allclose(norm, radius**STEPS, rtol=1e-3)
assert driven[0.5] < 1e-14
assert 0.01 < driven[1.0] < 0.9
assert driven[1.5] > 10

# %% [markdown]
# Radius 1 keeps the gradient only as long as no unit saturates: $1 - h^2 < 1$ costs a little at every step. Above 1 it
# grows, though by far less than $\rho^{50}$, since the growing state saturates. So no radius is right for all inputs,
# and a product of many factors stays near 1 only if something holds each factor there.
#
# Explosion has a cure that vanishing has not. Clipping (Pascanu et al., algorithm 1) scales a gradient whose norm is
# beyond a threshold back to it, and keeps its direction; it is the field `clip` of the optimizer, 1 by default. A
# vanished gradient is far below any threshold, and nothing says what it should have been.

# %%
clipping = arch_jax.Optimizer("sgd", learning_rate=1.0, schedule="constant", b1=0.0, clip=1.0).transformation(1)
exploding["radius 1.5, a millionth"] = jax.tree.map(lambda leaf: leaf / 1e6, exploding["radius 1.5"])
for name, tree in exploding.items():
    step, _ = clipping.update(tree, clipping.init(tree), tree)
    before, after = (jax.flatten_util.ravel_pytree(part)[0] for part in (tree, step))
    lengths = float(jnp.linalg.norm(before)), float(jnp.linalg.norm(after))
    cosine = float(-before @ after) / (lengths[0] * lengths[1])  # a step goes against the gradient
    print(f"{name:24} norm {lengths[0]:9.3g}, clipped {lengths[1]:9.3g}, cosine of the two {cosine:.4f}")
    np.testing.assert_allclose(lengths[1], min(lengths[0], 1.0), rtol=1e-4)
    np.testing.assert_allclose(cosine, 1.0, atol=1e-4)

# %% [markdown]
# ### What a gate does to the product
#
# Freshly initialised, gates of bias 0 are near $\sigma(0) = 1/2$, $\tanh'$ is near 1, and each $U$ is orthogonal. One
# step then multiplies the gradient by about
#
# $$\text{RNN: } U^\top \qquad \text{LSTM, in } c\text{: } \sigma(b_f)\, I + \tfrac12 \cdot \tfrac12\, U_g^\top \qquad
# \text{GRU: } \tfrac12\, I + \tfrac12 \cdot \tfrac12\, U_n^\top$$
#
# so by at most 1, $\sigma(b_f) + 1/4$ and $3/4$. But $\sigma(f)$ and $z$ are functions of what is read: training can
# move them to 1 where nothing is to be stored, and then the factor is $I$. This is what Hochreiter & Schmidhuber call
# the constant error carousel.
#
# The model of the next section, with LSTM cells, from its module tree:

# %%
arch_jax.draw(arch_jax.SequenceReader(width=64, mixer=arch_jax.LSTM()), jnp.zeros((1, 100, 2)))

# %% [markdown]
# ## Training: the adding problem
#
# Each step of a sequence has a number from 0 to 1 and a mark, which is 1 at two places and 0 elsewhere; the target is
# the sum of the two marked numbers. Always answering 1 has a mean squared error of 1/6, the variance of a sum of two.
# The experiment `adding_problem` has 200 numbers and 1,500 steps; here are 100 and 600. Only the cell varies, and the
# plain RNN is the network with the gates removed.

# %%
LENGTH = 100
base, _ = arch_jax.load_experiment("adding_problem")
scratch = tempfile.TemporaryDirectory()  # gone when Python ends
folder = pathlib.Path(scratch.name)


def adding(cell):
    """A short run of the experiment: (error, model, variables)."""
    short = {"data.length": LENGTH, "steps": 600, "evaluate_every": 600, "checkpoint_every": 600, "log_every": 100}
    rates = {"optimizer.learning_rate": 4e-3, "figures": (), "seed": 1}
    run = base.overridden({"model.mixer": cell, **short, **rates})
    outcome = arch_jax.train(run, folder / cell)
    return outcome.validation["loss"], run.model, outcome.state.evaluated


CELLS = ("rnn", "lstm", "gru")
trained = {cell: adding(cell) for cell in CELLS}

# %%
guess = 1 / 6
for cell, (error, _, _) in trained.items():
    print(f"{cell:5} mean squared error {error:.5f}, of the constant's 1/6: {error / guess:.3f}")
assert trained["gru"][0] < guess / 20
assert trained["lstm"][0] < guess / 20
assert trained["rnn"][0] > 0.8 * guess  # without gates: nothing learned

# %% [markdown]
# How far does the answer's gradient reach? At distance $d$ it is the norm of $\partial y / \partial x_{T-d}$, by
# `jax.grad`.

# %%
validation = jnp.asarray(next(iter(base.overridden({"data.length": LENGTH}).data.load().validation()))["x"])


def reach(model, variables):
    """Norm of the answer's gradient in the input read d steps before the last, at index d; mean over the rows."""
    answer = lambda row: model.apply(variables, row[None])[0, 0]
    gradient = jax.jit(jax.vmap(jax.grad(answer)))(validation)
    # In float64, since the squares of such numbers are below the smallest float32.
    return np.linalg.norm(np.asarray(gradient, np.float64), axis=-1).mean(axis=0)[::-1]


def per_step(norms):
    """The factor by which a step changes the norm, from a line through its logarithm at 20 to 90 steps."""
    return float(np.exp(np.polyfit(np.arange(20, 90), np.log(norms[20:90]), 1)[0]))


fresh = {
    cell: reach(model, jax.jit(model.init)(jax.random.key(0), validation)) for cell, (_, model, _) in trained.items()
}
after = {cell: reach(model, variables) for cell, (_, model, variables) in trained.items()}
print("gradient in the first number over that in the last, and the factor a step")
for cell in CELLS:
    for when, norms in (("fresh", fresh[cell]), ("trained", after[cell])):
        print(f"{cell:5} {when:8} {norms[-1] / norms[0]:8.1e}   {per_step(norms):.3f}")

# Fresh, all three vanish, and the GRU, which learns the task, faster than the RNN, which does not.
assert fresh["gru"][-1] < fresh["rnn"][-1] < fresh["lstm"][-1] < 1e-3
assert abs(per_step(fresh["gru"]) - 0.75) < 0.04
assert per_step(fresh["lstm"]) < float(sigmoid(1.0)) + 0.25
# Trained, the gates hold the factor at 1.
for cell in ("gru", "lstm"):
    assert after[cell][-1] > 1e-2 * after[cell][0]
    assert abs(per_step(after[cell]) - 1) < 0.03
assert after["rnn"][-1] < 1e-3 * after["rnn"][0]
assert per_step(after["rnn"]) < 0.95  # a plain RNN still falls at every step

# %% [markdown]
# So the order of the fresh gradients does not tell who learns. The last few numbers are enough to begin with, and from
# there gates learn where to keep. The trained GRU shows it in its update gate $z$, read here by the code from above on
# the trained weights: what comes without a mark leaves more of the state as it is than what comes with one, and some
# units keep nearly all of it. (At a mean $z$ of 0.9, 100 steps would leave $0.9^{100}$, which is nothing: the sum is
# carried by the units at the top.)

# %%
_, model, variables = trained["gru"]
weights = variables["params"]
read = validation @ weights["input"]["kernel"] + weights["input"]["bias"]  # the reader's linear layer in front
(mixer,) = [block["mixer"] for block in jax.tree.leaves(weights["stack"], is_leaf=lambda v: "mixer" in v)]
states, z = jax.jit(jax.vmap(gru, (None, 0)))(mixer, read)
answers = states[:, -1] @ weights["output"]["kernel"] + weights["output"]["bias"]
np.testing.assert_allclose(answers, jax.jit(model.apply)(variables, validation), atol=1e-4)

marked = np.asarray(validation[..., 1] == 1)
kept, written = (np.asarray(z)[chosen].mean(0) for chosen in (~marked, marked))  # of each unit
print(f"mean of z over all units: {kept.mean():.3f} at unmarked numbers, {written.mean():.3f} at marked ones")
top = np.argsort(kept)[-3:]
print("the three units that keep most:", *(f"{kept[unit]:.4f} and {written[unit]:.4f}" for unit in top), sep="  ")
assert kept.mean() > written.mean() + 0.1
assert kept.max() > 0.97

# %% [markdown]
# ### Reading both ways
#
# A recurrence sees what came before. Where the answer depends on what comes later, as in tagging a sentence, one
# network more is read backwards, and both states are joined (Schuster & Paliwal 1997). The task here has a bound that
# can be computed: a row of 24 symbols has one *key* of 4 kinds at a random place, and *every* place is asked for it. A
# causal reader has seen the key at place $t$ (from 0) with probability $(t+1)/24$ and otherwise guesses among 4:
#
# $$\text{accuracy of any causal reader at } t \;\le\; \frac{t+1}{24} + \frac14 \Bigl(1 - \frac{t+1}{24}\Bigr).$$

# %%
PLACES, KEYS, ROWS = 24, 4, 4096


def draw_rows(key, rows):
    """Rows of symbols from 4 to 7, with one key from 0 to 3; and the keys."""
    noise, place, which = jax.random.split(key, 3)
    symbols = jax.random.randint(noise, (rows, PLACES), KEYS, 2 * KEYS)
    answers = jax.random.randint(which, (rows,), 0, KEYS)
    return symbols.at[jnp.arange(rows), jax.random.randint(place, (rows,), 0, PLACES)].set(answers), answers


def accuracy_by_place(mixer, steps=200):
    """Trains a reader with this mixer; the share of new rows that it answers correctly, at each place."""
    model = arch_jax.Decoder(2 * KEYS, 1, 32, mixer=mixer, feed_forward=None, tied=False, scan=False)
    optimizer = arch_jax.Optimizer("adam", learning_rate=1e-2, warmup=20).transformation(steps)

    def loss(params, symbols, answers):
        logits = model.apply({"params": params}, symbols)
        return arch_jax.cross_entropy(logits, jnp.broadcast_to(answers[:, None], symbols.shape)).mean()

    def step(carry, key):
        params, state = carry
        changes, state = optimizer.update(jax.grad(loss)(params, *draw_rows(key, 64)), state, params)
        return (jax.tree.map(jnp.add, params, changes), state), None

    params = jax.jit(model.init)(jax.random.key(0), draw_rows(jax.random.key(0), 1)[0])["params"]
    keys = jax.random.split(jax.random.key(1), steps)
    (params, _), _ = jax.jit(lambda *carry: jax.lax.scan(step, carry, keys))(params, optimizer.init(params))
    symbols, answers = draw_rows(jax.random.key(2), ROWS)
    logits = jax.jit(model.apply)({"params": params}, symbols)
    return np.asarray((logits.argmax(-1) == answers[:, None]).mean(0))


causal = accuracy_by_place(arch_jax.GRU())
both_ways = accuracy_by_place(arch_jax.Bidirectional(mixer=arch_jax.GRU()))
# Of the very rows that are asked: the share whose key has come by each place, (t + 1) / 24 but for chance.
seen = np.asarray((draw_rows(jax.random.key(2), ROWS)[0] < KEYS).cumsum(axis=1).mean(axis=0))
np.testing.assert_allclose(seen, (1 + np.arange(PLACES)) / PLACES, atol=0.04)
ceiling = seen + (1 - seen) / KEYS
luck = np.sqrt((1 - seen) * (1 / KEYS) * (1 - 1 / KEYS) / ROWS)  # standard deviation of what guessing adds
print(
    f"causal: at most {np.abs(causal - ceiling).max():.3f} from the ceiling; both ways: at least {both_ways.min():.3f}"
)
assert np.all(np.abs(causal - ceiling) < 4.5 * luck + 0.005)
assert both_ways.min() > 0.99

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained", width_ratios=(1.5, 1))
colours = {"rnn": "tab:red", "lstm": "tab:blue", "gru": "tab:green"}
heights = {("lstm", "trained"): 5, ("gru", "trained"): -7}  # points by which labels make way for each other
for cell in CELLS:
    for when, norms, style in (("fresh", fresh[cell], "--"), ("trained", after[cell], "-")):
        left.plot(norms, style, color=colours[cell], linewidth=1.5)
        left.annotate(
            f"{cell.upper()} {when}",
            (LENGTH - 1, norms[-1]),
            (4, heights.get((cell, when), 0)),
            textcoords="offset points",
            va="center",
            color=colours[cell],
            fontsize=9,
            annotation_clip=False,
        )
left.set(yscale="log", xlim=(0, LENGTH - 1), xlabel="distance from the last number (steps)")
left.set(ylabel="norm of the answer's gradient", title="Gates learn to keep; a plain RNN has none")
right.plot(both_ways, color="tab:green", linewidth=1.8)
right.plot(causal, "o", color="tab:red", markersize=4)
right.plot(ceiling, color="black", linewidth=0.8)
right.annotate("bidirectional GRU", (1, 0.96), color="tab:green", va="top")
right.annotate("causal GRU", (10, causal[10]), (6, -12), textcoords="offset points", color="tab:red", va="top")
right.annotate("ceiling of any\ncausal reader", (9, ceiling[9]), (-6, 8), textcoords="offset points", ha="right")
right.set(ylim=(0, 1.05), xlabel="place in the row (symbols)", ylabel="share of rows answered correctly")
right.set_title("The answer may still be to come")
plt.show()

# %% [markdown]
# **What would have refuted it.** Left: a trained RNN with a flat curve, or a GRU that solves the task while its
# trained curve still falls. Right: a causal reader above its ceiling by more than a lucky guess in a hundred, which
# would have to see the future, or a bidirectional one below 1 at the first places, which would then not be reading
# backwards.
#
# ### The same at full size
#
# The record of `adding_problem` has each cell at 200 numbers and 1,500 steps; the errors of its seeds:

# %%
record = arch_jax.load_record("adding_problem")
for variant in record.variants:
    found = ", ".join(f"{value:.2e}" for value in variant.values("loss").values()) if variant.results else "none"
    diverged = f"; {len(variant.diverged)} diverged" if variant.diverged else ""
    print(f"{variant.label:48} {variant.parameters:>7,} parameters   {found}{diverged}")
assert max(record.variant("baseline").values("loss").values()) < 0.01 < guess
assert max(record.variant("mixer=lstm").values("loss").values()) < 0.01
assert min(record.variant("mixer=rnn").values("loss").values()) > 0.8 * guess
(accumulator,) = [one for one in record.variants if "identity" in one.label]
assert max(accumulator.values("loss").values()) < 0.01

# %% [markdown]
# The last row has no gates and learns all the same: with $U = I$ and `relu` in place of `tanh` the factor is 1 for
# every unit that is on (Le et al. 2015). So it is the factor that counts; gates are the way to choose it by what is
# read. Freshly initialised and all on, its Jacobian over 50 steps is the identity, to the last digit:

# %%
irnn = arch_jax.RNN(initial="identity", activation="relu")
own = jax.jit(irnn.init)(jax.random.key(3), noise)
_, begun = irnn.apply(own, noise[:, :1], None, irnn.initial_state(1, STEPS + 1, UNITS))
last = lambda h: irnn.apply(own, 0.01 * noise[:, 1:], None, begun.replace(h=h))[0][0, -1]
np.testing.assert_array_equal(jax.jit(jax.jacrev(last))(jnp.ones((1, UNITS)))[:, 0], np.eye(UNITS))

# %% [markdown]
# A second record, `sequential_digits`, reads digits of 8 x 8 pixels one pixel at a time, by two residual blocks of
# each mixer; its baseline is S4, a linear recurrence. The cheapest cell, the RNN, is trained again with a seed that is
# not in the record; its accuracy must lie within the 95 % prediction interval of the recorded seeds. The interval is
# wide, since a tanh RNN depends much on its seed.

# %%
digits = arch_jax.load_record("sequential_digits")
for variant in digits.variants:
    print(f"{variant.label:12} accuracy {variant.interval('accuracy')}")
recorded = digits.variant("mixer=rnn")
again = arch_jax.load_experiment("sequential_digits")[0]
again = again.overridden({**recorded.changes, "seed": 7, "evaluate_every": 1000, "log_every": 100, "figures": ()})
accuracy = arch_jax.train(again, folder / "digits").validation["accuracy"]
expected = recorded.prediction("accuracy", scale="arcsine")  # a share's scale: no end lies beyond 1
print(f"seed 7: {accuracy:.4f}, expected between {expected.low:.4f} and {expected.high:.4f}")
assert 7 not in recorded.results
assert expected.contains(accuracy)
mean = lambda label: digits.variant(label).interval("accuracy").mean
assert mean("mixer=rnn") < mean("mixer=lstm")
assert mean("mixer=rnn") < mean("mixer=gru")

# %% [markdown]
# ## What it costs
#
# Time to train grows in proportion to the length, since each step costs the same; but the steps follow one another,
# and an accelerator waits for each. In decoding, time and memory of a token do not depend on how many came before it:
# the state has a fixed size, which `jax.eval_shape` tells without allocating it. Attention keeps all that it has read.


# %%
def state_bytes(mixer, length, width=64):
    """Bytes of the state of one layer for one row, with room for `length` tokens."""
    state = jax.eval_shape(lambda: mixer.initial_state(1, length, width))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


training, decoding = arch_jax.load_table("mixers_by_length"), arch_jax.load_table("decoding_recurrent")
modules = {
    "rnn": arch_jax.RNN(),
    "gru": arch_jax.GRU(),
    "lstm": arch_jax.LSTM(),
    "attention": arch_jax.Attention(heads=4),
}
print("           training, ms for one layer    decoding, ms a token behind     state, bytes, room for")
print("                 1,024       4,096             0      16,384            1,024        16,384")
slope = {}
for name, module in modules.items():
    short, long = (training[name][length]["milliseconds"] for length in (1024, 4096))
    first, late = (decoding[name][place]["milliseconds"] for place in (0, 16384))
    small, large = state_bytes(module, 1024), state_bytes(module, 16384)
    slope[name] = np.log(long / short) / np.log(4)
    print(f"{name:10} {short:11.1f} {long:11.1f} {first:13.3f} {late:11.3f} {small:16,} {large:13,}")
    assert (small == large) == (name != "attention")
    assert (late > 3 * first) == (name == "attention")
print("time grows with the length to the power of", ", ".join(f"{name} {power:.2f}" for name, power in slope.items()))
assert max(slope[name] for name in CELLS) < 1.3 < 1.8 < slope["attention"]

# %% [markdown]
# The published number beside the measured one:

# %%
record

# %% [markdown]
# Choose a recurrent network
#
# - for streams and small devices: the table's time and state for a token do not grow;
# - where a state must be *tracked*, such as the parity of all bits so far. What is read must then be able to turn the
#   state round, as it can where the state passes through a matrix and a nonlinearity at each step, and cannot where it
#   is multiplied by factors from 0 to 1: in the record of `formal_languages`, a recurrence of the first kind counts far
#   beyond its training's lengths, and those of the second guess ([lesson 13](13_emerging.ipynb)).
#
# Do not choose it
#
# - where much must be recalled: a state of fixed size has to hold all that may be asked. The record of `copy_memory`
#   has the LSTM and the RNN at the loss of a model that remembers nothing, and attention far below it. Recall of pairs
#   (`mqar`) is the subject of [lesson 10](10_state_spaces.ipynb), attention that of [lesson 6](06_attention.ipynb);
# - where long sequences must be trained fast on accelerators: the steps of these three can't be taken in parallel,
#   those of linear recurrences such as S4 can, and S4 is ahead of them in `sequential_digits`, too.

# %%
copying = arch_jax.load_record("copy_memory")
memoryless = 10 * np.log(8) / 220  # nats a token of a model that knows when to copy but not what
shares = {one.label: one.interval("loss").mean / memoryless for one in copying.variants if one.results}
print("copying after 200 blanks: loss, as a fraction of what a model without memory has")
for label, share in shares.items():
    print(f"    {label:60} {share:.3f}")

(attention,) = [share for label, share in shares.items() if "attention" in label]
assert min(shares["baseline"], shares["mixer=rnn"]) > 0.95 > 0.1 > attention  # the baseline is the LSTM
assert mean("baseline") > max(mean("mixer=lstm"), mean("mixer=gru"))  # S4 reads digits

# %% [markdown]
# ## How to read the papers
#
# **Hochreiter & Schmidhuber (1997).** Section 3 is the analysis of `jacobians` in words and in sums over paths;
# section 3.2 is the constant error carousel, a unit that feeds itself with weight 1. Section 4 has the cell: its $s_c$
# is $c$, $y^{in}$ and $y^{out}$ are $\sigma(i)$ and $\sigma(o)$, and its update is the line `c = ...` of `lstm`
# without `sigmoid(f)`: a cell of 1997 forgets nothing. Its gradient is cut at $h_{t-1}$, where it would enter a gate
# or $g$. Exercise 2 goes back to both. Experiment 4 is the adding problem; its criterion, an absolute error of 0.04,
# is the objective's field `tolerance`.
#
# **Gers et al. (2000)** multiply the old cell by the forget gate: the factor `sigmoid(f)`.
#
# **Cho et al. (2014).** Figure 2 is the unit, equations 5 to 8 are the lines `r, z = ...`, `n = ...` and `h = ...` of
# `gru`, with the reset before the product in equation 8.
#
# **Jozefowicz, Zaremba & Sutskever (2015, ICML, "An empirical exploration of recurrent network architectures").**
# Table 1 is an ablation: LSTM-i, -o and -f are the LSTM without that gate, LSTM-b is the LSTM whose forget gates start
# with the bias 1. The forget gate is the one that matters most there, and the bias is the field `forget_bias`.
# Exercise 1 repeats its reasoning.
#
# ## Exercises
#
# **1. Change a number.** `arch_jax.LSTM(forget_bias=...)` starts with 1. Predict the factor a step of a fresh LSTM
# with the bias 0 and -1, then measure both with `reach` and `per_step`. Which other cell has the same factor as bias
# 0?
#
# <details><summary>Solution</summary>
#
# The bound $\sigma(b_f) + 1/4$ gives 3/4 for the bias 0, as for the GRU, and about 0.52 for -1. Small gates hardly
# saturate anything, so the bound is nearly reached. With the bias 1 the bound is near 1; what is measured lies below,
# since $c$ then adds up and $\tanh'(c) < 1$. This is why the bias matters before the gates have learned anything.
#
# </details>

# %% tags=["solution"]
factor = {}
for bias in (-1.0, 0.0, 1.0):
    reader = arch_jax.SequenceReader(width=64, mixer=arch_jax.LSTM(forget_bias=bias))
    norms = reach(reader, jax.jit(reader.init)(jax.random.key(0), validation))
    factor[bias] = per_step(norms)
    print(f"forget bias {bias:4.1f}: {factor[bias]:.3f} a step, at most {float(sigmoid(bias)) + 0.25:.3f} predicted")
for bias in (-1.0, 0.0):
    assert abs(factor[bias] - float(sigmoid(bias)) - 0.25) < 0.03
assert 0.85 < factor[1.0] < float(sigmoid(1.0)) + 0.25

# %% [markdown]
# **2. Change code.** (a) Put the reset gate of `gru` before the product, as in equation 8 of Cho et al., and compare
# it with `arch_jax.GRU(reset="before")`, which has no `bias_u`. (b) Make `lstm` the cell of 1997: no forget gate, and
# no gradient through $h_{t-1}$, which feeds the gates and $g$ (`jax.lax.stop_gradient`). What is $\partial c_T /
# \partial c_0$ then, exactly?
#
# <details><summary>Solution</summary>
#
# (a) `n = tanh(x_n + (r * h) @ U_n)` with the last third of `U`. (b) The identity, whatever the weights, the inputs
# and the length: $c_t = c_{t-1} + \ldots$, and nothing else carries a gradient from cell to cell.
#
# </details>


# %% tags=["solution"]
def gru_of_2014(p, x):
    """The GRU with its reset gate before the product."""
    W, U = p["input"]["kernel"], p["recurrent"]["kernel"]
    U_rz, U_n = jnp.split(U, [2 * U.shape[0]], axis=1)
    b = jnp.concatenate([p["bias_r"], p["bias_z"], p["bias_n"]])

    def step(h, x_t):
        (x_r, x_z, x_n), (h_r, h_z) = jnp.split(x_t @ W + b, 3), jnp.split(h @ U_rz, 2)
        r, z = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
        h = (1 - z) * jnp.tanh(x_n + (r * h) @ U_n) + z * h
        return h, h

    return jax.lax.scan(step, jnp.zeros(U.shape[0]), x)[1]


def cells_of_1997(p, x, c):
    """The last cells, begun with c: nothing is forgotten, and no gradient goes back through h."""
    W, U = p["input"]["kernel"], p["recurrent"]["kernel"]
    b = jnp.concatenate([p["bias_i"], p["bias_f"], p["bias_g"], p["bias_o"]])

    def step(carry, x_t):
        h, c = carry
        i, _, g, o = jnp.split(x_t @ W + jax.lax.stop_gradient(h) @ U + b, 4)
        c = c + sigmoid(i) * jnp.tanh(g)
        return (sigmoid(o) * jnp.tanh(c), c), None

    return jax.lax.scan(step, (jnp.zeros_like(c), c), x)[0][1]


x = jax.random.normal(jax.random.key(0), (2, 30, 16))
published = arch_jax.GRU(reset="before")
variables = random_weights(published, x, jax.random.key(1))
theirs, _ = jax.jit(published.apply)(variables, x)
np.testing.assert_allclose(jax.jit(jax.vmap(gru_of_2014, (None, 0)))(variables["params"], x), theirs, atol=2e-5)

weights = random_weights(arch_jax.LSTM(), x, jax.random.key(1))["params"]
carousel = jax.jit(jax.jacrev(lambda c: cells_of_1997(weights, x[0], c)))(jnp.zeros(16))
np.testing.assert_array_equal(carousel, np.eye(16))

# %% [markdown]
# **3. Open.** Tallec & Ollivier (2018, [1804.11188](https://arxiv.org/abs/1804.11188)) draw forget biases as the
# logarithm of a uniform number from 1 to $T - 1$, so that units forget over all time scales up to $T$. Does it help on
# the adding problem at 400 numbers, and is it the reach at initialisation that explains it, or does the LSTM with one
# large bias do as well?
#
# <details><summary>Solution</summary>
#
# There is no settled answer. Compare biases of 1, 3 and 5, with at least three seeds each: `arch-jax train
# adding_problem --set model.mixer=lstm --set model.mixer.forget_bias=3 --set data.length=400 --set seed=0`; the biases
# drawn by unit need a module of your own, or parameters changed between `init` and training. Look at the curves, not
# only at the end: most of the difference is in when learning starts. Then plot the fresh reach of each variant against
# the step at which its error first falls below 1/12.
#
# </details>
#
# ## Summary
#
# A recurrent network's gradient is a product of Jacobians, and a product of many factors vanishes or explodes unless
# something holds each factor at 1. Clipping cures the explosion, gates the vanishing: they make the factor a function
# of what is read, which training moves to 1 where nothing is to be stored. Fresh networks of all three kinds vanish,
# and only the gated ones learned to stop. Reading both ways lifts the ceiling that causality sets. State and time per
# token are constant, and with them the amount that can be remembered.
#
# ## Sources
#
# The papers at the top; Jozefowicz et al. (2015); Bai, Kolter & Koltun (2018,
# [1803.01271](https://arxiv.org/abs/1803.01271)), whose table 1 has the adding problem at 600 numbers; Le, Jaitly &
# Hinton (2015, [1504.00941](https://arxiv.org/abs/1504.00941)), the RNN that starts as an accumulator, in the record
# above.
#
# Next: [lesson 5](05_encoder_decoder.ipynb), two recurrent networks that translate, and the attention between
# them.
