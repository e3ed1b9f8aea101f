"""Sequence to sequence: the target's next tokens, given the source (Sutskever et al. 2014; Vaswani et al. 2017)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from arch_jax.errors import UsageError, unknown
from arch_jax.evaluation.base import Measure
from arch_jax.evaluation.bleu import Translation
from arch_jax.fields import component
from arch_jax.figures.attention_map import AttentionMap
from arch_jax.figures.base import Figure
from arch_jax.figures.samples import Samples
from arch_jax.inputs import calls
from arch_jax.layers import collections
from arch_jax.layers.seq2seq.encoder_decoder import RecurrentEncoderDecoder
from arch_jax.objectives.base import Batch, ObjectiveBase, Pair
from arch_jax.objectives.scheduled_sampling import DECAYS, truth_share, written_with_own_words
from arch_jax.ops.losses import coverage_loss, cross_entropy, weighted
from arch_jax.protocols import attends, check_head, check_length, source_vocabulary
from arch_jax.ranges import Count, Share
from arch_jax.sampling.beam_search import BeamSearch

#: The collection that counts updates, for a share of true tokens that changes with them.
_COUNT = "teacher_forcing"
collections.declare(_COUNT, devices="replicate")


@component("sequence_to_sequence", kind="objective")
@dataclasses.dataclass(frozen=True)
class SequenceToSequence(ObjectiveBase):
    """-log p(y_t | y_1 ... y_{t-1}, x), in nats, over the target's real tokens, the one that ends it among them.

    Attributes:
      model: the encoder-decoder; filled in by the experiment.
      label_smoothing: share of each target spread evenly over the vocabulary, in training (1706.03762, section 5.4).
      beams, length_penalty, longest: defaults of the sampler, which is beam search.
      show_pairs: validation pairs in the default figure.
      teacher_forcing: share of the decoder's inputs in training that are the true tokens; the others are what it wrote
        itself before them (scheduled sampling, 1506.03099). With less than 1 the decoder goes token by token.
      decay: how that share falls from update to update: "constant", "linear", "exponential" or "inverse_sigmoid"; see
        `objectives.scheduled_sampling.truth_share`. Of several micro-batches each counts as an update.
      decay_rate: of the decay.
      least_forcing: the share that it does not fall below.
      sampling: whether the decoder's own token is the likeliest ("argmax") or drawn from its distribution ("sample").
      coverage: weight of the coverage loss, sum_i min(a_i, k_i) for weights a over the source, k being the sum of those
        before (1704.04368, equations 12 and 13; 1 in the paper).

    Raises:
      UsageError: a field out of range.
    """

    label_smoothing: Share = 0.0
    beams: int = 4
    length_penalty: float = 0.6
    longest: float = 1.25
    show_pairs: Count = 6
    teacher_forcing: float = 1.0
    decay: str = "constant"
    decay_rate: float = 0.0
    least_forcing: float = 0.0
    sampling: str = "argmax"
    coverage: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing <= 1:
            raise UsageError(f"label_smoothing is {self.label_smoothing}; expected a number from 0 to 1, such as 0.1")
        BeamSearch(beams=self.beams, length_penalty=self.length_penalty, longest=self.longest)  # refuses early
        for name in ("teacher_forcing", "least_forcing"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} is {getattr(self, name)}; expected a share from 0 to 1")
        if self.decay not in DECAYS:
            raise unknown("decay", str(self.decay), DECAYS)
        if self.sampling not in ("argmax", "sample"):
            raise unknown("sampling", str(self.sampling), ("argmax", "sample"))
        right, expected = {
            "constant": (True, ""),
            "linear": (self.decay_rate > 0, "more than 0, such as 1e-4"),
            "exponential": (0 < self.decay_rate < 1, "between 0 and 1, such as 0.999"),
            "inverse_sigmoid": (self.decay_rate >= 1, "at least 1, such as 500"),
        }[self.decay]
        if not right:
            raise UsageError(f"decay_rate is {self.decay_rate}; expected {expected}, for the decay {self.decay!r}")
        if not self.coverage >= 0:
            raise UsageError(f"coverage is {self.coverage}; expected at least 0, such as 1")

    @property
    def sampler(self) -> BeamSearch:
        """Beam search."""
        return BeamSearch(beams=self.beams, length_penalty=self.length_penalty, longest=self.longest)

    @property
    def measures(self) -> tuple[Measure, ...]:
        """Exact sequences, and BLEU where the data has references."""
        return (Translation(),)

    @property
    def figures(self) -> tuple[Figure, ...]:
        """Validation pairs beside what beam search finds; and attention over the source, if the model has it."""
        return Samples(self.show_pairs), AttentionMap()

    def init(self, key: jax.Array, batch: Batch, held: Any = None) -> dict[str, Any]:
        variables = super().init(key, batch, held)
        # A float, since collections are averaged over devices.
        return variables | {_COUNT: {"updates": jnp.zeros((), jnp.float32)}} if self.decays else variables

    @property
    def decays(self) -> bool:
        """True if the share of true tokens changes in training."""
        return self.decay != "constant"

    def arguments(self, batch: Batch) -> tuple:
        return calls.encoder_decoder(batch)

    def loss(
        self, player: str, phase: str, variables: Any, batch: Batch, key: jax.Array, step: Any
    ) -> tuple[Pair, tuple[dict, dict]]:
        """Nats a token, with the coverage loss; the metric "loss" is what is minimised, "share" that of true tokens."""
        logits, weights, updates, metrics = self._written(variables, batch, key)
        nats = cross_entropy(logits, jnp.asarray(batch["labels"]), label_smoothing=self.label_smoothing)
        if self.coverage:
            lost = coverage_loss(weights)
            nats = nats + self.coverage * lost.astype(nats.dtype)
            metrics = metrics | {"coverage": weighted(lost, batch["weights"])}
        loss = weighted(nats, batch["weights"])
        return loss, (metrics | {"loss": loss}, updates)

    def _written(self, variables: Any, batch: Batch, key: jax.Array) -> tuple[Any, Any, dict, dict]:
        """(logits, weights over the source if they are needed, updated collections, metrics) in training."""
        arguments = self.arguments(batch)
        if self.teacher_forcing == 1 and not self.decays:
            logits, updates = self.apply(variables, *arguments, key=key)
            return logits, updates.get("outputs", {}).get("weights"), updates, {}
        source, target, mask = map(_array, arguments)
        counted = variables.get(_COUNT, {"updates": 0})["updates"]
        settings = (self.decay, self.teacher_forcing, self.decay_rate, self.least_forcing)
        share = truth_share(*settings, counted)
        own = {kind: tree for kind, tree in variables.items() if kind != _COUNT}
        logits, _, weights = written_with_own_words(
            self.model, own, source, target, mask, share, key, sample=self.sampling == "sample"
        )
        updates = {_COUNT: {"updates": counted + 1}} if self.decays else {}
        return logits, weights, updates, {"share": (share, jnp.ones((), share.dtype))}

    def evaluate(self, variables: Any, batch: Batch) -> dict[str, Pair]:
        """Nats a token without smoothing ("loss"; its exponential is the perplexity), and shares that are right.

        "accuracy" is of the tokens, each after the true ones before it; "exact" of the sequences of which all tokens
        are right, which are those that greedy decoding writes without a mistake.
        """
        logits = self.model.apply(variables, *self.arguments(batch))
        labels, weights = jnp.asarray(batch["labels"]), jnp.asarray(batch["weights"])
        right = jnp.argmax(logits, axis=-1) == labels
        nats = cross_entropy(logits, labels)
        rows = jnp.any(weights > 0, axis=1)  # what fills up the last batch has no real token
        exact = jnp.all(right | (weights == 0), axis=1) & rows
        return {
            "loss": weighted(nats, batch["weights"]),
            "accuracy": weighted(right.astype(nats.dtype), batch["weights"]),
            "exact": (jnp.sum(exact.astype(nats.dtype)), jnp.sum(rows.astype(nats.dtype))),
        }

    def check(self, data: Any) -> None:
        """The data must have pairs, with tokens that are in the model's vocabulary and lengths within its positions."""
        missing = [name for name in ("source", "target", "labels") if name not in data.shapes]
        if missing:
            raise UsageError(
                f"the objective 'sequence_to_sequence' takes pairs of sequences, and the data has "
                f"{', '.join(data.shapes)}; expected source, target and labels, such as arch_jax.Multi30k()"
            )
        check_head(self.model)
        if data.vocabulary > self.model.vocabulary:
            raise UsageError(
                f"model.vocabulary is {self.model.vocabulary}, but the data has {data.vocabulary} tokens; set "
                f"model.vocabulary={data.vocabulary}"
            )
        of_source = source_vocabulary(self.model)
        if data.vocabulary > of_source:
            raise UsageError(
                f"model.source_vocabulary is {of_source}, but the data has {data.vocabulary} tokens; set "
                f"model.source_vocabulary={data.vocabulary}"
            )
        name = type(self.model).__name__
        recurrent = isinstance(self.model, RecurrentEncoderDecoder)
        if (self.teacher_forcing < 1 or self.decays) and not recurrent:
            raise UsageError(
                f"teacher_forcing below 1 feeds a decoder its own words, which {name} is not trained with; expected "
                "teacher_forcing=1, or a recurrent model such as 'bahdanau'"
            )
        if self.coverage and not (recurrent and self.model.attends):
            raise UsageError(
                f"coverage is {self.coverage}, but {name} gives no weights over the source; expected 0, or a model "
                "such as 'pointer-generator'"
            )
        check_length(self.model, data.length)

    @property
    def attends(self) -> bool:
        """True if the model gives attention weights over the source."""
        return attends(self.model)


def _array(value: Any) -> Any:
    return None if value is None else jnp.asarray(value)
