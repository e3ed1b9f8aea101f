"""The commands for studies: answers with an interval instead of one lucky run."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from arch_jax.cli.console import changes_of, show, table
from arch_jax.cli.devices import prepare, without_devices
from arch_jax.console import console
from arch_jax.errors import UsageError

Adder = Callable[[str, Callable[[argparse.Namespace], None], str], argparse.ArgumentParser]


def add(command: Adder) -> None:
    """Adds the commands."""
    one = command("ablate", _ablate, "an experiment's variants with seeds, and how sure the differences are")
    _experiment(one)
    one.add_argument(
        "--axis", action="append", default=[], metavar="NAME", help="only this ablate_NAME() (default: all)"
    )
    one.add_argument("--product", action="store_true", help="all combinations of the axes' variants")
    one.add_argument(
        "--metric", help="of the validation metrics (default: what the experiment's published number is of)"
    )
    _study(one)

    one = command("compare", _compare, "different architectures on one task under one budget")
    one.add_argument(
        "models", nargs="+", metavar="MODEL", help="a registered model, as such or as NAME:FIELD=VALUE,..."
    )
    one.add_argument("--on", required=True, metavar="EXPERIMENT", help="whose task it is: a name, or a Python file")
    one.add_argument(
        "--budget", required=True, metavar="KIND=AMOUNT", help="parameters=, flops=, tokens= or seconds=, such as 1e6"
    )
    one.add_argument(
        "--tune", action="append", default=[], metavar="FIELD=V,V", help="values to choose from for each model"
    )
    one.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="a field of the experiment")
    _imports(one)
    _study(one)

    scaling = command("scaling", _scaling, "scaling laws: fitted to points, or to a family that is trained")
    kinds = scaling.add_subparsers(dest="kind", required=True, parser_class=type(scaling), metavar="fit|run")
    one = kinds.add_parser("fit", help="to a CSV file of points", description="A scaling law of measured points.")
    one.add_argument("points", type=Path, help="a CSV file with columns for parameters, tokens or FLOPs, and loss")
    for name in ("parameters", "tokens", "flops", "loss"):
        one.add_argument(f"--{name}", metavar="COLUMN", help="its column (default: one of a usual name)")
    one.add_argument("--drop-highest", type=int, default=0, metavar="N", help="leave out the N points of highest loss")
    one.add_argument("--workdir", type=Path, help="where law.json and law.png go (default: runs/scaling-POINTS)")
    one.add_argument("--json", action="store_true", help="the figures as JSON")
    _law(one)
    one = kinds.add_parser("run", help="to a family of runs", description="Trains a family of sizes, and fits its law.")
    _experiment(one)
    one.add_argument("--sizes", required=True, metavar="N,N,N", help="numbers of parameters, such as 1e5,3e5,1e6")
    one.add_argument("--tokens", required=True, metavar="D,D,D", help="numbers of tokens that each is trained on")
    _law(one)
    _study(one, seeds=1)

    one = command("reproduce", _reproduce, "an experiment with its seeds, beside what was published")
    _experiment(one)
    _study(one, seeds=None)

    one = command("plan", _plan, "what a step costs on a TPU or GPU that is not here: memory, time, largest batch")
    one.add_argument("name", metavar="EXPERIMENT|MODEL", help="an experiment, a Python file, or a registered model")
    one.add_argument(
        "--target", action="append", required=True, metavar="MACHINE", help="v5e-8, kaggle-v5e-8, h100 ..."
    )
    one.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="a field; of a model also batch=N"
    )
    one.add_argument("--chips", type=int, metavar="N", help="how many of the machine's chips (default: all)")
    one.add_argument("--decode", action="store_true", help="the decoding step as well")
    one.add_argument("--largest-batch", action="store_true", help="look for the largest batch that fits")
    _imports(one)
    one.add_argument("--json", action="store_true", help="the figures as JSON")

    one = command("ledger", _ledger, "all that was reproduced, and what has changed since")
    one.add_argument("--json", action="store_true", help="the records as JSON")
    one.add_argument(
        "--check", action="store_true", help="name stale records, those whose code has changed since among them"
    )


def _law(one: argparse.ArgumentParser) -> None:
    one.add_argument("--bootstrap", type=int, default=200, metavar="N", help="resamples for the intervals; 0 is none")
    one.add_argument(
        "--budget",
        type=float,
        action="append",
        default=[],
        metavar="FLOPS",
        help="tell the compute-optimal size for it",
    )


def _experiment(one: argparse.ArgumentParser) -> None:
    one.add_argument("experiment", help="a name, or a Python file such as ./mine.py")
    one.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="a field, such as model.depth=4 or steps=100"
    )
    _imports(one)


def _imports(one: argparse.ArgumentParser) -> None:
    text = "a Python file that holds parts of the model"
    one.add_argument("--import", action="append", default=[], metavar="FILE", dest="imports", help=text)


def _study(one: argparse.ArgumentParser, seeds: int | None = 3) -> None:
    """Options of every study that trains."""
    default = "as many as the published number is of" if seeds is None else str(seeds)
    one.add_argument("--seeds", type=int, default=seeds, metavar="N", help=f"how many (default: {default})")
    one.add_argument(
        "--workdir", type=Path, help="the study's folder (default: runs/COMMAND-NAME); called again, it goes on"
    )
    one.add_argument(
        "--together", type=int, metavar="N", help="seeds in one program (default: 1 on a CPU, all on others)"
    )
    one.add_argument("--keep-checkpoints", action="store_true", help="also those of finished runs")
    one.add_argument("--platform", help="cpu, gpu or tpu, and no other (default: what JAX finds)")
    one.add_argument("--json", action="store_true", help="the figures as JSON")


def _open(options: argparse.Namespace, default: str) -> Any:
    from arch_jax.study.runs.study import Study

    path = options.workdir or Path("runs") / default
    return Study(path, together=options.together, keep_checkpoints=options.keep_checkpoints)


def _loaded(options: argparse.Namespace, name: str) -> tuple[Any, Any]:
    """The experiment with `--set`, and its file."""
    from arch_jax.experiment import import_file, load
    from arch_jax.study.ablate.ablate import overridden

    for file in options.imports:
        import_file(Path(file))
    experiment, module = load(name)
    return overridden(experiment, changes_of(options)), module


def _metric(options: argparse.Namespace, module: Any) -> str:
    published = [one for one in getattr(module, "published", ()) if hasattr(one, "metric")]
    return options.metric or (published[0].metric if published else "loss")


def _ablate(options: argparse.Namespace) -> None:
    prepare(options.platform)
    from arch_jax.study import formatting
    from arch_jax.study.ablate import presentation
    from arch_jax.study.ablate.ablate import ablate, axes, variants
    from arch_jax.train.workdir import write

    experiment, module = _loaded(options, options.experiment)
    chosen = variants(experiment, axes(module), options.axis, options.product)
    with _open(options, f"ablate-{experiment.name}") as study:
        ablation = ablate(chosen, study, seeds=options.seeds, metric=_metric(options, module))
        data = ablation.to_json()
        rows = presentation.ablation_rows(ablation)
        write(study.path / "ablation.json", json.dumps(data, indent=1) + "\n")
        written = [
            study.path / "ablation.json",
            formatting.write_csv(study.path / "ablation.csv", rows),
            *_figure(presentation.draw_curves, ablation, study.path / "curves.png"),
            *_figure(presentation.draw_bars, ablation, study.path / "bars.png"),
        ]
    if options.json:
        console.print(json.dumps(data, indent=1))
        return
    grid = table(
        "variant",
        f">{ablation.metric}",
        ">difference",
        ">p (Holm)",
        ">parameters",
        ">FLOPs a step",
        ">time a step",
        ">memory",
    )
    for row, numbers in zip(ablation.rows, rows):
        grid.add_row(
            row.variant.label,
            "diverged" if row.mean is None else str(row.mean),
            "" if row.difference is None else str(row.difference),
            "" if row.p is None else f"{row.p:.2g}",
            f"{numbers['parameters']:,}",
            formatting.format_count(numbers["flops_per_step"]),
            formatting.format_duration(numbers["seconds_per_step"]),
            formatting.format_size(numbers["peak_bytes"]),
        )
    show(grid, keep=4)
    for note in ablation.notes:
        console.print(note)
    for path in written:
        console.print(f"wrote {path}")


def _figure(draw: Callable[[Any, Path], Any], of: Any, path: Path) -> list[Path]:
    """Draws a study's figure; one that fails costs a warning, not the table."""
    from arch_jax.train.showing import Warned

    def make() -> list[Path]:
        draw(of, path)
        return [path]

    return Warned(console.tell).made(f"the figure {path.name}", make)


