"""Train steps compile for a TPU v5e, by the real compiler, on a machine without one: of every file with a model."""

import importlib.util
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from arch_jax import registry

SCRIPT = Path(__file__).with_name("compile_for_tpu.py")


def environment() -> dict[str, str]:
    """Where libtpu is: installed beside us, or in the folder of ARCH_JAX_LIBTPU, out of reach of other tests."""
    folder = os.environ.get("ARCH_JAX_LIBTPU")
    if folder is None and importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed, so nothing was compiled for a TPU: pip install arch-jax[tpu]")
    paths = [*filter(None, [folder]), str(SCRIPT.parents[2]), os.environ.get("PYTHONPATH", "")]
    own = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    return os.environ | own


def compiled(names: list[str]) -> list[dict]:
    """What compile_for_tpu.py tells of some architectures."""
    command = [sys.executable, str(SCRIPT), *names]
    result = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=1200, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]


@pytest.mark.slow
@pytest.mark.thorough
def test_train_steps_compile_for_v5e():
    environment()  # where libtpu is missing, this is skipped here and not in a thread
    entries = {entry.architecture: entry for entry in reversed(registry.models().values())}
    files = {name: entry.build.__module__ for name, entry in entries.items()}
    ordered = sorted(set(files.values()))
    halves = [[name for name in sorted(entries) if files[name] in ordered[i::2]] for i in range(2)]
    with ThreadPoolExecutor(2) as pool:  # the compiler has one thread; CI has two cores
        rows = [row for half in pool.map(compiled, halves) for row in half]
    print(*rows, sep="\n")
    slices, alone = ({row["architecture"]: row for row in rows if row["chips"] == n} for n in (8, 1))
    assert slices.keys() == entries.keys()
    in_eight = {name for name, row in slices.items() if row["argument_bytes"]}
    assert {files[name] for name in in_eight} == set(files.values())
    assert {name for name in in_eight if slices[name]["kernels"]} == set(alone)
    in_one = {name for name, row in alone.items() if row["argument_bytes"]}
    assert len(in_one) >= len(halves)
    assert all(name in in_one or row["kernels"] == slices[name]["kernels"] for name, row in alone.items())
    of_files = {(files[name], tuple(slices[name]["kernels"])) for name in in_eight}
    assert {(files[name], tuple(row["kernels"])) for name, row in slices.items()} == of_files
