"""Every architecture's train step compiles for a TPU v5e, by the real compiler, on a machine without one."""

import importlib.util
import json
import os
import subprocess
import sys
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
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def test_train_steps_compile_for_v5e():
    result = subprocess.run(
        [sys.executable, str(SCRIPT)], env=environment(), capture_output=True, text=True, timeout=1200, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    rows = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    print(*rows, sep="\n")
    wanted = {entry.architecture for entry in registry.models().values()}
    assert {(row["architecture"], row["chips"]) for row in rows} == {(name, n) for name in wanted for n in (1, 8)}
    assert all(row["argument_bytes"] > 0 for row in rows)
