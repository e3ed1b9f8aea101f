"""BERT (`model_type` "bert"), with the heads that a checkpoint has."""

import re
from collections.abc import Mapping
from typing import Any

from arch_jax.errors import UsageError
from arch_jax.interop.checkpoint_type import CheckpointType, text_inputs
from arch_jax.interop.configuration_fields import Field, Fields, because, choice, divides, flag, number, whole
from arch_jax.interop.row import LayerRows, Naming, Row, Tensors, linear_rows, norm_rows
from arch_jax.interop.transformers.library import (
    ACTIVATION_NAMES,
    DROPOUT,
    TRANSFORMERS,
    class_fields,
    text_fields,
    their_activation,
)
from arch_jax.layers.mixers.attention import Attention
from arch_jax.layers.norms import LayerNorm
from arch_jax.layers.transformer.feed_forward import MLP
from arch_jax.layers.transformer.positions import LearnedPosition
from arch_jax.models.transformer.bert import BERT

BERT_FIELDS = Fields(
    reads={
        "vocab_size": Field(whole, 30_522),
        "hidden_size": Field(whole, 768),
        "num_hidden_layers": Field(whole, 12),
        "num_attention_heads": Field(whole, 12),
        "intermediate_size": Field(whole, 3072),
        "hidden_act": Field(choice(ACTIVATION_NAMES), "gelu"),
        "max_position_embeddings": Field(whole, 512),
        "type_vocab_size": Field(whole, 2),
        "initializer_range": Field(number, 0.02),
        "layer_norm_eps": Field(number, 1e-12),
        "is_decoder": Field(flag, False),
    },
    no_effect=because(DROPOUT, "attention_probs_dropout_prob classifier_dropout hidden_dropout_prob")
    | because("was written with the multilingual checkpoints and is read nowhere", "directionality")
    | because(
        "describes a pooler that BERT does not have",
        "pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type",
    ),
    refuses={
        "tie_word_embeddings": (True,),  # no BERT with an output layer of its own has been published
        "position_embedding_type": ("absolute", None),
        "alibi_starting_size": (None,),  # biases of attention, by code beside the checkpoint
    },
)
_PREFIX = "bert."


def _read(c: Mapping[str, Any]) -> BERT:
    heads, std = c["num_attention_heads"], c["initializer_range"]
    divides("num_attention_heads", heads, "hidden_size", c["hidden_size"])
    hidden = None if c["intermediate_size"] == 4 * c["hidden_size"] else c["intermediate_size"]
    return BERT(
        vocabulary=c["vocab_size"],
        depth=c["num_hidden_layers"],
        width=c["hidden_size"],
        mixer=Attention(heads=heads, bias=True, causal=False, initial_std=std),
        feed_forward=MLP(hidden=hidden, activation=c["hidden_act"], initial_std=std),
        norm=LayerNorm(epsilon=c["layer_norm_eps"]),
        position=LearnedPosition(length=c["max_position_embeddings"], initial_std=std),
        types=c["type_vocab_size"],
        causal=c["is_decoder"],
        activation=c["hidden_act"],
        dropout=0.0,
        initial_std=std,
    )


#: transformers' class for the heads (pooler, masked, following, classes).
_CLASSES = {
    (True, True, True, False): "BertForPreTraining",
    (False, True, False, False): "BertForMaskedLM",
    (True, False, True, False): "BertForNextSentencePrediction",
    (True, False, False, True): "BertForSequenceClassification",
    (True, False, False, False): "BertModel",
    (False, False, False, False): "BertModel",
}


