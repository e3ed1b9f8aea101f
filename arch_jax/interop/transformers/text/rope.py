"""Rotary positions in config.json: `rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling` (before)."""

import math
from collections.abc import Mapping
from typing import Any

from arch_jax.errors import UsageError, nearest
from arch_jax.interop.configuration_fields import Field, choice, flag, only, positive, unchanged, whole, whole_or_none
from arch_jax.interop.strict_json import shown
from arch_jax.layers.transformer.positions import RoPE
from arch_jax.ops.attention.rope_scaling import LinearScaling, Llama3Scaling, YaRNScaling

#: The fields that `read_rope` takes.
ROPE_FIELDS = {
    "max_position_embeddings": Field(whole, 2048),
    "original_max_position_embeddings": Field(whole_or_none),
    "rope_theta": Field(unchanged),
    "rope_scaling": Field(unchanged),
    "rope_parameters": Field(unchanged),
}
#: transformers' Llama rotates whole heads, whatever this field says.
ROPE_REFUSES = {"partial_rotary_factor": (1, 1.0, None)}
_ORIGINAL = "original_max_position_embeddings"
#: Of each type, the fields that it must have and those that it may have.
_TYPES = {
    "default": ((), ()),
    "linear": (("factor",), ()),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor", _ORIGINAL), ()),
    "yarn": (
        ("factor", _ORIGINAL),
        ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    ),
}
_ANY = ("rope_theta", "partial_rotary_factor")


def read_rope(c: Mapping[str, Any]) -> RoPE:
    """Rotary positions from the fields of `ROPE_FIELDS`, read.

    Raises:
      UsageError: an unsupported type, a field that its type does not have or lacks, or two that contradict each other.
    """
    given = {name: c[name] for name in ("rope_parameters", "rope_scaling") if c[name] not in (None, {})}
    for name, value in given.items():
        if not isinstance(value, dict):
            raise UsageError(f"{name} is {shown(value)}; expected an object with a rope_type")
    if len(given) == 2 and given["rope_parameters"] != given["rope_scaling"]:
        raise UsageError("rope_parameters and rope_scaling differ; expected one of them")
    where = next(iter(given), "rope_parameters")
    # A name with null counts as absent.
    rope = {name: value for name, value in given.get(where, {}).items() if value is not None}
    kinds = [rope.pop(name) for name in ("rope_type", "type") if name in rope] or ["default"]
    if kinds[0] != kinds[-1]:
        raise UsageError(f"{where} has rope_type {shown(kinds[0])} and type {shown(kinds[1])}; expected them to agree")
    kind = choice({name: name for name in _TYPES})(f"{where}.rope_type", kinds[0])
    needed, possible = _TYPES[kind]
    for name in rope:
        if name not in (*needed, *possible, *_ANY):
            valid = nearest(name[:80], [*needed, *possible, "rope_theta"])
            raise UsageError(f"{where}.{name[:80]} is not supported with rope_type {kind!r}{valid}")
    thetas = [value for value in (rope.get("rope_theta"), c["rope_theta"]) if value is not None] or [10_000.0]
    if thetas[0] != thetas[-1]:
        raise UsageError(f"rope_theta is {shown(thetas[1])}, and in {where} {shown(thetas[0])}; expected them to agree")
    only(1, 1.0)(f"{where}.partial_rotary_factor", rope.get("partial_rotary_factor", 1))
    theta = positive("rope_theta", thetas[0])
    if _ORIGINAL in needed:
        rope[_ORIGINAL] = c[_ORIGINAL] or rope.get(_ORIGINAL) or c["max_position_embeddings"]
    for name in needed:
        if name not in rope:
            raise UsageError(f"{where}.{name} is missing; rope_type {kind!r} needs it")
    readers = {_ORIGINAL: whole, "truncate": flag}
    read = {n: readers.get(n, positive)(f"{where}.{n}", rope[n]) for n in (*needed, *possible) if n in rope}
    if kind == "yarn":
        return RoPE(theta=theta, scaling=_yarn(read))
    types = {"default": lambda: None, "linear": LinearScaling, "llama3": Llama3Scaling}
    return RoPE(theta=theta, scaling=types[kind](*(read[name] for name in needed)))


def _yarn(read: Mapping[str, Any]) -> YaRNScaling:
    factor, magnitude = read["factor"], read.get("attention_factor")
    if magnitude is None and "mscale" in read and "mscale_all_dim" in read:
        of = lambda scale: 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0
        magnitude = of(read["mscale"]) / of(read["mscale_all_dim"])
    return YaRNScaling(
        factor,
        read[_ORIGINAL],
        fast=read.get("beta_fast", 32.0),
        slow=read.get("beta_slow", 1.0),
        magnitude=magnitude,
        whole=read.get("truncate", True),
    )


def write_rope(rope: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of config.json that say what a RoPE's settings, as JSON, say."""
    scaling = rope.get("scaling") or {}
    parameters = {"rope_type": "default", "rope_theta": rope.get("theta", 10_000.0)}
    longest = 2048.0
    match scaling.get("module"):
        case "linear_scaling":
            parameters |= {"rope_type": "linear", "factor": scaling["factor"]}
            longest *= scaling["factor"]
        case "llama3_scaling":
            parameters |= {
                "rope_type": "llama3",
                "factor": scaling["factor"],
                "low_freq_factor": scaling["low_frequency_factor"],
                "high_freq_factor": scaling["high_frequency_factor"],
                _ORIGINAL: scaling["original_length"],
            }
            longest = scaling["original_length"] * scaling["factor"]
        case "yarn_scaling":
            parameters |= {
                "rope_type": "yarn",
                "factor": scaling["factor"],
                "beta_fast": scaling["fast"],
                "beta_slow": scaling["slow"],
                "truncate": scaling["whole"],
                _ORIGINAL: scaling["original_length"],
            }
            parameters |= {} if scaling["magnitude"] is None else {"attention_factor": scaling["magnitude"]}
            longest = scaling["original_length"] * scaling["factor"]
    return {"rope_parameters": parameters, "max_position_embeddings": max(1, int(longest))}
