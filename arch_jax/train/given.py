"""Runs and checkpoints as sources: opening what was trained, and the trained parts that a run itself names.

Both are here, since each needs the other: a run that is opened may have a frozen part, which is opened as a run.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from arch_jax import fields
from arch_jax.console import console
from arch_jax.data.files.directories import user_cache
from arch_jax.errors import ArchJaxError, RunError, UsageError, nearest
from arch_jax.experiment import Experiment, experiments, import_components
from arch_jax.experiment import load as load_experiment
from arch_jax.interop import load_pretrained
from arch_jax.train.checkpointing.checkpoint import Checkpoints
from arch_jax.train.checkpointing.checksums import leaf_paths
from arch_jax.train.state import Given, initial_state
from arch_jax.train.workdir import read_config
from arch_jax.trained import Frozen, Start

#: A file in the folder of a run that was trained on demand, once it has come to its end.
FINISHED = "finished"


@dataclasses.dataclass(frozen=True)
class Opened:
    """A source's module and variables.

    Attributes:
      module: unbound.
      variables: of it, on the host; of a run those that are evaluated.
      sha256: of both.
      seen: the images that it was trained on, as fields of `Frozen`: `low`, `high` and `shape`; empty where there were
        none, or nothing is known of them.
    """

    module: Any
    variables: dict[str, Any]
    sha256: str
    seen: Mapping[str, Any]


#: Source -> what it holds, for those who open the same ones again and again.
Sources = dict[str, Opened | None]


def open_given(
    experiment: Experiment, batch: Mapping[str, Any], *, begun: Mapping[str, Any] | None = None, sources: Any = None
) -> tuple[Experiment, Given, dict[str, Any]]:
    """Opens what an experiment names.

    Args:
      experiment: as a person wrote it, or as a run's `config.json` has it.
      batch: name -> shape and dtype, of one batch.
      begun: the stored experiment of a run that has a checkpoint: it starts from that, and its source is not opened.
      sources: kept from call to call, so that none is opened twice.

    Returns:
      The experiment with the module and the hash of each frozen part and the hash of its start; the arrays that its
      first state takes; and hash -> variables of all its frozen parts, those of samplers, measures and figures too.

    Raises:
      UsageError: a source that is no run, checkpoint or experiment, that has changed since the run began, or whose
        weights don't fit.
    """
    sources = {} if sources is None else sources
    experiment, held = open_parts(experiment, "", sources)
    own = {one.sha256 for path, one in fields.walk(experiment.objective) if isinstance(one, Frozen)}
    given = Given(frozen={sha: tree for sha, tree in held.items() if sha in own})
    if experiment.start is None:
        return experiment, given, held
    start = dataclasses.replace(experiment.start, source=_absolute(experiment.start.source))
    experiment = dataclasses.replace(experiment, start=start)
    stored = (begun or {}).get("start") or {}
    # A source that is no longer there keeps the path that it was written with.
    if stored.get("source") == str(Path(start.source).expanduser().resolve()) and start.source not in experiments():
        start = dataclasses.replace(start, source=stored["source"])
    if stored.get("source") == start.source and start.sha256 in (None, stored.get("sha256")):
        return dataclasses.replace(experiment, start=dataclasses.replace(start, sha256=stored["sha256"])), given, held
    found = _opened(start.source, "start", sources)
    _check_hash(start.source, "start", start.sha256, found.sha256)
    experiment = dataclasses.replace(experiment, start=dataclasses.replace(start, sha256=found.sha256))
    return experiment, given.replace(start=_fitted(start, found, experiment, batch, given)), held


def open_parts(owner: Any, prefix: str, sources: Any = None) -> tuple[Any, dict[str, Any]]:
    """Opens the frozen parts in the fields of a dataclass.

    Returns:
      The dataclass with the model and the hash of each of them, and its folder's whole path; hash -> variables.

    Raises:
      UsageError: a source that is no run, checkpoint or experiment, or does not have the hash or the images that are
        given.
    """
    sources = {} if sources is None else sources
    held: dict[str, Any] = {}
    changes: dict[str, Any] = {}
    for path, part in [(path, one) for path, one in fields.walk(owner) if isinstance(one, Frozen)]:
        source = _absolute(part.source)
        found = _opened(source, f"{prefix}{path}", sources)
        _check_hash(source, f"{prefix}{path}", part.sha256, found.sha256)
        for name, value in found.seen.items():
            given = getattr(part, name)
            if given not in (None, value):
                raise UsageError(
                    f"{prefix}{path}.{name} is {given}, and {source!r} was trained with {value}; expected that, or none"
                )
        changes[path] = dataclasses.replace(part, source=source, model=found.module, sha256=found.sha256, **found.seen)
        held[found.sha256] = found.variables
    return (fields.override(owner, changes) if changes else owner), held


def _absolute(source: str) -> str:
    """A folder's whole path, so that a run can be opened from elsewhere; the name of an experiment as it is."""
    folder = Path(source).expanduser()
    if source in experiments() and not (folder / "config.json").is_file():
        return source
    return str(folder.resolve()) if folder.exists() else source


