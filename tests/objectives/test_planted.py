"""What is said of an autoencoder on data whose making is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import arch_jax
from arch_jax.errors import UsageError
from arch_jax.evaluation.ground_truth import recovered, score_error
from arch_jax.figures.ground_truth import score_figure
from arch_jax.models.autoencoder.autoencoder import Autoencoder
from arch_jax.models.autoencoder.vector_autoencoder import VectorAutoencoder
from arch_jax.ops.gaussian_mixture import mixture_score


def loss_of(it, *given):
    """The loss, compiled whole: op by op, every small operation would be compiled on its own."""
    player, *rest = given
    return jax.jit(it.loss, static_argnums=(0, 1))(player, "main", *rest, 0)


def evaluated(it, *given):
    """The evaluation, compiled whole."""
    return jax.jit(it.evaluate)(*given)


def test_the_score_error_is_0_at_the_best_and_1_for_no_step():
    draw = np.random.default_rng(0)
    centres, std, noise = jnp.asarray(draw.normal(size=(4, 2)), jnp.float32), jnp.float32(0.3), 0.5
    x = jnp.asarray(draw.normal(size=(50, 2)), jnp.float32)
    best = noise**2 * mixture_score(x, centres, (std**2 + noise**2) ** 0.5)
    ratio = lambda step: (lambda pair: float(pair[0] / pair[1]))(score_error(step, x, noise, centres, std))
    assert ratio(best) < 1e-10
    assert ratio(jnp.zeros_like(x)) == pytest.approx(1)
    assert ratio(0.5 * best) == pytest.approx(0.25)


def test_recovered_atoms_have_any_order_and_sign():
    atoms = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0].astype(np.float32)
    share = lambda rows: {
        name: float(a / b) for name, (a, b) in recovered(jnp.asarray(rows), jnp.asarray(atoms)).items()
    }
    assert share(-atoms[::-1]) == pytest.approx({"recovered": 1, "cosine": 1})
    assert share(atoms[:3])["recovered"] == pytest.approx(0.5)
    assert share((atoms + 0.3 * np.roll(atoms, 1, 0)) / 1.09**0.5)["recovered"] == 0


def test_an_autoencoder_of_the_planted_atoms_has_recovered_them_all():
    """Its encoder is the atoms' pseudoinverse, so that it gives back what it is given, too."""
    data = arch_jax.PlantedDictionary(atoms=5, features=8, active=2).load()
    model = VectorAutoencoder(features=8, latent=5, code_activation="relu", unit_atoms=True)
    task = arch_jax.objective("autoencode", activity_weight=0.5).with_model(model)
    batch = jax.tree.map(jnp.asarray, data.validation()[0])
    params = {
        "encoder": {"kernel": np.linalg.pinv(data.atoms), "bias": np.zeros(5)},
        "decoder": {"kernel": 7 * data.atoms, "bias": np.zeros(8)},
    }
    variables = {"params": jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)}
    found = {name: float(total / weight) for name, (total, weight) in evaluated(task, variables, batch).items()}
    assert found == pytest.approx({"loss": 0, "recovered": 1, "cosine": 1}, abs=1e-5)
    metrics = loss_of(task, "model", variables, batch, jax.random.key(0))[1][0]
    # The price is on the code: two shares of mean 1, whatever the rows' length.
    assert float(metrics["activity"][0] / metrics["activity"][1]) == pytest.approx(2, rel=0.02)
    assert task.draw(variables, data, jax.random.key(0)).keys() == {"atoms"}


def test_what_is_drawn_of_points_in_the_plane():
    model = VectorAutoencoder(latent=3)
    task = arch_jax.objective("autoencode", noise=0.3).with_model(model)
    data = arch_jax.Ring(validation=20).load()
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2)))
    assert task.draw(variables, data, jax.random.key(0)).keys() == {"score"}
    assert evaluated(task, variables, jax.tree.map(jnp.asarray, data.validation()[0])).keys() == {
        "loss",
        "score_error",
    }


def test_all_that_is_drawn_of_the_plane_lies_in_one_square():
    """Density, arrows and error share their places: the square about the origin that the panels show."""
    centres = np.array([[1.0, 0.0], [0.0, -2.0]])
    figure = score_figure(lambda x: -x, centres, np.array(0.4), 0.3, places=5)
    reach = 2 + 2.5 * 0.5
    for axis in figure.axes[:3]:
        (image,) = axis.images
        assert image.origin == "lower"
        np.testing.assert_allclose(image.get_extent(), (-reach, reach) * 2, rtol=1e-6)
        np.testing.assert_allclose((*axis.get_xlim(), *axis.get_ylim()), (-reach, reach) * 2, rtol=1e-6)
    (error,) = figure.axes[2].images
    # -x is the score of a normal distribution at the origin: far out, the two differ most.
    assert np.unravel_index(np.argmax(error.get_array()), (121, 121))[0] in (0, 120)


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        (VectorAutoencoder(features=3), {}, r"the vectors have the shape 2, and .* set model\.features=2"),
        (Autoencoder(), {}, "the model takes images, and the data has x; expected images"),
        (VectorAutoencoder(), {"likelihood": "bernoulli"}, "likelihood is 'bernoulli'"),
    ],
)
def test_data_that_does_not_fit_is_refused(model, settings, message):
    task = arch_jax.objective("autoencode", **settings).with_model(model)
    with pytest.raises(UsageError, match=message):
        task.check(arch_jax.Ring().load())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"latent": 0}, "latent is 0; expected at least 1"),
        ({"kept": 65}, "kept is 65; expected 1 to 64"),
        ({"hidden": (4,), "unit_atoms": True}, "expected one without the other"),
        ({"hidden": (0,)}, "expected widths of at least 1"),
    ],
)
def test_fields_that_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        VectorAutoencoder(**settings)
