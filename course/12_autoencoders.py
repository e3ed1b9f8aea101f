# %% [markdown]
# # 12. Autoencoders and VAEs
#
# Baldi & Hornik (1989, [doi](https://doi.org/10.1016/0893-6080(89)90014-2)), the linear autoencoder; Vincent et al.
# (2008, [doi](https://doi.org/10.1145/1390156.1390294)) and Alain & Bengio (2014,
# [1211.4246](https://arxiv.org/abs/1211.4246)), denoising; Ng (2011,
# [notes](https://web.stanford.edu/class/cs294a/sparseAutoencoder.pdf)) and Makhzani & Frey (2014,
# [1312.5663](https://arxiv.org/abs/1312.5663)), sparse codes; Kingma & Welling (2014,
# [1312.6114](https://arxiv.org/abs/1312.6114)), the variational autoencoder (VAE). Run time: <!-- run time -->
#
# <!-- about: bottleneck, denoising, sparse and variational codes; the ELBO and its gradient | figure: a VAE's latent
# map, and the linear autoencoder landing on PCA's plane -->
#
# After this lesson you can
#
# - say what a linear autoencoder finds, what a denoising one and a sparse one find, and check each against the truth;
# - write the evidence lower bound and its gradient through a sample in thirty lines;
# - say what the divergence in the bound is for, show what happens without it, and name its price.
#
# **A question first.** A network squeezes an image of a digit into two numbers; another restores the image from them.
# Two such pairs are trained: one for good restorations alone, one as a VAE. Then each encoder is thrown away, and each
# decoder is given two numbers drawn from a standard normal, whose squared length is 2 on average. Guess the average
# squared length of the codes that each decoder was trained on. What will the first decoder draw?

# %%
# Installs the library where it is missing (Colab, Kaggle); elsewhere it does nothing.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("arch_jax") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "arch-jax"], check=True)

# %%
import tempfile
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import arch_jax

digits = arch_jax.Images(source="digits", batch=100)
corpus = digits.load()


def whole(batches):
    """Images "batch height width channels" and labels, without what fills up the last batch."""
    batches = list(batches)
    kept = np.concatenate([batch["weights"] for batch in batches]) > 0
    return tuple(np.concatenate([batch[name] for batch in batches])[kept] for name in ("images", "labels"))


images, known = whole(corpus.training_sample(10_000))
unseen, labels = whole(corpus.validation())
pixels = images.reshape(len(images), -1)
print(f"{len(images)} images of {pixels.shape[1]} pixels for training, {len(unseen)} for validation")

# %% [markdown]
# ## Through a bottleneck
#
# An autoencoder is trained to return its input $x \in \mathbb{R}^D$, through a code of $n < D$ numbers:
#
# $$z = g(x), \qquad r(x) = h(z), \qquad \text{minimise } \frac1N \sum_i \lVert x_i - r(x_i) \rVert^2 .$$
#
# If $g$ and $h$ are linear, all reconstructions lie in the plane (with biases: an affine one) that the decoder's rows
# span. Of all planes, that of the first $n$ principal components has the least squared error. Baldi & Hornik showed
# more: it is the only local minimum, and all other critical points are saddles, so that gradient descent gets there.
# The plane is unique; the axes in it are not.
#
# The angle between two planes: with orthonormal rows $U$ of one and $Q$ of the other, the singular values of $UQ^\top$
# are the cosines of the *principal angles*. The largest of them is zero only if the planes are one.

# %%
centred = pixels - pixels.mean(axis=0)
U = np.linalg.svd(centred, full_matrices=False)[2][:2]
best_linear = float(np.square(centred - centred @ U.T @ U).sum(axis=1).mean())


def largest_angle(rows):
    """The largest principal angle in degrees between the span of two rows and the first two principal components."""
    Q = np.linalg.qr(np.asarray(rows, np.float64).T)[0]
    return float(np.degrees(np.arccos(np.clip(np.linalg.svd(U @ Q)[1], 0, 1)).max()))


def descended(module, frozen=(), steps=2000):
    """Adam on all images at once: the parameters at the end, the error and the decoder's last rows at each step."""
    task = arch_jax.objective("autoencode").with_model(module)
    batch = {"images": images, "weights": np.ones(len(images), np.float32)}
    rule = arch_jax.Optimizer("adam", learning_rate=0.015, schedule="cosine", clip=None).transformation(steps)

    def step(carry, _):
        parameters, moments = carry
        error = lambda p: jnp.divide(*task.loss("model", "main", {"params": p}, batch, jax.random.key(0), 0)[0])
        value, slope = jax.value_and_grad(error)(parameters)
        slope = {name: jax.tree.map(jnp.zeros_like, part) if name in frozen else part for name, part in slope.items()}
        change, moments = rule.update(slope, moments, parameters)
        rows = parameters["decoder"]["outputs"]["kernel"]
        return (jax.tree.map(jnp.add, parameters, change), moments), (value, rows)

    first = task.init(jax.random.key(0), batch)["params"]
    (last, _), (errors, rows) = jax.jit(lambda p: jax.lax.scan(step, (p, rule.init(p)), None, steps))(first)
    return last, np.asarray(errors), np.asarray(rows)


