# %% [markdown]
# # 10. State spaces: S4, S4D, Mamba
#
# Gu, Goel & Ré (2021, [2111.00396](https://arxiv.org/abs/2111.00396)), S4; Gu, Gupta, Goel & Ré (2022,
# [2206.11893](https://arxiv.org/abs/2206.11893)), S4D, its diagonal form; Gu & Dao (2023,
# [2312.00752](https://arxiv.org/abs/2312.00752)), Mamba. Run time: <!-- run time -->
#
# <!-- about: S4, S4D, Mamba: linear time, selection, why for long contexts | figure: one S4D as recurrence and as
# convolution, the same numbers -->
#
# After this lesson you can
#
# - write a state space layer as a differential equation, a recurrence and a convolution, and show that they agree;
# - say which of the three a machine should run, and why the answer differs between training and generation;
# - say what *selection* adds, show a task that needs it, and name the price.
#
# **A question first.** A network reads 48 tokens. Four of them are symbols; the others are noise, and the symbols stand
# at random places. At the end, it must repeat the four in order. Network A keeps a state that changes by the same rule
# at every token; network B may let its rule depend on the token, and has the smaller state. Guess the share of symbols
# that each gets right, where a sixth is chance. Would you guess differently if the four symbols always stood first?

# %%
# Installs the library where it is missing (Colab, Kaggle); elsewhere it does nothing.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("arch_jax") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "arch-jax"], check=True)

# %%
import tempfile

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import arch_jax

# %% [markdown]
# ## One system, three forms
#
# Each channel of a sequence is a signal $u(t)$ of its own, which drives a linear system with a state
# $x(t) \in \mathbb{C}^N$:
#
# $$x'(t) = A\,x(t) + B\,u(t), \qquad y(t) = 2\,\mathrm{Re}\bigl(C\,x(t)\bigr) + D\,u(t).$$
#
# In S4D, $A$ is diagonal with negative real parts, so each of the $N$ numbers is an oscillation that decays; conjugate
# pairs are kept once, hence $2\,\mathrm{Re}$. Tokens are samples: between two of them, $\Delta$ apart, $u$ is held
# constant, and the equation is solved exactly (*zero-order hold*):
#
# $$\bar A = e^{\Delta A}, \qquad \bar B = A^{-1}(e^{\Delta A} - 1)\,B, \qquad x_t = \bar A\,x_{t-1} + \bar B\,u_t .$$
#
# This **recurrence** needs one token at a time and the memory of one state. Unrolled, it is a **convolution** with a
# kernel that no input changes:
#
# $$y = \bar K * u + D\,u, \qquad \bar K_l = 2\,\mathrm{Re}\bigl(C\,\bar A^{\,l}\,\bar B\bigr).$$
#
# The convolution has no step that waits for another. With the Fourier transform it costs $O(T \log T)$.


# %%
def discretized(p):
    """A_bar and B_bar of every channel, "channels pairs", by zero-order hold; B = 1, as in the library."""
    A = -jnp.exp(p["log_A_real"]) + 1j * p["A_imag"]
    A_bar = jnp.exp(jnp.exp(p["log_step"])[:, None] * A)
    return A_bar, (A_bar - 1) / A


def recurrence(p, u):
    """S4D one token at a time: u is "time channels"."""
    (A_bar, B_bar), C = discretized(p), p["C"][..., 0] + 1j * p["C"][..., 1]

    def step(x, u_t):
        x = A_bar * x + B_bar * u_t[:, None]
        return x, 2 * jnp.real((C * x).sum(axis=1)) + p["D"] * u_t

    return jax.lax.scan(step, jnp.zeros_like(A_bar), u)[1]


def convolution(p, u):
    """S4D all tokens at once: the kernel, and a product of Fourier transforms, padded so that nothing wraps around."""
    (A_bar, B_bar), C, T = discretized(p), p["C"][..., 0] + 1j * p["C"][..., 1], len(u)
    K = 2 * jnp.real((C * B_bar)[None] * A_bar[None] ** jnp.arange(T)[:, None, None]).sum(axis=2)
    product = jnp.fft.rfft(K, 2 * T, axis=0) * jnp.fft.rfft(u, 2 * T, axis=0)
    return jnp.fft.irfft(product, 2 * T, axis=0)[:T] + p["D"] * u


