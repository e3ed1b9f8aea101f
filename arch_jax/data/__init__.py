"""Data sets by name, as batches: text, sequence pairs, images, graphs and points, through Grain pipelines.

Every pipeline can be resumed. The names below are imported when first used, so that `import arch_jax.data` costs
nothing.
"""

import importlib

_HOME = {
    "AddingProblem": "sequences.adding_problem",
    "Augmentation": "images.augmentation",
    "CopyMemory": "sequences.recall",
    "Images": "images.dataset",
    "InductionHeads": "sequences.recall",
    "Markov": "sequences.markov",
    "Multi30k": "text.multi30k",
    "MultiQueryRecall": "sequences.recall",
    "Nodes": "graphs.nodes",
    "Parity": "sequences.recall",
    "PlantedDictionary": "points.dictionary",
    "RandomPairs": "sequences.random_pairs",
    "Repeats": "sequences.repeats",
    "Ring": "points.ring",
    "SelectiveCopying": "sequences.recall",
    "SentencePairs": "text.sentence_pairs",
    "Spans": "text.span_corruption",
    "Text": "text.corpus",
    "TextCorpus": "text.corpus",
    "Documents": "text.sources",
    "SOURCES": "text.sources",
    "documents": "text.sources",
    "data_directory": "files.directories",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