linear = arch_jax.create("autoencoder-linear", resolution=8, latent=2)
_, linear_errors, linear_rows = descended(linear)
_, fixed_errors, fixed_rows = descended(linear, frozen=("decoder",))
deep = arch_jax.create("autoencoder-linear", resolution=8, latent=2, hidden=(64,), activation="tanh")
deep_parameters, deep_errors, _ = descended(deep)

moments_shown = np.unique(np.geomspace(1, 2000, 60).astype(int)) - 1
linear_angles = np.array([largest_angle(linear_rows[i]) for i in moments_shown])
fixed_angles = np.array([largest_angle(fixed_rows[i]) for i in moments_shown])
restored = deep.apply({"params": deep_parameters}, images).reshape(len(images), -1)
restored = np.asarray(restored - restored.mean(axis=0))
off_plane = 1 - float(np.square(restored @ U.T).sum() / np.square(restored).sum())
print(f"squared error of an image: PCA {best_linear:.3f}, linear autoencoder {linear_errors[-1]:.3f}")
print(f"   encoder alone trained {fixed_errors[-1]:.3f}, with a hidden layer on each side {deep_errors[-1]:.3f}")
print(f"angle to PCA's plane: {linear_angles[0]:.1f} degrees at first, {linear_angles[-1]:.2f} at the end")
print(f"   with a decoder that is not trained {fixed_angles[-1]:.1f}")
assert linear_angles[-1] < 0.5 < 60 < linear_angles[0]
assert best_linear * (1 - 1e-4) < linear_errors[-1] < best_linear * 1.002
assert fixed_angles[-1] > 60
assert fixed_errors[-1] > 2 * best_linear

# %% [markdown]
# A tanh on the code alone changes little: of small codes it is as good as linear, and large decoder weights make up for
# them. Hidden layers of tanh units leave the plane, and get below the error that no linear map can pass.

# %%
_, squashed_errors, squashed_rows = descended(linear.clone(code_activation="tanh"))
squashed = largest_angle(squashed_rows[-1])
print(f"tanh on the code: error {squashed_errors[-1]:.3f}, angle {squashed:.2f} degrees")
print(f"hidden layers: share of the reconstructions' variance that lies off PCA's plane {off_plane:.0%}")
assert linear_angles[-1] < squashed < 30
assert squashed_errors[-1] < 1.01 * best_linear
assert deep_errors[-1] < 0.8 * best_linear
assert off_plane > 0.2

# %% [markdown]
# ## Denoising: the score
#
# Give the network $\tilde x = x + \sigma \epsilon$ and ask for $x$: no bottleneck is needed, as copying is wrong now.
# The best answer is the mean of $x$ given $\tilde x$, and for normal noise that mean is known (Alain & Bengio,
# theorem 1, for small noise; for any $\sigma$ with the density $p_\sigma$ of the *noisy* points):
#
# $$\frac{r(\tilde x) - \tilde x}{\sigma^2} = \nabla \log p_\sigma(\tilde x).$$
#
# A denoising autoencoder is an estimate of the gradient of the log-density, the *score*: it has learned the density up
# to a constant. For eight Gaussians on a circle the truth can be written down. The experiment `denoising_score` is
# recorded with three seeds; here it is again with a seed that the record does not have, and without noise in training.


# %%
def rerun(name, **changes):
    """The outcome of a recorded experiment with another seed, and the experiment."""
    experiment = arch_jax.load_experiment(name)[0].overridden({"seed": 17, "figures": [], **changes})
    with tempfile.TemporaryDirectory() as folder:
        return arch_jax.train(experiment, folder), experiment


def prediction(figure):
    """Ends of the interval in which one further seed lies with 95 %: mean -+ t s sqrt(1 + 1/n), by Student's t."""
    half = figure.mean.half * np.sqrt(figure.mean.count + 1)  # mean.half is t s / sqrt(n)
    return figure.mean.mean - half, figure.mean.mean + half


ring = next(iter(arch_jax.load_experiment("denoising_score")[0].data.load().validation()))
sigma = arch_jax.load_experiment("denoising_score")[0].objective.noise


def score(x):
    """The gradient of log p of the noisy mixture, "points 2"."""
    variance = ring["std"] ** 2 + sigma**2
    log_p = lambda at: jax.nn.logsumexp(-0.5 * jnp.square(at - ring["centres"]).sum(axis=1) / variance)
    return jax.vmap(jax.grad(log_p))(x)


def implied(outcome, experiment, x):
    """(r(x) - x) / sigma^2."""
    return (experiment.task.outputs(outcome.state.evaluated, x) - x) / sigma**2


