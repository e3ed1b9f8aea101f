"""Samplers step by step against diffusers' schedulers, on the same outputs of a network and the same noise.

Orders of convergence don't see everything: a swapped ratio in DPM-Solver++ (2M) keeps its order. Each intermediate
point on an uneven grid does. Where diffusers itself departs from a paper, the grid is one on which it doesn't, and the
other one is tested against the paper.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax.ops.diffusion.ancestral import ddim, ddpm
from arch_jax.ops.diffusion.dpm_solver import dpm_solver
from arch_jax.ops.diffusion.grids import grid
from arch_jax.ops.diffusion.guidance import rescaled
from arch_jax.ops.diffusion.heun import heun
from arch_jax.ops.diffusion.pndm import pndm
from arch_jax.ops.diffusion.predictions import Flow, Noise, Velocity
from arch_jax.ops.diffusion.processes import RectifiedFlow, VariancePreserving
from arch_jax.ops.diffusion.solve import solve, solve_reference, step_table
from arch_jax.ops.diffusion.thresholds import dynamic_threshold
from arch_jax.ops.diffusion.unipc import unipc

torch = pytest.importorskip("torch", reason="parity needs torch: pip install arch-jax[parity]")
diffusers = pytest.importorskip("diffusers", reason="parity needs diffusers: pip install arch-jax[parity]")

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
PROCESS = VariancePreserving("scaled_linear", start=0.00085, stop=0.012)
ZERO_SNR = VariancePreserving("scaled_linear", start=0.00085, stop=0.012, zero_terminal_snr=True)
#: Timesteps of no regular spacing, as diffusers counts them, from 0; the last step goes to the data.
UNEVEN = [999, 900, 700, 660, 300, 120, 40, 0]
KINDS = ["epsilon", "sample", "v_prediction"]
every_kind = pytest.mark.parametrize("kind", KINDS)


def begin(calls, shape=(3, 5)):
    """(x, the network's outputs, noise) of each call."""
    draw = np.random.default_rng(0)
    return draw.normal(size=shape), draw.normal(size=(calls, *shape)), draw.normal(size=(calls, *shape))


def denoised(kind, x, output, alpha, sigma):
    """D of what a network of diffusers' `prediction_type` gives."""
    return {
        "epsilon": lambda: (x - sigma * output) / alpha,
        "sample": lambda: output,
        "v_prediction": lambda: alpha * x - sigma * output,
        "flow": lambda: x - sigma * output,
    }[kind]()


def walk(rows, process, kind, x, outputs, noises=None, clip=None):
    """The points after all calls, by what the columns of the tables mean."""
    alphas, sigmas = process.coefficients(rows.times, np)
    anchor, past, points = x, [np.zeros_like(x)] * rows.history, []
    for i, (alpha, sigma) in enumerate(zip(alphas, sigmas)):
        raw = denoised(kind, x, outputs[i], alpha, sigma)
        clean = raw if clip is None else np.clip(raw, -clip, clip)
        past = [rows.stored[i, 0] * x + rows.stored[i, 1] * clean, *past][: rows.history]
        terms = [anchor, x, raw, *past, np.zeros_like(x) if noises is None else noises[i]]
        x, anchor = (np.tensordot(w[i], np.stack(terms), 1) for w in (rows.point, rows.anchor))
        points.append(x)
    return np.stack(points)


def theirs(scheduler, timesteps, x, outputs, noises, monkeypatch, start=1.0, **kwargs):
    """The points after all of a scheduler's steps."""
    tensors = (torch.tensor(noise) for noise in ([] if noises is None else noises))
    module = __import__(type(scheduler).__module__, fromlist=["randn_tensor"])
    if hasattr(module, "randn_tensor"):
        monkeypatch.setattr(module, "randn_tensor", lambda *args, **kwargs: next(tensors))
    x, points = torch.tensor(x) * start, []
    for timestep, output in zip(timesteps, outputs):
        # What is not asked for noise at every step would otherwise take that of another.
        x = scheduler.step(torch.tensor(output), timestep, x, **kwargs).prev_sample
        points.append(x.double().numpy())
    return np.stack(points)


def agree(ours, reference, tolerance=3e-5):
    scale = np.abs(reference).max(axis=tuple(range(1, reference.ndim)), keepdims=True)
    np.testing.assert_allclose(ours / scale, reference / scale, atol=tolerance, rtol=0)


# Schedules


@pytest.mark.parametrize(
    ("settings", "process"),
    [
        ({"beta_schedule": "linear"}, VariancePreserving()),
        ({"beta_schedule": "linear", "num_train_timesteps": 50, "beta_end": 0.3},
         VariancePreserving(steps=50, stop=0.3)),
        (SD, PROCESS),
        ({"beta_schedule": "squaredcos_cap_v2"}, VariancePreserving("cosine")),
        ({"beta_schedule": "sigmoid"}, VariancePreserving("sigmoid")),
        ({**SD, "rescale_betas_zero_snr": True}, ZERO_SNR),
        ({"beta_schedule": "linear", "rescale_betas_zero_snr": True}, VariancePreserving(zero_terminal_snr=True)),
    ],
    ids=["linear", "50 steps", "scaled linear", "cosine", "sigmoid", "zero SNR", "linear zero SNR"],
)  # fmt: skip
def test_schedules_are_diffusers(settings, process):
    expected = diffusers.DDPMScheduler(**settings).alphas_cumprod.double().numpy()
    alpha, _ = process.coefficients(np.arange(1, process.steps + 1), np)
    # theirs is a product in float32 of 1 - beta, and with zero SNR a difference of nearly equal numbers at the end
    np.testing.assert_allclose(alpha**2, expected, rtol=2e-4, atol=1e-7 if process.zero_terminal_snr else 0)
    np.testing.assert_allclose(1 - alpha[:10] ** 2, 1 - expected[:10], atol=1e-6)


# Grids


@pytest.mark.parametrize("steps", [1, 4, 7, 10, 50, 1000])
@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
def test_grids_are_diffusers(spacing, steps):
    if spacing == "linspace" and steps == 1:
        pytest.skip("theirs is one call at timestep 0")
    scheduler = diffusers.DDPMScheduler(timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    np.testing.assert_array_equal(grid(VariancePreserving(), steps, spacing), [*(scheduler.timesteps.numpy() + 1), 0])


def test_an_offset_is_added_to_leading_times():
    scheduler = diffusers.DDIMScheduler(timestep_spacing="leading", steps_offset=1)
    scheduler.set_timesteps(20)
    ours = grid(VariancePreserving(), 20, "leading", offset=1)
    np.testing.assert_array_equal(ours[:-1] - 1, scheduler.timesteps.numpy())


@pytest.mark.parametrize("spacing", ["karras", "exponential"])
@pytest.mark.parametrize("steps", [5, 18])
def test_noise_levels_of_karras_and_exponential_grids_are_diffusers(spacing, steps):
    scheduler = diffusers.EulerDiscreteScheduler(**SD, **{f"use_{spacing}_sigmas": True})
    scheduler.set_timesteps(steps)
    times = grid(PROCESS, steps, spacing)
    np.testing.assert_allclose(PROCESS.ratios(times), scheduler.sigmas.numpy(), rtol=2e-4)


# DDPM


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("timesteps", [UNEVEN, list(range(900, -1, -100))], ids=["uneven", "leading"])
@every_kind
def test_ddpm(kind, timesteps, variance, clip, monkeypatch):
    scheduler = diffusers.DDPMScheduler(
        **SD, prediction_type=kind, variance_type=f"fixed_{variance}", clip_sample=clip is not None
    )
    scheduler.set_timesteps(timesteps=timesteps)
    times = np.array([*timesteps, -1.0]) + 1
    x, outputs, noises = begin(len(timesteps))
    reference = theirs(scheduler, scheduler.timesteps, x, outputs, noises, monkeypatch)
    agree(walk(ddpm(PROCESS, times, variance), PROCESS, kind, x, outputs, noises, clip), reference)


def test_ddpm_with_the_logarithm_of_the_small_variance_is_the_same(monkeypatch):
    scheduler = diffusers.DDPMScheduler(**SD, variance_type="fixed_small_log", clip_sample=False)
    scheduler.set_timesteps(timesteps=UNEVEN)
    x, outputs, noises = begin(len(UNEVEN))
    reference = theirs(scheduler, scheduler.timesteps, x, outputs, noises, monkeypatch)
    agree(walk(ddpm(PROCESS, np.array([*UNEVEN, -1.0]) + 1), PROCESS, "epsilon", x, outputs, noises), reference)


@pytest.mark.parametrize("kind", ["sample", "v_prediction"])
def test_ddpm_with_zero_terminal_snr(kind, monkeypatch):
    scheduler = diffusers.DDPMScheduler(
        **SD, prediction_type=kind, rescale_betas_zero_snr=True, timestep_spacing="trailing", clip_sample=False
    )
    scheduler.set_timesteps(10)
    x, outputs, noises = begin(10)
    reference = theirs(scheduler, scheduler.timesteps, x, outputs, noises, monkeypatch)
    rows = ddpm(ZERO_SNR, grid(ZERO_SNR, 10))
    agree(walk(rows, ZERO_SNR, kind, x, outputs, noises)[:-1], reference[:-1], 2e-4)


def test_large_variance_adds_no_noise_at_the_last_step_though_diffusers_does_above_timestep_0(monkeypatch):
    """2006.11239, algorithm 2: z = 0 at the last step. Diffusers asks for timestep 0, where "trailing" never comes."""
    scheduler = diffusers.DDPMScheduler(**SD, variance_type="fixed_large", clip_sample=False)
    timesteps = [999, 599, 199]
    scheduler.set_timesteps(timesteps=timesteps)
    x, outputs, noises = begin(3)
    reference = theirs(scheduler, scheduler.timesteps, x, outputs, noises, monkeypatch)
    ours = walk(ddpm(PROCESS, np.array([1000.0, 600, 200, 0]), "large"), PROCESS, "epsilon", x, outputs, noises)
    agree(ours[:-1], reference[:-1])
    alpha, sigma = PROCESS.coefficients(np.array(200.0), np)
    np.testing.assert_allclose(ours[-1], denoised("epsilon", ours[-2], outputs[-1], alpha, sigma), rtol=1e-10)
    np.testing.assert_allclose(reference[-1] - ours[-1], sigma * noises[-1], atol=2e-4)


def test_ddpm_with_a_learned_variance(monkeypatch):
    """The second half of the network's channels lies between the bounds (2102.09672, equation 15)."""
    scheduler = diffusers.DDPMScheduler(**SD, variance_type="learned_range", clip_sample=False)
    scheduler.set_timesteps(timesteps=UNEVEN)
    x, outputs, _ = begin(len(UNEVEN), (3, 5))
    where = np.random.default_rng(1).uniform(-1, 1, size=outputs.shape)
    times = np.array([*UNEVEN, -1.0]) + 1
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), 3)
        noises = [jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, i), (5,)))(keys) for i in range(8)]  # noqa: B023
        rows = step_table(ddpm(PROCESS, times, "learned"), PROCESS, Noise(), dtype=jnp.float64)
        told = PROCESS.conditioning(times[:-1])
        both = jnp.asarray(np.concatenate([outputs, where], axis=-1))
        network = lambda x, time, scale: both[jnp.abs(told - time[0]).argmin()]
        end, path = solve(rows, network, jnp.asarray(x), keys, noisy=True, path=True)
        ours = np.concatenate([path[1:], end[None]])
    # diffusers splits axis 1
    reference = theirs(
        scheduler, scheduler.timesteps, x, np.concatenate([outputs, where], axis=-1), np.stack(noises), monkeypatch
    )
    agree(ours, reference)


