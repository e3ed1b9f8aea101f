"""Recurrent encoder-decoders: one decoder for training and writing, padding without trace, attention, copying."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import arch_jax
from arch_jax import registry
from arch_jax.errors import UsageError
from arch_jax.layers.seq2seq.cells import GRUCells, LSTMCells
from arch_jax.layers.seq2seq.encoder_decoder import reversed_tokens
from arch_jax.layers.seq2seq.scores import AdditiveAttention, LocalAttention, LuongAttention
from arch_jax.sampling import beam_search

NAMES = ("sutskever", "cho", "bahdanau", "luong", "pointer-generator")
ATTENDING = ("bahdanau", "luong", "pointer-generator")
SOURCE, TIME = 7, 6
#: Cho's is read as Sutskever's is, and Luong's as Bahdanau's; the contract of models is all of theirs.
every = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.thorough] * (name in ("cho", "luong"))) for name in NAMES]
)


@functools.cache
def made(name):
    """(module, random variables, source, target, mask)."""
    module = registry.entry(name).tiny()
    rng = np.random.default_rng(0)
    source, target = (jnp.asarray(rng.integers(0, 28, (3, n)), jnp.int32) for n in (SOURCE, TIME))
    mask = jnp.arange(SOURCE) < jnp.array([[7], [4], [5]])
    shapes = jax.eval_shape(module.init, jax.random.key(0), source, target, mask)
    drawn = jax.tree.map(lambda p: jnp.asarray(0.5 * rng.normal(size=p.shape), p.dtype), shapes)
    return module, drawn, source, target, mask


@functools.cache
def apply(name):
    """Compiled once for all tests: (variables, source, target, mask) -> (logits, what was sown)."""
    return jax.jit(functools.partial(made(name)[0].apply, mutable=["outputs"]))


@functools.cache
def whole(name):
    return np.asarray(apply(name)(*made(name)[1:])[0])


@functools.cache
def attention(name):
    return jax.jit(functools.partial(made(name)[0].apply, method="attention"))


@functools.cache
def begun(name):
    module, variables, source, _, mask = made(name)

    @jax.jit
    def begin(variables):
        memory = module.apply(variables, source, mask, method="encode")
        return module.apply(variables, memory, mask, TIME, method="start")

    return begin(variables)


@every
def test_decoding_in_any_chunks_is_the_whole(name):
    module, variables, _, target, _ = made(name)
    decode = jax.jit(functools.partial(module.apply, method="decode"))
    state, start, out = begun(name), 0, []
    for length in (1, 1, 3, 1):
        logits, state = decode(variables, np.asarray(target)[:, start : start + length], state)
        start += length
        out.append(logits)
    np.testing.assert_allclose(np.concatenate(out, axis=1), whole(name), atol=2e-6, rtol=1e-5)
    np.testing.assert_array_equal(state.written, TIME)
    assert all(leaf.shape[0] == 3 for leaf in jax.tree.leaves(state)), "rows are what beam search takes"


@every
def test_padding_of_the_source_leaves_no_trace(name):
    module, variables, source, target, mask = made(name)
    alone = jax.jit(module.apply)(variables, np.asarray(source)[1:2, :4], np.asarray(target)[1:2])
    np.testing.assert_allclose(whole(name)[1:2], alone, atol=2e-6, rtol=1e-5)
    other, _ = apply(name)(variables, np.where(mask, source, 9), target, mask)
    np.testing.assert_array_equal(other, whole(name))


@every
def test_targets_do_not_look_ahead(name):
    """The Jacobian of the logits in the word vectors: nothing of a later word, something of each one before."""
    module, variables, *_ = made(name)
    state = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)[:1]), begun(name))
    target = jnp.arange(TIME)[None]  # a row of the table for each place

    def logits(rows):
        table = variables["params"]["target_words"]["embedding"].at[:TIME].set(rows)
        params = variables["params"] | {"target_words": {"embedding": table}}
        return module.apply({"params": params}, target, state, method="decode")[0][0]

    rows = variables["params"]["target_words"]["embedding"][:TIME]
    size = np.abs(jax.jit(jax.jacrev(logits))(rows)).max(axis=(1, 3))  # time vocabulary time width
    assert not np.triu(size, 1).any()
    assert (size[np.tril_indices(TIME)] > 0).all()


@every
def test_one_beam_is_greedy_by_hand(name):
    module, variables, source, _, mask = made(name)
    tokens, _ = beam_search(module, variables, source, TIME, source_mask=mask, start=1, stop=None)
    fed = jnp.concatenate([jnp.ones((3, 1), jnp.int32), tokens[:, :-1]], axis=1)
    np.testing.assert_array_equal(jnp.argmax(apply(name)(variables, source, fed, mask)[0], axis=-1), tokens)
    assert len(np.unique(tokens)) > 1, "a search that always gave one token would pass"


@pytest.mark.parametrize("name", ATTENDING)
def test_weights_over_the_source(name):
    *_, mask = made(name)
    weights = attention(name)(*made(name)[1:])
    assert weights.shape == (3, TIME, SOURCE)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-5)
    assert not np.asarray(weights)[np.broadcast_to(~np.asarray(mask)[:, None], weights.shape)].any()
    assert np.asarray(weights)[0].std() > 1e-3, "even weights would tell nothing"
    _, sown = apply(name)(*made(name)[1:])
    np.testing.assert_allclose(sown["outputs"]["weights"], weights, atol=1e-6)


def test_without_attention_there_are_none():
    module, variables, source, target, _ = made("sutskever")
    with pytest.raises(UsageError, match="Sutskever has no attention whose weights could be shown; expected a model"):
        module.apply(variables, source, target, method="attention")


def test_scores_by_an_identity_are_dot_products():
    module, variables, source, target, mask = made("luong")
    params = variables["params"] | {"look": {"kernel": jnp.eye(16)}}
    dot = module.clone(score=LuongAttention("dot"))
    without = {k: v for k, v in params.items() if k != "look"}
    found = jax.jit(dot.apply)({"params": without}, source, target, mask)
    general, _ = apply("luong")({"params": params}, source, target, mask)
    np.testing.assert_allclose(general, found, atol=2e-6, rtol=1e-5)


def test_a_reversed_source_is_the_source_reversed():
    module, variables, source, target, mask = made("sutskever")
    plain = module.clone(reverse=False)
    turned = reversed_tokens(source, mask)
    assert turned[1].tolist() == [*source[1, :4][::-1].tolist(), *source[1, 4:].tolist()]
    read = jax.jit(plain.apply)
    np.testing.assert_allclose(read(variables, turned, target, mask), whole("sutskever"), atol=1e-5)
    assert jnp.abs(read(variables, source, target, mask) - whole("sutskever")).max() > 0.01


def test_places_are_those_of_the_words_whichever_way_they_are_read():
    """Local attention with a window of 1 around p_t = t sees the words t - 1 to t + 1, by each reading order."""
    module, variables, source, target, mask = made("luong")
    params = {k: v for k, v in variables["params"].items() if k != "look"}
    for reverse in (True, False):
        local = module.clone(score=LocalAttention("dot", alignment="monotonic", window=1), reverse=reverse)
        look = jax.jit(functools.partial(local.apply, method="attention"))
        weights = np.asarray(look({"params": params}, source, target, mask))
        place = np.minimum(np.arange(TIME), np.array([[6], [3], [4]]))
        inside = (np.abs(np.arange(SOURCE) - place[..., None]) <= 1) & np.asarray(mask)[:, None]
        np.testing.assert_array_equal(weights > 0, inside)


def test_what_passes_between_layers_is_dropped_in_training():
    """Inside the decoder's loop: the word vectors are 0 here, so that nothing else can be."""
    module, variables, _, target, _ = made("luong")
    params = variables["params"] | {"target_words": {"embedding": jnp.zeros((32, 16))}}
    dropping = module.clone(dropout=0.5)
    decode = jax.jit(functools.partial(dropping.apply, method="decode"), static_argnums=3)
    some, others = (
        decode({"params": params}, target, begun("luong"), True, rngs={"dropout": jax.random.key(i)})[0] for i in (0, 1)
    )
    assert jnp.abs(some - others).max() > 1e-2
    plain, _ = decode({"params": params}, target, begun("luong"), False)
    assert jnp.abs(some - plain).max() > 1e-2


