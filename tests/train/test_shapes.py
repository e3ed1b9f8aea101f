"""Every shape of training through the one loop: what is trained, written, drawn, resumed and sampled."""

import functools
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import arch_jax
from arch_jax.cli import main
from arch_jax.train.loop import train
from arch_jax.train.report import draw_films
from arch_jax.train.restore import open_run
from arch_jax.train.workdir import read_metrics

pytestmark = pytest.mark.usefixtures("compiled_once")
QUICK = arch_jax.Optimizer("adam", learning_rate=1e-2, schedule="constant")


def pictures(model="lenet5"):
    return arch_jax.Experiment(
        model=arch_jax.create(model),
        objective=arch_jax.objective("classify", show_images=12),
        data=arch_jax.Images(source="digits", batch=16, resize=28, pad=2),
    )


def points():
    return arch_jax.Experiment(
        model=arch_jax.create("gan", **{"generator.hidden": (8,), "discriminator.hidden": (6,)}),
        objective=arch_jax.objective("adversarial", discriminator_steps=2),
        data=arch_jax.Ring(batch=20, validation=100),
        optimizer=(QUICK, arch_jax.Optimizer("adam", learning_rate=3e-3, schedule="constant")),
    )


def nodes():
    return arch_jax.Experiment(
        model=arch_jax.create("gcn", classes=2, hidden=(4,)),
        objective=arch_jax.objective("nodes", l2=1e-3),
        data=arch_jax.Nodes(source="karate", multiple=8),
    )


SHAPES = {
    "pictures": pictures,
    "batch norm": functools.partial(pictures, "lenet5-bn"),
    "points": points,
    "nodes": nodes,
}
#: All, the plain pictures in CI alone: beside those with batch statistics they take no other path.
every_shape = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.thorough] * (name == "pictures")) for name in SHAPES]
)
SHOWN = {"pictures": "predictions", "batch norm": "predictions", "points": "points", "nodes": "embeddings"}


def experiment(name, steps):
    it = SHAPES[name]()
    optimizer = QUICK if isinstance(it.optimizer, arch_jax.Optimizer) else it.optimizer
    changes = {"steps": steps, "evaluate_every": 4, "checkpoint_every": 2, "steps_per_dispatch": 3, "name": "shape"}
    return it.overridden(changes | {"optimizer": optimizer}).settled()


def bits(tree):
    plain = lambda x: jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    return [np.asarray(plain(leaf)).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of 8 steps of each shape."""
    folder = tmp_path_factory.mktemp("shapes")
    return functools.cache(lambda name: train(experiment(name, 8), folder / name.replace(" ", "-")))


@every_shape
def test_what_a_run_leaves(whole, name):
    outcome = whole(name)
    lines = read_metrics(outcome.path)
    assert [line["step"] for line in lines if "validation/loss" not in line] == list(range(1, 9))
    assert all(np.isfinite(value) for value in outcome.validation.values())
    frames = sorted((outcome.path / "samples").glob(f"step_*_{SHOWN[name]}.png"))
    assert [int(file.stem.split("_")[1]) for file in frames] == [4, 8]
    film = Image.open(outcome.path / f"film_{SHOWN[name]}.png")
    assert film.width > 1.9 * 320 * Image.open(frames[0]).width / Image.open(frames[0]).height
    assert outcome.path / f"film_{SHOWN[name]}.png" in outcome.shown


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.thorough] * (name != "points")) for name in SHAPES]
)
def test_a_stopped_run_goes_on_bit_for_bit(whole, name, tmp_path):
    """Players' own optimizers, batch statistics, whole graphs: 3 steps and 5 are 8."""
    train(experiment(name, 8), tmp_path / "run", stop_after=3)
    outcome = train(experiment(name, 8), tmp_path / "run")
    assert outcome.step == 8
    assert bits(outcome.state) == bits(whole(name).state)
    assert read_metrics(outcome.path) == read_metrics(whole(name).path)


@every_shape
def test_a_run_is_opened_and_evaluated(whole, name):
    run = open_run(whole(name).path)
    assert run.evaluate() == pytest.approx(whole(name).validation, rel=1e-5)


def test_batch_statistics_move(whole):
    state = whole("batch norm").state
    assert set(state.others) == {"batch_stats"}
    assert float(np.abs(state.others["batch_stats"]["c1_norm"]["mean"]).max()) > 0


def test_the_generator_plays_every_second_step(whole):
    lines = [line for line in read_metrics(whole("points").path) if "generator/loss" in line]
    assert [line["generator/loss"] is None for line in lines] == [False, True] * 4
    assert all(line["discriminator/loss"] is not None for line in lines)


def test_samples(whole, capsys, tmp_path):
    """A generator's points and a classifier's predictions are printed, and written to files."""
    assert main(["sample", str(whole("points").path), "--count", "3", "--seed", "5"]) == 0
    numbers = [line.split() for line in capsys.readouterr().out.splitlines() if not line.startswith("---")]
    assert [len(row) for row in numbers] == [2, 2, 2]
    assert main(["sample", str(whole("points").path), "--prompt", "x"]) == 2
    assert "'prompt' is not a setting of this run's sampler 'generator', which has none" in capsys.readouterr().err
    assert main(["sample", str(whole("batch norm").path), "--count", "4", "--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    outputs = np.load(tmp_path / "seed_0_outputs.npy")
    assert len(lines) == len(outputs) == 4
    for line, row in zip(lines, outputs):
        probabilities = np.exp(row) / np.exp(row).sum()
        assert line.split(": ")[1].startswith(f"{row.argmax()}, probability {probabilities.max():.3f}")


def test_a_film_has_at_most_six_images_first_and_last_among_them(whole, tmp_path):
    shutil.copytree(whole("points").path / "samples", tmp_path / "samples")
    frame = next((tmp_path / "samples").glob("*.png"))
    for step in range(10, 90, 10):
        shutil.copy(frame, tmp_path / "samples" / f"step_{step:07d}_points.png")
    image = Image.open(frame)
    film = Image.open(draw_films(tmp_path)[0])
    assert film.width == 6 * round(image.width * 320 / image.height) + 5 * 24  # with gaps between them
    assert draw_films(tmp_path / "nothing") == []
