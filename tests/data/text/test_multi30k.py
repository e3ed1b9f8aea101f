"""Multi30k: the files, their hashes, one vocabulary for both languages, what is dropped and what is not."""

import gzip
import hashlib
import io
import json
import urllib.error
import urllib.request

import numpy as np
import pytest

from arch_jax.data import Multi30k
from arch_jax.data.files import directories
from arch_jax.data.text import multi30k
from arch_jax.errors import RunError, UsageError

ENGLISH = ["A dog runs.", "Two dogs run in the snow.", "A man sits.", "The Man and the dog sit in the deep white snow."]
GERMAN = ["Ein Hund rennt.", "Zwei Hunde rennen im Schnee.", "Ein Mann sitzt.", "Der Mann und der Hund sitzen."]
SIDES = {"en": ENGLISH, "de": GERMAN}


@pytest.fixture
def server(empty_folder, monkeypatch):
    """Stands in for the network, with a corpus of twelve times four lines."""
    contents, hashes, asked = {}, {}, []
    for part, times in (("train", 12), ("val", 1), ("test_2016_flickr", 1)):
        for side, lines in SIDES.items():
            content = gzip.compress(("\n".join(lines * times) + "\n").encode(), mtime=0)
            contents[f"{multi30k.URL}{part}.{side}.gz"] = content
            hashes.setdefault(part, {})[side] = hashlib.sha256(content).hexdigest()

    def urlopen(url, timeout):
        asked.append(url)
        if isinstance(contents[url], Exception):
            raise contents[url]
        return io.BytesIO(contents[url])

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    monkeypatch.setattr(multi30k, "HASHES", hashes)
    return contents, asked


def load(**fields):
    return Multi30k(**({"tokenizer": "bpe:300", "length": 40, "batch": 4} | fields)).load()


def test_files_are_downloaded_once_and_pairs_stay_together(server, empty_folder):
    corpus = load()
    assert len(server[1]) == 6
    again = load()
    assert len(server[1]) == 6
    assert (empty_folder / "multi30k" / "train.en.gz").exists()
    translations = dict(zip(ENGLISH, GERMAN))
    for batch in (next(again.train(0)), *corpus.validation(), *corpus.test()):
        for source, mask, labels in zip(batch["source"], batch["source_mask"], batch["labels"]):
            weighted = corpus.decode(labels[: int(np.argmax(labels == corpus.stop))])
            assert translations[corpus.decode(source[mask])] == weighted
    assert corpus.references == tuple(GERMAN)
    assert json.loads(json.dumps(corpus.facts))["source"] == "multi30k:en-de"
    assert corpus.facts["vocabulary"] == 1 + max(corpus.stop, *(int(b["source"].max()) for b in corpus.validation()))


def test_both_directions_share_a_vocabulary(server, empty_folder):
    there, back = load(), load(direction="de-en")
    assert back.references == tuple(ENGLISH)
    assert there.facts["vocabulary"] == back.facts["vocabulary"]
    assert np.array_equal(there.tests.source, back.tests.labels)
    assert len(list((empty_folder / "tokenizers").glob("*.json"))) == 1


def test_long_pairs_are_dropped_from_training_alone(server):
    whole = load()
    longest = int(max(whole.held_out.source_lengths.max(), whole.held_out.target_lengths.max()))
    short = load(length=longest - 1)
    assert whole.facts["dropped"] == 0
    assert short.facts["dropped"] == 12
    assert short.facts["train_pairs"] == 36
    assert next(short.train(0))["source"].shape == (4, longest - 1)
    assert len(short.held_out) == len(short.tests) == 4
    assert short.held_out.source_lengths.max() == whole.held_out.source_lengths.max()
    with pytest.raises(UsageError, match="length is 3, and 0 of 48 training pairs are as short as that"):
        load(length=3)


def test_lower_case_is_lower_case_everywhere(server):
    corpus = load(lowercase=True)
    assert corpus.lowercase
    assert corpus.decode(corpus.tests.source[3][: corpus.tests.source_lengths[3]]) == ENGLISH[3].lower()
    assert corpus.references == tuple(GERMAN)  # sacrebleu lowers them itself, and says so in its signature


def test_what_is_not_the_file_is_refused(server, empty_folder):
    contents, _ = server
    url = f"{multi30k.URL}val.de.gz"
    right, contents[url] = contents[url], b"<html>Sign in</html>"
    with pytest.raises(
        RunError, match=r"val\.de\.gz gave is not the file known by that name .* put the right file by hand"
    ):
        load()
    contents[url] = urllib.error.URLError("no route to host")
    with pytest.raises(RunError, match=r"cannot download val\.de\.gz \(no route to host\); put .* by hand at"):
        load()
    contents[url] = right
    load()
    path = empty_folder / "multi30k" / "val.de.gz"
    path.write_bytes(right[:-1])
    with pytest.raises(RunError, match=r"is not the file known by that name .* delete it"):
        load()


def test_wrong_fields():
    with pytest.raises(UsageError, match="expected 'bpe:SIZE' with at least 257 tokens"):
        Multi30k(tokenizer="bytes")
    with pytest.raises(UsageError, match="unknown language of Multi30k 'fr'"):
        multi30k.sentences("train", "fr")


# Looked for when this file is read, before the tests replace the environment.
REAL = directories.find("multi30k/train.en.gz")


@pytest.mark.skipif(REAL is None, reason="Multi30k is not in the data folder ($ARCH_JAX_DATA or the user's cache)")
def test_the_real_corpus_has_the_published_sizes(monkeypatch):
    monkeypatch.setenv("ARCH_JAX_DATA", str(REAL.parents[1]))
    # 1605.00459, table 1: 29,000 training, 1,014 development and 1,000 test images.
    assert [len(multi30k.sentences(part, side)) for part in multi30k.HASHES for side in ("en", "de")] == [
        29_000, 29_000, 1_014, 1_014, 1_000, 1_000,
    ]  # fmt: skip
    assert multi30k.sentences("train", "en")[0] == "Two young, White males are outside near many bushes."
    assert multi30k.sentences("test_2016_flickr", "de")[0].startswith("Ein Mann mit einem orangefarbenen Hut")
