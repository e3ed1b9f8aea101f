"""Matplotlib as figures need it: drawing to files, whatever backend the process, or its caller, is set to."""

import importlib
import io
import os
import sys
from contextlib import suppress
from typing import Any

#: Read by matplotlib when it is first imported, which fails where it names a backend that is not installed. Notebooks
#: set it for every process that they start.
_BACKEND = "MPLBACKEND"


def library(part: str = "") -> Any:
    """Matplotlib or a module of it, such as "ticker". All of the package imports it by this function.

    The backend that the environment names is neither needed nor checked, and stays that of the caller's own figures.
    """
    if "matplotlib" not in sys.modules:
        backend = os.environ.pop(_BACKEND, None)
        try:
            import matplotlib
        finally:
            if backend is not None:
                os.environ[_BACKEND] = backend
        if backend:
            with suppress(ValueError):  # not installed: whoever asks for a window is told
                matplotlib.rcParams["backend"] = backend
    return importlib.import_module(f"matplotlib.{part}" if part else "matplotlib")


def new_figure(**options: Any) -> Any:
    """An empty matplotlib figure on a canvas of its own: no window, and nothing that all figures of a process share.

    Args:
      **options: of `matplotlib.figure.Figure`, such as figsize=(6, 4) or layout="constrained".
    """
    figure = library("figure").Figure(**options)
    library("backends.backend_agg").FigureCanvasAgg(figure)
    return figure


def png_of(figure: Any) -> bytes:
    """A matplotlib figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
