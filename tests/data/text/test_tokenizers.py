import json
import subprocess
import sys

import jaxtyping
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from arch_jax.data.text import bpe, tokenizers
from arch_jax.errors import UsageError

# A value of a wrong type is refused by a sentence, or before that by the type checker where it is on.
REFUSED = (UsageError, jaxtyping.TypeCheckError)

CORPUS = ("To be, or not to be: that is the question.\n" * 4, "Whether 'tis nobler — naïve ☃ 🐍\n" * 4)
NAMES = ("bytes", "characters", "bpe:300")


@pytest.fixture(scope="module")
def by_name(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ARCH_JAX_DATA", str(tmp_path_factory.mktemp("tokenizers")))
        return {name: tokenizers.tokenizer(name, CORPUS) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_text_comes_back_and_byte_lengths_add_up(by_name, name):
    tokenizer = by_name[name]
    assert tokenizer.name == name
    for text in (*CORPUS, ""):
        ids = tokenizer.encode(text)
        assert ids.dtype == np.int32
        assert ids.ndim == 1
        assert tokenizer.decode(ids) == text
        assert tokenizer.byte_lengths[ids].sum() == len(text.encode())
    assert tokenizer.byte_lengths.shape == (tokenizer.vocabulary,)
    assert tokenizer.byte_lengths.dtype == np.int32
    many = tokenizer.encode_all(CORPUS)
    assert [ids.tolist() for ids in many] == [tokenizer.encode(text).tolist() for text in CORPUS]


def test_what_a_run_cut_and_padded_to_is_not_the_tokenizer(by_name):
    plain = by_name["bpe:300"]
    content = plain.to_json()["tokenizer"]
    cut = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    padded = {"strategy": {"Fixed": 99}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0}
    padded |= {"pad_type_id": 0, "pad_token": "!"}
    again = bpe.BytePairTokenizer(300, content | {"truncation": cut, "padding": padded})
    assert [ids.tolist() for ids in again.encode_all(CORPUS)] == [ids.tolist() for ids in plain.encode_all(CORPUS)]


@pytest.mark.parametrize("name", ["bytes", "bpe:300"])
@settings(max_examples=60, deadline=None)
@given(text=st.text())
@example(text="\x00\x7f\x80\xad\xff\u0100\u0143 \ufffd\U0010ffff\r\n")
def test_any_text_comes_back_and_byte_lengths_add_up(by_name, name, text):
    tokenizer = by_name[name]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.byte_lengths[ids].sum() == len(text.encode())
    assert not len(ids) or (ids.min() >= 0 and ids.max() < tokenizer.vocabulary)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None)
@given(ids=st.lists(st.integers(-5, 700)))
def test_any_ids_decode(by_name, name, ids):
    text = by_name[name].decode(np.array(ids, np.int64))
    assert isinstance(text, str)
    text.encode()
    if not set(ids) <= set(range(by_name[name].vocabulary)):
        assert "\ufffd" in text


def test_what_is_not_utf8_decodes_to_the_replacement_character(by_name):
    assert by_name["bytes"].decode([72, 255, 105]) == "H\ufffdi"
    assert by_name["bytes"].decode([0xE2, 0x98, 0x83]) == "☃"
    assert by_name["bytes"].decode(np.array([[72], [105]])) == "Hi"
    assert by_name["characters"].decode([99999]) == "\ufffd"


def test_the_byte_tokenizer_is_utf8(by_name):
    assert by_name["bytes"].vocabulary == 256
    assert by_name["bytes"].encode("aé").tolist() == [97, 0xC3, 0xA9]
    assert set(by_name["bytes"].byte_lengths.tolist()) == {1}


def test_characters_are_those_of_the_whole_corpus_sorted():
    tokenizer = tokenizers.tokenizer("characters", ["hello", "wörld"], ["hello"])
    assert tokenizer.characters == "dehlorwö"
    assert tokenizer.encode("dö").tolist() == [0, 7]
    assert tokenizer.byte_lengths.tolist() == [1] * 7 + [2]


@pytest.mark.parametrize(
    ("text", "shown"), [("hellX", "'X' at position 4"), ("~", "'~' at position 0"), ("h\ud800", "position 1")]
)
def test_a_character_outside_the_vocabulary_is_named(text, shown):
    tokenizer = tokenizers.tokenizer("characters", ["hello", "wörld"])
    with pytest.raises(UsageError) as caught:
        tokenizer.encode(text)
    assert shown in str(caught.value)
    assert "8 characters" in str(caught.value)


@pytest.mark.parametrize("name", ["bytes", "bpe:300"])
def test_half_a_surrogate_pair_is_named(by_name, name):
    with pytest.raises(UsageError, match=r"'\\ud800' at position 2 is half a surrogate pair"):
        by_name[name].encode("ok\ud800")


@pytest.mark.parametrize("name", NAMES)
def test_json_gives_an_equal_tokenizer(by_name, name, empty_folder):
    tokenizer = by_name[name]
    copy = tokenizers.tokenizer_from_json(json.loads(json.dumps(tokenizer.to_json())))
    assert copy == tokenizer
    assert hash(copy) == hash(tokenizer)
    assert (copy.name, copy.vocabulary) == (tokenizer.name, tokenizer.vocabulary)
    assert copy.encode(CORPUS[1]).tolist() == tokenizer.encode(CORPUS[1]).tolist()
    assert copy.token_bytes == tokenizer.token_bytes
    assert not empty_folder.exists(), "the tokenizer of a run must not need the data folder"
    assert all((tokenizer == other) == (name == other.name) for other in by_name.values())


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({}, "unknown kind of tokenizer 'None'"),
        ([], "unknown kind of tokenizer 'None'"),
        ({"kind": "byte"}, "unknown kind of tokenizer 'byte'; the nearest are 'bytes'"),
        ({"kind": "characters"}, "does not describe a tokenizer of kind 'characters'"),
        ({"kind": "characters", "characters": 3}, "does not describe a tokenizer of kind 'characters'"),
        ({"kind": "bpe", "size": 300}, "does not describe a tokenizer of kind 'bpe'"),
        ({"kind": "bpe", "size": 300, "tokenizer": {"version": "1.0"}}, "is not a tokenizer.json"),
    ],
)
def test_json_of_something_else_is_one_sentence(content, says):
    with pytest.raises(REFUSED) as caught:
        tokenizers.tokenizer_from_json(content)
    assert says in str(caught.value) or not isinstance(caught.value, UsageError)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("byte", "unknown tokenizer 'byte'; the nearest is 'bytes'"),
        ("chars", "'characters'"),
        ("bpe", "'bpe:SIZE'"),
        ("bpe:", "needs a size after 'bpe:'"),
        ("bpe:1k", "needs a size after 'bpe:'"),
        ("bpe:-300", "needs a size after 'bpe:'"),
        ("bpe:256", "expected at least 257"),
        (None, "not None"),
    ],
)
def test_a_wrong_name_is_one_sentence(name, says):
    with pytest.raises(REFUSED) as caught:
        tokenizers.tokenizer(name, CORPUS)
    assert says in str(caught.value) or not isinstance(caught.value, UsageError)


