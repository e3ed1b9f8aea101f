"""What a diffusion model minimises: the losses of the papers written out, labels, the bound, the score's error."""

import math
import types
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import arch_jax
from arch_jax.errors import UsageError
from arch_jax.figures.ground_truth import DiffusionScore
from arch_jax.models.diffusion.ddpm_unet import DDPMUNet
from arch_jax.models.diffusion.exact import RING, ExactDenoiser
from arch_jax.ops.diffusion.bound import bound_term, discretised_gaussian_nll
from arch_jax.ops.diffusion.weightings import VLB

ALPHA_BAR = np.concatenate([[1.0], np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))])
BINS = 2 / 255


class Spy(nn.Module):
    """A smooth function of the example and the time, which remembers what it was called with.

    Where the variance is learned its numbers are `where`; `move` is a parameter that is added to the prediction.
    """

    features: int = 3
    classes: int | None = None
    null_class: bool = False
    learned_variance: bool = False
    where: float = 0.3
    seen: ClassVar[list] = []

    @nn.compact
    def __call__(self, x, time, condition=None, train=False):
        label = None if condition is None else condition.label
        remember = lambda x, time, label: self.seen.append((np.float64(x), np.float64(time), label, train))
        jax.debug.callback(remember, x, time, label)
        made = answer(x, time, jnp) + self.param("move", nn.initializers.zeros, ())
        if not self.learned_variance:
            return made
        spread = self.param("spread", nn.initializers.constant(self.where), ())
        return jnp.concatenate([made, spread * jnp.ones_like(x)], axis=-1)


def answer(x, time, xp=np):
    """The prediction of `Spy`."""
    return xp.tanh(0.7 * x) + 0.2 * xp.cos(time / 150)[:, None]


def variables_of(task):
    return {"params": {"move": 0.0, "spread": 0.3} if task.model.learned_variance else {"move": 0.0}}


def task_of(model=None, **fields):
    return arch_jax.objective("diffusion", **fields).with_model(model or Spy())


def batch_of(rows=6, features=3, **more):
    generator = np.random.default_rng(3)
    return {"x": jnp.asarray(generator.normal(size=(rows, features)), jnp.float32), **more}


def called(task, batch, key=5, step=0):
    """(sum, weight) of the loss, metrics, and what the network was called with."""
    loss = jax.jit(task.loss, static_argnums=(0, 1))
    pair, (metrics, updates) = loss("main", "main", variables_of(task), batch, jax.random.key(key), step)
    jax.effects_barrier()
    assert updates == {}
    return pair, metrics, Spy.seen[-1]


def evaluated(task, batch):
    """Metrics, and what the network was called with."""
    metrics = jax.jit(task.evaluate)(variables_of(task), batch)
    jax.effects_barrier()
    return metrics, Spy.seen[-1]


def ddpm(t):
    return np.sqrt(ALPHA_BAR[t])[:, None], np.sqrt(1 - ALPHA_BAR[t])[:, None]


def ddpm_noise(x, told, clean):
    """Algorithm 1 of 2006.11239: |epsilon - epsilon_theta(x_t, t)|^2."""
    alpha, sigma = ddpm(np.round(told).astype(int) + 1)
    return (x - alpha * clean) / sigma - answer(x, told)


def velocity(x, told, clean):
    """2202.00512, appendix D: v = alpha epsilon - sigma x_0."""
    alpha, sigma = ddpm(np.round(told).astype(int) + 1)
    return alpha * (x - alpha * clean) / sigma - sigma * clean - answer(x, told)


def flow(x, told, clean):
    """2210.02747, equation 23, with t turned round: x_1 - x_0 on x_t = (1 - t) x_0 + t epsilon."""
    t = told[:, None] / 1000
    return (x - (1 - t) * clean) / t - clean - answer(x, told)