s4d = arch_jax.S4D(state=32, glu=False)
u = jax.random.normal(jax.random.key(0), (512, 4))
variables = s4d.init(jax.random.key(1), u[None])
library = s4d.apply(variables, u[None])[0][0]
step_by_step, at_once = recurrence(variables["params"], u), convolution(variables["params"], u)
np.testing.assert_allclose(step_by_step, library, atol=2e-5)
np.testing.assert_allclose(at_once, library, atol=2e-5)

# The library's own recurrence, which generates: a token at a time, from state to state.
one = jax.jit(lambda state, u_t: s4d.apply(variables, u_t[None, None], None, state)[::-1])
states, generated = jax.lax.scan(one, s4d.initial_state(1, len(u), 4), u)
np.testing.assert_allclose(generated[:, 0, 0], library, atol=2e-5)
difference = float(jnp.abs(step_by_step - at_once).max())
print(f"recurrence and convolution differ by {difference:.1e}; outputs reach {float(jnp.abs(library).max()):.1f}")

# %% [markdown]
# Both are linear in $u$ and **time-invariant**: shift the input, and the output shifts with it. That one property gives
# the convolution its speed and, below, sets its limit.

# %%
shift = 37
moved = jnp.zeros_like(u).at[shift:].set(u[:-shift])
outputs = s4d.apply(variables, moved[None])[0][0]
np.testing.assert_allclose(outputs[shift:], library[:-shift], atol=2e-5)

# %% [markdown]
# ## Selection
#
# Mamba's S6 gives linearity up: $\Delta$, $B$ and $C$ are functions of the token, so that the system that a token meets
# varies over time. $A$ is real, and $\bar B$ is simplified to $\Delta B$:
#
# $$B_t = u_t W_B, \quad C_t = u_t W_C, \quad \Delta_t = \mathrm{softplus}(u_t W_{\mathrm{low}} W_\Delta + b_\Delta),$$
#
# $$h_t = e^{\Delta_t A} \odot h_{t-1} + \Delta_t B_t u_t, \qquad y_t = C_t h_t + D\,u_t .$$
#
# A token with $\Delta_t \approx 0$ leaves the state as it was: it is ignored. A large $\Delta_t$ forgets the past and
# takes the token. $\Delta$ is a gate (that of a GRU is a special case, the paper's theorem 1; gates are the subject of
# [lesson 4](04_recurrent.ipynb)). The price: no kernel is left that could be convolved with; training runs a *scan*.


# %%
def selective_scan(p, u):
    """S6 one token at a time: u is "time channels"."""
    A = -jnp.exp(p["A_log"])

    def step(h, u_t):
        delta = jax.nn.softplus(u_t @ p["delta_low"]["kernel"] @ p["delta"]["kernel"] + p["delta_bias"])[:, None]
        B, C = u_t @ p["B"]["kernel"], u_t @ p["C"]["kernel"]
        h = jnp.exp(delta * A) * h + delta * B * u_t[:, None]
        return h, h @ C + p["D"] * u_t

    return jax.lax.scan(step, jnp.zeros_like(A), u)[1]


s6 = arch_jax.S6(state=8, glu=False)
selective = s6.init(jax.random.key(2), u[None])
np.testing.assert_allclose(selective_scan(selective["params"]["ssm"], u), s6.apply(selective, u[None])[0][0], atol=2e-5)
# Linear or not: does twice the input give twice the output?
once, doubled = (s6.apply(selective, scale * u[None])[0][0] for scale in (1.0, 2.0))
assert float(jnp.abs(doubled - 2 * once).max()) > 0.1
assert float(jnp.abs(s4d.apply(variables, 2 * u[None])[0][0] - 2 * library).max()) < 1e-4

# %% [markdown]
# Mamba's block puts S6 behind a short convolution and beside a gate; there is no attention and no feed-forward part.

# %%
arch_jax.draw("mamba-130m", depth=2)

# %% [markdown]
# ## What an unchanging rule cannot do
#
# The task of the question: *selective copying* (Mamba, table 1), small enough for a minute. Two layers of width 48 in
# the same decoder, once with S6 and once with S4D, and a state of 16 and 64 numbers a channel: S4D has the larger one.