@every
def test_a_source_is_read_as_in_evaluation_unless_told_otherwise(name):
    """No generator is asked for, and nothing is dropped."""
    module, variables, source, _, mask = made(name)
    read = lambda dropout: jax.jit(
        lambda variables: module.clone(dropout=dropout).apply(variables, source, mask, method="encode")
    )(variables)
    for dropped, whole in zip(jax.tree.leaves(read(0.5)), jax.tree.leaves(read(0.0)), strict=True):
        np.testing.assert_array_equal(dropped, whole)


def test_source_and_target_may_have_words_of_their_own():
    module = made("sutskever")[0].clone(source_vocabulary=40)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *made("sutskever")[2:4])["params"]
    assert shapes["source_words"]["embedding"].shape[0] == 40
    with pytest.raises(UsageError, match="token 45, outside the vocabulary; expected 0 to 39"):
        beam_search(module, {"params": {}}, [[45, 1]], 2, start=0, stop=None)


# The pointer-generator.


def gated(towards):
    """The pointer-generator with p_gen at 0 or 1."""
    module, variables, source, target, mask = made("pointer-generator")
    params = variables["params"]
    gate = {"kernel": jnp.zeros_like(params["gate"]["kernel"]), "bias": jnp.full((1,), towards)}
    return module, {"params": params | {"gate": gate}}, source, target, mask


