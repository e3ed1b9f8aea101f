"""arch_jax: neural architectures in pure functional JAX/Flax, each faithful to its paper and shown to be.

    module = arch_jax.create("gpt2", depth=4)
    variables = module.init(jax.random.key(0), tokens)
    logits = module.apply(variables, tokens)

The names below are imported when first used, so that `import arch_jax` costs little more than JAX itself.
"""

import importlib
from typing import Any

_HOME = {
    "AddingProblem": "data",
    "ArchJaxError": "errors",
    "Augmentation": "data",
    "CopyMemory": "data",
    "Experiment": "experiment",
    "Graph": "graph",
    "Images": "data",
    "InductionHeads": "data",
    "Markov": "data",
    "Multi30k": "data",
    "MultiQueryRecall": "data",
    "Nodes": "data",
    "Optimizer": "optimizer",
    "Paper": "registry",
    "Parity": "data",
    "PlantedDictionary": "data",
    "Published": "experiment",
    "RandomPairs": "data",
    "Repeats": "data",
    "Ring": "data",
    "RunError": "errors",
    "SelectiveCopying": "data",
    "SentencePairs": "data",
    "SequenceReader": "layers.seq2seq.sequence_reader",
    "Spans": "data",
    "Text": "data",
    "UsageError": "errors",
    "beam_search": "sampling",
    "component": "fields",
    "count_flops": "flops",
    "create": "registry",
    "encoded": "inputs",
    "generate": "sampling",
    "graphs": "inputs",
    "images": "inputs",
    "list_models": "catalogue",
    "load_pretrained": "interop",
    "load_tokenizer": "interop",
    "models": "registry",
    "objective": "objectives",
    "pairs": "inputs",
    "points": "inputs",
    "register": "registry",
    "save_pretrained": "interop",
    "tokens": "inputs",
    "vectors": "inputs",
}
__all__ = sorted([*_HOME, "train"])
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in ("models", "train"):  # the package itself, which is callable
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
