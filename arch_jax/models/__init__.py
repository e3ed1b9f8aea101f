"""One file an architecture, in a folder per family. Calling the package gives the registry: `arch_jax.models()`."""

import sys
import types
from collections.abc import Mapping

from arch_jax import registry


class _Models(types.ModuleType):
    """A package is a module, and this one is callable: the mapping and the folder it is read from share a name."""

    def __call__(self) -> Mapping[str, registry.Entry]:
        """Every registered model: name -> entry."""
        return registry.models()


sys.modules[__name__].__class__ = _Models