def test_p_gen_1_is_the_vocabulary_alone():
    module, variables, *arguments = gated(1e4)
    baseline = module.clone(vocabulary=module.known, extra=0, pointer=False)
    params = {k: v for k, v in variables["params"].items() if k != "gate"}
    expected = jax.nn.softmax(jax.jit(baseline.apply)({"params": params}, *arguments))
    found = np.exp(apply("pointer-generator")(variables, *arguments)[0])
    np.testing.assert_allclose(found[..., : module.known], expected, atol=1e-6)
    assert found[..., module.known :].max() < 1e-29


def test_p_gen_0_copies_alone_and_an_unseen_word_is_copied():
    module, variables, source, target, mask = gated(-1e4)
    source = source.at[:, 1].set(30).at[0, 3].set(30)  # a word outside the 28 known ones; twice in the first source
    found = np.exp(apply("pointer-generator")(variables, source, target, mask)[0])
    weights = attention("pointer-generator")(variables, source, target, mask)
    expected = np.einsum("bts,bsv->btv", weights, jax.nn.one_hot(source, module.vocabulary))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert (found[0, :, 30] > np.asarray(weights)[0, :, 1]).all()
    # All attention on that word: it is what is written, and it is read as the unknown word afterwards.
    tokens, _ = beam_search(
        module, variables, jnp.full((1, 3), 30), 4, source_mask=jnp.ones((1, 3), bool), start=1, stop=None
    )
    assert tokens.tolist() == [[30] * 4]
    as_word, as_unknown = (
        apply("pointer-generator")(variables, source, jnp.full_like(target, token), mask)[0] for token in (30, 0)
    )
    np.testing.assert_array_equal(as_word, as_unknown)


def test_probabilities_sum_to_1():
    logits = whole("pointer-generator")
    np.testing.assert_allclose(np.exp(logits).sum(axis=-1), 1, rtol=1e-5)


def test_the_published_sums():
    """See et al., section 5: the baseline's parameters, and what p_gen and coverage add."""
    entry = registry.entry("pointer-generator")
    count = lambda **fields: registry.count(entry.abstract_variables(entry.build().clone(**fields))["params"])
    assert count(vocabulary=50_000, extra=0, pointer=False, coverage=False) == 21_499_600
    assert count(coverage=False) == 21_499_600 + 1_153
    assert count() == 21_499_600 + 1_153 + 512


# Cells.


