"""arch_jax: neural architectures in pure functional JAX/Flax, each faithful to its paper and shown to be.

    module = arch_jax.create("gpt2", depth=4)
    variables = module.init(jax.random.key(0), tokens)
    logits = module.apply(variables, tokens)

The names below are imported when first used, so that `import arch_jax` costs little more than JAX itself.
"""

import importlib
from typing import Any

_HOME = {
    "ALiBi": "layers.transformer.positions",
    "AddingProblem": "data",
    "ArchJaxError": "errors",
    "Attention": "layers.mixers.attention",
    "Augmentation": "data",
    "Autoregressive": "sampling.autoregressive",
    "BatchNorm": "layers.norms",
    "BeamSearch": "sampling.beam_search",
    "Bidirectional": "layers.mixers.rnn.bidirectional",
    "Block": "layers.transformer.block",
    "CopyMemory": "data",
    "Corpus": "data.base",
    "CrossAttention": "layers.transformer.cross_attention",
    "DType": "fields",
    "Decoder": "layers.transformer.decoder",
    "DeltaNet": "layers.mixers.delta_net",
    "Dense": "layers.dense",
    "Embedding": "layers.dense",
    "EncoderDecoder": "layers.transformer.encoder_decoder",
    "Experiment": "experiment",
    "Figure": "figures.base",
    "Frozen": "trained",
    "GRU": "layers.mixers.rnn.gru",
    "GatedDeltaNet": "layers.mixers.delta_net",
    "GeneratedPoints": "figures.points",
    "Graph": "graph",
    "GroupNorm": "layers.norms",
    "Hyena": "layers.mixers.hyena",
    "Images": "data",
    "InductionHeads": "data",
    "Kind": "fields",
    "LSTM": "layers.mixers.rnn.lstm",
    "LatentAttention": "layers.mixers.latent_attention",
    "LayerNorm": "layers.norms",
    "LearnedPosition": "layers.transformer.positions",
    "LinearAttention": "layers.mixers.linear_attention",
    "Linformer": "layers.mixers.linear_attention",
    "MLP": "layers.transformer.feed_forward",
    "MLSTM": "layers.mixers.mlstm",
    "Mamba": "layers.mixers.ssm.mamba",
    "Mamba2": "layers.mixers.ssm.mamba2",
    "MambaBlock": "layers.mixers.ssm.mamba",
    "Markov": "data",
    "Measure": "evaluation.base",
    "Multi30k": "data",
    "MultiQueryRecall": "data",
    "Nodes": "data",
    "ObjectiveBase": "objectives",
    "Optimizer": "optimizer",
    "Paper": "registry",
    "Parity": "data",
    "Performer": "layers.mixers.linear_attention",
    "Phase": "objectives",
    "PlantedDictionary": "data",
    "Player": "objectives",
    "Published": "experiment",
    "RMSNorm": "layers.norms",
    "RNN": "layers.mixers.rnn.rnn",
    "RWKV4": "layers.mixers.rwkv4",
    "RWKV4Channel": "layers.mixers.rwkv4",
    "RWKV7": "layers.mixers.rwkv7",
    "RWKV7Channel": "layers.mixers.rwkv7",
    "RandomPairs": "data",
    "Range": "ranges",
    "Repeats": "data",
    "Retention": "layers.mixers.retention",
    "Ring": "data",
    "RoPE": "layers.transformer.positions",
    "Rows": "inputs",
    "RunError": "errors",
    "S4": "layers.mixers.ssm.s4",
    "S4D": "layers.mixers.ssm.s4",
    "S6": "layers.mixers.ssm.mamba",
    "SLSTM": "layers.mixers.slstm",
    "Sampler": "sampling",
    "Samples": "figures.samples",
    "SelectiveCopying": "data",
    "SentencePairs": "data",
    "SequencePosition": "layers.sequence_position",
    "SequenceReader": "layers.seq2seq.sequence_reader",
    "SinusoidalPosition": "layers.transformer.positions",
    "Spans": "data",
    "Start": "trained",
    "SwiGLU": "layers.transformer.feed_forward",
    "Text": "data",
    "UsageError": "errors",
    "ValidationBatches": "data.base",
    "beam_search": "sampling",
    "changed_since": "study.reproduce.provenance",
    "component": "fields",
    "count_flops": "flops",
    "create": "registry",
    "cross_entropy": "ops.losses",
    "declare_collection": "layers.collections",
    "device": "study.reproduce.reproduce",
    "draw": "drawing",
    "encoded": "inputs",
    "executed_code": "study.reproduce.provenance",
    "generate": "sampling",
    "graphs": "inputs",
    "image_grid": "figures.image_grid",
    "images": "inputs",
    "labelled_images": "inputs",
    "list_models": "catalogue",
    "load_experiment": "experiment",
    "load_pretrained": "interop",
    "load_record": "study.reproduce.ledger",
    "load_table": "study.tables",
    "load_tokenizer": "interop",
    "models": "registry",
    "objective": "objectives",
    "open_run": "train",
    "pairs": "inputs",
    "points": "inputs",
    "register": "registry",
    "save_pretrained": "interop",
    "sow_loss": "layers.sowing",
    "sow_metric": "layers.sowing",
    "sow_output": "layers.sowing",
    "stream": "data.base",
    "tokens": "inputs",
    "vectors": "inputs",
}
#: Names that mean more by themselves than those in the files that they stand in.
_RENAMED = {"declare_collection": "declare", "load_experiment": "load"}
__all__ = sorted([*_HOME, "train"])
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in ("models", "train"):  # the package itself, which is callable
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{_nearest(name)}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), _RENAMED.get(name, name))


def _nearest(name: str) -> str:
    from arch_jax.errors import nearest

    return nearest(name, __all__)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
