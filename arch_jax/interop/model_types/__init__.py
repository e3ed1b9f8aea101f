"""transformers' model types, one file each: config.json as a module of ours and back, and the tensors' names.

A file is found by lying here: each `NAME_TYPE` in it is the model type "name".
"""

from arch_jax.discovery import values_in
from arch_jax.interop.model_types.model_type import ModelType

__all__ = ["MODEL_TYPES", "ModelType"]

#: transformers' `model_type` -> how it is read and written.
MODEL_TYPES: dict[str, ModelType] = {
    name.removesuffix("_TYPE").lower(): found for name, found in values_in(__name__, ModelType).items()
}
