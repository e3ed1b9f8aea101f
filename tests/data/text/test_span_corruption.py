"""Span corruption: lengths as T5 counts them, spans as it draws them, and the text comes back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arch_jax.data import Spans
from arch_jax.data.text.span_corruption import corrupt_spans, noise_counts, noise_mask, restore, span_lengths
from arch_jax.errors import UsageError


def test_lengths_are_those_of_the_paper():
    # Section 3.1.2 packs 512 tokens; its code then takes 568 of the text, and targets have 114.
    assert span_lengths(512, 0.15, 3.0) == (568, 114)
    assert noise_counts(568, 0.15, 3.0) == (85, 28)


@given(places=st.integers(4, 300), density=st.floats(0.05, 0.6), mean_span=st.floats(1.0, 6.0))
@settings(max_examples=60, deadline=None)
def test_the_corrupted_text_fills_its_places_and_comes_back(places, density, mean_span):
    tokens, target_places = span_lengths(places, density, mean_span)
    noise, spans = noise_counts(tokens, density, mean_span)
    mask = noise_mask(np.random.default_rng(0), tokens, density, mean_span)
    text = np.random.default_rng(1).integers(0, 50, tokens).astype(np.int32)
    source, target = corrupt_spans(text, mask, 1000)
    assert len(source) + 1 <= places
    assert len(target) + 1 == target_places
    assert len(source) == tokens - noise + spans
    assert np.array_equal(restore(source, target, 1000, spans), text)


def test_the_papers_example():
    """Figure 2: "Thank you for inviting me to your party last week", with "for inviting" and "last" corrupted."""
    words = ["Thank", "you", "for", "inviting", "me", "to", "your", "party", "last", "week"]
    mask = np.isin(words, ["for", "inviting", "last"])
    source, target = corrupt_spans(np.arange(10, dtype=np.int32), mask, 99)
    assert source.tolist() == [0, 1, 99, 4, 5, 6, 7, 98, 9]
    assert target.tolist() == [99, 2, 3, 98, 8]


def test_spans_have_fixed_numbers_and_begin_with_kept_tokens():
    masks = [noise_mask(np.random.default_rng(i), 40, 0.15, 3.0) for i in range(300)]
    assert {int(mask.sum()) for mask in masks} == {6}
    starts = [int((mask & ~np.roll(mask, 1)).sum()) for mask in masks]
    assert set(starts) == {2}
    assert not any(mask[0] for mask in masks)
    assert all(mask[-1] for mask in masks)
    # Each of the 5 ways to cut 6 tokens into 2 spans is equally likely.
    first = [int(np.diff(np.flatnonzero(np.diff(np.r_[0, mask, 0])))[0]) for mask in masks]
    assert np.bincount(first, minlength=6)[1:] == pytest.approx(np.full(5, 60), abs=30)


def test_every_batch_gives_back_its_text():
    corpus = Spans(length=40, batch=3).load()
    batch = next(corpus.train(0))
    assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == corpus.shapes
    assert batch["weights"].all()
    text = corpus.data._text.load()
    stream = text.tokenizer.decode(text.train_stream.tokens)
    sentinels = corpus.facts["sentinels"]
    for source, labels in zip(batch["source"], batch["labels"]):
        assert source[-1] == labels[-1] == corpus.stop
        whole = restore(source[:-1], labels[:-1], corpus.vocabulary - 1, sentinels)
        assert len(whole) == corpus.facts["window"]
        assert text.tokenizer.decode(whole) in stream
    assert corpus.decode(labels).startswith("<0>")


def test_decoding_leaves_out_start_and_stop():
    """Ids from the start token on are no text: it and the stop token say nothing, sentinels are numbered."""
    corpus = Spans(length=40, batch=3).load()
    first = corpus.vocabulary - 1
    ids = [corpus.start, ord("A"), first, ord("B"), ord("C"), first - 1, corpus.stop]
    assert corpus.decode(ids) == "A<0>BC<1>"


def test_spans_are_new_in_training_and_fixed_in_validation():
    corpus = Spans(length=40, batch=3).load()
    iterator = corpus.train(0)
    assert not np.array_equal(next(iterator)["source"], next(iterator)["source"])
    again = Spans(length=40, batch=3).load()
    for one, other in zip(corpus.validation(), again.validation()):
        assert np.array_equal(one["labels"], other["labels"])
    held_out = Spans(length=40, batch=3).load().held_out
    assert len(held_out) == corpus.facts["validation_tokens"] // corpus.facts["window"]


def test_wrong_fields(write):
    with pytest.raises(UsageError, match=r"density is 1.0; expected a fraction between 0 and 1"):
        Spans(density=1.0)
    with pytest.raises(UsageError, match=r"mean_span is 0.5; expected at least 1 token"):
        Spans(mean_span=0.5)
    with pytest.raises(UsageError, match="unknown tokenizer 'byte'"):
        Spans(tokenizer="byte")
    path = write("small.txt", "a line of text here\n" * 40)
    with pytest.raises(UsageError, match="and a window has"):
        Spans(source=f"text:{path}", length=100, batch=1).load()
