"""Tokenizers from tokenizer.json: each kind of model, its special tokens, and files that are none."""

import json

import pytest
import tokenizers

import arch_jax
from arch_jax.errors import RunError, UsageError

TEXT = "the cat sat on the mat"


def word_piece():
    vocabulary = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "the": 3, "cat": 4, "s": 5, "##at": 6, "on": 7, "m": 8}
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.decoder = tokenizers.decoders.WordPiece()
    made.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return made


def unigram():
    made = tokenizers.Tokenizer(
        tokenizers.models.Unigram([("<unk>", 0.0), *((f"▁{w}", -1.0) for w in TEXT.split())], 0)
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    made.decoder = tokenizers.decoders.Metaspace()
    return made


@pytest.mark.parametrize("made", [word_piece, unigram])
def test_it_reads_what_the_library_wrote(made, tmp_path):
    original = made()
    original.save(str(tmp_path / "tokenizer.json"))
    found = arch_jax.load_tokenizer(tmp_path)
    assert found.encode(TEXT).ids == original.encode(TEXT).ids
    assert found.decode(found.encode(TEXT, add_special_tokens=False).ids) == TEXT
    if made is word_piece:
        pair = found.encode("the cat", "on")
        assert pair.ids == [1, 3, 4, 2, 7, 2]
        assert pair.type_ids == [0, 0, 0, 0, 1, 1]


def test_what_a_run_cut_and_padded_to_is_not_the_tokenizer(tmp_path):
    original = word_piece()
    expected = [one.ids for one in original.encode_batch([TEXT, "the cat"])]
    original.enable_truncation(4)
    original.enable_padding(length=16)
    original.save(str(tmp_path / "tokenizer.json"))
    stored = json.loads((tmp_path / "tokenizer.json").read_text())
    assert stored["truncation"]["max_length"] == 4
    assert stored["padding"]["strategy"] == {"Fixed": 16}
    found = arch_jax.load_tokenizer(tmp_path)
    assert [one.ids for one in found.encode_batch([TEXT, "the cat"])] == expected
    found.enable_truncation(4)
    assert len(found.encode(TEXT).ids) == 4


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        ({}, UsageError, "has no tokenizer.json$"),
        ({"vocab.txt": "a"}, UsageError, "has no tokenizer.json; it has 'vocab.txt', from which transformers'"),
        ({"tokenizer.json": "{"}, RunError, "tokenizer.json is not valid JSON"),
        ({"tokenizer.json": json.dumps({"model": {"type": "none"}})}, RunError, "is not a tokenizer"),
    ],
)
def test_what_is_no_tokenizer(files, error, message, tmp_path):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(error, match=message):
        arch_jax.load_tokenizer(tmp_path)
    with pytest.raises(UsageError, match="is not a folder"):
        arch_jax.load_tokenizer(tmp_path / "nowhere")
