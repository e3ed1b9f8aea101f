"""A run's folder: its files, its owner, and a lock so that only one process writes to it.

`config.json`, `metrics.jsonl`, `loss.png`, `samples/`, `checkpoints/`, `tokenizer.json`, TensorBoard events when asked
for. Files are replaced as a whole, so that none is ever half-written.
"""

import dataclasses
import json
import os
import re
import shlex
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from arch_jax import fields
from arch_jax.data.files import places
from arch_jax.errors import RunError, UsageError
from arch_jax.experiment import Experiment
from arch_jax.train.checkpointing.storage import barrier
from arch_jax.train.distributed import leader

FORMAT = 1
#: Fields that may differ on resume: the length (the schedule's horizon was written down at the start), and the mesh,
#: which depends on the machine: a checkpoint can be read in every layout.
MAY_CHANGE = re.compile(r"steps$|mesh\..*")


class WorkDirectory:
    """One run's folder, locked while it is open.

    Several processes that train one run open it together: the first locks it and writes, the others only look.

    Raises:
      UsageError: it can't be written to, another process has it open, or it holds another run.
    """

    def __init__(self, path: Path | str) -> None:
        import filelock

        self.path = Path(path)
        self._config: dict[str, Any] = {}
        try:
            os.path.abspath(self.path).encode()
        except UnicodeEncodeError:  # Orbax would say so at the first checkpoint
            raise UsageError(
                f"the work directory {str(self.path)!r} has a name that is not UTF-8; expected one that is, all the way"
            ) from None
        self._writes = leader()
        if not self._writes:
            barrier("open")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = filelock.FileLock(self.path / ".lock")
            if self._writes:
                self._lock.acquire(timeout=0)
            descriptor, probe = tempfile.mkstemp(dir=self.path)
            os.close(descriptor)
            os.unlink(probe)
        except filelock.Timeout:
            raise UsageError(
                f"another run has the work directory {self.path} open; wait for it, or choose another"
            ) from None
        except (OSError, NotImplementedError) as problem:
            raise UsageError(f"can't write to the work directory {self.path}: {reason(problem)}") from None
        if self._writes:
            barrier("open")

    def __enter__(self) -> "WorkDirectory":
        return self

    def __exit__(self, *_: Any) -> None:
        self._lock.release()

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def has_checkpoint(self) -> bool:
        """True if a checkpoint was written, whole or not."""
        return self.checkpoints.is_dir() and any(entry.name.isdecimal() for entry in self.checkpoints.iterdir())

    @property
    def metrics(self) -> Path:
        """One JSON object a line: {"step": ..., metric: value, ...}."""
        return self.path / "metrics.jsonl"

    def claim(
        self, experiment: Experiment, facts: Mapping[str, Any], batch: Mapping[str, Any], place: Path | None = None
    ) -> Experiment:
        """Checks that a run may start here, or resume if it is the one that is here; `settle` then writes it down.

        The data is the run's where its content is, wherever it lies by now: its source is not compared.

        Args:
          experiment: the requested experiment.
          facts: of the data, such as its hash.
          batch: one batch; its shapes are written down, so that the run can be opened where the data is not.
          place: of the data, where it is named by its place; by default, its source's path from here.

        Returns:
          The experiment with its schedule's horizon as it was when the run started.

        Raises:
          UsageError: the folder holds another experiment's run, or one with other settings or data.
        """
        stored = read_config(self.path, missing_ok=True)
        if stored is None:
            experiment.check_new()
            experiment = experiment.settled()
        else:
            by_content = {"sha256"} <= facts.keys() & stored["data"].keys()
            experiment = resumed(experiment, stored["experiment"], self.path, by_content)
            self._check_data(experiment.data, stored["data"], facts, by_content)
        place = places.place(getattr(experiment.data, "source", None)) if place is None else place
        self._config = {
            "format": FORMAT,
            "experiment": experiment.to_json(),
            "data": dict(facts),
            **({} if place is None else {"place": os.path.abspath(place)}),
            "batch": {name: {"shape": list(x.shape), "dtype": str(x.dtype)} for name, x in batch.items()},
            "versions": versions() if stored is None else stored.get("versions"),
        }
        barrier("claim")  # all have read what is here before the first writes
        return experiment

    def _check_data(self, data: Any, stored: Mapping[str, Any], facts: Mapping[str, Any], by_content: bool) -> None:
        if by_content and stored["sha256"] != facts["sha256"]:
            raise other_data(self.path, data, stored, facts, NEW_RUN)
        changes = fields.difference(stored, json.loads(json.dumps(facts)))
        # A fact that an earlier version did not write down says nothing about the same content.
        changed = next((one for one in changes if not (by_content and (one[0] == "source" or one[1] is None))), None)
        if changed is not None:
            raise UsageError(
                f"the data of the run in {self.path} has changed: {changed[0]} was {changed[1]!r} and is {changed[2]!r}"
            )

    def settle(self) -> None:
        """Writes down whose run this is, as found by `claim`.

        Apart from `claim`, so that a run that is refused for another reason leaves the folder free, or as it was.
        """
        if self._writes:
            write(self.path / "config.json", json.dumps(self._config, indent=1, ensure_ascii=False) + "\n")

    def cut_metrics(self, step: int) -> None:
        """Drops the lines of `metrics.jsonl` on steps after `step`: they will be taken again."""
        kept = [line for line in metric_lines(self.metrics) if line["step"] <= step]
        if self._writes and self.metrics.exists():
            write(self.metrics, "".join(json.dumps(line) + "\n" for line in kept))

    def append_metrics(self, lines: list[dict[str, Any]]) -> None:
        """Adds lines to `metrics.jsonl`.

        Raises:
          RunError: they can't be written.
        """
        if not self._writes:
            return
        try:
            with open(self.metrics, "a", encoding="utf-8") as file:
                file.write("".join(json.dumps(line) + "\n" for line in lines))
        except OSError as problem:
            raise RunError(f"can't write {self.metrics}: {reason(problem)}") from None


