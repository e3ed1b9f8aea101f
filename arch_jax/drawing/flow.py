"""The data flow between the layers of a model, read from one abstract trace.

Every array that a layer takes or returns is marked in the jaxpr (`checkpoint_name`, an identity), so what feeds what is
read from the program that JAX would run. A sum of a block's input and a part's output is an `add` of two sources, a
gate a `mul`: nothing is guessed from names, and a model without residuals has none.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from arch_jax.drawing.functions import TAG
from arch_jax.drawing.reading import Reader
from arch_jax.drawing.steps import Call, FlowStep, Frame, Value


def flow(module: nn.Module, variables: Any, arguments: tuple) -> tuple[Frame, list[Call]]:
    """The outermost frame, whose first steps are the model's inputs, and the calls by number.

    Args:
      module: the model.
      variables: its variables or their shapes.
      arguments: arrays or their shapes, as `module.apply` takes them.
    """
    calls: list[Call] = []
    stack: list[int] = []

    def mark(tree: Any, number: int, side: str, found: list[tuple[str, tuple[int, ...]]]) -> Any:
        def one(path: Any, leaf: Any) -> Any:
            if not isinstance(leaf, jax.Array) or jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
                return leaf
            names = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", "")))) for key in path]
            found.append((" ".join(name for name in names if not name.isdigit()), tuple(leaf.shape)))
            return checkpoint_name(leaf, f"{TAG} {number} {side} {len(found) - 1}")

        return jax.tree_util.tree_map_with_path(one, tree)

    def note(call: Callable, given: tuple, options: dict, context: Any) -> Any:
        layer, method = context.module, context.method_name
        within = calls[stack[-1]].path if stack else None
        if layer.scope is None or method == "setup" or not method.isidentifier() or method == "<lambda>":
            return call(*given, **options)
        path = "/".join(layer.path)
        if path == within:  # a method that the layer calls on itself
            return call(*given, **options)
        number = len(calls)
        taken: list[tuple[str, tuple[int, ...]]] = []
        given, options = mark((given, options), number, "in", taken)
        shapes = tuple(shape for _, shape in taken)
        calls.append(Call(path, layer, method, stack[-1] if stack else None, shapes, []))
        stack.append(number)
        try:
            returned = call(*given, **options)
        finally:
            stack.pop()
        return mark(returned, number, "out", calls[number].outputs)

    def run(variables: Any, *arguments: Any) -> Any:
        with nn.intercept_methods(note):
            return module.apply(variables, *arguments)

    jaxpr = jax.make_jaxpr(run)(variables, *arguments).jaxpr
    reader = Reader(calls)
    held = len(jax.tree.leaves(variables))
    outside = Frame()
    for variable in jaxpr.invars[held:]:
        step = outside.add(FlowStep("input", outside, shape=tuple(variable.aval.shape)))
        reader.given.append(step)
    paths = jax.tree_util.tree_flatten_with_path(variables)[0]
    named = ["/".join(str(getattr(key, "key", key)) for key in path) for path, _ in paths]
    values: list[Value | None] = [
        Value((), weight=True, parameter=name.removeprefix("params/")) if name.startswith("params/") else None
        for name in named
    ]
    # A mask says what is padding; no layer is applied to it.
    values += [None if v.aval.dtype == jnp.bool_ else Value((s,)) for v, s in zip(jaxpr.invars[held:], reader.given)]
    reader.read(jaxpr, values, outside)
    return outside, calls