def edm(x, told, clean):
    """2206.00364, equation 8: sqrt(lambda) (D - y), lambda = (sigma^2 + s^2) / (sigma s)^2, with D of equation 7."""
    s = 0.5
    sigma = np.exp(4 * told / 1000)[:, None]
    noisy = x * np.sqrt(sigma**2 + s**2)  # x is c_in times it
    out = sigma * s / np.sqrt(sigma**2 + s**2)
    denoised = s**2 / (sigma**2 + s**2) * noisy + out * answer(x, told)
    return np.sqrt(sigma**2 + s**2) / (sigma * s) * (denoised - clean)


PAPERS = {
    "DDPM": ({}, ddpm_noise),
    "v": ({"prediction": arch_jax.VelocityPrediction()}, velocity),
    "flow": ({"process": arch_jax.RectifiedFlow(), "prediction": arch_jax.FlowPrediction()}, flow),
    "EDM": (
        {
            "process": arch_jax.NoiseLevel(),
            "prediction": arch_jax.PreconditionedPrediction(),
            "times": arch_jax.LogNormalTimes(),
        },
        edm,
    ),
}


@pytest.mark.parametrize("paper", PAPERS)
def test_the_loss_is_that_of_the_paper(paper):
    fields, written_out = PAPERS[paper]
    weights = np.array([1, 0, 1, 1, 0, 1.0])
    batch = batch_of(weights=jnp.asarray(weights, jnp.float32))
    batch["x"] = batch["x"].at[4].set(1e6)  # a row that is no example
    pair, metrics, (x, told, label, train) = called(task_of(**fields), batch)
    assert (label, train) == (None, True)
    assert len(set(told)) > 1  # a time for each example
    errors = np.mean(written_out(x, told, np.float64(batch["x"])) ** 2, axis=-1)
    np.testing.assert_allclose(float(pair[0]), np.sum((weights * errors)[weights > 0]), rtol=2e-4)
    assert float(pair[1]) == 4
    assert "loss" in metrics
    other = {**batch, "x": batch["x"].at[4].set(jnp.nan).at[1].set(0.1)}
    assert float(called(task_of(**fields), other)[0][0]) == float(pair[0])


@pytest.mark.parametrize("paper", PAPERS)
def test_times_and_noise_are_drawn_as_the_paper_says(paper):
    fields, _ = PAPERS[paper]
    batch = {"x": jnp.zeros((4000, 3))}
    _, _, (x, told, _, _) = called(task_of(**fields), batch)
    if paper == "EDM":  # log sigma ~ N(-1.2, 1.2^2), table 1
        level = 4 * told / 1000
        assert np.mean(level) == pytest.approx(-1.2, abs=5 * 1.2 / math.sqrt(4000))
        assert np.std(level) == pytest.approx(1.2, rel=0.05)
        noise = x * np.sqrt(np.exp(level) ** 2 + 0.25)[:, None] / np.exp(level)[:, None]
    else:
        assert np.mean(told) == pytest.approx(499.5, abs=5 * 1000 / math.sqrt(12 * 4000))
        assert 0 <= told.min() < 5
        assert 995 < told.max() <= (999 if paper != "flow" else 1000)
        if paper == "flow":
            noise = x / told[:, None] * 1000
        else:
            assert set(told) <= set(range(1000))  # t is one of 1 ... T, and 0 ... T - 1 to the network
            noise = x / ddpm(told.astype(int) + 1)[1]
    assert np.mean(noise) == pytest.approx(0, abs=5 / math.sqrt(12000))
    assert np.std(noise) == pytest.approx(1, rel=0.03)
    assert np.abs(np.corrcoef(noise.T) - np.eye(3)).max() < 0.08
    assert abs(np.corrcoef(noise[:-1, 0], noise[1:, 0])[0, 1]) < 0.08


def test_the_same_key_gives_the_same_loss_whatever_the_step():
    task, batch = task_of(), batch_of()
    losses = [float(called(task, batch, key, step)[0][0]) for key, step in ((1, 0), (1, 0), (1, 900), (2, 0))]
    assert losses[0] == losses[1] == losses[2]
    assert losses[0] != losses[3]


