"""The README's example of adding an architecture: complete, under 40 lines, and through the whole contract suite."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def example(tmp_path_factory) -> Path:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code = re.search(r"<!-- example: (\S+) -->\n```python\n(.*?)```", text, re.S)
    path = tmp_path_factory.mktemp("readme") / code[1]
    path.write_text(code[2], encoding="utf-8")
    return path


def test_example_is_short(example):
    assert len(example.read_text(encoding="utf-8").splitlines()) < 40


@pytest.mark.thorough
def test_example_passes_the_contract_suite(example):
    command = [sys.executable, "-m", "pytest", "tests/contract", "-n", "0", "-k", "leaky", "-p", "no:cacheprovider"]
    command += ["-m", ""]  # both tiers
    environment = {**os.environ, "ARCH_JAX_IMPORT": str(example)}
    environment.pop("PYTEST_XDIST_WORKER", None)
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-4000:]
    passed = int(re.search(r"(\d+) passed", result.stdout)[1])
    assert passed > 20, result.stdout[-1000:]


@pytest.mark.thorough
def test_example_trains(example, tmp_path):
    command = [sys.executable, "-m", "arch_jax", "train", str(example), "--workdir", str(tmp_path / "run")]
    small = {
        "steps": 4,
        "data.batch": 2,
        "data.length": 16,
        "model.depth": 1,
        "model.width": 16,
        "steps_per_dispatch": 2,
    }
    sets = [word for name, value in small.items() for word in ("--set", f"{name}={value}")]
    result = subprocess.run([*command, *sets], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "validation loss" in result.stdout


def test_example_is_pure(example):
    """The snippet of the section "As a library" runs as it stands."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code = re.search(r"## As a library\n\n```python\n(.*?)```", text, re.S)[1]
    scope: dict = {}
    exec(code.replace('"gpt2", depth=4', '"gpt2", depth=1, width=96, vocabulary=50'), scope)
    assert scope["new"].shape == (1, 32)