denoising, task_of_ring = rerun("denoising_score")
copying, _ = rerun("denoising_score", **{"objective.noise": 0.0, "steps": 500})
noisy = ring["x"] + sigma * jax.random.normal(jax.random.split(jax.random.key(0))[0], ring["x"].shape)
error = {
    name: float(jnp.square(implied(outcome, task_of_ring, noisy) - score(noisy)).sum() / jnp.square(score(noisy)).sum())
    for name, outcome in (("denoising", denoising), ("copying", copying))
}
low, high = prediction(arch_jax.load_record("denoising_score").figures[0])
print(f"mean squared error of the score, as a share of its mean square: {error['denoising']:.4f}")
print(f"predicted from the record's three seeds: {low:.4f} to {high:.4f}; trained without noise {error['copying']:.3f}")
np.testing.assert_allclose(error["denoising"], denoising.validation["score_error"], rtol=1e-3)
assert low <= denoising.validation["score_error"] <= high
assert error["copying"] > 0.5

# %%
side = np.linspace(-2.4, 2.4, 17, dtype=np.float32)
places = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
figure, panels = plt.subplots(1, 3, figsize=(12, 4), layout="constrained", sharey=True)
fields = {
    "the score": score(places),
    "$(r(x) - x)/\\sigma^2$, trained with noise": implied(denoising, task_of_ring, places),
    "trained without": implied(copying, task_of_ring, places),
}
for panel, (title, field) in zip(panels, fields.items(), strict=True):
    panel.plot(*ring["x"][:600].T, ".", color="0.8", markersize=3)
    panel.quiver(*places.T, *np.asarray(field).T, color="C3", scale=250, width=0.004)
    panel.set(title=title, xlabel="first coordinate", aspect="equal", xlim=(-2.6, 2.6), ylim=(-2.6, 2.6))
panels[0].set_ylabel("second coordinate")
plt.show()

# %% [markdown]
# Diffusion models are this network at many values of $\sigma$, and sample by following its arrows.
#
# ## Sparse: many numbers, few at a time
#
# A code may have more numbers than the input if few of them are active at once. Then a row of the decoder is a *part*,
# and $x$ is a sum of a few parts. Ng puts a price on activity; a k-sparse autoencoder keeps the $k$ largest units.
# In `sparse_dictionary` each vector is a sum of 3 of 128 planted atoms, and the question is how many of them are found.

# %%
k_sparse = arch_jax.create("autoencoder-k-sparse", resolution=8, latent=100, kept=5)
variables = k_sparse.init(jax.random.key(0), images[:50])
weights = variables["params"]["encoder"]["outputs"]
a = pixels[:50] @ weights["kernel"] + weights["bias"]
fifth = jnp.sort(a, axis=1)[:, -5][:, None]
np.testing.assert_allclose(
    k_sparse.apply(variables, images[:50], method="encode"), jnp.where(a >= fifth, a, 0), atol=1e-5
)

priced, _ = rerun("sparse_dictionary")
free, _ = rerun("sparse_dictionary", **{"objective.activity_weight": 0.0, "steps": 1000})
low, high = prediction(arch_jax.load_record("sparse_dictionary").figures[0])
print(f"atoms found: {priced.validation['recovered']:.1%}; predicted from the record {low:.1f} % to {high:.1f} %")
print(f"without the price on activity: {free.validation['recovered']:.1%}, at a loss of {free.validation['loss']:.4f}")
assert low <= 100 * priced.validation["recovered"] <= high
assert free.validation["recovered"] < 0.1
assert free.validation["loss"] < priced.validation["loss"]

# %% [markdown]
# The last line is the lesson of all autoencoders: without the price the reconstruction is better and the code means
# nothing. What the code is worth comes from what it is not allowed to be.
#
# ## A code with a distribution
#
# Kingma & Welling start from a model of the data: $z \sim \mathcal{N}(0, I)$, $x \sim p_\theta(x \mid z)$. Its
# likelihood $p_\theta(x) = \int p_\theta(x \mid z)\,p(z)\,dz$ has no closed form. The encoder gives a normal
# distribution $q_\phi(z \mid x)$ of means $\mu$ and variances $\sigma^2$, and with it a bound:
#
# $$\log p_\theta(x) = \underbrace{\mathbb{E}_{q}\bigl[\log p_\theta(x \mid z)\bigr]
# - \mathrm{KL}\bigl(q_\phi(z \mid x)\,\|\,p(z)\bigr)}_{\text{evidence lower bound (ELBO)}}
# + \mathrm{KL}\bigl(q_\phi(z \mid x)\,\|\,p_\theta(z \mid x)\bigr).$$
#
# The divergence from the prior is known for normal distributions (their appendix B):
#
# $$-\mathrm{KL} = \tfrac12 \sum_j \bigl(1 + \log \sigma_j^2 - \mu_j^2 - \sigma_j^2\bigr),$$
#
# and the expectation is an average over samples $z = \mu + \sigma \odot \epsilon$, $\epsilon \sim \mathcal{N}(0, I)$:
# the *reparameterisation*, through which the gradient reaches $\mu$ and $\sigma$. Pixels are probabilities of white,
# so $\log p_\theta(x \mid z)$ is minus a cross-entropy.


