"""timm's EfficientNets: with the released weights and settings ("tf_"), and its own."""

from arch_jax.interop.released import Released, released_type
from arch_jax.interop.row import Naming
from arch_jax.interop.timm.inverted_residual import inverted_residual_naming
from arch_jax.models.cnn.efficientnet import EfficientNet


def _naming(module: EfficientNet) -> Naming:
    return inverted_residual_naming(module.counts, (expansion for expansion, *_ in module.stages))


#: PyTorch's own padding and default.
_EVEN = {"padding": None, "norm.epsilon": 1e-5}

TIMM_EFFICIENTNETS = released_type(
    "timm",
    EfficientNet,
    {f"efficientnet_b{size}": Released(f"efficientnet-b{size}", _EVEN) for size in range(8)}
    | {f"tf_efficientnet_b{size}": Released(f"efficientnet-b{size}") for size in range(8)}
    | {f"tf_efficientnet_lite{size}": Released(f"efficientnet-lite{size}") for size in range(5)},
    _naming,
)
