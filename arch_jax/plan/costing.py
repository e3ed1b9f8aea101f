"""Memory and FLOPs of a training step or a decoding step on a machine: from the TPU's compiler, or estimated."""

import contextlib
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from arch_jax import registry
from arch_jax.errors import RunError, UsageError
from arch_jax.flops import count_flops
from arch_jax.ops.platform import acting_as
from arch_jax.plan.chips import Target
from arch_jax.plan.liveness import peak_bytes
from arch_jax.plan.tpu_compiler import environment, local_bytes
from arch_jax.plan.workload import Workload
from arch_jax.train.given import open_given
from arch_jax.train.sharding import patterns, state_shardings
from arch_jax.train.state import initial_state
from arch_jax.train.step import make_step


def size(count: int) -> str:
    """Human-readable bytes."""
    for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if count >= 2**power:
            return f"{count / 2**power:.2f} {unit}"
    return f"{count} bytes"


@dataclasses.dataclass(frozen=True)
class MemoryUse:
    """Bytes on one chip.

    Attributes:
      parameters, optimizer, batch: of the arguments.
      other: of the arguments: averages, statistics, keys; the cache of a decoding step.
      temporaries: gradients, activations and what the compiler adds.
      program: the compiled instructions.
      available: to a program.
    """

    parameters: int
    optimizer: int
    batch: int
    other: int
    temporaries: int
    program: int
    available: int

    @property
    def total(self) -> int:
        """The total."""
        return self.parameters + self.optimizer + self.batch + self.other + self.temporaries + self.program

    @property
    def fits(self) -> bool:
        """True if a chip has as much."""
        return self.total <= self.available


@dataclasses.dataclass(frozen=True)
class Step:
    """Findings on one program: a training step, or a decoding step.

    Attributes:
      rows: examples in the batch; None if the data has no batch size.
      compiles: whether the compiler accepts it; None if nothing was compiled.
      reason: why not, in a sentence.
      needed: bytes that it would need, if that is the reason.
      memory: on one chip; None if the compiler refused.
      flops: of the matrix products of one step, over all chips.
      seconds: to compile.
      collectives: kind, count and bytes of what moves between chips in one step.
      unbounded: loops of unknown length, of which one iteration was counted.
    """

    rows: int | None
    compiles: bool | None
    memory: MemoryUse | None
    flops: int
    seconds: float
    reason: str | None = None
    needed: int | None = None
    collectives: tuple[dict[str, Any], ...] = ()
    unbounded: int = 0

    @property
    def fits(self) -> bool:
        """True if it runs on the machine, as far as memory goes."""
        return self.compiles is not False and self.memory is not None and self.memory.fits

    def __str__(self) -> str:
        if self.memory is None:
            return f"refused: {self.reason}"
        verb = "fits" if self.fits else "does not fit"
        return f"{verb}: {size(self.memory.total)} of {size(self.memory.available)} a chip"


