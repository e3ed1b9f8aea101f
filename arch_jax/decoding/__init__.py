"""Decoding: `generate` continues prompts, `beam_search` writes what answers a source. For models that carry a state."""

from arch_jax.decoding.beams import beam_search
from arch_jax.decoding.generation import generate, pad_prompts

__all__ = ["beam_search", "generate", "pad_prompts"]
