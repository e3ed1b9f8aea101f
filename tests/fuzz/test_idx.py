"""Damaged files end in success or in a sentence, never in anything else, and never in all of the memory."""

import gzip
import importlib.util
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from arch_jax.data.files.restricted_pickle import unpickle
from arch_jax.data.images.idx import read_idx
from arch_jax.errors import ArchJaxError

_SPEC = importlib.util.spec_from_file_location("mutations", Path(__file__).parent / "mutations.py")
mutations = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(mutations)


def survive(attempt, contents) -> list[str | None]:
    """What each content ends in: None for success, else the sentence. Anything but our own errors is raised."""
    outcomes = []
    tracemalloc.start()
    try:
        for content in contents:
            try:
                attempt(content)
                outcomes.append(None)
            except ArchJaxError as error:
                outcomes.append(str(error))
        assert tracemalloc.get_traced_memory()[1] < 200 * 10**6
    finally:
        tracemalloc.stop()
    assert all("\n" not in outcome and len(outcome) < 600 for outcome in outcomes if outcome)
    return outcomes


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files(tmp_path, packed):
    random = np.random.default_rng([0, packed])
    array = random.integers(256, size=(30, 8, 8), dtype=np.uint8)
    content = b"\0\0\x08\x03" + struct.pack(">3I", *array.shape) + array.tobytes()
    content = gzip.compress(content) if packed else content
    path = tmp_path / "train-images-idx3-ubyte"

    def attempt(mutated: bytes):
        path.write_bytes(mutated)
        read_idx(path)

    outcomes = survive(attempt, (mutations.mutate(content, random) for _ in range(250)))
    assert len({outcome for outcome in outcomes if outcome}) > 5  # the mutations reach many of the checks


def text(value: bytes) -> bytes:
    return b"U" + bytes([len(value)]) + value


def array_pickle(values: np.ndarray) -> bytes:
    dtype = b"cnumpy\ndtype\nq\x02" + text(values.dtype.str[1:].encode()) + b"K\x00K\x01\x87R(K\x03" + text(b"<")
    start = b"cnumpy.core.multiarray\n_reconstruct\nq\x00cnumpy\nndarray\nq\x01K\x00\x85" + text(b"b") + b"\x87R"
    shape = b"(" + b"".join(b"K" + bytes([size]) for size in values.shape) + b"t"
    return (
        start
        + b"(K\x01"
        + shape
        + dtype
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + text(values.tobytes())
        + b"tb"
    )


def matrix_pickle() -> bytes:
    parts = {b"indptr": np.array([0, 2, 3], "i4"), b"indices": np.array([0, 3, 1], "i4"), b"data": np.ones(3, "f4")}
    content = b"\x80\x02cscipy.sparse.csr\ncsr_matrix\nq\x05)\x81}(" + text(b"_shape") + b"K\x02K\x04\x86"
    return content + b"".join(text(name) + array_pickle(values) for name, values in parts.items()) + b"ub."


def table_pickle() -> bytes:
    rows = b"".join(b"K" + bytes([i]) + b"]q" + bytes([i]) + b"(K\x01M\x05\x01K\x03e" for i in range(20))
    return b"\x80\x02ccollections\ndefaultdict\nc__builtin__\nlist\n\x85Rr\x07\0\0\0(" + rows + b"u."


@pytest.mark.parametrize("content", [matrix_pickle(), table_pickle()], ids=["matrix", "table"])
def test_old_pickles(content):
    def attempt(mutated: bytes):
        held = unpickle(mutated, "ind.cora.x")
        if hasattr(held, "dense"):
            held.dense()

    attempt(content)
    random = np.random.default_rng(len(content))
    outcomes = survive(attempt, (mutations.mutate(content, random) for _ in range(100)))
    assert len({outcome for outcome in outcomes if outcome}) > 5
