"""Long sums that a traced program keeps in fewer than 32 bits: bfloat16 holds 256 + 1 as 256."""

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
from jax.extend import core
from jax.extend.source_info_util import summarize

#: Primitives that add many numbers into few places, one after another.
_SCATTERED = ("scatter-add", "scatter_add", "cumsum")
_ADDITIONS = ("add", "add_any", "sub")


def narrow_sums(closed: Any) -> list[str]:
    """The sums of a program that stand still when they are long, each with the line of the source.

    Those are scattered sums, and what a loop begins with 0, carries and adds to: the gradient of what its steps share.

    Args:
      closed: a jaxpr, as `jax.make_jaxpr` gives it.
    """
    return sorted(set(_in(closed.jaxpr)))


def _narrow(variable: Any) -> bool:
    dtype = variable.aval.dtype
    return jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32


def _in(jaxpr: Any) -> Iterator[str]:
    made = {id(out): equation for equation in jaxpr.eqns for out in equation.outvars}
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name in _SCATTERED and _narrow(equation.invars[0]):
            yield f"{name} of {equation.outvars[0].aval.str_short()} at {summarize(equation.source_info)}"
        if name == "scan":
            body, first = equation.params["jaxpr"].jaxpr, equation.params["num_consts"]
            carried = slice(first, first + equation.params["num_carry"])
            zeros = [_is_zero(begin, made) for begin in equation.invars[carried]]
            yield from _carried(body, zeros, body.invars[carried], body.outvars)
        for inner in _inner(equation):
            yield from _in(inner)


def _inner(equation: Any) -> Iterator[Any]:
    for value in equation.params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            if isinstance(one, core.ClosedJaxpr):
                yield one.jaxpr
            elif isinstance(one, core.Jaxpr):
                yield one


def _is_zero(variable: Any, made: dict) -> bool:
    """Whether a loop's carry begins with nothing, as a sum does, and a residual stream does not."""
    while id(variable) in made:
        if made[id(variable)].primitive.name not in ("broadcast_in_dim", "convert_element_type", "copy"):
            return False
        variable = made[id(variable)].invars[0]
    return isinstance(variable, core.Literal) and not variable.val


def _carried(body: Any, zeros: list[bool], before: list, after: list) -> Iterator[str]:
    """What a loop begins with 0, carries, and adds to."""
    made = {id(out): equation for equation in body.eqns for out in equation.outvars}
    for zero, old, new in zip(zeros, before, after):
        equation = made.get(id(new)) if zero else None
        while equation is not None and equation.primitive.name in ("convert_element_type", "copy"):
            equation = made.get(id(equation.invars[0]))
        if equation is None or not _narrow(old) or equation.primitive.name not in _ADDITIONS:
            continue
        if any(_comes_from(term, old, made) for term in equation.invars):
            yield f"carried sum of {new.aval.str_short()} at {summarize(equation.source_info)}"


def _comes_from(term: Any, old: Any, made: dict) -> bool:
    while id(term) in made and made[id(term)].primitive.name in ("convert_element_type", "copy"):
        term = made[id(term)].invars[0]
    return term is old