# %%
def trained(mixer):
    """Metrics after 600 steps on selective copying: 4 symbols of 6 kinds among 48 tokens."""
    experiment, _ = arch_jax.load_experiment("selective_copying")
    small = {"model.width": 48, "model.vocabulary": 8, "model.mixer": mixer}
    task = {"data.length": 48, "data.copied": 4, "data.symbols": 6, "data.shortest": 4, "data.batch": 32}
    short = {"steps": 600, "evaluate_every": 300, "checkpoint_every": 600, "optimizer.warmup": 50}
    experiment = experiment.overridden(
        {**small, **task, **short, "optimizer.learning_rate": 4e-3, "objective.show_length": 4}
    )
    with tempfile.TemporaryDirectory() as folder:
        outcome = arch_jax.train(experiment, folder)
    return outcome.validation["accuracy_at_48"], outcome


selected, outcome = trained("s6")
unselected, _ = trained("s4d")
print(f"symbols right among 48 tokens: S6 {selected:.1%}, S4D {unselected:.1%}, chance {1 / 6:.1%}")
assert selected > 0.9
assert unselected < 0.75
assert selected - unselected > 0.2

# %% [markdown]
# S4D has learned something: the symbols leave a trace in its state. But noise leaves its trace by the same rule, and
# where the symbols stand, no fixed kernel can know. If the four always stood first, a kernel of the right delay would
# do: in the record of `copy_memory`, where ten symbols always stand 210 tokens before their copies, S4D is right
# where gated recurrences fail.

# %%
copying = arch_jax.load_record("copy_memory")
for variant in copying.variants:
    print(f"{variant.label:45} {variant.interval('loss')} nats a token")
fixed_delay = copying.variant("mixer=s4d")
assert fixed_delay.interval("loss").mean < 0.2 * copying.variant("baseline").interval("loss").mean

# %% [markdown]
# One cell of that record, again, with a seed that it does not have. The prediction interval says where a further seed
# should land.

# %%
again = arch_jax.load_experiment("copy_memory")[0].overridden({**fixed_delay.changes, "seed": 17})
with tempfile.TemporaryDirectory() as folder:
    loss = arch_jax.train(again, folder).validation["loss"]
predicted = fixed_delay.prediction("loss", scale="log")  # near 0, losses differ by factors
print(f"seed 17: {loss:.5f} nats a token; predicted from the record: {predicted.low:.5f} to {predicted.high:.5f}")
assert predicted.contains(loss)

# %% [markdown]
# ## The figure
#
# One S4D, freshly initialised, run twice: dots are the recurrence, lines the convolution. If a single dot stood beside
# its line, the two would not be the same map, and what was trained as a convolution could not be run as a recurrence.

# %%
p = variables["params"]
A_bar, B_bar = discretized(p)
C = p["C"][..., 0] + 1j * p["C"][..., 1]
impulse = jnp.zeros((200, 4)).at[0].set(1.0)
kernels = recurrence(p | {"D": jnp.zeros(4)}, impulse)

figure, (poles, kernel, both) = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
circle = np.exp(2j * np.pi * np.linspace(0, 1, 200))
poles.plot(circle.real, circle.imag, color="0.8", linewidth=1)
for channel in range(4):
    steps = float(jnp.exp(p["log_step"][channel]))
    (line,) = kernel.plot(kernels[:, channel], label=f"$\\Delta$ = {steps:.3f}")
    poles.plot(A_bar[channel].real, A_bar[channel].imag, ".", color=line.get_color())
    both.plot(at_once[:120, channel] + 6 * channel, color=line.get_color(), linewidth=1)
    both.plot(np.arange(0, 120, 3), step_by_step[:120:3, channel] + 6 * channel, ".", color=line.get_color())
poles.set(title=r"$\bar A$: each dot decays and turns", xlabel="real part", ylabel="imaginary part", aspect="equal")
kernel.set(title=r"$\bar K$: the answer to one impulse", xlabel="tokens since the impulse", ylabel="output")
kernel.legend(frameon=False)
both.set(title="dots: recurrence, lines: convolution", xlabel="token", ylabel="output, channels set apart")
both.set_yticks([])
plt.show()
assert float(jnp.abs(step_by_step[:120] - at_once[:120]).max()) < 2e-5
roughness = jnp.linalg.norm(jnp.diff(kernels, axis=0), axis=0) / jnp.linalg.norm(kernels, axis=0)
assert (jnp.argsort(roughness) == jnp.argsort(p["log_step"])).all()  # the smaller the step, the smoother the kernel
many = s4d.init(jax.random.key(3), jnp.zeros((1, 1, 4096)))["params"]["log_step"]
np.testing.assert_allclose(jnp.quantile(many, jnp.array([0.0, 0.5, 1.0])), np.log([0.001, 0.01, 0.1]), atol=0.2)

