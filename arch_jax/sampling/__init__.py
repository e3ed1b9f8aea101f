"""Decoding: `generate` continues prompts, `beam_search` writes what answers a source. For models that carry a state."""

from arch_jax.sampling.autoregressive import generate, pad_prompts
from arch_jax.sampling.beam_search import beam_search

__all__ = ["beam_search", "generate", "pad_prompts"]
