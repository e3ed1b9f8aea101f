"""Autoencoders against closed forms: principal components, probabilistic ones, the score of noisy data, the bounds."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import arch_jax
from arch_jax.errors import UsageError
from arch_jax.models.autoencoder.autoencoder import Autoencoder
from arch_jax.models.autoencoder.vae import VAE
from arch_jax.models.autoencoder.vqvae import VQVAE


def loss_of(it, *given):
    """The loss, compiled whole: op by op, every small operation would be compiled on its own."""
    player, *rest = given
    return jax.jit(it.loss, static_argnums=(0, 1))(player, "main", *rest, 0)


def evaluated(it, *given):
    """The evaluation, compiled whole."""
    return jax.jit(it.evaluate)(*given)


SIDE = 3  # pictures of 3 x 3 pixels, 9 numbers


def correlated(count=400, seed=0):
    """Pictures of normal, correlated pixels with mean 0, and their covariance over these pictures."""
    draw = np.random.default_rng(seed)
    mixing = draw.normal(size=(9, 9)) * np.linspace(1.5, 0.1, 9)
    x = draw.normal(size=(count, 9)) @ mixing.T
    x -= x.mean(0)
    return x.astype(np.float32), np.cov(x.T, bias=True)


def batch_of(x):
    return {
        "images": jnp.asarray(x).reshape(len(x), SIDE, SIDE, 1),
        "labels": jnp.zeros(len(x), jnp.int32),
        "weights": jnp.ones(len(x)),
    }


def trained(task, variables, batch, steps, rate):
    """The variables after Adam on one batch, its rate falling to 0 along a cosine."""
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))

    def step(carry, key):
        params, state = carry
        loss = lambda p: (lambda pair: pair[0] / pair[1])(task.loss("model", "main", {"params": p}, batch, key, 0)[0])
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, updates), state), value

    params = variables["params"]
    keys = jax.random.split(jax.random.key(1), steps)
    (params, _), losses = jax.jit(lambda c: jax.lax.scan(step, c, keys))((params, optimizer.init(params)))
    return {"params": params}, losses


def ready(model, objective, x, **settings):
    task = arch_jax.objective(objective, **settings).with_model(model)
    batch = batch_of(x)
    return task, jax.jit(task.init)(jax.random.key(0), batch), batch


def test_a_linear_autoencoder_spans_the_principal_components():
    """Baldi & Hornik 1989: the error left is the sum of the smallest eigenvalues, and the subspace is theirs."""
    x, covariance = correlated()
    task, variables, batch = ready(Autoencoder(resolution=SIDE, latent=3), "autoencode", x)
    variables, losses = trained(task, variables, batch, 6000, 0.02)
    values, vectors = np.linalg.eigh(covariance)
    np.testing.assert_allclose(losses[-1], values[:-3].sum(), rtol=1e-4)
    decoder = np.asarray(variables["params"]["decoder"]["outputs"]["kernel"])  # "latent pixels"
    span, _ = np.linalg.qr(decoder.T)
    cosines = np.linalg.svd(span.T @ vectors[:, -3:], compute_uv=False)
    np.testing.assert_allclose(cosines, 1, atol=1e-4)


@pytest.mark.thorough
def test_a_denoising_autoencoder_gives_the_score():
    """r(x) - x = noise^2 grad log p(x), p the noisy data's density (Vincent 2011; Alain & Bengio 2014, theorem 1).

    Of normal data the score is -(C + noise^2)^-1 x, and the best denoiser is linear.
    """
    x, covariance = correlated(1000)
    noise = 0.7
    task, variables, batch = ready(Autoencoder(resolution=SIDE, latent=9), "autoencode", x, noise=noise)
    variables, _ = trained(task, variables, batch, 2000, 0.01)
    made = jax.jit(task.model.apply)(variables, batch["images"]).reshape(len(x), 9)
    expected = -(noise**2) * x @ np.linalg.inv(covariance + noise**2 * np.eye(9))
    error = np.linalg.norm(made - x - expected) / np.linalg.norm(expected)
    assert error < 0.05, error


def principal_vae(x, covariance, latent):
    """A linear VAE at the maximum of probabilistic PCA's likelihood (Tipping & Bishop 1999); that maximum in nats."""
    values, vectors = np.linalg.eigh(covariance)
    values, vectors = values[::-1], vectors[:, ::-1]
    noise = values[latent:].mean()
    weights = vectors[:, :latent] * np.sqrt(values[:latent] - noise)  # "pixels latent"
    posterior = np.linalg.inv(
        weights.T @ weights + noise * np.eye(latent)
    )  # diagonal, since the columns are orthogonal
    encoder = np.concatenate([posterior @ weights.T, np.zeros((latent, 9))]).T
    bias = np.concatenate([np.zeros(latent), np.log(noise * np.diag(posterior))])
    params = {
        "encoder": {"outputs": {"kernel": encoder, "bias": bias}},
        "decoder": {"outputs": {"kernel": weights.T, "bias": np.zeros(9)}},
        "log_variance": np.log(noise),
    }
    model = weights @ weights.T + noise * np.eye(9)
    sign, logdet = np.linalg.slogdet(model)
    likelihood = -0.5 * (9 * np.log(2 * np.pi) + sign * logdet + np.trace(np.linalg.solve(model, covariance)))
    return {"params": jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)}, likelihood


