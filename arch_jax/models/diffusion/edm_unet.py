"""The denoisers of EDM (Karras et al. 2022, Elucidating the Design Space of Diffusion-Based Models, 2206.00364).

The paper keeps the networks of Song et al. 2021 and changes what stands around them (section 5, table 1): the noise
levels drawn in training, and D = c_skip x + c_out F(c_in x, c_noise), which is `prediction=preconditioned` here. "VP"
is DDPM++ and "VE" NCSN++, both told c_noise = log(sigma) / 4. Three things are new (appendix F):

    s + W_c sqrt(classes) onehot(label) + b_c + W_a a            in front of the layers of the embedding of time

the class of the image; nine numbers a about the geometric transformation that the image underwent in training (flips,
scaling, rotation, stretching, shifts), zeros for a sample that is to look like the data; and for CIFAR-10 all levels
equally wide.
"""

from typing import Any

from arch_jax.inputs import noisy_images
from arch_jax.models.diffusion.ncsnpp import FIXED, SHARED, STILL, NCSNpp
from arch_jax.registry import Paper, register

_PAPER = Paper("Elucidating the Design Space of Diffusion-Based Generative Models", "Karras et al.", 2022, "2206.00364")
_UNTOLD = {"^augmentation/kernel": "examples are not transformed in training here, so that their numbers are zeros"}
_DEPARTURES = (
    "Images are not transformed in training here, so that the nine numbers of augmentation are zeros, as in the "
    "authors' sampling; the condition's `augmentation` gives others.",
    "The network is told 1,000 c_noise, as every process of noise levels here tells it, and divides by 1,000.",
)
#: The two kinds of network: (settings, parameters without a gradient, parameters that the authors keep as a buffer).
_KINDS: dict[str, tuple[dict[str, Any], dict[str, str], dict[str, str]]] = {
    "vp": ({"embedding": "sinusoidal", "fir": (1.0, 1.0), "input_pyramid": "none"}, STILL, {}),
    "ve": ({}, STILL | FIXED, {"time/frequencies": "the authors' code keeps them as a buffer"}),
}
_CIFAR10 = {"resolution": 32, "widths": (256, 256, 256), "attention": (1,), "dropout": 0.13}
_FFHQ = {"resolution": 64, "widths": (128, 256, 256, 256), "attention": (2,), "dropout": 0.05}


def _register(name: str, kind: str, parameters: int, words: str, **settings: Any) -> None:
    chosen, still, buffers = _KINDS[kind]

    @register(
        name,
        architecture="edm",
        paper=_PAPER,
        inputs=noisy_images(settings["resolution"], classes=settings.get("classes")),
        parameters=parameters,
        departures=_DEPARTURES,
        no_gradient=still | _UNTOLD,
        uncounted=buffers,
        **SHARED,
    )
    def build() -> NCSNpp:
        return NCSNpp(augmentation=9, time_scale=0.001, **chosen, **settings)

    build.__doc__ = words


_register("edm-cifar10-vp", "vp", 55_733_891, "DDPM++ for CIFAR-10 with three levels of 256 channels.", **_CIFAR10)
_register(
    "edm-cifar10-vp-conditional",
    "vp",
    55_735_299,
    "DDPM++ for CIFAR-10, told the class.",
    classes=10,
    **_CIFAR10,
)
_register("edm-cifar10-ve", "ve", 56_397_827, "NCSN++ for CIFAR-10 with three levels of 256 channels.", **_CIFAR10)
_register("edm-ffhq-vp", "vp", 61_805_571, "DDPM++ for faces (FFHQ) at 64 x 64 pixels.", **_FFHQ)
_register("edm-ffhq-ve", "ve", 62_761_091, "NCSN++ for faces (FFHQ) at 64 x 64 pixels.", **_FFHQ)