# DDIM


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("clip", "direction"), [(None, "clipped"), (1.0, "clipped"), (1.0, "raw")])
@pytest.mark.parametrize(("spacing", "offset"), [("trailing", 0), ("leading", 0), ("leading", 1)])
@every_kind
def test_ddim(kind, spacing, offset, clip, direction, eta, monkeypatch):
    scheduler = diffusers.DDIMScheduler(
        **SD, prediction_type=kind, timestep_spacing=spacing, clip_sample=clip is not None, steps_offset=offset
    )
    scheduler.set_timesteps(10)
    x, outputs, noises = begin(10)
    reference = theirs(
        scheduler, scheduler.timesteps, x, outputs, noises, monkeypatch,
        eta=eta, use_clipped_model_output=direction == "clipped",
    )  # fmt: skip
    rows = ddim(PROCESS, grid(PROCESS, 10, spacing, offset=offset), eta, direction)
    agree(walk(rows, PROCESS, kind, x, outputs, noises, clip), reference)


def test_ddim_that_ends_at_the_first_trained_time(monkeypatch):
    """Stable Diffusion's `set_alpha_to_one: false`: sigma of the end is that of the first step, not 0."""
    scheduler = diffusers.DDIMScheduler(
        **SD, timestep_spacing="leading", clip_sample=False, steps_offset=1, set_alpha_to_one=False
    )
    scheduler.set_timesteps(10)
    x, outputs, _ = begin(10)
    reference = theirs(scheduler, scheduler.timesteps, x, outputs, None, monkeypatch)
    times = grid(PROCESS, 10, "leading", offset=1, final="first")
    assert times[-1] == 1
    agree(walk(ddim(PROCESS, times), PROCESS, "epsilon", x, outputs), reference)


