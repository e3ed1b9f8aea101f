"""What a finished language model is tested on beyond its validation data."""

import jax
import jax.numpy as jnp
import numpy as np

import arch_jax


def test_a_finished_model_is_tested_at_other_lengths():
    data = arch_jax.InductionHeads(length=8, symbols=5, batch=4, validation=4, tested=(8, 12), tested_sequences=6)
    model = arch_jax.create("gpt", vocabulary=5, depth=1, width=16, mixer={"module": "gru"}, feed_forward=None)
    task = arch_jax.objective("next_token").with_model(model)
    corpus = data.load()
    variables = jax.jit(task.init)(jax.random.key(0), jax.tree.map(jnp.asarray, next(iter(corpus.validation()))))
    found = task.measure(variables, corpus)
    assert set(found) == {f"{metric}_at_{n}" for metric in ("loss", "accuracy") for n in (8, 12)}

    tokens, targets = [], []
    for batch in corpus.elsewhere["at_12"].validation():
        real = batch["weights"][:, -1] > 0
        tokens.append(batch["tokens"][real])
        targets.append(batch["targets"][real, -1])
    logits = jax.jit(model.apply)(variables, np.concatenate(tokens))[:, -1]
    right = np.argmax(logits, axis=-1) == np.concatenate(targets)
    assert len(right) == 6
    np.testing.assert_allclose(found["accuracy_at_12"], right.mean(), rtol=1e-6)
    nats = -jax.nn.log_softmax(logits)[jnp.arange(6), np.concatenate(targets)].mean()
    np.testing.assert_allclose(found["loss_at_12"], nats, rtol=1e-5)


def test_data_of_one_kind_only_gives_no_more_figures():
    corpus = arch_jax.Repeats(symbols=4, stretch=3, batch=2, validation=2).load()
    assert arch_jax.objective("next_token").with_model(arch_jax.create("gpt")).measure({}, corpus) == {}


def test_how_far_back_the_gradient_reaches():
    """Against a Jacobian in the embedded tokens, written out for a model whose embedding stands apart."""
    data = arch_jax.CopyMemory(delay=3, copied=2, symbols=3, batch=3, validation=3)
    model = arch_jax.create("gpt", vocabulary=5, depth=1, width=6, mixer={"module": "gru"}, feed_forward=None)
    task = arch_jax.objective("next_token", prompt="!", show_length=2, show_reach=True).with_model(model)
    corpus = data.load()
    (batch,) = (jax.tree.map(jnp.asarray, one) for one in corpus.validation())
    variables = jax.jit(task.init)(jax.random.key(1), batch)
    figure = task.draw(variables, corpus, jax.random.key(0))["gradient"]
    drawn = {line.get_label(): line.get_ydata() for line in figure.axes[0].lines}
    assert drawn["trained"].shape == drawn["freshly initialised"].shape == (7,)

    # A table with a row of its own for each place makes the rows' gradients those of the embedded tokens.
    vectors = variables["params"]["embedding"]["embedding"][batch["tokens"]]
    bound = model.bind(variables)

    def nats(x, last):
        x, _ = bound.stack(x[None], None, None, False)
        return -jax.nn.log_softmax(bound.embedding.attend(bound.final_norm(x))[0, -1])[last]

    gradients = jax.jit(jax.vmap(jax.grad(nats)))(vectors, batch["targets"][:, -1])
    expected = jnp.linalg.norm(gradients, axis=-1).mean(axis=0)[::-1]
    np.testing.assert_allclose(drawn["trained"], expected, rtol=1e-4)