# %%
def layers(p, x):
    """Dense layers with tanh between them; the last is linear."""
    hidden = sorted(name for name in p if name.startswith("hidden"))
    for name in hidden:
        x = jnp.tanh(x @ p[name]["kernel"] + p[name]["bias"])
    return x @ p["outputs"]["kernel"] + p["outputs"]["bias"]


def posterior(p, x):
    """Means and log-variances of q(z | x), each "batch latent"; x is "batch pixels"."""
    return jnp.split(layers(p["encoder"], x), 2, axis=-1)


def log_likelihood(p, x, z):
    """log p(x | z) in nats; z may have more leading axes than x."""
    a = layers(p["decoder"], z)
    return (x * jax.nn.log_sigmoid(a) + (1 - x) * jax.nn.log_sigmoid(-a)).sum(axis=-1)


def divergence(mean, log_variance):
    """KL(q(z | x) || N(0, I)) in nats."""
    return -0.5 * (1 + log_variance - mean**2 - jnp.exp(log_variance)).sum(axis=-1)


def elbo(p, x, noise):
    """The bound of each image; noise is "draws batch latent"."""
    mean, log_variance = posterior(p, x)
    z = mean + jnp.exp(0.5 * log_variance) * noise
    return log_likelihood(p, x, z).mean(axis=0) - divergence(mean, log_variance)


vae = arch_jax.create("vae", resolution=8, latent=2, hidden=(128, 64))
task = arch_jax.objective("variational", draws=3).with_model(vae)
batch = {"images": jnp.asarray(images[:20]), "weights": jnp.ones(20)}
variables = jax.tree.map(lambda x: 3 * x, jax.jit(task.init)(jax.random.key(0), batch))  # large: no term is near 0
key = jax.random.key(1)
noise = jax.random.normal(jax.random.split(key)[0], (3, 20, 2))


def library(p):
    """The loss of the library's objective, which draws the same noise from the key."""
    (total, weight), _ = task.loss("model", "main", {"params": p}, batch, key, 0)
    return total / weight


scratch = lambda p: -elbo(p, batch["images"].reshape(20, -1), noise).mean()
(ours, our_slope), (theirs, their_slope) = (
    jax.jit(jax.value_and_grad(f))(variables["params"]) for f in (scratch, library)
)
np.testing.assert_allclose(ours, theirs, rtol=1e-5)
jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4), our_slope, their_slope)
likely, z, mean, log_variance = task.outputs(variables, batch["images"], noise, method="draws")
np.testing.assert_allclose(likely, log_likelihood(variables["params"], batch["images"].reshape(20, -1), z), rtol=1e-5)
np.testing.assert_allclose(z, mean + jnp.exp(log_variance / 2) * noise, rtol=1e-5)
# Appendix B against its definition, the mean of log q(z | x) - log p(z) over samples.
epsilon = jax.random.normal(jax.random.key(2), (200_000, 2))
m, s = jnp.array([0.7, -0.4]), jnp.array([-1.0, 0.5])
by_samples = (0.5 * (m + jnp.exp(s / 2) * epsilon) ** 2 - 0.5 * epsilon**2 - s / 2).sum(axis=1).mean()
np.testing.assert_allclose(divergence(m, s), by_samples, atol=0.02)
print(f"minus the bound: from scratch {ours:.3f}, the library {theirs:.3f} nats an image; equal gradients")

# %%
arch_jax.draw("vae", resolution=8, latent=2, hidden=(128, 64))

# %% [markdown]
# ## Training, with and without the divergence
#
# The VAE, and the same network with the divergence's weight $\beta$ at 0: both sample their codes, and only the price
# differs. Their codes are judged by the mean squared length of $z \sim q(z \mid x)$, which is 2 under the prior.


# %%
def trained(beta):
    """Variables and validation metrics after 2,500 batches."""
    experiment = arch_jax.Experiment(
        name="digits",
        model=vae,
        objective=arch_jax.objective("variational", beta=beta, evaluation_draws=10),
        data=digits,
        optimizer=arch_jax.Optimizer("adam", learning_rate=3e-3, schedule="cosine"),
        steps=2500,
        evaluate_every=2500,
        checkpoint_every=2500,
        log_every=1000,
        steps_per_dispatch=100,
        figures=(),
    )
    with tempfile.TemporaryDirectory() as folder:
        outcome = arch_jax.train(experiment, folder)
    return outcome.state.evaluated, outcome.validation


flat = jnp.asarray(unseen.reshape(len(unseen), -1))
models = {beta: trained(beta) for beta in (1.0, 0.0)}
radius = np.sqrt(2 * np.log(20))  # of the circle that holds 95 % of a standard normal in the plane
codes, length, inside = {}, {}, {}
for beta, (found, metrics) in models.items():
    codes[beta], log_variance = posterior(found["params"], flat)
    z = codes[beta] + jnp.exp(log_variance / 2) * jax.random.normal(jax.random.key(5), (100, *codes[beta].shape))
    length[beta] = float((z**2).sum(axis=-1).mean())
    inside[beta] = float(((z**2).sum(axis=-1) < radius**2).mean())
    parts = f"{metrics['reconstruction']:.1f} of reconstruction, {metrics['kl']:.1f} of divergence"
    print(f"beta {beta:.0f}: minus the bound {metrics['loss']:.1f} nats ({parts})")
    print(f"   squared length of a code {length[beta]:.1f}; in the circle of 95 % of the prior {inside[beta]:.0%}")
    # On images that it never saw, the number is the bound: the same from scratch, with other samples.
    by_hand = -elbo(found["params"], flat, jax.random.normal(jax.random.key(6), (200, *codes[beta].shape))).mean()
    np.testing.assert_allclose(by_hand, metrics["loss"], rtol=0.01)
