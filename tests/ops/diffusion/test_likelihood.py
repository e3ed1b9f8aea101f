"""Likelihood by the probability-flow ODE against densities in closed form, in float64 with the exact denoiser."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import arch_jax
from arch_jax.errors import UsageError
from arch_jax.models.diffusion.exact import ExactDenoiser
from arch_jax.ops.diffusion.laws import Mixture
from arch_jax.ops.diffusion.likelihood import (
    TABLEAUS,
    denoised_and_trace,
    draw_probes,
    flow_table,
    integrate,
    normal_log_density,
)
from arch_jax.ops.diffusion.processes import (
    VPSDE,
    NoiseLevel,
    RectifiedFlow,
    VarianceExploding,
    VariancePreserving,
)

LAWS = {
    "gaussian": Mixture.gaussian([1.5, -0.5], [1.0, 0.09]),
    "two of three coordinates": Mixture(
        np.array([[1.0, 0.0, -1.0], [-0.5, 0.5, 0.3]]),
        np.array([[0.1, 0.3, 1.0], [0.2, 0.1, 0.05]]),
        np.array([0.3, 0.7]),
    ),
    "ring": Mixture.ring(),
}
PROCESSES = {
    "noise level": NoiseLevel(),
    "VE SDE": VarianceExploding(),
    "VP SDE": VPSDE(),
    "sub-VP SDE": VPSDE(sub=True),
    "chain": VariancePreserving(),
    "zero SNR": VariancePreserving("scaled_linear", zero_terminal_snr=True),
    "flow": RectifiedFlow(),
    "shifted flow": RectifiedFlow(shift=3.0),
}

#: Of laws and processes, those that are tried in the quick tier.
QUICK = (("gaussian", "VP SDE"), ("ring", "VP SDE"), ("ring", "flow"))


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


def exact(law, process, prediction=None):
    prediction = prediction or arch_jax.VelocityPrediction()
    parts = (tuple(map(tuple, np.asarray(part).tolist())) for part in (law.means, law.variances))
    model = ExactDenoiser(process, prediction, *parts, tuple(law.weights.tolist()))
    return arch_jax.objective("diffusion", process=process, prediction=prediction).with_model(model)


@functools.partial(jax.jit, static_argnums=0)
def followed(task, table, x, probes=None):
    return integrate(table, lambda x, time: task.denoised({}, x, time), x, probes)


def ends(law, process):
    """The laws of x at the first and at the last time that has a ratio sigma / alpha or is of a continuous process."""
    alpha, _ = process.coefficients(np.array([process.last]), np)
    last = process.last - (process.discrete and alpha[0] == 0)
    return [law.noisy(*process.coefficients(np.float64(time), np)) for time in (process.first, last)]


def error(law, process, steps, order=6, prior=False, prediction=None):
    """The largest error of log p of 20 points of the law."""
    x = law.draw(np.random.default_rng(0), 20)
    first, last = ends(law, process)
    end, change = followed(
        exact(law, process, prediction), flow_table(process, steps, order, jnp.float64), jnp.asarray(x)
    )
    at_end = normal_log_density(end, process.prior_std) if prior else last.log_density(np.asarray(end))
    return np.abs(at_end + change - first.log_density(x)).max()


@pytest.mark.parametrize(
    ("name", "of"),
    [
        pytest.param(name, of, marks=[] if (name, of) in QUICK else [pytest.mark.thorough])
        for name in LAWS
        for of in PROCESSES
        if of == "VP SDE" or name == "ring"
    ],
)
def test_with_the_true_end_the_log_density_is_the_closed_form(name, of):
    """Every factor counts: the divergence's sign, s and alpha, the volume between the ends."""
    assert error(LAWS[name], PROCESSES[of], 192) < 1e-9


@pytest.mark.thorough
@pytest.mark.parametrize(
    "prediction",
    [arch_jax.NoisePrediction(), arch_jax.ScorePrediction(), arch_jax.PreconditionedPrediction(data_std=0.7)],
    ids=lambda one: type(one).__name__,
)
def test_it_asks_for_the_denoised_estimate_whatever_the_network_predicts(prediction):
    assert error(LAWS["ring"], NoiseLevel(), 192, prediction=prediction) < 1e-8


def test_with_a_normal_prior_what_is_left_is_the_distance_of_the_true_end_from_it():
    """Of a noise level up to 80 and data of variance 1, (x / 80)^2 / 80^2 / 2 nats; a flow ends in the prior itself."""
    law, process = LAWS["gaussian"], NoiseLevel()
    x = law.draw(np.random.default_rng(0), 20)
    end, _ = followed(exact(law, process), flow_table(process, 64, 6, jnp.float64), jnp.asarray(x))
    apart = normal_log_density(end, 80.0) - ends(law, process)[1].log_density(np.asarray(end))
    np.testing.assert_allclose(error(law, process, 192, prior=True), np.abs(apart).max(), rtol=1e-5)
    assert 0.03 < np.abs(apart).max() < 0.05  # the mean of (1.5, -.5) counts most: 1.5 z / 80 nats
    assert error(LAWS["gaussian"], RectifiedFlow(), 192, prior=True) < 1e-9


@pytest.mark.parametrize("order", [4, 6])
def test_the_error_falls_with_the_order_of_the_method(order):
    errors = [error(LAWS["gaussian"], VPSDE(), steps, order) for steps in (16, 32)]
    assert errors[1] > 1e-12
    assert order - 0.2 < np.log2(errors[0] / errors[1]) < order + 0.9


