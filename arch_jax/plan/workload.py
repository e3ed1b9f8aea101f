"""The subject of a plan: an experiment, or a registered model with batches of the shapes that it takes."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from arch_jax import fields, registry
from arch_jax.data.base import load_corpus
from arch_jax.errors import UsageError, unknown
from arch_jax.experiment import Experiment, experiments, import_components, load
from arch_jax.objectives import objective
from arch_jax.protocols import batch_size


@fields.component("examples", kind="data")
@dataclasses.dataclass(frozen=True)
class Examples:
    """Empty batches of the shapes that a registered model takes, for planning.

    Attributes:
      model: a registered name.
      batch: examples in a batch.
      length: tokens in an example, if it is a sequence; None is the model's registered length.
    """

    model: str
    batch: int = 64
    length: int | None = None

    def shapes(self, module: Any) -> dict[str, jax.ShapeDtypeStruct]:
        """Name -> shape and dtype, of one batch.

        Raises:
          UsageError: there are no such examples, or the model takes no sequences so long.
        """
        inputs = registry.entry(self.model).inputs
        if self.batch < 1:
            raise UsageError(f"batch is {self.batch}; expected at least 1")
        if self.length is not None:
            if not hasattr(inputs, "length"):
                raise UsageError(f"length is {self.length}, and the inputs of {self.model!r} have none; leave it out")
            if self.length < 1:
                raise UsageError(f"length is {self.length}; expected at least 1")
            inputs = dataclasses.replace(inputs, length=self.length)
        shapes = jax.eval_shape(lambda: inputs.batch(module, self.batch, jax.random.key(0)))
        found = shapes[inputs.names[0]].shape
        if self.length is not None and found[1] != self.length:
            raise UsageError(f"length is {self.length}, and {self.model!r} takes at most {found[1]} tokens")
        return dict(shapes)


@dataclasses.dataclass(frozen=True)
class Workload:
    """The subject of a plan.

    Attributes:
      name: of the experiment or the model.
      experiment: the experiment.
      batch: name -> shape and dtype, of one batch.
      unit: of a batch.
      units: the number of them in one batch.
      full_batch: every batch is the same one, of all the data.
      files: Python files that define parts of it.
    """

    name: str
    experiment: Experiment
    batch: dict[str, jax.ShapeDtypeStruct]
    unit: str
    units: int
    full_batch: bool = False
    files: tuple[str, ...] = ()

    @property
    def rows(self) -> int | None:
        """Examples in a batch; None if the data has no batch size."""
        return batch_size(self.experiment.data)

    def resized(self, rows: int) -> "Workload":
        """The same with another number of examples in a batch."""
        old = self.rows
        grown = lambda x: jax.ShapeDtypeStruct((x.shape[0] * rows // old, *x.shape[1:]), x.dtype)
        data = dataclasses.replace(self.experiment.data, batch=rows)
        return dataclasses.replace(
            self,
            experiment=dataclasses.replace(self.experiment, data=data),
            batch={name: grown(x) for name, x in self.batch.items()},
            units=self.units * rows // old,
        )


def workload(name: str, changes: Mapping[str, Any], files: tuple[str, ...] = ()) -> Workload:
    """The workload of a name: an experiment (also a file, `./mine.py`), or else a registered model.

    Args:
      name: of either.
      changes: dotted fields. For a model: those of an experiment without data; `batch` and `length` of its examples
        (64 of them by default); all others are its own (`depth=4`). It computes in bfloat16 unless `dtype` says
        otherwise.
      files: Python files that were imported for it.

    Raises:
      UsageError: unknown name or field, or a value of the wrong type.
    """
    import_components()
    is_file = name.endswith(".py") or "/" in name
    if is_file or name in experiments():
        experiment = load(name)[0].overridden(changes)
        corpus = load_corpus(experiment.data)
        experiment.check(corpus)
        return Workload(
            name=experiment.name,
            experiment=experiment,
            batch={key: jax.ShapeDtypeStruct(*facts) for key, facts in corpus.shapes.items()},
            unit=corpus.unit,
            units=corpus.units_per_batch,
            full_batch=corpus.full_batch,
            files=(*files, *([name] if is_file else ())),
        )
    if name not in registry.models():
        raise unknown("experiment or model", name, [*experiments(), *registry.models()])
    entry = registry.entry(name)
    own = {field.name for field in fields.settings(Experiment)} - {"model", "objective", "data", "name"}
    of_run, of_data, of_model = {}, {}, {}
    for key, value in changes.items():
        head, _, rest = key.partition(".")
        if head in ("batch", "length"):
            of_data[key] = value
        elif head == "data" and rest:
            of_data[rest] = value
        elif head in own or head == "objective":
            of_run[key] = value
        else:
            of_model[rest if head == "model" and rest else key] = value
    module = registry.create(name)
    if any(field.name == "dtype" for field in fields.settings(module)):
        of_model = {"dtype": "bfloat16"} | of_model
    module = fields.override(module, of_model)
    data = fields.override(Examples(name), of_data)
    run = Experiment(module, objective(entry.objective), data, name=name).overridden(of_run)
    batch = data.shapes(module)
    sequences = hasattr(entry.inputs, "length")
    units = data.batch * (batch[entry.inputs.names[0]].shape[1] if sequences else 1)
    return Workload(name, run, batch, "tokens" if sequences else "examples", units, files=files)
