"""Image models' configurations and tensors, one file each: transformers', torchvision's, timm's, diffusers'."""

from arch_jax.interop.pictures.autoencoder_kl import AUTOENCODER_KL_TYPE
from arch_jax.interop.pictures.convnext import CONVNEXT_TYPE
from arch_jax.interop.pictures.efficientnet import EFFICIENTNET_TYPE
from arch_jax.interop.pictures.mobilenet_v2 import MOBILENET_V2_TYPE
from arch_jax.interop.pictures.picture_type import PictureType
from arch_jax.interop.pictures.resnet import RESNET_TYPE
from arch_jax.interop.pictures.vit import VIT_TYPE
from arch_jax.interop.pictures.vit_mae import VIT_MAE_TYPE
from arch_jax.interop.pictures.vq_model import VQ_MODEL_TYPE

__all__ = ["DIFFUSERS_TYPES", "PICTURE_TYPES", "PictureType"]

#: transformers' `model_type` -> how it is read and written.
PICTURE_TYPES: dict[str, PictureType] = {
    "resnet": RESNET_TYPE,
    "convnext": CONVNEXT_TYPE,
    "mobilenet_v2": MOBILENET_V2_TYPE,
    "efficientnet": EFFICIENTNET_TYPE,
    "vit": VIT_TYPE,
    "vit_mae": VIT_MAE_TYPE,
}
#: diffusers' `_class_name` -> how it is read and written.
DIFFUSERS_TYPES: dict[str, PictureType] = {"AutoencoderKL": AUTOENCODER_KL_TYPE, "VQModel": VQ_MODEL_TYPE}
