import itertools
import json

import jaxtyping
import numpy as np
import pytest

from arch_jax.data import Text
from arch_jax.data.text.windows import Stream, ValidationWindows
from arch_jax.errors import UsageError

# A value of a wrong type is refused by a sentence, or before that by the type checker where it is on.
REFUSED = (UsageError, jaxtyping.TypeCheckError)


@pytest.fixture(scope="module")
def corpus():
    return Text(length=64, batch=8).load()


@pytest.fixture
def folder(tmp_path):
    """A corpus of ten documents that share nothing, 1,000 bytes each."""
    for i in range(10):
        lines = [f"document {i} line {line:03d} " + "abcdefghij" * 3 for line in range(25)]
        (tmp_path / f"{i}.txt").write_text("\n".join(lines)[:1000].ljust(1000, "."))
    return f"text:{tmp_path}"


@pytest.fixture
def file(tmp_path):
    """A corpus of a single document, in which each place is recognised by the number that stands there."""
    path = tmp_path / "numbers.txt"
    path.write_text("\n".join(f"{i:07d}" for i in range(1250)))
    return f"text:{path}"


def equal(a, b):
    return a.keys() == b.keys() and all(
        np.array_equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a
    )


def take(iterator, n):
    return list(itertools.islice(iterator, n))


def starts(corpus, batches):
    """Where each window of these batches begins in the stream of a single document of numbered lines."""
    stream = corpus.train_stream.tokens.astype(np.uint8).tobytes()
    return [stream.index(row.astype(np.uint8).tobytes()) for batch in batches for row in batch["tokens"]]


def test_the_defaults_load_and_say_what_they_hold(corpus):
    facts = json.loads(json.dumps(corpus.facts))
    assert facts["source"] == "pydocs"
    assert facts["tokenizer"] == "bytes"
    assert facts["vocabulary"] == 256
    assert len(facts["sha256"]) == 64
    assert facts["documents"] > facts["groups"] > 1
    assert facts["train_tokens"] + facts["validation_tokens"] == facts["bytes"]
    assert facts["validation_bytes"] / facts["bytes"] == pytest.approx(0.1, abs=1e-3)
    assert Text() == Text("pydocs", "bytes", 256, 16, 0.1, "shuffled", 0)


@pytest.mark.parametrize("sampling", ["shuffled", "random"])
def test_a_batch_has_its_shapes_and_is_a_piece_of_the_stream(sampling):
    corpus = Text(length=64, batch=8, sampling=sampling).load()
    stream, document = corpus.train_stream.tokens, corpus.train_stream.document
    pieces = {stream[i : i + 64].tobytes(): i for i in range(len(stream) - 64)}
    for batch in take(corpus.train(0), 5):
        assert {name: (a.shape, a.dtype.name) for name, a in batch.items()} == {
            "tokens": ((8, 64), "int32"),
            "targets": ((8, 64), "int32"),
            "weights": ((8, 64), "float32"),
            "segment_ids": ((8, 64), "int32"),
        }
        for row in range(8):
            i = pieces[batch["tokens"][row].tobytes()]
            assert np.array_equal(batch["targets"][row], stream[i + 1 : i + 65])
            same = document[i : i + 64] == document[i + 1 : i + 65]
            if len(set(document[i : i + 65])) > 1 or same.all():
                assert np.array_equal(batch["weights"][row], same)


def test_windows_know_where_documents_begin():
    stream = Stream.of([np.array(tokens, np.int32) for tokens in ([1, 2, 3], [4], [], [5, 6, 7, 8])], single=False)
    assert len(stream) == 8
    assert stream.predictions == 5
    window = stream.window(1, 5)
    assert window["tokens"].tolist() == [2, 3, 4, 5, 6]
    assert window["targets"].tolist() == [3, 4, 5, 6, 7]
    assert window["segment_ids"].tolist() == [1, 1, 2, 3, 3]
    assert window["weights"].tolist() == [1, 0, 0, 1, 1]
    alone = Stream.of([np.arange(8, dtype=np.int32)], single=True).window(2, 3)
    assert alone["weights"].tolist() == [1, 1, 1]
    assert "segment_ids" not in alone


