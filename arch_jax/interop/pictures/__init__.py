"""Image models' configurations and tensors, one file each: transformers', torchvision's, timm's, diffusers'.

A file is found by lying here: each `NAME_TYPE` in it is transformers' model type "name", or a class of diffusers.
"""

from arch_jax.discovery import values_in
from arch_jax.interop.pictures.picture_type import PictureType

__all__ = ["DIFFUSERS_TYPES", "PICTURE_TYPES", "PictureType"]

_FOUND = values_in(__name__, PictureType)
#: transformers' `model_type` -> how it is read and written.
PICTURE_TYPES: dict[str, PictureType] = {
    name.removesuffix("_TYPE").lower(): found for name, found in _FOUND.items() if found.library == "transformers"
}
#: diffusers' `_class_name` -> how it is read and written.
DIFFUSERS_TYPES: dict[str, PictureType] = {
    found.module.__name__: found for found in _FOUND.values() if found.library == "diffusers"
}
