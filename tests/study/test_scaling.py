"""Scaling laws: the published refit, laws that are recovered from their own points, and points files that are wrong."""

import dataclasses
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from arch_jax.errors import UsageError
from arch_jax.study.scaling import law as scaling
from arch_jax.study.scaling.figures import draw, report
from arch_jax.study.scaling.law import Kaplan, Law, fit, fit_kaplan
from arch_jax.study.scaling.measurements import Measurements, read_measurements

PUBLISHED = Path(os.environ.get("ARCH_JAX_DATA", "")) / "chinchilla" / "svg_extracted_data.csv"
published = pytest.mark.skipif(not PUBLISHED.is_file(), reason="the published points are not in ARCH_JAX_DATA")

TRUE = Law(E=1.7, A=400.0, B=1500.0, alpha=0.34, beta=0.36, objective=0.0, count=0)


def synthetic(law=TRUE, noise=0.0, sizes=8, lengths=8):
    """Points of a law on a grid of sizes and lengths, with noise in the logarithm of the loss."""
    n, d = np.meshgrid(np.geomspace(1e6, 1e10, sizes), np.geomspace(1e8, 1e12, lengths))
    n, d = n.ravel(), d.ravel()
    off = np.random.default_rng(0).normal(0, noise, n.size) if noise else 0
    return Measurements(n, d, law.loss(n, d) * np.exp(off))


@published
def test_published_points_give_the_published_constants():
    law = fit(read_measurements(PUBLISHED, drop_highest=5))
    assert law.count == 240
    assert f"{law.A:.1f} {law.B:.0f} {law.E:.3f} {law.alpha:.4f} {law.beta:.4f}" == "477.8 2143 1.817 0.3473 0.3672"
    assert f"{law.objective:.5e}" == "1.01827e-03"


@pytest.fixture(scope="module")
def noisy():
    """Points with 1 % of noise, the law fitted to them with 100 resamples, and what was said meanwhile."""
    points, told = synthetic(noise=0.01), []
    return points, fit(points, bootstrap=100, say=lambda done, total: told.append((done, total))), told


def test_objective_is_the_sum_of_huber_losses(noisy):
    """Written out once more, point by point, as the paper has it."""
    points, law, _ = noisy
    total = 0.0
    for n, d, loss in zip(points.parameters, points.tokens, points.loss):
        terms = (law.A / n**law.alpha, law.B / d**law.beta, law.E)
        off = abs(math.log(sum(terms)) - math.log(loss))
        total += off**2 / 2 if off <= law.delta else law.delta * (off - law.delta / 2)
    assert law.objective == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize("make", [scaling._hoffmann, scaling._kaplan])
def test_gradients(make):
    from scipy.optimize import check_grad

    generator = np.random.default_rng(0)
    objective = make(*generator.normal(size=(2, 30)), generator.normal(1, 0.5, 30), 0.3)
    x = np.array([0.3, 0.5, 0.4, 0.7, 0.2][: 5 if make is scaling._hoffmann else 4])
    assert check_grad(lambda x: objective(x)[0], lambda x: objective(x)[1], x) < 1e-5


def test_exact_points_give_the_law_back():
    law = fit(synthetic())
    for name in ("E", "A", "B", "alpha", "beta"):
        assert getattr(law, name) == pytest.approx(getattr(TRUE, name), rel=1e-5), name
    assert law.objective < 1e-12


@pytest.mark.thorough
def test_one_point_far_off_hardly_matters():
    """What Huber's loss is for: squares would move alpha by several times as much."""
    points = synthetic(noise=0.002)
    spoilt = points.loss.copy()
    spoilt[np.argmin(points.parameters * points.tokens)] *= 1.5
    robust = fit(Measurements(points.parameters, points.tokens, spoilt))
    squares = fit(Measurements(points.parameters, points.tokens, spoilt), delta=10.0)
    assert abs(robust.alpha - TRUE.alpha) < 0.02
    assert abs(squares.alpha - TRUE.alpha) > 3 * abs(robust.alpha - TRUE.alpha)


