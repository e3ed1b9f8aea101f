"""Classification of pictures: which pictures count, what is drawn, what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import arch_jax
from arch_jax.ops.losses import cross_entropy


def loss_of(it, *given):
    """The loss, compiled whole: op by op, every small operation would be compiled on its own."""
    player, *rest = given
    return jax.jit(it.loss, static_argnums=(0, 1))(player, "main", *rest, 0)


def evaluated(it, *given):
    """The evaluation, compiled whole."""
    return jax.jit(it.evaluate)(*given)


def task(model=None, **fields):
    return arch_jax.objective("classify", **fields).with_model(model or arch_jax.create("lenet5"))


def batch(weights=(1, 1, 0, 1)):
    draw = np.random.default_rng(0)
    return {
        "images": jnp.asarray(draw.uniform(size=(4, 32, 32, 1)), jnp.float32),
        "labels": jnp.array([1, 2, 3, 4], jnp.int32),
        "weights": jnp.array(weights, jnp.float32),
    }


def test_pictures_without_weight_do_not_count():
    it, given = task(), batch()
    variables = jax.jit(it.init)(jax.random.key(0), given)
    metrics = evaluated(it, variables, given)
    logits = jax.jit(it.model.apply)(variables, given["images"])
    nats = -jax.nn.log_softmax(logits)[jnp.arange(4), given["labels"]]
    assert float(metrics["loss"][0]) == pytest.approx(float(nats[0] + nats[1] + nats[3]), rel=1e-5)
    assert float(metrics["loss"][1]) == float(metrics["accuracy"][1]) == 3
    given["images"] = given["images"].at[2].set(jnp.nan)
    again = evaluated(it, variables, given)
    assert float(again["loss"][0]) == pytest.approx(float(metrics["loss"][0]), rel=1e-6)


@pytest.mark.parametrize("j", [0.5, pytest.param(10.0, marks=pytest.mark.thorough)])
def test_rubbish_is_equation_9(j):
    """y_D + log(e^-j + sum_i e^-y_i) (LeCun et al. 1998), y the penalties: minus the logits; in training only."""
    given = batch((1, 1, 1, 1))
    plain, it = task(), task(rubbish=j)
    variables = jax.jit(it.init)(jax.random.key(0), given)
    y = -jax.jit(it.model.apply)(variables, given["images"])
    expected = y[jnp.arange(4), given["labels"]] + jnp.logaddexp(-j, jax.nn.logsumexp(-y, axis=1))
    (total, _), _ = loss_of(it, "model", variables, given, jax.random.key(1))
    assert float(total) == pytest.approx(float(expected.sum()), rel=1e-5)
    assert float(total) > float(loss_of(plain, "model", variables, given, jax.random.key(1))[0][0]) + 1
    assert float(evaluated(it, variables, given)["loss"][0]) == float(evaluated(plain, variables, given)["loss"][0])
    with pytest.raises(arch_jax.UsageError, match="rubbish is -1"):
        task(rubbish=-1.0)


def test_batch_statistics_are_handed_on():
    it, given = task(arch_jax.create("lenet5-bn")), batch((1, 1, 1, 1))
    variables = jax.jit(it.init)(jax.random.key(0), given)
    _, (_, updates) = loss_of(it, "model", variables, given, jax.random.key(1))
    assert set(updates) == {"batch_stats"}
    before, after = variables["batch_stats"]["c1_norm"]["mean"], updates["batch_stats"]["c1_norm"]["mean"]
    assert bool(jnp.any(before != after))


def test_wrong_pictures_are_marked():
    """A model that is always wrong: every picture drawn has a red frame and says what it is."""
    corpus = arch_jax.Images(source="digits", batch=32, resize=28, pad=2).load()
    it = task(show_images=12)
    variables = jax.jit(it.init)(jax.random.key(0), {"images": jnp.zeros((1, 32, 32, 1))})
    figure = it.draw(variables, corpus, jax.random.key(0))["predictions"]
    titles = [axes.get_title() for axes in figure.axes if axes.images]
    assert len(titles) == 12
    wrong = [axes for axes in figure.axes if "(is " in axes.get_title()]
    assert wrong
    assert all(axes.title.get_color() == "red" for axes in wrong)
    assert "are misclassified" in figure.get_suptitle()


def test_data_that_does_not_fit_is_refused():
    with pytest.raises(arch_jax.UsageError, match=r"28 x 28 pixels, and LeNet-5 takes 32 x 32; set data.pad=2"):
        task().check(arch_jax.Images(source="digits", resize=28).load())
    with pytest.raises(
        arch_jax.UsageError, match=r"model.classes is 5, but the labels go up to 9; set model.classes=10"
    ):
        task(arch_jax.create("lenet5", classes=5)).check(arch_jax.Images(source="digits", resize=32).load())
    with pytest.raises(arch_jax.UsageError, match="takes labelled images, and the data has x"):
        task().check(arch_jax.Ring().load())


@pytest.mark.thorough
def test_auxiliary_classifiers_count_in_training_alone():
    model = arch_jax.create(
        "googlenet-auxiliary",
        classes=3,
        width=0.0625,
        modules=(1, 4, 1),
        auxiliary_hidden=8,
        dropout=0.0,
        auxiliary_dropout=0.0,
    )
    pictures = {
        "images": jax.random.normal(jax.random.key(0), (2, 32, 32, 3)),
        "labels": jnp.array([0, 2]),
        "weights": jnp.ones(2),
    }
    it = arch_jax.objective("classify", auxiliary_weight=0.5).with_model(model)
    variables = jax.jit(it.init)(jax.random.key(1), pictures)
    (total, weight), _ = jax.jit(lambda v: it.loss("model", "main", v, pictures, jax.random.key(2), 0))(variables)
    options = {"train": True, "mutable": ["batch_stats", "outputs"]}
    logits, kept = jax.jit(functools.partial(model.apply, **options))(variables, pictures["images"])
    said = [logits, *jax.tree.leaves(kept["outputs"])]
    main, first, second = (float(cross_entropy(logits, pictures["labels"]).sum()) for logits in said)
    np.testing.assert_allclose(total, main + 0.5 * (first + second), rtol=1e-5)
    assert weight == 2
    found = evaluated(it, variables, pictures)["loss"][0]
    main_alone = jax.jit(model.apply)(variables, pictures["images"])
    np.testing.assert_allclose(found, cross_entropy(main_alone, pictures["labels"]).sum(), rtol=1e-5)
    with pytest.raises(arch_jax.UsageError, match=r"auxiliary_weight is -1"):
        arch_jax.objective("classify", auxiliary_weight=-1.0)
