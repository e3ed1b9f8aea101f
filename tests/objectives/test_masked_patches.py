"""The loss of masked patches: what counts, what does not, and what the linear probe says."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import arch_jax
from arch_jax.errors import UsageError
from arch_jax.evaluation.linear_probe import probe_accuracy
from arch_jax.ops.convolution.patches import patches, random_masking


def loss_of(it, *given):
    """The loss, compiled whole: op by op, every small operation would be compiled on its own."""
    player, *rest = given
    return jax.jit(it.loss, static_argnums=(0, 1))(player, "main", *rest, 0)


def evaluated(it, *given):
    """The evaluation, compiled whole."""
    return jax.jit(it.evaluate)(*given)


MODEL = arch_jax.create(
    "mae-base-16",
    resolution=8,
    channels=1,
    patch=2,
    depth=1,
    width=8,
    decoder_depth=1,
    decoder_width=8,
    **{"mixer.heads": 2, "decoder_mixer.heads": 2},
)
DIGITS = arch_jax.Images(source="digits", batch=64)


def ready(normalised=False, **settings):
    task = arch_jax.objective("masked_patches", **settings)
    task = task.with_model(MODEL.clone(normalised_pixels=normalised, parent=None))
    images = jax.random.uniform(jax.random.key(5), (3, 8, 8, 1))
    batch = {"images": images, "labels": jnp.zeros(3, jnp.int32), "weights": jnp.array([1.0, 1.0, 0.0])}
    return task, jax.jit(task.init)(jax.random.key(0), batch), batch


@pytest.mark.parametrize("normalised", [False, True])
def test_the_loss_is_the_mean_over_masked_pixels_of_real_pictures(normalised):
    task, variables, batch = ready(normalised)
    key = jax.random.key(3)
    (total, weight), (metrics, updates) = loss_of(task, "model", variables, batch, key)
    noise = jax.random.uniform(key, (3, 16))
    masked = jax.jit(functools.partial(task.model.apply, method="masked"))
    rows, masking = jax.tree.map(np.asarray, masked(variables, batch["images"], noise))
    target = np.asarray(patches(batch["images"], 2), np.float64)
    if normalised:
        target = (target - target.mean(-1, keepdims=True)) / np.sqrt(target.var(-1, ddof=1, keepdims=True) + 1e-6)
    errors = [(np.asarray(rows[i, j]) - target[i, j]) ** 2 for i in (0, 1) for j in range(16) if masking.mask[i, j]]
    assert len(errors) == 2 * 12
    np.testing.assert_allclose(total / weight, np.mean(errors), rtol=1e-5)
    assert weight == 2
    assert metrics.keys() == {"loss"}
    assert not updates


def test_visible_patches_are_not_in_the_loss():
    """What is predicted there does not count: the gradient in those predictions is exactly 0."""
    task, variables, batch = ready()
    shift = jnp.zeros((3, 16, 4))

    class Shifted(type(MODEL)):
        def masked(self, images, noise):
            rows, masking = super().masked(images, noise)
            return rows + self.get_variable("shift", "shift"), masking

    fields = {name: getattr(task.model, name) for name in ("resolution", "channels", "patch", "depth", "width")}
    fields |= {name: getattr(task.model, name) for name in ("mixer", "decoder_mixer", "decoder_depth", "decoder_width")}
    shifted = task.with_model(Shifted(**fields))
    key = jax.random.key(3)
    loss = lambda shift: shifted.loss("model", "main", {**variables, "shift": {"shift": shift}}, batch, key, 0)[0][0]
    gradient = np.abs(np.asarray(jax.jit(jax.grad(loss))(shift))).max(-1)
    mask = np.asarray(random_masking(jax.random.uniform(key, (3, 16)), 0.75).mask)
    np.testing.assert_array_equal(gradient[:2][~mask[:2]], 0)
    assert gradient[:2][mask[:2]].min() > 0
    np.testing.assert_array_equal(gradient[2], 0)  # the picture without weight


def test_padding_may_hold_anything():
    task, variables, batch = ready(normalised=True)
    broken = batch | {"images": batch["images"].at[2].set(jnp.nan)}
    for pair, other in zip(evaluated(task, variables, batch)["loss"], evaluated(task, variables, broken)["loss"]):
        assert pair == other


def test_masks_change_from_step_to_step_and_not_in_validation():
    task, variables, batch = ready()
    steps = [float(loss_of(task, "model", variables, batch, jax.random.key(k))[0][0]) for k in (1, 1, 2)]
    assert steps[0] == steps[1] != steps[2]
    first, second = (float(evaluated(task, variables, batch)["loss"][0]) for _ in range(2))
    assert first == second


def test_the_probe_finds_what_is_linear():
    """Features that tell the classes are found out, features that don't are not; pictures of weight 0 don't count."""
    draw = np.random.default_rng(0)

    def batches(count):
        labels = draw.integers(0, 3, count).astype(np.int32)
        images = draw.normal(size=(count, 1, 1, 2)).astype(np.float32)
        images[..., 0] += 100 + 10 * np.eye(3)[labels][:, None, None, 0]  # one number tells class 0
        weights = np.ones(count, np.float32)
        weights[-5:], labels[-5:] = 0, 0
        yield {"images": images, "labels": labels, "weights": weights}

    share = probe_accuracy(lambda x: x[:, 0, 0], batches(600), batches(600))
    assert 0.6 < share < 0.73  # class 0 for sure, the others by chance: 1/3 + 1/3
    blind = probe_accuracy(lambda x: x[:, 0, 0, 1:], batches(600), batches(600))
    assert 0.25 < blind < 0.42
    constant = probe_accuracy(lambda x: jnp.ones((len(x), 2)), batches(100), batches(100))
    assert 0.2 < constant < 0.5
    with pytest.raises(UsageError, match="are all of class 0; expected images of at least 2 classes"):
        probe_accuracy(lambda x: x[:, 0, 0], [next(batches(5)) | {"weights": np.ones(5)}], batches(5))


@pytest.mark.thorough
def test_a_finished_run_is_scored_and_drawn():
    data = DIGITS.load()
    task, variables, _ = ready(probe_images=300)
    score = task.measure(variables, data)
    assert score.keys() == {"probe_accuracy", "probe_untrained", "probe_gain"}
    assert 0.2 < score["probe_accuracy"] <= 1  # of 10 classes
    # The variables are those of the untrained network here, so nothing is gained.
    assert score["probe_gain"] == score["probe_accuracy"] - score["probe_untrained"] == 0
    mean = ready(probe_images=300, probe_features="mean")[0].measure(variables, data)
    assert mean["probe_accuracy"] != score["probe_accuracy"]
    assert ready(probe_images=None)[0].measure(variables, data) == {}
    figures = task.draw(variables, data, jax.random.key(0))
    assert figures.keys() == {"reconstructions"}
    assert len(figures["reconstructions"].axes) == 4 * 12
    normal = ready(normalised=True)[0]
    assert normal.draw(variables, data, jax.random.key(0)).keys() == {"reconstructions"}


def test_what_is_refused():
    with pytest.raises(UsageError, match="probe_images is 1; expected at least 2, or none for no probe"):
        arch_jax.objective("masked_patches", probe_images=1)
    with pytest.raises(UsageError, match=r"have 1 channels and the model predicts 3; set model\.channels=1"):
        arch_jax.objective("masked_patches").with_model(MODEL.clone(channels=3)).check(DIGITS.load())
