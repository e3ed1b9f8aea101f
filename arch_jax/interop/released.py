"""Networks that timm, torchvision and others released under names of their own: `{"architecture": "resnet50"}`.

timm's config.json has `architecture` (and `num_classes`); torchvision and efficientnet_pytorch have no such file, and
one in timm's form serves for theirs.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn

from arch_jax import registry
from arch_jax.interop.checkpoint_type import CheckpointType, Library, image_inputs
from arch_jax.interop.configuration_fields import Field, Fields, because, unchanged, whole_or_none
from arch_jax.interop.row import Naming
from arch_jax.interop.safetensors import FILES

_FIELDS = Fields(
    reads={"architecture": Field(unchanged), "num_classes": Field(whole_or_none)},
    no_effect=because("follows from the architecture", "num_features")
    | because("describes how images are prepared and where the weights came from", "pretrained_cfg")
    | because("names of classes, which nothing is computed from", "label_names label_descriptions labels"),
    refuses={"model_args": (None, {})},
)


class Released(NamedTuple):
    """A network as a library released it.

    Attributes:
      ours: the name that the architecture is registered under here.
      changes: fields that the library has otherwise, such as `norm.epsilon`.
    """

    ours: str
    changes: Mapping[str, Any] = {}


def released_type(
    library: str,
    module: type[nn.Module],
    networks: Mapping[str, Released],
    naming: Callable[[Any], Naming],
    pooling: str = "avg",
    inputs: Callable[[Any], tuple] = lambda module: image_inputs(),
) -> CheckpointType:
    """The checkpoint type of a family of released networks.

    Args:
      library: which released them.
      module: the class that they become.
      networks: the library's name -> the network.
      naming: the library's names and layouts of a module's tensors.
      pooling: what timm's `global_pool` says of them.
      inputs: example arguments of the module.
    """

    def read(c: Mapping[str, Any]) -> nn.Module:
        network = networks[c["architecture"]]
        found = registry.create(network.ours, **network.changes)
        plain = {name: 0.0 for name in ("dropout", "stochastic_depth") if hasattr(found, name)}
        return found.clone(classes=c["num_classes"] or found.classes, **plain)

    return CheckpointType(
        library=Library(library, "architecture", FILES["transformers"], _FIELDS),
        names=tuple(networks),
        module=module,
        fields=Fields(refuses={"global_pool": (pooling, None)}),
        read=read,
        namings={library: naming},
        write=None,
        inputs=inputs,
    )
