"""Weights of the loss and densities of training times against the papers, and against the variational bound itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax.errors import UsageError
from arch_jax.ops.diffusion.predictions import Data, Flow, Noise, Preconditioned, Score, Velocity
from arch_jax.ops.diffusion.processes import (
    VPSDE,
    NoiseLevel,
    RectifiedFlow,
    VarianceExploding,
    VariancePreserving,
)
from arch_jax.ops.diffusion.weightings import (
    SNR,
    VLB,
    LogitNormal,
    LogNormal,
    MinSNR,
    Simple,
    UniformTimes,
    noise_weight,
)

CHAIN = VariancePreserving()
TIMES = np.array([1.0, 2.0, 50.0, 300.0, 700.0, 1000.0])
PREDICTIONS = {"noise": Noise(), "x0": Data(), "v": Velocity(), "score": Score(), "EDM": Preconditioned()}


def weight(weighting, prediction, times=TIMES, process=CHAIN):
    """In float64, "times"."""
    with jax.enable_x64(True):
        time = jnp.asarray(times)
        alpha, sigma = process.coefficients(time)
        rates = process.rates(time) if prediction.uses_rates else None
        made = prediction.preconditioning(alpha, sigma, rates)
        return np.broadcast_to(weighting(process, prediction, time, alpha, sigma, made), times.shape)


def snr(times=TIMES, process=CHAIN):
    alpha, sigma = process.coefficients(times, np)
    return alpha**2 / sigma**2


def test_the_simple_weight_is_1_of_whatever_is_predicted():
    for prediction in PREDICTIONS.values():
        np.testing.assert_array_equal(weight(Simple(), prediction), 1)


def test_min_snr_is_of_what_is_predicted():
    """2303.09556, section 3.4 and its code; a weight that ignores v is another loss."""
    smaller = np.minimum(snr(), 5)
    np.testing.assert_allclose(weight(MinSNR(), Data()), smaller, rtol=1e-7)
    np.testing.assert_allclose(weight(MinSNR(), Noise()), smaller / snr(), rtol=1e-7)
    np.testing.assert_allclose(weight(MinSNR(), Velocity()), smaller / (snr() + 1), rtol=1e-7)
    np.testing.assert_allclose(weight(MinSNR(gamma=1.0), Noise()), np.minimum(snr(), 1) / snr(), rtol=1e-7)


def test_snr_and_truncated_snr_are_of_what_is_predicted():
    """2202.00512, section 4: of x_0 SNR, max(SNR, 1) and, for v with weight 1, SNR + 1."""
    np.testing.assert_allclose(weight(SNR(), Noise()), 1, rtol=1e-7)
    np.testing.assert_allclose(weight(SNR(), Data()), snr(), rtol=1e-7)
    np.testing.assert_allclose(weight(SNR(at_least=1.0), Data()), np.maximum(snr(), 1), rtol=1e-7)
    np.testing.assert_allclose(weight(SNR(), Velocity()), CHAIN.coefficients(TIMES, np)[0] ** 2, rtol=1e-7)
    # "SNR + 1" of x_0 is the simple loss of v
    made = Velocity().preconditioning(*CHAIN.coefficients(TIMES, np), xp=np)
    np.testing.assert_allclose(weight(Simple(), Velocity()) / made.out**2, snr() + 1, rtol=1e-7)


@pytest.mark.parametrize(
    "weighting", [SNR(), SNR(at_least=1.0), MinSNR(), VLB()], ids=["snr", "truncated", "min", "vlb"]
)
def test_the_loss_of_the_denoised_estimate_does_not_depend_on_what_is_predicted(weighting):
    with jax.enable_x64(True):
        time = jnp.asarray(TIMES)
        found = [noise_weight(weighting, CHAIN, prediction, time) for prediction in PREDICTIONS.values()]
        for one in found[1:]:
            np.testing.assert_allclose(one, found[0], rtol=1e-6)


def test_weights_of_noise_that_the_papers_losses_amount_to():
    with jax.enable_x64(True):
        time = jnp.asarray(TIMES)
        of = lambda weighting, prediction: noise_weight(weighting, CHAIN, prediction, time)
        alpha, sigma = CHAIN.coefficients(TIMES, np)
        np.testing.assert_allclose(of(Simple(), Noise()), 1, rtol=1e-7)
        np.testing.assert_allclose(of(Simple(), Data()), 1 / snr(), rtol=1e-7)
        np.testing.assert_allclose(of(Simple(), Velocity()), 1 / alpha**2, rtol=1e-7)
        np.testing.assert_allclose(of(Simple(), Score()), 1 / sigma**2, rtol=1e-7)  # score = -noise / sigma
        np.testing.assert_allclose(of(MinSNR(), Velocity()), np.minimum(snr(), 5) / snr(), rtol=1e-7)


def test_edms_simple_loss_weighs_the_denoised_estimate_by_lambda():
    """2206.00364, table 1: lambda = (sigma^2 + s^2) / (sigma s)^2 of D, sigma^2 as much of noise."""
    levels = np.array([0.01, 0.5, 30.0])
    with jax.enable_x64(True):
        found = noise_weight(Simple(), NoiseLevel(), Preconditioned(), jnp.asarray(levels))
    np.testing.assert_allclose(found, levels**2 * (levels**2 + 0.25) / (levels * 0.5) ** 2, rtol=1e-7)


def test_flow_matching_weighs_noise_by_the_square_of_one_over_alpha():
    """u = noise - x_0 is (noise - x) / alpha and more: 1 / (1 - t)^2 (2303.00848, appendix D)."""
    times = np.array([0.1, 0.5, 0.9])
    for process in (RectifiedFlow(), RectifiedFlow(shift=3.0)):
        with jax.enable_x64(True):
            found = noise_weight(Simple(), process, Flow(), jnp.asarray(times))
        np.testing.assert_allclose(found, 1 / process.coefficients(times, np)[0] ** 2, rtol=1e-7)


@pytest.mark.parametrize("process", [CHAIN, VariancePreserving("cosine")], ids=["linear", "cosine"])
def test_the_bounds_weight_is_that_of_the_kl_divergence(process):
    """2006.11239, equations 7 and 8: KL of two Gaussians of the posterior's variance, whose means have D in them."""
    times = np.array([2.0, 10.0, 400.0, 900.0, 1000.0])
    alpha, sigma = process.coefficients(times, np)
    before_alpha, before_sigma = process.coefficients(times - 1, np)
    beta = 1 - (alpha / before_alpha) ** 2
    per_clean = before_alpha * beta / sigma**2
    variance = before_sigma**2 / sigma**2 * beta
    expected = process.last * per_clean**2 / (2 * variance)
    np.testing.assert_allclose(weight(VLB(), Data(), times, process), expected, rtol=1e-6)
    # as equation 12 has it for noise: beta^2 / (2 std^2 (1 - beta) (1 - alpha_bar))
    of_noise = process.last * beta**2 / (2 * variance * (1 - beta) * sigma**2)
    np.testing.assert_allclose(weight(VLB(), Noise(), times, process), of_noise, rtol=1e-6)


