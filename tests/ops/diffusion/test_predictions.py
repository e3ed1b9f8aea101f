"""What a network predicts: targets, the denoised estimate that is made of them, and each converted into the others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax.errors import UsageError
from arch_jax.ops.diffusion.laws import Mixture
from arch_jax.ops.diffusion.predictions import Data, Flow, Noise, Preconditioned, Score, Velocity, converted
from arch_jax.ops.diffusion.processes import (
    VPSDE,
    NoiseLevel,
    RectifiedFlow,
    VarianceExploding,
    VariancePreserving,
)

PREDICTIONS = {
    "noise": Noise(),
    "data": Data(),
    "v": Velocity(),
    "score": Score(),
    "flow": Flow(),
    "EDM": Preconditioned(),
    "EDM of latents": Preconditioned(data_std=1.3),
}
PROCESSES = {
    "chain": VariancePreserving(),
    "VP SDE": VPSDE(),
    "sub-VP SDE": VPSDE(sub=True),
    "VE SDE": VarianceExploding(),
    "noise level": NoiseLevel(),
    "flow": RectifiedFlow(),
    "shifted flow": RectifiedFlow(shift=3.0),
}
every = pytest.mark.parametrize("prediction", PREDICTIONS.values(), ids=PREDICTIONS.keys())
everywhere = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


def at(process, part):
    """(alpha, sigma, rates) in float64, "1", a part of the way to pure noise."""
    time = np.array([process.first + part * (process.last - process.first)])
    rates = tuple(np.asarray(rate) for rate in process.rates(jnp.asarray(time)))
    return *process.coefficients(time, np), rates


def pair(count=11):
    draw = np.random.default_rng(0)
    return draw.normal(size=count), draw.normal(size=count)


@every
@everywhere
@pytest.mark.parametrize("part", [0.02, 0.5, 0.97])
def test_at_its_target_the_denoised_estimate_is_the_data(prediction, process, part):
    alpha, sigma, rates = at(process, part)
    clean, noise = pair()
    x = alpha * clean + sigma * noise
    made = prediction.preconditioning(alpha, sigma, rates, np)
    target = prediction.target(clean, noise, alpha, sigma, rates)
    np.testing.assert_allclose(made.skip * x + made.out * target, clean, rtol=1e-7, atol=1e-8)
    # What the network gets wrong is multiplied by c_out.
    np.testing.assert_allclose(made.skip * x + made.out * (target + 1) - clean, made.out * np.ones(11), rtol=1e-5)


@everywhere
@pytest.mark.parametrize("part", [0.1, 0.9])
def test_targets_are_those_of_the_papers(process, part):
    alpha, sigma, (alpha_rate, sigma_rate) = at(process, part)
    clean, noise = pair()
    x = alpha * clean + sigma * noise
    target = lambda prediction: prediction.target(clean, noise, alpha, sigma, (alpha_rate, sigma_rate))
    np.testing.assert_allclose(target(Noise()), noise)
    np.testing.assert_allclose(target(Data()), clean)
    np.testing.assert_allclose(target(Velocity()), alpha * noise - sigma * clean)
    np.testing.assert_allclose(target(Score()), -noise / sigma, rtol=1e-10)  # grad log N(x; alpha x_0, sigma^2)
    # EDM: F = (y - c_skip (y + n)) / c_out, for x / alpha (2206.00364, equation 8)
    r, s = sigma / alpha, 0.5
    skip, out = s**2 / (r**2 + s**2), r * s / np.sqrt(r**2 + s**2)
    np.testing.assert_allclose(target(Preconditioned()), (clean - skip * x / alpha) / out, rtol=1e-6)
    if not isinstance(process, RectifiedFlow):
        np.testing.assert_allclose(target(Flow()), alpha_rate * clean + sigma_rate * noise)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_on_straight_paths_flow_is_noise_less_data_whatever_the_times(shift):
    """A shift moves the times at which it is asked, not what is asked: 2403.03206 and the models released since."""
    alpha, sigma, rates = at(RectifiedFlow(shift=shift), 0.3)
    clean, noise = pair()
    np.testing.assert_allclose(Flow().target(clean, noise, alpha, sigma, rates), noise - clean)
    x = alpha * clean + sigma * noise
    made = Flow().preconditioning(alpha, sigma, rates, np)
    np.testing.assert_allclose([made.skip, made.out], [np.ones(1), -sigma])  # D = x - sigma u
    np.testing.assert_allclose(made.skip * x + made.out * (noise - clean), clean)


@every
def test_the_scale_is_1_but_for_edms(prediction):
    alpha, sigma, rates = at(VPSDE(), 0.4)
    scale = prediction.preconditioning(alpha, sigma, rates, np).scale
    if isinstance(prediction, Preconditioned):
        # c_in = 1 / sqrt(s^2 + r^2) of x / alpha
        np.testing.assert_allclose(scale, 1 / np.sqrt(prediction.data_std**2 + (sigma / alpha) ** 2) / alpha)
    else:
        np.testing.assert_allclose(scale, 1)


@everywhere
@pytest.mark.parametrize("given", PREDICTIONS.values(), ids=PREDICTIONS.keys())
def test_each_converted_into_each_other_and_back_is_itself(given, process):
    """Not only at the targets: of any output of a network, whose D is the same before and after."""
    alpha, sigma, rates = at(process, 0.4)
    output, x = pair()
    for wanted in PREDICTIONS.values():
        there = converted(output, x, given, wanted, alpha, sigma, rates, np)
        back = converted(there, x, wanted, given, alpha, sigma, rates, np)
        np.testing.assert_allclose(back, output, rtol=1e-6, atol=1e-7)
        one, other = (prediction.preconditioning(alpha, sigma, rates, np) for prediction in (given, wanted))
        np.testing.assert_allclose(
            one.skip * x + one.out * output, other.skip * x + other.out * there, rtol=1e-7, atol=1e-7
        )


@everywhere
@pytest.mark.parametrize("given", PREDICTIONS.values(), ids=PREDICTIONS.keys())
def test_the_target_of_one_converts_into_the_target_of_the_other(given, process):
    alpha, sigma, rates = at(process, 0.6)
    clean, noise = pair()
    x = alpha * clean + sigma * noise
    target = given.target(clean, noise, alpha, sigma, rates)
    for wanted in PREDICTIONS.values():
        np.testing.assert_allclose(
            converted(target, x, given, wanted, alpha, sigma, rates, np),
            wanted.target(clean, noise, alpha, sigma, rates),
            rtol=1e-6,
            atol=1e-6,
        )


def test_v_of_variance_preserving_processes_is_a_rotation():
    """x and v are alpha, sigma rotated: x_0 = alpha x - sigma v, noise = sigma x + alpha v (2202.00512, appendix D)."""
    alpha, sigma, _ = at(VPSDE(), 0.4)
    v, x = pair()
    np.testing.assert_allclose(converted(v, x, Velocity(), Data(), alpha, sigma, xp=np), alpha * x - sigma * v)
    np.testing.assert_allclose(converted(v, x, Velocity(), Noise(), alpha, sigma, xp=np), sigma * x + alpha * v)


def test_v_without_noise_or_without_data_is_one_of_the_two():
    clean, noise = pair()
    np.testing.assert_array_equal(Velocity().target(clean, noise, np.ones(1), np.zeros(1)), noise)
    np.testing.assert_array_equal(Velocity().target(clean, noise, np.zeros(1), np.ones(1)), -clean)


@pytest.mark.parametrize("noise_level", [0.02, 0.5, 20.0])
@pytest.mark.parametrize("process", [NoiseLevel(), VPSDE()], ids=["noise level", "VP SDE"])
def test_edms_input_and_target_have_variance_1_at_every_noise_level(process, noise_level):
    """2206.00364, appendix B.6, by a Monte Carlo estimate of data whose standard deviation is data_std."""
    draw = np.random.default_rng(1)
    clean = 0.5 * np.sign(draw.normal(size=200_000)) * np.sqrt(0.5) + 0.5 * np.sqrt(0.5) * draw.normal(size=200_000)
    noise = draw.normal(size=200_000)
    alpha, sigma = process.coefficients(process.time_of(np.array([noise_level])), np)
    made = Preconditioned(data_std=0.5).preconditioning(alpha, sigma, xp=np)
    target = Preconditioned(data_std=0.5).target(clean, noise, alpha, sigma)
    np.testing.assert_allclose([np.var(made.scale * (alpha * clean + sigma * noise)), np.var(target)], 1, atol=0.015)


def test_edms_skip_makes_the_factor_of_the_networks_errors_smallest():
    """Of all c_skip for which F has unit variance (2206.00364, equation 130 and below)."""
    for r in (0.1, 0.5, 3.0):
        alpha, sigma = NoiseLevel().coefficients(np.array([r]), np)
        made = Preconditioned(data_std=0.5).preconditioning(alpha, sigma, xp=np)
        skips = np.linspace(-1, 2, 3001)
        outs = np.sqrt((1 - skips) ** 2 * 0.25 + skips**2 * r**2)
        np.testing.assert_allclose(made.out, outs.min(), rtol=1e-5)
        np.testing.assert_allclose(made.skip, skips[outs.argmin()], atol=1e-3)


@every
@everywhere
def test_no_output_beats_the_conditional_mean_so_that_f_of_a_gaussian_is_affine(prediction, process):
    """Least squares of the target on x gives the same D as Bayes' rule, alpha v x / (alpha^2 v + sigma^2)."""
    alpha, sigma, rates = at(process, 0.5)
    # exact second moments of data of variance v: no sampling is needed
    v = 0.3
    basis = np.array([[1.0, 0.0], [0.0, 1.0]])  # (x_0, noise)
    target = prediction.target(basis[0], basis[1], alpha, sigma, rates)
    covariance = target[0] * alpha * v + target[1] * sigma
    slope = covariance / (alpha**2 * v + sigma**2)
    made = prediction.preconditioning(alpha, sigma, rates, np)
    np.testing.assert_allclose(
        made.skip + made.out * slope, alpha * v / (alpha**2 * v + sigma**2), rtol=1e-6, atol=1e-9
    )