def other_data(
    path: Path, data: Any, stored: Mapping[str, Any], facts: Mapping[str, Any], instead: str = ""
) -> UsageError:
    """The error for data whose content is not that of a run.

    Args:
      path: of the run.
      data: the component.
      stored: facts of the run's data.
      facts: of the other data.
      instead: a further part of the sentence, on what can be done with the data.
    """
    source = getattr(data, "source", None)
    on = "SOURCE" if source is None else shlex.quote(str(source))
    return UsageError(
        f"the data {source or facts.get('source')!r} is not what the run in {path} was trained on: its hash is "
        f"{str(facts.get('sha256'))[:12]}, expected {str(stored.get('sha256'))[:12]}; "
        f"`arch-jax evaluate {shlex.quote(str(path))} --on {on}` measures the run on it"
        f"{instead.format(path=shlex.quote(str(path)))}"
    )


#: Continues `other_data` where a run was to be resumed.
NEW_RUN = ", and --set start={path} with another --workdir begins a new run from its weights"


def resumed(experiment: Experiment, stored: Mapping[str, Any], path: Path, by_content: bool = False) -> Experiment:
    """The stored run, with the requested `steps`, and its data and trained parts by the names that they have now.

    Args:
      experiment: the requested one.
      stored: the run's, as JSON data.
      path: the run's folder.
      by_content: whether the data's content is compared elsewhere, so that its source says nothing.

    Raises:
      UsageError: the two differ in anything else.
    """
    if stored.get("name") != experiment.name:
        raise UsageError(
            f"{path} holds a run of the experiment {stored.get('name')!r}, not of {experiment.name!r}; "
            "choose another work directory"
        )
    old = Experiment.from_json(stored)
    if "ema_warmup" not in stored:
        experiment = dataclasses.replace(experiment, ema_warmup=old.ema_warmup)
    if experiment.settled() == old:
        return old
    settled = Experiment.from_json(_with_horizons(experiment.to_json(), stored))
    # Not against `stored` itself: one of an earlier version lacks the fields that were added since.
    for place, was, now in fields.difference(old.to_json(), settled.to_json()):
        moved = by_content if place == "data.source" else _same_part(place, old.to_json(), settled.to_json())
        if not MAY_CHANGE.fullmatch(place) and not moved:
            raise UsageError(
                f"{path} holds a run with {place}={json.dumps(was)}, and now it is {json.dumps(now)}; "
                "only steps and the mesh may change on resume"
            )
    return settled


