import gzip
import itertools
import tracemalloc

import numpy as np
import pytest

from arch_jax.data.images import idx
from arch_jax.errors import UsageError

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def encoded(array: np.ndarray) -> bytes:
    """The bytes of an idx file, written from its specification."""
    code = CODES[array.dtype.str[1:]]
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, code, array.ndim]) + sizes + array.astype(array.dtype.newbyteorder(">")).tobytes()


def header(*shape: int, code: int = 0x08) -> bytes:
    return bytes([0, 0, code, len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", CODES)
def test_what_was_written_is_read(write, dtype, packed):
    array = (np.random.default_rng(0).random((3, 4, 5)) * 100).astype(dtype)
    content = encoded(array)
    found = idx.read_idx(write("a.idx", gzip.compress(content) if packed else content))
    assert found.dtype == np.dtype(dtype)
    assert np.array_equal(found, array)


def test_the_bytes_tell_whether_a_file_is_packed_not_its_name(write):
    array = np.arange(6, dtype=np.uint8)
    assert np.array_equal(idx.read_idx(write("a.gz", encoded(array))), array)
    assert np.array_equal(idx.read_idx(write("b", gzip.compress(encoded(array)))), array)


def test_a_file_of_several_chunks(write, monkeypatch):
    monkeypatch.setattr(idx, "_CHUNK", 7)
    array = np.arange(100, dtype=np.int32).reshape(10, 10)
    assert np.array_equal(idx.read_idx(write("a.gz", gzip.compress(encoded(array)))), array)


GOOD = encoded(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))
PACKED = gzip.compress(GOOD)
BAD_SUM = PACKED[:-8] + bytes([PACKED[-8] ^ 1]) + PACKED[-7:]


BAD = [
    (b"", "is not an idx file: it begins with nothing, being empty; expected 00 00"),
    (b"\x89PNG\r\n", "is not an idx file: it begins with 89 50 4e 47"),
    (b"\0\0\x07\x01" + GOOD[4:], "is not an idx file: it begins with 00 00 07 01"),
    (b"\0\0\x08\x00", "has 0 dimensions; expected from 1 to 8"),
    (b"\0\0\x08\xff" + bytes(2000), "has 255 dimensions; expected from 1 to 8"),
    (GOOD[:9], "ends in its header, after 9 bytes; expected 16 for 3 dimensions"),
    (header(3, 0, 2), "declares 3 x 0 x 2 values, which is none"),
    (GOOD[:-1], "ends after 23 bytes of values; expected 24, for 2 x 3 x 4 values of 1 bytes"),
    (GOOD + b"x", "continues after the 24 bytes of values it declares"),
    (header(2**32 - 1, 2**32 - 1), "expected at most 4,294,967,296 (4 GiB)"),
    (header(2**31, 3, code=0x0E), "expected at most 4,294,967,296 (4 GiB)"),
    (PACKED[:-12], "is cut off: its gzip stream has no end"),
    (PACKED[:-3], "is cut off: its gzip stream has no end"),
    (PACKED[:5], "is cut off: its gzip stream has no end"),
    (BAD_SUM, "is damaged: CRC check failed"),
    (PACKED + b"garbage", "is damaged: Not a gzipped file"),
    (PACKED[:12] + b"\xff\xff\xff" + PACKED[15:], "is damaged"),
    (gzip.compress(GOOD + b"\0"), "continues after the 24 bytes"),
    (gzip.compress(GOOD[:-4]), "ends after 20 bytes of values; expected 24"),
]


@pytest.mark.parametrize("i", range(len(BAD)))  # bytes make names of tests that nobody can read
def test_a_bad_file_is_one_sentence(write, i):
    content, says = BAD[i]
    path = write("train-images-idx3-ubyte", content)
    with pytest.raises(UsageError) as caught:
        idx.read_idx(path)
    assert str(caught.value).startswith(repr(str(path)))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_a_folder_and_wrong_dimensions(write, tmp_path):
    with pytest.raises(UsageError, match=r"nothing' does not exist; expected an idx file"):
        idx.read_idx(tmp_path / "nothing")
    with pytest.raises(UsageError, match="is not a file; expected an idx file"):
        idx.read_idx(tmp_path)
    with pytest.raises(UsageError, match="has 3 dimensions; expected 1"):
        idx.read_idx(write("a", GOOD), 1)


@pytest.mark.parametrize("packed", [False, True])
def test_a_header_that_lies_costs_no_memory(write, packed):
    """4 GiB declared, 100 bytes there."""
    content = header(2**16, 2**16) + bytes(100)
    path = write("a", gzip.compress(content) if packed else content)
    tracemalloc.start()
    with pytest.raises(UsageError, match="ends after 100 bytes of values; expected 4,294,967,296"):
        idx.read_idx(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24


def test_a_gzip_bomb_costs_what_it_declares(write):
    """200 MB of zeros in 200 kB, of which the header declares 24."""
    path = write("a", gzip.compress(header(2, 3, 4) + bytes(200 * 10**6), compresslevel=1))
    tracemalloc.start()
    with pytest.raises(UsageError, match="continues after the 24 bytes"):
        idx.read_idx(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24


NAMES = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]


@pytest.fixture
def parts():
    """Six training and four test images."""
    generator = np.random.default_rng(0)
    return {
        NAMES[0]: generator.integers(256, size=(6, 3, 4), dtype=np.uint8),
        NAMES[1]: np.array([0, 1, 2, 0, 1, 2], np.uint8),
        NAMES[2]: generator.integers(256, size=(4, 3, 4), dtype=np.uint8),
        NAMES[3]: np.array([2, 1, 0, 0], np.uint8),
    }


@pytest.fixture
def folder(write, tmp_path):
    def folder(parts):
        # Packed and plain files may stand side by side.
        for (name, array), packed in zip(parts.items(), itertools.cycle([True, False])):
            write(f"mnist/{name}" + (".gz" if packed else ""), (gzip.compress if packed else bytes)(encoded(array)))
        return str(tmp_path / "mnist")

    return folder


def test_a_folder_is_read(folder, parts):
    found = idx.read_folder(folder(parts))
    assert list(found) == ["train", "test"]
    assert np.array_equal(found["train"][0], parts[NAMES[0]])
    assert np.array_equal(found["test"][1], parts[NAMES[3]])
    assert found["test"][1].dtype == np.int32


def test_a_folder_without_a_test_part(folder, parts):
    assert list(idx.read_folder(folder({name: parts[name] for name in NAMES[:2]}))) == ["train"]


def test_a_bad_folder_is_one_sentence(folder, parts, tmp_path, write):
    def says(given):
        with pytest.raises(UsageError) as caught:
            idx.read_folder(given)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "does not exist; expected a folder with train-images-idx3-ubyte" in says(str(tmp_path / "none"))
    assert "is not a folder" in says(str(write("file", "x")))
    (tmp_path / "empty").mkdir()
    assert "has no train-images-idx3-ubyte (nor train-images-idx3-ubyte.gz)" in says(str(tmp_path / "empty"))
    whole = folder(parts)
    (tmp_path / "mnist" / NAMES[3]).rename(tmp_path / "mnist" / "t10k-labels.idx1-ubyte")
    assert "has no t10k-labels-idx1-ubyte" in says(whole)
    assert "the nearest is 't10k-labels.idx1-ubyte'" in says(whole) or "the nearest are 't10k-labels.idx1" in says(
        whole
    )


@pytest.mark.parametrize(
    ("name", "array", "says"),
    [
        (NAMES[1], np.zeros(5, np.uint8), "has 6 images and"),
        (NAMES[1], np.zeros(6, np.int32), "holds values of type int32; expected unsigned bytes"),
        (NAMES[0], np.zeros((6, 3), np.uint8), "has 2 dimensions; expected 3"),
        (NAMES[2], np.zeros((4, 3, 3), np.uint8), "are 3 x 3 and the training images 3 x 4; expected one size"),
    ],
)
def test_parts_that_do_not_fit_are_one_sentence(folder, parts, name, array, says):
    given = folder(parts | {name: array})
    with pytest.raises(UsageError) as caught:
        idx.read_folder(given)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
