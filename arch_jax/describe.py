"""The layers of a model, its size and its cost, without running it."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax

from arch_jax import fields, registry
from arch_jax.flops import Flops, flops_of


@dataclasses.dataclass(frozen=True)
class Layer:
    """One row of the table.

    Attributes:
      path: of the layer, "stack/layers/block_0/mixer".
      kind: its class.
      output: shape of its output for a batch of one; empty if it returns no single array.
      parameters: its own, without those of the layers inside it; name -> shape.
      count: the number of those parameters.
    """

    path: str
    kind: str
    output: tuple[int, ...]
    parameters: dict[str, tuple[int, ...]]
    count: int


@dataclasses.dataclass(frozen=True)
class _Trace:
    """A module traced once, on shapes alone.

    Attributes:
      batch: the example that it was traced with, name -> shape and dtype.
      variables: shapes and dtypes.
      kinds: path of each layer -> its class, in the order of the calls.
      outputs: path -> shape of the layer's output.
      flops: of the whole model.
    """

    batch: dict[str, jax.ShapeDtypeStruct]
    variables: Any
    kinds: dict[str, str]
    outputs: dict[str, tuple[int, ...]]
    flops: Flops


def _trace(module: nn.Module, entry: registry.Entry) -> _Trace:
    batch = jax.eval_shape(lambda: entry.inputs.batch(module, 1, jax.random.key(0)))
    variables = entry.abstract_variables(module)
    kinds: dict[str, str] = {}

    def note(call: Any, arguments: Any, options: Any, context: Any) -> Any:
        kinds.setdefault("/".join(context.module.path), type(context.module).__name__)
        return call(*arguments, **options)

    def run(variables: Any, *arguments: Any) -> Any:
        with nn.intercept_methods(note):
            return module.apply(variables, *arguments, capture_intermediates=True, mutable=["intermediates"])

    # One trace for the table of layers and for the cost: of a deep model each takes seconds.
    jaxpr, (_, captured) = jax.make_jaxpr(run, return_shape=True)(variables, *entry.arguments(batch))
    outputs: dict[str, tuple[int, ...]] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(captured["intermediates"])[0]:
        names = [str(getattr(key, "key", getattr(key, "idx", key))) for key in path]
        if "__call__" in names:
            outputs.setdefault("/".join(names[: names.index("__call__")]), tuple(leaf.shape))
    return _Trace(batch, variables, kinds, outputs, flops_of(jaxpr.jaxpr))


def layers(module: nn.Module, entry: registry.Entry) -> list[Layer]:
    """Every layer, in the order of the calls; a scanned one stands once, with the axis of the scan in front."""
    return _layers(_trace(module, entry))


def _layers(trace: _Trace) -> list[Layer]:
    own: dict[str, dict[str, tuple[int, ...]]] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(trace.variables["params"])[0]:
        names = [str(getattr(key, "key", key)) for key in path]
        own.setdefault("/".join(names[:-1]), {})[names[-1]] = tuple(leaf.shape)
    rows = []
    for path in [*trace.kinds, *(path for path in own if path not in trace.kinds)]:
        shapes = own.get(path, {})
        count = registry.count([jax.ShapeDtypeStruct(shape, "float32") for shape in shapes.values()])
        rows.append(Layer(path or "(model)", trace.kinds.get(path, ""), trace.outputs.get(path, ()), shapes, count))
    return rows


def describe(name: str, changes: dict[str, Any]) -> dict[str, Any]:
    """The output of `arch-jax describe` for a registered model, as JSON data.

    Raises:
      UsageError: unknown model or field, or a value of the wrong type.
    """
    entry = registry.entry(name)
    module = registry.create(name, **changes)
    trace = _trace(module, entry)
    return {
        "name": name,
        "family": entry.family,
        "paper": dataclasses.asdict(entry.paper),
        "parameters": registry.count(trace.variables["params"]),
        "parameters_published": None if changes else entry.parameters,
        "input": {name: list(trace.batch[name].shape) for name in entry.inputs.names},
        "flops": trace.flops.products,
        "flops_elementwise": trace.flops.elementwise,
        "loops_of_unknown_length": trace.flops.unbounded,
        "hyperparameters": [
            {"name": path, "value": fields.to_json(value), "meaning": _meaning(module, path)}
            for path, value in fields.walk(module)
            if not dataclasses.is_dataclass(value)
        ],
        "layers": [dataclasses.asdict(layer) for layer in _layers(trace)],
    }


def _meaning(owner: Any, path: str) -> str:
    *parents, last = path.split(".")
    for name in parents:
        owner = owner[int(name)] if isinstance(owner, tuple) else getattr(owner, name)
    return fields.meanings(type(owner)).get(last, "") if not isinstance(owner, tuple) else ""
