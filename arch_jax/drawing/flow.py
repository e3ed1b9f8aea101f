"""The data flow between the layers of a model, read from one abstract trace.

Every array that a layer takes or returns is marked in the jaxpr (`checkpoint_name`, an identity), so what feeds what is
read from the program that JAX would run. A sum of a block's input and a part's output is an `add` of two sources, a
gate a `mul`: nothing is guessed from names, and a model without residuals has none.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

_TAG = "arch_jax.drawing"
#: Functions whose jit or custom derivative carries their name, and primitives, that are drawn as a step of their own.
_FUNCTIONS = {
    "relu": "ReLU", "relu6": "ReLU6", "silu": "SiLU", "gelu": "GELU", "softmax": "softmax", "sigmoid": "sigmoid",
    "log_softmax": "log softmax", "elu": "ELU", "softplus": "softplus", "leaky_relu": "leaky ReLU",
}  # fmt: skip
_PRIMITIVES = {
    "tanh": "tanh", "logistic": "sigmoid", "erf": "erf", "erfc": "erf", "exp": "exp", "sin": "sin", "cos": "cos",
    "reduce_window_max": "max pool", "reduce_window_sum": "average pool", "reduce_window": "pool", "rev": "reverse",
    "top_k": "top k", "reduce_max": "max", "cumsum": "cumulative sum",
}  # fmt: skip
_SYMBOLS = {"add": "+", "add_any": "+", "sub": "−", "mul": "×", "concatenate": "concatenate", "dot_general": "product"}
#: Products of an argument and a function of itself.
_SELF_GATED = {("sigmoid",): "SiLU", ("tanh",): "GELU", ("erf",): "GELU"}


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a layer while the model was traced.

    Attributes:
      path: of the layer, "stack/layers/block_0/mixer".
      module: the layer; only its class and fields are read.
      method: the method called.
      parent: number of the call that it was made in; None for the model itself.
      inputs: shapes of the arrays that it took.
      outputs: names and shapes of the arrays that it returned; filled when it returns.
    """

    path: str
    module: nn.Module
    method: str
    parent: int | None
    inputs: tuple[tuple[int, ...], ...]
    outputs: list[tuple[str, tuple[int, ...]]]


@dataclasses.dataclass(eq=False)
class Step:
    """A node of the flow within one frame: "input", "call", "loop", "operation" or "parameter".

    Attributes:
      kind: see above.
      frame: the frame that it stands in.
      label: an operation's or parameter's name.
      shape: of its value.
      inputs: what it reads, in order.
      inner: the frame of a call or loop.
    """

    kind: str
    frame: "Frame"
    label: str = ""
    shape: tuple[int, ...] = ()
    inputs: list["Step"] = dataclasses.field(default_factory=list)
    inner: "Frame | None" = None


@dataclasses.dataclass(eq=False)
class Frame:
    """The inside of a call, or of a loop over depth or time.

    Attributes:
      step: what stands for it in the frame around it; None for the outermost.
      number: of the call, or of the call that a loop belongs to; None for the outermost.
      length: turns of a loop; 0 for a call.
      carried: shapes that a loop over time carries from turn to turn.
      over_time: the loop reads data at each turn; one over depth reads parameters only.
      steps: in the order of the program.
      outputs: the steps whose values leave the frame.
      leaving: the step of each returned array, and the place of the array among them.
      carrying: the steps whose values only the next turn of a loop reads.
      entered: inputs by the step outside that they stand for.
    """

    step: Step | None = None
    number: int | None = None
    length: int = 0
    carried: tuple[tuple[int, ...], ...] = ()
    over_time: bool = False
    steps: list[Step] = dataclasses.field(default_factory=list)
    outputs: list[Step] = dataclasses.field(default_factory=list)
    leaving: list[tuple[Step, int]] = dataclasses.field(default_factory=list)
    carrying: list[Step] = dataclasses.field(default_factory=list)
    entered: dict[Step, Step] = dataclasses.field(default_factory=dict)

    def add(self, step: Step) -> Step:
        self.steps.append(step)
        return step

    def outward(self) -> Iterator["Frame"]:
        """The frame itself, then those around it."""
        frame: Frame | None = self
        while frame is not None:
            yield frame
            frame = frame.step.frame if frame.step is not None else None