def test_labels_are_dropped_in_training_alone_and_become_the_null_class():
    labels = jnp.arange(4000) % 10
    batch = batch_of(4000, labels=labels)
    for share in (0.1, 0.6):
        task = task_of(Spy(classes=10, null_class=True), label_dropout=share)
        _, _, (_, _, told, train) = called(task, batch)
        dropped = told == 10
        assert train
        assert np.mean(dropped) == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 4000))
        np.testing.assert_array_equal(told[~dropped], labels[~dropped])
        # not by class: every class is dropped as often
        assert np.bincount(labels, dropped).min() > 400 * share - 4 * math.sqrt(400 * share * (1 - share))
        _, (_, _, told, train) = evaluated(task, batch)
        assert not train
        np.testing.assert_array_equal(told, labels)


@pytest.mark.parametrize("model", [Spy(classes=10), Spy(classes=10, null_class=True)], ids=["no null class", "share 0"])
def test_labels_stay_without_a_null_class_or_with_a_share_of_0(model):
    labels = jnp.arange(500) % 10
    task = task_of(model, label_dropout=0.0 if model.null_class else 0.5)
    _, _, (_, _, told, _) = called(task, batch_of(500, labels=labels))
    np.testing.assert_array_equal(told, labels)


# A learned variance.


def laws(t, clean, x, estimate):
    """Mean of q(x_{t-1} | x_t, x_0), of p, and the two bounds of the variance (2006.11239, equations 6 and 7)."""
    before, now = ALPHA_BAR[t - 1], ALPHA_BAR[t]
    beta = 1 - now / before
    mean = lambda x_0: (np.sqrt(before) * beta * x_0 + np.sqrt(1 - beta) * (1 - before) * x) / (1 - now)
    return mean(clean), mean(estimate), beta, (1 - before) / (1 - now) * beta


def pair_at(t):
    return tuple(jnp.float32(f(ALPHA_BAR[t])) for f in (np.sqrt, lambda a: np.sqrt(1 - a)))


@pytest.mark.parametrize("t", [2, 30, 700, 1000])
@pytest.mark.parametrize("where", [-1.0, 0.25, 1.0])
def test_the_bound_is_the_divergence_of_two_gaussians(t, where):
    """2102.09672, equations 4 and 15."""
    generator = np.random.default_rng(t)
    clean, x, estimate = (generator.normal(size=5) for _ in range(3))
    mean_q, mean_p, beta, posterior = laws(t, clean, x, estimate)
    v = (where + 1) / 2
    variance = np.exp(v * np.log(beta) + (1 - v) * np.log(posterior))
    nats = 0.5 * (np.log(variance / posterior) + (posterior + (mean_q - mean_p) ** 2) / variance - 1)
    found = jax.jit(bound_term, static_argnums=6)(
        *(jnp.asarray(part, jnp.float32) for part in (clean, x, estimate)),
        jnp.full(5, where),
        pair_at(t),
        pair_at(t - 1),
        BINS,
    )
    np.testing.assert_allclose(found, nats / math.log(2), rtol=5e-3, atol=1e-4)


def test_at_the_first_step_it_is_the_likelihood_of_a_grey_level():
    """2006.11239, equation 13, with the mean D, which is x_1's posterior mean without noise before it."""
    clean = jnp.linspace(-1, 1, 256)
    x, estimate, beta = clean + 0.003, jnp.full(256, 0.1), 1e-4
    found = jax.jit(bound_term, static_argnums=6)(clean, x, estimate, jnp.full(256, 1.0), pair_at(1), pair_at(0), BINS)
    assert np.isfinite(found).all()
    middle = 140  # near enough that float32's distribution function is not 0
    std = math.sqrt(beta)
    phi = lambda z: 0.5 * (1 + math.erf(z / math.sqrt(2)))
    at = float(clean[middle])
    chance = phi((at + BINS / 2 - 0.1) / std) - phi((at - BINS / 2 - 0.1) / std)
    np.testing.assert_allclose(found[middle], -math.log2(chance), rtol=2e-3)