@pytest.mark.parametrize("sampling", ["shuffled", "random"])
def test_the_seed_determines_the_batches(file, sampling):
    corpus = Text(file, length=16, batch=4, sampling=sampling).load()
    once, again, other = (take(corpus.train(seed), 300) for seed in (3, 3, 4))
    assert all(map(equal, once, again))
    assert not any(map(equal, once, other))
    assert not any(equal(a, b) for a, b in itertools.combinations(once[:80], 2))
    # Seeds in a row share no epochs either: Grain's own shuffle takes epoch e of seed s for epoch 0 of seed s + e.
    epoch = (len(corpus.train_stream) - 16) // 16 // 4
    assert starts(corpus, once[epoch : epoch + 5]) != starts(corpus, other[:5])


def test_shuffled_takes_each_window_once_an_epoch_with_moving_borders(file):
    text = Text(file, length=40, batch=1)
    corpus = text.load()
    windows = (len(corpus.train_stream) - 40) // 40
    found = starts(corpus, take(corpus.train(0), 6 * windows))
    phases, orders = [], set()
    for epoch in np.reshape(found, (6, windows)).tolist():
        phase = min(epoch)
        assert sorted(epoch) == list(range(phase, phase + 40 * windows, 40))
        phases.append(phase)
        orders.add(tuple(start - phase for start in epoch))
    assert len(orders) == 6
    assert len(set(phases)) > 3
    assert all(0 <= phase < 40 for phase in phases)


def test_every_token_is_reached_at_every_place_of_a_window(file):
    """The last token too is a target, whatever the phase is."""
    corpus = Text(file, length=7, batch=1, validation=0.995).load()
    n = len(corpus.train_stream)
    found = starts(corpus, take(corpus.train(1), 3000))
    assert min(found) == 0
    assert max(found) == n - 1 - 7


def test_random_takes_windows_from_all_places_with_replacement(file):
    corpus = Text(file, length=100, batch=50, sampling="random").load()
    found = starts(corpus, take(corpus.train(0), 40))
    n = len(corpus.train_stream) - 100
    assert len({start % 100 for start in found}) == 100
    assert max(found) > 0.98 * n
    assert min(found) < 0.02 * n
    assert np.mean(found) == pytest.approx(n / 2, rel=0.1)


@pytest.mark.parametrize("sampling", ["shuffled", "random"])
@pytest.mark.parametrize("through", [lambda state: state, lambda state: json.loads(json.dumps(state).encode())])
def test_a_restored_iterator_goes_on_exactly(folder, sampling, through):
    corpus = Text(folder, length=50, batch=4, sampling=sampling).load()
    for stop in (0, 1, 17, 100):  # an epoch has 44 batches
        iterator = corpus.train(5)
        take(iterator, stop)
        state = through(iterator.get_state())
        expected = take(iterator, 6)
        restored = Text(folder, length=50, batch=4, sampling=sampling).load().train(5)
        restored.set_state(state)
        assert all(map(equal, take(restored, 6), expected))
        iterator.set_state(state)  # going back, too
        assert equal(next(iterator), expected[0])


@pytest.mark.parametrize("sampling", ["shuffled", "random"])
@pytest.mark.parametrize("count", [2, 4])
def test_the_shards_together_are_the_batch(folder, sampling, count):
    corpus = Text(folder, length=50, batch=8, sampling=sampling).load()
    whole = take(corpus.train(2), 60)
    shards = [take(corpus.train(2, shard=(i, count)), 60) for i in range(count)]
    assert shards[0][0]["tokens"].shape == (8 // count, 50)
    for batch, *parts in zip(whole, *shards):
        assert equal(batch, {name: np.concatenate([part[name] for part in parts]) for name in batch})


@pytest.mark.parametrize(
    ("shard", "says"),
    [
        ((0, 3), "batch 8 cannot be divided among 3 shards; the nearest number that can is 2"),
        ((2, 2), "shard's index is 2; expected a whole number from 0 to 1"),
        ((-1, 2), "shard's index is -1"),
        ((0, 0), "shard's count is 0"),
        (3, "shard is 3; expected (index, count)"),
    ],
)
def test_a_wrong_shard_is_one_sentence(corpus, shard, says):
    with pytest.raises(REFUSED) as caught:
        corpus.train(0, shard=shard)
    assert says in str(caught.value) or not isinstance(caught.value, UsageError)


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, "0"])
def test_a_wrong_seed_is_one_sentence(corpus, seed):
    with pytest.raises(REFUSED) as caught:
        corpus.train(seed)
    says = f"seed is {seed!r}; expected a whole number from 0 to 4294967295"
    assert says in str(caught.value) or not isinstance(caught.value, UsageError)