@pytest.mark.thorough
def test_a_linear_vae_reaches_the_likelihood_of_probabilistic_pca():
    """Lucas et al. 2019, 1911.02469: at PCA's optimum the bound is tight, and training from anywhere ends there."""
    x, covariance = correlated()
    model = VAE(resolution=SIDE, latent=3, hidden=(), likelihood="gaussian")
    task, fresh, batch = ready(model, "variational", x, draws=4)
    best, likelihood = principal_vae(x, covariance, 3)
    assert jax.tree.map(jnp.shape, best) == jax.tree.map(jnp.shape, fresh)
    bound = lambda v, k=0: (lambda pair: -float(pair[0] / pair[1]))(evaluated(task, v, batch)["loss"])
    task = arch_jax.objective("variational", draws=4, evaluation_draws=4000).with_model(model)
    assert abs(bound(best) - likelihood) < 0.01
    variables, _ = trained(task, fresh, batch, 8000, 0.03)
    assert likelihood - 0.05 < bound(variables) < likelihood + 0.01


def test_importance_weighting_reaches_it_with_any_proposal():
    """The bound of one draw is the evidence's; it rises with the draws, up to the likelihood."""
    x, covariance = correlated(100)
    model = VAE(resolution=SIDE, latent=3, hidden=(), likelihood="gaussian")
    best, likelihood = principal_vae(x, covariance, 3)
    worse = jax.tree.map(lambda leaf: leaf, best)
    worse["params"]["encoder"]["outputs"]["bias"] = best["params"]["encoder"]["outputs"]["bias"] + 0.6
    value = {}
    for draws in (1, 5, 50, 2000):
        task = arch_jax.objective("variational", bound="importance", evaluation_draws=draws).with_model(model)
        total, count = evaluated(task, worse, batch_of(x))["loss"]
        value[draws] = -float(total / count)
    assert value[1] < value[5] < value[50] < value[2000] < likelihood + 0.01, value
    assert abs(value[2000] - likelihood) < 0.1, (value, likelihood)
    evidence = arch_jax.objective("variational", evaluation_draws=1).with_model(model)
    one = arch_jax.objective("variational", bound="importance", evaluation_draws=1).with_model(model)
    many = [task.with_model(model) for task in (evidence, one)]
    keys = jax.random.split(jax.random.key(0), 400)
    each = lambda task: jax.vmap(lambda k: task._terms(worse, batch_of(x), k, 1, 1.0)["loss"][0])
    terms = lambda task: jax.jit(each(task))(keys).mean()
    a, b = (float(terms(task)) / 100 for task in many)
    assert abs(a - b) < 0.1, (a, b)


def test_beta():
    x, _ = correlated(50)
    model = VAE(resolution=SIDE, latent=2, hidden=(), likelihood="gaussian")
    losses = {}
    for beta in (1.0, 4.0):
        task, variables, batch = ready(model, "variational", x, beta=beta)
        (total, count), (metrics, _) = loss_of(task, "model", variables, batch, jax.random.key(3))
        losses[beta] = float(total / count), {k: float(s / n) for k, (s, n) in metrics.items()}
    plain, parts = losses[1.0]
    assert plain == pytest.approx(parts["reconstruction"] + parts["kl"], rel=1e-6)
    assert losses[4.0][0] == pytest.approx(parts["reconstruction"] + 4 * parts["kl"], rel=1e-6)
    with pytest.raises(UsageError, match="beta is 4"):
        arch_jax.objective("variational", beta=4.0, bound="importance")


