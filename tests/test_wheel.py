"""A wheel works away from the clone: the experiments come with it, and a file of one's own can be trained."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.thorough
ROOT = Path(__file__).parent.parent
SMALL = {
    "steps": 2,
    "optimizer.warmup": 0,
    "data.batch": 2,
    "data.length": 16,
    "model.depth": 1,
    "model.width": 16,
    "model.mixer.heads": 2,
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The wheel unpacked into a folder, as `pip install --target` does, beside this environment's libraries."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    (wheel,) = folder.glob("arch_jax-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert "arch_jax/_experiments/gpt.py" in names
        assert not [name for name in names if name.startswith(("tests/", "notebooks/"))]
        archive.extractall(folder / "site")
    return folder / "site"


def run(installed: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    sets = [word for name, value in SMALL.items() for word in ("--set", f"{name}={value}")]
    sets = sets if arguments[0] == "train" else []
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-m", "arch_jax", *arguments, *sets]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_package_is_the_wheel(installed, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-c", "import arch_jax; print(arch_jax.__file__)"]
    where = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    assert where.startswith(str(installed))


def test_experiments_come_with_it(installed, tmp_path):
    result = run(installed, tmp_path, "experiments")
    assert result.returncode == 0, result.stderr
    assert "shakespeare_char" in result.stdout


def test_train_by_name(installed, tmp_path):
    result = run(installed, tmp_path, "train", "gpt", "--set", "model.mixer.kv_heads=1")
    assert result.returncode == 0, result.stderr[-2000:]
    assert (tmp_path / "runs" / "gpt-1" / "loss.png").stat().st_size > 1000


def test_train_a_file_of_ones_own(installed, tmp_path):
    text = (ROOT / "experiments" / "gpt.py").read_text(encoding="utf-8")
    (tmp_path / "mine.py").write_text(text, encoding="utf-8")
    result = run(installed, tmp_path, "train", "./mine.py", "--set", "model.mixer.kv_heads=1")
    assert result.returncode == 0, result.stderr[-2000:]
    assert (tmp_path / "runs" / "mine-1" / "metrics.jsonl").exists()
