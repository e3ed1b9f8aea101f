"""Every test runs with shapes and types checked: jaxtyping's import hook, with beartype, over the whole package."""

import gc
import os
from importlib.metadata import version
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

install_import_hook("arch_jax", "beartype.beartype")

# Compiled programs are kept between runs and shared by the workers: most of a test's time is compilation.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".cache" / "compiled"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The older of two ways to compile loops for a CPU takes half of the time. A version without the flag would not start.
if version("jaxlib") == "0.10.2" and "fusion_emitters" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (os.environ.get("XLA_FLAGS", "") + " --xla_cpu_use_fusion_emitters=false").strip()
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

TESTS = Path(__file__).parent
#: Mappings of memory at which a process forgets what it has compiled. Beyond 65,530 the next program crashes it.
MAPPINGS = 30_000
#: Where programs are tiny and run once or twice, so that nearly all of the time is the compiler's.
TINY = {"contract", "interop", "layers", "objectives", "ops", "test_beam_search.py", "test_decoding.py"}


@pytest.fixture(autouse=True)
def compiled_quickly(request):
    """Tiny programs without LLVM's optimizations, in 0.6 of the time; whole runs, studies and parity with them."""
    if request.path.relative_to(TESTS).parts[0] not in TINY:
        yield
        return
    import jax  # here: what is set above must be there first

    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item):
    """Lets compiled programs go before there are too many: each is some mappings of memory, and 65,530 are allowed."""
    maps = Path("/proc/self/maps")
    if not maps.exists() or maps.read_bytes().count(b"\n") < MAPPINGS:
        return
    import jax

    jax.clear_caches()
    gc.collect()


def pytest_collection_modifyitems(items):
    """The slow ones first: begun last, one of them would keep a single worker busy while the others are done."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