@pytest.mark.parametrize("batch", [None, 1, 3, 1000])
def test_validation_predicts_each_token_once(corpus, batch):
    batches = corpus.validation(batch)
    read = list(batches)
    assert len(read) == len(batches)
    assert all(map(equal, read, batches)), "a second pass differs"
    assert {a.shape for each in read for a in each.values()} == {(batch or 8, 64)}
    assert {name: a.dtype.name for name, a in read[0].items()} == {
        "tokens": "int32",
        "targets": "int32",
        "weights": "float32",
        "segment_ids": "int32",
        "bytes": "int32",
    }
    stream = corpus.validation_stream
    flat = {name: np.concatenate([each[name].reshape(-1) for each in read]) for name in read[0]}
    used = len(stream) - 1
    assert np.array_equal(flat["tokens"][:used], stream.tokens[:-1])
    assert np.array_equal(flat["targets"][:used], stream.tokens[1:])
    first_of_document = np.flatnonzero(np.diff(stream.document))
    assert np.array_equal(np.flatnonzero(flat["weights"][:used] == 0), first_of_document)
    assert not any(values[used:].any() for values in flat.values())
    assert flat["weights"].sum() == stream.predictions
    assert flat["bytes"].sum() == corpus.facts["validation_bytes"] - 1 - len(first_of_document)


def test_validation_windows_number_their_documents_from_1():
    stream = Stream.of([np.array(tokens, np.int32) for tokens in ([1, 2, 3], [4], [5, 6, 7, 8, 9])], single=False)
    lengths = np.arange(10, dtype=np.int32) * 10
    (batch,) = ValidationWindows(stream, length=3, batch=4, byte_lengths=lengths)
    assert batch["tokens"].tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 0], [0, 0, 0]]
    assert batch["targets"].tolist() == [[2, 3, 4], [5, 6, 7], [8, 9, 0], [0, 0, 0]]
    assert batch["segment_ids"].tolist() == [[1, 1, 1], [1, 2, 2], [1, 1, 0], [0, 0, 0]]
    assert batch["weights"].tolist() == [[1, 1, 0], [0, 1, 1], [1, 1, 0], [0, 0, 0]]
    assert batch["bytes"].tolist() == [[20, 30, 0], [0, 60, 70], [80, 90, 0], [0, 0, 0]]


def test_a_single_document_has_no_segments_and_counts_every_byte(file):
    for tokenizer in ("bytes", "characters", "bpe:300"):
        corpus = Text(file, tokenizer, length=32, batch=4).load()
        assert set(next(corpus.train(0))) == {"tokens", "targets", "weights"}
        read = list(corpus.validation())
        assert set(read[0]) == {"tokens", "targets", "weights", "bytes"}
        first = corpus.tokenizer.byte_lengths[corpus.validation_stream.tokens[0]]
        assert sum(batch["bytes"].sum() for batch in read) == corpus.facts["validation_bytes"] - first
        assert sum(batch["weights"].sum() for batch in read) == len(corpus.validation_stream) - 1


