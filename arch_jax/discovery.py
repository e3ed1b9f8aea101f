"""Discovery of registered parts by walking folders: no list of them is kept by hand."""

import functools
import importlib
import os
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: A line that names something: `@component("gru", kind="mixer")`, `component("fixed", ...)(Fixed)`, `@register(`.
_REGISTERS = re.compile(rb"^\s*@?(fields\.|registry\.)?(component|register)\(", re.MULTILINE)
_ROOT = Path(__file__).parent


def import_package(package: str) -> None:
    """Imports every file under a package, `"arch_jax.models"`."""
    for found in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
        importlib.import_module(found.name)


def values_in(package: str, kind: type) -> list[Any]:
    """Everything of a kind that stands in a file of a package or of the packages in it, in the order of the files."""
    found: dict[int, Any] = {}
    for file in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
        module = importlib.import_module(file.name)
        found |= {id(value): value for value in vars(module).values() if isinstance(value, kind)}
    return list(found.values())


@functools.cache
def import_components() -> None:
    """Imports every file of arch_jax that names a component or a model, wherever it lies."""
    for name in registering():
        importlib.import_module(name)


def registering() -> Iterator[str]:
    """The modules of arch_jax whose source names a component or a model, in the order of their paths."""
    for folder, inside, files in os.walk(_ROOT):
        inside[:] = sorted(name for name in inside if (Path(folder) / name / "__init__.py").exists())
        for file in sorted(Path(folder) / name for name in files if name.endswith(".py")):
            if _REGISTERS.search(file.read_bytes()):
                parts = file.relative_to(_ROOT.parent).with_suffix("").parts
                yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