def test_the_flow_of_a_gaussian_to_a_gaussian_is_known():
    """u(x) = d/dt log std(x_t) (x - mean) + d/dt mean, for data N(m, v) (2210.02747, equation 15)."""
    m, v, t = 0.7, 0.4, 0.35
    law = Mixture.gaussian(np.array([m]), np.array([v]))
    x = np.linspace(-2, 2, 9)[:, None]
    alpha, sigma, rates = at(RectifiedFlow(), (t - 0.001) / 0.999)
    np.testing.assert_allclose([alpha, sigma], [[1 - t], [t]])
    flow = converted(law.denoised(x, 1 - t, t), x, Data(), Flow(), alpha, sigma, rates, np)
    variance = (1 - t) ** 2 * v + t**2
    expected = (t - (1 - t) * v) / variance * (x - (1 - t) * m) - m
    np.testing.assert_allclose(flow, expected, rtol=1e-9)


@everywhere
def test_the_score_from_d_is_the_gradient_of_the_noisy_log_density(process):
    """Tweedie: score = (alpha D - x) / sigma^2, with D and the density of a mixture differentiated by JAX."""
    alpha, sigma, _ = at(process, 0.3)
    means, variances, weights = np.array([[-0.8, 0.1], [0.5, 0.9]]), np.array([[0.2, 0.1], [0.05, 0.3]]), [0.3, 0.7]
    law = Mixture(means, variances, np.array(weights))
    x = np.random.default_rng(0).normal(size=(5, 2)) * np.sqrt(alpha**2 + sigma**2)

    def log_density(x):
        spread = jnp.asarray(alpha**2 * variances + sigma**2)
        each = -0.5 * ((x - alpha * means) ** 2 / spread + jnp.log(2 * jnp.pi * spread)).sum(-1)
        return jax.nn.logsumexp(each + jnp.log(jnp.asarray(weights)))

    gradient = jax.vmap(jax.grad(log_density))(jnp.asarray(x))
    denoised = law.denoised(x, float(alpha[0]), float(sigma[0]))
    np.testing.assert_allclose(
        converted(denoised, x, Data(), Score(), alpha, sigma, xp=np), gradient, rtol=1e-7, atol=1e-9
    )


