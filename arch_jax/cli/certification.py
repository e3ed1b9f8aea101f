"""The command that certifies samplers and noise schedules."""

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

from arch_jax.cli.console import show, table
from arch_jax.cli.devices import prepare
from arch_jax.console import console
from arch_jax.errors import UsageError

Adder = Callable[[str, Callable[[argparse.Namespace], None], str], argparse.ArgumentParser]


def add(command: Adder) -> None:
    """Adds the command."""
    one = command(
        "certify", _certify, "samplers and noise schedules, on laws whose answer is known; exits 1 on a fault"
    )
    one.add_argument(
        "samplers",
        nargs="*",
        metavar="SAMPLER",
        help="a sampler or a process, as such or as NAME:FIELD=VALUE,... (default: every sampler of diffusions, or "
        "those of the imported files)",
    )
    one.add_argument("--small", action="store_true", help="only a few cases of each")
    text = "a Python file with samplers or processes of your own"
    one.add_argument("--import", action="append", default=[], metavar="FILE", dest="imports", help=text)
    one.add_argument("--json", action="store_true", help="the cases as JSON")


def _certify(options: argparse.Namespace) -> None:
    prepare("cpu")
    from arch_jax.discovery import import_components
    from arch_jax.experiment import import_file
    from arch_jax.fields import components
    from arch_jax.ops.diffusion.processes import ProcessBase
    from arch_jax.study.certify import presentation
    from arch_jax.study.certify.certify import certify, certify_process

    import_components()
    before = components()
    for file in options.imports:
        if not Path(file).is_file():
            raise UsageError(f"--import {file!r} does not exist; expected a Python file")
        import_file(Path(file))
    cases = []
    for one in presentation.candidates(options.samplers, before):
        own = list(certify_process(one) if isinstance(one, ProcessBase) else certify(one, options.small))
        cases += own
        if options.json:
            continue
        grid = table(*presentation.HEADERS)
        for case in own:
            grid.add_row(*presentation.lines(case))
        show(grid, keep=5)
        console.print("")
    faults = [case for case in cases if case.fault]
    if options.json:
        console.print(json.dumps([dataclasses.asdict(case) for case in cases], indent=1))
    else:
        for case in faults:
            console.print(f"{case.sampler}: {case.fault}")
        right = len(cases) - len(faults)
        console.print(f"{right} of {len(cases)} cases are right")
    if faults:
        raise SystemExit(1)