def test_nothing_of_the_documents_is_lost_and_bpe_learns_from_training_text_only(folder):
    from arch_jax.data import documents
    from arch_jax.data.text import splits

    texts = documents(folder).texts
    for tokenizer in ("bytes", "characters", "bpe:290"):
        corpus = Text(folder, tokenizer, length=8, batch=2).load()
        split = splits.split(texts, 0.1)
        assert corpus.tokenizer.decode(corpus.train_stream.tokens) == "".join(split.train)
        assert corpus.tokenizer.decode(corpus.validation_stream.tokens) == "".join(split.validation)
        assert corpus.facts["train_tokens"] == len(corpus.train_stream)
        assert corpus.facts["vocabulary"] == corpus.tokenizer.vocabulary
    from arch_jax.data.text import tokenizers

    assert corpus.tokenizer == tokenizers.tokenizer("bpe:290", split.train)


def test_the_split_seed_decides_what_is_held_out(folder):
    held_out = {
        Text(folder, length=8, batch=2, split_seed=seed).load().validation_stream.tokens.tobytes() for seed in range(6)
    }
    assert len(held_out) > 1


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"batch": 0}, "batch is 0; expected a whole number of at least 1"),
        ({"batch": 2.5}, "batch is 2.5; expected a whole number of at least 1"),
        ({"batch": True}, "batch is True"),
        ({"length": 0}, "length is 0; expected a whole number of at least 1"),
        ({"length": "256"}, "length is '256'"),
        ({"split_seed": -1}, "split_seed is -1; expected a whole number of at least 0"),
        ({"validation": 0.0}, "validation is 0.0; expected a fraction between 0 and 1"),
        ({"validation": 1}, "validation is 1; expected a fraction between 0 and 1"),
        ({"validation": float("nan")}, "validation is nan"),
        ({"validation": "0.1"}, "validation is '0.1'"),
        ({"sampling": "shuffle"}, "unknown sampling 'shuffle'; the nearest is 'shuffled'"),
        ({"sampling": ["random"]}, "unknown sampling \"['random']\""),
        ({"source": "pydoc"}, "unknown source 'pydoc'"),
        ({"tokenizer": "byte"}, "unknown tokenizer 'byte'"),
        ({"tokenizer": "bpe:12"}, "expected at least 257"),
    ],
)
def test_a_wrong_field_is_one_sentence(fields, says):
    with pytest.raises(REFUSED) as caught:
        Text(**fields)
    assert says in str(caught.value) or not isinstance(caught.value, UsageError)


def test_a_wrong_validation_batch_is_one_sentence(corpus):
    with pytest.raises(UsageError, match="batch is 0; expected a whole number of at least 1"):
        corpus.validation(0)


def test_a_corpus_shorter_than_a_batch_says_what_fits(file):
    there = 8 * 1250 - 1 - 1000  # characters, less the validation text's
    with pytest.raises(UsageError) as caught:
        Text(file, length=1000, batch=10).load()
    message = str(caught.value)
    for part in (f"has {there:,} training tokens", "needs 10,001", "at most length 899", "at most batch 8"):
        assert part in message
    assert len(Text(file, length=899, batch=10).load().train_stream) == there
    assert next(Text(file, length=1000, batch=8).load().train(0))["tokens"].shape == (8, 1000)
    with pytest.raises(UsageError, match="expected a larger corpus, or smaller length and batch"):
        Text(file, length=10_000, batch=10_000).load()


def test_a_batch_of_all_there_is_can_be_drawn(file):
    """Exactly as many tokens as one batch needs; longer than an epoch, in one window."""
    for length, batch in ((8998, 1), (4499, 2), (899, 10)):
        corpus = Text(file, length=length, batch=batch).load()
        assert len(corpus.train_stream) >= length * batch + 1
        for read in take(corpus.train(0), 3):
            assert read["tokens"].shape == (batch, length)


def test_a_validation_text_with_nothing_to_predict_is_one_sentence(tmp_path):
    (tmp_path / "short.txt").write_text("first line\nsecond line\n")
    with pytest.raises(UsageError, match=r"validation=0\.02 .* holds out 1 tokens, which leaves nothing to predict"):
        Text(f"text:{tmp_path / 'short.txt'}", length=2, batch=1, validation=0.02).load()
