"""The examples: complete files of one's own, trained, evaluated, sampled, resumed, described, and under contract."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax.cli import main
from arch_jax.errors import UsageError
from arch_jax.experiment import load
from arch_jax.train import open_run, train
from arch_jax.train.workdir import read_metrics

EXAMPLES = Path(__file__).parent.parent / "examples"

#: File -> the model that it registers, what makes a run tiny, and what `sample` writes.
FILES = {
    "leaky_average": (
        "leaky",
        {
            "model.depth": 1,
            "model.width": 16,
            "data.batch": 2,
            "data.length": 16,
            "data.validation": 0.01,
            "sampler.length": 4,
        },
        {"text.txt"},
    ),
    "discs_and_squares": (
        "shape-classifier",
        {"data.batch": 8, "data.validation": 16},
        {"predictions.txt", "outputs.npy"},
    ),
    "denoise_points": (
        "own-denoiser",
        {"model.width": 16, "data.batch": 8, "data.validation": 16, "sampler.steps": 5, "measures.0.count": 20},
        {"points.txt", "coordinates.npy"},
    ),
}
each_file = pytest.mark.parametrize("name", FILES)


def test_every_example_is_here():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(FILES)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Name -> the folder of a tiny run, made by the command."""

    def make(name):
        folder = tmp_path_factory.getbasetemp() / f"example_{name}"
        if not folder.exists():
            settings = {"steps": 4, "steps_per_dispatch": 2, "evaluate_every": 2, "checkpoint_every": 2, "log_every": 1}
            settings |= FILES[name][1]
            sets = [word for field, value in settings.items() for word in ("--set", f"{field}={value}")]
            assert main(["train", str(EXAMPLES / f"{name}.py"), "--workdir", str(folder), *sets]) == 0
        return folder

    return make


@each_file
def test_it_trains_and_shows_something(trained, name):
    folder = trained(name)
    rows = [row for row in read_metrics(folder) if "validation/loss" in row]
    assert [row["step"] for row in rows] == [2, 4]
    assert all(np.isfinite(row["validation/loss"]) for row in rows)
    assert list((folder / "samples").glob("step_0000004_*"))
    if name == "denoise_points":
        assert {"validation/near_share", "validation/modes"} <= rows[-1].keys()
    if name == "discs_and_squares":
        assert (folder / "samples" / "step_0000004_filters.png").read_bytes().startswith(b"\x89PNG")


@each_file
def test_it_is_evaluated_and_sampled(trained, name, tmp_path, capsys):
    folder, file = trained(name), str(EXAMPLES / f"{name}.py")
    capsys.readouterr()
    assert main(["evaluate", str(folder), "--json", "--import", file]) == 0
    found = json.loads(capsys.readouterr().out)
    last = read_metrics(folder)[-1]
    assert found["loss"] == pytest.approx(last["validation/loss"], rel=1e-6)
    assert main(["sample", str(folder), "--out", str(tmp_path), "--seed", "3", "--import", file]) == 0
    printed = capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {f"seed_3_{end}" for end in FILES[name][2]}
    (text,) = tmp_path.glob("*.txt")
    assert printed == text.read_text()


@pytest.mark.thorough
@each_file
def test_it_is_resumed(trained, name, tmp_path):
    """In one go and in two: the same metrics at every step."""
    folder = trained(name)
    experiment = open_run(folder).experiment
    train(experiment, tmp_path, stop_after=2)
    train(experiment, tmp_path)
    assert read_metrics(tmp_path) == read_metrics(folder)


