"""Image to image, inpainting, and the way to noise and back, with denoisers that don't err."""

import jax
import numpy as np
import pytest

import arch_jax
from arch_jax.errors import UsageError


def known(process, **law):
    """The objective with the exact denoiser of a law."""
    prediction = arch_jax.VelocityPrediction()
    task = arch_jax.objective("diffusion", process=process, prediction=prediction)
    return task.with_model(arch_jax.ExactDenoiser(process=process, prediction=prediction, **law))


NORMAL = {"means": ((0.5, -1.0),), "variances": ((0.25, 1.0),), "weights": (1.0,)}


@pytest.mark.parametrize("process", [arch_jax.VariancePreserving(), arch_jax.RectifiedFlow()], ids=["chain", "flow"])
def test_the_way_to_noise_and_back_errs_by_the_first_order_of_the_steps(process):
    task = known(process, **NORMAL)
    points = np.random.default_rng(0).normal(size=(32, 2)).astype(np.float32)
    errors = []
    for steps in (50, 100, 200):
        sampler = arch_jax.DDIM(steps=steps)
        noise = sampler.invert(task, {}, points)
        back = sampler.draw(task, {}, jax.random.key(0), len(points), begin=noise)
        errors.append(np.sqrt(np.mean((back - points) ** 2)))
    assert errors[0] < 0.2
    assert np.log2(errors[0] / errors[1]) > 0.7
    assert np.log2(errors[1] / errors[2]) > 0.7


def test_the_noise_of_data_is_standard_normal():
    task = known(arch_jax.VariancePreserving(), **NORMAL)
    points = np.random.default_rng(0).normal(size=(4000, 2)) * [0.5, 1.0] + [0.5, -1.0]
    noise = arch_jax.DDIM(steps=200).invert(task, {}, points)
    np.testing.assert_allclose(noise.mean(0), 0, atol=0.08)
    np.testing.assert_allclose(noise.std(0), 1, atol=0.06)


@pytest.mark.parametrize("strength", [0.05, 0.2, 1.0])
def test_edits_keep_what_the_noise_leaves_of_the_example(strength):
    """Of a normal law with variance v, x_0 is drawn anew given x_t: the correlation is a^2 v / (a^2 v + s^2)."""
    process = arch_jax.VariancePreserving()
    task = known(process, **NORMAL)
    points = np.random.default_rng(0).normal(size=(2000, 2)) * [0.5, 1.0] + [0.5, -1.0]
    made = arch_jax.DDPM(steps=200).edit(task, {}, jax.random.key(1), points, strength)
    np.testing.assert_allclose(made.mean(0), [0.5, -1.0], atol=0.09)
    np.testing.assert_allclose(made.std(0), [0.5, 1.0], atol=0.06)
    alpha, sigma = process.coefficients(np.float64(1000 * strength), np)
    for i, variance in enumerate((0.25, 1.0)):
        expected = alpha**2 * variance / (alpha**2 * variance + sigma**2)
        assert abs(np.corrcoef(made[:, i], points[:, i])[0, 1] - expected) < 0.07


@pytest.mark.parametrize("strength", [0, -0.5, 1.5, 0.004, np.nan])
def test_strengths_that_are_none_are_refused(strength):
    task = known(arch_jax.VariancePreserving(), **NORMAL)
    with pytest.raises(UsageError, match=f"strength is {strength} of 100 steps; expected more than 0 and at most 1"):
        arch_jax.DDPM(steps=100).edit(task, {}, jax.random.key(1), np.zeros((2, 2)), strength)


def test_a_given_part_is_kept_and_the_rest_is_drawn_from_its_law():
    task = known(arch_jax.VariancePreserving(), **NORMAL)
    examples = np.tile(np.float32([2.0, 7.0]), (2000, 1))
    made = arch_jax.DDPM(steps=100).inpaint(task, {}, jax.random.key(1), examples, [1, 0])
    np.testing.assert_array_equal(made[:, 0], 2.0)
    np.testing.assert_allclose((made[:, 1].mean(), made[:, 1].std()), (-1.0, 1.0), atol=0.1)


def test_a_part_that_tells_the_rest_finds_its_mode():
    """Two modes at (-1, -1) and (1, 1): with the first coordinate given, the other agrees with it."""
    law = {"means": ((-1.0, -1.0), (1.0, 1.0)), "variances": ((0.01, 0.01),) * 2, "weights": (0.5, 0.5)}
    task = known(arch_jax.VariancePreserving(), **law)
    given = np.repeat([-1.0, 1.0], 50)
    made = arch_jax.DDPM(steps=200).inpaint(task, {}, jax.random.key(1), np.stack([given, given * 0], 1), [1, 0])
    assert np.mean(np.sign(made[:, 1]) == given) > 0.95


def test_inpainting_needs_a_call_a_step():
    task = known(arch_jax.VariancePreserving(), **NORMAL)
    with pytest.raises(UsageError, match="Heun has several calls in one; expected a sampler of one call a step"):
        arch_jax.Heun(steps=5).inpaint(task, {}, jax.random.key(1), np.zeros((2, 2)), [1, 0])
