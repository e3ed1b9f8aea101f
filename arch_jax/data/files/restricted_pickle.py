"""Python 2 pickles of NumPy arrays, SciPy matrices and number tables, read without executing them.

A pickle is a program that can do anything. Here only the few instructions that such files are made of are allowed, and
every class that they name is replaced by a stand-in of this file that can hold values and do nothing.
"""

import io
import math
import pickle
import pickletools
from typing import Any

import numpy as np

from arch_jax.errors import RunError

__all__ = ["Matrix", "Table", "unpickle"]

# Nodes times features of the largest feature matrix that is unpacked: five times Citeseer's.
_MOST_VALUES = 2**26
# Instructions that data is made of, of which there may be many: numbers, lists, and what keeps them together.
_PLENTIFUL = {"BININT", "BININT1", "BININT2", "EMPTY_LIST", "APPEND", "APPENDS", "MARK", "BINPUT", "LONG_BINPUT"}
# Those that build objects, of which real files have at most 16 of a kind. So few can't nest deep enough to exhaust the
# stack, nor refer to one another often enough to grow exponentially.
_RARE = {
    *("PROTO", "STOP", "GLOBAL", "REDUCE", "NEWOBJ", "BUILD", "NONE", "NEWTRUE", "NEWFALSE"),
    *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_DICT", "SETITEM", "SETITEMS"),
    *("BINGET", "SHORT_BINSTRING", "BINSTRING"),
}
_MOST_OF_A_KIND = 24


class Matrix:
    """Stands in for a SciPy matrix in compressed sparse rows.

    Attributes:
      shape: (rows, columns).
      starts: where each row begins among `columns` and `values`, "rows+1".
      columns: of each value.
      values: those that are stored.
    """

    def __setstate__(self, state: Any):
        if not isinstance(state, dict):
            raise _Wrong("a sparse matrix without its parts")
        parts = {key: value for key, value in state.items() if isinstance(key, str)}
        shape = parts.get("_shape", parts.get("shape"))
        arrays = [getattr(parts.get(name), "values", None) for name in ("indptr", "indices", "data")]
        if not _sizes(shape, 2) or any(not isinstance(array, np.ndarray) or array.ndim != 1 for array in arrays):
            raise _Wrong("a sparse matrix without its shape, indptr, indices or data")
        self.shape, (self.starts, self.columns, self.values) = shape, arrays
        counts = np.diff(self.starts) if len(self.starts) == shape[0] + 1 else np.array([-1])
        if self.starts.dtype.kind != "i" or self.columns.dtype.kind != "i" or (counts < 0).any():
            raise _Wrong("a sparse matrix whose rows don't follow one another")
        if not self.starts[-1] - self.starts[0] == self.starts[-1] == len(self.columns) == len(self.values):
            raise _Wrong("a sparse matrix whose rows don't hold its values")
        if len(self.columns) and not 0 <= self.columns.min() <= self.columns.max() < shape[1]:
            raise _Wrong(f"a sparse matrix with values outside its {shape[1]} columns")

    def dense(self) -> np.ndarray:
        """The whole matrix, float32 "rows columns"."""
        if math.prod(self.shape) > _MOST_VALUES:
            raise RunError(f"a sparse matrix has shape {self.shape}; expected at most {_MOST_VALUES:,} values")
        matrix = np.zeros(self.shape, np.float32)
        matrix[np.repeat(np.arange(self.shape[0]), np.diff(self.starts)), self.columns] = self.values
        return matrix


class Table:
    """Stands in for a dictionary of lists: the nodes that each node cites or is cited by."""

    def __init__(self, *_):
        self.rows: dict[int, list] = {}

    def __setitem__(self, key: Any, value: Any):
        if type(key) is not int or type(value) is not list or any(type(item) is not int for item in value):
            raise _Wrong("a table that is not of numbers")
        self.rows[key] = value

    def __setstate__(self, state: Any):
        raise _Wrong("a dictionary with a state")

    def links(self) -> np.ndarray:
        """Every (key, item), int32 "links 2"."""
        return np.array([(key, item) for key, items in self.rows.items() for item in items], np.int32).reshape(-1, 2)


class _Wrong(Exception):
    """Content that a pickle should not hold; its message is a noun phrase."""