@pytest.mark.parametrize("kind", ["sample", "v_prediction"])
def test_ddim_with_zero_terminal_snr(kind, monkeypatch):
    scheduler = diffusers.DDIMScheduler(
        **SD, prediction_type=kind, rescale_betas_zero_snr=True, timestep_spacing="trailing", clip_sample=False
    )
    scheduler.set_timesteps(10)
    x, outputs, noises = begin(10)
    for eta in (0.0, 1.0):
        reference = theirs(scheduler, scheduler.timesteps, x, outputs, noises, monkeypatch, eta=eta)
        rows = ddim(ZERO_SNR, grid(ZERO_SNR, 10), eta)
        agree(walk(rows, ZERO_SNR, kind, x, outputs, noises), reference, 2e-4)


def test_ddim_goes_where_its_grid_says_though_diffusers_does_not_on_linspace(monkeypatch):
    """Diffusers' DDIM always goes T // n down, 100, where its list of ten timesteps goes 111.

    2010.02502, equation 12, between neighbours of the list:
    """
    scheduler = diffusers.DDIMScheduler(**SD, timestep_spacing="linspace", clip_sample=False)
    scheduler.set_timesteps(10)
    x, outputs, _ = begin(10)
    times = grid(PROCESS, 10, "linspace")
    np.testing.assert_array_equal(times[:-1] - 1, scheduler.timesteps.numpy())
    ours = walk(ddim(PROCESS, times), PROCESS, "epsilon", x, outputs)
    alphas, sigmas = PROCESS.coefficients(times, np)
    expected = x
    for i in range(10):
        clean = (expected - sigmas[i] * outputs[i]) / alphas[i]
        expected = alphas[i + 1] * clean + sigmas[i + 1] * outputs[i]
        np.testing.assert_allclose(ours[i], expected, rtol=1e-9, atol=1e-10)
    assert np.abs(ours[0] - theirs(scheduler, scheduler.timesteps, x, outputs, None, monkeypatch)[0]).max() > 0.01


