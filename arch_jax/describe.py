"""What a model is made of: a table of its layers, its size and its cost, without running it."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax

from arch_jax import fields, registry
from arch_jax.flops import count_flops


@dataclasses.dataclass(frozen=True)
class Layer:
    """One row of the table.

    Attributes:
      path: where the layer is, "stack/layers/block_0/mixer".
      kind: its class.
      output: shape of what it gives for a batch of one; empty where it gives no single array.
      parameters: its own, without those of the layers inside it; name -> shape.
      count: how many numbers those are.
    """

    path: str
    kind: str
    output: tuple[int, ...]
    parameters: dict[str, tuple[int, ...]]
    count: int


def layers(module: nn.Module, entry: registry.Entry) -> list[Layer]:
    """Every layer, in the order of the calls; a scanned one stands once, with the axis of the scan in front."""
    batch = _example(module, entry)
    variables = entry.abstract_variables(module)
    kinds: dict[str, str] = {}

    def note(call: Any, arguments: Any, options: Any, context: Any) -> Any:
        kinds.setdefault("/".join(context.module.path), type(context.module).__name__)
        return call(*arguments, **options)

    def run(variables: Any, *arguments: Any) -> Any:
        with nn.intercept_methods(note):
            return module.apply(variables, *arguments, capture_intermediates=True, mutable=["intermediates"])[1]

    captured = jax.eval_shape(run, variables, *entry.arguments(batch))["intermediates"]
    outputs = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(captured)[0]:
        names = [str(getattr(key, "key", getattr(key, "idx", key))) for key in path]
        if "__call__" in names:
            outputs.setdefault("/".join(names[: names.index("__call__")]), tuple(leaf.shape))
    own: dict[str, dict[str, tuple[int, ...]]] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(variables["params"])[0]:
        names = [str(getattr(key, "key", key)) for key in path]
        own.setdefault("/".join(names[:-1]), {})[names[-1]] = tuple(leaf.shape)
    order = [*kinds, *(path for path in own if path not in kinds)]
    rows = []
    for path in order:
        shapes = own.get(path, {})
        count = registry.count([jax.ShapeDtypeStruct(shape, "float32") for shape in shapes.values()])
        rows.append(Layer(path or "(model)", kinds.get(path, ""), outputs.get(path, ()), shapes, count))
    return rows


def describe(name: str, changes: dict[str, Any]) -> dict[str, Any]:
    """All that `arch-jax describe` tells of a registered model, as JSON data.

    Raises:
      UsageError: unknown model or field, or a value of the wrong type.
    """
    entry = registry.entry(name)
    module = registry.create(name, **changes)
    batch = _example(module, entry)
    flops = count_flops(lambda v, *a: module.apply(v, *a), entry.abstract_variables(module), *entry.arguments(batch))
    meanings = {path: _meaning(module, path) for path, _ in fields.walk(module)}
    return {
        "name": name,
        "family": entry.family,
        "paper": dataclasses.asdict(entry.paper),
        "parameters": registry.count(entry.abstract_variables(module)["params"]),
        "parameters_published": None if changes else entry.parameters,
        "input": {name: list(batch[name].shape) for name in entry.inputs.names},
        "flops": flops.products,
        "flops_elementwise": flops.elementwise,
        "loops_of_unknown_length": flops.unbounded,
        "hyperparameters": [
            {"name": path, "value": fields.to_json(value), "meaning": meanings[path]}
            for path, value in fields.walk(module)
            if not dataclasses.is_dataclass(value)
        ],
        "layers": [dataclasses.asdict(layer) for layer in layers(module, entry)],
    }


def _example(module: nn.Module, entry: registry.Entry) -> dict[str, jax.ShapeDtypeStruct]:
    inputs = entry.inputs
    return jax.eval_shape(lambda: inputs.batch(module, 1, jax.random.key(0)))


def _meaning(owner: Any, path: str) -> str:
    *parents, last = path.split(".")
    for name in parents:
        owner = owner[int(name)] if isinstance(owner, tuple) else getattr(owner, name)
    return fields.meanings(type(owner)).get(last, "") if not isinstance(owner, tuple) else ""
