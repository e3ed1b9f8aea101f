"""Scheduled sampling: a decoder that is trained on its own words too (Bengio et al. 2015, 1506.03099)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from arch_jax.ops import precision

#: How the share of true tokens falls from update to update (section 2.4).
DECAYS = ("constant", "linear", "exponential", "inverse_sigmoid")


def truth_share(
    decay: str, start: float | int, rate: float | int, least: float | int, step: Float[Array, ""] | int
) -> Float[Array, ""]:
    """epsilon_i, the share of true tokens at the i-th update, from 0 (section 2.4):

        constant            start
        linear              max(least, start - rate i)
        exponential         max(least, start rate^i),                       rate below 1
        inverse sigmoid     max(least, start rate / (rate + exp(i / rate))),   rate at least 1

    Returns:
      A number in [0, 1], float32.
    """
    i = jnp.asarray(step, jnp.float32)
    if decay == "linear":
        share = start - rate * i
    elif decay == "exponential":
        share = start * jnp.float32(rate) ** i
    elif decay == "inverse_sigmoid":
        # rate / (rate + e^x) = sigmoid(log rate - x), which does not overflow.
        share = start * jax.nn.sigmoid(jnp.log(jnp.float32(rate)) - i / rate)
    else:
        share = jnp.float32(start)
    return jnp.maximum(jnp.asarray(share, jnp.float32), 0.0 if decay == "constant" else least)


def written_with_own_words(
    model: nn.Module,
    variables: Any,
    source: Int[Array, "batch source"],
    target: Int[Array, "batch time"],
    source_mask: Bool[Array, "batch source"] | None,
    share: Float[Array, ""] | float | int,
    key: Key[Array, ""],
    *,
    sample: bool = False,
    train: bool = True,
) -> tuple[Float[Array, "batch time vocabulary"], Int[Array, "batch time"], Float[Array, "batch time source"] | None]:
    """The decoder's logits where each token it is fed is the true one with probability `share`, else its own.

    Which it is, is drawn for each token (section 2.3); the first, which stands for the beginning, is always the true
    one. No gradient passes through a token that was chosen.

    Args:
      model: with the methods `encode`, `start` and `decode`, the last two of which carry everything.
      variables: of the model.
      source, target, source_mask: as the model is called with.
      share: of true tokens, in [0, 1].
      key: of the draws, and of dropout.
      sample: whether its own token is drawn from its distribution, or the likeliest.
      train: whether dropout is active.

    Returns:
      (logits, the tokens that were fed, the weights over the source or None for a model without).
    """
    encoding, drawing = jax.random.split(key)
    memory = model.apply(variables, source, source_mask, train, method="encode", rngs={"dropout": encoding})
    state = model.apply(variables, memory, source_mask, target.shape[1], method="start")

    def step(carry: Any, now: Any) -> tuple[Any, Any]:
        own, state = carry
        number, true = now
        coin, choice, dropping = jax.random.split(jax.random.fold_in(drawing, number), 3)
        honest = jax.random.bernoulli(coin, share, own.shape) | (number == 0)
        token = jnp.where(honest, true, own)
        (logits, state), sown = model.apply(
            variables, token[:, None], state, train,
            method="decode", rngs={"dropout": dropping}, mutable=["outputs"],
        )  # fmt: skip
        logits = logits[:, 0]
        chosen = jax.random.categorical(choice, logits) if sample else jnp.argmax(logits, axis=-1)
        weights = sown.get("outputs", {}).get("weights")
        return (chosen.astype(own.dtype), state), (logits, token, None if weights is None else weights[:, 0])

    count = jnp.arange(target.shape[1])
    _, out = precision.scan(step, (target[:, 0], state), (count, target.T))
    return jax.tree.map(lambda a: a.swapaxes(0, 1), out)
