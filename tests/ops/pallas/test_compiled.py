"""The kernels compile for a TPU v5e, forward and backward, by the real compiler, on a machine without one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from arch_jax.errors import RunError
from arch_jax.plan.tpu_compiler import environment

SCRIPT = Path(__file__).with_name("compile_for_tpu.py")


@pytest.mark.slow
@pytest.mark.thorough
def test_kernels_compile_for_v5e():
    try:
        variables = environment("v5litepod-8")
    except RunError as problem:
        pytest.skip(f"no kernel was compiled for a TPU: {problem}")
    result = subprocess.run(
        [sys.executable, str(SCRIPT)], env=variables, capture_output=True, text=True, timeout=900, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    rows = {row["case"]: row for row in map(json.loads, filter(None, result.stdout.splitlines()))}
    print(*rows.values(), sep="\n")
    assert len(rows) == 6 + 6 + 1 + 2 + 6 + 1 + 3
    # out, dq, dk with dv; and the bias's gradient. The recurrence, and the same from the end.
    counts = {"everything": 4, "recurrence": 2}
    for name, row in rows.items():
        assert row["kernels"] == counts.get(name.split()[0], 3), name
    # Arrays as large as q, and nothing of 4096 x 4096, which for 8 x 8 heads would be 4 GiB in float32.
    assert rows["large"]["temporary_bytes"] < 512 * 2**20
