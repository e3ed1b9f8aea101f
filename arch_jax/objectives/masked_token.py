"""Masked-token prediction, and next-sentence prediction where the data has it: BERT's pre-training (1810.04805)."""

import dataclasses
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Key

from arch_jax.errors import UsageError
from arch_jax.evaluation.base import Measure
from arch_jax.evaluation.known_source import KnownSource
from arch_jax.fields import component
from arch_jax.figures.base import Figure
from arch_jax.figures.samples import Samples
from arch_jax.inputs import calls
from arch_jax.objectives.base import Batch, ObjectiveBase, Pair
from arch_jax.ops.losses import cross_entropy, weighted
from arch_jax.protocols import check_length
from arch_jax.ranges import Count, Range
from arch_jax.sampling.fill_mask import FillMask


def choose_tokens(
    key: Key[Array, ""],
    candidates: Bool[Array, "batch time"],
    share: float | int,
    counts: Int[Array, "batch"] | None = None,
) -> Bool[Array, "batch time"]:
    """Which tokens are to be predicted.

    Args:
      key: of the draw.
      candidates: which may be chosen.
      share: the probability of each, where there are no `counts`.
      counts: how many of each row's candidates are chosen, every set of them equally likely; all where there are fewer.
    """
    draw = jax.random.uniform(key, candidates.shape)
    if counts is None:
        return candidates & (draw < share)
    rank = jnp.argsort(jnp.argsort(jnp.where(candidates, draw, 2.0), axis=-1), axis=-1)
    return candidates & (rank < counts[:, None])


def corrupt_tokens(
    key: Key[Array, ""],
    tokens: Int[Array, "batch time"],
    chosen: Bool[Array, "batch time"],
    mask_token: int,
    replacements: Int[Array, "_"] | Int[np.ndarray, "_"],
    masked: float | int = 0.8,
    random: float | int = 0.1,
) -> Int[Array, "batch time"]:
    """The tokens as the model sees them (1810.04805, section 3.1 and appendix A.1).

    Args:
      key: of the draw.
      tokens: the true ones.
      chosen: which of them are to be predicted; the others stay.
      mask_token: what a chosen token becomes with probability `masked`.
      replacements: the tokens of which one, drawn uniformly, takes its place with probability `random`.
      masked, random: what is left of 1 is the probability that it stays as it is.
    """
    action, drawn = jax.random.split(key)
    action = jax.random.uniform(action, tokens.shape)
    replacements = jnp.asarray(replacements, tokens.dtype)
    other = replacements[jax.random.randint(drawn, tokens.shape, 0, len(replacements))]
    changed = jnp.where(action < masked, mask_token, jnp.where(action < masked + random, other, tokens))
    return jnp.where(chosen, changed, tokens).astype(tokens.dtype)


