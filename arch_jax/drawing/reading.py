"""From a jaxpr with marks to the data flow that it holds."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from arch_jax.drawing.functions import FUNCTIONS, SYMBOLS, TAG, inner_jaxpr, marks, name_of, with_function
from arch_jax.drawing.steps import Call, FlowStep, Frame, Value, meeting, once, origins, sources_of


class Reader:
    """Follows the origins of all arrays through a jaxpr."""

    def __init__(self, calls: list[Call]) -> None:
        self.calls = calls
        self.given: list[FlowStep] = []
        self.frames: dict[int, Frame] = {}
        self.loops: list[Frame] = []
        self.outside: Frame | None = None
        self.unread: list[bool] = []
        self.applied: dict[tuple[FlowStep, Frame], FlowStep] = {}

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
        if name == "name" and str(equation.params["name"]).startswith(TAG):
            _, number, side, place = equation.params["name"].split()
            shape = tuple(equation.outvars[0].aval.shape)
            return [self._mark(int(number), side, int(place), values[0], shape)]
        if name == "scan":
            layers = {step for value in values if value is not None and value.weight for step in value.steps}
            if len(layers) > 1 or marks(equation.params["jaxpr"].jaxpr):
                return self._scan(equation, values)
        inner = inner_jaxpr(equation.params)
        if inner is not None and name not in ("scan", "while", "cond", "pallas_call"):
            title = FUNCTIONS.get(str(equation.params.get("name", "")) or name_of(equation.params))
            if title is None or marks(inner):
                return self._jaxpr(inner, values)
            read = origins(values)
            if len(read) == 1:
                (origin,) = read
                return [dataclasses.replace(origin, functions=once(*origin.functions, title))] * len(equation.outvars)
        return self._operation(equation, values)

    def _mark(self, number: int, side: str, place: int, value: Value | None, shape: tuple[int, ...]) -> Value | None:
        call = self.calls[number]
        if side == "in":
            if value is None or value.weight:
                return value
            frame = self._frame(number)
            outer = self._bring(self._made(value), frame.step.frame)
            if outer not in frame.step.inputs:
                frame.step.inputs.append(outer)
            return Value((self._enter(outer, frame),), untouched=True)
        if value is not None and value.parameter:
            value = None
        frame = self._frame(number)
        if call.method == "weights":  # of parts, each of which may be applied at another place
            if value is not None and value.weight:
                return value
            if any(step.kind == "call" for step in frame.steps):
                return None  # a parameter beside the parts
            return Value((frame.step,), weight=True)
        if value is not None and value.untouched and value.steps[0].frame is frame:
            # Returned as it came, as by dropout in evaluation.
            return Value(tuple(outer for outer, entered in frame.entered.items() if entered is value.steps[0]))
        if value is not None and not value.weight:
            made = self._bring(self._made(value), frame)
            frame.leaving.append((made, place))
            if made not in frame.outputs:
                frame.outputs.append(made)
        elif any(entered.kind == "input" for entered in frame.entered.values()):
            return None  # a constant beside the layer's result
        frame.step.shape = frame.step.shape or shape
        return Value((frame.step,))

    def _frame(self, number: int) -> Frame:
        if number not in self.frames:
            parent = self.calls[number].parent
            around = self.outside if parent is None else self._frame(parent)
            for loop in reversed(self.loops):
                if loop.number == parent:
                    around = loop
                    break
            frame = Frame(number=number)
            frame.step = around.add(FlowStep("call", around, inner=frame))
            self.frames[number] = frame
        return self.frames[number]

    def _scan(self, equation: Any, values: list) -> list:
        parameters, unread = equation.params, self.unread
        body, consts, carry = parameters["jaxpr"].jaxpr, parameters["num_consts"], parameters["num_carry"]
        marked = marks(body)
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
        frame.step = around.add(FlowStep("loop", around, inner=frame))
        begins = values[consts : consts + carry]
        inside = list(values)
        if over_time:
            carried = body.invars[consts : consts + carry]
            floats = [jnp.issubdtype(v.aval.dtype, jnp.inexact) and v.aval.ndim > 0 for v in carried]
            frame.carried = tuple(tuple(v.aval.shape) for v, is_float in zip(carried, floats) if is_float)
            for i, (begin, is_float) in enumerate(zip(begins, floats)):
                if begin is None and is_float:  # starts at a constant; what it holds later comes from the data
                    state = frame.add(FlowStep("input", frame, label="state"))
                    inside[consts + i] = Value((state,))
        for i, value in enumerate(inside):
            if value is not None and not value.weight and value.steps[0].frame is not frame:
                outer = self._bring(self._made(value), around)
                if outer not in frame.step.inputs:
                    frame.step.inputs.append(outer)
                inside[i] = Value((self._enter(outer, frame),))
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
                returned.append(Value(tuple(o for o, e in frame.entered.items() if e is made)))
                continue
            if made not in frame.outputs:
                frame.outputs.append(made)
            frame.step.shape = frame.step.shape or tuple(variable.aval.shape)
            returned.append(Value((frame.step,)))
        return returned

    def _owner(self, values: list) -> int | None:
        """The call in which data meet."""
        frames = [v.steps[0].frame for v in values if v is not None and not v.weight]
        frame = meeting(frames) if frames else self.outside
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
            steps = once(*(step for value in weights for step in value.steps))
            return [Value(steps, weight=True) if weights else None] * len(outs)
        if weights:
            layers = once(*(step for value in weights for step in value.steps))
            if all(layer in value.steps for value in data for layer in layers):
                return [Value(layers)] * len(outs)  # a bias, added to what the same layer made
            read = [self._made(value) for value in data if not set(value.steps) & set(layers)]
            frame = meeting([step.frame for step in read]) if read else layers[0].frame
            applied = tuple(self._applied(layer, frame, read) for layer in layers)
            if len(applied) == 1:
                applied[0].shape = tuple(outs[0].aval.shape)
            return [Value(applied)] * len(outs)
        if len(data) == 1 and len(data[0].steps) == len(outs) > 1:
            for step, out in zip(data[0].steps, outs):
                step.shape = tuple(out.aval.shape)
            return [dataclasses.replace(data[0], steps=(step,)) for step in data[0].steps]
        if len(data) > 1:  # a mask is not drawn
            masks = [v for v, variable in zip(values, equation.invars) if variable.aval.dtype == jnp.bool_]
            data = [v for v in data if not any(v is mask for mask in masks)] or data
        apart = origins(data)
        if len(apart) == 1:
            return [with_function(equation, data, apart[0])] * len(outs)
        made = [self._made(value) for value in apart]
        frame = meeting([step.frame for step in made])
        read = once(*(self._bring(step, frame) for step in made))
        if len(read) == 1:
            return [Value(read)] * len(outs)
        label = SYMBOLS.get(name) or FUNCTIONS.get(str(equation.params.get("name", "")), "operation")
        shape = tuple(outs[0].aval.shape) if outs else ()
        step = frame.add(FlowStep("operation", frame, label, shape, list(read)))
        return [Value((step,))] * len(outs)

    def _parameters(self, named: list[Value], values: list) -> list[Value]:
        """Parameters of the very frame that they are added or put beside data in, such as a table of positions."""
        data = [v for v in values if v is not None and not v.weight]
        if not data:
            return []
        frame = meeting([step.frame for value in data for step in value.steps])
        owner = next((outer.number for outer in frame.outward() if outer.number is not None), None)
        found = []
        for value in named:
            around, _, name = value.parameter.rpartition("/")
            if "bias" in name or "scale" in name:  # a part of the layer before
                continue
            if owner is not None and self.calls[owner].path == around:
                known = [step for step in frame.steps if step.kind == "parameter" and step.label == name]
                step = known[0] if known else frame.add(FlowStep("parameter", frame, name))
                found.append(Value((step,)))
        return found

    def _applied(self, layer: FlowStep, frame: Frame, read: list[FlowStep]) -> FlowStep:
        """A layer whose parameters were given out, in the frame where they are multiplied."""
        key = (layer, frame)
        if key not in self.applied:
            own = layer if layer.frame is frame else frame.add(FlowStep("call", frame, inner=layer.inner))
            self.applied[key] = own
        step = self.applied[key]
        for one in read:
            brought = self._bring(one, frame)
            if brought is not step and brought not in step.inputs and step not in sources_of(brought):
                step.inputs.append(brought)
        return step

    def _made(self, value: Value) -> FlowStep:
        """The step that holds a value: its origin, with the functions applied since as a step of their own."""
        step = value.steps[0]
        if len(value.steps) > 1:
            step = step.frame.add(FlowStep("operation", step.frame, "concatenate", (), list(value.steps)))
        if not value.functions:
            return step
        label = ", ".join(value.functions[:3])
        for other in step.frame.steps:
            if other.kind == "operation" and other.label == label and other.inputs == [step]:
                return other
        return step.frame.add(FlowStep("operation", step.frame, label, step.shape, [step]))

    def _enter(self, outer: FlowStep, frame: Frame) -> FlowStep:
        if outer not in frame.entered:
            frame.entered[outer] = frame.add(FlowStep("input", frame, shape=outer.shape))
        return frame.entered[outer]

    def _bring(self, step: FlowStep, frame: Frame) -> FlowStep:
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
