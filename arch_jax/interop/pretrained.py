"""Whole checkpoints: a folder of another library to a module and its variables, and back."""

import contextlib
import functools
import json
import os
import tempfile
from collections.abc import Callable, Collection
from os import PathLike
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from arch_jax import fields
from arch_jax.errors import RunError, UsageError, nearest
from arch_jax.interop.configurations import configuration_of, module_of
from arch_jax.interop.facts import facts_of
from arch_jax.interop.safetensors import (
    FILES,
    SINGLE,
    Files,
    folder_of,
    open_checkpoint,
    plain_file,
    write_tensors,
)
from arch_jax.interop.strict_json import read_object, shown
from arch_jax.interop.weights import fitted_to_checkpoint, tensors_of, variables_of

_CONFIGURATION = "config.json"
_GENERATION = "generation_config.json"
_PIPELINE = "model_index.json"
_ADAPTER = "adapter_config.json"
_DTYPES = ("float32", "bfloat16", "float16", "float64")


def load_pretrained(
    directory: str | PathLike, *, dtype: Any = "float32", ignore: Collection[str] = (), **changes: Any
) -> tuple[nn.Module, dict]:
    """A model from a folder as `save_pretrained` of transformers, or diffusers, writes it, in safetensors format.

    GPT-2, Llama, Mistral, Ministral, BERT (with the heads that the checkpoint has), T5, Marian, Mamba, Mamba-2 (both
    also in their authors' form), RWKV-4 and xLSTM 7B; masked autoencoders (ViTMAE, with their decoder); of image
    classifiers ResNet, ConvNeXt, MobileNetV2, EfficientNet and ViT. For these a folder of timm's will do too: a
    config.json that names the architecture, such as {"architecture": "resnet50", "num_classes": 1000}, and tensors
    under timm's names, torchvision's or, for EfficientNet, those of efficientnet_pytorch. Of diffusers, AutoencoderKL
    and VQModel, a folder such as a pipeline's "vae"; and UNet2DModel, such as its "unet".

        module, variables = arch_jax.load_pretrained("path/to/gpt2")
        logits = module.apply(variables, tokens)

    Nothing is downloaded and nothing in the folder is executed. Every field of config.json is used, known to change
    nothing in the outputs, or refused; one that is unknown here is refused unless `ignore` names it. Dropout is not
    taken over: it is 0 unless `changes` says otherwise.

    Args:
      directory: holds config.json, and model.safetensors (diffusers: diffusion_pytorch_model.safetensors) or its
        shards with their index.
      dtype: of the parameters and the computation, whatever the checkpoint is stored in: "float32", "bfloat16",
        "float16", "float64", or the type of that name. In float16 the residual stream is float32.
      ignore: names of fields of config.json that are unknown here and, as you know, change nothing in the outputs, such
        as `("trained_by",)`; and of tensors that the module does not need, such as another task's head.
      **changes: fields of the module, as in `create`: `scan=False`, `dropout=0.1`, `**{"mixer.implementation": "xla"}`.

    Returns:
      The module and its variables.

    Raises:
      UsageError: no such folder, an unsupported model, or tensors that are not those of the configuration.
      RunError: a file is damaged, or can't be read.
    """
    folder = folder_of(directory)
    if not folder.is_dir():
        raise _no_folder(folder)
    if (folder / _ADAPTER).exists() and not is_adapter(folder):
        raise UsageError(
            f"{str(folder)!r} holds a model and a PEFT adapter ({_ADAPTER}), which would be left out; expected their "
            "sum, by model.merge_and_unload().save_pretrained(folder) in peft, or a folder with the model alone"
        )
    if is_adapter(folder):
        raise _adapter(folder)
    settings = dict.fromkeys(("dtype", "parameter_dtype"), _dtype(dtype)) | changes
    if isinstance(ignore, str) or not isinstance(ignore, Collection) or not all(isinstance(x, str) for x in ignore):
        raise UsageError(f"ignore is {shown(ignore)}; expected a tuple of names, such as ('trained_by',)")
    if not (folder / _CONFIGURATION).exists():
        raise _no_configuration(folder)
    configuration = read_object(plain_file(folder, _CONFIGURATION))
    # The tensors are opened once the configuration is known to be sound.
    opened = functools.cache(lambda files: open_checkpoint(folder, files))
    kind, module = module_of(configuration, opened, ignore)
    generation = read_object(plain_file(folder, _GENERATION)) if (folder / _GENERATION).exists() else None
    known = {name: value for name, value in configuration.items() if name not in ignore}
    if any(name in opened(kind.library.files) for name in ignore):  # without a head it is no longer of that class
        known = {name: value for name, value in known.items() if name not in ("architectures", "id2label", "label2id")}
    module = module.clone(facts=facts_of(kind, known, generation))
    stored = {name: tensor for name, tensor in opened(kind.library.files).items() if name not in ignore}
    module, tensors = fitted_to_checkpoint(kind, stored, module)
    module = fields.override(module, settings)
    return module, variables_of(kind, tensors, module)


