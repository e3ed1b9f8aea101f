"""The command `arch-jax`: thin; everything it does is a function elsewhere.

Exit codes: 0 done, 1 the run failed, 2 wrong usage. An error is one sentence on stderr; `--debug` shows where it arose.
"""

import argparse
import contextlib
import dataclasses
import gc
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from arch_jax.cli import certification, studies
from arch_jax.cli.console import changes_of, show, table
from arch_jax.cli.devices import choose_platform, prepare, without_devices
from arch_jax.console import console
from arch_jax.errors import ArchJaxError, RunError, UsageError, unknown


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, with the nearest valid word, instead of printing the usage."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see `{self.prog} --help`")

    def _print_message(self, message: str, file: Any = None) -> None:
        if message:
            console.print(message.removesuffix("\n"))

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            raise unknown("command", str(value), action.choices)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    console.open()
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    try:
        options = _parser().parse_args([a for a in arguments if a != "--debug"])
        options.debug = debug
        options.run(options)
        return 0
    except Exception as problem:
        if debug or not (isinstance(problem, ArchJaxError | OSError | MemoryError) or _is_full_device(problem)):
            raise
        console.tell(f"arch-jax: {_sentence(problem)}")
        return getattr(problem, "exit_code", 1)
    except KeyboardInterrupt:
        console.tell("arch-jax: interrupted")
        return 130


def _is_full_device(problem: Exception) -> bool:
    """True if a device's memory is full; JAX raises the same exception for much else."""
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(problem, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(problem)


def _sentence(problem: BaseException) -> str:
    if _is_full_device(problem):
        first = str(problem).strip().splitlines()[0]
        return f"the device's memory is full ({first}); a smaller batch, or accumulate=N, needs less"
    text = str(problem) if isinstance(problem, ArchJaxError) else f"{type(problem).__name__}: {problem}"
    return " ".join(text.split())


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="arch-jax", description="Neural architectures in JAX: train, evaluate, sample, look inside.")
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        return added

    changes: dict[str, Any] = {"action": "append", "default": [], "metavar": "FIELD=VALUE"}
    imports: dict[str, Any] = {"action": "append", "default": [], "metavar": "FILE", "dest": "imports"}

    one = command("list", _list, "the registered models")
    one.add_argument("words", nargs="*", metavar="WORD", help="only those whose name, paper, authors ... have it")
    one.add_argument("--family", help="only this family")
    one.add_argument("--parameters", metavar="FROM:TO", help="only these sizes, such as 100M:1B or :7B")
    one.add_argument("--count", action="store_true", help="count the parameters now, instead of the stored counts")
    one.add_argument("--import", **imports, help="a Python file that registers models of your own")
    one.add_argument("--json", action="store_true", help="as JSON")

    one = command("describe", _describe, "a model's layers, size, cost and settings")
    one.add_argument("name", help="a registered model")
    one.add_argument("--set", **changes, help="a field, such as depth=2 or mixer.heads=4")
    one.add_argument("--import", **imports, help="a Python file that registers models or parts of your own")
    one.add_argument("--json", action="store_true", help="as JSON")
    one.add_argument(
        "--svg", nargs="?", const="", metavar="FILE", help="draw the architecture instead (default: NAME.svg)"
    )

    one = command("train", _train, "train an experiment, or resume a run")
    one.add_argument("experiment", nargs="?", help="a name, or a Python file such as ./mine.py (default: gpt)")
    one.add_argument("--set", **changes, help="a field, such as model.depth=4 or steps=100")
    one.add_argument("--workdir", type=Path, help="the run's folder (default: runs/NAME-1, -2, ...)")
    one.add_argument("--seed", help="the same as --set seed=N")
    one.add_argument("--stop-after", type=int, metavar="K", help="stop, with a checkpoint, after K steps of this call")
    one.add_argument("--platform", help="cpu, gpu or tpu, and no other (default: what JAX finds)")
    one.add_argument("--coordinator", metavar="HOST:PORT", help="of several processes, where the first can be reached")
    one.add_argument("--processes", type=int, metavar="N", help="how many processes train together")
    one.add_argument("--process", type=int, metavar="I", help="which of them this is, from 0")
    one.add_argument("--distributed", action="store_true", help="several processes, as the cluster says (TPU, SLURM)")
    one.add_argument(
        "--heartbeat",
        type=int,
        default=30,
        metavar="S",
        help="seconds without a heartbeat before a process is declared dead",
    )
    one.add_argument("--import", **imports, help="a Python file that holds parts of the model")

    one = command("evaluate", _evaluate, "the validation loss of a run")
    one.add_argument("workdir", type=Path)
    one.add_argument(
        "--on",
        metavar="SOURCE",
        help="other data, whose validation part is measured: a source, such as text:PATH, or JSON",
    )
    one.add_argument(
        "--set", **changes, help="beside --on, a field of the data; else where it lies now: data.source=text:PATH"
    )
    one.add_argument("--best", action="store_true", help="the best checkpoint instead of the newest")
    one.add_argument("--import", **imports, help="a Python file that holds parts of the model")
    one.add_argument("--json", action="store_true", help="as JSON")

    one = command("sample", _sample, "sample from a run: text is printed, and everything is written to files")
    one.add_argument("workdir", type=Path, help="a run's folder, or that of a language model of another library")
    one.add_argument("--count", type=int, default=1, help="how many samples")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument(
        "--set",
        **changes,
        help="a setting of the sampler, another sampler (sampler=heun), or where the data lies now: "
        "data.source=text:PATH",
    )
    one.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: the run's samples/)")
    for flag, text in _SAMPLER_FLAGS.items():
        one.add_argument(flag, metavar="VALUE", help=f"the same as --set sampler.{_setting(flag)}=VALUE: {text}")
    one.add_argument("--best", action="store_true", help="the best checkpoint instead of the newest")
    one.add_argument("--import", **imports, help="a Python file that holds parts of the model")

    one = command("experiments", _experiments, "the experiments that come with the project")
    one.add_argument("--json", action="store_true", help="as JSON")
    studies.add(command)
    certification.add(command)
    parser.epilog = "Every command takes --debug, which shows where an error arose."
    return parser


