"""RoPE for longer contexts: rules that stretch its frequencies (linear, NTK-aware, YaRN, Llama 3.1).

Each is a frozen dataclass, called with the frequencies theta^(-2i/dim) and theta; `attention_factor` multiplies the
rotated queries and keys (1 except for YaRN).
"""

import dataclasses
import math
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from arch_jax.errors import UsageError

__all__ = ["LinearScaling", "Llama3Scaling", "NTKScaling", "YaRNScaling"]


def _check_factor(rule: object, factor: float | int) -> None:
    if not factor > 0:
        name = type(rule).__name__
        raise UsageError(f"the factor of {name} is {factor}; expected a number above 0, such as 2.0")


@dataclasses.dataclass(frozen=True)
class LinearScaling:
    """Position interpolation: all wavelengths times `factor`, as if positions were divided by it.

    Source: Chen et al. 2023, Extending Context Window of Large Language Models via Positional Interpolation
    (arXiv 2306.15595), equation 4.

    Attributes:
      factor: of the context's length; above 0.

    Raises:
      UsageError: the factor is not above 0.
    """

    attention_factor: ClassVar[float] = 1.0

    factor: float = 2.0

    def __post_init__(self):
        _check_factor(self, self.factor)

    def __call__(self, frequencies: Float[Array, "half"], theta: float | int = 10_000.0) -> Float[Array, "half"]:
        """The stretched frequencies, in radians a token; `theta` is not used."""
        return frequencies / self.factor


@dataclasses.dataclass(frozen=True)
class NTKScaling:
    """NTK-aware interpolation: theta becomes theta factor^(dim/(dim-2)).

    The highest frequency stays, the lowest is divided by `factor`, and those between follow geometrically.

    Source: Peng et al. 2023, YaRN (arXiv 2309.00071), section 3.1, definition 1.

    Attributes:
      factor: of the context's length; above 0.

    Raises:
      UsageError: the factor is not above 0.
    """

    attention_factor: ClassVar[float] = 1.0

    factor: float = 2.0

    def __post_init__(self):
        _check_factor(self, self.factor)

    def __call__(self, frequencies: Float[Array, "half"], theta: float | int = 10_000.0) -> Float[Array, "half"]:
        """The stretched frequencies, in radians a token; `theta` is not used."""
        half = frequencies.shape[0]
        # theta'^(-2i/dim) = theta^(-2i/dim) factor^(-2i/(dim-2)), and 2i/(dim-2) is i/(half-1).
        return frequencies * float(self.factor) ** (-jnp.arange(half, dtype=frequencies.dtype) / max(1, half - 1))


@dataclasses.dataclass(frozen=True)
class YaRNScaling:
    """NTK-by-parts interpolation, with sharper attention (Peng et al. 2023, YaRN, arXiv 2309.00071).

    Dimensions that turn more than `fast` times within the original context keep their frequency, those that turn fewer
    than `slow` times have it divided by `factor`, and between the two a ramp that is linear in the dimension's index
    blends both (section 3.2; in the index, not in the number of turns, as the authors' code has it).

    Attributes:
      factor: of the context's length; above 0.
      original_length: tokens of the context that the model was trained on.
      fast: turns (beta in the paper) above which a frequency is kept.
      slow: turns (alpha in the paper) below which it is divided.
      magnitude: multiplies rotated queries and keys; None is 0.1 ln(factor) + 1 (section 3.4, equation 22
        gives its square, which is the effect on a score).
      whole: whether the ramp begins and ends at whole indices, as in the authors' code.

    Raises:
      UsageError: the factor, the length or the magnitude is not above 0, or not 0 < slow < fast.
    """

    factor: float = 4.0
    original_length: int = 4096
    fast: float = 32.0
    slow: float = 1.0
    magnitude: float | None = None
    whole: bool = True

    def __post_init__(self):
        _check_factor(self, self.factor)
        if not self.original_length > 0:
            raise UsageError(
                f"the original_length of YaRNScaling is {self.original_length}; expected a number of tokens above 0, "
                "such as 4096"
            )
        if not 0 < self.slow < self.fast:
            raise UsageError(
                f"YaRNScaling's slow is {self.slow} and its fast {self.fast}; expected 0 < slow < fast, such as 1, 32"
            )
        if self.magnitude is not None and not self.magnitude > 0:
            raise UsageError(f"YaRNScaling's magnitude is {self.magnitude}; expected a number above 0, or none")

    @property
    def attention_factor(self) -> float:
        """Factor of rotated queries and keys."""
        if self.magnitude is not None:
            return float(self.magnitude)
        return 0.1 * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0

    def __call__(self, frequencies: Float[Array, "half"], theta: float | int = 10_000.0) -> Float[Array, "half"]:
        """The stretched frequencies, in radians a token."""
        half = frequencies.shape[0]

        def index(turns: float) -> float:
            """Of the dimension that makes so many turns within the original context."""
            return half * math.log(self.original_length / (2 * math.pi * turns)) / math.log(theta)

        low, high = index(self.fast), index(self.slow)
        if self.whole:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, 2 * half - 1)
        high = high + 0.001 if low == high else high
        ramp = jnp.clip((jnp.arange(half, dtype=frequencies.dtype) - low) / (high - low), 0.0, 1.0)
        return frequencies * (1 - ramp + ramp / self.factor)


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's stretching of RoPE to longer contexts (The Llama 3 Herd of Models, arXiv 2407.21783, and its code).

    Wavelengths (in tokens) shorter than `original_length / high_frequency_factor` are kept, those longer than
    `original_length / low_frequency_factor` are multiplied by `factor`, and between the two the frequency is
    interpolated linearly in `original_length / wavelength`.
    """

    attention_factor: ClassVar[float] = 1.0

    factor: float = 8.0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_length: int = 8192

    def __post_init__(self):
        _check_factor(self, self.factor)
        if not 0 < self.low_frequency_factor < self.high_frequency_factor:
            raise UsageError(
                f"Llama3Scaling's frequency factors are {self.low_frequency_factor} (low) and "
                f"{self.high_frequency_factor} (high); expected 0 < low < high, such as 1.0 and 4.0"
            )
        if not self.original_length > 0:
            raise UsageError(
                f"the original_length of Llama3Scaling is {self.original_length}; expected a number of tokens above 0, "
                "such as 8192"
            )

    def __call__(self, frequencies: Float[Array, "half"], theta: float | int = 10_000.0) -> Float[Array, "half"]:
        """The stretched frequencies, in radians a token; `theta` is not used."""
        cycles = self.original_length * frequencies / (2 * math.pi)  # turns within the original context
        low, high = self.low_frequency_factor, self.high_frequency_factor
        kept = jnp.clip((cycles - low) / (high - low), 0.0, 1.0)
        return frequencies * (kept + (1 - kept) / self.factor)
