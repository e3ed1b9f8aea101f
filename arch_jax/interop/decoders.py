"""Weights of transformers' GPT-2 and Llama <-> variables of `Decoder`.

Their tensors are named by layer and stored for a matrix product from the left (GPT-2: from the right, like ours); ours
are stacked over layers where layers are scanned. One table of names for each model type serves both directions.
"""

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from arch_jax.errors import RunError, UsageError, nearest
from arch_jax.interop.strict_json import shown
from arch_jax.layers.decoder import Decoder
from arch_jax.layers.mixer import unbound

#: Tensors by name: arrays, or whatever has a `shape` and becomes an array when asked.
Tensors = Mapping[str, Any]
Shape = tuple[int, ...]


class Row(NamedTuple):
    """One tensor of theirs and what it is here.

    Attributes:
      theirs: its name; {} stands for the layer's number.
      ours: paths under the parameters (of a layer); several lie side by side on the last axis.
      transposed: whether theirs is the transpose of ours.
    """

    theirs: str
    ours: tuple[str, ...]
    transposed: bool = False


class Names(NamedTuple):
    """The tensors of a model type.

    Attributes:
      prefix: in front of all names but the output layer's; a checkpoint of the model without its head lacks it.
      rows: outside the layers, and inside.
      layer: what finds the number of a layer in a name.
      buffers: what names tensors that are no parameters.
    """

    prefix: str
    rows: tuple[Row, ...]
    layers: tuple[Row, ...]
    layer: re.Pattern
    buffers: re.Pattern


def _dense(theirs: str, *ours: str, transposed: bool) -> list[Row]:
    kernel = Row(f"{theirs}.weight", tuple(f"{path}/kernel" for path in ours), transposed)
    return [kernel, Row(f"{theirs}.bias", tuple(f"{path}/bias" for path in ours))]


def _norm(theirs: str, ours: str) -> list[Row]:
    return [Row(f"{theirs}.weight", (f"{ours}/scale",)), Row(f"{theirs}.bias", (f"{ours}/bias",))]


_OUTPUT = "lm_head.weight"
_gpt2, _llama = functools.partial(_dense, transposed=False), functools.partial(_dense, transposed=True)
#: A row applies where the module has what it names: biases, an output layer of its own.
NAMES = {
    "gpt2": Names(
        prefix="transformer.",
        rows=(
            Row("transformer.wte.weight", ("embedding/embedding",)),
            Row("transformer.wpe.weight", ("position_embedding/table/embedding",)),
            *_norm("transformer.ln_f", "final_norm"),
            Row(_OUTPUT, ("logits/kernel",), transposed=True),
        ),
        layers=(
            *_norm("transformer.h.{}.ln_1", "mixer_norm"),
            *_gpt2("transformer.h.{}.attn.c_attn", "mixer/query", "mixer/key", "mixer/value"),
            *_gpt2("transformer.h.{}.attn.c_proj", "mixer/output"),
            *_norm("transformer.h.{}.ln_2", "feed_forward_norm"),
            *_gpt2("transformer.h.{}.mlp.c_fc", "feed_forward/up"),
            *_gpt2("transformer.h.{}.mlp.c_proj", "feed_forward/down"),
        ),
        layer=re.compile(r"(?:transformer\.)?h\.([0-9]{1,9})\."),
        buffers=re.compile(r"(transformer\.)?h\.[0-9]+\.attn\.(bias|masked_bias)"),
    ),
    "llama": Names(
        prefix="model.",
        rows=(
            Row("model.embed_tokens.weight", ("embedding/embedding",)),
            *_norm("model.norm", "final_norm"),
            Row(_OUTPUT, ("logits/kernel",), transposed=True),
        ),
        layers=(
            *_norm("model.layers.{}.input_layernorm", "mixer_norm"),
            *_llama("model.layers.{}.self_attn.q_proj", "mixer/query"),
            *_llama("model.layers.{}.self_attn.k_proj", "mixer/key"),
            *_llama("model.layers.{}.self_attn.v_proj", "mixer/value"),
            *_llama("model.layers.{}.self_attn.o_proj", "mixer/output"),
            *_norm("model.layers.{}.post_attention_layernorm", "feed_forward_norm"),
            *_llama("model.layers.{}.mlp.gate_proj", "feed_forward/gate"),
            *_llama("model.layers.{}.mlp.up_proj", "feed_forward/up"),
            *_llama("model.layers.{}.mlp.down_proj", "feed_forward/down"),
        ),
        layer=re.compile(r"(?:model\.)?layers\.([0-9]{1,9})\."),
        buffers=re.compile(r"(model\.)?(layers\.[0-9]+\.self_attn\.)?rotary_emb\.inv_freq"),
    ),
}