# Euler and Heun: theirs is a walk of x / alpha over sigma / alpha.


def in_noise_levels(scheduler, timesteps=None, steps=None):
    """(times of ours, alpha at each after the first) of a scheduler's sigmas."""
    scheduler.set_timesteps(steps) if timesteps is None else scheduler.set_timesteps(timesteps=timesteps)
    levels = scheduler.sigmas.double().numpy()
    levels = levels[np.concatenate([[True], np.diff(levels) != 0])]
    times = PROCESS.time_of(levels)
    return times, PROCESS.coefficients(times, np)[0]


@pytest.mark.parametrize("grid", ["uneven", "karras", "exponential", "leading"])
@every_kind
def test_euler(kind, grid, monkeypatch):
    settings = {"use_karras_sigmas": grid == "karras", "use_exponential_sigmas": grid == "exponential"}
    scheduler = diffusers.EulerDiscreteScheduler(**SD, **settings, prediction_type=kind, timestep_spacing="leading")
    times, alphas = in_noise_levels(scheduler, UNEVEN if grid == "uneven" else None, 8)
    x, outputs, _ = begin(8)
    reference = theirs(scheduler, scheduler.timesteps, x, outputs, None, monkeypatch, 1 / alphas[0])
    ours = walk(ddim(PROCESS, times), PROCESS, kind, x, outputs)
    agree(ours / alphas[1:, None, None], reference)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_euler_ancestral_is_ddpm_in_noise_levels(kind, spacing, monkeypatch):
    scheduler = diffusers.EulerAncestralDiscreteScheduler(**SD, prediction_type=kind, timestep_spacing=spacing)
    times, alphas = in_noise_levels(scheduler, steps=8)
    x, outputs, noises = begin(8)
    reference = theirs(scheduler, scheduler.timesteps, x, outputs, noises, monkeypatch, 1 / alphas[0])
    # Their noise is of x / alpha, ours of x: the table's weight is times alpha.
    for rows in (ddpm(PROCESS, times), ddim(PROCESS, times, eta=1.0)):
        ours = walk(rows, PROCESS, kind, x, outputs, noises)
        agree(ours / alphas[1:, None, None], reference)


