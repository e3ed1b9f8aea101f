"""Masked tokens: what is chosen, what it becomes, both losses however a batch is cut, the ideal's excess."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import arch_jax
from arch_jax.data import Markov, SentencePairs
from arch_jax.objectives.masked_token import choose_tokens, corrupt_tokens


def loss_of(it, *given):
    """The loss, compiled whole: op by op, every small operation would be compiled on its own."""
    player, *rest = given
    return jax.jit(it.loss, static_argnums=(0, 1))(player, "main", *rest, 0)


def evaluated(it, *given):
    """The evaluation, compiled whole."""
    return jax.jit(it.evaluate)(*given)


def corrupted(it, *given):
    """What the model sees and what is chosen, compiled whole."""
    return jax.jit(it.corrupted)(*given)


class Table(nn.Module):
    """Stands in for an encoder: logits of each token by itself, and of the next sentence by the mean of its tokens."""

    vocabulary: int = 12
    following: bool = True

    @nn.compact
    def __call__(self, tokens, types=None, mask=None, train=False):
        hidden = nn.Embed(self.vocabulary, 6)(tokens)
        out = {"hidden": hidden, "logits": nn.Dense(self.vocabulary)(hidden)}
        mask = jnp.ones(tokens.shape) if mask is None else mask
        pooled = jnp.sum(hidden * mask[..., None], axis=1) / jnp.maximum(mask.sum(1, keepdims=True), 1)
        return out | ({"next": nn.Dense(2)(pooled)} if self.following else {})


def task(model=None, **fields):
    return arch_jax.objective("masked_token", **fields).with_model(model or Table())


def batch(rows=6, time=20, seed=0, padded=0, following=True):
    draw = np.random.default_rng(seed)
    found = {
        "tokens": jnp.asarray(draw.integers(0, 11, (rows, time)), jnp.int32),
        "types": jnp.zeros((rows, time), jnp.int32),
        "mask": jnp.asarray(np.arange(time) < time - padded * (np.arange(rows) % 2)[:, None]),
        "weights": jnp.ones(rows),
    }
    return found | ({"next": jnp.asarray(draw.integers(0, 2, rows), jnp.int32)} if following else {})


def value(pair):
    return float(pair[0]) / float(pair[1])


def test_eighty_ten_ten():
    tokens = jnp.full((400, 500), 3, jnp.int32)

    @jax.jit
    def drawn(tokens):
        chosen = choose_tokens(jax.random.key(0), jnp.ones(tokens.shape, bool), 0.15)
        return chosen, corrupt_tokens(jax.random.key(1), tokens, chosen, 9, np.arange(5))

    chosen, seen = map(np.asarray, drawn(tokens))
    tokens = np.asarray(tokens)
    assert float(chosen.mean()) == pytest.approx(0.15, abs=0.003)
    assert bool((seen == tokens)[~chosen].all())
    of_chosen = seen[chosen]
    # A random token is the true one once in five.
    assert np.mean(of_chosen == 9) == pytest.approx(0.8, abs=0.01)
    assert np.mean(of_chosen == 3) == pytest.approx(0.1 + 0.1 / 5, abs=0.01)
    for token in (0, 1, 2, 4):
        assert np.mean(of_chosen == token) == pytest.approx(0.1 / 5, abs=0.005)
    assert set(np.unique(of_chosen)) == {0, 1, 2, 3, 4, 9}


def test_counts_choose_every_set_alike():
    candidates = np.tile([True, True, False, True, True], (3000, 1))
    choose = jax.jit(choose_tokens, static_argnums=2)
    chosen = np.asarray(choose(jax.random.key(0), candidates, 0.5, np.full(3000, 2)))
    assert set(np.asarray(chosen.sum(1))) == {2}
    assert not bool(chosen[:, 2].any())
    pairs, counts = np.unique(np.asarray(chosen), axis=0, return_counts=True)
    assert len(pairs) == 6
    assert counts == pytest.approx(np.full(6, 500), abs=100)
    few = np.asarray(choose(jax.random.key(0), candidates, 0.5, np.full(3000, 9)))
    assert set(np.asarray(few.sum(1))) == {4}


def test_bert_counts_are_shares_of_the_real_tokens():
    """max(1, round(0.15 * real)), of tokens that are neither padding nor special."""
    it = task(share=0.15, special=(0, -2))
    given = batch(rows=8, time=40, padded=33)
    given["weights"] = given["weights"].at[7].set(0)
    seen, chosen = map(np.asarray, corrupted(it, given, jax.random.key(3)))
    given = jax.tree.map(np.asarray, given)
    assert chosen.sum(1).tolist() == [6, 1, 6, 1, 6, 1, 6, 0]
    assert not bool((chosen & ~given["mask"]).any())
    for token in (0, 10, 11):
        assert not bool((chosen & (given["tokens"] == token)).any())
    changed = seen[chosen & (seen != given["tokens"])]
    assert not {0, 10} & set(changed.tolist())


def test_the_loss_is_both_means():
    it, given = task(), batch()
    variables = jax.jit(it.init)(jax.random.key(0), given)
    key = jax.random.key(5)
    (total, weight), (metrics, _) = loss_of(it, "model", variables, given, key)
    seen, chosen = corrupted(it, given, jax.random.split(key)[0])
    out = jax.jit(it.model.apply)(variables, seen, None, given["mask"])
    likely = {name: jax.device_get(jax.nn.log_softmax(out[name])) for name in ("logits", "next")}
    each = np.take_along_axis(likely["logits"], np.asarray(given["tokens"])[..., None], -1)[..., 0]
    masked = -np.mean(each[np.asarray(chosen)])
    following = -np.mean(likely["next"][np.arange(6), np.asarray(given["next"])])
    assert float(weight) == 18
    assert float(total / weight) == pytest.approx(float(masked + following), rel=1e-5)
    assert value(metrics["masked_loss"]) == pytest.approx(float(masked), rel=1e-5)
    assert value(metrics["next_loss"]) == pytest.approx(float(following), rel=1e-5)
    (alone, _), (names, _) = loss_of(task(), "model", variables, batch(following=False), key)
    assert float(alone / weight) == pytest.approx(float(masked), rel=1e-5)
    assert set(names) == {"loss"}


def test_the_gradient_is_the_same_however_the_batch_is_cut():
    """Sums and weights of parts add up to those of the whole, though parts have different shares of padding."""
    it, given = task(), batch(padded=7)
    variables = jax.jit(it.init)(jax.random.key(0), given)
    chosen = corrupted(it, given, jax.random.key(1))[1]

    @jax.jit
    @jax.vmap
    def part(kept):
        def pair(params):
            out = it.model.apply({"params": params}, given["tokens"], None, given["mask"])
            return it._metrics(out, {**given, "weights": kept}, chosen)["loss"]

        return jax.grad(pair, has_aux=True)(variables["params"])

    cuts = jnp.array([[1, 1, 1, 1, 1, 1], [1, 0, 0, 0, 0, 0], [0, 1, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1]], jnp.float32)
    gradients, weights = part(cuts)
    assert float(weights[0]) == float(weights[1:].sum()) == 15
    for leaf in jax.tree.leaves(gradients):
        np.testing.assert_allclose(leaf[0], leaf[1:].sum(0), rtol=1e-4, atol=1e-5)


def test_padding_and_rows_without_weight_do_not_count():
    it, given = task(Table(following=False)), batch(padded=5, following=False)
    variables = jax.jit(it.init)(jax.random.key(0), given)
    given["weights"] = given["weights"].at[2].set(0)
    pair, _ = loss_of(it, "model", variables, given, jax.random.key(1))
    other = {**given, "tokens": given["tokens"].at[2].set(7).at[1, -5:].set(4)}
    again, _ = loss_of(it, "model", variables, other, jax.random.key(1))
    assert (float(pair[0]), float(pair[1])) == (float(again[0]), float(again[1]))
    assert float(pair[1]) == 3 + 2 + 2 + 3 + 2


def test_training_corrupts_anew_and_evaluation_does_not():
    it, given = task(), batch()
    variables = jax.jit(it.init)(jax.random.key(0), given)
    losses = {float(loss_of(it, "model", variables, given, jax.random.key(i))[0][0]) for i in range(4)}
    assert len(losses) == 4
    # Once compiled and once not: two calls of one program would be alike whatever it did when it was traced.
    again = float(it.evaluate(variables, jax.tree.map(jnp.asarray, given))["loss"][0])
    assert float(evaluated(it, variables, given)["loss"][0]) == pytest.approx(again, rel=1e-6)
    fixed = jax.jit(lambda b: it.corrupted(b, it.fixed_key(b))[1])
    assert not np.array_equal(fixed(given), fixed(batch(seed=1)))


def test_a_text_that_has_no_mask_of_its_own():
    """Text's windows: weights a token, segment ids in the place of the mask."""
    data = arch_jax.Text(length=16, batch=4).load()
    it = task(Table(vocabulary=257))
    it.check(data)
    given = next(data.train(0))
    variables = jax.jit(it.init)(jax.random.key(0), given)
    pair, _ = loss_of(it, "model", variables, given, jax.random.key(1))
    assert float(pair[1]) in (7, 8)  # 2 a row, less where the last target is another document's
    assert "[MASK]" in it.draw(variables, data, jax.random.key(0))["text"]