def test_the_tableaus_fulfil_the_order_conditions():
    """Of bushy and of tall trees up to the order, and of all with up to 4 nodes (Butcher 1963)."""
    for order, (points, weights) in TABLEAUS.items():
        b, a = np.array(weights), np.zeros((len(weights),) * 2)
        for i, row in enumerate(points):
            a[i, : len(row)] = row
        c = a.sum(1)
        for power in range(order):
            np.testing.assert_allclose(b @ c**power, 1 / (power + 1), atol=1e-14)
        np.testing.assert_allclose([b @ a @ c, b @ (c * (a @ c)), b @ a @ c**2], [1 / 6, 1 / 8, 1 / 12], atol=1e-14)
        tall = c
        for length in range(2, order + 1):
            np.testing.assert_allclose(b @ tall, 1 / np.prod(np.arange(1.0, length + 1)), atol=1e-14)
            tall = a @ tall


def coupled(x):
    """D of each row whose Jacobian is not symmetric, and 12 numbers in the shape of an image."""
    weight = jnp.asarray(np.random.default_rng(1).normal(size=(12, 12)))
    return jnp.sin(x.reshape(-1, 12) @ weight).reshape(x.shape)


@pytest.mark.parametrize("chunk", [5, 32])
def test_the_exact_trace_is_that_of_the_jacobian_of_each_row(chunk):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2, 2, 3)))
    clean, trace = denoised_and_trace(coupled, x, chunk=chunk)
    np.testing.assert_allclose(clean, coupled(x))
    each = jax.vmap(jax.jacfwd(lambda row: coupled(row[None])[0].ravel()))(x).reshape(4, 12, 12)
    np.testing.assert_allclose(trace, jnp.trace(each, axis1=1, axis2=2), rtol=1e-10)


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
def test_hutchinsons_estimate_is_unbiased(distribution):
    """Within four standard errors of 4,000 probes, which are those of its known variance."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2, 2, 3)))
    probes = draw_probes(jax.random.split(jax.random.key(0), 4), 4000, (2, 2, 3), distribution, jnp.float64)
    assert probes.shape == (4000, 4, 2, 2, 3)
    _, trace = denoised_and_trace(coupled, x)
    _, found = denoised_and_trace(coupled, x, probes)
    each = jax.vmap(jax.jacfwd(lambda row: coupled(row[None])[0].ravel()))(x).reshape(4, 12, 12)
    # Var v^T J v = 2 |S|^2 of the symmetric part S for normal numbers, and without its diagonal for signs.
    part = np.array((each + each.transpose(0, 2, 1)) / 2)
    if distribution == "rademacher":
        part[:, np.arange(12), np.arange(12)] = 0
    spread = np.sqrt(2 * (part**2).sum((1, 2)) / 4000)
    away = np.abs(np.asarray(found - trace)) / spread
    assert away.max() < 4
    assert np.sqrt((away**2).mean()) > 0.2  # and it is an estimate


def test_probes_are_those_of_their_row():
    keys = jax.random.split(jax.random.key(0), 5)
    whole = draw_probes(keys, 3, (2,))
    np.testing.assert_array_equal(draw_probes(keys[2:4], 3, (2,)), whole[:, 2:4])
    assert set(np.unique(whole)) == {-1.0, 1.0}


def test_along_the_path_hutchinsons_estimate_is_unbiased_too():
    """Two probes that average to the trace at every point, (1, 1) and (1, -1), give the exact integral between them."""
    law, process = LAWS["ring"], VPSDE()
    x = jnp.asarray(law.draw(np.random.default_rng(0), 6))
    table = flow_table(process, 16, 4, jnp.float64)
    both = jnp.broadcast_to(jnp.array([[1.0, 1.0], [1.0, -1.0]])[:, None], (2, 6, 2))
    _, whole = followed(exact(law, process), table, x)
    _, mean = followed(exact(law, process), table, x, both)
    np.testing.assert_allclose(mean, whole, rtol=1e-9)
    _, one = followed(exact(law, process), table, x, both[:1])
    assert np.abs(one - whole).max() > 1e-3


def test_a_network_in_float32_is_near_itself_in_float64():
    x, parts = LAWS["ring"].draw(np.random.default_rng(0), 20), {"dtype": jnp.float64, "parameter_dtype": jnp.float32}
    model = arch_jax.create("point-denoiser", depth=1, width=16, **parts)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.ones((1, 2)), jnp.ones(1))
    found = []
    for dtype in (jnp.float64, jnp.float32):
        task = arch_jax.objective("diffusion", process=VPSDE()).with_model(model.clone(dtype=dtype))
        table = flow_table(VPSDE(), 16, 6, dtype)
        follow = jax.jit(lambda table, x: integrate(table, lambda x, time: task.denoised(variables, x, time), x))  # noqa: B023
        found.append(follow(table, jnp.asarray(x, dtype)))
        assert found[-1][0].dtype == found[-1][1].dtype == dtype
    np.testing.assert_allclose(found[1][0], found[0][0], atol=1e-4)
    np.testing.assert_allclose(found[1][1], found[0][1], atol=1e-4)


def test_the_flow_keeps_to_the_times_of_the_process():
    for name, process in PROCESSES.items():
        table = flow_table(process, 5, 4, jnp.float64)
        time = np.asarray(table.time)
        assert time.min() == pytest.approx(process.first), name
        assert time.max() == pytest.approx(process.last - (name == "zero SNR"), rel=1e-9), name
        assert np.isfinite(np.concatenate([np.ravel(part) for part in table])).all(), name
        # cos(phi) and s are of the process at that time
        alpha, sigma = process.coefficients(time, np)
        np.testing.assert_allclose(table.cosine, alpha / np.hypot(alpha, sigma), atol=1e-9)
        np.testing.assert_allclose(table.size, np.hypot(alpha, sigma))


def test_no_step_is_refused():
    with pytest.raises(UsageError, match="steps is 0; expected at least 1"):
        flow_table(VPSDE(), 0)