# %% [markdown]
# A channel's step $\Delta$ sets its time scale: small steps make kernels that are long and smooth. They are drawn from
# 0.001 to 0.1 by ratio, so that with $\mathrm{Re}\,\lambda = -1/2$ a layer begins with memories, $2/\Delta$, of 20 to
# 2,000 tokens.
#
# ## What it costs
#
# Measured for one layer of width 64, forward and backward, and for one token of generation by two layers.

# %%
training, decoding = arch_jax.load_table("mixers_by_length"), arch_jax.load_table("decoding_recurrent")
print(training.title)
lengths = (1024, 4096, 16384, 65536)
for name in ("attention", "s4d", "s6", "mamba", "lstm"):
    cells = [f"{training[name][T]['milliseconds']:8.1f} ms" if T in training[name] else "          -" for T in lengths]
    print(f"{name:10}", *cells)
print(decoding.title)
for name in ("attention", "s4d", "s6", "mamba", "lstm"):
    print(f"{name:10}", *(f"{decoding[name][T]['milliseconds']:8.3f} ms" for T in (0, 1024, 4096, 16384)))


def power(name, first, last):
    """The power of the length by which a layer's time grows between two lengths."""
    times = [training[name][T]["milliseconds"] for T in (first, last)]
    return float(np.log(times[1] / times[0]) / np.log(last / first))


print({name: round(power(name, 1024, 4096), 2) for name in ("attention", "s4d", "mamba")})
assert power("attention", 1024, 4096) > 1.7
assert all(power(name, 4096, 65536) < 1.3 for name in ("s4d", "s6", "mamba"))
for name in ("s4d", "s6", "mamba"):  # a state of fixed size: as many bytes after 16,384 tokens as before the first
    assert decoding[name][16384]["KiB"] == decoding[name][0]["KiB"]
assert decoding["attention"][16384]["KiB"] > 100 * decoding["attention"][0]["KiB"]

# %% [markdown]
# So the convolution trains and the recurrence generates: the first uses all cores at once, the second costs the same
# behind 16,384 tokens as behind none. S6 has no convolution, and its scan still grows linearly.
#
# ## Published beside measured

# %%
heads = arch_jax.load_record("induction_heads")
mamba, attention = heads.variants
tested = {256: "accuracy"} | {length: f"accuracy_at_{length}" for length in (512, 1024, 4096, 16384)}
print("trained at 256 tokens, tested at    ", *(f"{length:7,}" for length in tested))
for name, variant in (("Mamba", mamba), ("rotary attention", attention)):
    for seed in variant.values("accuracy"):
        print(f"{name:28} seed {seed}  ", *(f"{variant.values(metric)[seed]:7.0%}" for metric in tested.values()))
learned = [seed for seed, share in mamba.values("accuracy").items() if share > 0.99]
assert len(learned) == 2
assert min(mamba.values("accuracy_at_4096")[seed] for seed in learned) > 0.95
assert max(attention.values("accuracy_at_4096").values()) < 0.2  # a guess among 16 has 6 %
assert heads.figures[0].verdict == "not reproduced"
heads

# %%
arch_jax.load_record("sequential_digits")