def test_bootstrap_intervals_hold_the_law(noisy):
    _, law, told = noisy
    for name in ("E", "A", "B", "alpha", "beta", "a", "b"):
        low, high = law.intervals[name]
        assert low <= getattr(TRUE, name) <= high, name
        assert low < getattr(law, name) < high, name
    low, high = law.intervals["alpha"]
    assert 0.001 < high - low < 0.1
    assert told == [(done, 225) for done in range(1, 226)]
    assert json.loads(json.dumps(law.to_json()))["intervals"]["E"] == list(law.intervals["E"])


@pytest.mark.thorough
def test_bootstrap_follows_its_seed(noisy):
    points, law, _ = noisy
    np.testing.assert_allclose(fit(points, bootstrap=20).resamples, law.resamples[:20])
    assert not np.allclose(fit(points, bootstrap=20, seed=1).resamples, law.resamples[:20])


@pytest.mark.parametrize("budget", [1e17, 6e23])
def test_optimum_against_a_search(budget):
    n, d = TRUE.optimal(budget)
    assert 6 * n * d == pytest.approx(budget)
    around = np.geomspace(n / 10, n * 10, 20001)
    searched = around[np.argmin(TRUE.loss(around, budget / 6 / around))]
    assert n == pytest.approx(searched, rel=1e-3)
    assert TRUE.optimal(10 * budget)[0] / n == pytest.approx(10**TRUE.a)


def test_kaplans_constants_come_back():
    true = Kaplan(N_c=8.8e13, D_c=5.4e13, alpha_N=0.076, alpha_D=0.095, objective=0.0, count=0)
    kaplan = fit_kaplan(synthetic(true))
    for name in ("N_c", "D_c", "alpha_N", "alpha_D"):
        assert getattr(kaplan, name) == pytest.approx(getattr(true, name), rel=1e-4), name
    assert kaplan.objective < 1e-12
    # Its limits: with tokens, or parameters, without end.
    assert kaplan.loss(1e8, 1e40) == pytest.approx(kaplan.loss_of_parameters(1e8))
    assert kaplan.loss(1e40, 1e9) == pytest.approx(kaplan.loss_of_tokens(1e9))
    assert fit_kaplan(synthetic()).objective > 1e-3  # another law's points are not fitted


def test_report_and_picture(tmp_path, noisy):
    points, law, _ = noisy
    rows = {name: (value, ends) for name, value, ends in report(law, fit_kaplan(points), [1e20])}
    assert rows["alpha"] == (law.alpha, law.intervals["alpha"])
    n, d = law.optimal(1e20)
    value, (low, high) = rows["tokens a parameter at 1e+20 FLOPs"]
    assert value == pytest.approx(d / n)
    assert low < value < high
    assert rows["Kaplan's alpha_N"][1] is None
    draw(points, law, tmp_path / "law.png")
    assert (tmp_path / "law.png").read_bytes().startswith(b"\x89PNG")


def write_csv(path, header="N,tokens,loss", rows=6, extra=()):
    width = len(header.split(","))
    lines = [",".join(str(float((i + 2) ** (j + 1))) for j in range(width)) for i in range(rows)]
    path.write_text("\n".join([header, *lines, *extra]) + "\n")
    return path


@pytest.mark.parametrize(
    ("header", "arguments", "columns"),
    [
        ("N,D,L", {}, (0, 1, 2)),
        ("Loss,Tokens,x,Parameters", {}, (3, 1, 0)),
        ("size of it,D,C,L", {"parameters": "size of it"}, (0, 1, 3)),
        ("N,L,other", {"tokens": "other"}, (0, 2, 1)),
    ],
)
def test_columns(tmp_path, header, arguments, columns):
    points = read_measurements(write_csv(tmp_path / "points.csv", header), **arguments)
    base = np.arange(2, 8)
    for found, column in zip((points.parameters, points.tokens, points.loss), columns):
        np.testing.assert_array_equal(found, base ** (column + 1.0))


@pytest.mark.parametrize("arguments", [{}, {"flops": "Training FLOP"}])
def test_tokens_from_flops(tmp_path, arguments):
    header = "Model Size,Training FLOP,loss" + (",tokens" if arguments else "")
    points = read_measurements(write_csv(tmp_path / "points.csv", header), **arguments)
    base = np.arange(2.0, 8)
    np.testing.assert_allclose(points.tokens, base**2 / (6 * base))
    np.testing.assert_allclose(points.flops, base**2)


