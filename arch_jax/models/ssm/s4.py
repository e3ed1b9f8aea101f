"""S4 and S4D: language models of linear state spaces that don't depend on the token.

S4 (Gu et al., 2111.00396) gives each channel a state space x' = A x + B u, y = C x + D u, whose A starts as
HiPPO-LegS, the matrix by which x represents the past in Legendre polynomials; it is normal plus low rank, so that the
convolution's kernel K_l = C A_bar^l B_bar costs a Cauchy product (algorithm 1). S4D (2206.11893) keeps the diagonal
only, and a Vandermonde product is enough. Trained as convolutions, both decode as recurrences.

A layer is x_l = x_{l-1} + S4(norm(x_{l-1})), with a gated linear unit after the state space to mix the channels; the
sizes are those of a small model over bytes, about as many parameters as `gpt` has.
"""

from arch_jax.inputs import tokens
from arch_jax.layers.mixers.ssm.s4 import S4, S4D
from arch_jax.layers.norms import LayerNorm
from arch_jax.layers.transformer.decoder import Decoder
from arch_jax.registry import Paper, register

FACTS = {
    "family": "ssm",
    "objective": "next_token",
    "inputs": tokens(256),
    "shrink": {"vocabulary": 32, "depth": 2, "width": 16, "mixer.state": 8},
}


def s4_decoder(mixer: S4 | S4D) -> Decoder:
    """Four layers of width 384 over bytes."""
    return Decoder(
        vocabulary=256, depth=4, width=384, mixer=mixer, feed_forward=None, norm=LayerNorm(), tied=True, scan=False
    )


@register(
    "s4",
    paper=Paper("Efficiently Modeling Long Sequences with Structured State Spaces", "Gu et al.", 2021, "2111.00396"),
    reference="scipy.signal's dlsim of the dense HiPPO-LegS matrix: outputs within 1e-5",
    departures=(
        "The parameter is C itself; the authors' code learns C (1 - A_bar^L) for the one length L of its inputs. One "
        "C then serves all lengths.",
        "The low rank is P P^* (Goel et al., 2202.09729), where the paper has P Q^* with a Q of its own: A's "
        "eigenvalues then stay in the left half plane.",
        "A small causal language model of our own size over bytes, pre-norm, with a gated linear unit after the state "
        "space.",
    ),
    difference=2.4e-7,
    **FACTS,
)
def s4() -> Decoder:
    """Four layers of S4 over bytes."""
    return s4_decoder(S4())


@register(
    "s4d",
    paper=Paper(
        "On the Parameterization and Initialization of Diagonal State Space Models", "Gu et al.", 2022, "2206.11893"
    ),
    reference="scipy.signal's dlsim: outputs within 1e-5",
    departures=(
        "A small causal language model of our own size over bytes, pre-norm, with a gated linear unit after the state "
        "space.",
    ),
    difference=5.7e-7,
    **FACTS,
)
def s4d() -> Decoder:
    """Four layers of S4D-Lin over bytes."""
    return s4_decoder(S4D())