@pytest.mark.parametrize(("mean", "std"), [(0.2, 0.4), (-0.98, 0.05), (3.0, 0.5), (0.0, 0.004)])
def test_the_likelihoods_of_all_levels_add_up_to_1(mean, std):
    levels = jnp.linspace(-1, 1, 256)
    nll = discretised_gaussian_nll(levels, jnp.float32(mean), jnp.float32(math.log(std)), BINS)
    assert np.isfinite(nll).all()
    assert float(jnp.sum(jnp.exp(-nll))) == pytest.approx(1, abs=1e-4)


def test_the_bound_reaches_the_variance_and_not_the_mean():
    """2102.09672, section 3.1: L_hybrid = L_simple + lambda L_vlb, with the mean's gradient stopped in the second."""
    batch = batch_of(40)
    learned, plain = task_of(Spy(learned_variance=True)), task_of(Spy())

    def value(task, params):
        (total, weight), (metrics, _) = task.loss("main", "main", {"params": params}, batch, jax.random.key(5), 0)
        return total / weight, metrics

    params = {"move": jnp.float32(0.4), "spread": jnp.float32(0.3)}
    both = jax.jit(jax.value_and_grad(lambda p: value(learned, p), has_aux=True))
    (total, metrics), gradient = both(params)
    simple, of_simple = jax.jit(jax.value_and_grad(lambda p: value(plain, p)[0]))({"move": params["move"]})
    assert float(total) > float(simple)
    np.testing.assert_allclose(gradient["move"], of_simple["move"], rtol=1e-5)
    _, _, (x, told, _, _) = called(learned, batch)
    slope = (hybrid(x, told, batch, 0.3 + 1e-4, 0.4) - hybrid(x, told, batch, 0.3 - 1e-4, 0.4)) / 2e-4
    assert abs(slope) > 1e-6
    np.testing.assert_allclose(gradient["spread"], slope, rtol=2e-2)
    assert {"loss", "bound"} == set(metrics)


def hybrid(x, told, batch, where, move=0.0):
    """Its mean, with lambda = .001 for each of 1,000 steps and the bound in bits, as in the authors' code."""
    t, clean = np.round(told).astype(int) + 1, np.float64(batch["x"])
    assert t.min() > 1  # the first step has a test of its own
    alpha, sigma = ddpm(t)
    output = answer(x, told) + move
    mean_q, mean_p, beta, posterior = laws(t[:, None], clean, x, (x - sigma * output) / alpha)
    v = (where + 1) / 2
    variance = np.exp(v * np.log(beta) + (1 - v) * np.log(posterior))
    nats = 0.5 * (np.log(variance / posterior) + (posterior + (mean_q - mean_p) ** 2) / variance - 1)
    simple = ((x - alpha * clean) / sigma - output) ** 2
    return np.mean(simple + 0.001 * 1000 * nats / math.log(2))


def test_the_hybrid_loss_written_out():
    batch = batch_of(40)
    pair, _, (x, told, _, _) = called(task_of(Spy(learned_variance=True)), batch)
    np.testing.assert_allclose(float(pair[0] / pair[1]), hybrid(x, told, batch, 0.3), rtol=1e-3)


# Evaluation.


def test_an_evaluation_is_the_same_each_time():
    task, batch = task_of(), batch_of(64)
    first, (x, told, _, train) = evaluated(task, batch)
    second, (again, *_) = evaluated(task_of(), batch_of(64))
    assert first["loss"] == second["loss"]
    np.testing.assert_array_equal(x, again)
    assert not train
    counts = np.histogram(told, 8, (0, 999))[0]
    assert counts.min() >= 7  # equally spread: 8 of 64 in each eighth
    errors = np.mean(ddpm_noise(x, told, np.float64(batch["x"])) ** 2, axis=-1)
    np.testing.assert_allclose(float(first["loss"][0]), errors.sum(), rtol=2e-4)