class Knowing(nn.Module):
    """The ideal predictor of a chain, for tokens corrupted as BERT's are; `sure` scales its logits."""

    states: int
    sure: float = 1.0

    @property
    def vocabulary(self):
        return self.states + 1

    @nn.compact
    def __call__(self, tokens, types=None, mask=None, train=False):
        self.param("unused", nn.initializers.zeros, ())
        corpus = Markov(states=self.states, validation=64).load()
        shape = jax.ShapeDtypeStruct((*tokens.shape, self.states), jnp.float32)
        ideal = lambda t: corpus.ideal(np.asarray(t), 0.15, 0.8, 0.1).astype(np.float32)
        known = self.sure * jax.pure_callback(ideal, shape, tokens)
        return {"logits": jnp.pad(known, ((0, 0), (0, 0), (0, 1)), constant_values=-1e9)}


def test_the_ideal_predictor_has_no_excess():
    data = Markov(states=4, validation=64).load()
    it = task(Knowing(4), selection="independent")
    it.check(data)
    score = it.measure({"params": {"unused": jnp.zeros(())}}, data)
    assert score["excess"] == pytest.approx(0, abs=1e-5)
    # It reckons with corrupted neighbours where there are none: a fraction of a percent.
    assert abs(score["last_excess"]) < 0.02
    found = [evaluated(it, {"params": {"unused": jnp.zeros(())}}, b)["loss"] for b in data.validation()]
    assert sum(float(t) for t, _ in found) / sum(float(w) for _, w in found) == pytest.approx(
        score["ideal_loss"], rel=1e-4
    )
    worse = task(Knowing(4, sure=0.2), selection="independent").measure({"params": {"unused": jnp.zeros(())}}, data)
    assert worse["excess"] > 0.02
    assert worse["last_excess"] > 0.02
    # Where tokens are chosen by count, that predictor is not the ideal one.
    assert task(Knowing(4)).measure({"params": {"unused": jnp.zeros(())}}, data) == {}
    assert task().measure({}, arch_jax.Text(length=16, batch=4).load()) == {}


def test_wrong_settings_and_data_that_does_not_fit():
    with pytest.raises(arch_jax.UsageError, match=r"share is 0.0; expected more than 0"):
        task(share=0.0)
    with pytest.raises(arch_jax.UsageError, match=r"masked is 0.9 and random 0.2, together more than 1"):
        task(masked=0.9, random=0.2)
    text = arch_jax.Text(length=16, batch=4).load()
    with pytest.raises(arch_jax.UsageError, match=r"set model.vocabulary=257"):
        task(Table(256)).check(text)
    with pytest.raises(arch_jax.UsageError, match=r"objective.mask_token is 3, which the tokenizer uses"):
        task(Table(257), mask_token=3).check(text)
    with pytest.raises(arch_jax.UsageError, match="special token 300 is outside the model's vocabulary of 257"):
        task(Table(257), special=(300,)).check(text)
    sentences = SentencePairs(tokenizer="bytes", length=16, batch=4).load()
    with pytest.raises(arch_jax.UsageError, match=r"set objective.mask_token=258"):
        task(Table(300)).check(sentences)
    task(Table(259), special=(-3, -2)).check(sentences)
    with pytest.raises(arch_jax.UsageError, match="takes token sequences, and the data has x"):
        task().check(arch_jax.Ring().load())