@every
def test_numpy_and_traced_arrays_give_the_same(prediction):
    alpha, sigma, rates = at(VPSDE(), 0.4)
    made = prediction.preconditioning(alpha, sigma, rates, np)
    traced = jax.jit(lambda *parts: prediction.preconditioning(*parts[:2], parts[2], jnp))(alpha, sigma, rates)
    for one, other in zip(made, traced):
        np.testing.assert_allclose(np.broadcast_to(one, (1,)), np.broadcast_to(other, (1,)), rtol=1e-6)


@pytest.mark.parametrize("prediction", [Noise(), Score()], ids=["noise", "score"])
@pytest.mark.parametrize(
    "process",
    [VariancePreserving(zero_terminal_snr=True), RectifiedFlow(), RectifiedFlow(shift=2.0)],
    ids=["zero SNR", "flow", "shifted flow"],
)
def test_predictions_of_the_noise_are_refused_where_the_end_is_noise_alone(prediction, process):
    with pytest.raises(UsageError, match=r"\bx0\b.*|\bv\b.*"):
        prediction.check(process)


@every
def test_predictions_are_accepted_where_something_of_the_data_is_left(prediction):
    for process in (VariancePreserving(), VPSDE(), NoiseLevel(), VarianceExploding()):
        prediction.check(process)


def test_flow_is_refused_where_its_rate_is_infinite():
    with pytest.raises(UsageError, match="zero_terminal_snr"):
        Flow().check(VariancePreserving(zero_terminal_snr=True))
    Flow().check(RectifiedFlow())


@pytest.mark.parametrize("name", ["data", "v", "EDM"])
def test_predictions_that_say_something_of_the_data_in_noise_alone_are_accepted_and_finite(name):
    process, prediction = VariancePreserving(zero_terminal_snr=True), PREDICTIONS[name]
    prediction.check(process)
    alpha, sigma = process.coefficients(np.array([1000.0]), np)
    made = prediction.preconditioning(alpha, sigma, xp=np)
    assert np.isfinite(np.concatenate([np.broadcast_to(part, (1,)) for part in made])).all()
    clean, noise = pair()
    output = prediction.target(clean, noise, alpha, sigma)
    np.testing.assert_allclose(made.skip * noise + made.out * output, clean)