class _Dtype:
    _KNOWN = ("i4", "i8", "f4", "f8")

    def __init__(self, code: Any = None, *_):
        if code not in self._KNOWN:
            raise _Wrong("an array of another type than int32, int64, float32 and float64")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any):
        if type(state) is not tuple or len(state) < 2 or state[1] not in ("<", ">"):
            raise _Wrong("an array type without its byte order")
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    def __setstate__(self, state: Any):
        if type(state) is not tuple or len(state) != 5:
            raise _Wrong("an array without its parts")
        _, shape, dtype, by_columns, content = state
        if not _sizes(shape, None) or not isinstance(dtype, _Dtype) or type(content) is not str:
            raise _Wrong("an array without its shape, type or values")
        if math.prod(shape) * dtype.dtype.itemsize != len(content):
            raise _Wrong(f"an array of {len(content)} bytes for {' x '.join(map(str, shape))} values")
        values = np.frombuffer(content.encode("latin1"), dtype.dtype).astype(dtype.dtype.newbyteorder("="))
        self.values = values.reshape(shape, order="F" if by_columns else "C")


class _Reconstruct:
    def __new__(cls, *_) -> Any:
        return _Array()

    def __setstate__(self, state: Any):
        raise _Wrong("a function with a state")


class _List:
    """Only an argument of `defaultdict`; lists themselves are built without it."""

    def __init__(self, *_):
        raise _Wrong("a call of list")

    def __setstate__(self, state: Any):
        raise _Wrong("a function with a state")


_STAND_INS: dict[tuple[str, str], type] = {
    ("numpy.core.multiarray", "_reconstruct"): _Reconstruct,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("scipy.sparse.csr", "csr_matrix"): Matrix,
    ("collections", "defaultdict"): Table,
    ("__builtin__", "list"): _List,
}


def _sizes(shape: Any, count: int | None) -> bool:
    """True if `shape` is a tuple of at most 2 (or exactly `count`) sizes that an array can have."""
    whole = type(shape) is tuple and all(type(size) is int and 0 <= size < 2**31 for size in shape)
    return whole and (len(shape) in (1, 2) if count is None else len(shape) == count)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        if (module, name) not in _STAND_INS:
            raise _Wrong(f"the name {f'{module}.{name}'[:80]!r}")
        return _STAND_INS[module, name]


def unpickle(content: bytes, where: str) -> "np.ndarray | Matrix | Table":
    """The contents of a Planetoid file, read without executing the pickle.

    Args:
      content: the file's bytes.
      where: the file's name, for error messages.

    Returns:
      An array, a sparse `Matrix`, or a `Table` of links.

    Raises:
      RunError: the pickle is damaged, or holds anything that Planetoid files are not made of.
    """
    try:
        _check_instructions(content)
        held = _Unpickler(io.BytesIO(content), encoding="latin1").load()
        held = held.values if type(held) is _Array else held
        if not isinstance(held, np.ndarray | Matrix | Table):
            raise _Wrong("neither an array, nor a sparse matrix, nor a table")
        if isinstance(held, Matrix) and not hasattr(held, "shape"):
            raise _Wrong("a sparse matrix without its parts")
    except _Wrong as wrong:
        raise RunError(
            f"{where!r} holds {wrong}, which no file of the Planetoid data has; expected an array, a sparse matrix or "
            f"a table of links"
        ) from None
    except Exception as error:  # a damaged pickle raises anything
        raise RunError(
            f"{where!r} is not a whole pickle ({type(error).__name__}); expected a Planetoid file"
        ) from error
    return held


def _check_instructions(content: bytes) -> None:
    """Reads the pickle as a list of instructions, executing none, and refuses those that no genuine file has."""
    counts: dict[str, int] = {}
    for instruction, argument, _ in pickletools.genops(content):
        name = instruction.name
        counts[name] = counts.get(name, 0) + 1
        if name not in _PLENTIFUL and name not in _RARE:
            raise _Wrong(f"the pickle instruction {name}")
        if name in _RARE and counts[name] > _MOST_OF_A_KIND:
            raise _Wrong(f"more than {_MOST_OF_A_KIND} of the pickle instruction {name}")
        # The unpickler makes room for all places up to the one named.
        if name == "LONG_BINPUT" and argument > len(content):
            raise _Wrong(f"the memory place {argument}")
