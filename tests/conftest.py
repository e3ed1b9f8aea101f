"""Every test runs with shapes and types checked: jaxtyping's import hook, with beartype, over the whole package."""

import os
from pathlib import Path

from jaxtyping import install_import_hook

install_import_hook("arch_jax", "beartype.beartype")

# Compiled programs are kept between runs and shared by the workers: most of a test's time is compilation.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".cache" / "compiled"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def pytest_collection_modifyitems(items):
    """The slow ones first: begun last, one of them would keep a single worker busy while the others are done."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