def _reproduce(options: argparse.Namespace) -> None:
    prepare(options.platform)
    from arch_jax.study.reproduce.ledger import LedgerEntry, in_clone, ledger_table, write_record
    from arch_jax.study.reproduce.reproduce import reproduce
    from arch_jax.train.workdir import write

    experiment, module = _loaded(options, options.experiment)
    with _open(options, f"reproduce-{experiment.name}") as study:
        record = reproduce(experiment, module, study, options.seeds)
        data = record.to_json()
        write(study.path / "record.json", record.to_text())
    if options.json:
        console.print(json.dumps(data, indent=1))
    else:
        _print_ledger(ledger_table([LedgerEntry(record.name, record)]))
        console.print(f"wrote {study.path / 'record.json'}")
    if record.changes:
        console.tell(
            f"not in the ledger: {', '.join(record.changes)} was set, and the ledger is of experiments as they are"
        )
        return
    own = options.experiment.endswith(".py")
    if not own and not in_clone():
        console.tell("not in the ledger: the package is installed, and the ledger is its clone's")
        return
    path = write_record(record, Path(module.__file__).parent / "results" if own else None)
    if not options.json:
        console.print(f"wrote {path}")


def _ledger(options: argparse.Namespace) -> None:
    without_devices()
    from arch_jax.study.reproduce.ledger import in_clone, ledger, ledger_table, results_folder, write_table

    entries = ledger()
    if options.check:
        _check_ledger(entries, options.json)
        return
    if options.json:
        facts = [
            {"name": entry.name, "stale": entry.stale, "problem": entry.problem}
            | {"record": None if entry.record is None else entry.record.to_json()}
            for entry in entries
        ]
        console.print(json.dumps(facts, indent=1))
        return
    if not entries:
        console.print("no record yet; `arch-jax reproduce NAME` makes one")
        return
    _print_ledger(ledger_table(entries))
    if in_clone():
        console.print(f"wrote {write_table(entries, results_folder().parent / 'README.md')}")


