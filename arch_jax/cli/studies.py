"""The commands for studies: answers with an interval instead of one lucky run."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from arch_jax.cli.console import changes_of, show, table
from arch_jax.cli.devices import prepare, without_devices

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

    one = command("reproduce", _reproduce, "an experiment with its seeds, beside what was published")
    _experiment(one)
    _study(one, seeds=None)

    one = command("ledger", _ledger, "all that was reproduced, and what has changed since")
    one.add_argument("--json", action="store_true", help="the records as JSON")


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
    """What every study that trains has."""
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
    from arch_jax.study.cells import Study

    path = options.workdir or Path("runs") / default
    return Study(path, together=options.together, keep_checkpoints=options.keep_checkpoints)


def _loaded(options: argparse.Namespace, name: str) -> tuple[Any, Any]:
    """The experiment with `--set`, and its file."""
    from arch_jax.experiment import import_file, load
    from arch_jax.study.ablate import overridden

    for file in options.imports:
        import_file(Path(file))
    experiment, module = load(name)
    return overridden(experiment, changes_of(options)), module


def _metric(options: argparse.Namespace, module: Any) -> str:
    published = [one for one in getattr(module, "published", ()) if hasattr(one, "metric")]
    return options.metric or (published[0].metric if published else "loss")


def _ablate(options: argparse.Namespace) -> None:
    prepare(options.platform)
    from arch_jax.study import report
    from arch_jax.study.ablate import ablate, axes, variants
    from arch_jax.train.workdir import write

    experiment, module = _loaded(options, options.experiment)
    chosen = variants(experiment, axes(module), options.axis, options.product)
    with _open(options, f"ablate-{experiment.name}") as study:
        ablation = ablate(chosen, study, seeds=options.seeds, metric=_metric(options, module))
        data = ablation.to_json()
        rows = report.ablation_rows(ablation)
        write(study.path / "ablation.json", json.dumps(data, indent=1) + "\n")
        written = [
            study.path / "ablation.json",
            report.write_csv(study.path / "ablation.csv", rows),
            report.draw_curves(ablation, study.path / "curves.png"),
            report.draw_bars(ablation, study.path / "bars.png"),
        ]
    if options.json:
        print(json.dumps(data, indent=1))
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
            report.count(numbers["flops_per_step"]),
            report.duration(numbers["seconds_per_step"]),
            report.size(numbers["peak_bytes"]),
        )
    show(grid)
    for note in ablation.notes:
        print(note)
    for path in written:
        print(f"wrote {path}")


def _reproduce(options: argparse.Namespace) -> None:
    prepare(options.platform)
    from arch_jax.study.ledger import Entry, write_record
    from arch_jax.study.ledger import table as ledger_table
    from arch_jax.study.reproduce import reproduce
    from arch_jax.train.workdir import write

    experiment, module = _loaded(options, options.experiment)
    with _open(options, f"reproduce-{experiment.name}") as study:
        record = reproduce(experiment, module, study, options.seeds)
        data = record.to_json()
        write(study.path / "record.json", json.dumps(data, indent=1, ensure_ascii=False) + "\n")
    if options.json:
        print(json.dumps(data, indent=1))
    else:
        _print_ledger(ledger_table([Entry(record.name, record)]))
        print(f"wrote {study.path / 'record.json'}")
    if record.changes:
        tell = f"not in the ledger: {', '.join(record.changes)} was set, and the ledger is of experiments as they are"
        print(tell, file=sys.stderr)
        return
    own = options.experiment.endswith(".py")
    path = write_record(record, Path(module.__file__).parent / "results" if own else None)
    if not options.json:
        print(f"wrote {path}")


def _ledger(options: argparse.Namespace) -> None:
    without_devices()
    from arch_jax.study.ledger import ledger, results_folder, write_table
    from arch_jax.study.ledger import table as ledger_table

    entries = ledger()
    if options.json:
        facts = [
            {"name": entry.name, "stale": entry.stale, "problem": entry.problem}
            | {"record": None if entry.record is None else entry.record.to_json()}
            for entry in entries
        ]
        print(json.dumps(facts, indent=1))
        return
    if not entries:
        print("no record yet; `arch-jax reproduce NAME` makes one")
        return
    _print_ledger(ledger_table(entries))
    print(f"wrote {write_table(entries, results_folder().parent / 'README.md')}")


def _print_ledger(rows: list[dict[str, str]]) -> None:
    grid = table(*rows[0])
    for row in rows:
        grid.add_row(*row.values())
    show(grid)