def _write(m: Mapping[str, Any], module: BERT) -> dict[str, Any]:
    heads = (module.pooler, module.masked, module.following, module.classes is not None)
    if heads not in _CLASSES:
        said = ", ".join(f"{name} {has}" for name, has in zip(("pooler", "masked", "following", "classes"), heads))
        raise UsageError(f"transformers has no BERT with these heads ({said}); the nearest is BertForPreTraining")
    name = "BertLMHeadModel" if module.causal and module.masked else _CLASSES[heads]
    return text_fields(module) | {
        "architectures": [name],
        "is_decoder": module.causal,
        "initializer_range": module.initial_std,
        "hidden_size": m["width"],
        "num_hidden_layers": m["depth"],
        "num_attention_heads": m["mixer"].get("heads", 1),
        "intermediate_size": m["feed_forward"].get("hidden", 1),
        "hidden_act": their_activation(m),
        "hidden_dropout_prob": module.dropout,
        "attention_probs_dropout_prob": 0.0,
        "max_position_embeddings": m["position"].get("length", 512),
        "type_vocab_size": module.types,
        "layer_norm_eps": m["norm"].get("epsilon", 1e-12),
        "pad_token_id": 0,
        **({} if module.classes is None else class_fields(module.classes)),
    }


def _naming(module: BERT) -> Naming:
    embeddings, layer = "bert.embeddings.", "bert.encoder.layer.{}."
    rows = (
        *linear_rows(f"{layer}attention.self.query", "mixer/query"),
        *linear_rows(f"{layer}attention.self.key", "mixer/key"),
        *linear_rows(f"{layer}attention.self.value", "mixer/value"),
        *linear_rows(f"{layer}attention.output.dense", "mixer/output"),
        *norm_rows(f"{layer}attention.output.LayerNorm", "mixer_norm"),
        *linear_rows(f"{layer}intermediate.dense", "feed_forward/up"),
        *linear_rows(f"{layer}output.dense", "feed_forward/down"),
        *norm_rows(f"{layer}output.LayerNorm", "feed_forward_norm"),
    )
    copies = {"cls.predictions.decoder.weight": f"{embeddings}word_embeddings.weight"}
    return Naming(
        prefix=_PREFIX,
        sizes={f"{embeddings}word_embeddings.weight": (module.vocabulary, module.width)},
        rows=(
            Row(f"{embeddings}word_embeddings.weight", ("token_embedding/embedding",)),
            Row(f"{embeddings}position_embeddings.weight", ("position_embedding/table/embedding",)),
            Row(f"{embeddings}token_type_embeddings.weight", ("type_embedding/embedding",)),
            *norm_rows(f"{embeddings}LayerNorm", "embedding_norm"),
            *linear_rows("bert.pooler.dense", "pooler"),
            Row("cls.predictions.bias", ("masked_bias",)),
            *linear_rows("cls.predictions.transform.dense", "masked_transform"),
            *norm_rows("cls.predictions.transform.LayerNorm", "masked_norm"),
            *linear_rows("cls.seq_relationship", "next_sentence"),
            *linear_rows("classifier", "classifier"),
        ),
        stacks=(LayerRows("stack", module.depth, rows),),
        buffers=re.compile(r"(bert\.)?embeddings\.position_ids"),
        copies=copies | {"cls.predictions.decoder.bias": "cls.predictions.bias"},
    )


def _adjusted(module: BERT, tensors: Tensors) -> BERT:
    """The same BERT with the heads that the checkpoint has weights for."""
    has = lambda name: name in tensors or name.removeprefix(_PREFIX) in tensors
    pooler = has("bert.pooler.dense.weight")
    # Without a pooler it is another task's, such as one of classes of tokens.
    classifier = tensors.get("classifier.weight") if pooler else None
    return module.clone(
        pooler=pooler,
        masked=has("cls.predictions.bias") or has("cls.predictions.decoder.bias"),
        following=pooler and has("cls.seq_relationship.weight"),
        classes=None if classifier is None else int(classifier.shape[0]),
    )


def _renamed(name: str) -> str:
    """The first checkpoints call a norm's scale and bias gamma and beta, as TensorFlow does."""
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
    return re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)


BERT_TYPE = CheckpointType(
    library=TRANSFORMERS,
    names=("bert",),
    module=BERT,
    fields=BERT_FIELDS,
    read=_read,
    namings={"transformers": _naming},
    write=_write,
    inputs=text_inputs,
    adjusted=_adjusted,
    renamed=_renamed,
    unsaid=("pooler", "masked", "following", "classes", "embedding"),
)
