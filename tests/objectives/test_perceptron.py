"""Rosenblatt's rule: the weights it has by hand after every example, Novikoff's bound, and the gate it cannot learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import arch_jax
from arch_jax.data import Images
from arch_jax.data.images.sources import GATES
from arch_jax.ops.losses import perceptron


def descent(vectors, labels, epochs):
    """(weights, mistake) after each example, by steps of gradient descent of rate 1 on the objective."""
    task = arch_jax.objective("classify", criterion="perceptron")
    task = task.with_model(arch_jax.create("perceptron", classes=2))

    @jax.jit
    def step(variables, x, label):
        batch = {"images": x.reshape(1, 1, -1, 1), "labels": label[None], "weights": jnp.ones(1)}
        gradient = jax.grad(lambda v: task.loss("model", "main", v, batch, jax.random.key(0), 0)[0][0])(variables)
        return jax.tree.map(lambda w, g: w - g, variables, gradient), jnp.any(gradient["params"]["scores"]["bias"] != 0)

    first = jnp.asarray(vectors[:1], jnp.float32).reshape(1, 1, -1, 1)
    variables = task.init(jax.random.key(0), {"images": first})
    for _ in range(epochs):
        for x, label in zip(vectors, labels):
            variables, mistake = step(variables, jnp.asarray(x, jnp.float32), jnp.asarray(label, jnp.int32))
            yield variables["params"]["scores"], bool(mistake)


def by_hand(vectors, labels, epochs):
    """Rosenblatt's rule with classes -1 and 1 and a bias: w += y x where y w.x is not above 0."""
    w = np.zeros(vectors.shape[1] + 1)
    for _ in range(epochs):
        for x, label in zip(vectors, labels):
            y, x = 2 * label - 1, np.append(x, 1)
            mistake = y * (w @ x) <= 0
            w = w + y * x * mistake
            yield w, mistake


def separable(count=40, margin=0.2):
    """Vectors that a line with a bias tells apart, none of them nearer to it than `margin`."""
    draw = np.random.default_rng(0)
    vectors = draw.integers(-64, 65, (4 * count, 3)) / 32  # of few bits, so that every sum is exact
    direction = np.array([2.0, -1.0, 2.0]) / 3
    distance = vectors @ direction - 0.25
    keep = np.flatnonzero(np.abs(distance) > margin)[:count]
    return vectors[keep], (distance[keep] > 0).astype(int)


def test_gradient_descent_is_the_rule():
    vectors, labels = separable()
    mistakes = 0
    for (scores, ours), (w, theirs) in zip(descent(vectors, labels, 3), by_hand(vectors, labels, 3), strict=True):
        assert ours == theirs
        mistakes += ours
        np.testing.assert_array_equal(scores["kernel"], np.stack([-w[:-1], w[:-1]], axis=1))
        np.testing.assert_array_equal(scores["bias"], [-w[-1], w[-1]])
    assert mistakes > 3


def test_mistakes_are_within_novikoffs_bound_and_end():
    vectors, labels = separable()
    mistakes = [mistake for _, mistake in descent(vectors, labels, 40)]
    longest = (vectors**2).sum(1).max() + 1  # with the 1 that the bias is multiplied with
    normal = np.append(np.array([2.0, -1.0, 2.0]) / 3, -0.25)
    margin = (np.abs(np.c_[vectors, np.ones(len(vectors))] @ normal) / np.linalg.norm(normal)).min()
    assert 0 < sum(mistakes) <= longest / margin**2
    assert not any(mistakes[-len(vectors) :])


@pytest.mark.parametrize("gate", GATES)
def test_gates(gate):
    """Every gate but XOR is learned; there each round over the table has a mistake, for ever."""
    corpus = Images(source=f"gate:{gate}", batch=4, low=-1.0).load()
    (batch,) = corpus.validation()
    np.testing.assert_array_equal(batch["images"][..., 0], [[[-1, -1]], [[-1, 1]], [[1, -1]], [[1, 1]]])
    vectors, labels = batch["images"].reshape(4, 2), batch["labels"]
    expected = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}
    if gate in expected:
        np.testing.assert_array_equal(labels, expected[gate](*(vectors > 0).T))
    mistakes = np.array([mistake for _, mistake in descent(vectors, labels, 12)]).reshape(12, 4)
    assert mistakes[-1].any() == (gate == "xor")
    assert mistakes.any(axis=1).all() == (gate == "xor")


def test_loss_of_several_classes():
    scores = jnp.array([[3.0, 1.0, 2.0], [1.0, 3.0, 2.0], [2.0, 2.0, 2.0]])
    targets = jnp.array([0, 2, 1])
    loss, gradient = jax.value_and_grad(lambda s: perceptron(s, targets).sum())(scores)
    assert float(loss) == 1
    np.testing.assert_array_equal(gradient, [[0, 0, 0], [0, 1, -1], [1, -1, 0]])


def test_what_is_refused():
    with pytest.raises(arch_jax.UsageError, match="criterion 'perceptron' has no probabilities"):
        arch_jax.objective("classify", criterion="perceptron", label_smoothing=0.1)
    with pytest.raises(arch_jax.UsageError, match="preceptron"):
        arch_jax.objective("classify", criterion="preceptron")
    with pytest.raises(arch_jax.UsageError, match="unknown gate 'xnor'"):
        Images(source="gate:xnor")
    with pytest.raises(arch_jax.UsageError, match=r"hidden is \(0,\); expected widths of at least 1"):
        arch_jax.create("mlp", hidden=(0,))
