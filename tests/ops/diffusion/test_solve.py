"""The compiled scan: it takes the table's steps, draws noise row by row, and compiles once for tables of a shape."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax.ops.diffusion.ancestral import ddim, ddpm, forward_std, posterior_std
from arch_jax.ops.diffusion.dpm_solver import dpm_solver
from arch_jax.ops.diffusion.grids import grid
from arch_jax.ops.diffusion.heun import heun
from arch_jax.ops.diffusion.predictions import Data, Flow, Noise, Preconditioned, Score, Velocity
from arch_jax.ops.diffusion.processes import VPSDE, NoiseLevel, RectifiedFlow, VariancePreserving
from arch_jax.ops.diffusion.solve import solve, solve_reference, step_table
from arch_jax.ops.diffusion.thresholds import static_threshold

CHAIN = VariancePreserving()
SAMPLERS = {
    "DDIM": lambda process, times: ddim(process, times),
    "DDPM": lambda process, times: ddpm(process, times),
    "Heun": lambda process, times: heun(process, times),
    "3M": lambda process, times: dpm_solver(process, times, 3),
    "SDE 2M": lambda process, times: dpm_solver(process, times, 2, stochastic=True),
}


def keys(count=3, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def start(count=3, width=4):
    return jnp.asarray(np.random.default_rng(0).normal(size=(count, width)), jnp.float32)


def network(x, time, scale):
    """A smooth function of the point and the time, which is no denoiser of anything."""
    return jnp.tanh(x) + 0.1 * jnp.cos(time / 100)[:, None]


def noises(calls, count=3, width=4, seed=0):
    """As the scan says that it draws them: call n of a row with fold_in(its key, n)."""
    draw = lambda n: jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, n), (width,)))(keys(count, seed))
    return np.stack([draw(n) for n in range(calls)])


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(
    ("process", "prediction"),
    [(CHAIN, Noise()), (VPSDE(), Score()), (NoiseLevel(), Preconditioned()), (RectifiedFlow(shift=3.0), Flow())],
    ids=["chain", "SDE", "EDM", "flow"],
)
def test_it_is_the_reference_with_the_noise_that_it_draws(name, process, prediction):
    times = grid(process, 6)
    rows = SAMPLERS[name](process, times)
    x = start() * process.prior_std
    found, path = solve(step_table(rows, process, prediction), network, x, keys(), noisy=rows.noisy)
    assert path is None

    def denoise(x, time):
        at = np.array([time])
        alpha, sigma = process.coefficients(at, np)
        rates = process.rates(jnp.asarray(at)) if prediction.uses_rates else None
        made = prediction.preconditioning(alpha, sigma, rates, np)
        told = jnp.full(len(x), float(np.asarray(process.conditioning(at))[0]))
        return made.skip * x + made.out * np.asarray(network(jnp.asarray(made.scale * x), told, 1.0))

    drawn = noises(len(rows.times)) if rows.noisy else None
    np.testing.assert_allclose(found, solve_reference(rows, denoise, np.asarray(x), drawn), rtol=2e-4, atol=2e-4)


def test_row_i_of_a_batch_is_row_i_alone():
    """No row depends on the others or on how many there are, so that a sample can be drawn again."""
    rows = ddpm(CHAIN, grid(CHAIN, 5))
    made = step_table(rows, CHAIN, Velocity())
    sample = jax.jit(lambda x, keys: solve(made, network, x, keys, noisy=True)[0])
    together = sample(start(), keys())
    for i in range(3):
        np.testing.assert_allclose(together[i : i + 1], sample(start()[i : i + 1], keys()[i : i + 1]), rtol=1e-6)
    other = sample(start(), keys(seed=1))
    assert np.abs(np.asarray(other - together)).min() > 1e-5


def test_a_second_table_of_the_same_shape_compiles_nothing():
    traces = []

    @jax.jit
    def sample(made, x, keys):
        def counted(x, time, scale):
            traces.append(1)
            return network(x, time, scale)

        return solve(made, counted, x, keys, noisy=True)[0]

    results = [
        sample(step_table(rows, process, prediction), start(), keys())
        for process, prediction, rows in (
            (CHAIN, Noise(), ddim(CHAIN, grid(CHAIN, 6), 0.5)),
            (CHAIN, Velocity(), ddpm(CHAIN, grid(CHAIN, 6, "leading"))),
            (NoiseLevel(), Preconditioned(), dpm_solver(NoiseLevel(), grid(NoiseLevel(), 6, "karras"), 1)),
            (CHAIN, Noise(), dpm_solver(CHAIN, grid(CHAIN, 6), 1, stochastic=True)),
        )
    ]
    assert len(traces) == 1  # and the network is in the program once, not once a call
    assert len({float(result[0, 0]) for result in results}) == 4


def test_the_network_is_called_as_often_as_the_table_has_rows():
    """1,000 calls for a schedule of 10 steps is a fault seen elsewhere."""
    calls = []

    def counted(x, time, scale):
        jax.debug.callback(lambda time: calls.append(float(time)), time[0])
        return network(x, time, scale)

    rows = ddim(CHAIN, grid(CHAIN, 10))
    solve(step_table(rows, CHAIN, Noise()), counted, start(), keys(), noisy=False)
    jax.effects_barrier()
    assert sorted(calls, reverse=True) == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]


@pytest.mark.parametrize(("where", "deviation"), [(-1.0, posterior_std), (1.0, forward_std)], ids=["small", "large"])
def test_a_learned_variance_at_its_bounds_is_the_small_or_the_large(where, deviation):
    times = grid(CHAIN, 6)
    fixed = ddpm(CHAIN, times, "small" if where < 0 else "large")
    np.testing.assert_allclose(fixed.point[:-1, -1], deviation(CHAIN, times)[:-1])
    both = lambda x, time, scale: jnp.concatenate([network(x, time, scale), jnp.full_like(x, where)], axis=-1)
    made = step_table(ddpm(CHAIN, times, "learned"), CHAIN, Noise())
    learned, _ = solve(made, both, start(), keys(), noisy=True)
    expected, _ = solve(step_table(fixed, CHAIN, Noise()), network, start(), keys(), noisy=True)
    np.testing.assert_allclose(learned, expected, rtol=1e-4, atol=1e-5)


def test_a_learned_variance_halfway_is_the_geometric_mean():
    times = grid(CHAIN, 3)
    both = lambda x, time, scale: jnp.concatenate([0 * x, 0 * x], axis=-1)
    made = step_table(ddpm(CHAIN, times, "learned"), CHAIN, Data())
    _, path = solve(made, both, jnp.zeros((3, 4)), keys(), noisy=True, path=True)
    std = np.sqrt(posterior_std(CHAIN, times)[0] * forward_std(CHAIN, times)[0])
    np.testing.assert_allclose(path[1], std * noises(1)[0], rtol=1e-5)


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
def test_the_last_step_adds_no_noise(variance):
    made = step_table(ddpm(CHAIN, grid(CHAIN, 4), variance), CHAIN, Data())
    wide = 2 if variance == "learned" else 1
    constant = lambda x, time, scale: jnp.concatenate([jnp.full_like(x, 0.3)] * wide, axis=-1)
    end, _ = solve(made, constant, start(), keys(), noisy=True)
    np.testing.assert_allclose(end, 0.3, rtol=1e-6)


def test_a_threshold_is_of_the_denoised_estimate_before_it_is_remembered():
    """x_0 of 5 everywhere, clipped to 1: all samplers of many steps end at 1, also those with a history."""
    constant = lambda x, time, scale: jnp.full_like(x, 5.0)
    for make in SAMPLERS.values():
        rows = make(CHAIN, grid(CHAIN, 6))
        made = step_table(rows, CHAIN, Data())
        end, _ = solve(made, constant, start(), keys(), noisy=rows.noisy, threshold=static_threshold)
        np.testing.assert_allclose(end, 1.0, rtol=1e-5)


@pytest.mark.parametrize(("direction", "clean"), [("clipped", 1.0), ("raw", 5.0)])
def test_the_noise_that_ddim_keeps_is_that_of_the_estimate_before_or_after_the_threshold(direction, clean):
    """2010.02502, equation 12, with D = 5 clipped to 1."""
    times = grid(CHAIN, 4)
    alpha, sigma = CHAIN.coefficients(times, np)
    constant = lambda x, time, scale: jnp.full_like(x, 5.0)
    made = step_table(ddim(CHAIN, times, direction=direction), CHAIN, Data())
    _, path = solve(made, constant, start(), keys(), noisy=False, threshold=static_threshold, path=True)
    expected = alpha[1] + sigma[1] * (np.asarray(start()) - alpha[0] * clean) / sigma[0]
    np.testing.assert_allclose(path[1], expected, rtol=1e-4, atol=1e-5)


def test_the_path_is_the_points_of_the_calls_from_the_first():
    rows = ddim(CHAIN, grid(CHAIN, 5))
    made = step_table(rows, CHAIN, Noise())
    end, path = solve(made, network, start(), keys(), noisy=False, path=True)
    assert path.shape == (5, 3, 4)
    np.testing.assert_array_equal(path[0], start())
    # the last point of the path, and one more step from there by equation 12, is the end
    alpha, sigma = CHAIN.coefficients(rows.times, np)
    output = network(path[-1], jnp.full(3, CHAIN.conditioning(rows.times[-1])), 1.0)
    np.testing.assert_allclose(end, (path[-1] - sigma[-1] * output) / alpha[-1], rtol=1e-4, atol=1e-5)


def test_each_call_has_its_own_scale_of_guidance():
    scales = np.array([1.0, 2.0, 4.0])
    rows = ddim(CHAIN, grid(CHAIN, 3))
    told = lambda x, time, scale: jnp.full_like(x, scale)
    made = step_table(rows, CHAIN, Data(), guidance=scales)
    end, path = solve(made, told, jnp.zeros((1, 2)), keys(1), noisy=False, path=True)
    np.testing.assert_allclose(end, 4.0)  # the last step goes to D
    alpha, sigma = CHAIN.coefficients(grid(CHAIN, 3), np)
    np.testing.assert_allclose(path[1], alpha[1] - sigma[1] / sigma[0] * alpha[0] * 1.0, rtol=1e-5)


def test_with_the_exact_network_samples_in_float32_have_the_spread_of_the_data():
    """Data of standard deviation .3 through 200 steps of DDPM, with drawn noise: .284, by the recursion in float64."""

    def exact(x, time, scale):
        a, s = (part[:, None] for part in CHAIN.coefficients(time + 1))
        return s * x / (0.09 * a**2 + s**2)  # noise = (x - a D) / s

    count = 4000
    x = jnp.asarray(np.random.default_rng(1).normal(size=(count, 4)), jnp.float32)
    rows = ddpm(CHAIN, grid(CHAIN, 200))
    end, _ = jax.jit(lambda made, x, keys: solve(made, exact, x, keys, noisy=True))(
        step_table(rows, CHAIN, Noise()), x, keys(count)
    )
    alphas, sigmas = CHAIN.coefficients(grid(CHAIN, 200), np)
    variance, drawn = 1.0, posterior_std(CHAIN, grid(CHAIN, 200))
    for a, s, after, to, std in zip(alphas, sigmas, alphas[1:], sigmas[1:], drawn):
        gain = 0.09 * a / (0.09 * a**2 + s**2)
        variance = (after * gain + np.sqrt(to**2 - std**2) * (1 - a * gain) / s) ** 2 * variance + std**2
    np.testing.assert_allclose(np.std(end), np.sqrt(variance), rtol=0.02)
    np.testing.assert_allclose(np.sqrt(variance), 0.284, atol=5e-4)
    np.testing.assert_allclose(np.mean(end), 0, atol=0.01)