def test_rows_without_weight_do_not_count_in_an_evaluation():
    weights = jnp.asarray([1.0] * 5 + [0.0] * 3)
    task = task_of()
    batch = batch_of(8, weights=weights)
    first, _ = evaluated(task, batch)
    other, _ = evaluated(task, {**batch, "x": batch["x"].at[5:].set(50.0).at[7].set(jnp.nan)})
    assert float(first["loss"][1]) == 5
    assert first == other


RING_DATA = arch_jax.Ring(std=0.1, batch=8, validation=400)
CHOICES = {
    "noise": (arch_jax.VariancePreserving(), arch_jax.NoisePrediction()),
    "x0": (arch_jax.VariancePreserving(schedule="cosine"), arch_jax.DataPrediction()),
    "v": (arch_jax.VariancePreserving(), arch_jax.VelocityPrediction()),
    "score": (arch_jax.VPSDE(), arch_jax.ScorePrediction()),
    "sub-VP": (arch_jax.VPSDE(sub=True), arch_jax.VelocityPrediction()),
    "exploding": (arch_jax.VarianceExploding(), arch_jax.ScorePrediction()),
    "flow": (arch_jax.RectifiedFlow(shift=2.0), arch_jax.FlowPrediction()),
    "EDM": (arch_jax.NoiseLevel(), arch_jax.PreconditionedPrediction()),
}


def exact_task(choice, **fields):
    process, prediction = CHOICES[choice]
    model = ExactDenoiser(process=process, prediction=prediction, **fields)
    return arch_jax.objective("diffusion", process=process, prediction=prediction).with_model(model)


@pytest.mark.parametrize("choice", ["noise", "flow", "EDM"])
def test_the_exact_denoiser_has_no_error_of_the_score(choice):
    task = exact_task(choice)
    (batch,) = RING_DATA.load().validation()
    error, weight = jax.jit(task.evaluate)({}, batch)["score_error"]
    assert float(weight) > 0
    assert float(error / weight) < 1e-4


def test_a_score_of_0_has_the_error_1():
    class Nothing(nn.Module):
        features: int = 2

        def __call__(self, x, time, condition=None, train=False):
            return jnp.zeros_like(x)  # noise of 0 is a score of 0, D = x / alpha

    task = task_of(Nothing())
    (batch,) = RING_DATA.load().validation()
    metrics = jax.jit(task.evaluate)({}, batch)
    assert float(metrics["score_error"][0] / metrics["score_error"][1]) == pytest.approx(1, abs=1e-6)
    assert "score_error" not in jax.jit(task.evaluate)({}, {"x": batch["x"]})


@pytest.mark.parametrize("choice", CHOICES)
def test_the_denoised_estimate_is_the_same_for_every_prediction(choice):
    task = exact_task(choice)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 2)), jnp.float32)
    denoised = jax.jit(task.denoised)
    for ratio in (0.1, 0.7, 3.0):
        time = task.process.time_of(np.array([ratio]))[0]
        time = round(time) if task.process.discrete else time
        alpha, sigma = task.process.coefficients(np.array([float(time)]), np)
        expected = RING.denoised(np.float64(x), alpha[0], sigma[0])
        np.testing.assert_allclose(denoised({}, x, float(time)), expected, rtol=2e-3, atol=2e-3)
        each = denoised({}, x, jnp.full(6, float(time)))
        np.testing.assert_allclose(each, expected, rtol=2e-3, atol=2e-3)


