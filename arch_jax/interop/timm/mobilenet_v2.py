"""timm's mobilenetv2_100 and its kin."""

from arch_jax.interop.released import Released, released_type
from arch_jax.interop.row import Naming
from arch_jax.interop.timm.inverted_residual import inverted_residual_naming
from arch_jax.models.cnn.mobilenet import MobileNetV2


def _naming(module: MobileNetV2) -> Naming:
    expansions, _, counts, _ = zip(*module.stages)
    return inverted_residual_naming(counts, expansions)


#: PyTorch's default; the paper's own code has 1e-3.
_EPSILON = {"norm.epsilon": 1e-5}

TIMM_MOBILENETS = released_type(
    "timm",
    MobileNetV2,
    {
        "mobilenetv2_100": Released("mobilenet-v2", _EPSILON),
        "mobilenetv2_050": Released("mobilenet-v2", _EPSILON | {"multiplier": 0.5}),
        "mobilenetv2_140": Released("mobilenet-v2", _EPSILON | {"multiplier": 1.4}),
    },
    _naming,
)
