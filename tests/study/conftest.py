"""What studies are spared in their tests."""

import contextlib
import types
from pathlib import Path

import pytest


@pytest.fixture(scope="package", autouse=True)
def one_file_noted():
    """Each call of a function would be noted, and under these tests each is checked: together that takes minutes."""
    from arch_jax.study.reproduce import provenance, reproduce
    from arch_jax.train import step

    noted = types.SimpleNamespace(hashes=lambda: {"arch_jax/train/step.py": provenance.code_hash(Path(step.__file__))})
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(reproduce, "executed_code", lambda: contextlib.nullcontext(noted))
        yield