def test_the_denoised_estimate_leaves_out_a_learned_variance_and_takes_a_condition():
    x, noisy = batch_of()["x"], 200.0
    plain, learned = task_of(Spy()), task_of(Spy(learned_variance=True))
    one, other = (jax.jit(task.denoised)(variables_of(task), x, noisy) for task in (plain, learned))
    assert other.shape == x.shape
    np.testing.assert_array_equal(one, other)
    labelled = exact_task("noise", classes=8)
    points = jnp.zeros((8, 2))
    made = jax.jit(labelled.denoised)({}, points, 999.0, arch_jax.Condition(label=jnp.arange(8)))
    np.testing.assert_allclose(made, RING.means, atol=0.02)  # at noise alone D is the mean of the class
    nothing = jax.jit(labelled.denoised)({}, points, 999.0, arch_jax.Condition(label=jnp.full(8, 8)))
    np.testing.assert_allclose(nothing, 0, atol=0.02)


@pytest.mark.parametrize("choice", ["noise", "flow", "EDM"])
def test_the_exact_denoiser_has_the_law_of_a_class_and_of_none(choice):
    task = exact_task(choice, classes=8)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(9, 2)), jnp.float32)
    time = float(np.round(task.process.time_of(np.array([1.0]))[0], 0 if task.process.discrete else 6))
    alpha, sigma = (float(part[0]) for part in task.process.coefficients(np.array([time]), np))
    found = jax.jit(task.denoised)({}, x, time, arch_jax.Condition(label=jnp.arange(9)))
    for k in range(9):
        law = RING.component(k) if k < 8 else RING
        np.testing.assert_allclose(found[k], law.denoised(np.float64(x[k]), alpha, sigma), rtol=2e-3, atol=2e-3)


def test_the_exact_denoiser_minimises_the_loss():
    """Of all functions E[x_0 | x_t] has the smallest error: moved by any constant it has a larger one."""
    task = exact_task("x0")
    (batch,) = RING_DATA.load().validation()
    process = task.process

    class Moved(nn.Module):
        by: float
        features: int = 2

        @nn.compact
        def __call__(self, x, time, condition=None, train=False):
            return ExactDenoiser(process=process, prediction=task.prediction)(x, time) + self.by

    value = lambda task: (lambda pair: float(pair[0] / pair[1]))(jax.jit(task.evaluate)({}, batch)["loss"])
    best = value(task)
    for by in (-0.1, 0.1):
        assert value(task.with_model(Moved(by))) == pytest.approx(best + 0.01, abs=0.004)


def test_the_figure_shows_the_error_of_a_score():
    data = RING_DATA.load()
    for choice in ("noise", "flow"):
        made = DiffusionScore(ratio=0.3)(exact_task(choice), {}, None, data, jax.random.key(0))
        (figure,) = made.values()
        true, learned = (axes.collections for axes in figure.axes[:2])
        arrows = [next(c for c in drawn if hasattr(c, "U")) for drawn in (true, learned)]
        for part in ("U", "V"):
            np.testing.assert_allclose(getattr(arrows[0], part), getattr(arrows[1], part), rtol=1e-2, atol=1e-2)
    images = arch_jax.Images(source="digits", batch=4).load()
    assert DiffusionScore()(exact_task("noise"), {}, None, images, jax.random.key(0)) == {}


def test_the_error_of_the_score_where_there_is_noise_alone_and_without_rows_that_do_not_count():
    process = arch_jax.VariancePreserving(zero_terminal_snr=True)
    prediction = arch_jax.VelocityPrediction()
    task = arch_jax.objective("diffusion", process=process, prediction=prediction)
    task = task.with_model(ExactDenoiser(process=process, prediction=prediction))
    (batch,) = arch_jax.Ring(std=0.1, batch=8, validation=1500).load().validation()  # the last time is among them
    weights = jnp.ones(1500).at[:9].set(0)
    made = jax.jit(task.evaluate)({}, {**batch, "weights": weights})["score_error"]
    broken = jax.jit(task.evaluate)({}, {**batch, "weights": weights, "x": jnp.asarray(batch["x"]).at[:9].set(jnp.nan)})
    assert float(made[0] / made[1]) < 1e-6
    assert broken["score_error"] == made