assert 1.3 < length[1.0] < 3.0
assert inside[1.0] > 0.85
assert inside[0.0] < 0.6
assert length[0.0] > 5 * length[1.0]
assert models[0.0][1]["reconstruction"] < models[1.0][1]["reconstruction"]
assert models[0.0][1]["loss"] > models[1.0][1]["loss"] + 5

# %% [markdown]
# What do the decoders draw from standard normal codes? With $\beta = 0$ the prior covers only a part of the codes: the
# digits that happen to lie there are drawn again and again, others never. So the samples of either decoder are near to
# some digit, but not every digit is near to a sample. A sample's class is that of the nearest training image.


# %%
def nearest(x, among):
    """Euclidean distance of each row of x to the nearest row among others, and which row that is."""
    square = np.square(x).sum(axis=1)[:, None] + np.square(among).sum(axis=1) - 2 * x @ among.T
    return np.sqrt(np.maximum(square.min(axis=1), 0)), square.argmin(axis=1)


normal = jax.random.normal(jax.random.key(3), (500, 2))
drawn, covered, commonest = {}, {}, {}
for beta in models:
    drawn[beta] = np.asarray(jax.nn.sigmoid(layers(models[beta][0]["params"]["decoder"], normal)))
    distance, which = nearest(drawn[beta], pixels)
    covered[beta] = float(nearest(np.asarray(flat), drawn[beta])[0].mean())
    commonest[beta] = np.bincount(known[which], minlength=10).max() / 500
    print(f"beta {beta:.0f}: from a sample to the nearest digit {distance.mean():.2f}; from a digit to the nearest")
    print(f"   sample {covered[beta]:.2f}; commonest class among samples {commonest[beta]:.0%}")
assert covered[1.0] < 0.9 * covered[0.0]
assert commonest[0.0] > 1.5 * commonest[1.0]

# %% [markdown]
# ## The gradient through a sample
#
# The bound's gradient for $\phi$ can be had without differentiating the decoder, by the *score-function estimator*
# (section 2.2 of the paper, which calls its variance too high):
#
# $$\nabla_\phi \mathbb{E}_q[f(z)] = \mathbb{E}_q\bigl[f(z)\,\nabla_\phi \log q_\phi(z \mid x)\bigr]
# \qquad\text{or}\qquad \mathbb{E}_\epsilon\bigl[\nabla_\phi f(\mu + \sigma \odot \epsilon)\bigr].$$
#
# Both are right on average. Here they are for $f = \log p_\theta(x \mid z)$ of the trained VAE, as gradients for the
# four numbers $\mu$ and $\log \sigma^2$ of each of eight images.

# %%
p = models[1.0][0]["params"]
epsilon = jax.random.normal(jax.random.key(4), (20_000, 2))
chosen = jnp.stack(posterior(p, flat[:8]), axis=1)  # "images 2 latent": means, and log-variances


def through_sample(x, q):
    """Gradients of log p(x | mu + sigma epsilon) for q = (mu, log sigma^2), "draws 2 latent"."""
    f = lambda q, e: log_likelihood(p, x, q[0] + jnp.exp(q[1] / 2) * e)
    return jax.vmap(jax.grad(f), (None, 0))(q, epsilon)


def score_function(x, q):
    """log p(x | z) times the gradient of log q(z) at a fixed z, "draws 2 latent"."""
    z = q[0] + jnp.exp(q[1] / 2) * epsilon
    log_q = lambda q, z: -0.5 * ((z - q[0]) ** 2 * jnp.exp(-q[1]) + q[1]).sum()
    return log_likelihood(p, x, z)[:, None, None] * jax.vmap(jax.grad(log_q), (None, 0))(q, z)


def agree(first, second):
    """Asserts that the means over draws, "images draws 2 latent", are equal within 5 standard errors."""
    gap = first.mean(axis=1) - second.mean(axis=1)
    allowed = 5 * jnp.sqrt((first.var(axis=1) + second.var(axis=1)) / first.shape[1])
    assert bool((jnp.abs(gap) < allowed).all())


path, log_derivative = (jax.jit(jax.vmap(f))(flat[:8], chosen) for f in (through_sample, score_function))
agree(path, log_derivative)
variance = {
    "through the sample": path.var(axis=1).sum(axis=(1, 2)),
    "score function": log_derivative.var(axis=1).sum((1, 2)),
}
for name, of_images in variance.items():
    print(f"variance of one draw's gradient, {name}: median over images {float(jnp.median(of_images)):.2f}")
