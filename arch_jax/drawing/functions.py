"""The jaxpr's own vocabulary: which equations hold others, carry a mark, or are a function with a name."""

import dataclasses
from typing import Any

from arch_jax.drawing.steps import Value, once

#: How a mark on an array begins: then the call's number, "in" or "out", and the array's place.
TAG = "arch_jax.drawing"

#: Functions whose jit or custom derivative carries their name, and primitives, that are drawn as a step of their own.
FUNCTIONS = {
    "relu": "ReLU", "relu6": "ReLU6", "silu": "SiLU", "gelu": "GELU", "softmax": "softmax", "sigmoid": "sigmoid",
    "log_softmax": "log softmax", "elu": "ELU", "softplus": "softplus", "leaky_relu": "leaky ReLU",
}  # fmt: skip

_PRIMITIVES = {
    "tanh": "tanh", "logistic": "sigmoid", "erf": "erf", "erfc": "erf", "exp": "exp", "sin": "sin", "cos": "cos",
    "reduce_window_max": "max pool", "reduce_window_sum": "average pool", "reduce_window": "pool", "rev": "reverse",
    "top_k": "top k", "reduce_max": "max", "cumsum": "cumulative sum",
}  # fmt: skip

SYMBOLS = {"add": "+", "add_any": "+", "sub": "−", "mul": "×", "concatenate": "concatenate", "dot_general": "product"}

#: Products of an argument and a function of itself.
_SELF_GATED = {("sigmoid",): "SiLU", ("tanh",): "GELU", ("erf",): "GELU"}


def inner_jaxpr(parameters: dict[str, Any]) -> Any:
    """The jaxpr that an equation holds; None if it holds none."""
    for key in ("call_jaxpr", "fun_jaxpr", "jaxpr"):
        found = parameters.get(key)
        found = getattr(found, "jaxpr", found)
        if hasattr(found, "eqns"):
            return found
    return None


def name_of(parameters: dict[str, Any]) -> str:
    """The name of the function whose derivative an equation replaces; "" without one."""
    function = parameters.get("jvp_jaxpr_fun") or parameters.get("call_jaxpr")
    info = getattr(getattr(function, "jaxpr", function), "debug_info", None)
    return str(getattr(info, "func_name", "")).split(" ")[0]


def marks(jaxpr: Any) -> list[int]:
    """Numbers of the calls marked in a jaxpr or within its equations."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "name" and str(equation.params["name"]).startswith(TAG):
            found.append(int(equation.params["name"].split()[1]))
        inner = inner_jaxpr(equation.params)
        if inner is not None:
            found += marks(inner)
    return found


def _is_zero(variable: Any) -> bool:
    value = getattr(variable, "val", None)
    return value is not None and getattr(value, "ndim", 0) == 0 and float(value) == 0


def with_function(equation: Any, data: list[Value], origin: Value) -> Value:
    """The value after a function of one origin."""
    name = equation.primitive.name
    title = _PRIMITIVES.get(name)
    if name == "max" and len(data) == 1 and any(_is_zero(v) for v in equation.invars):
        title = "ReLU"
    if name == "reduce_sum" and equation.invars[0].aval.ndim == 4 and len(equation.params["axes"]) == 2:
        title = "sum over places"
    if name in ("div", "mul") and len(data) == 1 and origin.functions[-1:] == ("sum over places",):
        return Value(origin.steps, (*origin.functions[:-1], "mean over places"))
    if name == "mul" and len(data) == 2 and data[0].functions != data[1].functions:
        gained = tuple(f for f in origin.functions if f not in data[0].functions or f not in data[1].functions)
        title = _SELF_GATED.get(gained)
        if title:
            return dataclasses.replace(origin, functions=once(*(f for f in origin.functions if f not in gained), title))
    return (
        Value(origin.steps, origin.functions) if title is None else Value(origin.steps, once(*origin.functions, title))
    )