@dataclasses.dataclass(frozen=True)
class _Value:
    """The origin of an array: steps (several for the joint product of layers), and the functions applied since.

    A `weight` is a layer's parameters, given out to be multiplied elsewhere, or one `parameter` by its path;
    `untouched` is an argument as it came.
    """

    steps: tuple[Step, ...]
    functions: tuple[str, ...] = ()
    weight: bool = False
    untouched: bool = False
    parameter: str = ""


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
            return checkpoint_name(leaf, f"{_TAG} {number} {side} {len(found) - 1}")

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
    reader = _Reader(calls)
    held = len(jax.tree.leaves(variables))
    outside = Frame()
    for variable in jaxpr.invars[held:]:
        step = outside.add(Step("input", outside, shape=tuple(variable.aval.shape)))
        reader.given.append(step)
    paths = jax.tree_util.tree_flatten_with_path(variables)[0]
    named = ["/".join(str(getattr(key, "key", key)) for key in path) for path, _ in paths]
    values: list[_Value | None] = [
        _Value((), weight=True, parameter=name.removeprefix("params/")) if name.startswith("params/") else None
        for name in named
    ]
    # A mask says what is padding; no layer is applied to it.
    values += [None if v.aval.dtype == jnp.bool_ else _Value((s,)) for v, s in zip(jaxpr.invars[held:], reader.given)]
    reader.read(jaxpr, values, outside)
    return outside, calls


