"""transformers' model types, one file each: config.json as a module of ours and back, and the tensors' names."""

from arch_jax.interop.model_types.bert import BERT_TYPE
from arch_jax.interop.model_types.gpt2 import GPT2_TYPE
from arch_jax.interop.model_types.llama import LLAMA_TYPE, MISTRAL_TYPE
from arch_jax.interop.model_types.mamba import MAMBA_TYPE
from arch_jax.interop.model_types.mamba2 import MAMBA2_TYPE
from arch_jax.interop.model_types.marian import MARIAN_TYPE
from arch_jax.interop.model_types.model_type import ModelType
from arch_jax.interop.model_types.rwkv import RWKV_TYPE
from arch_jax.interop.model_types.t5 import T5_TYPE
from arch_jax.interop.model_types.xlstm import XLSTM_TYPE

__all__ = ["MODEL_TYPES", "ModelType"]

MODEL_TYPES: dict[str, ModelType] = {
    "gpt2": GPT2_TYPE,
    "llama": LLAMA_TYPE,
    "mistral": MISTRAL_TYPE,
    "bert": BERT_TYPE,
    "t5": T5_TYPE,
    "marian": MARIAN_TYPE,
    "rwkv": RWKV_TYPE,
    "mamba": MAMBA_TYPE,
    "mamba2": MAMBA2_TYPE,
    "xlstm": XLSTM_TYPE,
}