def _same_part(place: str, old: Any, new: Any) -> bool:
    """True if a field of a trained part whose content is the same in both is its source, or was not known before."""
    *owner, field = place.split(".")
    for key in owner:
        old, new = (one[int(key)] if isinstance(one, list) else one[key] for one in (old, new))
    known = isinstance(old, dict) and old.get("sha256") is not None
    found = field in ("low", "high", "shape") and known and old.get(field) is None
    return (field == "source" or found) and known and old["sha256"] == new.get("sha256")


def _with_horizons(new: dict[str, Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    """`new` with each open horizon taken from the stored run."""

    def fill(one: dict[str, Any], old: Any) -> dict[str, Any]:
        return one | {"horizon": one["horizon"] or (old or {}).get("horizon")}

    optimizer, old = new["optimizer"], stored["optimizer"]
    if isinstance(optimizer, list):
        olds = old if isinstance(old, list) else [old] * len(optimizer)
        return new | {"optimizer": [fill(one, was) for one, was in zip(optimizer, olds)]}
    return new | {"optimizer": fill(optimizer, old if isinstance(old, dict) else None)}


def read_config(path: Path, missing_ok: bool = False) -> dict[str, Any] | None:
    """The `config.json` of a run's folder.

    Raises:
      UsageError: there is none.
      RunError: it can't be read as what it should be.
    """
    file = Path(path) / "config.json"
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        if missing_ok:
            return None
        raise UsageError(f"{path} holds no run: there is no config.json in it") from None
    except (OSError, ValueError) as problem:
        raise RunError(f"{file} is damaged: {reason(problem)}") from None
    if (other := of_another_library(Path(path))) is not None:
        raise UsageError(
            f"{path} holds no run, but a checkpoint of another library ({other}); expected a run's folder, or "
            "`arch-jax sample FOLDER` and arch_jax.load_pretrained, which take such a one"
        )
    wanted = {"format": int, "experiment": dict, "data": dict, "batch": dict}
    if not isinstance(data, dict) or any(not isinstance(data.get(key), kind) for key, kind in wanted.items()):
        raise RunError(f"{file} is damaged: expected an object with {', '.join(wanted)}")
    if data["format"] != FORMAT:
        raise UsageError(f"{file} has format {data['format']}; this version of arch_jax reads format {FORMAT}")
    return data


def of_another_library(path: Path) -> str | None:
    """The field of a folder's `config.json` by which another library wrote it; None for that of a run, or none."""
    try:
        data = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(data, dict) or "experiment" in data:
        return None
    names = ("model_type", "architecture", "architectures", "_class_name", "ssm_cfg", "d_model")
    return next((f"{name}={data[name]!r:.60}" for name in names if name in data), None)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`; a last line torn by a kill is left out."""
    return list(metric_lines(Path(path) / "metrics.jsonl"))


def metric_lines(file: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a metrics file."""
    if not file.exists():
        return
    for text in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            yield line


def write(path: Path, content: str | bytes) -> None:
    """Replaces a file atomically: readers see the old or the new, never a part.

    Raises:
      RunError: it can't be written; the old file is untouched.
    """
    # A file name that is not UTF-8 is written as JSON escapes it, and read back as it was.
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = file.name
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as problem:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise RunError(f"can't write {path}: {reason(problem)}") from None


def next_directory(name: str, root: Path = Path("runs")) -> Path:
    """The first free folder for a run: runs/gpt-1, runs/gpt-2 ..."""
    taken = [int(m[1]) for p in root.glob(f"{name}-*") if (m := re.fullmatch(re.escape(name) + r"-(\d+)", p.name))]
    return root / f"{name}-{max(taken, default=0) + 1}"


def versions() -> dict[str, str]:
    """The facts needed to repeat a run."""
    import platform
    from importlib.metadata import version

    packages = ("arch-jax", "jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    return {"python": platform.python_version()} | {package: version(package) for package in packages}


def reason(problem: BaseException) -> str:
    """The reason, in a few words."""
    return getattr(problem, "strerror", None) or str(problem).split("\n")[0] or type(problem).__name__
