"""Sampling from trained models: one file a method, each a `Sampler` whose fields are its settings.

`generate` continues prompts and `beam_search` writes targets for sources, for models that carry a state.
"""

from arch_jax.sampling.arguments import pad_prompts
from arch_jax.sampling.autoregressive import generate
from arch_jax.sampling.base import Sampler
from arch_jax.sampling.beam_search import beam_search

__all__ = ["Sampler", "beam_search", "generate", "pad_prompts"]
