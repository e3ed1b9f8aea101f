import hashlib
import io
import os
import pickle
import struct
import subprocess
import urllib.error
import urllib.request

import numpy as np
import pytest

from arch_jax.data.files import directories
from arch_jax.data.files.restricted_pickle import Matrix, Table, unpickle
from arch_jax.data.graphs import planetoid
from arch_jax.errors import RunError, UsageError

# Looked for when this file is read, before the tests replace the environment. A download that failed leaves the folder.
FILES = [
    directories.find(f"planetoid/ind.{name}.{part}") for name in planetoid.HASHES for part in planetoid.HASHES[name]
]
REAL = FILES[0].parent if all(FILES) else None
needs_planetoid = pytest.mark.skipif(
    REAL is None, reason="the Planetoid data is not in the data folder ($ARCH_JAX_DATA or the user's cache)"
)


def text(value: str) -> bytes:
    return b"T" + struct.pack("<i", len(value)) + value.encode("latin1")


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def array(values: np.ndarray) -> bytes:
    """A NumPy array as Python 2 pickles it."""
    shape = b"(" + b"".join(map(number, values.shape)) + b"t"
    dtype = b"cnumpy\ndtype\n(" + text(values.dtype.str[1:]) + number(0) + number(1) + b"tR"
    dtype += b"(" + number(3) + text("<") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
    start = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(" + number(0) + b"t" + text("b") + b"tR"
    return start + b"(" + number(1) + shape + dtype + b"\x89" + text(values.tobytes().decode("latin1")) + b"tb"


def matrix(shape, indptr, indices, data) -> bytes:
    parts = {"indptr": np.array(indptr, "i4"), "indices": np.array(indices, "i4"), "data": np.array(data, "f4")}
    content = b"cscipy.sparse.csr\ncsr_matrix\n)\x81}(" + text("_shape") + b"(" + b"".join(map(number, shape)) + b"t"
    return content + b"".join(text(name) + array(values) for name, values in parts.items()) + b"ub"


def table(rows: dict) -> bytes:
    content = b"ccollections\ndefaultdict\nc__builtin__\nlist\n\x85R("
    return content + b"".join(number(k) + b"](" + b"".join(map(number, v)) + b"e" for k, v in rows.items()) + b"u"


def whole(content: bytes) -> bytes:
    return b"\x80\x02" + content + b"."


MATRIX = ((2, 4), [0, 2, 3], [0, 3, 1], [1, 2, 3])


def test_arrays_matrices_and_tables_are_read():
    values = np.arange(6, dtype="i4").reshape(2, 3)
    found = unpickle(whole(array(values)), "y")
    assert np.array_equal(found, values)
    assert found.dtype == np.int32
    sparse = unpickle(whole(matrix(*MATRIX)), "x")
    assert isinstance(sparse, Matrix)
    assert sparse.dense().tolist() == [[1, 0, 0, 2], [0, 3, 0, 0]]
    links = unpickle(whole(table({0: [1, 2], 3: [], 2: [0]})), "graph")
    assert isinstance(links, Table)
    assert links.links().tolist() == [[0, 1], [0, 2], [2, 0]]
    assert unpickle(whole(table({})), "graph").links().shape == (0, 2)


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_runs_a_command_is_refused_and_does_not_run(tmp_path, protocol):
    marker = tmp_path / "it-ran"
    content = pickle.dumps(Evil(marker), protocol)
    with pytest.raises(RunError, match=r"'ind\.cora\.x' holds the (name 'posix\.system'|pickle instruction)") as caught:
        unpickle(content, "ind.cora.x")
    assert "\n" not in str(caught.value)
    assert not marker.exists()
    pickle.loads(content)  # the test's own pickle does run where nothing stops it
    assert marker.exists()


@pytest.mark.parametrize(
    "name",
    ["posix system", "os system", "builtins eval", "__builtin__ eval", "__builtin__ getattr", "numpy load",
     "numpy.testing assert_equal", "collections OrderedDict", "subprocess Popen",
     "scipy.sparse.csr csr_matrix.__init__", "functools partial", "copy_reg _reconstructor"],
)  # fmt: skip
def test_no_other_name_is_looked_up(name):
    module, attribute = name.split()
    content = whole(f"c{module}\n{attribute}\n".encode() + b"(" + text("x") + b"tR")
    with pytest.raises(RunError, match="holds the name") as caught:
        unpickle(content, "file")
    assert f"'{module}.{attribute}'" in str(caught.value)


def test_a_function_named_by_the_stack_is_refused(tmp_path):
    marker = tmp_path / "it-ran"
    content = b"\x80\x04" + text("os") + text("system") + b"\x93" + text(f"touch {marker}") + b"\x85R."
    with pytest.raises(RunError, match="holds the pickle instruction STACK_GLOBAL"):
        unpickle(content, "file")
    assert not marker.exists()


BAD = {
    "empty": (b"", "is not a whole pickle"),
    "cut off": (whole(array(np.zeros(9, "i4")))[:-20], "is not a whole pickle"),
    "text": (b"<html>", "holds the pickle instruction|is not a whole pickle"),
    "a number": (whole(number(3)), "holds neither an array, nor a sparse matrix, nor a table"),
    "a class": (whole(b"cnumpy\nndarray\n"), "holds neither an array"),
    "an empty matrix": (whole(b"cscipy.sparse.csr\ncsr_matrix\n)\x81"), "holds a sparse matrix without its parts"),
    "a call of list": (whole(b"c__builtin__\nlist\n)R"), "holds a call of list"),
    "a class with a state": (whole(b"c__builtin__\nlist\n}b"), "is not a whole pickle"),
    "a class with slots": (whole(b"cnumpy\nndarray\n(N}" + text("x") + number(1) + b"stb"), "is not a whole pickle"),
    "a nest": (b"\x80\x02)" + b"\x85" * 100_000 + b".", "holds more than 24 of the pickle instruction TUPLE1"),
    "an explosion": (b"\x80\x02)" + b"q\x00h\x00\x86" * 40 + b".", "more than 24 of the pickle instruction"),
    "a far place": (b"\x80\x02)r\xff\xff\xff\x7f.", "holds the memory place 2147483647"),
    "a long string": (b"\x80\x02T\xff\xff\xff\x7f.", "is not a whole pickle"),
    "an array of objects": (whole(array(np.zeros(2, "i4")).replace(text("i4"), text("O8"))), "array of another type"),
    "a huge array": (
        whole(array(np.zeros(2, "i4")).replace(b"(" + number(2) + b"t", b"(" + number(2**31 - 1) + b"t")),
        "holds an array of 8 bytes for 2147483647 values",
    ),
    "a negative size": (
        whole(array(np.zeros(2, "i4")).replace(b"(" + number(2) + b"t", b"(" + number(-2) + b"t")),
        "holds an array without its shape",
    ),
    "too few rows": (whole(matrix((3, 4), *MATRIX[1:])), "whose rows don't follow one another"),
    "rows backwards": (whole(matrix((2, 4), [0, 5, 3], *MATRIX[2:])), "whose rows don't follow one another"),
    "too many values": (whole(matrix((2, 4), [0, 2, 9], *MATRIX[2:])), "whose rows don't hold its values"),
    "a column too far": (whole(matrix((2, 3), *MATRIX[1:])), "with values outside its 3 columns"),
    "a column below": (whole(matrix((2, 4), [0, 2, 3], [0, -1, 1], [1, 2, 3])), "with values outside its 4 columns"),
    "a table of text": (whole(b"ccollections\ndefaultdict\n)R" + text("a") + b"]s"), "a table that is not of numbers"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_pickle_is_one_sentence(name):
    content, says = BAD[name]
    with pytest.raises(RunError, match=says) as caught:
        unpickle(content, "ind.cora.x")
    assert str(caught.value).startswith("'ind.cora.x' ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_matrix_too_large_to_unpack_is_one_sentence():
    sparse = unpickle(whole(matrix((2, 2**31 - 1), *MATRIX[1:])), "x")
    with pytest.raises(RunError, match="expected at most 67,108,864 values"):
        sparse.dense()


@needs_planetoid
def test_the_citation_networks_are_the_fields(monkeypatch):
    monkeypatch.setenv("ARCH_JAX_DATA", str(REAL.parent))
    cora = planetoid.citations("cora")
    assert (cora.features.shape, cora.features.dtype) == ((2708, 1433), np.float32)
    assert set(np.unique(cora.features)) == {0.0, 1.0}
    assert cora.classes == 7
    assert cora.train.tolist() == list(range(140))
    assert cora.validation.tolist() == list(range(140, 640))
    assert cora.test.tolist() == list(range(1708, 2708))
    citeseer = planetoid.citations("citeseer")
    assert (citeseer.features.shape, citeseer.classes) == ((3327, 3703), 6)
    assert len(citeseer.train) == 120
    assert len(citeseer.test) == 1000
    assert len(set(range(2312, 3327)) - set(citeseer.test.tolist())) == 15
    assert cora.sha256 != citeseer.sha256


@needs_planetoid
def test_test_nodes_stand_where_their_index_says(monkeypatch):
    """Against SciPy's own reading of the same files, put together as in tkipf/gcn."""
    import scipy.sparse

    class Legacy(pickle.Unpickler):  # the real classes, for files whose hash is known
        def find_class(self, module, name):
            assert name in ("csr_matrix", "_reconstruct", "ndarray", "dtype", "defaultdict", "list")
            module = {"scipy.sparse.csr": "scipy.sparse", "__builtin__": "builtins"}.get(module, module)
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)

    monkeypatch.setenv("ARCH_JAX_DATA", str(REAL.parent))
    cora = planetoid.citations("cora")
    read = lambda part: Legacy(io.BytesIO((REAL / f"ind.cora.{part}").read_bytes()), encoding="latin1").load()
    order = np.loadtxt(REAL / "ind.cora.test.index", dtype=int)
    features = scipy.sparse.vstack([read("allx"), read("tx")]).tolil()
    labels = np.vstack([read("ally"), read("ty")])
    features[order], labels[order] = features[np.sort(order)], labels[np.sort(order)]
    assert np.array_equal(cora.features, features.toarray())
    assert np.array_equal(cora.labels, labels.argmax(axis=1))
    assert {tuple(link) for link in cora.links.tolist()} == {(a, b) for a, row in read("graph").items() for b in row}


def test_an_unknown_name_is_one_sentence():
    with pytest.raises(UsageError, match="unknown citation network 'coral'; the nearest is 'cora'"):
        planetoid.citations("coral")


@pytest.fixture
def server(empty_folder, monkeypatch):
    """Stands in for the network, with a tiny data set "cora"."""
    files = {
        "x": whole(matrix((1, 2), [0, 1], [0], [1])),
        "y": whole(array(np.eye(2, dtype="i4")[:1])),
        "tx": whole(matrix((1, 2), [0, 1], [1], [1])),
        "ty": whole(array(np.eye(2, dtype="i4")[1:])),
        "allx": whole(matrix((2, 2), [0, 1, 2], [0, 1], [1, 1])),
        "ally": whole(array(np.eye(2, dtype="i4"))),
        "graph": whole(table({0: [1], 1: [0, 3], 3: [1]})),
        "test.index": b"3\n",
    }
    hashes = {part: hashlib.sha256(content).hexdigest() for part, content in files.items()}
    monkeypatch.setattr(planetoid, "HASHES", {"cora": hashes})

    class Server:
        failure: Exception | None = None
        asked: list = []  # noqa: RUF012
        content = files

    def urlopen(url, timeout):
        Server.asked.append(url)
        if Server.failure:
            raise Server.failure
        return io.BytesIO(files[url.split("ind.cora.")[1]])

    Server.asked = []
    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return Server


def test_missing_files_are_downloaded_once(server, empty_folder):
    found = planetoid.citations("cora")
    assert found.features.tolist() == [[1, 0], [0, 1], [0, 0], [0, 1]]  # node 2 is missing: isolated
    assert found.labels.tolist() == [0, 1, 0, 1]
    assert found.test.tolist() == [3]
    planetoid.citations("cora")
    assert len(server.asked) == 8
    assert server.asked[0] == "https://raw.githubusercontent.com/kimiyoung/planetoid/master/data/ind.cora.x"
    assert len(list((empty_folder / "planetoid").glob("ind.cora.*[!k]"))) >= 8


def test_without_a_network_it_says_where_to_put_the_file(server, empty_folder):
    server.failure = urllib.error.URLError("no route to host")
    with pytest.raises(RunError, match="no route to host") as caught:
        planetoid.citations("cora")
    for part in (planetoid.URL + "ind.cora.x", str(empty_folder / "planetoid" / "ind.cora.x"), "'karate'"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_download_with_the_wrong_hash_is_not_kept(server, empty_folder):
    server.content["x"] = b"<html>Sign in</html>"
    with pytest.raises(RunError, match=r"is not the file known by that name .*put the right file by hand at"):
        planetoid.citations("cora")
    assert not (empty_folder / "planetoid" / "ind.cora.x").exists()


def test_a_file_with_the_wrong_hash_is_never_unpickled(server, empty_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(planetoid, "unpickle", lambda *_: pytest.fail("unpickled"))
    path = empty_folder / "planetoid" / "ind.cora.x"
    path.parent.mkdir(parents=True)
    path.write_bytes(pickle.dumps(Evil(tmp_path / "it-ran"), 2))
    with pytest.raises(RunError, match=r"ind\.cora\.x' is not the file known by that name"):
        planetoid.citations("cora")
    assert not (tmp_path / "it-ran").exists()


def test_a_huge_file_is_not_read_whole(server, empty_folder):
    path = empty_folder / "planetoid" / "ind.cora.x"
    path.parent.mkdir(parents=True)
    subprocess.run(["truncate", "-s", "50G", str(path)], check=True)  # sparse: takes no disk
    with pytest.raises(RunError, match="is not the file known by that name"):
        planetoid.citations("cora")