@component("masked_token", kind="objective")
@dataclasses.dataclass(frozen=True)
class MaskedToken(ObjectiveBase):
    """-log p(x_t | corrupted x), in nats, over the chosen tokens; plus -log p(B follows A or not | corrupted A, B).

    The second is there where the batch has `next` and the model gives it. Both are means: with S and W the sums and
    weights of the two, and K how many tokens are chosen in a full row, the pair that is minimised is (S_1 + K S_2,
    W_1). With full rows W_1 = K W_2 and this is S_1 / W_1 + S_2 / W_2. As a sum over rows it stays the same however a
    batch is cut up; where rows are padded, the second term weighs as much more as they are shorter.

    The corruption is drawn from the step's key: no token's is the same twice. In evaluation it is always the same.

    Attributes:
      model: the encoder; filled in by the experiment.
      share: of the tokens that are chosen.
      masked: share of the chosen ones that become [MASK].
      random: share of the chosen ones that become a random token; the rest stay as they are.
      selection: "count" chooses `share` of each row's real tokens, rounded, at least one (BERT); "independent" chooses
        each token alone with probability `share` (RoBERTa's code).
      mask_token: the id of [MASK]; negative counts from the end of the model's vocabulary.
      special: ids that are never chosen and never put in a token's place, beside `mask_token`; negative as above.
        (BERT's own code does put them in.)
      show_rows: validation rows in the default figure.

    Raises:
      UsageError: a share out of range.
    """

    share: float = 0.15
    masked: float = 0.8
    random: float = 0.1
    selection: Literal["count", "independent"] = "count"
    mask_token: Annotated[int, Range()] = -1
    special: tuple[Annotated[int, Range()], ...] = ()
    show_rows: Count = 4

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise UsageError(f"share is {self.share}; expected more than 0 and at most 1, such as 0.15")
        for name in ("masked", "random"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} is {getattr(self, name)}; expected a share from 0 to 1")
        if self.masked + self.random > 1 + 1e-9:
            raise UsageError(
                f"masked is {self.masked} and random {self.random}, together more than 1; expected shares such as 0.8 "
                "and 0.1"
            )

    @property
    def sampler(self) -> FillMask:
        """The likeliest tokens at masked places."""
        return FillMask()

    @property
    def measures(self) -> tuple[Measure, ...]:
        """The distance from the best predictor, where the source is known."""
        return (KnownSource(),)

    @property
    def figures(self) -> tuple[Figure, ...]:
        """Validation rows with what is predicted at each chosen token."""
        return (Samples(self.show_rows),)

    def arguments(self, batch: Batch) -> tuple:
        return calls.encoder(batch)

    @property
    def mask_id(self) -> int:
        """The id of [MASK], counted from 0."""
        return self._special[0]

    @property
    def _special(self) -> tuple[int, ...]:
        """The ids that are neither chosen nor drawn, [MASK] first, none negative."""
        size = self.model.vocabulary
        return tuple(token % size if token < 0 else token for token in (self.mask_token, *self.special))

    @staticmethod
    def real(batch: Batch) -> Any:
        """True at real tokens; None where no token is padding."""
        return calls.encoder(batch)[2]

    def corrupted(self, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(tokens as the model sees them, which of them are to be predicted), both "batch time"."""
        tokens, real = jnp.asarray(batch["tokens"]), self.real(batch)
        real = jnp.ones(tokens.shape, bool) if real is None else jnp.asarray(real)
        weights = jnp.asarray(batch["weights"])
        real = real & ((weights if weights.ndim == 2 else weights[:, None]) > 0)
        candidates = real & ~jnp.isin(tokens, jnp.array(self._special))
        counts = None
        if self.selection == "count":
            counts = jnp.maximum(1, jnp.round(self.share * real.sum(-1))).astype(jnp.int32)
        choosing, replacing = jax.random.split(key)
        chosen = choose_tokens(choosing, candidates, self.share, counts)
        others = np.setdiff1d(np.arange(self.model.vocabulary, dtype=np.int32), self._special)
        return corrupt_tokens(replacing, tokens, chosen, self._special[0], others, self.masked, self.random), chosen

    def loss(
        self, player: str, phase: str, variables: Any, batch: Batch, key: jax.Array, step: Any
    ) -> tuple[Pair, tuple[dict, dict]]:
        corrupting, dropping = jax.random.split(key)
        tokens, chosen = self.corrupted(batch, corrupting)
        out, updates = self.apply(variables, *self.arguments({**batch, "tokens": tokens}), key=dropping)
        metrics = self._metrics(out, batch, chosen)
        return metrics["loss"], ({n: m for n, m in metrics.items() if not n.endswith("accuracy")}, updates)

    def evaluate(self, variables: Any, batch: Batch) -> dict[str, Pair]:
        """Nats ("loss"), the share of chosen tokens predicted right ("accuracy"), and each task where there are two."""
        tokens, chosen = self.corrupted(batch, self.fixed_key(batch))
        out = self.model.apply(variables, *self.arguments({**batch, "tokens": tokens}))
        return self._metrics(out, batch, chosen)

    @staticmethod
    def fixed_key(batch: Batch) -> jax.Array:
        """The same for the same batch at each evaluation, and another for another batch."""
        return jax.random.fold_in(jax.random.key(0), jnp.sum(jnp.asarray(batch["tokens"]).astype(jnp.uint32)))

    def _metrics(self, out: dict, batch: Batch, chosen: jax.Array) -> dict[str, Pair]:
        tokens = jnp.asarray(batch["tokens"])
        nats = cross_entropy(out["logits"], tokens)
        weights = jnp.asarray(batch["weights"]).astype(nats.dtype)
        rows = weights if weights.ndim == 1 else weights[:, 0]
        counted = chosen * (weights if weights.ndim == 2 else weights[:, None])
        right = (jnp.argmax(out["logits"], axis=-1) == tokens).astype(nats.dtype)
        total, weight = weighted(nats, counted)
        metrics = {"loss": (total, weight), "accuracy": weighted(right, counted)}
        if "next" not in batch or "next" not in out:
            return metrics
        labels = jnp.asarray(batch["next"])
        next_total, pairs = weighted(cross_entropy(out["next"], labels), rows)
        follows = (jnp.argmax(out["next"], axis=-1) == labels).astype(nats.dtype)
        length = tokens.shape[1]
        full = max(1, round(self.share * length)) if self.selection == "count" else self.share * length
        return {
            "loss": (total + full * next_total, weight),
            "accuracy": metrics["accuracy"],
            "masked_loss": (total, weight),
            "next_loss": (next_total, pairs),
            "next_accuracy": weighted(follows, rows),
        }

    def check(self, data: Any) -> None:
        """The data's tokens must be in the model's vocabulary, and [MASK] must be none of them."""
        if "tokens" not in data.shapes:
            raise UsageError(
                f"the objective 'masked_token' takes token sequences, and the data has {', '.join(data.shapes)}; "
                "expected tokens, such as arch_jax.Text()"
            )
        own = data.tokenizer
        # A corpus with a vocabulary of its own has counted [MASK] and the other special tokens in.
        needed = own.vocabulary + 1 if own is not None else data.vocabulary
        if needed > self.model.vocabulary:
            raise UsageError(
                f"model.vocabulary is {self.model.vocabulary}, but the data needs {needed} tokens with [MASK]; set "
                f"model.vocabulary={needed}"
            )
        outside = [token for token in self._special if not 0 <= token < self.model.vocabulary]
        if outside:
            raise UsageError(
                f"the special token {outside[0]} is outside the model's vocabulary of {self.model.vocabulary}; "
                f"expected 0 to {self.model.vocabulary - 1}, or a negative number that counts from the end"
            )
        mask = data.mask_token
        if mask is not None and self._special[0] != mask:
            raise UsageError(
                f"objective.mask_token is {self.mask_token}, which is token {self._special[0]}, and the data's [MASK] "
                f"is {mask}; set objective.mask_token={mask}"
            )
        if own is not None and self._special[0] < own.vocabulary:
            raise UsageError(
                f"objective.mask_token is {self._special[0]}, which the tokenizer uses; expected at least "
                f"{own.vocabulary}, or -1 for the last of the model's vocabulary"
            )
        check_length(self.model, data.length)