@each_file
def test_it_is_described(name, capsys):
    assert main(["describe", FILES[name][0], "--json", "--import", str(EXAMPLES / f"{name}.py")]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["parameters"] > 0
    assert all(field["meaning"] for field in facts["hyperparameters"] if field["name"] not in ("dtype",))


def test_row_i_of_a_sample_does_not_depend_on_the_number_of_rows(trained):
    run = open_run(trained("denoise_points"))
    few, many = (run.sample(1, count)["coordinates"] for count in (2, 5))
    np.testing.assert_allclose(few, many[:2], rtol=1e-6)


def exact(module, centres, std):
    """The noise of a mixture of Gaussians, known exactly, as a model."""

    class Exact(nn.Module):
        features: int = 2

        def __call__(self, x, time, train=False):
            kept = module.alpha_bar(time)[:, None]
            variance = kept * std**2 + 1 - kept
            means = jnp.sqrt(kept)[..., None] * centres[None]
            near = jax.nn.softmax(-jnp.sum((x[:, None] - means) ** 2, -1) / (2 * variance), axis=-1)
            score = jnp.sum(near[..., None] * (means - x[:, None]), axis=1) / variance
            return -jnp.sqrt(1 - kept) * score

    return Exact()


def test_a_sampler_that_knows_the_noise_finds_all_modes():
    experiment, module = load(str(EXAMPLES / "denoise_points.py"))
    corpus = experiment.data.load()
    task = experiment.objective.with_model(exact(module, jnp.asarray(corpus.centres), float(corpus.std)))
    made = module.Ancestral()(task, {}, corpus, jax.random.key(0), 400)["coordinates"]
    distance = np.linalg.norm(made[:, None] - corpus.centres[None], axis=-1)
    assert (np.bincount(distance.argmin(1), minlength=8) > 25).all()  # 50 each are expected, with deviation 6.6
    assert (distance.min(1) <= 3 * corpus.std).mean() > 0.98


def test_the_sampler_against_a_recursion_of_variances():
    """Data N(0, s^2): every step is linear in x, so that the samples' variance is known (equations 7 and 15)."""
    experiment, module = load(str(EXAMPLES / "denoise_points.py"))
    std, steps = 0.3, 20
    task = experiment.objective.with_model(exact(module, jnp.zeros((1, 2)), std))
    made = module.Ancestral(steps)(task, {}, None, jax.random.key(0), 4000)["coordinates"]
    kept = np.cumprod(1 - np.linspace(1e-3, 0.12, 100))
    times, variance = np.round(np.linspace(99, 0, steps)).astype(int), 1.0
    for here, there in zip(kept[times], np.append(kept[times[1:]], 1.0)):
        alpha = here / there
        clean = np.sqrt(here) * std**2 / (here * std**2 + 1 - here)  # E[x_0 | x_t] = clean * x_t
        mean = (np.sqrt(there) * (1 - alpha) * clean + np.sqrt(alpha) * (1 - there)) / (1 - here)
        variance = mean**2 * variance + (1 - alpha) * (1 - there) / (1 - here)
    assert made.var() == pytest.approx(variance, rel=0.06)  # 8,000 numbers: a deviation of 1.6 %
    assert abs(made.mean()) < 4 * np.sqrt(variance / 8000)


def test_wrong_settings_of_an_own_sampler(trained):
    run = open_run(trained("denoise_points"))
    with pytest.raises(UsageError, match="steps is 0; expected 1 to 100"):
        run.sample(0, 1, {"steps": "0"})
    with pytest.raises(
        UsageError, match="'stepps' is not a setting of this run's sampler 'ancestral_points'; the nearest is 'steps'"
    ):
        run.sample(0, 1, {"stepps": "5"})


@pytest.mark.thorough
def test_they_pass_the_contract_suite():
    """As the docs say: the files are named in ARCH_JAX_IMPORT, and the suite takes what they register."""
    models = [model for model, *_ in FILES.values()]
    command = [sys.executable, "-m", "pytest", "tests/contract", "-n", "0", "-k", " or ".join(models), "-m", "", "-rp"]
    named = os.pathsep.join(str(EXAMPLES / f"{name}.py") for name in FILES)
    environment = {**os.environ, "ARCH_JAX_IMPORT": named}
    environment.pop("PYTEST_XDIST_WORKER", None)
    result = subprocess.run(
        [*command, "-p", "no:cacheprovider"],
        cwd=EXAMPLES.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-4000:]
    for model in models:
        passed = re.findall(rf"^PASSED .*\[{model}", result.stdout, re.MULTILINE)
        assert len(passed) > 15, (model, result.stdout[-1000:])


@pytest.mark.thorough
@pytest.mark.parametrize("together", ["1", "2"])
def test_an_own_measure_serves_a_study(together, tmp_path, capsys):
    """Also where the seeds are trained as one program."""
    file, (_, settings, _) = str(EXAMPLES / "denoise_points.py"), FILES["denoise_points"]
    settings = {"steps": 2, "steps_per_dispatch": 2, "log_every": 1} | settings
    sets = [word for field, value in settings.items() for word in ("--set", f"{field}={value}")]
    command = ["ablate", file, "--metric", "near_share", "--seeds", "2", "--together", together, "--json"]
    assert main([*command, "--workdir", str(tmp_path), *sets]) == 0
    assert "near_share" in capsys.readouterr().out
    results = [json.loads(path.read_text()) for path in tmp_path.glob("cells/*/result.json")]
    assert len(results) == 6  # the baseline and two widths
    for result in results:
        assert {"near_share", "modes", "loss"} <= result["validation"].keys()
