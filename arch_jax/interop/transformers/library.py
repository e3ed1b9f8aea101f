"""transformers' `config.json`: the fields that all its models share, and its names of activations and classes."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn

from arch_jax import fields
from arch_jax.errors import UsageError
from arch_jax.interop.checkpoint_type import Library
from arch_jax.interop.configuration_fields import Field, Fields, because, unchanged, whole_or_none
from arch_jax.interop.row import Tensors
from arch_jax.interop.safetensors import FILES
from arch_jax.interop.strict_json import shown

_FILE = """
architectures auto_map dtype finetuning_task id2label label2id model_type name_or_path num_labels prefix problem_type
tokenizer_class torch_dtype torchscript transformers_version use_bfloat16 xla_device tf_legacy_loss attn_implementation
experts_implementation gradient_checkpointing is_decoder chunk_size_feed_forward tie_encoder_decoder use_cache
"""
_RETURNED = """
output_attentions output_hidden_states output_past output_scores return_dict return_dict_in_generate
tie_last_hidden_states
"""
_TOKENS = """
bos_token bos_token_id cls_token cls_token_id decoder_start_token_id end_token_id eos_token eos_token_id eos_token_ids
mask_token mask_token_id pad_token pad_token_id sep_token sep_token_id unk_token unk_token_id
"""
#: Notes of other programs: trainers, exporters, and what reads the outputs.
_OTHERS = """
base_model_name_or_path language max_sequence_length max_seq_length model_max_length model_name model_name_or_path name
neuron sbert_ce_default_activation_function sentence_transformers seq_length transformers.js_config
uniem_embedding_strategy unsloth_fixed unsloth_version
"""
_SAMPLING = """
assistant_confidence_threshold assistant_lookbehind bad_words_ids begin_suppress_tokens diversity_penalty do_sample
early_stopping encoder_no_repeat_ngram_size encoder_repetition_penalty epsilon_cutoff eta_cutoff
exponential_decay_length_penalty force_bos_token_to_be_generated force_words_ids forced_bos_token_id forced_decoder_ids
forced_eos_token_id generation_config guidance_scale length_penalty low_memory max_length max_new_tokens max_time
min_length min_new_tokens min_p no_repeat_ngram_size num_assistant_tokens num_assistant_tokens_schedule num_beam_groups
num_beams num_return_sequences penalty_alpha remove_invalid_values renormalize_logits repetition_penalty sequence_bias
stop_strings suppress_tokens target_lookbehind task_specific_params temperature top_k top_p typical_p
"""

TRANSFORMERS = Library(
    "transformers",
    "model_type",
    FILES["transformers"],
    Fields(
        no_effect=because("about the file, the framework or the heads of other tasks", _FILE)
        | because("selects what is returned beside the logits", _RETURNED)
        | because("special tokens belong to the tokenizer", _TOKENS)
        | because("settings of sampling, which `generate` has arguments for", _SAMPLING)
        | because("a note of another program, which transformers does not read", _OTHERS),
        refuses={
            "is_encoder_decoder": (False, None),
            "cross_attention_hidden_size": (None,),
            "encoder_width": (None,),
            "add_cross_attention": (False, None),
            "pruned_heads": ({}, None),
            "quantization": (None,),
            "quantization_config": (None,),
            "compression_config": (None,),
            "per_layer_config": ({}, None),
            "sliding_window": (None,),
            "use_sliding_window": (False, None),
            "attention_chunk_size": (None,),
            "layer_types": (None,),
            "adapter_config": (None,),
            "adapters": (None, {}, {"adapters": {}, "config_map": {}}),
        },
    ),
    dtype="dtype",
)

#: transformers' names of activations -> ours.
ACTIVATION_NAMES = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_accurate": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "relu": "relu",
    "relu6": "relu6",
    "sigmoid": "sigmoid",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}

#: The reason why dropout rates have no effect.
DROPOUT = "dropout is not taken over: it is 0 unless asked for"


def their_activation(settings: Mapping[str, Any], tanh_gelu: str = "gelu_new") -> str:
    """transformers' name of a feed-forward's activation; `tanh_gelu` is what the model type calls that one."""
    ours = settings["feed_forward"].get("activation", "silu")
    return tanh_gelu if ours == "gelu_tanh" else ours


def text_fields(module: nn.Module) -> dict[str, Any]:
    """Fields that every model of text writes. Special tokens belong to the tokenizer and are null."""
    return {
        "vocab_size": module.vocabulary,
        "tie_word_embeddings": getattr(module, "tied", True),
        "dtype": fields.to_json(module.parameter_dtype),
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }


def _label_count(name: str, value: Any) -> int | None:
    """The number of names of classes."""
    if value is None:
        return None
    if not isinstance(value, Mapping) or len(value) < 2:
        raise UsageError(f"{name} is {shown(value)}; expected a name for each of at least 2 classes")
    return len(value)


#: The fields that say how many classes a classifier has, and whether there is one.
CLASSES = {"id2label": Field(_label_count), "num_labels": Field(whole_or_none), "architectures": Field(unchanged)}
#: A class without a head, such as ViTModel.
_BASE = re.compile(r"(?!.*(?:LMHead|MT)Model)\w+Model")


def is_base(named: Any) -> bool:
    """True if `architectures` names a class without a head."""
    return isinstance(named, list) and len(named) == 1 and _BASE.fullmatch(str(named[0])) is not None


def label_count(c: Mapping[str, Any]) -> int | None:
    """The number of classes from the fields of `CLASSES`, read; transformers' default is 2. None without classifier."""
    return None if is_base(c["architectures"]) else c["id2label"] or c["num_labels"] or 2


def architectures(name: str, module: Any) -> list[str]:
    """The class that a file names: `name`, or where the module has no head, the one without."""
    headless = getattr(module, "classes", 1) is None or not getattr(module, "head", True)
    return [re.sub(r"(LMHeadModel|For[A-Z]\w+)$", "Model", name) if headless else name]


def classifier(name: str) -> Callable[[Any, Tensors], Any]:
    """The module with the classifier that the tensors have under a name, where config.json names a class without."""

    def adjusted(module: Any, tensors: Tensors) -> Any:
        kernel = tensors.get(f"{name}.weight")
        return module if kernel is None or module.classes is not None else module.clone(classes=int(kernel.shape[0]))

    return adjusted


def output_layer(name: str) -> Callable[[Any, Tensors], Any]:
    """The module without an output layer, where config.json names a class that has none and the tensors have none."""

    def adjusted(module: Any, tensors: Tensors) -> Any:
        base = module.facts is not None and is_base(module.facts.settings.get("architectures"))
        return module.clone(head=False) if base and not module.tied and name not in tensors else module

    return adjusted


def class_fields(classes: int | None) -> dict[str, dict]:
    """The fields that say how many classes there are, as transformers writes them; none without a classifier."""
    if classes is None:
        return {}
    names = {str(number): f"LABEL_{number}" for number in range(classes)}
    return {"id2label": names, "label2id": {name: int(number) for number, name in names.items()}}