ratio = float(jnp.median(variance["score function"] / variance["through the sample"]))
print(f"the score function needs {ratio:.0f} times as many draws for the same error")
assert ratio > 20

# %% [markdown]
# ## The figure
#
# Above, the VAE: images at the prior's quantiles, and the codes of validation digits. Below left, the codes with
# $\beta = 0$: the circle that holds 95 % of the prior is the same as above. Below right, the angle between the linear
# autoencoder's plane and PCA's. A map with holes in it (tiles that are no digit), or codes of the VAE that
# spread far over the circle, would have refuted the prior's use; a curve that levels off above zero, Baldi & Hornik.

# %%
quantiles = jax.scipy.stats.norm.ppf(jnp.linspace(0.03, 0.97, 15))
grid = jnp.stack(jnp.meshgrid(quantiles, quantiles[::-1]), axis=-1)
tiles = np.asarray(jax.nn.sigmoid(layers(p["decoder"], grid))).reshape(15, 15, 8, 8)
from_digits = nearest(tiles.reshape(225, 64), pixels)[0]
tiles = np.pad(tiles, [(0, 0), (0, 0), (1, 1), (1, 1)])
figure, panels = plt.subplots(2, 2, figsize=(11, 10.6), layout="constrained")
latent_map, with_prior, without, planes = panels.ravel()
latent_map.imshow(tiles.transpose(0, 2, 1, 3).reshape(150, 150), cmap="gray_r")
marks, names = np.arange(15)[::7] * 10 + 4.5, [f"{float(x):.1f}" for x in quantiles[::7]]
latent_map.set_xticks(marks, names)
latent_map.set_yticks(marks, names[::-1])
latent_map.set(
    title="VAE: decoded quantiles of the prior", xlabel="$z_1$, in equal steps of probability", ylabel="$z_2$"
)
circle = radius * np.exp(2j * np.pi * np.linspace(0, 1, 200))
for panel, beta in ((with_prior, 1.0), (without, 0.0)):
    for digit in range(10):
        of_class = np.asarray(codes[beta])[labels == digit]
        panel.scatter(*of_class.T, s=9, color=f"C{digit}", alpha=0.6)
    for digit in range(10):
        place = np.median(np.asarray(codes[beta])[labels == digit], axis=0)
        panel.text(
            *place,
            digit,
            size=15,
            weight="bold",
            ha="center",
            va="center",
            color=f"C{digit}",
            bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1},
        )
    panel.plot(circle.real, circle.imag, color="black", linewidth=1)
    panel.set(xlabel="mean of $z_1$", ylabel="mean of $z_2$", aspect="equal")
with_prior.set_title("VAE: codes of validation digits; circle: 95 % of the prior")
without.set_title(r"the same with $\beta = 0$")
planes.loglog(moments_shown + 1, linear_angles, color="C0")
planes.loglog(moments_shown + 1, fixed_angles, color="C3")
planes.text(1.2, linear_angles[0] * 0.62, "linear autoencoder", color="C0")
planes.text(1.2, fixed_angles[0] * 1.12, "decoder not trained", color="C3")
planes.set(
    title="angle between the decoder's plane and PCA's", xlabel="step", ylabel="largest principal angle [degrees]"
)
planes.set_ylim(None, 150)
plt.show()
apart = nearest(np.asarray(flat), pixels)[0]
print(f"from a tile to the nearest digit: {from_digits.mean():.2f}, at most {from_digits.max():.2f}")
print(f"from a validation digit to the nearest training digit: {apart.mean():.2f}, at most {apart.max():.2f}")
assert from_digits.mean() < 1.1 * apart.mean()
assert from_digits.max() < apart.max()

# %% [markdown]
# ## Between two codes
#
# Halfway between two images, pixel by pixel, lies a double exposure. Halfway between two codes lies an image that the
# decoder was trained to draw. Both rows begin and end with the same reconstructions, so that blur favours neither.

# %%
first, second = (np.flatnonzero(labels == digit)[:20] for digit in (0, 1))
share = jnp.linspace(0, 1, 9)[:, None, None]
decoded = lambda z: jax.nn.sigmoid(layers(p["decoder"], z))
along_codes = decoded((1 - share) * codes[1.0][first] + share * codes[1.0][second])
along_pixels = (1 - share) * decoded(codes[1.0][first]) + share * decoded(codes[1.0][second])
strips = {"codes": along_codes, "pixels": along_pixels}
figure, panels = plt.subplots(2, 1, figsize=(9, 2.6), layout="constrained")
halfway = {}
for panel, (name, way) in zip(panels, strips.items(), strict=True):
    strip = np.pad(np.asarray(way[:, 0]).reshape(9, 8, 8), [(0, 0), (1, 1), (1, 1)])
    panel.imshow(strip.transpose(1, 0, 2).reshape(10, 90), cmap="gray_r")
    panel.set(xticks=[], yticks=[], ylabel=name)
    halfway[name] = float(nearest(np.asarray(way[4]), pixels)[0].mean())
    print(f"halfway between {name}: {halfway[name]:.2f} to the nearest digit, mean of 20 pairs")
