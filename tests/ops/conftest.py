"""The ops' tests check shape annotations too: jaxtyping's import hook, with beartype, before any import."""

import sys

import jaxtyping

# A hook of the whole suite, where there is one, does the same; two would check everything twice.
if not any(type(finder).__module__.startswith("jaxtyping") for finder in sys.meta_path):
    jaxtyping.install_import_hook("arch_jax.ops", "beartype.beartype")