def save_pretrained(
    module: nn.Module, variables: Any, directory: str | PathLike, *, shard_bytes: int = 5_000_000_000
) -> None:
    """Writes a model as a folder that `from_pretrained` of transformers, or diffusers, and `load_pretrained` read.

    A checkpoint in the folder is replaced: all new files are written beside it before the first of them takes its
    place, and config.json comes last, so that a folder with a config.json is whole. What a checkpoint said that the
    module was loaded from (its context length, special tokens, names of classes, settings of generation) is said again;
    what the module says otherwise since counts. What concerns training only is not in it, such as rematerialisation.

    Args:
      module: a `Decoder`, `BERT`, `EncoderDecoder`, `MAE` or image classifier that one of transformers' model types
        can express; or an `AutoencoderKL`, `VQModel` or `DDPMUNet` for diffusers.
      variables: its variables; each parameter is written in the dtype that it has.
      directory: made where it doesn't exist.
      shard_bytes: most bytes of tensors in a file; a larger checkpoint becomes several, with an index.

    Raises:
      UsageError: the library can't express the module (the setting is named), or the variables are not the module's.
      RunError: a parameter is NaN or infinite, or a file can't be written.
    """
    if isinstance(shard_bytes, bool) or not isinstance(shard_bytes, int) or shard_bytes < 1:
        raise UsageError(
            f"shard_bytes is {shard_bytes}; expected a number of bytes of at least 1, such as 5_000_000_000"
        )
    folder = folder_of(directory)
    kind, configuration = configuration_of(module)
    tensors = list(tensors_of(kind, module, variables))
    if kind.library.dtype is not None:
        configuration[kind.library.dtype] = tensors[0][2].name
    files = kind.library.files
    with _Staged(folder) as staged:
        shards = _shards(tensors, shard_bytes, files)
        for file, entries in shards.items():
            write_tensors(staged.file(file), {name: make() for name, _, _, make in entries})
        if len(shards) > 1:
            names = {name: file for file, entries in shards.items() for name, *_ in entries}
            total = sum(_size(entry) for entry in tensors)
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(names.items()))}
            staged.file(files.index).write_text(_as_json(index), encoding="utf-8")
        if module.facts is not None and module.facts.generation is not None:
            staged.file(_GENERATION).write_text(_as_json(json.loads(module.facts.generation)), encoding="utf-8")
        staged.file(_CONFIGURATION).write_text(_as_json(configuration), encoding="utf-8")


def is_adapter(folder: Path) -> bool:
    """True for a folder of PEFT: what a LoRA, say, adds to the weights of another folder, and no weights of its own."""
    whole = any((folder / name).exists() for files in FILES.values() for name in (files.single, files.index))
    return (folder / _ADAPTER).exists() and not whole


def _adapter(folder: Path) -> UsageError:
    facts: dict[str, Any] = {}
    with contextlib.suppress(RunError):
        facts = read_object(plain_file(folder, _ADAPTER))
    kind, base = facts.get("peft_type"), facts.get("base_model_name_or_path")
    return UsageError(
        f"{str(folder)!r} is a PEFT adapter ({_ADAPTER}, type {shown(kind)}) of the model {shown(base)}, and no model; "
        "expected its sum with that one: in peft, model.merge_and_unload().save_pretrained(folder)"
    )