@pytest.mark.parametrize("cells", [LSTMCells(5), GRUCells(5)], ids=["lstm", "gru"])
def test_cells_from_state_to_state_in_both_directions(cells):
    x = jax.random.normal(jax.random.key(0), (2, 6, 3))
    mask = jnp.arange(6) < jnp.array([[6], [4]])
    turned = reversed_tokens(x, mask)
    shapes = jax.eval_shape(cells.init, jax.random.key(1), x)
    variables = jax.tree.map(lambda p: jax.random.normal(jax.random.key(p.size), p.shape), shapes)

    @jax.jit
    def run(x):
        between = cells.apply(variables, x[:, :3], None, mask[:, :3])
        return (
            cells.apply(variables, x, None, mask),
            between,
            cells.apply(variables, x[:, 3:], between[1], mask[:, 3:]),
            cells.apply(variables, x, None, mask, reverse=True)[0],
            cells.apply(variables, turned, None, mask)[0],
        )

    (out, last), (first, _), (second, after), backward, of_turned = run(x)
    np.testing.assert_allclose(jnp.concatenate([first, second], axis=1), out, atol=1e-6)
    for a, b in zip(after, last):
        np.testing.assert_allclose(a, b, atol=1e-6)
    np.testing.assert_allclose(last[0], jnp.stack([out[0, 5], out[1, 3]]), atol=1e-6)
    assert not np.asarray(out)[1, 4:].any()
    np.testing.assert_allclose(backward, reversed_tokens(of_turned, mask), atol=1e-6)


@every
def test_sequences_of_length_0_and_1(name):
    module, variables, source, target, _ = made(name)
    sizes = (0, 1), (1, 0)
    both = jax.jit(lambda variables: [module.apply(variables, source[:, :n], target[:, :t]) for n, t in sizes])
    for (_, t), logits in zip(sizes, both(variables), strict=True):
        assert logits.shape == (3, t, 32)
        assert np.isfinite(logits).all()


def test_mistakes_are_named():
    state = begun("bahdanau")
    module, variables, _, target, _ = made("bahdanau")
    with pytest.raises(UsageError, match="the state has 3 rows; expected 2, as many as the target has"):
        module.apply(variables, target[:2], state, method="decode")
    with pytest.raises(UsageError, match="Bahdanau was given the state of a Cho; expected its own"):
        module.apply(variables, target, begun("cho"), method="decode")
    cases = [
        (lambda: arch_jax.create("cho", hidden=0), "hidden is 0; expected at least 1"),
        (lambda: arch_jax.create("cho", maxout=0), "maxout is 0; expected at least 1"),
        (lambda: arch_jax.create("cho", rank=0), "rank is 0; expected at least 1, or none"),
        (lambda: arch_jax.create("luong", depth=0), "depth is 0; expected at least 1"),
        (lambda: arch_jax.create("luong", dropout=1.0), "dropout is 1.0; expected"),
        (lambda: arch_jax.create("bahdanau", source_vocabulary=0), "source_vocabulary is 0; expected at least 1"),
        (lambda: arch_jax.create("sutskever", shared=True), r"one table .* 80000 words, .* 160000; expected none"),
        (lambda: arch_jax.create("luong", score="local_atention"), "local_attention"),
        (lambda: LocalAttention(window=0), "window is 0; expected at least 1 word"),
        (lambda: LocalAttention(alignment="predicted"), "the nearest is 'predictive'"),
        (lambda: arch_jax.create("pointer-generator", extra=-1), "extra is -1; expected 0 to 50399"),
        (lambda: arch_jax.create("pointer-generator", unknown=50_000), "unknown is token 50000; expected 0 to 49999"),
        (lambda: arch_jax.create("pointer-generator", shared=False), "copies words: expected shared=true"),
        (lambda: arch_jax.create("pointer-generator", pointer=False), "extra is 400, expected 0"),
    ]
    for call, message in cases:
        with pytest.raises(UsageError, match=message):
            call()


def test_scores_can_be_exchanged():
    """A part has a name: Bahdanau's decoder with a multiplicative score, Luong's with the additive one."""
    additive = {"module": "additive_attention", "hidden": 5}
    for name, score, expected in (
        ("bahdanau", "luong_attention", {"kernel"}),
        ("luong", additive, {"query", "key", "v"}),
    ):
        shrink = {path: value for path, value in registry.entry(name).shrink.items() if not path.startswith("score")}
        module = arch_jax.create(name, **shrink, score=score)
        params = jax.eval_shape(module.init, jax.random.key(0), *made(name)[2:4])["params"]
        assert set(params["look"]) == expected
    assert module.score == AdditiveAttention(hidden=5)
