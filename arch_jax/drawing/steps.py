"""The data flow of a model: its calls, and within each the steps from its inputs to its outputs."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import flax.linen as nn


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
class FlowStep:
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
    inputs: list["FlowStep"] = dataclasses.field(default_factory=list)
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

    step: FlowStep | None = None
    number: int | None = None
    length: int = 0
    carried: tuple[tuple[int, ...], ...] = ()
    over_time: bool = False
    steps: list[FlowStep] = dataclasses.field(default_factory=list)
    outputs: list[FlowStep] = dataclasses.field(default_factory=list)
    leaving: list[tuple[FlowStep, int]] = dataclasses.field(default_factory=list)
    carrying: list[FlowStep] = dataclasses.field(default_factory=list)
    entered: dict[FlowStep, FlowStep] = dataclasses.field(default_factory=dict)

    def add(self, step: FlowStep) -> FlowStep:
        self.steps.append(step)
        return step

    def outward(self) -> Iterator["Frame"]:
        """The frame itself, then those around it."""
        frame: Frame | None = self
        while frame is not None:
            yield frame
            frame = frame.step.frame if frame.step is not None else None


@dataclasses.dataclass(frozen=True)
class Value:
    """The origin of an array: steps (several for the joint product of layers), and the functions applied since.

    A `weight` is a layer's parameters, given out to be multiplied elsewhere, or one `parameter` by its path;
    `untouched` is an argument as it came.
    """

    steps: tuple[FlowStep, ...]
    functions: tuple[str, ...] = ()
    weight: bool = False
    untouched: bool = False
    parameter: str = ""


def sources_of(step: FlowStep) -> set[FlowStep]:
    """Every step of its frame that a step depends on."""
    found, waiting = set(), [step]
    while waiting:
        for one in waiting.pop().inputs:
            if one not in found:
                found.add(one)
                waiting.append(one)
    return found


def once(*things: Any) -> tuple:
    """The things in order, each once."""
    return tuple(dict.fromkeys(things))


def origins(values: list) -> list[Value]:
    """Distinct origins; the functions of equal ones are united."""
    found: dict[tuple, Value] = {}
    for value in values:
        if value is not None and not value.weight:
            before = found.get(value.steps)
            functions = value.functions if before is None else once(*before.functions, *value.functions)
            found[value.steps] = Value(value.steps, functions)
    return list(found.values())


def meeting(frames: list[Frame]) -> Frame:
    """The innermost frame, or where frames stand beside each other the one around them."""
    deepest = max(frames, key=lambda frame: len(list(frame.outward())))
    for frame in deepest.outward():
        if all(frame in other.outward() or other in frame.outward() for other in frames):
            return frame
    return frames[0]