plt.show()
assert halfway["codes"] < 0.92 * halfway["pixels"]

# %% [markdown]
# ## What it costs
#
# By width of one hidden layer, and by draws $k$ of a training step: the encoder runs once, the decoder $k$ times.

# %%
costs = {}
for width, draws in ((512, 1), (2048, 1), (512, 16)):
    module = arch_jax.create("vae", resolution=8, latent=2, hidden=(width,))
    own = arch_jax.objective("variational", draws=draws).with_model(module)
    batch = {"images": jnp.asarray(images[:100]), "weights": jnp.ones(100)}
    shapes = jax.eval_shape(own.init, jax.random.key(0), batch)
    variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)  # time does not depend on the values
    slope = jax.grad(lambda v, own=own, batch=batch: own.loss("model", "main", v, batch, jax.random.key(0), 0)[0][0])
    flops = arch_jax.count_flops(slope, variables).products
    step = jax.jit(slope).lower(variables).compile()
    times = []
    for _ in range(15):
        begun = time.perf_counter()
        jax.block_until_ready(step(variables))
        times.append(1e3 * (time.perf_counter() - begun))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables))
    assert parameters == width * (64 + 4 + 2 + 64) + 2 * width + 4 + 64  # four matrices and their biases
    costs[width, draws] = flops
    print(
        f"width {width:4}, k = {draws:2}: {parameters:7,} parameters, {flops / 1e6:6.0f} million products' operations "
        f"and {np.median(times):6.2f} ms a batch of 100"
    )
assert 3.9 < costs[2048, 1] / costs[512, 1] < 4.1
assert 7 < costs[512, 16] / costs[512, 1] < 16

# %% [markdown]
# A sample costs one pass through the decoder, whatever the width: an autoregressive model of 64 pixels needs 64 passes.
#
# ## Published beside measured

# %%
arch_jax.load_record("denoising_score")

# %%
arch_jax.load_record("sparse_dictionary")

# %% [markdown]
# The paper gives its bounds for MNIST as curves only (figure 2). The experiment `vae_fashion` trains its network on
# Fashion-MNIST with 2, 10 and 20 latent variables: `arch-jax ablate vae_fashion --axis latent`.
#
# ## When to choose it
#
# Two numbers for a digit: by PCA and by the VAE. And the samples' sharpness: the mean squared difference of
# neighbouring pixels.

# %%
plane = {"PCA": (pixels - pixels.mean(0)) @ U.T, "VAE": np.asarray(posterior(p, pixels)[0])}
plane_unseen = {"PCA": (np.asarray(flat) - pixels.mean(0)) @ U.T, "VAE": np.asarray(codes[1.0])}
right = {}
for name in plane:
    right[name] = float((known[nearest(plane_unseen[name], plane[name])[1]] == labels).mean())
    print(f"class of the nearest training code is right: {name} {right[name]:.0%}")


def sharpness(x):
    """Mean squared difference of neighbouring pixels; x is "images pixels"."""
    x = np.asarray(x).reshape(-1, 8, 8)
    return float(np.square(np.diff(x, axis=1)).mean() + np.square(np.diff(x, axis=2)).mean())


print(f"sharpness: digits {sharpness(flat):.3f}, samples of the VAE {sharpness(drawn[1.0]):.3f}")
assert right["VAE"] > right["PCA"] + 0.05
assert sharpness(drawn[1.0]) < 0.95 * sharpness(flat)

# %% [markdown]
# **Choose PCA** where a linear map is enough: gradient descent arrives at the same plane (the figure's last panel),
# and PCA needs no training. **Choose an autoencoder** where a few numbers must say more: its error is below PCA's, and
# the class of a digit can be told better from its code, as printed above.
#
# **Choose a VAE** where codes must be drawn from or compared (the first panel has no holes; with $\beta = 0$ most codes
# lie where the prior never goes), or where a bound on the likelihood is wanted: it scores images that it never saw, in
# nats, which an adversarial network cannot, and it comes with an encoder.
#
# **Choose something else** where samples must be sharp: the decoder gives the mean of all images that share a code, and
# a mean is blurred (the sharpness above). Adversarial networks have no such mean. Diffusion models replace the one
# large step by many small ones, each of them the denoising of the arrows above, and pay with as many passes for a
# sample. Latent diffusion does both: an autoencoder with a tiny weight of the divergence
# (`arch_jax.create("autoencoder-kl")`), and diffusion in its codes.
#
# ## How to read the paper
#
# Kingma & Welling: equation (3) is what `elbo` returns; equation (10), the estimator with its sum over $L$ samples, is
# its last line, with `draws` for $L$. Section 2.4 is the line that makes `z`. Appendix B is `divergence`, and appendix
# C's Bernoulli decoder is `log_likelihood`, with tanh units as here. Figure 4 is the first panel of the figure. Figure
# 2 compares numbers of latent variables: more of them do not overfit, since the divergence removes those that are of no
# use (exercise 3). The gradient that section 2.2 rejects is `score_function`. Theorem 1 of Alain & Bengio is the
# cell that prints the score's error; Baldi & Hornik's landscape is the last panel.
#
# ## Exercises
#
# **1. Change a number.** Burda et al. (2016, [1509.00519](https://arxiv.org/abs/1509.00519), equation 8) average
# weights *inside* the logarithm, $\log \frac1k \sum_i p(x, z_i) / q(z_i \mid x)$: `bound="importance"`. Evaluate the
# trained VAE with $k = 1, 5, 50$. With two latent variables the truth can be had by a sum over a grid. How
# much of the gap is closed?
#
# <details><summary>Solution</summary>
#
# With $k = 1$ it is the ELBO, and it rises with $k$ towards $\log p(x)$: by Jensen's inequality, an average of more
# weights varies less, so its logarithm loses less. No network is trained again: the gap was the encoder's,
# $\mathrm{KL}(q(z \mid x) \| p(z \mid x))$, not the decoder's.
#
# </details>

