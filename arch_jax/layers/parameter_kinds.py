"""The kind of a parameter: a matrix, a table of vectors, or neither, which decides about weight decay and Muon.

A matrix takes one space to another; a table is read row by row. Biases, scales, rates of decay, mixing shares and the
numbers of a state-space model are neither, whatever their rank. Most parameters say so by their name or their rank; for
the others there is a list, which a file of one's own adds to. (Not beside the layers: what a name is would depend on
what else was imported.)
"""

from collections.abc import Sequence
from typing import Literal, get_args

from arch_jax.errors import UsageError, unknown

ParameterKind = Literal["matrix", "table", "other"]

_DECLARED: dict[str, ParameterKind] = {
    # Of one channel's state space each, with an axis for the channels (S4, Mamba).
    **dict.fromkeys(("log_A_real", "A_imag", "A_log", "P", "B", "C"), "other"),
    "bonus": "other",  # a weight for each number of each head (RWKV)
    "codes": "table",
}
_SUFFIXES: dict[str, ParameterKind] = {"kernel": "matrix", "embedding": "table", "bias": "other", "scale": "other"}


def declare(kind: str, *names: str) -> None:
    """Says what the parameters of these names are, where their rank would mislead.

    Raises:
      UsageError: a kind that there is not, or a name that is declared otherwise already.
    """
    if kind not in get_args(ParameterKind):
        raise unknown("kind of parameter", str(kind), get_args(ParameterKind))
    for name in names:
        if _DECLARED.setdefault(name, kind) != kind:
            raise UsageError(f"the parameter {name!r} is declared as {_DECLARED[name]!r} already, and now as {kind!r}")


def parameter_kind(path: Sequence[str], rank: int) -> ParameterKind:
    """The kind of a parameter.

    Args:
      path: names from the tree's root to the parameter.
      rank: number of its axes; layers that are scanned (below "layers") have one more in front, which doesn't count.
    """
    name = path[-1]
    if name in _DECLARED:
        return _DECLARED[name]
    for suffix, kind in _SUFFIXES.items():
        if name == suffix or name.endswith(f"_{suffix}"):
            return kind
    return "matrix" if rank - ("layers" in path[:-1]) >= 2 else "other"