@pytest.mark.parametrize("grid", ["uneven", "karras"])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_heun(kind, grid, monkeypatch):
    scheduler = diffusers.HeunDiscreteScheduler(**SD, prediction_type=kind, use_karras_sigmas=grid == "karras")
    times, alphas = in_noise_levels(scheduler, UNEVEN if grid == "uneven" else None, 8)
    x, outputs, _ = begin(15)
    rows = heun(PROCESS, times)
    np.testing.assert_allclose(rows.times[[0, 1, 2, 14]], times[[0, 1, 1, 7]])
    reference = theirs(scheduler, scheduler.timesteps, x, outputs, None, monkeypatch, 1 / alphas[0])
    # After calls 1, 3, 5 ... it is at the predicted point of the next time, after the others at the next time itself.
    at = alphas[[1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8]]
    agree(walk(rows, PROCESS, kind, x, outputs) / at[:, None, None], reference)


# DPM-Solver++


DPM = {
    "1": ({"solver_order": 1}, {"order": 1}),
    "2M midpoint": ({"solver_type": "midpoint"}, {"order": 2}),
    "2M heun": ({"solver_type": "heun"}, {"order": 2, "form": "heun"}),
    "3M": ({"solver_order": 3}, {"order": 3}),
    "SDE 1": ({"solver_order": 1, "algorithm_type": "sde-dpmsolver++"}, {"order": 1, "stochastic": True}),
    "SDE 2M midpoint": ({"algorithm_type": "sde-dpmsolver++"}, {"order": 2, "stochastic": True}),
    "SDE 2M heun": (
        {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"},
        {"order": 2, "stochastic": True, "form": "heun"},
    ),
}
solvers = pytest.mark.parametrize("solver", DPM.keys())


@solvers
@pytest.mark.parametrize("end", ["zero", "first", "first, lower at end"])
@pytest.mark.parametrize("kind", KINDS)
def test_dpm_solver_on_uneven_timesteps(kind, end, solver, monkeypatch):
    settings, ours = DPM[solver]
    timesteps = UNEVEN[:-1]
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **SD, **settings, prediction_type=kind, lower_order_final=end != "first",
        final_sigmas_type="zero" if end == "zero" else "sigma_min",
    )  # fmt: skip
    scheduler.set_timesteps(timesteps=timesteps)
    times = np.array([*timesteps, -1.0 if end == "zero" else 0.0]) + 1
    x, outputs, noises = begin(len(timesteps))
    reference = theirs(scheduler, scheduler.timesteps, x, outputs, noises, monkeypatch)
    rows = dpm_solver(PROCESS, times, **ours, lower_at_end=end != "first")
    agree(walk(rows, PROCESS, kind, x, outputs, noises), reference, 1e-4)


@solvers
def test_dpm_solver_on_karras_noise_levels(solver, monkeypatch):
    settings, ours = DPM[solver]
    scheduler = diffusers.DPMSolverMultistepScheduler(**SD, **settings, use_karras_sigmas=True)
    scheduler.set_timesteps(10)
    times = PROCESS.time_of(scheduler.sigmas.double().numpy())
    x, outputs, noises = begin(10)
    reference = theirs(scheduler, scheduler.timesteps, x, outputs, noises, monkeypatch)
    rows = dpm_solver(PROCESS, times, **ours, lower_at_end=True)
    agree(walk(rows, PROCESS, "epsilon", x, outputs, noises), reference, 1e-4)


def test_dpm_solver_of_more_steps_is_of_full_order_but_for_the_step_to_the_data(monkeypatch):
    """Diffusers lowers the order at the end of fewer than 15 steps only; the paper says nothing of 15."""
    scheduler = diffusers.DPMSolverMultistepScheduler(**SD, solver_order=3, timestep_spacing="trailing")
    scheduler.set_timesteps(20)
    x, outputs, _ = begin(20)
    reference = theirs(scheduler, scheduler.timesteps, x, outputs, None, monkeypatch)
    rows = dpm_solver(PROCESS, grid(PROCESS, 20), 3)
    agree(walk(rows, PROCESS, "epsilon", x, outputs), reference, 1e-4)