def test_the_bounds_first_weight_is_that_of_a_decoder_of_its_own_noise():
    """-log N(x_0; D, sigma_1^2 / alpha_1^2): SNR(1) / 2 of the error, times T as one of T terms is drawn."""
    np.testing.assert_allclose(weight(VLB(), Data(), np.array([1.0])), 1000 * snr(np.array([1.0])) / 2, rtol=1e-6)


@pytest.mark.parametrize("weighting", [Simple(), SNR(), SNR(1.0), MinSNR(), VLB()], ids=lambda w: type(w).__name__)
@pytest.mark.parametrize("name", ["x0", "v"])
def test_weights_are_finite_at_noise_alone_and_in_float32_those_of_float64(weighting, name):
    process, times = VariancePreserving(zero_terminal_snr=True), np.array([1.0, 20.0, 999.0, 1000.0])
    exact = weight(weighting, PREDICTIONS[name], times, process)
    assert np.isfinite(exact).all()
    time = jnp.asarray(times, jnp.float32)
    alpha, sigma = process.coefficients(time)
    made = PREDICTIONS[name].preconditioning(alpha, sigma)
    found = weighting(process, PREDICTIONS[name], time, alpha, sigma, made)
    np.testing.assert_allclose(np.broadcast_to(found, (4,)), exact, rtol=2e-3, atol=1e-12)


