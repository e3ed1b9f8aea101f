"""A checkpoint type: one kind of model of another library, its configuration and its tensors in both directions."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from arch_jax.interop.configuration_fields import Fields
from arch_jax.interop.row import Naming, Tensors
from arch_jax.interop.safetensors import Files


class Library(NamedTuple):
    """A library whose checkpoints are read.

    Attributes:
      name: as it is imported.
      key: the field of config.json that names the type.
      files: names of the files with tensors.
      fields: what becomes of the fields that its models share.
      dtype: the field that names the dtype of the tensors; None where there is none.
      named: the type's name from a config.json that has the key, where it is not the key's value itself.
    """

    name: str
    key: str
    files: Files
    fields: Fields
    dtype: str | None = None
    named: Callable[[Mapping[str, Any]], Any] | None = None

    def type_of(self, data: Mapping[str, Any]) -> Any:
        """The type that a config.json names; None where it names none."""
        return data.get(self.key) if self.named is None else self.named(data)


def text_inputs(module: nn.Module) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Example arguments of a model of tokens."""
    return (jax.ShapeDtypeStruct((1, 1), jnp.int32),)


def text_pair_inputs(module: nn.Module) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Example arguments of an encoder-decoder: source and target."""
    return 2 * text_inputs(module)


def image_inputs(height: int = 64, width: int = 64, channels: int = 3) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Example arguments of a model of images."""
    return (jax.ShapeDtypeStruct((1, height, width, channels), jnp.float32),)


@dataclasses.dataclass(frozen=True, eq=False)
class CheckpointType:
    """One type of checkpoint and the functions that read and write it.

    Attributes:
      library: whose it is.
      names: the values of the library's key that mean it; the first names the type.
      module: the class that it becomes.
      fields: what becomes of each field of config.json, beside those that all models of the library share.
      read: the fields, as they were read, as a module.
      namings: version -> the names and layouts of a module's tensors; the first is what is written.
      write: settings, as `settings_of` gives them, and the module -> fields of config.json. None where the library has
        no config.json that is written.
      inputs: shapes of example arguments of the module, from which the shapes of its variables follow.
      adjusted: the module for the tensors that a checkpoint turns out to have: heads, an output layer of its own.
      renamed: a tensor's present name, where older checkpoints have another.
      unsaid: settings that config.json does not say: `adjusted` finds them, or they concern training alone.
      check_written: refuses fields that the library could not load, although they say what the module is.
    """

    library: Library
    names: tuple[str, ...]
    module: type[nn.Module]
    fields: Fields
    read: Callable[[Mapping[str, Any]], nn.Module]
    namings: Mapping[str, Callable[[Any], Naming]]
    write: Callable[[Mapping[str, Any], Any], dict[str, Any]] | None
    inputs: Callable[[Any], tuple]
    adjusted: Callable[[Any, Tensors], nn.Module] = lambda module, tensors: module
    renamed: Callable[[str], str] = lambda name: name
    unsaid: tuple[str, ...] = ()
    check_written: Callable[[Mapping[str, Any]], None] = lambda fields: None

    @property
    def name(self) -> str:
        """The type's name in its library."""
        return self.names[0]

    def has_all(self, names: Collection[str]) -> bool:
        """True if all fields are known to the type and some of them determine the module."""
        account = self.fields.beside(self.library.fields)
        said = [account.account(name) for name in names]
        return None not in said and "used" in said

    def module_of(self, data: Mapping[str, Any], ignore: Collection[str] = ()) -> nn.Module:
        """The module that a config.json describes.

        Args:
          data: the file's content.
          ignore: unknown fields that change nothing, as a person says.

        Raises:
          UsageError: an unknown field, a value of the wrong type, or one that is not supported.
        """
        return self.read(self.fields.beside(self.library.fields).read(data, ignore))