class _Reader:
    """Follows the origins of all arrays through a jaxpr."""

    def __init__(self, calls: list[Call]) -> None:
        self.calls = calls
        self.given: list[Step] = []
        self.frames: dict[int, Frame] = {}
        self.loops: list[Frame] = []
        self.outside: Frame | None = None
        self.unread: list[bool] = []
        self.applied: dict[tuple[Step, Frame], Step] = {}

    def read(self, jaxpr: Any, values: list, outside: Frame) -> list:
        """Values of the outputs for `values` of the inputs; `outside` is the outermost frame."""
        self.outside = outside
        return self._jaxpr(jaxpr, values)

    def _jaxpr(self, jaxpr: Any, values: list) -> list:
        known = dict(zip(jaxpr.invars, values))
        value = lambda variable: None if hasattr(variable, "val") else known.get(variable)
        read = {v for equation in jaxpr.eqns for v in equation.invars if not hasattr(v, "val")} | {
            v for v in jaxpr.outvars if not hasattr(v, "val")
        }
        for equation in jaxpr.eqns:
            self.unread = [v not in read for v in equation.outvars]
            results = self._equation(equation, [value(v) for v in equation.invars])
            known.update(zip(equation.outvars, results))
        return [value(v) for v in jaxpr.outvars]

    def _equation(self, equation: Any, values: list) -> list:
        name = equation.primitive.name
        if name == "name" and str(equation.params["name"]).startswith(_TAG):
            _, number, side, place = equation.params["name"].split()
            shape = tuple(equation.outvars[0].aval.shape)
            return [self._mark(int(number), side, int(place), values[0], shape)]
        if name == "scan":
            layers = {step for value in values if value is not None and value.weight for step in value.steps}
            if len(layers) > 1 or _marks(equation.params["jaxpr"].jaxpr):
                return self._scan(equation, values)
        inner = _inner(equation.params)
        if inner is not None and name not in ("scan", "while", "cond", "pallas_call"):
            title = _FUNCTIONS.get(str(equation.params.get("name", "")) or _name_of(equation.params))
            if title is None or _marks(inner):
                return self._jaxpr(inner, values)
            origins = _origins(values)
            if len(origins) == 1:
                (origin,) = origins
                return [dataclasses.replace(origin, functions=_once(*origin.functions, title))] * len(equation.outvars)
        return self._operation(equation, values)

    def _mark(self, number: int, side: str, place: int, value: _Value | None, shape: tuple[int, ...]) -> _Value | None:
        call = self.calls[number]
        if side == "in":
            if value is None or value.weight:
                return value
            frame = self._frame(number)
            outer = self._bring(self._made(value), frame.step.frame)
            if outer not in frame.step.inputs:
                frame.step.inputs.append(outer)
            return _Value((self._enter(outer, frame),), untouched=True)
        if value is not None and value.parameter:
            value = None
        frame = self._frame(number)
        if call.method == "weights":  # of parts, each of which may be applied at another place
            if value is not None and value.weight:
                return value
            if any(step.kind == "call" for step in frame.steps):
                return None  # a parameter beside the parts
            return _Value((frame.step,), weight=True)
        if value is not None and value.untouched and value.steps[0].frame is frame:
            # Returned as it came, as by dropout in evaluation.
            return _Value(tuple(outer for outer, entered in frame.entered.items() if entered is value.steps[0]))
        if value is not None and not value.weight:
            made = self._bring(self._made(value), frame)
            frame.leaving.append((made, place))
            if made not in frame.outputs:
                frame.outputs.append(made)
        elif any(entered.kind == "input" for entered in frame.entered.values()):
            return None  # a constant beside the layer's result
        frame.step.shape = frame.step.shape or shape
        return _Value((frame.step,))

    def _frame(self, number: int) -> Frame:
        if number not in self.frames:
            parent = self.calls[number].parent
            around = self.outside if parent is None else self._frame(parent)
            for loop in reversed(self.loops):
                if loop.number == parent:
                    around = loop
                    break
            frame = Frame(number=number)
            frame.step = around.add(Step("call", around, inner=frame))
            self.frames[number] = frame
        return self.frames[number]

    def _scan(self, equation: Any, values: list) -> list:
        parameters, unread = equation.params, self.unread
        body, consts, carry = parameters["jaxpr"].jaxpr, parameters["num_consts"], parameters["num_carry"]
        marked = _marks(body)
        owner = self._owner(values)
        if marked:
            owner = min((self.calls[n].parent for n in marked), key=lambda n: -1 if n is None else n)
        around = self.outside if owner is None else self._frame(owner)
        for loop in reversed(self.loops):
            if loop.number == owner:
                around = loop
                break
        over_time = any(value is not None and not value.weight for value in values[consts + carry :])
        frame = Frame(number=owner, length=parameters["length"], over_time=over_time)
        frame.step = around.add(Step("loop", around, inner=frame))
        begins = values[consts : consts + carry]
        inside = list(values)
        if over_time:
            carried = body.invars[consts : consts + carry]
            floats = [jnp.issubdtype(v.aval.dtype, jnp.inexact) and v.aval.ndim > 0 for v in carried]
            frame.carried = tuple(tuple(v.aval.shape) for v, is_float in zip(carried, floats) if is_float)
            for i, (begin, is_float) in enumerate(zip(begins, floats)):
                if begin is None and is_float:  # starts at a constant; what it holds later comes from the data
                    state = frame.add(Step("input", frame, label="state"))
                    inside[consts + i] = _Value((state,))
        for i, value in enumerate(inside):
            if value is not None and not value.weight and value.steps[0].frame is not frame:
                outer = self._bring(self._made(value), around)
                if outer not in frame.step.inputs:
                    frame.step.inputs.append(outer)
                inside[i] = _Value((self._enter(outer, frame),))
        self.loops.append(frame)
        results = self._jaxpr(body, inside)
        self.loops.pop()
        returned = []
        for value, variable, alone in zip(results, equation.outvars, unread):
            if alone and value is not None and not value.weight:
                # What only the next turn reads goes round with the loop's arrow, not out of it.
                kept = self._bring(self._made(value), frame)
                if kept not in frame.carrying:
                    frame.carrying.append(kept)
            if value is None or value.weight or alone:
                returned.append(None if alone else value)
                continue
            made = self._bring(self._made(value), frame)
            if made.kind == "input" and made.label != "state" and made in frame.entered.values():
                returned.append(_Value(tuple(o for o, e in frame.entered.items() if e is made)))
                continue
            if made not in frame.outputs:
                frame.outputs.append(made)
            frame.step.shape = frame.step.shape or tuple(variable.aval.shape)
            returned.append(_Value((frame.step,)))
        return returned

    def _owner(self, values: list) -> int | None:
        """The call in which data meet."""
        frames = [v.steps[0].frame for v in values if v is not None and not v.weight]
        frame = _meeting(frames) if frames else self.outside
        return next((outer.number for outer in frame.outward() if outer.number is not None), None)

    def _operation(self, equation: Any, values: list) -> list:
        name, outs = equation.primitive.name, equation.outvars
        named = [v for v in values if v is not None and v.parameter]
        values = [None if v is not None and v.parameter else v for v in values]
        if named and all(v is None for v in values):
            return [named[0] if len({v.parameter for v in named}) == 1 else None] * len(outs)
        if named and name in ("add", "concatenate"):
            values = [*values, *self._parameters(named, values)]
        data = [v for v in values if v is not None and not v.weight]
        weights = [v for v in values if v is not None and v.weight]
        if not data:
            steps = _once(*(step for value in weights for step in value.steps))
            return [_Value(steps, weight=True) if weights else None] * len(outs)
        if weights:
            layers = _once(*(step for value in weights for step in value.steps))
            if all(layer in value.steps for value in data for layer in layers):
                return [_Value(layers)] * len(outs)  # a bias, added to what the same layer made
            read = [self._made(value) for value in data if not set(value.steps) & set(layers)]
            frame = _meeting([step.frame for step in read]) if read else layers[0].frame
            applied = tuple(self._applied(layer, frame, read) for layer in layers)
            if len(applied) == 1:
                applied[0].shape = tuple(outs[0].aval.shape)
            return [_Value(applied)] * len(outs)
        if len(data) == 1 and len(data[0].steps) == len(outs) > 1:
            for step, out in zip(data[0].steps, outs):
                step.shape = tuple(out.aval.shape)
            return [dataclasses.replace(data[0], steps=(step,)) for step in data[0].steps]
        if len(data) > 1:  # a mask is not drawn
            masks = [v for v, variable in zip(values, equation.invars) if variable.aval.dtype == jnp.bool_]
            data = [v for v in data if not any(v is mask for mask in masks)] or data
        origins = _origins(data)
        if len(origins) == 1:
            return [self._function(equation, data, origins[0])] * len(outs)
        made = [self._made(value) for value in origins]
        frame = _meeting([step.frame for step in made])
        read = _once(*(self._bring(step, frame) for step in made))
        if len(read) == 1:
            return [_Value(read)] * len(outs)
        label = _SYMBOLS.get(name) or _FUNCTIONS.get(str(equation.params.get("name", "")), "operation")
        shape = tuple(outs[0].aval.shape) if outs else ()
        step = frame.add(Step("operation", frame, label, shape, list(read)))
        return [_Value((step,))] * len(outs)

    def _parameters(self, named: list[_Value], values: list) -> list[_Value]:
        """Parameters of the very frame that they are added or put beside data in, such as a table of positions."""
        data = [v for v in values if v is not None and not v.weight]
        if not data:
            return []
        frame = _meeting([step.frame for value in data for step in value.steps])
        owner = next((outer.number for outer in frame.outward() if outer.number is not None), None)
        found = []
        for value in named:
            around, _, name = value.parameter.rpartition("/")
            if "bias" in name or "scale" in name:  # a part of the layer before
                continue
            if owner is not None and self.calls[owner].path == around:
                known = [step for step in frame.steps if step.kind == "parameter" and step.label == name]
                step = known[0] if known else frame.add(Step("parameter", frame, name))
                found.append(_Value((step,)))
        return found

    def _applied(self, layer: Step, frame: Frame, read: list[Step]) -> Step:
        """A layer whose parameters were given out, in the frame where they are multiplied."""
        key = (layer, frame)
        if key not in self.applied:
            own = layer if layer.frame is frame else frame.add(Step("call", frame, inner=layer.inner))
            self.applied[key] = own
        step = self.applied[key]
        for one in read:
            brought = self._bring(one, frame)
            if brought is not step and brought not in step.inputs and step not in _before(brought):
                step.inputs.append(brought)
        return step

    def _function(self, equation: Any, data: list[_Value], origin: _Value) -> _Value:
        """The value after a function of one origin."""
        name = equation.primitive.name
        title = _PRIMITIVES.get(name)
        if name == "max" and len(data) == 1 and any(hasattr(v, "val") for v in equation.invars):
            title = "ReLU"
        if name == "reduce_sum" and equation.invars[0].aval.ndim == 4 and len(equation.params["axes"]) == 2:
            title = "sum over places"
        if name in ("div", "mul") and len(data) == 1 and origin.functions[-1:] == ("sum over places",):
            return _Value(origin.steps, (*origin.functions[:-1], "mean over places"))
        if name == "mul" and len(data) == 2 and data[0].functions != data[1].functions:
            gained = tuple(f for f in origin.functions if f not in data[0].functions or f not in data[1].functions)
            title = _SELF_GATED.get(gained)
            if title:
                return dataclasses.replace(
                    origin, functions=_once(*(f for f in origin.functions if f not in gained), title)
                )
        return (
            _Value(origin.steps, origin.functions)
            if title is None
            else _Value(origin.steps, _once(*origin.functions, title))
        )

    def _made(self, value: _Value) -> Step:
        """The step that holds a value: its origin, with the functions applied since as a step of their own."""
        step = value.steps[0]
        if len(value.steps) > 1:
            step = step.frame.add(Step("operation", step.frame, "concatenate", (), list(value.steps)))
        if not value.functions:
            return step
        label = ", ".join(value.functions[:3])
        for other in step.frame.steps:
            if other.kind == "operation" and other.label == label and other.inputs == [step]:
                return other
        return step.frame.add(Step("operation", step.frame, label, step.shape, [step]))

    def _enter(self, outer: Step, frame: Frame) -> Step:
        if outer not in frame.entered:
            frame.entered[outer] = frame.add(Step("input", frame, shape=outer.shape))
        return frame.entered[outer]

    def _bring(self, step: Step, frame: Frame) -> Step:
        """The step that stands for `step` within `frame`."""
        around = list(frame.outward())
        while step.frame not in around:  # out of frames that `frame` is not in
            inner = step.frame
            if step not in inner.outputs:
                inner.outputs.append(step)
            step = inner.step
        for inner in reversed(around[: around.index(step.frame)]):
            if step not in inner.step.inputs:
                inner.step.inputs.append(step)
            step = self._enter(step, inner)
        return step


