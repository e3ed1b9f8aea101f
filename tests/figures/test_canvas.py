"""Figures need no backend: not that of the environment, nor pyplot, which all figures of a process share."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from arch_jax.figures.canvas import library, new_figure, png_of

ROOT = Path(__file__).parents[2]


def test_a_figure_is_drawn_by_agg():
    figure = new_figure(figsize=(1, 1))
    figure.subplots()
    assert isinstance(figure.canvas, library("backends.backend_agg").FigureCanvasAgg)
    assert png_of(figure).startswith(b"\x89PNG")
    assert library("ticker").EngFormatter


DRAWS = r"""
import os, sys
from arch_jax.figures.canvas import library, new_figure, png_of
figure = new_figure()
figure.subplots().plot([1, 2])
assert png_of(figure).startswith(b"\x89PNG")
assert "matplotlib.pyplot" not in sys.modules
print(os.environ["MPLBACKEND"], library().rcParams._get_backend_or_none())
"""


@pytest.mark.parametrize(
    ("backend", "kept"),
    [
        # as "module://matplotlib_inline.backend_inline", which notebooks set, where that is not installed
        ("no-such-backend", None),
        pytest.param("svg", "svg", marks=pytest.mark.thorough),
    ],
)
def test_the_backend_of_the_environment_is_not_needed_and_stays_the_caller_s(backend, kept):
    done = subprocess.run(
        [sys.executable, "-c", DRAWS],
        cwd=ROOT,
        env=os.environ | {"MPLBACKEND": backend},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [backend, str(kept)]


def imports_of_matplotlib(source: str) -> list[int]:
    """Lines that import matplotlib, by whatever statement, or name pyplot or `matplotlib.use`."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = [node.value] if node.value in ("pyplot", "pylab", "matplotlib.pyplot") else []
        if any(name.split(".")[0] in ("matplotlib", "pylab", "pyplot") for name in names):
            lines.append(node.lineno)
    return lines


def test_matplotlib_is_imported_in_one_place():
    """So that none reads the backend, or switches that of the caller."""
    found = {
        path.relative_to(ROOT).as_posix(): lines
        for folder in ("arch_jax", "experiments", "examples")
        for path in ROOT.glob(f"{folder}/**/*.py")
        if "plotlib" in (text := path.read_text(encoding="utf-8")) or "pylab" in text
        if (lines := imports_of_matplotlib(text))
    }
    assert list(found) == ["arch_jax/figures/canvas.py"]
    assert len(found["arch_jax/figures/canvas.py"]) == 1
    assert imports_of_matplotlib("import matplotlib.pyplot as plt") == [1]
    assert imports_of_matplotlib("def f():\n    from matplotlib import pyplot") == [2]
    assert imports_of_matplotlib("library('pyplot')") == [1]