class Part(NamedTuple):
    """A row as it applies to one module.

    Attributes:
      row: of the table.
      shapes: of our parameters, in the row's order; without the axis over layers.
      layered: whether there is one for each layer.
    """

    row: Row
    shapes: tuple[Shape, ...]
    layered: bool

    @property
    def shape(self) -> Shape:
        """The shape of their tensor."""
        shape = (*self.shapes[0][:-1], sum(shape[-1] for shape in self.shapes))
        return shape[::-1] if self.row.transposed else shape

    def theirs(self, layer: int) -> str:
        """The name of their tensor."""
        return self.row.theirs.format(layer)

    def split(self, tensor: np.ndarray) -> list[np.ndarray]:
        """Their tensor as ours."""
        ends = np.cumsum([shape[-1] for shape in self.shapes])[:-1]
        return np.split(tensor.T if self.row.transposed else tensor, ends, axis=-1)

    def join(self, arrays: list[np.ndarray]) -> np.ndarray:
        """Our parameters as their tensor."""
        joint = arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=-1)
        return joint.T if self.row.transposed else joint


@functools.lru_cache(maxsize=64)
def _shapes(module: Decoder) -> dict[str, Shape]:
    """Path -> shape of the parameters of a module of one layer."""
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    variables = jax.eval_shape(module.init, jax.random.key(0), tokens)
    return {path: leaf.shape for path, leaf in flatten_dict(variables["params"], sep="/").items()}


def parts_of(kind: str, module: Decoder) -> list[Part]:
    """The rows of the table that apply to `module`, with shapes; nothing is allocated.

    Raises:
      UsageError: the module has parameters that the model type has no names for.
    """
    # All layers are alike, so one is enough; what changes no shape is left out, so that more modules share the answer.
    alike = {"depth": 1, "scan": False, "remat": False, "dropout": 0.0, "dtype": jnp.float32}
    alike |= {"parameter_dtype": jnp.float32, "initial_std": 0.02}
    shapes = dict(_shapes(unbound(module).clone(parent=None, **alike)))
    parts = []
    for rows, prefix in ((NAMES[kind].rows, ""), (NAMES[kind].layers, "stack/layer_0/")):
        for row in rows:
            paths = [prefix + path for path in row.ours]
            if all(path in shapes for path in paths):
                parts.append(Part(row, tuple(shapes.pop(path) for path in paths), bool(prefix)))
    if shapes:
        path = next(iter(shapes)).replace("layer_0", "layer_i")
        raise UsageError(f"the module has the parameter {path!r}, which a {kind} checkpoint has no name for")
    return parts


def variables_of(kind: str, tensors: Tensors, module: Decoder) -> dict[str, Any]:
    """Variables of `module`, in its parameter dtype, from the tensors of a checkpoint.

    All names and shapes are checked before any number is read. One tensor is read at a time, and the layers of one
    parameter are collected at a time.

    Args:
      kind: "gpt2" or "llama".
      tensors: by transformers' names.
      module: what they are the weights of.

    Raises:
      UsageError: a tensor is missing, unknown or of another shape, or its numbers don't fit the parameter dtype.
      RunError: a tensor holds NaN or infinity, or can't be read.
    """
    names = NAMES[kind]
    _check_layers(names, tensors, module)
    embedding = next((n for n in _spellings(names, names.rows[0].theirs) if n in tensors), None)
    expected = (module.vocabulary, module.width)
    if embedding and tuple(tensors[embedding].shape) != expected:  # first: it bounds the sizes that shapes come of
        raise _wrong_shape(embedding, tensors[embedding].shape, expected)
    parts = parts_of(kind, module)
    found = _found(names, parts, tensors, module)
    if module.tied and _OUTPUT in tensors:
        _check_tied(tensors, found[names.rows[0].theirs])
    dtype = np.dtype(module.parameter_dtype)
    params: dict[str, Any] = {}
    for part in parts:
        params |= _read(part, tensors, found, module, dtype)
    return {"params": unflatten_dict(params, sep="/")}


def gpt2_variables(tensors: Tensors, module: Decoder) -> dict[str, Any]:
    """Variables of a GPT-2 `module` from the tensors of transformers' GPT2LMHeadModel.

    Raises:
      UsageError: a tensor is missing, unknown or of another shape.
      RunError: a tensor holds NaN or infinity.
    """
    return variables_of("gpt2", tensors, module)


def llama_variables(tensors: Tensors, module: Decoder) -> dict[str, Any]:
    """Variables of a Llama `module` from the tensors of transformers' LlamaForCausalLM.

    Raises:
      UsageError: a tensor is missing, unknown or of another shape.
      RunError: a tensor holds NaN or infinity.
    """
    return variables_of("llama", tensors, module)


