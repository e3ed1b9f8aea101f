"""JSON files from elsewhere, read without trusting them: bounded, without duplicate names, without NaN."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from arch_jax.errors import RunError

#: Bytes of a JSON file beyond which it is refused: what the safetensors library allows a header.
LARGEST_JSON = 100_000_000

#: How transformers writes infinity, for which JSON has no number. What it wrote before, a bare `Infinity`, becomes it.
INFINITY = {"__float__": "Infinity"}


def shown(value: Any, most: int = 80) -> str:
    """`value` as a message shows it: its `repr`, cut where it is long."""
    if isinstance(value, str) and len(value) > most:
        value = value[:most] + "..."
    text = repr(value)
    return text if len(text) <= 2 * most else text[: 2 * most] + "..."


def parse_object(content: bytes, where: str) -> dict[str, Any]:
    """The JSON object that `content` holds.

    Args:
      content: UTF-8 text.
      where: what it is called in messages, such as "config.json".

    Raises:
      RunError: it is not JSON, not an object, names a field twice, holds NaN or -Infinity, or is nested too deeply.
    """

    def unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for name, value in pairs:
            if name in data:
                raise RunError(f"{where} names {shown(name)} twice; expected each name once")
            data[name] = value
        return data

    def constant(name: str) -> Any:
        if name == "Infinity":
            return dict(INFINITY)
        raise RunError(f"{where} holds {name}, which is not JSON; expected a finite number")

    try:
        data = json.loads(content.decode("utf-8"), object_pairs_hook=unique, parse_constant=constant)
    except RecursionError:
        raise RunError(f"{where} is nested too deeply; expected an object of plain values") from None
    except UnicodeDecodeError as error:
        raise RunError(f"{where} is not UTF-8 text at byte {error.start}; expected JSON") from None
    except ValueError as error:  # of the parser, or a number with too many digits
        raise RunError(f"{where} is not valid JSON ({error}); expected an object such as {{...}}") from None
    if not isinstance(data, dict):
        raise RunError(f"{where} holds {shown(data)}; expected a JSON object such as {{...}}")
    return data


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
      RunError: the file can't be read, is larger than 100 MB, or does not hold a JSON object.
    """
    try:
        with open(path, "rb") as file:
            # Not read(LARGEST_JSON + 1): that takes 100 MB for a file of any size.
            if (size := os.fstat(file.fileno()).st_size) > LARGEST_JSON:
                raise RunError(f"{path.name} has {size:,} bytes; expected at most {LARGEST_JSON:,}")
            content = file.read()
    except OSError as error:
        raise RunError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    return parse_object(content, path.name)