def _no_folder(folder: Path) -> UsageError:
    beside: list[str] = []
    with contextlib.suppress(OSError):
        beside = [path.name for path in folder.parent.iterdir() if (path / _CONFIGURATION).exists()]
    return UsageError(
        f"{str(folder)!r} is not a folder; expected one on this machine with {_CONFIGURATION} and {SINGLE} "
        f"(nothing is downloaded){nearest(folder.name, beside)}"
    )


def _no_configuration(folder: Path) -> UsageError:
    expected = "a folder that save_pretrained wrote"
    if (folder / _PIPELINE).exists():  # a pipeline of diffusers keeps each of its models in a folder of its own
        models = sorted(path.name for path in folder.iterdir() if (path / _CONFIGURATION).exists())
        expected = f"one of its models' folders: {', '.join(map(repr, models))}" if models else expected
    return UsageError(f"{str(folder)!r} has no {_CONFIGURATION}; expected {expected}")


class _Staged:
    """New files of a checkpoint, written under other names; at the end of the block they take their places.

    Where the block fails, they are removed and the folder is as it was. The old config.json goes before the first
    file takes its place and the new one comes last: without it, nobody takes the folder for a checkpoint.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.temporary: dict[str, Path] = {}

    def file(self, name: str) -> Path:
        """The path to write to for the file `name`."""
        handle, path = tempfile.mkstemp(dir=self.folder, prefix=f".{name}.")
        os.close(handle)
        self.temporary[name] = Path(path)
        return self.temporary[name]

    def __enter__(self) -> "_Staged":
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._problem(error) from error
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        try:
            if error is None:
                self._place()
        except OSError as problem:
            raise self._problem(problem) from problem
        finally:
            for path in self.temporary.values():
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise self._problem(error) from error

    def _place(self) -> None:
        (self.folder / _CONFIGURATION).unlink(missing_ok=True)
        for name in sorted(self.temporary, key=lambda name: name == _CONFIGURATION):
            if name == _CONFIGURATION:
                self._remove_stale()
            os.chmod(self.temporary[name], 0o644)  # a temporary file's 0600 would hide it from other users
            os.replace(self.temporary[name], self.folder / name)

    def _remove_stale(self) -> None:
        """Removes what is left of the checkpoint that was here before."""
        for path in self.folder.iterdir():
            stale = path.name == _GENERATION or any(files.include(path.name) for files in FILES.values())
            if stale and path.name not in self.temporary:
                path.unlink()

    def _problem(self, error: OSError) -> RunError:
        return RunError(f"cannot write the checkpoint in {str(self.folder)!r}: {error.strerror or error}")


def _dtype(value: Any) -> Any:
    try:
        name = value if isinstance(value, str) else np.dtype(value).name
    except TypeError:
        name = repr(value)
    if name not in _DTYPES:
        raise UsageError(f"dtype is {name!r}; expected one of {', '.join(map(repr, _DTYPES))}")
    if name == "float64" and not jax.config.jax_enable_x64:
        raise UsageError("dtype is 'float64', which JAX has only after jax.config.update('jax_enable_x64', True)")
    return fields.coerce(fields.DType, name, "dtype")


def _size(entry: tuple[str, tuple[int, ...], np.dtype, Callable]) -> int:
    _, shape, dtype, _ = entry
    return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize


def _shards(tensors: list, most: int, files: Files) -> dict[str, list]:
    """File -> its tensors, in order, each file filled up to `most` bytes (one tensor alone may be larger)."""
    groups: list[list] = [[]]
    used = 0
    for entry in tensors:
        if groups[-1] and used + _size(entry) > most:
            groups.append([])
            used = 0
        groups[-1].append(entry)
        used += _size(entry)
    if len(groups) == 1:
        return {files.single: groups[0]}
    return {files.shard(i, len(groups)): group for i, group in enumerate(groups, 1)}


def _as_json(data: Any) -> str:
    return json.dumps(data, indent=2) + "\n"