def tensors_of(kind: str, module: Decoder, variables: Any) -> Iterator[tuple[str, Shape, np.dtype, Any]]:
    """The tensors of a checkpoint from the variables of `module`: name, shape, dtype, and a function that makes it.

    Names and shapes are checked at the first step; each array is made when its function is called.

    Raises:
      UsageError: the variables are not those of the module.
    """
    parts = parts_of(kind, module)
    leaves = flatten_dict(variables.get("params", {}), sep="/")
    expected = {path for part in parts for layer in _layers(part, module) for path in _paths(part, module, layer)}
    for path in sorted(expected - leaves.keys()):
        raise UsageError(f"the variables lack {path!r}, which the module has{nearest(path, leaves)}")
    for path in sorted(leaves.keys() - expected):
        raise UsageError(f"the variables have {path!r}, which the module lacks{nearest(path, expected)}")
    for part in parts:
        for layer in _layers(part, module):
            paths = _paths(part, module, layer)
            stacked = (module.depth,) if part.layered and module.scan else ()
            for path, shape in zip(paths, part.shapes):
                if leaves[path].shape != stacked + shape:
                    raise _wrong_shape(path, leaves[path].shape, stacked + shape)
                if not jnp.issubdtype(leaves[path].dtype, jnp.floating):
                    raise UsageError(f"the parameter {path!r} has dtype {leaves[path].dtype}; expected float32 or such")

            def make(part=part, layer=layer, paths=paths, stacked=stacked) -> np.ndarray:
                arrays = [np.asarray(leaves[path][layer] if stacked else leaves[path]) for path in paths]
                tensor = part.join(arrays)
                _check_finite(part.theirs(layer), tensor)
                return tensor

            yield part.theirs(layer), part.shape, np.dtype(leaves[paths[0]].dtype), make


def _layers(part: Part, module: Decoder) -> range:
    return range(module.depth if part.layered else 1)


def _paths(part: Part, module: Decoder, layer: int) -> list[str]:
    """Where the parameters of a part lie, as `Stack` keeps them: on a leading axis where it scans, else apart."""
    if not part.layered:
        return list(part.row.ours)
    prefix = "stack/layers/block_0/" if module.scan else f"stack/layer_{layer}/"
    return [prefix + path for path in part.row.ours]


def _spellings(names: Names, name: str) -> tuple[str, ...]:
    return (name, name.removeprefix(names.prefix)) if name.startswith(names.prefix) else (name,)


def _check_layers(names: Names, tensors: Tensors, module: Decoder) -> None:
    """That the checkpoint has as many layers as the module; without it, a depth of 10^9 would be looked through."""
    layers = {match[1] for name in tensors if (match := names.layer.match(name))}
    if len(layers) != module.depth:
        raise UsageError(f"the checkpoint has tensors of {len(layers)} layers; expected {module.depth}, the depth")


def _found(names: Names, parts: list[Part], tensors: Tensors, module: Decoder) -> dict[str, str]:
    """Full name -> name in the checkpoint, once none is missing, unknown or of another shape."""
    found = {}
    spare = {name for name in tensors if not names.buffers.fullmatch(name)}
    for part in parts:
        for layer in _layers(part, module):
            full = part.theirs(layer)
            name = next((name for name in _spellings(names, full) if name in tensors), None)
            if name is None:
                raise UsageError(f"the tensor {full!r} is missing from the checkpoint")
            if tuple(tensors[name].shape) != part.shape:
                raise _wrong_shape(name, tensors[name].shape, part.shape)
            found[full] = name
            spare.discard(name)
    if module.tied:
        spare.discard(_OUTPUT)
    if spare:
        name = min(spare)
        raise UsageError(
            f"the checkpoint has the tensor {shown(name)}, which the module lacks{nearest(name[:80], found)}"
        )
    return found


def _wrong_shape(name: str, shape: Any, expected: Shape) -> UsageError:
    return UsageError(f"the tensor {shown(name)} has shape {shown(tuple(shape))}; expected {expected}")


def _check_tied(tensors: Tensors, embedding: str) -> None:
    same = tuple(tensors[_OUTPUT].shape) == tuple(tensors[embedding].shape)
    if not (same and np.array_equal(np.asarray(tensors[_OUTPUT]), np.asarray(tensors[embedding]))):
        raise UsageError(
            f"the output layer is tied to the embedding, but {_OUTPUT!r} differs from {embedding!r}; "
            "expected equal tensors, or tie_word_embeddings false in config.json"
        )


def _read(part: Part, tensors: Tensors, found: dict[str, str], module: Decoder, dtype: np.dtype) -> dict[str, Any]:
    """The parameters of one part, by path."""
    arrays: dict[str, np.ndarray] = {}
    for layer in _layers(part, module):
        name = found[part.theirs(layer)]
        tensor = np.asarray(tensors[name])
        _check_finite(name, tensor)
        with np.errstate(over="ignore"):
            cast = tensor.astype(dtype)
        if cast.dtype.itemsize < tensor.dtype.itemsize and not np.isfinite(cast).all():
            raise UsageError(f"the tensor {shown(name)} holds numbers beyond {dtype.name}; expected a wider dtype")
        for path, piece in zip(_paths(part, module, layer), part.split(cast)):
            if part.layered and module.scan:
                if path not in arrays:
                    arrays[path] = np.empty((module.depth, *piece.shape), dtype)
                arrays[path][layer] = piece
            else:
                arrays[path] = np.ascontiguousarray(piece)
    return {path: jnp.asarray(array) for path, array in arrays.items()}


def _check_finite(name: str, tensor: np.ndarray) -> None:
    if not np.isfinite(tensor).all():
        raise RunError(f"the tensor {shown(name)} holds NaN or infinity; expected finite numbers")
