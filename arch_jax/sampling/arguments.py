"""Arguments of the functions that decode: read at the boundary, so that what is wrong with one is one sentence.

Inside a compiled program a wrong argument would be an error of JAX or Flax, many frames from who gave it.
"""

import contextlib
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import FlaxError

from arch_jax.errors import UsageError
from arch_jax.protocols import takes_state, vocabulary, writes_targets
from arch_jax.scalars import shown, whole

_LARGEST = np.iinfo(np.int32).max


def check_decoder(module: Any) -> None:
    """Refuses what `generate` can't decode with.

    Raises:
      UsageError: no module, or one that does not carry a state from token to token; with what to call.
    """
    _check_module(module, "a decoder such as arch_jax.create('gpt2')")
    name = type(module).__name__
    if writes_targets(module):
        raise UsageError(f"{name} is an encoder-decoder, which generate does not take; call beam_search with a source")
    if not (takes_state(module) and vocabulary(module)):
        raise UsageError(
            f"{name} is no decoder: it carries no state from token to token; call its apply for outputs, or generate "
            "with a decoder such as 'gpt2'"
        )


def check_encoder_decoder(module: Any) -> None:
    """Refuses what `beam_search` can't write targets with.

    Raises:
      UsageError: no module, or one without a source; with what to call.
    """
    _check_module(module, "an encoder-decoder such as arch_jax.create('t5-small')")
    name = type(module).__name__
    if takes_state(module) and not writes_targets(module):
        raise UsageError(f"{name} is a decoder, which has no source to search with; call generate with a prompt")
    if not writes_targets(module):
        raise UsageError(
            f"{name} is no encoder-decoder; call its apply for outputs, or beam_search with an encoder-decoder such as "
            "'t5-small'"
        )


def _check_module(module: Any, expected: str) -> None:
    if not isinstance(module, nn.Module):
        what = "a class" if isinstance(module, type) else f"of type {type(module).__name__}"
        raise UsageError(f"module is {what}; expected {expected}")


def check_variables(variables: Any) -> None:
    """Refuses what are no variables of any module.

    Raises:
      UsageError: no mapping, or one without "params".
    """
    if not isinstance(variables, Mapping) or "params" not in variables:
        names = f"hold {shown(sorted(map(str, variables)))}" if isinstance(variables, Mapping) else ""
        raise UsageError(
            f"variables {names or 'are of type ' + type(variables).__name__}; expected a mapping with 'params', as "
            "module.init and load_pretrained give it"
        )


@contextlib.contextmanager
def variables_of(module: nn.Module) -> Iterator[None]:
    """Names variables that are another module's, which Flax finds out when they are used.

    Raises:
      UsageError: so it is.
    """
    try:
        yield
    except FlaxError as problem:
        sentence = " ".join(str(problem).split()).split(" (https://")[0]
        raise UsageError(f"variables are not those of this {type(module).__name__}: {sentence[:300]}") from problem