# What is refused.


@pytest.fixture(scope="module")
def digits():
    return {low: arch_jax.Images(source="digits", batch=4, low=low, high=1.0).load() for low in (0.0, -1.0)}


def unet(**fields):
    small = {"widths": (8, 8), "units": 1, "groups": 4, "channels": 1, "resolution": 8}
    return DDPMUNet(**{**small, **fields})


def refused(make):
    """The sentence, which is one."""
    with pytest.raises(UsageError) as caught:
        make()
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def test_images_must_be_in_minus_1_to_1(digits):
    sentence = refused(lambda: task_of(unet()).check(digits[0.0]))
    assert "from 0 to 1" in sentence
    assert "set data.low=-1 and data.high=1" in sentence
    task_of(unet()).check(digits[-1.0])


def test_labels_must_be_classes_of_the_model(digits):
    sentence = refused(lambda: task_of(unet(classes=7)).check(digits[-1.0]))
    assert "model.classes" in sentence
    assert "7" in sentence
    assert "10" in sentence
    task_of(unet(classes=10)).check(digits[-1.0])
    sentence = refused(lambda: task_of(Spy(features=2, classes=3)).check(RING_DATA.load()))
    assert "labels" in sentence


def test_points_and_images_are_not_confused(digits):
    points = RING_DATA.load()
    assert "images" in refused(lambda: task_of(unet()).check(points))
    assert "points" in refused(lambda: task_of(Spy(features=2)).check(digits[-1.0]))
    sentence = refused(lambda: task_of(Spy(features=3)).check(points))
    assert "3" in sentence
    assert "2" in sentence
    assert "channels" in refused(lambda: task_of(unet(channels=3)).check(digits[-1.0]))


CONTINUOUS = ("model.learned_variance is true", "continuous", "variance_preserving")


@pytest.mark.parametrize(
    ("fields", "model", "parts"),
    [
        (
            {"process": arch_jax.VariancePreserving(zero_terminal_snr=True)},
            Spy(),
            ("prediction is Noise", "alpha = 0", "prediction=v"),
        ),
        (
            {"process": arch_jax.RectifiedFlow()},
            Spy(learned_variance=True),
            ("model.learned_variance is true", "continuous", "variance_preserving"),
        ),
        (
            {"process": arch_jax.VPSDE()},
            Spy(learned_variance=True),
            ("model.learned_variance is true", "continuous", "variance_preserving"),
        ),
        ({"process": arch_jax.RectifiedFlow(), "weighting": "vlb"}, Spy(), ("vlb", "RectifiedFlow")),
        ({"times": arch_jax.LogNormalTimes()}, Spy(), ("log_normal", "VariancePreserving")),
        ({"times": arch_jax.LogitNormalTimes()}, Spy(), ("logit_normal", "VariancePreserving")),
        ({"label_dropout": 1.5}, Spy(), ("label_dropout is 1.5",)),
    ],
    ids=[
        "zero SNR",
        "variance of a flow",
        "variance of an SDE",
        "VLB of a flow",
        "log-normal",
        "logit-normal",
        "dropout",
    ],
)
def test_choices_that_do_not_go_together(fields, model, parts):
    def make():
        chosen = dict(fields)
        if chosen.get("weighting") == "vlb":
            chosen["weighting"] = VLB()
            chosen["prediction"] = arch_jax.FlowPrediction()
        if isinstance(chosen.get("process"), arch_jax.RectifiedFlow):
            chosen.setdefault("prediction", arch_jax.FlowPrediction())
        task_of(model, **chosen).check(types.SimpleNamespace(shapes={"x": ((4, 3), "float32")}, classes=None))

    sentence = refused(make)
    for part in parts:
        assert part in sentence, sentence
