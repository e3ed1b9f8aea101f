"""Node classification: which nodes count, what decays, what is drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import arch_jax


def loss_of(it, *given):
    """The loss, compiled whole: op by op, every small operation would be compiled on its own."""
    player, *rest = given
    return jax.jit(it.loss, static_argnums=(0, 1))(player, "main", *rest, 0)


def karate():
    data = arch_jax.Nodes(source="karate", multiple=8)
    corpus = data.load()
    return corpus, jax.tree.map(jnp.asarray, next(corpus.train(0)))


def task(**fields):
    model = arch_jax.create("gcn", classes=2, hidden=(4,), dropout=0.0)
    return arch_jax.objective("nodes", **fields).with_model(model)


def test_only_labelled_nodes_count():
    corpus, batch = karate()
    it = task()
    it.check(corpus)
    variables = jax.jit(it.init)(jax.random.key(0), batch)
    (total, weight), (metrics, _) = loss_of(it, "model", variables, batch, jax.random.key(1))
    assert float(weight) == 2
    logits = jax.jit(it.model.apply)(variables, *it.arguments(batch))
    nats = -jax.nn.log_softmax(logits)[jnp.arange(len(logits)), batch["labels"]]
    assert float(total) == pytest.approx(float(nats[0] + nats[33]), rel=1e-6)
    assert float(metrics["loss"][0]) == pytest.approx(float(total), rel=1e-6)


def test_padding_changes_nothing():
    """Another padded size: the same loss and the same gradients."""
    results = []
    for multiple in (8, 50):
        corpus = arch_jax.Nodes(source="karate", multiple=multiple).load()
        batch = jax.tree.map(jnp.asarray, next(corpus.train(0)))
        it = task(l2=0.1)
        variables = jax.jit(it.init)(jax.random.key(0), batch)
        loss = lambda params, it=it, batch=batch: it.loss(
            "model", "main", {"params": params}, batch, jax.random.key(1), 0
        )[0][0]
        results.append(jax.jit(jax.value_and_grad(loss))(variables["params"]))
    one, other = jax.tree.leaves(results[0]), jax.tree.leaves(results[1])
    for a, b in zip(one, other):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_decay_is_part_of_the_loss():
    _, batch = karate()
    variables = jax.jit(task().init)(jax.random.key(0), batch)
    plain, decayed = (loss_of(task(l2=l2), "model", variables, batch, jax.random.key(1))[0][0] for l2 in (0.0, 0.5))
    first = np.asarray(variables["params"]["convolution_0"]["dense"]["kernel"])
    # Times the weight: the loop divides the sum by it.
    assert float(decayed) - float(plain) == pytest.approx(2 * 0.25 * float(np.sum(first**2)), rel=1e-5)
    with pytest.raises(arch_jax.UsageError, match="matches none of the parameters"):
        task(l2=0.5, l2_on="nothing").loss("model", "main", variables, batch, jax.random.key(1), 0)
    with pytest.raises(arch_jax.UsageError, match="which is not a pattern"):
        task(l2_on="(")


def test_embeddings_are_drawn():
    corpus, batch = karate()
    it = task()
    figure = it.draw(jax.jit(it.init)(jax.random.key(0), batch), corpus, jax.random.key(1))["embeddings"]
    points = [c for c in figure.axes[0].collections if hasattr(c, "get_sizes") and len(c.get_offsets())]
    assert sum(len(c.get_offsets()) for c in points[:2]) == 34


def test_labels_beyond_the_model_are_refused():
    model = arch_jax.create("gcn", classes=2)
    corpus, _ = karate()
    object.__setattr__(corpus, "classes", 5)
    with pytest.raises(
        arch_jax.UsageError, match=r"model.classes is 2, but the labels go up to 4; set model.classes=5"
    ):
        arch_jax.objective("nodes").with_model(model).check(corpus)
