"""The kernels on a mesh: each device takes its rows and heads, and the numbers are those of one device."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.thorough
def test_a_mesh_gives_what_one_device_gives():
    script = Path(__file__).with_name("on_a_mesh.py")
    result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads(result.stdout.splitlines()[-1])
    pieces = {name: found[name].pop("pieces") for name in ("grouped", "indivisible", "recurrence")}
    for name in pieces:
        assert max(found[name].values()) < 1e-5, (name, found[name])
    # 4 parts of the batch by 2 of the heads or channels; where neither batch nor kv heads can be divided, the query
    # heads alone.
    assert pieces == {"grouped": 8, "indivisible": 2, "recurrence": 8}
    assert found["inside a shard_map"] < 1e-5
    assert found["kernels"] == 3  # out, dq, and dk with dv