# %% [markdown]
# **Choose a state space** where sequences are long and the signal is smooth or sampled (audio, sensors, pixels: S4's
# record above on digits read pixel by pixel), where generation must cost the same at any length (the table), or where
# one selected thing must be kept for long (`induction_heads`: two of three seeds keep it over 16 times the training
# length, where rotary attention guesses, and lose some of it at 64 times; the third had not learned the task in 2,000
# steps, so that the published 100 % is not reproduced).
#
# **Choose attention** ([lesson 2](02_transformer.ipynb)) where many things must be looked up by content: its memory
# grows with the text, as the table's last column says, where a state of fixed size can hold only so many pairs.
#
# **Choose a nonlinear recurrence** where a state must be tracked exactly ([lesson 13](13_emerging.ipynb) asks who can
# count): $\bar A$ of Mamba is real and positive, so no token can flip a sign.
#
# ## How to read the papers
#
# - S4D: equations 2 to 4 are `discretized`; the kernel of section 3.1 (a *Vandermonde product*) is the line that makes
#   `K`; figure 1's initialisation "S4D-Lin", $A_n = -\tfrac12 + i\pi n$, is what the left panel shows after
#   discretisation. Its ablation of initialisations (table 3) is `arch_jax.S4D(initial="inv")` or `"lin"`.
# - S4: the low-rank term of section 3 is what `arch_jax.S4` has and S4D leaves away; theorem 1 says where
#   HiPPO's matrix comes from.
# - Mamba: algorithm 2 is `selective_scan`; table 1 is the training above (published for 4,096 tokens, without the
#   block: S4 18.3 %, S6 97.0 %); figure 3 is the drawing; the ablation of which of $\Delta$, $B$ and $C$ must be
#   selective (table 7) finds $\Delta$ the most important.
#
# ## Exercises
#
# **1. Change a number.** Which memories does a layer begin with? Set `step_min` and `step_max` of S4D to 0.1 and 0.1.
# How many tokens pass until its slowest oscillation has lost 99 %?
#
# <details><summary>Solution</summary>
#
# The real part is $-\tfrac12$, so $|\bar A| = e^{-\Delta/2}$, and 99 % are lost after $2 \ln(100) / \Delta$ tokens:
# a hundred times as many for the smallest step as for the largest. The cell below measures it.
#
# </details>

# %% tags=["solution"]
fast = arch_jax.S4D(state=32, glu=False, step_min=0.1, step_max=0.1)
own = fast.init(jax.random.key(1), u[None])["params"]
largest = float(jnp.abs(discretized(own)[0]).max())
tokens = np.log(0.01) / np.log(largest)
print(f"99 % are lost after {tokens:.0f} tokens")
assert abs(tokens - 2 * np.log(100) / 0.1) < 1

# %% [markdown]
# **2. Change code.** Replace the zero-order hold in `discretized` by the bilinear rule,
# $\bar A = (1 + \Delta A/2)/(1 - \Delta A/2)$ and $\bar B = \Delta/(1 - \Delta A/2)$, and compare with
# `arch_jax.S4D(discretization="bilinear")`.
#
# <details><summary>Solution</summary>
#
# Two lines change. For slow modes the rules agree to second order in $\Delta A$. For fast ones they differ: the
# bilinear rule maps the imaginary axis once around the unit circle, so that all frequencies are kept apart but slowed;
# the exponential goes around it many times, so that a frequency beyond $\pi/\Delta$ looks like a lower one.
#
# </details>


# %% tags=["solution"]
def bilinear(p):
    A = -jnp.exp(p["log_A_real"]) + 1j * p["A_imag"]
    delta = jnp.exp(p["log_step"])[:, None]
    return (1 + delta * A / 2) / (1 - delta * A / 2), delta / (1 - delta * A / 2)


discretized, zero_order_hold = bilinear, discretized
reference = arch_jax.S4D(state=32, glu=False, discretization="bilinear").apply(variables, u[None])[0][0]
np.testing.assert_allclose(recurrence(p, u), reference, atol=2e-5)
assert float(jnp.abs(reference - library).max()) > 1e-3  # another map, not a rounding
discretized = zero_order_hold

# %% [markdown]
# **3. Open.** $\Delta$ alone can be made selective, with $B$ and $C$ fixed. How much of S6's lead in selective copying
# remains, and does the answer depend on how many symbols there are?
#
# <details><summary>Hint</summary>
#
# Write a mixer of your own ([extending.md](../docs/extending.md) has the contract): `selective_scan` with `B` and `C`
# as parameters. $\Delta_t$ decides what is kept; $C_t$ what is read, and the answer's position must be known to
# read the symbols in order. Vary `data.copied`.
#
# </details>
#
# ## Summary
#
# A state space layer is a linear system for each channel. Sampled, it is a recurrence; unrolled, a convolution; and the
# two agree to rounding, so that one form trains and the other generates. An unchanging rule cannot choose what to keep:
# with noise among the symbols, S4D fails where S6, whose step depends on the token, succeeds. The price of selection is
# the convolution; the scan that remains is still linear in the length, and the state is of a fixed size, which bounds
# what can be recalled.
#
# **Sources**: [2111.00396](https://arxiv.org/abs/2111.00396), [2206.11893](https://arxiv.org/abs/2206.11893),
# [2312.00752](https://arxiv.org/abs/2312.00752), and for recall [2312.04927](https://arxiv.org/abs/2312.04927).
#
# **Next**: [lesson 12](12_autoencoders.ipynb), autoencoders.