def check_key(key: Any) -> None:
    """Refuses what is no key of `jax.random`.

    Raises:
      UsageError: so it is.
    """
    dtype, ndim = getattr(key, "dtype", None), getattr(key, "ndim", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if not (typed and ndim == 0) and not (dtype == np.uint32 and ndim == 1):
        raise UsageError(f"key is {shown(key)}; expected one key, such as jax.random.key(0)")


def length_of(length: Any, verb: str) -> int:
    """A number of tokens to generate or to write.

    Raises:
      UsageError: no integer, or one below 1.
    """
    expected = f"at least 1 token to {verb}"
    length = whole("length", length, f"an integer, {expected}")
    if length < 1:
        raise UsageError(f"length is {length}; expected {expected}")
    if length > _LARGEST:
        raise UsageError(f"length is {length}; expected at most {_LARGEST} tokens")
    return length


def token_of(name: str, value: Any, vocabulary: int) -> int:
    """One token id.

    Raises:
      UsageError: something else than one integer, or one outside the vocabulary.
    """
    token = whole(name, value, "one token id, such as 0")
    if not 0 <= token < vocabulary:
        raise UsageError(f"{name} is token {token}, outside the vocabulary; expected 0 to {vocabulary - 1}")
    return token


def pad_prompts(
    prompt: Any, vocabulary: int | None = None, what: str = "prompt"
) -> tuple[np.ndarray, np.ndarray | None]:
    """Prompts as one array, padded on the right; and segment ids (1, 0 at padding), None where all are of one length.

    Args:
      prompt: token ids: a list of integers or an array "time" is one prompt; a list of such, of different lengths, or
        an array "batch time" are several.
      vocabulary: number of token ids; None takes any.
      what: named in errors.

    Raises:
      UsageError: no prompt, an empty one, something else than integers, or a token outside the vocabulary.
    """
    rows = [row.astype(np.int64) if row.dtype != np.uint64 else row for row in _rows(prompt, what)]
    if not rows or any(row.size == 0 for row in rows):
        raise UsageError(f"a {what} is empty; expected at least one token in each")
    longest = max(row.size for row in rows)
    tokens = np.zeros((len(rows), longest), np.int32)
    segment_ids = np.zeros((len(rows), longest), np.int32)
    most = _LARGEST if vocabulary is None else vocabulary
    for i, row in enumerate(rows):
        outside = row[(row < (0 if vocabulary else -most)) | (row >= most)]
        if outside.size:
            raise UsageError(
                f"the {what} holds token {int(outside[0])}, outside the vocabulary; expected 0 to {most - 1}"
            )
        tokens[i, : row.size] = row
        segment_ids[i, : row.size] = 1
    return tokens, None if segment_ids.all() else segment_ids


def _rows(prompt: Any, what: str) -> list[np.ndarray]:
    """The rows of a prompt, each "time", of integers."""
    if _is_array(prompt):
        array = _integers(prompt, what)
        if array.ndim not in (1, 2):
            raise UsageError(f"the {what} is of shape {array.shape}; expected token ids, 'time' or 'batch time'")
        return [array] if array.ndim == 1 else list(array)
    if isinstance(prompt, str | bytes):
        raise UsageError(f"the {what} is the text {shown(prompt)}; expected token ids, as a tokenizer encodes it")
    if not isinstance(prompt, Sequence):
        raise UsageError(f"the {what} is of type {type(prompt).__name__}; expected a list or an array of token ids")
    several = [row.ndim > 0 if _is_array(row) else isinstance(row, Sequence) for row in prompt]
    if not any(several):
        return [_row(prompt, what)] if len(prompt) else []
    for i, row in enumerate(prompt):
        if not several[i]:
            raise UsageError(
                f"the {what} holds both lists and {shown(row)}; expected integers for one {what}, or lists for several"
            )
    return [_row(row, f"row {i} of the {what}") for i, row in enumerate(prompt)]


def _row(row: Any, what: str) -> np.ndarray:
    if _is_array(row):
        array = _integers(row, what)
        if array.ndim != 1:
            raise UsageError(f"{what} is of shape {array.shape}; expected one sequence of token ids")
        return array
    named = what if what.startswith("row") else f"the {what}"
    for token in row:
        if abs(whole(f"a token of {named}", token, "token ids, which are integers")) > _LARGEST:
            raise UsageError(f"{named} holds token {shown(token)}, which is outside every vocabulary")
    return np.array([operator.index(token) for token in row], np.int64)


def _is_array(value: Any) -> bool:
    return isinstance(value, jax.Array | np.ndarray | np.generic)


def _integers(array: Any, what: str) -> np.ndarray:
    named = what if what.startswith("row") else f"the {what}"
    if isinstance(array, jax.core.Tracer):
        raise UsageError(f"{named} is traced by a transformation of JAX; expected values: call outside of jit")
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise UsageError(f"{named} is an array of {array.dtype}; expected token ids, which are integers")
    return np.asarray(array)


def mask_of(mask: Any, shape: tuple[int, ...]) -> np.ndarray:
    """The mask of a source.

    Raises:
      UsageError: something else than booleans of the source's shape.
    """
    fine = _is_array(mask) and mask.dtype == bool and tuple(mask.shape) == shape
    if not fine or isinstance(mask, jax.core.Tracer):
        has = f"an array of {mask.dtype} {tuple(mask.shape)}" if _is_array(mask) else shown(mask)
        raise UsageError(f"source_mask is {has}; expected an array of booleans of the source's shape {shape}")
    return np.asarray(mask)