def test_the_condition_reaches_both_sides():
    model = VAE(resolution=SIDE, latent=2, hidden=(4,), classes=3)
    x = jnp.full((3, SIDE, SIDE, 1), 0.5)
    variables = model.init(jax.random.key(0), x, jnp.array([0, 1, 2]))
    _, mean, _ = model.apply(variables, x, jnp.array([0, 1, 2]))
    assert len({row.tobytes() for row in np.asarray(mean)}) == 3
    decoded = model.apply(variables, jnp.zeros((3, 2)), jnp.array([0, 1, 2]), method="decode")
    assert len({row.tobytes() for row in np.asarray(decoded)}) == 3
    with pytest.raises(UsageError, match="no condition was given, and classes is 3"):
        model.apply(variables, x)


def test_corruption_is_for_training_only():
    task, variables, batch = ready(Autoencoder(resolution=SIDE, latent=3), "autoencode", correlated(200)[0], noise=0.5)
    given = task.corrupted(batch["images"], jax.random.key(0)) - batch["images"]
    assert abs(float(given.std()) - 0.5) < 0.03
    masked = arch_jax.objective("autoencode", masked=0.25).corrupted(jnp.ones((200, 3, 3, 1)), jax.random.key(0))
    assert abs(float((masked == 0).mean()) - 0.25) < 0.03
    total, count = evaluated(task, variables, batch)["loss"]
    clean = jnp.square(jax.jit(task.model.apply)(variables, batch["images"]) - batch["images"]).sum((1, 2, 3)).mean()
    assert float(total / count) == pytest.approx(float(clean), rel=1e-5)


def test_padding_has_no_weight():
    x, _ = correlated(6)
    x[4:] = np.nan
    models = {
        "autoencode": Autoencoder(resolution=SIDE, latent=2),
        "variational": VAE(resolution=SIDE, latent=2, hidden=(), likelihood="gaussian"),
    }
    for name, model in models.items():
        task, variables, batch = ready(model, name, np.nan_to_num(x))
        part = {key: value[:4] for key, value in batch.items()}
        batch = {**batch, "images": batch["images"].at[4:].set(jnp.nan), "weights": batch["weights"].at[4:].set(0)}
        (total, count), _ = loss_of(task, "model", variables, batch, jax.random.key(0))
        assert float(count) == 4
        assert np.isfinite(float(total))
        if name == "autoencode":
            assert float(total) == pytest.approx(
                float(loss_of(task, "model", variables, part, jax.random.key(0))[0][0])
            )


def test_the_codebook_moves_in_training_only_and_the_encoder_has_a_gradient():
    model = VQVAE(resolution=8, channels=1, codes=5, code_width=3, width=6, hidden=4, least=0.0)
    task = arch_jax.objective("vector_quantised").with_model(model)
    x = np.random.default_rng(0).uniform(size=(6, 8, 8, 1)).astype(np.float32)
    batch = {"images": jnp.asarray(x), "labels": jnp.zeros(6, jnp.int32), "weights": jnp.ones(6)}
    variables = jax.jit(task.init)(jax.random.key(0), batch)
    others = {"codebook": variables["codebook"]}
    loss = lambda p: task.loss("model", "main", {"params": p, **others}, batch, jax.random.key(0), 0)
    gradient, (metrics, updates) = jax.jit(jax.grad(lambda p: (lambda r: (r[0][0], r[1]))(loss(p)), has_aux=True))(
        variables["params"]
    )
    assert float(jnp.abs(gradient["encoder"]["halving_0"]["kernel"]).max()) > 0
    moved = np.abs(
        np.asarray(updates["codebook"]["codebook"]["codes"] - variables["codebook"]["codebook"]["codes"])
    ).max()
    assert moved > 1e-4
    assert 1 <= float(metrics["perplexity"][0] / metrics["perplexity"][1]) <= 5
    found = evaluated(task, variables, batch)
    assert float(found["loss"][0]) == pytest.approx(float(metrics["loss"][0]), rel=1e-5)

    @jax.jit
    def both(variables, images):
        codes = model.apply(variables, images, method="encode")
        return model.apply(variables, codes, method="decode"), model.apply(variables, images)

    again, made = both(variables, batch["images"])
    np.testing.assert_allclose(again, made, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"resolution": 10, "widths": (4, 6)},
            "resolution is 10, which 2 convolutions can't halve; expected a multiple of 4",
        ),
        ({"resolution": 0}, "resolution is 0"),
    ],
)
def test_what_is_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        Autoencoder(**settings)


def test_pictures_of_another_shape_are_refused():
    model = Autoencoder(resolution=8)
    with pytest.raises(UsageError, match=r"9 x 9 x 1, and the model takes 8 x 8 x 1; set model\.resolution=9"):
        model.check((9, 9, 1))