def _before(step: Step) -> set[Step]:
    """Every step of its frame that a step depends on."""
    found, waiting = set(), [step]
    while waiting:
        for one in waiting.pop().inputs:
            if one not in found:
                found.add(one)
                waiting.append(one)
    return found


def _once(*things: Any) -> tuple:
    return tuple(dict.fromkeys(things))


def _origins(values: list) -> list[_Value]:
    """Distinct origins; the functions of equal ones are united."""
    found: dict[tuple, _Value] = {}
    for value in values:
        if value is not None and not value.weight:
            before = found.get(value.steps)
            functions = value.functions if before is None else _once(*before.functions, *value.functions)
            found[value.steps] = _Value(value.steps, functions)
    return list(found.values())


def _meeting(frames: list[Frame]) -> Frame:
    """The innermost frame, or where frames stand beside each other the one around them."""
    deepest = max(frames, key=lambda frame: len(list(frame.outward())))
    for frame in deepest.outward():
        if all(frame in other.outward() or other in frame.outward() for other in frames):
            return frame
    return frames[0]


def _inner(parameters: dict[str, Any]) -> Any:
    for key in ("call_jaxpr", "fun_jaxpr", "jaxpr"):
        found = parameters.get(key)
        found = getattr(found, "jaxpr", found)
        if hasattr(found, "eqns"):
            return found
    return None


def _name_of(parameters: dict[str, Any]) -> str:
    function = parameters.get("jvp_jaxpr_fun") or parameters.get("call_jaxpr")
    info = getattr(getattr(function, "jaxpr", function), "debug_info", None)
    return str(getattr(info, "func_name", "")).split(" ")[0]


def _marks(jaxpr: Any) -> list[int]:
    """Numbers of the calls marked in a jaxpr or within its equations."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "name" and str(equation.params["name"]).startswith(_TAG):
            found.append(int(equation.params["name"].split()[1]))
        inner = _inner(equation.params)
        if inner is not None:
            found += _marks(inner)
    return found