def demanded(experiment: Experiment) -> dict[str, str]:
    """Name -> field of the experiments that an experiment names as sources and that have not been trained yet."""
    sources = {part.source: path for path, part in fields.walk(experiment) if isinstance(part, Frozen | Start)}
    named = {source: path for source, path in sources.items() if source in experiments()}
    missing = {name: path for name, path in named.items() if not (trained_folder(name) / FINISHED).exists()}
    return {name: path for name, path in missing.items() if not (Path(name) / "config.json").is_file()}


def names_sources(experiment: Experiment) -> bool:
    """True if an experiment has frozen parts or starts from given weights."""
    return experiment.start is not None or any(isinstance(one, Frozen) for _, one in fields.walk(experiment))


def _fitted(start: Start, found: Opened, experiment: Experiment, batch: Mapping[str, Any], given: Given) -> Any:
    """The source's leaves by the run's paths."""
    shapes = jax.eval_shape(lambda b, g: initial_state(experiment, b, given=g), dict(batch), given)
    target, _ = leaf_paths({key: tree for key, tree in shapes.variables.items() if key != "frozen"})
    source, _ = leaf_paths(found.variables)
    return start.fitted(source, target)


def _check_hash(source: str, path: str, expected: str | None, found: str) -> None:
    if expected is not None and expected != found:
        raise UsageError(
            f"{path}: {source!r} is not what the run was made with: its hash is {found[:12]}, expected {expected[:12]}"
        )


def _opened(source: str, path: str, sources: Sources) -> Opened:
    if source in sources and sources[source] is None:
        raise UsageError(f"{path}: {source!r} uses a trained part that leads back to it; expected no circle of sources")
    if source not in sources:
        sources[source] = None  # it is being opened
        try:
            module, variables, seen = _read(source, path, sources)
        finally:
            del sources[source]
        variables = jax.tree.map(np.asarray, {name: tree for name, tree in variables.items() if name != "frozen"})
        sources[source] = Opened(module, variables, _hash(module, variables), seen)
    return sources[source]


def _read(source: str, path: str, sources: Sources) -> tuple[Any, Any, Mapping[str, Any]]:
    folder = Path(source).expanduser()
    if (folder / "config.json").is_file():
        if (folder / "checkpoints").is_dir():
            return _of_run(folder, sources)
        return *load_pretrained(folder), {}
    if source in experiments():
        return _of_experiment(source, path, sources)
    if folder.exists():
        raise UsageError(f"{path}: {source!r} has no config.json; expected the folder of a run or of a checkpoint")
    raise UsageError(
        f"{path}: {source!r} is no folder and no experiment; expected a run's folder, a checkpoint's folder, or an "
        f"experiment{nearest(source, experiments())}"
    )


def _of_run(folder: Path, sources: Sources) -> tuple[Any, Any, Mapping[str, Any]]:
    found = restored(folder, sources=sources)
    images, data = read_config(folder)["batch"].get("images"), found.experiment.data
    low, high = getattr(data, "low", None), getattr(data, "high", None)
    seen = {} if images is None else {"low": low, "high": high, "shape": tuple(images["shape"][1:])}
    return found.experiment.model, found.variables, {name: one for name, one in seen.items() if one is not None}


