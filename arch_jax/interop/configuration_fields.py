"""What the fields of a `config.json` may hold, and which of them change nothing that we compute."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from arch_jax.errors import UsageError, nearest, unknown
from arch_jax.interop.strict_json import shown

#: The most that a size may be: beyond it, JAX's own arithmetic on shapes would overflow.
_LARGEST = 2**31 - 1


class Field(NamedTuple):
    """How a field is read.

    Attributes:
      read: its name and value to what we make of it; raises UsageError.
      default: the value where the field is absent, as transformers has it.
    """

    read: Callable[[str, Any], Any]
    default: Any = None


def whole(name: str, value: Any) -> int:
    """A size: a whole number from 1."""
    if type(value) is not int or value < 1:  # bool is an int to Python
        raise UsageError(f"{name} is {shown(value)}; expected a whole number of at least 1")
    if value > _LARGEST:
        raise UsageError(f"{name} is {shown(value)}; expected at most {_LARGEST}")
    return value


def whole_or_none(name: str, value: Any) -> int | None:
    """A size, or null for the one that follows from other fields."""
    return None if value is None else whole(name, value)


def wholes(name: str, value: Any) -> tuple[int, ...]:
    """A size for each stage: a list of at least one."""
    if not isinstance(value, list | tuple) or not value:
        raise UsageError(f"{name} is {shown(value)}; expected a list of whole numbers of at least 1")
    return tuple(whole(f"{name}[{place}]", item) for place, item in enumerate(value))


def number(name: str, value: Any) -> float:
    """A number from 0 that float32 holds."""
    if type(value) not in (int, float) or not 0 <= value < 3e38:
        raise UsageError(f"{name} is {shown(value)}; expected a finite number of at least 0")
    return float(value)


def positive(name: str, value: Any) -> float:
    """A finite number above 0."""
    if number(name, value) == 0:
        raise UsageError(f"{name} is {shown(value)}; expected a number above 0")
    return float(value)


def flag(name: str, value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise UsageError(f"{name} is {shown(value)}; expected true or false")
    return value


def choice(names: Mapping[str, str]) -> Callable[[str, Any], str]:
    """One of transformers' names, as ours."""

    def read(name: str, value: Any) -> str:
        if not isinstance(value, str) or value not in names:
            raise UsageError(f"{name} is {shown(value)}, which is not supported{nearest(str(value)[:80], names)}")
        return names[value]

    return read


def only(*supported: Any) -> Callable[[str, Any], Any]:
    """A field that changes what is computed, and of which only the given values are supported."""

    def read(name: str, value: Any) -> Any:
        if not any(type(value) is type(item) and value == item for item in supported):
            expected = " or ".join("null" if item is None else str(item).lower() for item in supported)
            raise UsageError(f"{name} is {shown(value)}, which is not supported; expected {expected}")
        return value

    return read


def labels(data: Mapping[str, Any]) -> int:
    """How many classes a classifier's config.json names: id2label, or num_labels, or else transformers' 2."""
    names = data.get("id2label")
    if names is None:
        return whole("num_labels", data.get("num_labels", 2))
    if not isinstance(names, Mapping) or len(names) < 2:
        raise UsageError(f"id2label is {shown(names)}; expected a name for each of at least 2 classes")
    return len(names)


def label_names(classes: int) -> dict[str, dict]:
    """The fields of config.json that say how many classes there are, as transformers writes them."""
    names = {str(number): f"LABEL_{number}" for number in range(classes)}
    return {"id2label": names, "label2id": {name: int(number) for number, name in names.items()}}


#: transformers' names of activations -> ours.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_accurate": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "relu": "relu",
    "sigmoid": "sigmoid",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}

#: Fields of any model that change what is computed where they are set, and are supported only where they are not.
UNSUPPORTED_IF_SET = {
    "is_encoder_decoder": Field(only(False, None)),
    "cross_attention_hidden_size": Field(only(None)),
    "add_cross_attention": Field(only(False, None)),
    "pruned_heads": Field(only({}, None)),
    "quantization_config": Field(only(None)),
    "compression_config": Field(only(None)),
    "per_layer_config": Field(only({}, None)),
    "sliding_window": Field(only(None)),
    "use_sliding_window": Field(only(False, None)),
    "attention_chunk_size": Field(only(None)),
    "layer_types": Field(only(None)),
    "adapter_config": Field(only(None)),
}

# Fields of any model that change nothing in the logits. Of the file, the framework, and other tasks' heads:
_FRAMEWORK = """
architectures auto_map dtype finetuning_task id2label label2id model_type name_or_path num_labels prefix problem_type
tokenizer_class torch_dtype torchscript transformers_version use_bfloat16 tf_legacy_loss attn_implementation
experts_implementation gradient_checkpointing is_decoder chunk_size_feed_forward tie_encoder_decoder use_cache
"""
# What is returned beside the logits:
_RETURNED = """
output_attentions output_hidden_states output_scores return_dict return_dict_in_generate tie_last_hidden_states
"""
# Special tokens, which belong to the tokenizer:
_TOKENS = """
bos_token_id cls_token_id decoder_start_token_id eos_token_id mask_token_id pad_token_id sep_token_id
"""
# How text is sampled; `generate` has arguments of its own:
_SAMPLING = """
assistant_confidence_threshold assistant_lookbehind bad_words_ids begin_suppress_tokens diversity_penalty do_sample
early_stopping encoder_no_repeat_ngram_size encoder_repetition_penalty epsilon_cutoff eta_cutoff
exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id length_penalty max_length max_new_tokens
min_length no_repeat_ngram_size num_assistant_tokens num_assistant_tokens_schedule num_beam_groups num_beams
num_return_sequences remove_invalid_values repetition_penalty suppress_tokens target_lookbehind task_specific_params
temperature top_k top_p typical_p
"""
_HARMLESS = frozenset((_FRAMEWORK + _RETURNED + _TOKENS + _SAMPLING).split())


def read_fields(
    data: Mapping[str, Any],
    fields: Mapping[str, Field],
    harmless: Iterable[str] = (),
    aliases: Mapping[str, str] | None = None,
    common: bool = True,
) -> dict[str, Any]:
    """Every field of `fields`, read; every other field of `data` is known to be harmless, or refused.

    Args:
      data: of config.json.
      fields: those that change what is computed, by name.
      harmless: those of this model that don't, beside the ones that all models share.
      aliases: other names of fields.
      common: whether the fields that all models of transformers share may be there; diffusers has none of them.

    Raises:
      UsageError: an unknown field (nearest names), a value of the wrong type, or one that is not supported.
    """
    data, fields = dict(data), (UNSUPPORTED_IF_SET if common else {}) | dict(fields)
    for other, name in (aliases or {}).items():
        if other in data:
            value = data.pop(other)
            if name in data and data[name] != value:
                raise UsageError(f"{name} is {shown(data[name])} and {other} is {shown(value)}; expected them to agree")
            data[name] = value
    known = {*fields, *(_HARMLESS if common else ()), *harmless}
    for name in data:
        if name not in known and not name.startswith("_"):
            raise unknown("field of config.json", name[:80], known)
    return {name: field.read(name, data.get(name, field.default)) for name, field in fields.items()}
