"""Cora and Citeseer with the Planetoid split, read from the files in which the field has passed them around since 2016.

The files are pickles of Python 2. The SHA-256 of each is compared first; `restricted_pickle` then reads it, executing
nothing.
"""

import hashlib
from typing import NamedTuple

import numpy as np

from arch_jax.data.files import downloads
from arch_jax.data.files.restricted_pickle import unpickle
from arch_jax.errors import unknown

__all__ = ["HASHES", "URL", "Citations", "citations"]

URL = "https://raw.githubusercontent.com/kimiyoung/planetoid/master/data/"
#: SHA-256 of each file of each data set.
HASHES: dict[str, dict[str, str]] = {
    "cora": {
        "x": "23cfa55d91c6f624233f5eb7b6e3f141f1bd2b2ae39608a63cf5d084bb27baab",
        "y": "94465c14eb53e04ca262198dcbb2521ee8af60fb3f3d546cd6ca24a511b0e7d1",
        "tx": "b9afbaa4a400df991f6f02ef677e1e44da55ffc04801fd02f9e673987829226a",
        "ty": "41f5ac76596a1699cc33f53084a2419e92961c42bb75f36fc38e616d348532ad",
        "allx": "9419ba2f26f5c35243db64aba110e0f35a04851609e0dc5433450676ca6b8543",
        "ally": "2b998f5cc7fedc86e7f97ca2498f47a1ffc1462c29e2d578b23bf3f62b6e7d71",
        "graph": "58f13302f39dde8852dad6fe6d15b89b077b6d7f837626bce671ef80344b383d",
        "test.index": "297ce89af2b51a6a194181c7dbe1796c6a1cf9cd9349a88383b1b1e227867875",
    },
    "citeseer": {
        "x": "d20de19150741e555de0ed037195630fc194114ebc7fd72ced62810148aa22f6",
        "y": "8ba87e515d8e3ee3cf52f6d2c5b86aa73f11ecad825a808455209ec26cd54924",
        "tx": "539a8906a2da97628d212f2fdd668c109a8b3f0d36574b59e5d3fd5b5303da21",
        "ty": "55e5bd1ba1e733a04598753ad1a8d57957f4b8f89e74519f41f4f4938767e4ce",
        "allx": "2ac30345d95c9ec933a817ee0bdd6a5f077f8c184a20e696910192d534414668",
        "ally": "f704b2d986dde6c2669934de1f3ae5696a6cf9455c0f6b2646a2d135ea0a1c95",
        "graph": "d79a4ef9d3e7169aee8946145f6b7306e35bc79bffad26346cfb94e10e9912a7",
        "test.index": "2af990671580b6b2df5d158d1038f8292e30c9cd821b5453f399659b25b723d4",
    },
}


class Citations(NamedTuple):
    """A citation network with the Planetoid split.

    Attributes:
      features: bags of words, float32 "nodes features", as they are in the files.
      links: each citation, int32 "links 2": in both directions, some more than once, a few from a node to itself.
      labels: int32 "nodes"; 0 for a node without one.
      classes: number of classes.
      train, validation, test: the nodes of each part, int64.
      sha256: over the SHA-256 of all files.
    """

    features: np.ndarray
    links: np.ndarray
    labels: np.ndarray
    classes: int
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    sha256: str


def citations(name: str) -> Citations:
    """Reads "cora" or "citeseer" from the data folder's `planetoid`, where missing files are downloaded to.

    Training nodes are the first, 20 of each class; the next 500 are for validation, and the 1,000 of `test.index` for
    the test. Citeseer's numbering has 15 more nodes between the test nodes, which cite nothing that is known: they get
    no features and are in no part.

    Raises:
      UsageError: another name.
      RunError: a download failed, or a file does not have the known SHA-256.

    Source: Z. Yang, W. Cohen, R. Salakhutdinov, "Revisiting Semi-Supervised Learning with Graph Embeddings", 2016;
    read as in T. Kipf's `gcn/utils.py`.
    """
    if name not in HASHES:
        raise unknown("citation network", name, HASHES)
    contents = {part: _content(f"ind.{name}.{part}") for part in HASHES[name]}
    where = {part: f"ind.{name}.{part}" for part in contents}
    array = {part: unpickle(contents[part], where[part]) for part in contents if part != "test.index"}
    test = np.array(contents["test.index"].split(), np.int64)

    # The known nodes come first; those of the test part stand in the file in the order of test.index.
    known, end = len(array["ally"]), int(test.max()) + 1
    features = np.zeros((end, array["allx"].shape[1]), np.float32)
    labels = np.zeros((end, array["ally"].shape[1]), np.int64)
    features[:known], features[test] = array["allx"].dense(), array["tx"].dense()
    labels[:known], labels[test] = array["ally"], array["ty"]
    training = len(array["y"])
    digest = hashlib.sha256("".join(HASHES[name][part] for part in sorted(HASHES[name])).encode())
    return Citations(
        features,
        array["graph"].links(),
        labels.argmax(axis=1).astype(np.int32),
        labels.shape[1],
        np.arange(training),
        np.arange(training, training + 500),
        np.sort(test),
        digest.hexdigest(),
    )


def _content(file: str) -> bytes:
    """The file's bytes, which have the known hash; downloaded where it is missing."""
    _, name, part = file.split(".", 2)
    return downloads.content(f"planetoid/{file}", URL + file, HASHES[name][part], instead="source 'karate'")