@pytest.mark.parametrize("process", [VPSDE(), NoiseLevel(), RectifiedFlow(), VarianceExploding()])
def test_the_bounds_weighting_is_refused_on_a_continuous_process(process):
    with pytest.raises(UsageError, match=type(process).__name__):
        VLB().check(process, Noise())


def test_the_bounds_weighting_is_accepted_on_a_chain():
    VLB().check(CHAIN, Noise())


# Training times


def test_uniform_times_of_a_chain_are_each_of_its_steps_equally_often():
    spread = UniformTimes().spread(CHAIN, 1000)
    np.testing.assert_array_equal(np.sort(spread), np.arange(1, 1001))
    drawn = np.asarray(UniformTimes().draw(VariancePreserving(steps=4, start=0.1, stop=0.5), jax.random.key(0), 40_000))
    values, counts = np.unique(drawn, return_counts=True)
    np.testing.assert_array_equal(values, [1, 2, 3, 4])
    np.testing.assert_allclose(counts / 40_000, 0.25, atol=0.01)


@pytest.mark.parametrize("process", [VPSDE(), RectifiedFlow(), VarianceExploding()])
def test_uniform_times_of_a_continuous_process_fill_its_range(process):
    spread = np.asarray(UniformTimes().spread(process, 100))
    np.testing.assert_allclose(np.diff(spread), (process.last - process.first) / 100, rtol=1e-3)
    assert spread[0] > process.first
    assert spread[-1] < process.last


def test_log_normal_noise_levels_are_edms():
    """ln sigma ~ N(-1.2, 1.2^2) (2206.00364, table 1)."""
    drawn = np.log(LogNormal().draw(NoiseLevel(), jax.random.key(0), 50_000))
    np.testing.assert_allclose([drawn.mean(), drawn.std()], [-1.2, 1.2], atol=0.02)
    spread = np.log(LogNormal(0.5, 2.0).spread(NoiseLevel(), 1001))
    np.testing.assert_allclose(spread[500], 0.5, atol=1e-5)
    np.testing.assert_allclose(np.mean(spread < 0.5 + 2.0), 0.8413, atol=0.001)  # one standard deviation


def test_logit_normal_times_are_those_of_stable_diffusion_3():
    """logit(t) ~ N(m, s^2) (2403.03206, equation 19)."""
    drawn = np.asarray(LogitNormal(0.3, 0.8).draw(RectifiedFlow(), jax.random.key(0), 50_000), np.float64)
    logits = np.log(drawn / (1 - drawn))
    np.testing.assert_allclose([logits.mean(), logits.std()], [0.3, 0.8], atol=0.02)
    spread = np.asarray(LogitNormal().spread(RectifiedFlow(), 999))
    np.testing.assert_allclose(spread[499], 0.5, atol=1e-6)


def test_draws_are_of_the_key_alone_and_all_finite_and_above_0():
    for times, process in ((UniformTimes(), CHAIN), (LogNormal(), NoiseLevel()), (LogitNormal(), RectifiedFlow())):
        one, same = (np.asarray(times.draw(process, jax.random.key(3), 1000)) for _ in range(2))
        np.testing.assert_array_equal(one, same)
        assert (one != np.asarray(times.draw(process, jax.random.key(4), 1000))).any()
        assert np.isfinite(one).all()
        assert (one > 0).all()


@pytest.mark.parametrize(
    ("times", "process"),
    [
        (LogNormal(), CHAIN),
        (LogNormal(), RectifiedFlow()),
        (LogNormal(), VPSDE()),
        (LogitNormal(), CHAIN),
        (LogitNormal(), NoiseLevel()),
    ],
    ids=lambda part: type(part).__name__,
)
def test_densities_of_another_kind_of_time_are_refused(times, process):
    with pytest.raises(UsageError, match=type(process).__name__):
        times.draw(process, jax.random.key(0), 3)


def test_log_normal_levels_are_those_of_a_process_whose_time_is_sigma_however_large_it_gets():
    with pytest.raises(UsageError, match="VarianceExploding"):
        LogNormal().draw(VarianceExploding(0.01, 1.0), jax.random.key(0), 3)
    assert np.isfinite(LogNormal().draw(NoiseLevel(0.002, 1.0), jax.random.key(0), 3)).all()
