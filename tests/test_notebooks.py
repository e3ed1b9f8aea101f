"""The notebooks run from top to bottom, use the public face only, and carry no outputs."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])


def cells(path: Path) -> list[str]:
    data = json.loads(path.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in data["cells"] if cell["cell_type"] == "code"]


@pytest.mark.thorough
@every_notebook
def test_notebook_runs(path, tmp_path):
    script = tmp_path / "cells.py"
    script.write_text("\n\n".join(cells(path)), encoding="utf-8")
    result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.returncode == 0, result.stderr[-3000:]


@every_notebook
def test_notebook_uses_the_public_face(path):
    assert not re.findall(r"from arch_jax\.|import arch_jax\.", "\n".join(cells(path)))


@every_notebook
def test_notebook_carries_no_outputs(path):
    data = json.loads(path.read_text(encoding="utf-8"))
    assert not [cell for cell in data["cells"] if cell.get("outputs")]
