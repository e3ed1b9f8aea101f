"""Peak memory of a computation, estimated from its jaxpr: for devices that nothing can be compiled for.

Values are taken in program order; each is stored, and freed after its last use. As XLA does on every platform:

- Calls (jit, remat, hand-written derivatives) are written out where they stand.
- An element-wise result may take the place of an operand of its size that is not needed any more; so may an updated
  slice that of the array, a loop's new carry that of the old one, and an output that of a donated argument.
- A loop has its carry and its stacked results outside, and the peak of one turn beside them.

Not modelled: fusion, by which a compiler stores less; and scratch of single operations, padding, copies that a layout
needs, and an order other than the program's, by which it stores more. So this is an estimate, and says so wherever it
is shown. Seen: 0.65 to 1.05 of the CPU compiler's figure, over seven steps of five architectures, and 1.38 of the TPU
compiler's for GPT-2 in bfloat16 (8 x 1,024 tokens a chip), since that fuses more.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import Literal

#: The same bytes under another shape or name.
_VIEWS = {
    "reshape", "squeeze", "expand_dims", "bitcast_convert_type", "stop_gradient", "copy", "copy_p", "device_put",
    "name", "sharding_constraint", "random_wrap", "random_unwrap",
}  # fmt: skip
#: Operations that can write where an operand lay: one number out for each number in, or fewer.
_IN_PLACE = {
    "neg", "sign", "abs", "floor", "ceil", "round", "not", "is_finite", "convert_element_type", "transpose", "rev",
    "pad", "add", "add_any", "sub", "mul", "div", "rem", "max", "min", "and", "or", "xor", "eq", "ne", "lt", "le", "gt",
    "ge", "select_n", "clamp", "shift_left", "shift_right_logical", "shift_right_arithmetic", "nextafter",
    "population_count", "exp", "exp2", "expm1", "log", "log1p", "logistic", "tanh", "sin", "cos", "tan", "erf", "erfc",
    "erf_inv", "pow",
    "integer_pow", "sqrt", "rsqrt", "cbrt", "square", "atan2", "real", "imag", "conj",
}  # fmt: skip
#: Operations that write into their first operand if it dies there.
_UPDATING = {"dynamic_update_slice", "scatter", "scatter-add", "scatter_add", "scatter_mul"}


@dataclasses.dataclass(frozen=True)
class Live:
    """The memory of a computation, in bytes.

    Attributes:
      peak: the most that is live at once, arguments and outputs included.
      arguments: of all arguments.
      outputs: of all outputs, those that take the place of donated arguments included.
    """

    peak: int
    arguments: int
    outputs: int

    @property
    def temporary(self) -> int:
        """The bytes live at the peak beside the arguments."""
        return self.peak - self.arguments


def peak_bytes(function: Callable, *arguments: Any, donated: Sequence[int] = ()) -> Live:
    """The memory of `function(*arguments)` on one device.

    Args:
      function: traced, not run.
      *arguments: trees of arrays or `jax.ShapeDtypeStruct`.
      donated: the arguments that the computation may overwrite.
    """
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    sizes = [len(jax.tree.leaves(argument)) for argument in arguments]
    may = [i in donated for i, count in enumerate(sizes) for _ in range(count)]
    given = [_bytes(variable.aval) for variable in jaxpr.invars]
    outputs = sum(_bytes(variable.aval) for variable in jaxpr.outvars)
    return Live(peak=_Body(jaxpr, may).peak(), arguments=sum(given), outputs=outputs)


@dataclasses.dataclass
class _Operation:
    """One step of a flat program.

    Attributes:
      name: of the primitive.
      reads, writes: numbers of values.
      inner: bytes that it needs while it runs, beside what it reads and writes.
      places: (value read, value written) that share their bytes where the first dies here.
    """

    name: str
    reads: list[int]
    writes: list[int]
    inner: int = 0
    places: tuple[tuple[int, int], ...] = ()

    @property
    def values(self) -> list[int]:
        """All values that are live while it runs."""
        return [*self.reads, *self.writes]


class _Body:
    """A jaxpr with its calls written out, as operations on numbered values.

    Args:
      jaxpr: the computation.
      free: for each of its inputs, whether its bytes may be used again once it is dead.
      sliced: the number of last inputs that are slices of stacked arrays, cut in this body.
    """

    def __init__(self, jaxpr: Any, free: Sequence[bool], sliced: int = 0) -> None:
        self.sizes: list[int] = []
        self.operations: list[_Operation] = []
        inputs = [self._value(variable.aval) for variable in jaxpr.invars]
        constants = [self._value(variable.aval) for variable in jaxpr.constvars]
        whole = len(inputs) - sliced
        self.inputs = [*constants, *inputs[:whole]]
        self.free = {value for value, may in zip(inputs[:whole], free) if may}
        self.operations += [_Operation("dynamic_slice", [], [value]) for value in inputs[whole:]]
        self.outputs = self._run(jaxpr, inputs, constants)

    def _value(self, aval: Any = None) -> int:
        self.sizes.append(_bytes(aval))
        return len(self.sizes) - 1

    def _run(self, jaxpr: Any, inputs: Sequence[int], constants: Sequence[int] = ()) -> list[int]:
        """Writes down the equations of a jaxpr, and those of what it calls; returns the numbers of its outputs."""
        held = dict(zip(jaxpr.invars, inputs)) | dict(zip(jaxpr.constvars, constants))
        read = lambda variable: self._value() if isinstance(variable, Literal) else held[variable]
        for equation in jaxpr.eqns:
            name, reads = equation.primitive.name, [read(variable) for variable in equation.invars]
            called = _called(equation)
            if name in _VIEWS or name == "optimization_barrier":
                written = reads
            elif called is not None:
                closed = [self._value(variable.aval) for variable in called.constvars]
                self.inputs += closed
                written = self._run(called, reads[len(reads) - len(called.invars) :], closed)
            else:
                written = [self._value(variable.aval) for variable in equation.outvars]
                self.operations.append(_operation(equation, reads, written))
            held.update(zip(equation.outvars, written))
        return [read(variable) for variable in jaxpr.outvars]

    def peak(self) -> int:
        """The most bytes that are live at once, those of the inputs included."""
        kept = {*self.outputs, *self.inputs} - (self.free - set(self.outputs))
        last = {value: place for place, operation in enumerate(self.operations) for value in operation.values}
        dying: dict[int, set[int]] = {}
        for value, place in last.items():
            if value not in kept:
                dying.setdefault(place, set()).add(value)
        live = peak = sum(self.sizes[value] for value in self.inputs)
        for place, operation in enumerate(self.operations):
            gone = dying.get(place, set())
            size = sum(self.sizes[value] for value in operation.writes)
            peak = max(peak, live + size + operation.inner - self._reused(operation, gone))
            live += size - sum(self.sizes[value] for value in gone)
        return peak

    def _reused(self, operation: _Operation, gone: set[int]) -> int:
        """Bytes of the results that lie where operands lay which die here."""
        places = operation.places
        if operation.name in _IN_PLACE | _UPDATING:
            places = itertools.product(dict.fromkeys(operation.reads), operation.writes[:1])
        fits = [self.sizes[to] for of, to in places if of in gone and self.sizes[of] == self.sizes[to]]
        return sum(fits if operation.places else fits[:1])


def _operation(equation: Any, reads: list[int], writes: list[int]) -> _Operation:
    """The memory inside an equation that is no call: loops and branches."""
    name, parameters = equation.primitive.name, equation.params
    if name == "scan":
        constants, carried = parameters["num_consts"], parameters["num_carry"]
        body, inputs = parameters["jaxpr"].jaxpr, equation.invars
        free = [False] * constants + [True] * carried
        inner = _Body(body, free, sliced=len(inputs) - constants - carried).peak()
        outside = sum(_bytes(variable.aval) for variable in body.invars[: constants + carried])
        places = tuple(zip(reads[constants : constants + carried], writes[:carried]))
        return _Operation(name, reads, writes, max(0, inner - outside), places)
    if name == "while":
        body, skipped = parameters["body_jaxpr"].jaxpr, parameters["cond_nconsts"] + parameters["body_nconsts"]
        free = [i >= parameters["body_nconsts"] for i in range(len(body.invars))]
        outside = sum(_bytes(variable.aval) for variable in body.invars)
        return _Operation(
            name, reads, writes, max(0, _Body(body, free).peak() - outside), tuple(zip(reads[skipped:], writes))
        )
    if name == "cond":
        outputs = sum(_bytes(variable.aval) for variable in equation.outvars)
        inner = 0
        for branch in parameters["branches"]:
            given = sum(_bytes(variable.aval) for variable in branch.jaxpr.invars)
            inner = max(inner, _Body(branch.jaxpr, [False] * len(branch.jaxpr.invars)).peak() - given - outputs)
        return _Operation(name, reads, writes, max(0, inner))
    if name == "random_bits":  # the counters that the bits are made from
        return _Operation(name, reads, writes, sum(_bytes(variable.aval) for variable in equation.outvars))
    return _Operation(name, reads, writes)


def _called(equation: Any) -> Any:
    """The jaxpr that an equation runs once, in its place: jit, remat, hand-written derivatives."""
    if equation.primitive.name in ("scan", "while", "cond", "pallas_call"):
        return None
    found = (equation.params.get(key) for key in ("call_jaxpr", "fun_jaxpr", "jaxpr"))
    jaxpr = next((one for one in found if one is not None), None)
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    return jaxpr if hasattr(jaxpr, "eqns") else None


def _bytes(aval: Any) -> int:
    if not hasattr(aval, "shape"):
        return 0
    return int(np.prod(aval.shape, dtype=np.int64)) * int(getattr(aval.dtype, "itemsize", 4))