def test_bpe_merges_what_the_training_text_repeats(empty_folder):
    tokenizer = tokenizers.tokenizer("bpe:270", ["zzzzzz"], ["banana banana banana banana"])
    assert tokenizer.vocabulary <= 270
    assert {b"an", b" banana"} <= set(tokenizer.token_bytes)
    assert b"zz" not in tokenizer.token_bytes, "trained on more than the training text"
    assert len(tokenizer.encode(" banana")) == 1
    assert set(tokenizer.token_bytes) >= {bytes([byte]) for byte in range(256)}
    assert tokenizers.tokenizer("bpe:257", ["banana banana"]).vocabulary == 257


def test_bpe_is_trained_once_for_a_text_and_a_size(empty_folder, monkeypatch):
    trainings = []
    train = bpe._train
    monkeypatch.setattr(bpe, "_train", lambda *given: trainings.append(given) or train(*given))
    first = tokenizers.tokenizer("bpe:270", CORPUS)
    assert tokenizers.tokenizer("bpe:270", list(CORPUS)) == first
    assert len(trainings) == 1
    for texts, size in ((CORPUS, 271), (CORPUS[:1], 270), ((CORPUS[0] + CORPUS[1],), 270)):
        tokenizers.tokenizer(f"bpe:{size}", texts)
    assert len(trainings) == 4

    (cached,) = [file for file in empty_folder.glob("tokenizers/bpe-271-*.json")]
    whole = cached.read_bytes()
    cached.write_bytes(whole[: len(whole) // 2])  # a damaged file is trained anew, and mended
    tokenizers.tokenizer("bpe:271", CORPUS)
    assert len(trainings) == 5
    assert cached.read_bytes() == whole


def test_bpe_caches_elsewhere_where_the_data_folder_is_read_only(empty_folder, tmp_path):
    empty_folder.mkdir()
    empty_folder.chmod(0o555)
    try:
        tokenizers.tokenizer("bpe:270", CORPUS)
        assert not any(empty_folder.iterdir())
        assert [*(tmp_path / "cache").rglob("bpe-270-*.json")]
    finally:
        empty_folder.chmod(0o755)


def test_processes_that_start_together_agree(empty_folder):
    """Two processes, one cache: both get the same tokenizer, and training is deterministic."""
    program = """
import hashlib, json
from pydoc_data.topics import topics
from arch_jax.data.text import tokenizers
made = tokenizers.tokenizer("bpe:600", [topics[name] for name in sorted(topics)][:30])
print(hashlib.sha256(json.dumps(made.to_json()).encode()).hexdigest())
"""
    from arch_jax.data import documents

    started = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = {process.communicate(timeout=60)[0] for process in started}
    assert [process.returncode for process in started] == [0, 0]
    assert len(printed) == 1
    assert len([*empty_folder.glob("tokenizers/*.json")]) == 1
    (cached,) = empty_folder.glob("tokenizers/*.json")
    assert json.loads(cached.read_bytes()) == bpe._train(documents("pydocs").texts[:30], 600)
