"""Predictor-corrector and annealed Langevin samplers: the law of the end, rows by themselves, what is refused."""

import itertools

import jax
import numpy as np
import pytest

import arch_jax
from arch_jax.errors import UsageError
from arch_jax.models.diffusion.exact import RING, ExactDenoiser
from arch_jax.study.certify.certify import certify

KEY = jax.random.key(7)


def exact(process=None, **fields):
    process, prediction = process or arch_jax.NoiseLevel(), arch_jax.VelocityPrediction()
    model = ExactDenoiser(process=process, prediction=prediction, **fields)
    return arch_jax.objective("diffusion", process=process, prediction=prediction).with_model(model)


SAMPLERS = {
    "reverse diffusion": arch_jax.PredictorCorrector(steps=100),
    "ancestral": arch_jax.PredictorCorrector(steps=60, predictor="ancestral", correctors=2),
    "annealed": arch_jax.AnnealedLangevin(steps=150),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_end_is_the_law(name):
    """Eight modes in their shares, each as wide as it is, to what the steps may err by."""
    made = SAMPLERS[name].draw(exact(), {}, KEY, 2000).astype(np.float64)
    away = made[:, None] - RING.means
    nearest = np.linalg.norm(away, axis=-1).argmin(1)
    counts = np.bincount(nearest, minlength=8)
    assert np.abs(counts - 250).max() < 5 * np.sqrt(250 * 7 / 8)
    inner = away[np.arange(2000), nearest]
    np.testing.assert_allclose(inner.mean(0), 0, atol=0.02)
    np.testing.assert_allclose(inner.std(0), 0.1, rtol=0.12)


@pytest.mark.parametrize(
    "sampler",
    [
        arch_jax.PredictorCorrector(steps=5),
        arch_jax.PredictorCorrector(steps=5, norms="own"),
        arch_jax.AnnealedLangevin(steps=3, correctors=2),
    ],
    ids=["expected", "own", "annealed"],
)
def test_row_i_depends_on_the_key_and_on_i_alone(sampler):
    seven = sampler.draw(exact(), {}, KEY, 7)
    np.testing.assert_allclose(sampler.draw(exact(), {}, KEY, 3), seven[:3], rtol=1e-5, atol=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("sampler", "count"),
    [(arch_jax.PredictorCorrector(), 4), (arch_jax.AnnealedLangevin(steps=120), 6)],
    ids=["predictor-corrector", "annealed"],
)
def test_they_are_certified(sampler, count):
    """On both laws; and the annealed dynamics under guidance, which ends in the tilt p(x) p(c | x)^s."""
    cases = list(itertools.islice(certify(sampler, small=True), count))
    assert [case.fault for case in cases] == [""] * count
    assert (cases[-1].law == "classes") == (count == 6)


@pytest.mark.thorough
def test_own_norms_are_found_to_be_another_law_in_the_plane():
    cases = certify(arch_jax.PredictorCorrector(norms="own"), small=True)
    assert "the standard deviation is" in next(case.fault for case in cases if case.law == "gaussian")


def test_what_they_can_not_begin_with_is_refused():
    flow, data = exact(arch_jax.RectifiedFlow()), arch_jax.Ring(validation=10).load()
    with pytest.raises(UsageError, match="expected predictor='ancestral'"):
        arch_jax.PredictorCorrector().check(flow, data)
    arch_jax.PredictorCorrector(predictor="ancestral").check(flow, data)  # the advice
    with pytest.raises(UsageError, match="expected sampler=predictor_corrector with sampler\\.predictor=ancestral"):
        arch_jax.AnnealedLangevin().check(flow, data)
    with pytest.raises(UsageError, match="expected none or 'exponential'"):
        arch_jax.AnnealedLangevin(spacing="trailing").check(exact(), data)
    arch_jax.AnnealedLangevin(spacing="exponential").check(exact(), data)