def test_highest_losses_are_dropped(tmp_path):
    path = write_csv(tmp_path / "points.csv", extra=["9,9,0.5", "9,9,1e6"])
    assert len(read_measurements(path)) == 8
    kept = read_measurements(path, drop_highest=2).loss
    np.testing.assert_array_equal(kept, [8, 27, 64, 125, 216, 0.5])


@pytest.mark.parametrize(
    ("written", "arguments", "says"),
    [
        (None, {}, "points.csv' does not exist"),
        ({"rows": 4}, {}, "has 4 points; a law of 5 parameters needs at least 5"),
        ({"header": "N,tokens,losses"}, {}, "no column that is known as loss; the nearest is 'losses'"),
        ({"header": "N,loss"}, {}, "no column that is known as tokens or flops"),
        ({}, {"loss": "los"}, "unknown column of .* 'los'; the nearest is 'loss'"),
        ({}, {"tokens": "tokens", "flops": "N"}, "expected one of the two"),
        ({"extra": ["1,2,three"]}, {}, "'loss' is 'three' in line 8 of .*; expected a positive number"),
        ({"extra": ["1,-2,3"]}, {}, "'tokens' is '-2' in line 8"),
        ({"extra": ["0,2,3"]}, {}, "'N' is '0' in line 8"),
        ({"extra": ["", "1,2,inf"]}, {}, "'loss' is 'inf' in line 9"),
        ({"extra": ["1,2,nan"]}, {}, "'loss' is 'nan' in line 8"),
        ({"extra": ["1,2"]}, {}, "'loss' is '' in line 8"),
        ({}, {"drop_highest": -1}, "drop_highest is -1"),
        ({}, {"drop_highest": 2}, "drop_highest is 2 of 6 points; .* expected 0 to 1"),
    ],
)
def test_bad_points_files(tmp_path, written, arguments, says):
    path = tmp_path / "points.csv"
    if written is not None:
        write_csv(path, **written)
    with pytest.raises(UsageError, match=says) as caught:
        read_measurements(path, **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00\x81,1", b'"a\n' * 3, b"N,tokens,loss\n\x00,\x00,\x00\n"])
def test_what_is_no_csv(tmp_path, content):
    path = tmp_path / "points.csv"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"points\.csv"):
        read_measurements(path)
    with pytest.raises(UsageError, match=r"cannot read .*: Is a directory"):
        read_measurements(tmp_path)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: fit(synthetic(), bootstrap=3), "bootstrap is 3; expected 0, or at least 20"),
        (lambda: fit(synthetic(), delta=0.0), "delta is 0.0"),
        (lambda: fit(synthetic(sizes=2)), "2 different numbers of parameters"),
        (lambda: fit_kaplan(synthetic(lengths=1)), "1 different numbers of tokens"),
        (lambda: fit(synthetic(sizes=2, lengths=2)), "there are 4 points"),
        (lambda: Measurements(np.ones(2), np.ones(1), np.ones(2)), "tokens has shape"),
        (lambda: TRUE.optimal(-1.0), "a budget is -1.0 FLOPs"),
        (lambda: Law(1.0, 1.0, 1.0, -0.1, 0.3, 0.0, 9).optimal(1e20), "alpha -0.1"),
    ],
)
def test_bad_input(call, says):
    with pytest.raises(UsageError, match=says):
        call()


def test_what_the_points_do_not_tell_is_said(noisy):
    points, law, _ = noisy
    assert scaling.caveats(law, points) == []
    (sentence,) = scaling.caveats(dataclasses.replace(law, E=1e-9, intervals={}), points)
    assert sentence.startswith("these points do not determine E")
    flat = Law(E=1.0, A=1.0, B=1.0, alpha=-0.1, beta=0.5, objective=0.0, count=9, intervals={"a": (0.1, 0.9)})
    told = scaling.caveats(flat, points)
    assert "alpha -0.1 and beta 0.5 are not both positive" in told[0]
    assert "the exponent a lies between 0.10 and 0.90" in told[1]