class Compiler(contextlib.AbstractContextManager):
    """The TPU's compiler in its own process, which is reused for several requests."""

    def __init__(self, machine: Target, chips: int) -> None:
        self.machine, self.chips = machine, chips
        own = environment(machine.accelerator)
        self.errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115  closed at exit
        self.process = subprocess.Popen(
            [sys.executable, "-m", "arch_jax.plan.tpu_compiler"],
            env=own,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )

    def __exit__(self, *_: Any) -> None:
        for stream in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:  # it is compiling, and nobody waits for the result any more
            self.process.kill()
            self.process.wait()
        self.errors.close()

    def train(self, workload: Workload) -> tuple[Step, int]:
        """The training step, and the number of parameters it trains."""
        found = self._ask(workload, "train", None)
        memory = None
        if found["compiles"]:
            kinds = {kind: found[kind] for kind in ("parameters", "optimizer", "batch")}
            memory = self._memory(found, kinds, found["arguments"] - sum(kinds.values()))
        return self._step(workload.rows, found, memory), found["count"]

    def decode(self, workload: Workload, length: int | None) -> Step:
        """The decoding step."""
        found = self._ask(workload, "decode", length)
        kinds = {"parameters": found["parameters"], "optimizer": 0, "batch": 0}
        memory = self._memory(found, kinds, found["cache"]) if found["compiles"] else None
        return self._step(found["rows"], found, memory)

    def _memory(self, found: Mapping[str, Any], kinds: Mapping[str, int], other: int) -> MemoryUse:
        program, there = found["program"], self.machine.chip.usable
        return MemoryUse(
            **kinds, other=max(0, other), temporaries=found["temporaries"], program=program, available=there
        )

    @staticmethod
    def _step(rows: int | None, found: Mapping[str, Any], memory: MemoryUse | None) -> Step:
        names = ("compiles", "flops", "seconds", "reason", "needed", "unbounded")
        given = {name: found[name] for name in names if name in found}
        return Step(rows=rows, memory=memory, collectives=tuple(found.get("collectives", ())), **given)

    def _ask(self, workload: Workload, what: str, length: int | None) -> dict[str, Any]:
        request = {
            "what": what,
            "length": length,
            "experiment": workload.experiment.to_json(),
            "batch": {name: [list(x.shape), str(x.dtype)] for name, x in workload.batch.items()},
            "full_batch": workload.full_batch,
            "files": list(workload.files),
            "topology": self.machine.topology,
            "chips": self.chips,
        }
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            answer = json.loads(self.process.stdout.readline())
        except (BrokenPipeError, ValueError):
            raise RunError(f"the TPU's compiler died ({self._last_words()})") from None
        if "error" in answer:
            raise (UsageError if answer["usage"] else RunError)(answer["error"])
        return answer

    def _last_words(self) -> str:
        code = self.process.wait()
        self.errors.seek(0)
        lines = [line.strip() for line in self.errors.read().splitlines() if line.strip()]
        return f"exit code {code}; it said: {lines[-1][:300]}" if lines else f"exit code {code}"


class Estimator(contextlib.AbstractContextManager):
    """Memory from the jaxpr, for machines that nothing can be compiled for."""

    def __init__(self, machine: Target, sizes: Mapping[str, int]) -> None:
        self.machine, self.sizes = machine, dict(sizes)

    def __exit__(self, *_: Any) -> None:
        """Holds no resources."""

    def train(self, workload: Workload) -> tuple[Step, int]:
        """The training step, and the number of parameters it trains.

        Raises:
          UsageError: the batch can't be divided among the chips.
        """
        started, experiment = time.perf_counter(), workload.experiment
        parts = self.sizes["data"] * self.sizes["fsdp"]
        rows = workload.rows
        if rows is not None and not workload.full_batch and rows // experiment.accumulate % parts:
            even = parts * experiment.accumulate
            near = max(1, rows // even) * even  # a smaller one, which no data is too small for
            raise UsageError(f"batch {rows} can't be divided among {parts} chips; expected such as {near}")
        parts = 1 if workload.full_batch else parts  # a graph is not cut in an estimate
        cut = lambda x: jax.ShapeDtypeStruct((x.shape[0] // parts, *x.shape[1:]) if x.shape else (), x.dtype)
        local = {name: cut(x) for name, x in workload.batch.items()}
        with acting_as("gpu"):
            experiment, given, _ = open_given(experiment, workload.batch)
            state = jax.eval_shape(lambda b, g: initial_state(experiment, b, given=g), workload.batch, given)
            step = jax.jit(make_step(experiment))  # so that it is traced once
            cost = count_flops(step, state, local) * parts
            live = peak_bytes(step, state, local, donated=(0,))
        # Only shapes are asked of the mesh, so that one device can stand for all.
        mesh = Mesh(np.full(tuple(self.sizes.values()), jax.devices()[0]), tuple(self.sizes))
        shardings = state_shardings(state, mesh, patterns(experiment.model))
        give = lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at)
        laid = jax.tree.map(give, state, shardings)
        kinds = {"parameters": local_bytes(laid.parameters), "optimizer": local_bytes(laid.optimizer)}
        stacked = 1 if workload.full_batch else experiment.steps_per_dispatch
        memory = MemoryUse(
            **kinds,
            batch=local_bytes(local) * stacked,
            other=local_bytes(laid) - sum(kinds.values()),
            temporaries=live.temporary,
            program=0,
            available=self.machine.chip.usable,
        )
        found = Step(rows, None, memory, cost.products, time.perf_counter() - started, unbounded=cost.unbounded)
        return found, registry.count(state.parameters)

    def decode(self, workload: Workload, length: int | None) -> Step:
        """The decoding step."""
        raise UsageError(
            f"{self.machine.name!r} can only be estimated, and decoding is not; expected a TPU, such as 'v5e-1'"
        )