# %% tags=["solution"]
batch = {"images": jnp.asarray(unseen), "weights": jnp.ones(len(unseen))}
bounds = {}
for k in (1, 5, 50):
    own = arch_jax.objective("variational", bound="importance", evaluation_draws=k).with_model(vae)
    total, weight = jax.jit(own.evaluate)(models[1.0][0], batch)["loss"]
    bounds[k] = -float(total / weight)
axis = jnp.linspace(-6, 6, 201)
z = jnp.stack(jnp.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
a = layers(p["decoder"], z)
log_prior = -0.5 * (z**2).sum(axis=1) - jnp.log(2 * jnp.pi) + 2 * jnp.log(axis[1] - axis[0])
constant = log_prior - jax.nn.softplus(a).sum(axis=1)
of_image = lambda x: jax.nn.logsumexp(a @ x + constant)
exact = float(jax.lax.map(of_image, flat, batch_size=8).mean())
print({f"k = {k}": round(bound, 2) for k, bound in bounds.items()}, f"log p(x) = {exact:.2f} nats")
assert bounds[1] + 0.1 < bounds[5] < bounds[50] < exact + 0.01
assert exact - bounds[50] < 0.5 * (exact - bounds[1])

# %% [markdown]
# **2. Change code.** Subtract from $f(z)$ in `score_function` its mean over the draws, a *baseline*. Does the mean of
# the gradient stay? How much of the variance goes?
#
# <details><summary>Solution</summary>
#
# The mean stays, because $\mathbb{E}_q[\nabla_\phi \log q] = 0$: any constant may be subtracted. Most of the variance
# came from the size of $f$, which says nothing about the direction. What is left is still above that of the gradient
# through the sample, which knows the slope of $f$ and need not find it out by trying.
#
# </details>


# %% tags=["solution"]
def with_baseline(x, q):
    z = q[0] + jnp.exp(q[1] / 2) * epsilon
    log_q = lambda q, z: -0.5 * ((z - q[0]) ** 2 * jnp.exp(-q[1]) + q[1]).sum()
    f = log_likelihood(p, x, z)
    return (f - f.mean())[:, None, None] * jax.vmap(jax.grad(log_q), (None, 0))(q, z)


baseline = jax.jit(jax.vmap(with_baseline))(flat[:8], chosen)
agree(path, baseline)
variance["with a baseline"] = baseline.var(axis=1).sum(axis=(1, 2))
print({name: round(float(jnp.median(of_images)), 1) for name, of_images in variance.items()})
assert bool((variance["with a baseline"] < 0.5 * variance["score function"]).all())
assert bool((variance["with a baseline"] > 1.2 * variance["through the sample"]).all())

# %% [markdown]
# **3. Open.** Give the VAE 20 latent variables. How many does it use, and does the number depend on $\beta$, or on the
# decoder's width?
#
# <details><summary>Hint</summary>
#
# Take the divergence of each component apart, averaged over the validation images: a component near 0 nats carries
# nothing, and its posterior is the prior. A stronger decoder needs fewer; this is *posterior collapse*.
#
# </details>
#
# ## Summary
#
# An autoencoder finds what its code's limits force it to find: PCA's plane if all is linear, the score if the input is
# noisy, the parts if few units may be active. A VAE limits the code by a divergence from a prior, which makes training
# a bound on the likelihood and the decoder a generator. The gradient goes through the sample, $z = \mu + \sigma \odot
# \epsilon$, at a small fraction of the variance of the score function. Without the divergence, reconstructions improve
# and samples from the prior are worth little. The price of one decoder pass for a sample is blur.
#
# **Sources**: [1312.6114](https://arxiv.org/abs/1312.6114), [1211.4246](https://arxiv.org/abs/1211.4246),
# [1312.5663](https://arxiv.org/abs/1312.5663), [1509.00519](https://arxiv.org/abs/1509.00519), and those of the first
# cell.
#
# **Next**: [lesson 13](13_emerging.ipynb), emerging architectures.