#: Flags that stand for settings of the samplers of text, by the settings' names.
_SAMPLER_FLAGS = {
    "--prompt": "the text to continue, to translate, or to fill in at [MASK]",
    "--length": "tokens to add",
    "--temperature": "0 takes the likeliest token each time",
    "--top-k": "draw among the k likeliest tokens",
    "--top-p": "draw among the likeliest tokens that together reach probability p",
}


def _setting(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _version() -> str:
    from arch_jax import __version__

    return f"arch-jax {__version__}"


def _list(options: argparse.Namespace) -> None:
    from arch_jax import catalogue

    rows = catalogue.select(_rows(options), options.words, options.family, options.parameters)
    if options.json:
        console.print(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
        return
    columns = ("name", "family", "paper", ">parameters", ">published", "reference", ">largest difference")
    grid = table(*columns, "reproduces")
    for row in rows:
        published = row.parameters_published
        grid.add_row(
            row.name,
            row.family,
            f"{row.paper} ({row.year})",
            f"{row.parameters:,}",
            "-" if published is None else ("the same" if published == row.parameters else f"{published:,}"),
            row.reference,
            "-" if row.difference is None else f"{row.difference:.0e}",
            row.reproduces,
        )
    show(grid)


def _rows(options: argparse.Namespace) -> list[Any]:
    """The stored rows; with --count those of the registry, counted now; and those of the files imported."""
    from arch_jax import catalogue

    if not options.count and not options.imports:
        return catalogue.stored()
    without_devices()
    from arch_jax import registry
    from arch_jax.experiment import import_file

    own = set(registry.models())
    for file in options.imports:
        import_file(Path(file))
    if options.count:
        return [catalogue.facts_of(entry) for entry in registry.models().values()]
    return catalogue.stored() + [
        catalogue.facts_of(entry) for name, entry in registry.models().items() if name not in own
    ]


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Pauses Python's search for unreachable cycles, which takes a seventh of the time to trace a deep model."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _describe(options: argparse.Namespace) -> None:
    without_devices()
    from arch_jax.describe import describe
    from arch_jax.experiment import import_file

    for file in options.imports:
        import_file(Path(file))
    if options.svg is not None:
        _draw(options)
        return
    with _uncollected():
        facts = describe(options.name, changes_of(options))
    if options.json:
        console.print(json.dumps(facts, indent=1))
        return
    paper = facts["paper"]
    source = f"arXiv {paper['arxiv']}" if paper["arxiv"] else (paper["url"] or "")
    show(f"{facts['name']} ({facts['family']})\n{paper['authors']} ({paper['year']}), {paper['title']}. {source}")
    grid = table("layer", "kind", ">output", "parameters", ">count")
    for layer in facts["layers"]:
        shapes = ", ".join(f"{name} {_shape(shape)}" for name, shape in layer["parameters"].items())
        grid.add_row(
            layer["path"],
            layer["kind"],
            _shape(layer["output"]),
            shapes,
            f"{layer['count']:,}" if layer["count"] else "",
        )
    show(grid)
    grid = table("field", "value", "meaning")
    for field in facts["hyperparameters"]:
        grid.add_row(field["name"], json.dumps(field["value"]), field["meaning"])
    show(grid)
    inputs = ", ".join(f"{name} {_shape(shape)}" for name, shape in facts["input"].items())
    published = facts["parameters_published"]
    show(
        f"parameters  {facts['parameters']:,}" + ("" if published is None else f"  (published: {published:,})") + "\n"
        f"FLOPs       {facts['flops']:,} in matrix products of a forward pass, and {facts['flops_elementwise']:,} "
        f"element by element, for {inputs}"
    )


def _draw(options: argparse.Namespace) -> None:
    from arch_jax.drawing import draw

    if options.json:
        raise UsageError("--json and --svg are two forms of one description; expected one of them")
    with _uncollected():
        drawing = draw(options.name, **changes_of(options))
    console.print(f"wrote {drawing.save(options.svg or f'{options.name}.svg')}")


def _train(options: argparse.Namespace) -> None:
    several = _several(options)
    if several is None:
        prepare(options.platform)
        _train_here(options)
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before JAX is loaded, which reads it once
    from arch_jax.train.distributed import connected

    choose_platform(options.platform)
    with connected(**several, heartbeat=options.heartbeat, quiet=not options.debug):
        prepare(options.platform)
        _train_here(options)


def _several(options: argparse.Namespace) -> dict[str, Any] | None:
    """Settings by which this process joins others; None for a single process."""
    given = {name: getattr(options, name) for name in ("coordinator", "processes", "process")}
    if options.heartbeat < 1:
        raise UsageError(f"--heartbeat is {options.heartbeat}; expected at least 1 second")
    if all(value is None for value in given.values()):
        return given if options.distributed else None
    for name, value in given.items():
        if value is None and not options.distributed:
            present = ", ".join(f"--{name}" for name, value in given.items() if value is not None)
            raise UsageError(
                f"--{name} is missing beside {present}; expected --coordinator HOST:PORT, --processes N and --process I"
            )
    host, _, port = (options.coordinator or "").rpartition(":")
    if options.coordinator is not None and not (host and port.isdecimal() and 0 < int(port) < 65536):
        raise UsageError(f"--coordinator is {options.coordinator!r}; expected HOST:PORT, such as 10.0.0.1:1234")
    if options.processes is not None and options.processes < 1:
        raise UsageError(f"--processes is {options.processes}; expected at least 1")
    if None not in (options.process, options.processes) and not 0 <= options.process < options.processes:
        raise UsageError(
            f"--process is {options.process}; expected 0 to {options.processes - 1}, as there are {options.processes}"
        )
    return given


def _train_here(options: argparse.Namespace) -> None:
    from arch_jax.experiment import import_file, load

    for file in options.imports:
        import_file(Path(file))
    name, module = options.experiment, None
    if name is None and options.workdir is not None and (options.workdir / "config.json").exists():
        from arch_jax.train.given import stored_experiment

        experiment = stored_experiment(options.workdir)
    else:
        experiment, module = load(name or "gpt")
    changes = changes_of(options) | ({} if options.seed is None else {"seed": options.seed})
    experiment = experiment.overridden(changes)
    own = [*options.imports, *([name] if name is not None and name.endswith(".py") else [])]
    if options.stop_after is not None and options.stop_after < 1:
        raise UsageError(f"--stop-after is {options.stop_after}; expected at least 1 step")
    from arch_jax.train.distributed import agreed, leader
    from arch_jax.train.loop import train
    from arch_jax.train.workdir import next_directory

    path = options.workdir or Path(agreed("workdir", str(next_directory(experiment.name))))
    outcome = train(experiment, path, stop_after=options.stop_after)
    if not leader():
        return
    if not outcome.finished:
        again = ["arch-jax", "train", "--workdir", str(outcome.path)]
        again += [word for file in own for word in ("--import", file)]
        console.print(f"stopped after step {outcome.step} of {experiment.steps}; resume with: {shlex.join(again)}")
        return
    texts = [path for path in outcome.shown if path.suffix == ".txt"]
    for path in texts:
        console.print(f"--- {path.stem} ---\n{path.read_text(encoding='utf-8').strip()}\n---")
    console.print(_validation(outcome.validation, experiment.objective.unit))
    for published in getattr(module, "published", ()):
        console.print(f"published: {published}")
    for path in (*outcome.shown, outcome.path / "metrics.jsonl", outcome.path / "checkpoints"):
        console.print(f"wrote {path}")


def _evaluate(options: argparse.Namespace) -> None:
    prepare()
    from arch_jax.fields import to_json
    from arch_jax.train.restore import open_run

    changes = changes_of(options)
    moved = {} if options.on is not None else {path: changes[path] for path in changes if path.endswith(".source")}
    run = open_run(options.workdir, options.imports, best=options.best, moved=moved)
    if options.on is None and (others := [path for path in changes if path not in moved]):
        given = f"{others[0]}={changes[others[0]]}"
        raise UsageError(f"--set {given} changes the data, which needs --on SOURCE; expected both or neither")
    data = None if options.on is None else run.elsewhere(options.on, changes)
    validation = run.evaluate(data)
    if options.json:
        on = {} if data is None else {"on": to_json(data)}
        console.print(json.dumps({"step": run.step} | on | validation, indent=1))
    else:
        on = "" if data is None else f", on {options.on}"
        console.print(_validation(validation, run.experiment.objective.unit))
        console.print(f"of step {run.step} of {options.workdir}{on}")


def _sample(options: argparse.Namespace) -> None:
    prepare()
    from arch_jax.train.checkpoint_folder import is_checkpoint, open_checkpoint
    from arch_jax.train.restore import open_run

    changes = changes_of(options)
    moved = {path: changes.pop(path) for path in [*changes] if path.endswith(".source") and path[:8] != "sampler."}
    published = is_checkpoint(options.workdir)
    if published and options.best:
        raise UsageError(f"--best is for runs, and {options.workdir} holds one checkpoint; expected no --best")
    if published and moved:
        place = next(iter(moved))
        raise UsageError(
            f"--set {place} is for runs, and {options.workdir} holds a checkpoint without data; expected none"
        )
    if published:
        run: Any = open_checkpoint(options.workdir)
    else:
        run = open_run(options.workdir, options.imports, best=options.best, moved=moved)
    other = {"sampler": changes.pop("sampler")} if "sampler" in changes and not published else {}
    settings = {_setting(flag): getattr(options, _setting(flag)) for flag in _SAMPLER_FLAGS}
    settings = {name: value for name, value in settings.items() if value is not None}
    for path, value in changes.items():
        owner, _, name = path.partition(".")
        if owner != "sampler" or not name:
            raise UsageError(f"--set {path} is not a setting of a sampler; expected such as sampler.temperature=0.5")
        if settings.setdefault(name, value) != value:
            raise UsageError(f"sampler.{name} is set twice, to {settings[name]!r} and {value!r}; expected one value")
    made = run.sample(options.seed, options.count, settings, **other)
    texts = {name: thing for name, thing in made.items() if isinstance(thing, str)}
    for name, text in texts.items():
        console.print(f"--- {name.replace('_', ' ')} ---\n{text}" if len(texts) > 1 else text)
    from arch_jax.train.report import save_shown

    if published and options.out is None:
        return  # the folder is another library's
    folder = options.out or options.workdir / "samples"
    try:
        written = save_shown(folder, f"seed_{options.seed}", made)
    except (OSError, RunError) as problem:
        if len(texts) < len(made):
            raise
        console.tell(f"not written: {problem}")  # the text was printed
        return
    for path in written:
        console.tell(f"wrote {path}")


def _experiments(options: argparse.Namespace) -> None:
    from arch_jax.experiment import experiments

    if options.json:
        console.print(json.dumps([{"name": name, "text": text} for name, text in experiments().items()], indent=1))
        return
    grid = table("experiment", "what it is")
    for name, text in experiments().items():
        grid.add_row(name, text)
    show(grid)


def _validation(metrics: dict[str, float], unit: str) -> str:
    """The metrics as a sentence; the loss is the first number."""
    rest = [f"{value:.4f} {name.replace('_', ' ')}" for name, value in metrics.items() if name != "loss"]
    return ", ".join([f"validation loss {metrics['loss']:.4f} {unit}", *reversed(rest)])


def _shape(shape: Any) -> str:
    return " x ".join(map(str, shape))
