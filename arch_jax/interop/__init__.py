"""Weights in and out, between other libraries' names and layouts and ours.

module, variables = load_pretrained("path/to/a/folder")    # as transformers' save_pretrained wrote it
save_pretrained(module, variables, "path/to/another")       # as transformers' from_pretrained reads it
tokenizer = load_tokenizer("path/to/a/folder")              # its tokenizer.json

A folder here is a library, and a file in it one type of checkpoint: what becomes of the fields of its config.json, and
a row for each of its tensors (`row`). All share one mechanism: `configuration_fields` accounts for fields, `parts` and
`weights` for tensors, `configurations` finds the type and the module, `pretrained` reads and writes folders.
"""

import importlib
from typing import Any

_HOME = {"load_pretrained": "pretrained", "load_tokenizer": "tokenizer", "save_pretrained": "pretrained"}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
