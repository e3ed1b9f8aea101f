"""Experiments: a run as plain serialisable fields, and the files that define them.

An experiment is a Python file with `config() -> Experiment`. It may say what was `published`, with its source and the
tolerance declared beforehand, and have generators `ablate_NAME()` that yield overrides.
"""

import ast
import contextlib
import dataclasses
import functools
import importlib.util
import math
import os
import sys
import traceback
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from arch_jax import fields, registry
from arch_jax.discovery import import_components
from arch_jax.errors import ArchJaxError, UsageError, unknown
from arch_jax.evaluation.base import Measure
from arch_jax.figures.base import Figure
from arch_jax.objectives import objective as named_objective
from arch_jax.objectives.base import Objective
from arch_jax.optimizer import Optimizer
from arch_jax.protocols import batch_size
from arch_jax.ranges import Range
from arch_jax.sampling.base import Sampler

Model = Annotated[Any, fields.Kind("model")]
Data = Annotated[Any, fields.Kind("data")]
SamplerField = Annotated[Any, fields.Kind("sampler")]
MeasureField = Annotated[Any, fields.Kind("measure")]
FigureField = Annotated[Any, fields.Kind("figure")]
StartField = Annotated[Any, fields.Kind("start")]


@fields.component("mesh", kind="mesh")
@dataclasses.dataclass(frozen=True)
class Mesh:
    """Sizes of the mesh's axes, in devices; their product is the number of devices used.

    Attributes:
      data: parts that a batch is cut into, each processed with its own copy of the parameters; None takes all remaining
        devices.
      fsdp: parts that batch, parameters and optimizer states are cut into together (ZeRO, 1910.02054).
      tensor: parts that a layer's matrices are cut into, as its family lays down (Megatron-LM, 1909.08053).
      expert: parts that the experts of a mixture are sharded over.
      sequence: parts that the positions of a sequence are sharded over.
    """

    data: int | None = None
    fsdp: int = 1
    tensor: int = 1
    expert: int = 1
    sequence: int = 1

    def __post_init__(self) -> None:
        for name, size in self.asked.items():
            if size < 1:
                raise UsageError(f"mesh.{name} is {size}; expected at least 1")

    @property
    def asked(self) -> dict[str, int]:
        """Axis -> size, without a `data` that is left open."""
        return {name: size for name, size in dataclasses.asdict(self).items() if size is not None}

    def sizes(self, devices: int) -> dict[str, int]:
        """Axis -> size on a machine with so many devices.

        Raises:
          UsageError: the mesh is larger than that, or can't be laid over it evenly; with the nearest that can.
        """
        asked = self.asked
        product = math.prod(asked.values())
        if devices % product == 0:
            return {"data": devices // product} | asked
        large = {name: size for name, size in asked.items() if size > 1}
        fits = [
            (abs(size - other), f"mesh.{name}={other}")
            for name, size in large.items()
            for other in range(1, devices + 1)
            if devices % (product // size * other) == 0
        ]
        shape = " x ".join(f"mesh.{name}={size}" for name, size in large.items())
        takes = "are more than" if product > devices else "don't divide"
        nearest = f"the nearest is {min(fits)[1]}" if fits else f"expected a product that divides {devices}"
        raise UsageError(f"{shape} makes {product} devices, which {takes} the {devices} that are here; {nearest}")


@dataclasses.dataclass(frozen=True)
class Published:
    """A published figure that an experiment is compared with; it stands in the experiment's file before the run.

    Attributes:
      value: what was published, in `unit`.
      source: where, with the table or section.
      tolerance: how far the mean over seeds may be from it, in `unit`.
      metric: which of the validation metrics it is of.
      seeds: how many the mean is over: 0, 1, 2 ...
      unit: what it is counted in, such as "% of the test nodes".
      factor: from the metric to that unit; 100 for percent.
      direction: which side of `value` counts: "near" both, "at least" and "at most" one.
      behaviour: whether the setting is smaller than the publication's, so that what it does can be shown, and the
        figure can't be reproduced.
      changes: overrides of the experiment for the variant it is of; None is the experiment as it is.
      against: overrides for another variant; what counts is then the difference to it, seed by seed. {} is the
        experiment as it is; None compares with nothing.
    """

    value: float | int
    source: str
    tolerance: float | int
    metric: str = "loss"
    seeds: int = 3
    unit: str = "nats"
    factor: float | int = 1
    direction: Literal["near", "at least", "at most"] = "near"
    behaviour: bool = False
    changes: Mapping[str, Any] | None = None
    against: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for name in ("changes", "against"):  # as a record gives them back
            if getattr(self, name) is not None:
                object.__setattr__(self, name, fields.to_json(getattr(self, name)))
        if not self.tolerance >= 0:
            raise UsageError(f"the tolerance of {self.source!r} is {self.tolerance}; expected at least 0")
        if self.seeds < 1:
            raise UsageError(f"the seeds of {self.source!r} are {self.seeds}; expected at least 1")

    def __str__(self) -> str:
        side = "" if self.direction == "near" else f"{self.direction} "
        held = f"held to within {self.tolerance:g}" if self.tolerance else "held to it"
        return f"{side}{self.value:g} {self.unit} ({self.source}); {held}, {self.seeds} seeds"


#: Fields that the objective gives where the experiment does not.
_DEFAULTED = ("sampler", "measures", "figures")


@fields.component("experiment", kind="experiment")
@dataclasses.dataclass(frozen=True)
class Experiment:
    """One run: a model, what it minimises, on which data, how, and for how long.

    Attributes:
      model: the module.
      objective: the training shape; its `model` is filled in from the one above.
      data: where batches come from; None where a step's batches are brought by hand, and nothing trains or evaluates.
      optimizer: how parameters follow gradients; a tuple gives each player its own.
      steps: how many steps in all.
      name: of the experiment; the file's name, unless given.
      seed: of everything random: initial draw, dropout, order of the data.
      evaluate_every: steps between evaluations on the validation data; there is one at the end in any case.
      checkpoint_every: steps between checkpoints; there is one at the end in any case.
      log_every: steps between lines in `metrics.jsonl`.
      steps_per_dispatch: steps that the device takes in one go.
      accumulate: micro-batches that a batch is cut into, one after another, with one update at the end.
      ema: decay of an exponential moving average of the parameters, and of batch statistics with them, which is then
        evaluated; None disables it.
      ema_warmup: whether the decay of step n is at most (1 + n) / (10 + n), so that a short run is no average of its
        initial draw; False keeps it fixed.
      keep: how many of the newest checkpoints are kept, beside the best.
      parallel: "jit" places arrays on a mesh of all devices; "pmap" replicates the parameters.
      mesh: how many devices each axis of that mesh has.
      tensorboard: whether TensorBoard events are written as well.
      sampler: what `arch-jax sample` and the figures draw with; None takes the objective's.
      measures: numbers that no sum over batches gives, such as BLEU; None takes the objective's.
      figures: what is drawn into `samples/` at each evaluation; None takes the objective's.
      start: weights to begin with, such as a run's folder; None initialises them afresh.
    """

    model: Model
    objective: Objective
    data: Data | None
    optimizer: Optimizer | tuple[Optimizer, ...] = Optimizer()
    steps: int = 1000
    name: str = ""
    seed: Annotated[int, Range(at_least=0, at_most=2**32 - 1)] = 0
    evaluate_every: int = 250
    checkpoint_every: int = 250
    log_every: int = 1
    steps_per_dispatch: int = 10
    accumulate: int = 1
    ema: float | None = None
    ema_warmup: bool = True
    keep: int = 2
    parallel: Literal["jit", "pmap"] = "jit"
    mesh: Mesh = Mesh()
    tensorboard: bool = False
    sampler: SamplerField | None = None
    measures: tuple[MeasureField, ...] | None = None
    figures: tuple[FigureField, ...] | None = None
    start: StartField | None = None

    def __post_init__(self) -> None:
        positive = ("steps", "evaluate_every", "checkpoint_every", "log_every", "steps_per_dispatch", "accumulate")
        for name in (*positive, "keep"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; expected at least 1")
        if not 0 <= self.seed < 2**32:
            raise UsageError(f"seed is {self.seed}; expected 0 to {2**32 - 1}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise UsageError(f"ema is {self.ema}; expected more than 0 and less than 1, or none")
        cut = [name for name, size in self.mesh.asked.items() if name != "data" and size > 1]
        if self.parallel == "pmap" and cut:
            raise UsageError(
                f"parallel=pmap has a copy of the parameters on every device, and mesh.{cut[0]} is "
                f"{self.mesh.asked[cut[0]]}; expected mesh.{cut[0]}=1, or parallel=jit"
            )
        batch = batch_size(self.data)
        if batch is not None and batch % self.accumulate:
            near = min((n for n in range(1, batch + 1) if batch % n == 0), key=lambda n: abs(n - self.accumulate))
            raise UsageError(
                f"data.batch {batch} can't be cut into accumulate={self.accumulate}; the nearest is {near}"
            )

    @property
    def task(self) -> Any:
        """The objective with its model."""
        return self.objective.with_model(self.model)

    @property
    def used_sampler(self) -> Sampler:
        """The sampler: the experiment's, or the objective's."""
        return self.task.sampler if self.sampler is None else self.sampler

    @property
    def used_measures(self) -> tuple[Measure, ...]:
        """The measures: the experiment's, or the objective's."""
        return self.task.measures if self.measures is None else self.measures

    @property
    def used_figures(self) -> tuple[Figure, ...]:
        """The figures: the experiment's, or the objective's."""
        return self.task.figures if self.figures is None else self.figures

    def check_new(self) -> None:
        """Refuses what makes no sense in a run that is about to begin; one that began with it can still be read.

        Raises:
          UsageError: a warm-up that does not end before the run.
        """
        for one in self.optimizer if isinstance(self.optimizer, tuple) else (self.optimizer,):
            one.check_horizon(self.steps)

    def check(self, data: Any) -> None:
        """Refuses data that the model, the sampler or a measure can't take.

        Args:
          data: the corpus.

        Raises:
          UsageError: with the field to change.
        """
        task = self.task
        task.check(data)
        self.used_sampler.check(task, data)
        for measure in self.used_measures:
            measure.check(task, self.used_sampler, data)
        for figure in self.used_figures:
            figure.check(task, self.used_sampler, data)

    @property
    def optimizers(self) -> dict[str, Optimizer]:
        """Player -> its optimizer, each with its horizon settled."""
        players = self.task.players
        given = self.optimizer if isinstance(self.optimizer, tuple) else (self.optimizer,) * len(players)
        if len(given) != len(players):
            names = ", ".join(player.name for player in players)
            raise UsageError(f"optimizer has {len(given)} entries; expected one, or {len(players)} (for {names})")
        return {player.name: one for player, one in zip(players, given)}

    @property
    def numbers(self) -> dict[str, dict[str, float]]:
        """Player -> what its compiled step takes as arguments."""
        return {player: one.numbers for player, one in self.optimizers.items()}

    def settled(self) -> "Experiment":
        """The same run with what depends on `steps` written down, so that `steps` may be raised on resume."""
        settle = lambda one: dataclasses.replace(one, horizon=one.horizon or self.steps)
        one = self.optimizer
        return dataclasses.replace(self, optimizer=tuple(map(settle, one)) if isinstance(one, tuple) else settle(one))

    def overridden(self, changes: Mapping[str, Any]) -> "Experiment":
        """With dotted fields replaced; `model` and `objective` also take registered names.

        Raises:
          UsageError: unknown field (nearest names), or a value of the wrong type (what was expected).
        """
        import_components()  # a part may be named that nothing else has asked for
        changes = dict(changes)
        model, task = changes.get("model"), changes.get("objective")
        if isinstance(model, str) and model in registry.models():
            changes["model"] = registry.create(model)
        if isinstance(task, str) and task.isidentifier():
            changes["objective"] = named_objective(task)
        late = {path: value for path, value in changes.items() if path.partition(".")[0] in _DEFAULTED}
        changed = fields.override(self, {path: value for path, value in changes.items() if path not in late})
        for name in {path.partition(".")[0] for path in late if "." in path and path.partition(".")[0] not in late}:
            # A part of what the objective gives is set: the rest of it stays as it gives it.
            changed = dataclasses.replace(changed, **{name: getattr(changed, f"used_{name}")})
        return fields.override(changed, late)

    def to_json(self) -> dict[str, Any]:
        """Everything that makes the run, as JSON data."""
        return fields.to_json(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "Experiment":
        """The experiment that `to_json` described.

        Raises:
          UsageError: a component or field that this version does not know, or something else than an object.
        """
        if not isinstance(data, Mapping):
            raise UsageError(f"an experiment is {type(data).__name__}; expected a JSON object, as to_json() gives it")
        import_components()
        # Before there was a warm-up of the average, there was none.
        earlier = {"ema_warmup": False} if data.get("ema") is not None and "ema_warmup" not in data else {}
        return fields.from_json({**data, **earlier}, kind="experiment")


def import_asked_for() -> None:
    """Runs the Python files that ARCH_JAX_IMPORT names, for the contract suite to find what they hold."""
    for name in filter(None, os.environ.get("ARCH_JAX_IMPORT", "").split(os.pathsep)):
        _import_once(Path(name).resolve())


@functools.cache
def _import_once(path: Path) -> None:
    """Runs a file the first time: its classes would be others the second."""
    import_file(path)


def directories() -> list[Path]:
    """Folders in which experiments are looked up by name: beside the package in a clone, inside it in a wheel."""
    package = Path(__file__).resolve().parent
    return [path for path in (package.parent / "experiments", package / "_experiments") if path.is_dir()][:1]


def experiments() -> dict[str, str]:
    """Name -> first line of the docstring, of every experiment that comes with the project. Runs none of them."""
    found = {}
    for directory in directories():
        for path in sorted(directory.glob("*.py")):
            if not path.name.startswith(("_", ".")):  # of archives from macOS: `._gpt.py`
                text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
                found[path.stem] = text.strip().split("\n")[0]
    return found


def load(name: str) -> tuple[Experiment, types.ModuleType]:
    """The experiment of a name, or of a file (`./mine.py`), and the module that holds it.

    Raises:
      UsageError: unknown name (nearest names), a missing file, or one that fails or has no `config()`.
    """
    if name.endswith(".py") or "/" in name or "\\" in name:
        path = Path(name)
        if not path.is_file():
            raise UsageError(f"the experiment file {name!r} does not exist; expected a Python file with config()")
    else:
        if name not in experiments():
            raise unknown("experiment", name, experiments())
        path = directories()[0] / f"{name}.py"
    module = import_file(path)
    if not callable(getattr(module, "config", None)):
        raise UsageError(f"{path.name} has no config(); expected a function that returns an Experiment")
    with _blamed_on(path):
        experiment = module.config()
    if not isinstance(experiment, Experiment):
        raise UsageError(f"config() of {path.name} returned {type(experiment).__name__}; expected an Experiment")
    return dataclasses.replace(experiment, name=experiment.name or path.stem), module


def import_file(path: Path) -> types.ModuleType:
    """Runs a Python file as a module of its own name; what it registers is then known.

    Raises:
      UsageError: it is not Python, or fails when it is run; with the line.
    """
    name = f"arch_jax_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{str(path)!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    with _blamed_on(path):
        spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def _blamed_on(path: Path) -> Iterator[None]:
    """Turns what goes wrong in a person's own file into a sentence with the file and the line."""
    try:
        yield
    except ArchJaxError:
        raise
    except SyntaxError as problem:
        raise UsageError(f"{path} is not Python: {problem.msg} in line {problem.lineno}") from problem
    except Exception as problem:
        lines = [place.lineno for place in traceback.extract_tb(problem.__traceback__) if place.filename == str(path)]
        at = f" in line {lines[-1]}" if lines else ""
        raise UsageError(f"{path} fails with {type(problem).__name__}{at}: {problem}") from problem
