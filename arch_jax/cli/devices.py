"""Which devices a command takes, and what must be settled before JAX starts."""

import contextlib
import os
import re
from pathlib import Path

from arch_jax.errors import RunError, unknown

#: Of compiled programs that are kept between processes; those unused for longest go first.
CACHE_BYTES = 4 * 2**30


def without_devices() -> None:
    """For commands that compute shapes alone: they take no accelerator, which is not there or is at work elsewhere."""
    import jax

    jax.config.update("jax_platforms", "cpu")


def prepare(platform: str | None = None) -> None:
    """Set what JAX reads at its start: the platform, and the compilation cache, so that the second run starts
    in half the time.

    Raises:
      RunError: there is no such platform.
    """
    import jax

    choose_platform(platform)
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        import platformdirs

        cache = Path(platformdirs.user_cache_dir("arch_jax")) / "compiled"
        with contextlib.suppress(OSError):
            cache.mkdir(parents=True, exist_ok=True)
            jax.config.update("jax_compilation_cache_dir", str(cache))
            bound(cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    wanted = platform or os.environ.get("JAX_PLATFORMS", "")
    try:
        found, why = jax.default_backend(), ""
    except Exception as problem:  # of many types, some of them asserts, and of many lines
        found, why = None, re.sub(r" ?\(set JAX_PLATFORMS=.*", "", " ".join(str(problem).split()))[:200]
    if found is None or (wanted == "gpu" and found != "gpu"):
        raise RunError(
            f"the platform asked for ({wanted or 'the default'}) is not there: {why or 'JAX finds no device of it'}; "
            "expected one that is, such as --platform cpu"
        )


def bound(cache: Path) -> None:
    """Keeps a compilation cache below `CACHE_BYTES`, or $JAX_COMPILATION_CACHE_MAX_SIZE, where it can be locked.

    An entry without a time of its last use, as they are written without a limit or by a process that was killed, would
    keep JAX from writing any other: it gets that of its file.
    """
    import filelock
    import jax

    try:
        with filelock.FileLock(cache / ".lockfile", timeout=1):  # JAX's own
            for entry in cache.glob("*-cache"):
                used = entry.with_name(entry.name.removesuffix("-cache") + "-atime")
                if not used.exists():
                    used.write_bytes(entry.stat().st_mtime_ns.to_bytes(8, "little"))
    except filelock.Timeout:
        pass  # another process is at it
    except (OSError, NotImplementedError):  # read-only, or a file system without locks: it is used as it is
        return
    if not os.environ.get("JAX_COMPILATION_CACHE_MAX_SIZE"):
        jax.config.update("jax_compilation_cache_max_size", CACHE_BYTES)


def choose_platform(platform: str | None) -> None:
    """Has JAX use one platform and no other.

    Raises:
      UsageError: there is no platform of that name.
    """
    platform = platform or ("gpu" if os.environ.get("JAX_PLATFORMS") == "gpu" else None)
    if platform is None:
        return
    if platform not in ("cpu", "gpu", "tpu"):
        raise unknown("platform", platform, ("cpu", "gpu", "tpu"))
    import jax

    # To JAX, "gpu" means every make of them at once: left to itself it takes the one that is there.
    jax.config.update("jax_platforms", "" if platform == "gpu" else platform)
