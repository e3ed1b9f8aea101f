"""Weights of Hugging Face's GPT-2 and Llama as variables of `Decoder`.

Their tensors are named by layer and stored for a matrix product from the left (GPT-2: from the right, like ours); ours
are stacked over layers where layers are scanned.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from arch_jax.errors import UsageError
from arch_jax.layers.decoder import Decoder

Tensors = Mapping[str, np.ndarray]


def gpt2_variables(tensors: Tensors, module: Decoder) -> dict[str, Any]:
    """Variables of a GPT-2 `module` from the tensors of transformers' GPT2LMHeadModel.

    Raises:
      UsageError: a tensor is missing.
    """
    get = _getter(tensors, "transformer.")

    def norm(name: str) -> dict[str, Any]:
        return {"scale": get(f"{name}.weight"), "bias": get(f"{name}.bias")}

    def dense(name: str) -> dict[str, Any]:
        return {"kernel": get(f"{name}.weight"), "bias": get(f"{name}.bias")}

    def layer(i: int) -> dict[str, Any]:
        h = f"h.{i}"
        joint = dense(f"{h}.attn.c_attn")  # queries, keys and values side by side
        parts = [np.split(joint[name], 3, axis=-1) for name in ("kernel", "bias")]
        q, k, v = ({"kernel": kernel, "bias": bias} for kernel, bias in zip(*parts))
        return {
            "mixer_norm": norm(f"{h}.ln_1"),
            "mixer": {"query": q, "key": k, "value": v, "output": dense(f"{h}.attn.c_proj")},
            "feed_forward_norm": norm(f"{h}.ln_2"),
            "feed_forward": {"up": dense(f"{h}.mlp.c_fc"), "down": dense(f"{h}.mlp.c_proj")},
        }

    params = {
        "embedding": {"embedding": get("wte.weight")},
        "position_embedding": {"table": {"embedding": get("wpe.weight")}},
        "stack": _stack(layer, module),
        "final_norm": norm("ln_f"),
    }
    return {"params": jax.tree.map(jnp.asarray, params)}


def llama_variables(tensors: Tensors, module: Decoder) -> dict[str, Any]:
    """Variables of a Llama `module` from the tensors of transformers' LlamaForCausalLM.

    Raises:
      UsageError: a tensor is missing.
    """
    get = _getter(tensors, "model.")

    def norm(name: str) -> dict[str, Any]:
        return {"scale": get(f"{name}.weight")}

    def dense(name: str) -> dict[str, Any]:
        return {"kernel": get(f"{name}.weight").T}

    def layer(i: int) -> dict[str, Any]:
        h = f"layers.{i}"
        names = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj"}
        return {
            "mixer_norm": norm(f"{h}.input_layernorm"),
            "mixer": {ours: dense(f"{h}.self_attn.{theirs}") for ours, theirs in names.items()},
            "feed_forward_norm": norm(f"{h}.post_attention_layernorm"),
            "feed_forward": {part: dense(f"{h}.mlp.{part}_proj") for part in ("gate", "up", "down")},
        }

    params = {
        "embedding": {"embedding": get("embed_tokens.weight")},
        "stack": _stack(layer, module),
        "final_norm": norm("norm"),
    }
    if not module.tied:
        params["logits"] = {"kernel": _getter(tensors, "")("lm_head.weight").T}
    return {"params": jax.tree.map(jnp.asarray, params)}


def _getter(tensors: Tensors, prefix: str) -> Callable[[str], np.ndarray]:
    def get(name: str) -> np.ndarray:
        for full in (prefix + name, name):
            if full in tensors:
                return np.asarray(tensors[full])
        raise UsageError(f"the tensor {prefix + name!r} is missing from the checkpoint")

    return get


def _stack(layer: Callable[[int], dict[str, Any]], module: Decoder) -> dict[str, Any]:
    """The layers as `Stack` keeps them: on a leading axis where it scans, apart where it does not."""
    layers = [layer(i) for i in range(module.depth)]
    if not module.scan:
        return {f"layer_{i}": tree for i, tree in enumerate(layers)}
    return {"layers": {"block_0": jax.tree.map(lambda *leaves: np.stack(leaves), *layers)}}