def _check_ledger(entries: list[Any], as_json: bool) -> None:
    """Tells which records are stale; they are an answer, no failure."""
    if as_json:
        facts = [{"name": one.name, "state": one.state, "changed": list(one.changed)} for one in entries]
        console.print(json.dumps(facts, indent=1))
        return
    grid = table("record", "state", "renewed by")
    for one in entries:
        command = (one.record.command if one.record is not None else "") or f"arch-jax reproduce {one.name}"
        grid.add_row(one.name, one.state, "" if one.state == "fresh" else command)
    show(grid)
    stale = sum(one.state != "fresh" for one in entries)
    console.print(f"{stale} of {len(entries)} records are stale")


def _print_ledger(rows: list[dict[str, str]]) -> None:
    grid = table(*rows[0])
    for row in rows:
        grid.add_row(*row.values())
    show(grid)


def _scaling(options: argparse.Namespace) -> None:
    if options.kind == "fit":
        _scaling_fit(options)
    else:
        _scaling_run(options)


def _scaling_fit(options: argparse.Namespace) -> None:
    without_devices()
    from arch_jax.study.scaling.law import fit, fit_kaplan
    from arch_jax.study.scaling.measurements import read_measurements

    columns = {name: getattr(options, name) for name in ("parameters", "tokens", "flops", "loss")}
    points = read_measurements(options.points, **columns, drop_highest=options.drop_highest)
    law = fit(points, bootstrap=options.bootstrap)
    folder = options.workdir or Path("runs") / f"scaling-{options.points.stem}"
    _tell_law(options, folder, points, law, fit_kaplan(points), {}, [f"{len(points)} points of {options.points}"], [])


def _scaling_run(options: argparse.Namespace) -> None:
    prepare(options.platform)
    from arch_jax.study.formatting import write_csv
    from arch_jax.study.scaling.family import train_family

    experiment, _ = _loaded(options, options.experiment)
    sizes, tokens = _numbers("--sizes", options.sizes), _numbers("--tokens", options.tokens)
    with _open(options, f"scaling-{experiment.name}") as study:
        family = train_family(experiment, study, sizes, tokens, seeds=options.seeds, bootstrap=options.bootstrap)
        rows = family.rows()
        written = [write_csv(study.path / "points.csv", rows)]
        _tell_law(options, study.path, family.points, family.law, family.kaplan, {"runs": rows}, family.notes, written)