def trained_folder(name: str) -> Path:
    """The folder of an experiment that is trained on demand: under the user's cache, by its settings' hash."""
    experiment, _ = load_experiment(name)
    digest = hashlib.sha256(json.dumps(experiment.to_json(), sort_keys=True).encode()).hexdigest()
    return user_cache() / "trained" / f"{name}-{digest[:12]}"


def _of_experiment(name: str, path: str, sources: Sources) -> tuple[Any, Any, Mapping[str, Any]]:
    folder = trained_folder(name)
    if not (folder / FINISHED).exists():
        raise UsageError(
            f"{path}: the experiment {name!r} has not been trained to its end in {folder}; a run or a "
            "study that names it does that"
        )
    return _of_run(folder, sources)


def _hash(module: Any, variables: Any) -> str:
    """SHA-256 of a module's fields, and of each leaf's path, dtype, shape and bytes."""
    digest = hashlib.sha256(json.dumps(fields.to_json(module), sort_keys=True).encode())
    for path, leaf in leaf_paths(variables)[0].items():
        digest.update(f"{path} {leaf.dtype} {leaf.shape}".encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint of a run.

    Attributes:
      experiment: what was run, with the trained parts that it names opened.
      step: of the checkpoint.
      variables: of the model, as they are evaluated.
      held: hash -> variables of its frozen parts.
      facts: of the data it was trained on.
    """

    experiment: Experiment
    step: int
    variables: dict[str, Any]
    held: dict[str, Any]
    facts: dict[str, Any]


def restored(
    path: Path, *, best: bool = False, sources: Any = None, moved: Mapping[str, str] = MappingProxyType({})
) -> Restored:
    """A run's newest whole checkpoint, or its best.

    Args:
      path: the run's folder.
      best: whether it is the best.
      sources: see `open_given`.
      moved: sources of the run's data and trained parts that have another name now.

    Raises:
      UsageError: there is no run, it uses parts that are not known, or a trained part that is not at hand.
      RunError: there is no whole checkpoint.
    """
    config, experiment = read_config(path), stored_experiment(path)
    parts = [f"{place}.source" for place, one in fields.walk(experiment) if isinstance(one, Frozen)]
    for place in moved.keys() - {"data.source", *parts}:
        which = nearest(place, ["data.source", *parts])
        raise UsageError(f"{place!r} is no source of the run in {path} that could have moved{which}")
    experiment = experiment.overridden(moved)
    try:
        batch = {name: jax.ShapeDtypeStruct(tuple(x["shape"]), x["dtype"]) for name, x in config["batch"].items()}
    except (KeyError, TypeError, ValueError) as problem:
        raise RunError(f"{path / 'config.json'} is damaged: its batch can't be read ({problem})") from None
    experiment, given, held = open_given(experiment, batch, begun=config["experiment"], sources=sources)
    try:
        state = jax.eval_shape(lambda b, g: initial_state(experiment, b, given=g), batch, given).replace(frozen={})
    except ArchJaxError:
        raise
    except Exception as problem:  # whatever the model says to shapes that it was not trained on
        raise RunError(
            f"{path / 'config.json'} is damaged: its model can't be made for its batch "
            f"({type(problem).__name__}: {' '.join(str(problem).split())[:200]})"
        ) from None
    checkpoints = Checkpoints(path / "checkpoints", keep=experiment.keep, log=console.tell, reading=True)
    with checkpoints:
        step = checkpoints.best_step() if best else None
        found = checkpoints.restore(state, step=step)
    if found is None:
        raise RunError(f"the run in {path} has no checkpoint yet")
    return Restored(experiment, found[0], found[1].evaluated, held, config["data"])


def stored_experiment(path: Path | str) -> Experiment:
    """The experiment of the run in a folder.

    Raises:
      UsageError: there is no run, or it uses parts that are not known.
      RunError: its `config.json` is damaged.
    """
    import_components()
    stored = read_config(Path(path))["experiment"]
    try:
        return Experiment.from_json(stored)
    except UsageError as problem:
        raise UsageError(
            f"the run in {path} can't be opened: {problem}; parts of your own come with --import FILE"
        ) from None
