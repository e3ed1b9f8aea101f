"""Seconds from the command to the first training step of the default experiment, with a cold and a warm cache.

    python experiments/benchmarks/startup.py [ROUNDS]

A run with `--stop-after 1` is watched from outside: the first step is done when the first line of metrics is written.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _table import publish, versions


def first_step(cache: Path) -> float:
    """Seconds until the first line of `metrics.jsonl` stands there."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)}
        command = [sys.executable, "-m", "arch_jax", "train", "gpt", "--workdir", folder]
        options = ["--stop-after", "1", "--set", "steps_per_dispatch=1"]
        started = time.perf_counter()
        process = subprocess.Popen([*command, *options], env=environment, stderr=subprocess.DEVNULL, stdout=-3)
        metrics = Path(folder) / "metrics.jsonl"
        while not (metrics.exists() and metrics.stat().st_size) and process.poll() is None:
            time.sleep(0.01)
        seconds = time.perf_counter() - started
        if process.wait() != 0 or not metrics.stat().st_size:
            raise SystemExit(f"the command failed with {process.returncode}")
        return seconds


def imports(what: str) -> float:
    """Seconds to import, in a fresh interpreter."""
    code = f"import time; t = time.perf_counter(); import {what}; print(time.perf_counter() - t)"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def main() -> None:
    """Prints and stores the table."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    names = ("cold cache", "warm cache", "import jax, flax, optax", "and import arch_jax")
    rows: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as cache:
            rows["cold cache"].append(first_step(Path(cache)))
            rows["warm cache"].append(first_step(Path(cache)))
        rows["import jax, flax, optax"].append(imports("jax, flax, optax"))
        rows["and import arch_jax"].append(imports("jax, flax, optax, arch_jax"))
    lines = [f"# From the command to the first training step of the default experiment; {versions()}"]
    lines += [f"{'':24} {'median':>7} {'min':>7} {'max':>7}"]
    lines += [f"{n:24} {statistics.median(t):7.2f} {min(t):7.2f} {max(t):7.2f}" for n, t in rows.items()]
    publish("startup", "\n".join([*lines, "(seconds)"]))


if __name__ == "__main__":
    main()