def _tell_law(
    options: argparse.Namespace, folder: Path, points: Any, law: Any, kaplan: Any, more: Any, notes: Any, written: Any
) -> None:
    from arch_jax.study.scaling.figures import draw
    from arch_jax.study.scaling.figures import report as law_rows
    from arch_jax.study.scaling.law import caveats
    from arch_jax.train.workdir import write

    rows, notes = law_rows(law, kaplan, options.budget), [*notes, *caveats(law, points)]
    optima = [
        {"flops": flops, "parameters": law.optimal(flops)[0], "tokens": law.optimal(flops)[1]}
        for flops in options.budget
    ]
    data = {"law": law.to_json(), "kaplan": kaplan.to_json(), "optimal": optima, "notes": list(notes)} | more
    write(folder / "law.json", json.dumps(data, indent=1) + "\n")
    figures = _figure(lambda law, path: draw(points, law, path), law, folder / "law.png")
    if options.json:
        console.print(json.dumps(data, indent=1))
        return
    if "runs" in more:
        grid = table(">parameters", ">tokens", ">FLOPs", ">loss")
        for row in more["runs"]:
            grid.add_row(f"{row['parameters']:,}", f"{row['tokens']:,}", f"{row['flops']:.3g}", f"{row['loss']:.4f}")
        show(grid)
    grid = table("L = E + A / N^alpha + B / D^beta", ">value", ">95 % interval")
    for name, value, interval in rows:
        grid.add_row(name, f"{value:.6g}", "" if interval is None else f"{interval[0]:.4g} to {interval[1]:.4g}")
    show(grid)
    for note in notes:
        console.print(note)
    for path in (*written, folder / "law.json", *figures):
        console.print(f"wrote {path}")


def _numbers(option: str, text: str) -> list[float]:
    """Numbers between commas.

    Raises:
      UsageError: one is none.
    """
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise UsageError(f"{option} is {text!r}; expected numbers between commas, such as 1e5,3e5,1e6") from None


def _compare(options: argparse.Namespace) -> None:
    prepare(options.platform)
    from arch_jax.study.compare import presentation
    from arch_jax.study.compare.budget import Budget
    from arch_jax.study.compare.candidates import parse_grid, parse_model
    from arch_jax.study.compare.compare import compare
    from arch_jax.train.workdir import write

    experiment, _ = _loaded(options, options.on)
    contestants = [parse_model(text) for text in options.models]
    budget, tune = Budget.parse(options.budget), dict(parse_grid(text) for text in options.tune)
    with _open(options, f"compare-{experiment.name}") as study:
        comparison = compare(contestants, experiment, budget, study, seeds=options.seeds, tune=tune)
        data = comparison.to_json()
        write(study.path / "comparison.json", json.dumps(data, indent=1) + "\n")
        written = [
            study.path / "comparison.json",
            presentation.write_comparison_csv(comparison, study.path / "comparison.csv"),
            *_figure(presentation.draw_comparison, comparison, study.path / "comparison.png"),
        ]
    if options.json:
        console.print(json.dumps(data, indent=1))
        return
    headers, rows = presentation.comparison_table(comparison)
    grid = table(*(name if name == "model" else f">{name}" for name in headers))
    for row in rows:
        grid.add_row(*row)
    show(grid, keep=5)
    console.print("held equal: " + "; ".join(comparison.held_equal))
    console.print("not equal: " + "; ".join(comparison.not_equal))
    for note in comparison.notes:
        console.print(note)
    for path in written:
        console.print(f"wrote {path}")


def _plan(options: argparse.Namespace) -> None:
    without_devices()
    from arch_jax.experiment import import_file
    from arch_jax.plan.plan import plan, workload

    for file in options.imports:
        import_file(Path(file))
    of = workload(options.name, changes_of(options), tuple(options.imports))
    asked = {"chips": options.chips, "decode": options.decode, "largest_batch": options.largest_batch}
    found = []
    for target in options.target:
        one = plan(of, target, **asked, say=console.tell)
        found.append(one.to_json())
        if not options.json:
            grid = table(of.name, target)
            for what, how_much in one.lines():
                grid.add_row(what, how_much)
            show(grid)
    if options.json:
        console.print(json.dumps(found if len(found) > 1 else found[0], indent=1))
