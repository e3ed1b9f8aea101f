"""Networks that timm, torchvision and others released under names of their own: `{"architecture": "resnet50"}`.

timm's config.json has `architecture` (and `num_classes`); torchvision and efficientnet_pytorch have no such file, and
one in timm's form serves for theirs.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn

from arch_jax import registry
from arch_jax.errors import UsageError
from arch_jax.interop.checkpoint_type import CheckpointType, Library, image_inputs
from arch_jax.interop.configuration_fields import Field, Fields, because, flag, unchanged, whole, whole_or_none
from arch_jax.interop.row import Naming
from arch_jax.interop.safetensors import FILES
from arch_jax.interop.strict_json import shown

#: Where timm says something of the weights: in arguments of the network, for the whole file, or beside the address that
#: the weights came from. The first that says it decides there; here they have to agree.
_PLACES = ("model_args.", "", "pretrained_cfg.")
_PREPARATION = """
crop_mode crop_pct interpolation max_input_size mean min_input_size pool_size std test_crop_pct test_input_size
test_pool_size
"""
_ORIGIN = """
classifier custom_load description file first_conv hf_hub_filename hf_hub_id label_offset license notes origin_url
paper_ids paper_name source state_dict tag url
"""
_LABELS = "label_descriptions label_names labels"
_DROPOUT = """
attn_drop_rate drop_block_rate drop_path_rate drop_rate patch_drop_rate pos_drop_rate proj_drop_rate
"""


def _in(places: tuple[str, ...], names: str) -> str:
    return " ".join(f"{place}{name}" for place in places for name in names.split())


def _said(name: str, field: Field) -> dict[str, Field]:
    """A field that may stand in each of the places."""
    return {f"{place}{name}": field for place in _PLACES}


def _class_number(name: str, value: Any) -> int | None:
    """A number of classes; 0 for features, null for the published number."""
    return value if type(value) is int and value == 0 else whole_or_none(name, value)


def _image_shape(name: str, value: Any) -> tuple[int, int, int] | None:
    if value is None:
        return None
    if not isinstance(value, list | tuple) or len(value) != 3:
        raise UsageError(f"{name} is {shown(value)}; expected [channels, height, width]")
    channels, height, width = (whole(f"{name}[{i}]", size) for i, size in enumerate(value))
    if channels != 3:
        raise UsageError(f"{name} has {channels} channels, which is not supported; expected 3")
    return channels, height, width


def _image_size(name: str, value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    sizes = value if isinstance(value, list | tuple) else (value, value)
    if len(sizes) != 2:
        raise UsageError(f"{name} is {shown(value)}; expected [height, width]")
    height, width = (whole(name, size) for size in sizes)
    return height, width


_FIELDS = Fields(
    reads={
        "architecture": Field(unchanged),
        "model_args.img_size": Field(_image_size),
        **_said("num_classes", Field(_class_number)),
        **_said("input_size", Field(_image_shape)),
        **_said("fixed_input_size", Field(flag, False)),
    },
    no_effect=because("follows from the architecture", _in(("", "pretrained_cfg."), "num_features"))
    | because("describes how images are prepared", _in(_PLACES[1:], _PREPARATION))
    | because("says where the weights came from", f"{_in(_PLACES[1:], _ORIGIN)} pretrained_cfg.architecture")
    | because("names of classes, which nothing is computed from", _in(_PLACES[1:], _LABELS))
    | because("dropout and stochastic depth are not taken over", _in(_PLACES[:1], _DROPOUT)),
    refuses={"model_args.in_chans": (3, None)},
    nested=("model_args", "pretrained_cfg"),
)


def _agreed(c: Mapping[str, Any], name: str) -> Any:
    """The value that the places give a field; None where none does."""
    said = {f"{place}{name}": c[f"{place}{name}"] for place in _PLACES if c.get(f"{place}{name}") is not None}
    (first, value), *others = said.items() or [(name, None)]
    for other, another in others:
        if another != value:
            raise UsageError(f"{first} is {shown(value)} and {other} is {shown(another)}; expected them to agree")
    return value


class Released(NamedTuple):
    """A network as a library released it.

    Attributes:
      ours: the name that the architecture is registered under here.
      changes: fields that the library has otherwise, such as `norm.epsilon`.
    """

    ours: str
    changes: Mapping[str, Any] = {}


def _resolution(c: Mapping[str, Any], published: int) -> int:
    """Pixels on a side of the images that a network with a table of positions is for."""
    shape = _agreed(c, "input_size") if any(c[f"{place}fixed_input_size"] for place in _PLACES) else None
    height, width = c["model_args.img_size"] or (shape or (3, published, published))[1:]
    if height != width:
        raise UsageError(f"images are {height} x {width} pixels, which is not supported; expected a square")
    return height


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
        changes = {name: 0.0 for name in ("dropout", "stochastic_depth") if hasattr(found, name)}
        if hasattr(found, "resolution"):  # a table of positions
            changes["resolution"] = _resolution(c, found.resolution)
        classes = _agreed(c, "num_classes")
        return found.clone(classes=found.classes if classes is None else classes or None, **changes)

    return CheckpointType(
        library=Library(library, "architecture", FILES["transformers"], _FIELDS),
        names=tuple(networks),
        module=module,
        fields=Fields(refuses={f"{place}global_pool": (pooling, None) for place in _PLACES}),
        read=read,
        namings={library: naming},
        write=None,
        inputs=inputs,
    )
