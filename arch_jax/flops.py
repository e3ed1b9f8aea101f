"""Floating-point operations of a computation, counted from its jaxpr, loops multiplied out.

XLA's own estimate counts a loop's body once, however often it runs; so it can't compare scanned with unrolled layers.
"""

import dataclasses
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import numpy as np

#: Primitives that move or relabel data, or only look at integers: no floating-point work.
_FREE = {
    "broadcast_in_dim", "reshape", "transpose", "squeeze", "expand_dims", "slice", "dynamic_slice", "copy", "copy_p",
    "dynamic_update_slice", "concatenate", "gather", "scatter", "pad", "rev", "convert_element_type", "iota",
    "select_n", "stop_gradient", "bitcast_convert_type", "split", "device_put", "random_wrap", "random_unwrap",
    "optimization_barrier", "sharding_constraint", "name", "argmax", "argmin", "is_finite",
}  # fmt: skip
#: Functions by name that reach a result by fewer products than its definition has, and how many times fewer.
_SAVING = {"winograd": Fraction(36, 16)}
_REDUCTIONS = {"reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "cumsum", "cummax", "cumlogsumexp", "cumprod"}


@dataclasses.dataclass(frozen=True)
class Flops:
    """The cost of a computation.

    Attributes:
      products: of matrix products and convolutions, two for a multiply and an add. What the literature counts: those
        of the definition, also where a form needs fewer.
      elementwise: one for every element of every other floating-point result, and of what a reduction reads.
      unbounded: loops of unknown length; their bodies were counted once.
    """

    products: int = 0
    elementwise: int = 0
    unbounded: int = 0

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(
            self.products + other.products, self.elementwise + other.elementwise, self.unbounded + other.unbounded
        )

    def __mul__(self, times: int) -> "Flops":
        return Flops(self.products * times, self.elementwise * times, self.unbounded)


def count_flops(function: Callable, *arguments: Any) -> Flops:
    """The operations of `function(*arguments)`, whose arguments may be abstract (`jax.ShapeDtypeStruct`)."""
    return flops_of(jax.make_jaxpr(function)(*arguments).jaxpr)


def flops_of(jaxpr: Any) -> Flops:
    """The operations of a function that was traced already."""
    return _of_jaxpr(jaxpr)


def _of_jaxpr(jaxpr: Any) -> Flops:
    return sum((_of_equation(equation) for equation in jaxpr.eqns), Flops())


def _of_equation(equation: Any) -> Flops:
    name, parameters = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return Flops(products=2 * _size(equation.outvars[0]) * math.prod(left[i] for i in contracted))
    if name == "conv_general_dilated":
        kernel, numbers = equation.invars[1].aval.shape, parameters["dimension_numbers"]
        # Each output element reads the kernel's window over the input channels of its own group.
        window = math.prod(kernel[i] for i in numbers.rhs_spec[1:])
        return Flops(products=2 * _size(equation.outvars[0]) * window)
    if name == "scan":
        return _of_jaxpr(parameters["jaxpr"].jaxpr) * parameters["length"]
    if name == "while":
        once = _of_jaxpr(parameters["body_jaxpr"].jaxpr) + _of_jaxpr(parameters["cond_jaxpr"].jaxpr)
        return once + Flops(unbounded=1)
    if name == "cond":  # the most expensive branch
        return max((_of_jaxpr(b.jaxpr) for b in parameters["branches"]), key=lambda f: f.products + f.elementwise)
    if name == "pallas_call":
        grid = math.prod(parameters["grid_mapping"].grid)
        return _of_jaxpr(parameters["jaxpr"]) * grid
    if parameters.get("name") in _SAVING:
        spent = _of_jaxpr(parameters["jaxpr"].jaxpr).products
        return Flops(products=int(spent * _SAVING[parameters["name"]]))
    if inner := _inner(name, parameters):
        return sum((_of_jaxpr(getattr(jaxpr, "jaxpr", jaxpr)) for jaxpr in inner), Flops())
    if name in _FREE or not equation.outvars:
        return Flops()
    counted = equation.invars[:1] if name in _REDUCTIONS else equation.outvars[:1]
    return Flops(elementwise=sum(_size(v) for v in counted if _is_float(v)))


def _inner(name: str, parameters: dict[str, Any]) -> list[Any]:
    """The jaxprs that a call-like equation runs: pjit, remat, custom derivatives, shard_map ..."""
    for key in ("call_jaxpr", "fun_jaxpr", "jaxpr"):
        if key in parameters and hasattr(getattr(parameters[key], "jaxpr", parameters[key]), "eqns"):
            return [parameters[key]]
    return []


def _size(variable: Any) -> int:
    return int(np.prod(variable.aval.shape, dtype=np.int64))


def _is_float(variable: Any) -> bool:
    return jax.numpy.issubdtype(variable.aval.dtype, jax.numpy.inexact)
