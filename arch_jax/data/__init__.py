"""Data by name, as batches: text, pairs of sequences, pictures, nodes of a graph, points; through Grain pipelines.

Every pipeline can be resumed. The names below are imported when first used, so that `import arch_jax.data` costs
nothing.
"""

import importlib

_HOME = {
    "AddingProblem": "adding",
    "Augmentation": "augmentations",
    "CopyMemory": "recall_tasks",
    "Graph": "graphs",
    "Images": "images",
    "InductionHeads": "recall_tasks",
    "Markov": "markov",
    "Multi30k": "multi30k",
    "MultiQueryRecall": "recall_tasks",
    "Nodes": "nodes",
    "Parity": "recall_tasks",
    "PlantedDictionary": "dictionary",
    "RandomPairs": "random_pairs",
    "Repeats": "repeats",
    "Ring": "points",
    "SelectiveCopying": "recall_tasks",
    "SentencePairs": "sentences",
    "Spans": "spans",
    "Text": "text",
    "TextCorpus": "text",
    "Documents": "sources",
    "SOURCES": "sources",
    "documents": "sources",
    "data_directory": "directories",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