# Straight paths


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching_euler(shift, monkeypatch):
    """What their network gives is noise - data, whatever the shift of the times."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=np.array([1.0, 0.9, 0.6, 0.55, 0.2, 0.05]))
    levels = scheduler.sigmas.double().numpy()
    process = RectifiedFlow(shift=shift)
    times = np.array([1.0, 0.9, 0.6, 0.55, 0.2, 0.05, 0.0])
    np.testing.assert_allclose(process.coefficients(times, np)[1], levels, rtol=1e-6)
    np.testing.assert_allclose(process.conditioning(times[:-1]), scheduler.timesteps.numpy(), rtol=1e-6)
    x, outputs, _ = begin(6)
    reference = theirs(scheduler, scheduler.timesteps, x, outputs, None, monkeypatch)
    agree(walk(ddim(process, times), process, "flow", x, outputs), reference)
    with jax.enable_x64(True):
        told = process.conditioning(times[:-1])
        network = lambda x, time, scale: jnp.asarray(outputs)[jnp.abs(told - time[0]).argmin()]
        rows = step_table(ddim(process, times), process, Flow(), dtype=jnp.float64)
        end, _ = solve(rows, network, jnp.asarray(x), jax.random.split(jax.random.key(0), 3), noisy=False)
    agree(np.asarray(end)[None], reference[-1:])


# The compiled scan


@pytest.mark.parametrize("thresholded", [False, True])
def test_the_compiled_scan_takes_the_steps_of_dpm_solver(thresholded, monkeypatch):
    """Outputs of v, dynamic thresholds of the denoised estimate, and all points of the path."""
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **SD, prediction_type="v_prediction", thresholding=thresholded, dynamic_thresholding_ratio=0.9,
        sample_max_value=1e6,
    )  # fmt: skip
    timesteps = UNEVEN[:-1]
    scheduler.set_timesteps(timesteps=timesteps)
    times = np.array([*timesteps, -1.0]) + 1
    x, outputs, _ = begin(7, (2, 4, 5))
    reference = theirs(scheduler, scheduler.timesteps, x, outputs, None, monkeypatch)
    rows = dpm_solver(PROCESS, times, 2, lower_at_end=True)
    with jax.enable_x64(True):
        told = PROCESS.conditioning(times[:-1])
        network = lambda x, time, scale: jnp.asarray(outputs)[jnp.abs(told - time[0]).argmin()]
        end, path = solve(
            step_table(rows, PROCESS, Velocity(), dtype=jnp.float64),
            network,
            jnp.asarray(x),
            jax.random.split(jax.random.key(0), 2),
            noisy=False,
            threshold=(lambda clean: dynamic_threshold(clean, 0.9)) if thresholded else None,
            path=True,
        )
    np.testing.assert_array_equal(path[0], x)
    agree(np.concatenate([path[1:], end[None]]), reference, 1e-4)
    if not thresholded:
        given = iter(outputs)
        alphas, sigmas = PROCESS.coefficients(np.arange(1001), np)
        denoise = lambda x, time: denoised("v_prediction", x, next(given), alphas[int(time)], sigmas[int(time)])
        np.testing.assert_allclose(solve_reference(rows, denoise, x), end, rtol=1e-9, atol=1e-10)


# Guidance and thresholds


@pytest.mark.parametrize("share", [0.0, 0.7, 1.0])
def test_rescaled_guidance_is_diffusers(share):
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    draw = np.random.default_rng(0)
    combined, conditional = 3 * draw.normal(size=(2, 4, 4, 3)), draw.normal(size=(2, 4, 4, 3)) + 0.5
    expected = rescale_noise_cfg(torch.tensor(combined), torch.tensor(conditional), guidance_rescale=share)
    np.testing.assert_allclose(rescaled(jnp.asarray(combined), jnp.asarray(conditional), share), expected, rtol=2e-5)


def test_dynamic_thresholds_are_diffusers():
    scheduler = diffusers.DDIMScheduler(thresholding=True, dynamic_thresholding_ratio=0.8, sample_max_value=1e6)
    x = np.random.default_rng(0).normal(size=(3, 4, 4, 2)) * np.array([0.1, 1.0, 9.0])[:, None, None, None]
    expected = scheduler._threshold_sample(torch.tensor(x))
    np.testing.assert_allclose(dynamic_threshold(jnp.asarray(x), 0.8), expected, rtol=1e-5, atol=1e-6)


# UniPC and PNDM


@pytest.mark.parametrize("end", ["zero", "sigma_min"])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_on_a_grid_of_each_end(order, variant, end, monkeypatch):
    scheduler = diffusers.UniPCMultistepScheduler(
        **SD, solver_order=order, solver_type=variant, timestep_spacing="trailing", final_sigmas_type=end
    )
    scheduler.set_timesteps(10)
    x, outputs, _ = begin(10)
    reference = theirs(scheduler, scheduler.timesteps, x, outputs, None, monkeypatch)
    times = np.array([*scheduler.timesteps.numpy(), -1.0 if end == "zero" else 0.0]) + 1
    rows = unipc(PROCESS, times, order, variant=variant, lower_at_end=True)
    agree(walk(rows, PROCESS, "epsilon", x, outputs), reference, 1e-4)


def test_unipc_on_karras_noise_levels_of_v(monkeypatch):
    scheduler = diffusers.UniPCMultistepScheduler(
        **SD, solver_order=3, use_karras_sigmas=True, prediction_type="v_prediction"
    )
    scheduler.set_timesteps(12)
    times = PROCESS.time_of(scheduler.sigmas.double().numpy())
    x, outputs, _ = begin(12)
    reference = theirs(scheduler, scheduler.timesteps, x, outputs, None, monkeypatch)
    rows = unipc(PROCESS, times, 3, lower_at_end=True)
    agree(walk(rows, PROCESS, "v_prediction", x, outputs), reference, 1e-4)


@pytest.mark.parametrize("corrected", [True, False])
def test_unipc_without_its_corrector(corrected, monkeypatch):
    scheduler = diffusers.UniPCMultistepScheduler(
        **SD, solver_order=2, timestep_spacing="trailing", disable_corrector=[] if corrected else list(range(10))
    )
    scheduler.set_timesteps(10)
    x, outputs, _ = begin(10)
    reference = theirs(scheduler, scheduler.timesteps, x, outputs, None, monkeypatch)
    times = np.array([*scheduler.timesteps.numpy(), -1.0]) + 1
    rows = unipc(PROCESS, times, 2, corrector=corrected, lower_at_end=True)
    agree(walk(rows, PROCESS, "epsilon", x, outputs), reference, 1e-4)


@pytest.mark.parametrize("steps", [2, 5, 10])
def test_pndm_as_latent_diffusion_has_it(steps, monkeypatch):
    """One step of Heun's, then Adams'; of v diffusers combines the outputs, where the paper combines noises."""
    scheduler = diffusers.PNDMScheduler(**SD, skip_prk_steps=True, set_alpha_to_one=True)
    scheduler.set_timesteps(steps)
    calls = scheduler.timesteps.numpy()
    x, outputs, _ = begin(len(calls))
    reference = theirs(scheduler, scheduler.timesteps, x, outputs, None, monkeypatch)
    times = np.array([*dict.fromkeys(calls.tolist()), -1.0]) + 1
    rows = pndm(PROCESS, times)
    np.testing.assert_array_equal(rows.times, calls + 1)
    agree(walk(rows, PROCESS, "epsilon", x, outputs), reference, 1e-4)


@pytest.mark.parametrize("steps", [5, 10, 20])
def test_pndm_with_runge_and_kuttas_steps(steps, monkeypatch):
    scheduler = diffusers.PNDMScheduler(**SD, set_alpha_to_one=True)
    scheduler.set_timesteps(steps)
    calls = scheduler.timesteps.numpy()
    x, outputs, _ = begin(len(calls))
    reference = theirs(scheduler, scheduler.timesteps, x, outputs, None, monkeypatch)
    times = grid(PROCESS, steps, "leading")
    rows = pndm(PROCESS, times, "runge_kutta")
    np.testing.assert_array_equal(rows.times, calls + 1)
    ours = walk(rows, PROCESS, "epsilon", x, outputs)
    agree(ours, reference, 1e-4)
