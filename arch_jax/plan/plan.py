"""The cost of a training step on an accelerator that one does not have: whether it fits, and how fast it can be.

For TPUs the real train program is compiled by the real compiler, in a process of its own (`tpu_compiler`). For GPUs,
where nothing can be compiled without one, memory is estimated from the jaxpr (`liveness`), and the plan says so. Times
are no measurements on either: matrix products at 30, 40 and 50 % of the peak, which is what well-fed training reaches.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax

from arch_jax.errors import UsageError
from arch_jax.plan.chips import Target
from arch_jax.plan.chips import target as named_target
from arch_jax.plan.costing import Compiler, Estimator, Step, size
from arch_jax.plan.workload import Workload, workload

__all__ = ["Largest", "Plan", "Step", "Workload", "plan", "search", "workload"]

#: Fractions of the peak that times are given for.
SHARES = (0.3, 0.4, 0.5)
#: Compilations that close in on the largest batch, after the doublings.
HALVINGS = 4
#: Doublings after which a batch is large enough for anyone.
DOUBLINGS = 16

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Largest:
    """The search for the largest batch.

    Attributes:
      fits: the largest that was confirmed to fit; None if none did.
      refused: the smallest above it that was refused, or exceeds memory; None if no limit was met.
      tried: batch -> its findings, in the order of the attempts.
    """

    fits: int | None
    refused: int | None
    tried: dict[int, Step]

    def __str__(self) -> str:
        below = "none fits" if self.fits is None else f"{self.fits} {self.tried[self.fits]}"
        above = "no limit was met" if self.refused is None else f"{self.refused} {self.tried[self.refused]}"
        return f"{below}; {above}"

    def to_json(self) -> dict[str, Any]:
        """All of it, as JSON data."""
        tried = {rows: str(step) for rows, step in self.tried.items()}
        return {"fits": self.fits, "refused": self.refused, "tried": tried}


@dataclasses.dataclass(frozen=True)
class Plan:
    """A plan: the findings of `Step`, and what follows from them.

    Attributes:
      name: of the experiment or the model.
      target: the machine.
      chips: the number of its chips in use.
      estimate: whether memory is estimated, and nothing was compiled.
      dtype: of the computation.
      parameters: number of parameters.
      unit, units: of the training data in one step.
      step: the training step.
      largest: the largest batch, if requested.
      decode: the decoding step, if requested; `length` tokens a row have room in its cache.
      length: see `decode`.
    """

    name: str
    target: Target
    chips: int
    estimate: bool
    dtype: str
    parameters: int
    unit: str
    units: int
    step: Step
    largest: Largest | None = None
    decode: Step | None = None
    length: int | None = None

    @property
    def peak(self) -> float:
        """FLOP/s of all chips together, at best."""
        return self.target.chip.peak(self.dtype) * self.chips

    @property
    def seconds(self) -> dict[float, float]:
        """Fraction of the peak -> seconds a step."""
        return {share: self.step.flops / (self.peak * share) for share in SHARES}

    @property
    def token_seconds(self) -> float | None:
        """A lower bound on a decoding step: every chip reads its parameters and its cache once."""
        if self.decode is None or self.decode.memory is None:
            return None
        return (self.decode.memory.parameters + self.decode.memory.other) / self.target.chip.bandwidth

    def lines(self) -> list[tuple[str, str]]:
        """The plan as rows (name, value) of text."""
        machine, step, peak = self.target, self.step, self.peak / 1e12
        chips, rate = f"{self.chips} x {machine.chip.name}", f"{peak:,.0f}" if peak >= 100 else f"{peak:.1f}"
        found = [
            ("machine", f"{machine.name}: {chips}, {rate} TFLOP/s in {self.dtype} at best"),
            ("parameters", f"{self.parameters:,}"),
            ("a step", f"{self.units:,} {self.unit}; {step.flops:,} FLOPs in matrix products"),
            ("memory" + (" (an estimate)" if self.estimate else ""), str(step)),
        ]
        if step.memory is not None:
            parts = dataclasses.asdict(step.memory) | {"available": 0}
            found.append(("of that", ", ".join(f"{name} {size(held)}" for name, held in parts.items() if held)))
        for share, seconds in self.seconds.items():
            rate = f", {self.units / seconds:,.0f} {self.unit} a second" if seconds else ""
            found.append((f"at {share:.0%} of the peak", f"{seconds:.3g} s a step{rate}"))
        if machine.hours is not None and self.seconds[0.4]:
            steps = machine.hours * 3600 / self.seconds[0.4]
            found.append(("a session", f"{machine.hours:g} hours at most: {steps:,.0f} steps at 40%"))
        for row in step.collectives:
            times = ("at least " if row["at_least"] else "") + f"{row['count']:,}"
            found.append((row["kind"], f"{times} a step, {size(row['bytes'])} on each chip"))
        if step.compiles is not None:
            found.append(("compilation", f"{step.seconds:.0f} s"))
        if self.largest is not None:
            found.append(("largest batch", str(self.largest)))
        if self.decode is not None:
            found.append((f"decoding {self.decode.rows} x {self.length}", str(self.decode)))
            if self.token_seconds is not None:
                held = self.decode.memory
                reads = f"reading {size(held.parameters)} of parameters and {size(held.other)} of cache"
                found.append(("a token", f"at least {self.token_seconds * 1e3:.3g} ms, {reads}"))
        return found

    def to_json(self) -> dict[str, Any]:
        """All of it, as JSON data."""

        def step(one: Step | None) -> dict[str, Any] | None:
            if one is None:
                return None
            memory = one.memory and dataclasses.asdict(one.memory) | {"total": one.memory.total}
            return dataclasses.asdict(one) | {"fits": one.fits, "memory": memory, "verdict": str(one)}

        hours = self.target.hours
        return {
            "name": self.name,
            "target": self.target.name,
            "chip": self.target.chip.name,
            "chips": self.chips,
            "estimate": self.estimate,
            "dtype": self.dtype,
            "parameters": self.parameters,
            "peak_flops": self.peak,
            "unit": self.unit,
            "units_per_step": self.units,
            "step": step(self.step),
            "seconds_per_step": {f"{share:.0%}": seconds for share, seconds in self.seconds.items()},
            "units_per_second": {f"{share:.0%}": self.units / (s or 1) for share, s in self.seconds.items()},
            "session_hours": hours,
            "steps_per_session": hours and {f"{x:.0%}": int(hours * 3600 / (s or 1)) for x, s in self.seconds.items()},
            "largest_batch": self.largest and self.largest.to_json(),
            "decode": step(self.decode),
            "decode_length": self.length,
            "seconds_per_token_at_least": self.token_seconds,
        }


def plan(
    workload: Workload,
    target: str,
    *,
    chips: int | None = None,
    decode: bool = False,
    largest_batch: bool = False,
    say: Say = lambda sentence: None,
) -> Plan:
    """Plans a workload's training step on a target.

    Args:
      workload: from `workload`.
      target: a name of `chips.TARGETS`.
      chips: the number of the machine's chips in use; all by default.
      decode: the decoding step as well.
      largest_batch: looks for the largest batch that fits as well; a compilation for each that is tried.
      say: called with a sentence on each attempt.

    Raises:
      UsageError: an unknown target; a mesh or a batch that does not suit it; a model that has no decoding step.
      RunError: there is no libtpu, or its process died.
    """
    machine = named_target(target)
    count = machine.chips if chips is None else chips
    if not 1 <= count <= machine.chips:
        raise UsageError(f"chips is {count}; expected 1 to {machine.chips}, which {machine.name!r} has")
    if largest_batch and (workload.rows is None or workload.full_batch):
        kind = type(workload.experiment.data).__name__
        raise UsageError(f"the data {kind} has one batch of a fixed size, so there is no largest to look for")
    sizes = workload.experiment.mesh.sizes(count)
    count = math.prod(sizes.values())
    with Compiler(machine, count) if machine.compiles else Estimator(machine, sizes) as tool:
        step, parameters = tool.train(workload)
        if workload.rows is not None:
            say(f"batch {workload.rows} {step} ({step.seconds:.0f} s)")
        largest = None
        if largest_batch:
            parts = sizes["data"] * sizes["fsdp"] * workload.experiment.accumulate
            largest = search(step, parts, lambda rows: tool.train(workload.resized(rows))[0], say)
        length = workload.units // workload.rows if workload.rows else None
        decoding = tool.decode(workload, length) if decode else None
    return Plan(
        name=workload.name,
        target=machine,
        chips=count,
        estimate=not machine.compiles,
        dtype=str(jax.numpy.dtype(getattr(workload.experiment.model, "dtype", "float32"))),
        parameters=parameters,
        unit=workload.unit,
        units=workload.units,
        step=step,
        largest=largest,
        decode=decoding,
        length=length if decode else None,
    )


def search(first: Step, parts: int, attempt: Callable[[int], Step], say: Say) -> Largest:
    """The largest batch that fits: doubling until one is refused, then at most `HALVINGS` halvings of the interval.

    Args:
      first: findings on the batch to start from. If it does not fit, it is halved until one does.
      parts: every batch is a multiple of this.
      attempt: batch -> its findings.
      say: called with a sentence on each attempt.
    """
    tried = {first.rows: first}

    def fits(rows: int) -> bool:
        tried[rows] = attempt(rows)
        say(f"batch {rows} {tried[rows]} ({tried[rows].seconds:.0f} s)")
        return tried[rows].fits

    low, high = (first.rows, None) if first.fits else (None, first.rows)
    while low is None and high > parts:
        rows = max(parts, high // 2 // parts * parts)
        low, high = (rows, high) if fits(rows) else (None, rows)
    for _ in range(DOUBLINGS):
        if high is not None:
            break
        low, high = (2 * low, None) if fits(2 * low) else (low, 2 * low)
    for _ in range(HALVINGS):
        if low is None or high is None or high - low <= parts:
            break
        rows = max(low + parts, (low + high) // 2 // parts * parts)
        low, high = (rows, high) if fits(rows) else (low, rows)
    return Largest(fits=low, refused=high, tried=tried)
