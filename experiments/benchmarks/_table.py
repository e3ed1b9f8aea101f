"""Side-by-side timing: what is compared takes turns in one run, so that a drifting machine drifts for all."""

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path


def compare(contenders: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender in each round; one round warms up and is not counted."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for i in range(rounds + 1):
        for name, run in contenders.items():
            started = time.perf_counter()
            run()
            if i:
                times[name].append(time.perf_counter() - started)
        print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return times


def table(title: str, times: dict[str, list[float]], per: int, unit: str, baseline: str) -> str:
    """Median, minimum and maximum of each, and how many times as fast as the baseline, round by round."""
    width = max(map(len, times))
    lines = [
        f"# {title}",
        f"# {platform.processor() or platform.machine()}, {len(next(iter(times.values())))} rounds, {versions()}",
        f"{'':{width}}  {'median':>9} {'min':>9} {'max':>9}   speed against {baseline}",
    ]
    for name, seconds in times.items():
        ms = [1000 * s / per for s in seconds]
        ratios = [b / a for a, b in zip(seconds, times[baseline])]
        lines.append(
            f"{name:{width}}  {statistics.median(ms):9.2f} {min(ms):9.2f} {max(ms):9.2f}   "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        )
    lines.append(f"({unit})")
    return "\n".join(lines)


def versions() -> str:
    """The versions that a figure depends on."""
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for package in ("jax", "flax", "torch", "transformers"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return f"python {platform.python_version()}, " + ", ".join(found)


def publish(name: str, text: str, rows: dict[str, dict[int, dict[str, float]]] | None = None) -> None:
    """Prints a table and writes it to `results/NAME.txt` beside this file.

    With `rows`, name -> length -> unit -> number, also to `results/NAME.json`, for `arch_jax.load_table`.
    """
    print(text)
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.txt").write_text(text + "\n", encoding="utf-8")
    if rows is not None:
        title = json.dumps(text.splitlines()[0].removeprefix("# "))
        body = ",\n".join(f"  {json.dumps(row)}: {json.dumps(cells)}" for row, cells in rows.items())
        whole = f'{{\n "title": {title},\n "rows": {{\n{body}\n }}\n}}\n'
        (folder / f"{name}.json").write_text(whole, encoding="utf-8")
