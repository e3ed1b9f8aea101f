"""What needs the reference implementations (`pip install arch-jax[parity]`) is thorough, where they are there, too."""

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)  # before marks select
def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.thorough)


@pytest.fixture(autouse=True)
def seeded():
    """The references' random weights are the same in each run, whichever tests went before."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
