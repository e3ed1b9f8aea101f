"""Multi30k: 29,000 image captions in English and German, as pairs for an encoder-decoder.

From the data folder, or downloaded there once; each file is checked against its hash.

Source: D. Elliott, S. Frank, K. Sima'an, L. Specia, "Multi30K: Multilingual English-German Image Descriptions", 2016,
arXiv 1605.00459; the files of https://github.com/multi30k/dataset, task 1.
"""

import dataclasses
import gzip
import hashlib
import io
from typing import Literal

import numpy as np

from arch_jax.data.base import check_whole
from arch_jax.data.files import downloads
from arch_jax.data.sequences.pairs import PairCorpus, Pairs, shuffled
from arch_jax.data.text import bpe
from arch_jax.data.text.reading import text_of
from arch_jax.errors import UsageError, unknown
from arch_jax.fields import component

URL = "https://raw.githubusercontent.com/multi30k/dataset/master/data/task1/raw/"
#: SHA-256 of each file of each part.
HASHES: dict[str, dict[str, str]] = {
    "train": {
        "en": "d79cfa999dd4c51d2cb42499b6796d5a882c3a8a961923c25a898c90f8bbd56f",
        "de": "726e39b2fa9eb9ffb6dc763fb35a179f80fae06ffc5d28b6ace5faa883de28a6",
    },
    "val": {
        "en": "14f7d25ddd868909a9213e361768460edcacdd6ab9d1e77b92560dc10c10dc28",
        "de": "f0cba2f995189cf5770f29a8a9a537a3ad3f51657ad873405082ff6863a5e75a",
    },
    "test_2016_flickr": {
        "en": "611d361c6334bc7246101d48097c13cf5c4413c5befc793cc629934359d532d9",
        "de": "9204244e408ccb38d2a55cfcd344df15005fc42a07a6e55ca6c52b6ababb8cc8",
    },
}
DIRECTIONS = ("en-de", "de-en")

# Larger than any of the files is unpacked (2.1 MB), smaller than what could hurt.
_LARGEST_FILE = 2**23


@component("multi30k", kind="data")
@dataclasses.dataclass(frozen=True)
class Multi30k:
    """Translation of captions, with one byte-pair vocabulary for both languages, learned from the training part.

    Training pairs of which a side is longer than `length` are left out (`facts["dropped"]` counts them); the validation
    and the test part are complete. After the tokenizer's tokens come the start and the stop token.

    Attributes:
      direction: "en-de" or "de-en".
      tokenizer: "bpe:SIZE", SIZE at least 257.
      lowercase: whether all text is put in lower case; BLEU then ignores case.
      length: tokens of the longest training sequence, the stop token included, on both sides.
      batch: pairs in a training batch; each pair comes once an epoch, reshuffled every epoch.

    Raises:
      UsageError: if a field is invalid.
    """

    direction: Literal["en-de", "de-en"] = "en-de"
    tokenizer: str = "bpe:8000"
    lowercase: bool = False
    length: int = 40
    batch: int = 128

    def __post_init__(self):
        if self.direction not in DIRECTIONS:
            raise unknown("direction", str(self.direction), DIRECTIONS)
        size = self.tokenizer.removeprefix("bpe:")
        if not (self.tokenizer.startswith("bpe:") and size.isascii() and size.isdigit() and int(size) > 256):
            raise UsageError(
                f"tokenizer is {self.tokenizer!r}; expected 'bpe:SIZE' with at least 257 tokens, such as 'bpe:8000'"
            )
        check_whole("length", self.length, 2)
        check_whole("batch", self.batch, 1)

    def load(self) -> PairCorpus:
        """Reads the files, learns or finds the vocabulary, and tokenizes both sides of each part.

        Raises:
          UsageError: no training pair is as short as `length`, or fewer than a batch are.
          RunError: a download failed, or a file does not have the known SHA-256.
        """
        languages = self.direction.split("-")
        texts = {part: [sentences(part, language) for language in languages] for part in HASHES}
        references = tuple(texts["test_2016_flickr"][1])
        if self.lowercase:
            texts = {part: [[line.lower() for line in side] for side in sides] for part, sides in texts.items()}
        # In a fixed order, so that both directions share the vocabulary.
        sides = sorted(zip(languages, texts["train"]))
        tokenizer = bpe.trained([line for _, side in sides for line in side], int(self.tokenizer.removeprefix("bpe:")))
        start, stop = tokenizer.vocabulary, tokenizer.vocabulary + 1
        tokens = {part: [tokenizer.encode_all(side) for side in sides] for part, sides in texts.items()}
        short = [pair for pair in zip(*tokens["train"]) if max(map(len, pair)) < self.length]
        if len(short) < self.batch:
            raise UsageError(
                f"length is {self.length}, and {len(short):,} of {len(tokens['train'][0]):,} training pairs are as "
                f"short as that, which are fewer than a batch of {self.batch}; expected a greater length, such as 40"
            )
        train = Pairs.of(*zip(*short), (self.length, self.length), start, stop)
        digest = hashlib.sha256("".join(HASHES[part][side] for part in HASHES for side in languages).encode())
        facts = {
            "source": f"multi30k:{self.direction}",
            "sha256": digest.hexdigest(),
            "vocabulary": stop + 1,
            "tokenizer": tokenizer.name,
            "train_pairs": len(train),
            "dropped": len(tokens["train"][0]) - len(train),
            "validation_pairs": len(tokens["val"][0]),
            "test_pairs": len(references),
            "padding": round(1 - float(train.target_lengths.mean()) / self.length, 3),
        }

        def decode(ids) -> str:
            ids = np.asarray(ids).reshape(-1)
            return tokenizer.decode(ids[ids < start])

        return PairCorpus(
            data=self,
            batch=self.batch,
            lengths=(self.length, self.length),
            draw=shuffled(train, self.batch),
            held_out=Pairs.of(*tokens["val"], None, start, stop),
            start=start,
            stop=stop,
            vocabulary=stop + 1,
            facts=facts,
            decode=decode,
            tests=Pairs.of(*tokens["test_2016_flickr"], None, start, stop),
            references=references,
            lowercase=self.lowercase,
            encode=lambda text: tokenizer.encode(text.lower() if self.lowercase else text),
        )


def sentences(part: str, language: str) -> list[str]:
    """The captions of a part ("train", "val" or "test_2016_flickr") in a language ("en" or "de"), in order.

    Raises:
      UsageError: another part or language.
      RunError: a download failed, or the file does not have the known SHA-256.
    """
    if part not in HASHES:
        raise unknown("part of Multi30k", part, HASHES)
    if language not in HASHES[part]:
        raise unknown("language of Multi30k", language, HASHES[part])
    file = f"{part}.{language}.gz"
    instead = "the data 'random_pairs'"
    content = downloads.content(f"multi30k/{file}", URL + file, HASHES[part][language], instead=instead)
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as unpacked:
        text = text_of(unpacked.read(_LARGEST_FILE), file)
    return [line.strip() for line in text.rstrip("\n").split("\n")]
