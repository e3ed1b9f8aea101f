"""Example inputs of language models: tokens, pairs for an encoder-decoder, padded sequences for an encoder."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from arch_jax.inputs import calls
from arch_jax.inputs.base import Rows
from arch_jax.protocols import sequence_limit


@dataclasses.dataclass(frozen=True)
class TokenInputs(Rows):
    """Random token sequences for a language model: `tokens`, `targets`, `weights`, each "batch length".

    Attributes:
      length: tokens in a sequence; fewer where the module's table of positions is shorter.
    """

    length: int
    names = ("tokens",)
    arguments = staticmethod(calls.decoder)

    def batch(self, module: nn.Module, size: int, key: jax.Array) -> dict[str, jax.Array]:
        """Uniform tokens of the module's vocabulary; each target is the next token."""
        length = min(self.length, sequence_limit(module) or self.length)
        stream = jax.random.randint(key, (size, length + 1), 0, module.vocabulary, dtype=jnp.int32)
        return {"tokens": stream[:, :-1], "targets": stream[:, 1:], "weights": jnp.ones((size, length))}

    def resized(self, module: nn.Module) -> "TokenInputs":
        """At most 12 tokens: enough for every mask, cheap enough for every test."""
        return TokenInputs(min(self.length, 12))


@dataclasses.dataclass(frozen=True)
class PairInputs(Rows):
    """Random pairs for an encoder-decoder: `source` and `source_mask` "batch source"; `target`, `labels`, `weights`.

    Attributes:
      source: tokens of a source; the sources of a batch have different numbers of real ones.
      target: tokens of a target.
    """

    source: int
    target: int
    names = ("source", "target", "source_mask")
    arguments = staticmethod(calls.encoder_decoder)

    def batch(self, module: nn.Module, size: int, key: jax.Array) -> dict[str, jax.Array]:
        """Tokens of the module's vocabulary; each label is the target's next token."""
        drawing, length, labelling = jax.random.split(key, 3)
        room = sequence_limit(module) or max(self.source, self.target)
        source, target = min(self.source, room), min(self.target, room)
        real = jax.random.randint(length, (size, 1), min(2, source), source + 1)
        stream = jax.random.randint(labelling, (size, target + 1), 0, module.vocabulary, dtype=jnp.int32)
        return {
            "source": jax.random.randint(drawing, (size, source), 0, module.vocabulary, dtype=jnp.int32),
            "source_mask": jnp.arange(source) < real,
            "target": stream[:, :-1],
            "labels": stream[:, 1:],
            "weights": jnp.ones((size, target)),
        }

    def resized(self, module: nn.Module) -> "PairInputs":
        """At most 9 and 7 tokens."""
        return PairInputs(min(self.source, 9), min(self.target, 7))


@dataclasses.dataclass(frozen=True)
class EncodedInputs(Rows):
    """Random sequences for an encoder: `tokens`, `types`, `mask` "batch length"; `next`, `weights` "batch".

    Attributes:
      length: tokens of a sequence; fewer where the module's table of positions is shorter. The sequences of a batch
        have different numbers of real ones.
    """

    length: int
    names = ("tokens", "types", "mask")
    arguments = staticmethod(calls.encoder)

    def batch(self, module: nn.Module, size: int, key: jax.Array) -> dict[str, jax.Array]:
        """Tokens of the module's vocabulary but the last.

        Low ids are frequent, as some words are, so that there is something to learn in a few steps.
        """
        keys = jax.random.split(key, 4)
        length = min(self.length, sequence_limit(module) or self.length)
        ids = (module.vocabulary - 1) * jax.random.uniform(keys[0], (size, length)) ** 4
        real = jax.random.randint(keys[1], (size, 1), -(-length // 2), length + 1)
        border = jax.random.randint(keys[2], (size, 1), 1, max(2, length // 2))
        return {
            "tokens": ids.astype(jnp.int32),
            "types": (jnp.arange(length) > border).astype(jnp.int32),
            "mask": jnp.arange(length) < real,
            "next": jax.random.randint(keys[3], (size,), 0, 2, dtype=jnp.int32),
            "weights": jnp.ones((size,)),
        }

    def resized(self, module: nn.Module) -> "EncodedInputs":
        """At most 12 tokens."""
        return EncodedInputs(min(self.length, 12))


def tokens(length: int) -> TokenInputs:
    """Example inputs of a language model: sequences of `length` tokens."""
    return TokenInputs(length)


def pairs(source: int, target: int) -> PairInputs:
    """Example inputs of an encoder-decoder: sources of `source` tokens with targets of `target` tokens."""
    return PairInputs(source, target)


def encoded(length: int) -> EncodedInputs:
    """Example inputs of an encoder: sequences of `length` tokens, of two types and with padding."""
    return EncodedInputs(length)
